"""The colours of the methods, as the figures of the library have them."""

from workbench.figures.palette import DARK, LIGHT, NAMES, OKABE_ITO, PAPER

__all__ = ["DARK", "LIGHT", "NAMES", "OKABE_ITO", "PAPER"]

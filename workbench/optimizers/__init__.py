"""Optimizers: one file per family. A rule is one class; the catalogue finds it by itself."""

from workbench.optimizers.base import Optimizer

__all__ = ["Optimizer"]

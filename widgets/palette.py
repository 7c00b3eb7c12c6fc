"""The colours of the methods, once: Okabe–Ito, in variants that stay legible on white and on near-black.

A colour is an index from 0 to 7, the same everywhere a method appears. Each variant keeps the hue of the original and
has a contrast of at least 3:1 with its paper, the bound for graphics in WCAG 2.1. Source of the hues: M. Okabe,
K. Ito, Color Universal Design (2008).
"""

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C08400", "#3396D6", "#9A8F00", "#1B1F23")
DARK = ("#1A82C9", "#E8702A", "#14B285", "#D98DB8", "#E69F00", "#6CC3F5", "#F0E442", "#F2F4F5")
NAMES = ("blue", "vermilion", "green", "purple", "orange", "sky", "yellow", "ink")
PAPER = {"light": "#FFFFFF", "dark": "#121212"}

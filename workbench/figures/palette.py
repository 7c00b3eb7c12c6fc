"""The colours of the methods, once: Okabe–Ito, in variants that stay legible on white and on near-black.

A colour is an index from 0 to 7, the same everywhere a method appears. Each variant keeps the hue of the original and
has a contrast of at least 3:1 with its paper, the bound for graphics in WCAG 2.1. Source of the hues: M. Okabe,
K. Ito, Color Universal Design (2008).
"""

import hashlib
from collections.abc import Sequence

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C08400", "#3396D6", "#9A8F00", "#1B1F23")
DARK = ("#1A82C9", "#E8702A", "#14B285", "#D98DB8", "#E69F00", "#6CC3F5", "#F0E442", "#F2F4F5")
NAMES = ("blue", "vermilion", "green", "purple", "orange", "sky", "yellow", "ink")
PAPER = {"light": "#FFFFFF", "dark": "#121212"}
THEMES = {"light": LIGHT, "dark": DARK}

# Chosen so that sgd, momentum, nesterov, rmsprop, adam and adamw have six colours, none of them yellow or ink.
_SALT = "16436 "


def method_index(name: str) -> int:
    """The palette index of a method: a hash of its name, so that no list has to be kept and it never changes."""
    return hashlib.blake2b(f"{_SALT}{name}".encode(), digest_size=8).digest()[0] % len(OKABE_ITO)


def method_indices(names: Sequence[str]) -> list[int]:
    """Palette indices of methods shown together: each its own, or the next free one when an earlier name has it.

    All differ as long as there are at most eight.
    """
    taken: list[int] = []
    for name in names:
        wanted = [(method_index(name) + k) % len(OKABE_ITO) for k in range(len(OKABE_ITO))]
        taken.append(next((index for index in wanted if index not in taken), wanted[0]))
    return taken


def method_colour(name: str, i: int | None = None, *, theme: str = "light") -> str:
    """The colour of a method as #RRGGBB: that of its name, or of palette index `i` where one was given to it."""
    return THEMES[theme][(method_index(name) if i is None else i) % len(OKABE_ITO)]

"""Two moons one above the other, which a straight line just tells apart: an easy feature beside a better one."""

import math
from typing import Any

import torch

from workbench.problems.data import Data, Dataset
from workbench.routine import Hyper, Key


class SeparatedMoons(Dataset):
    """Half circles of radius 1: ∩ of class 1 over ∪ of class 0, shifted right by 1, with `margin` of height between.

    Height alone tells the classes of any margin above 0 apart, and closely; the curve along which the moons would fit
    into each other keeps away from both. Below 0 they do fit into each other, at -1 both have the same heights. Noise
    moves samples sideways only, so that the margin is what it says. Inputs are taken as they are, not standardised.

    Source: the experiment of Pezeshki et al. 2021, arXiv:2011.09468, fig. 1; the geometry is written anew.
    """

    name = "separated-moons"
    title = "Two moons with a margin"
    source = "after Pezeshki et al. 2021, arXiv:2011.09468"
    ledger = "gradient-starvation"
    evidence = "tests/problems/test_moons.py::test_height_tells_the_classes_apart_by_the_margin[0.1]"
    margin: Any = Hyper(0.1, -1.0, 4.0, soft=(-1.0, 2.0), kind="init", doc="Height between the moons.")
    noise: Any = Hyper(0.05, 0.0, 1.0, soft=(0.0, 0.3), kind="init", doc="Standard deviation of what is sideways.")
    samples: Any = Hyper(
        500, 10, 100_000, "integer", (100, 2000), kind="init", unit="samples", doc="Held-out ones among them."
    )

    def load(self) -> Data:
        key, like, n = Key(0).stream(self.name), torch.zeros((), dtype=torch.float64), self.samples
        y = torch.arange(n) % 2
        angle = math.pi * key.stream("angle").uniform((n,), like=like)
        along = torch.where(y == 1, angle.cos(), 1 - angle.cos())
        height = (2 * y - 1) * (angle.sin() + self.margin / 2)
        x = torch.stack([along + self.noise * key.stream("noise").normal((n,), like=like), height], 1)
        cut = n - max(1, round(self.holdout * n))
        return Data(self.name, x[:cut], y[:cut], x[cut:], y[cut:], classes=("lower", "upper"), recipe=self.recipe())

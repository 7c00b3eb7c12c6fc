"""Couplings that make the source from the data: what is left of a sample once it is spoiled, and noise in its place."""

from typing import Any

import torch
from torch import Tensor

from workbench.flows.couplings import Coupling
from workbench.problems.densities import Density
from workbench.routine import Hyper, Key


class DataDependent(Coupling):
    """x0 = spoiled(x1) + noise ζ, ζ ~ N(0, I): the flow restores what was spoiled, and pairs are near to begin with.

    spoil = "mask": the second half of the coordinates (the lower half of a picture) is replaced by noise ζ, and what is
    known stays (in-painting). spoil = "downsample": a picture is averaged over 2 × 2 blocks, other points over
    neighbouring coordinates, and noise ζ is added everywhere (super-resolution). The source of the training becomes the
    law of x0, whatever source was given; start a sampling at x0 of your own to restore it.
    Source: Albergo et al. 2024, arXiv:2310.03725, sections 3 and 4; the velocity is learned by the plain square loss.
    """

    name = "data-dependent"
    title = "Spoiled data"
    source = "Albergo et al. 2024, arXiv:2310.03725"
    ledger = "stochastic-interpolants-with-data-dependent-couplings"
    evidence = "tests/flows/test_couplings.py::test_a_coupling_keeps_both_marginals[data-dependent]"
    spoil: Any = Hyper(
        "mask", scale="choice", choices=("mask", "downsample"), kind="init", doc="What is taken from the data."
    )
    noise: Any = Hyper(
        0.5, 0.0, 10.0, soft=(0.0, 2.0), kind="init", doc="Standard deviation of what is put in its place."
    )

    def base(self, source, target):
        return Spoiled(target, self)

    def draw(self, key, source, target, n, hyper, like):
        x1, labels = target.sample_labelled(key.stream("target"), n, like)
        return self.spoiled(x1, key.stream("noise"), target), x1, labels

    def spoiled(self, x1: Tensor, key: Key, target: Density) -> Tensor:
        """x0 of x1 (n, dim)."""
        noise = self.noise * key.normal(x1.shape, like=x1)
        if self.spoil == "downsample":
            return coarse(x1, target.image) + noise
        known = torch.arange(x1.shape[-1], device=x1.device) < x1.shape[-1] // 2
        return torch.where(known, x1, noise)


class Spoiled(Density):
    """The law of x0 under a data-dependent coupling: spoiled samples of a density."""

    name = "spoiled"

    def __init__(self, clean: Density, coupling: DataDependent) -> None:
        super().__init__()
        self.clean, self.coupling = clean, coupling
        self.dim, self.reach, self.classes, self.image = clean.dim, clean.reach, clean.classes, clean.image
        self.title = f"{clean.title}, spoiled"

    def sample(self, key, n, like):
        return self.coupling.spoiled(self.clean.sample(key.stream("clean"), n, like), key.stream("noise"), self.clean)


def coarse(x: Tensor, image: tuple[int, int] | None) -> Tensor:
    """Points (n, dim) with each 2 × 2 block of a picture, or each two neighbouring coordinates, made equal.

    Raises:
        ValueError: where they do not divide by two.
    """
    height, width = image or (1, x.shape[-1])
    rows, columns = (1 if image is None else 2), 2
    if height % rows or width % columns:
        raise ValueError(f"expected an even number of coordinates, or of rows and columns, got {(height, width)}")
    blocks = x.view(-1, height // rows, rows, width // columns, columns)
    return blocks.mean((2, 4), keepdim=True).expand_as(blocks).reshape(x.shape)

"""What a training objective combines: when to look (times), what counts (weights), how much (premetrics)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.routine import Declared, Key


class Times(Declared):
    """A distribution of training times within the interpolant's ends. Subclasses write `sample`."""

    family: ClassVar[str] = "time distributions"
    kind: ClassVar[str] = "distribution"

    def sample(self, key: Key, n: int, path: Interpolant, hyper: Mapping[str, Any], like: Tensor) -> Tensor:
        """n times, (n,), between path.ends."""
        first, last = path.ends
        return first + (last - first) * self.unit(key.uniform((n,), like=like), hyper)

    def unit(self, u: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """The quantile function on [0, 1], at uniform u."""
        raise NotImplementedError


class UniformTimes(Times):
    """t uniform between the ends.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9.
    """

    name = "uniform-times"
    title = "Uniform"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[uniform-times]"

    def unit(self, u, hyper):
        return u


class Weight(Declared):
    """A weight of each sample's loss by its time. Subclasses write `weight`."""

    family: ClassVar[str] = "loss weights"
    kind: ClassVar[str] = "weight"

    def weight(self, path: Interpolant, t: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """One number a time, shaped like t."""
        raise NotImplementedError


class NoWeight(Weight):
    """1 at every time.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9.
    """

    name = "no-weight"
    title = "None"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[no-weight]"

    def weight(self, path, t, hyper):
        return torch.ones_like(t)


class Premetric(Declared):
    """How large a residual is. Subclasses write `size`."""

    family: ClassVar[str] = "premetrics"
    kind: ClassVar[str] = "premetric"

    def size(self, residual: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """One number a sample, (..., samples) of residuals (..., samples, dim)."""
        raise NotImplementedError


class Squared(Premetric):
    """Σ r_i² / dim: the mean square, so that losses of different dimensions compare.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9, divided by the dimension.
    """

    name = "squared"
    title = "Squared"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    evidence = "tests/flows/test_choices.py::test_premetrics_are_those_of_their_source[squared]"

    def size(self, residual, hyper):
        return residual.square().mean(-1)

"""Couplings: which source sample is paired with which data sample in a training batch."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from workbench.problems.densities import Density
from workbench.routine import Declared, Key


class Coupling(Declared):
    """A joint law of source and data samples whose marginals are the two densities. Subclasses write `pair`."""

    family: ClassVar[str] = "couplings"
    kind: ClassVar[str] = "coupling"

    def draw(
        self, key: Key, source: Density, target: Density, n: int, hyper: Mapping[str, Any], like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """n pairs: (x0 (n, dim), x1 (n, dim), class of each x1 (n,) or None)."""
        x0 = source.sample(key.stream("source"), n, like)
        x1, labels = target.sample_labelled(key.stream("target"), n, like)
        order = self.pair(key.stream("pairs"), x0, x1, labels, hyper)
        return (x0 if order is None else x0[order]), x1, labels

    def pair(self, key: Key, x0: Tensor, x1: Tensor, labels: Tensor | None, hyper: Mapping[str, Any]) -> Tensor | None:
        """Which x0 goes with each x1, (n,) int64; None leaves them as they were drawn."""
        return None


class Independent(Coupling):
    """Every source sample with any data sample: pairs as they are drawn.

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003, before any reflow.
    """

    name = "independent"
    title = "Independent"
    source = "Liu, Gong & Liu 2023, arXiv:2209.03003"
    evidence = "tests/flows/test_couplings.py::test_a_coupling_keeps_both_marginals[independent]"

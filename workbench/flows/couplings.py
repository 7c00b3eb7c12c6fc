"""Couplings: which source sample is paired with which data sample in a training batch."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from workbench.problems.densities import Density
from workbench.routine import Declared, Hyper, Key


class Coupling(Declared):
    """A joint law of source and data samples whose marginals are the two densities. Subclasses write `pair`."""

    family: ClassVar[str] = "couplings"
    kind: ClassVar[str] = "coupling"

    def base(self, source: Density, target: Density) -> Density:
        """What x0 follows: the source given, unless the coupling makes x0 from the data."""
        return source

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

    def setup(self) -> str:
        """Python lines that an exported script needs before the recipe."""
        return ""


class Independent(Coupling):
    """Every source sample with any data sample: pairs as they are drawn.

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003, before any reflow.
    """

    name = "independent"
    title = "Independent"
    source = "Liu, Gong & Liu 2023, arXiv:2209.03003"
    evidence = "tests/flows/test_couplings.py::test_a_coupling_keeps_both_marginals[independent]"


# --------------------------------------------------------------------------------------------- within a minibatch


class Minibatch(Coupling):
    """Pairs chosen within groups of a batch, on the host in float64. Subclasses write `match`.

    Both marginals stay what they were, whatever the size of the group; groups of 1 are the independent coupling.
    """

    group: Any = Hyper(
        256, 1, 1024, "integer", (1, 512), kind="shape", unit="pairs", doc="Pairs matched at once, within a batch."
    )

    def draw(self, key, source, target, n, hyper, like):
        exact = torch.empty(0, dtype=torch.float64)
        x0, x1, labels = super().draw(key, source, target, n, hyper, exact)
        return x0.to(like), x1.to(like), None if labels is None else labels.to(like.device)

    def pair(self, key, x0, x1, labels, hyper):
        parts = []
        for first in range(0, len(x0), hyper["group"]):
            rows = slice(first, first + hyper["group"])
            own = None if labels is None else labels[rows].numpy()
            parts.append(first + self.match(key.stream(f"from {first}"), squared_distances(x0[rows], x1[rows]), own))
        return torch.from_numpy(np.concatenate(parts))

    def match(self, key: Key, cost: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """The row (x0) that goes with each column (x1) of a matrix of costs (n, n)."""
        raise NotImplementedError


def squared_distances(x0: Tensor, x1: Tensor) -> np.ndarray:
    """|x0_i - x1_j|², (n, m), without the cancellation of expanding the square."""
    return torch.cdist(x0, x1, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()


def assignment(cost: np.ndarray) -> np.ndarray:
    """The row of each column in the cheapest one-to-one assignment of a square matrix."""
    import ot  # takes seconds to import

    each = np.full(len(cost), 1 / len(cost))
    return ot.emd(each, each, cost).argmax(0)  # a vertex of the polytope of plans: one entry a column


class MinibatchOT(Minibatch):
    """The assignment of a batch's source to its data samples with the least Σ |x0 - x1|².

    A group of 256 costs about 5 ms, one of 1,024 about 200 ms (one core), beside some 2 ms for the rest of a step.
    Source: Pooladian et al. 2023, arXiv:2304.14772 ("BatchOT"); Tong et al. 2024, arXiv:2302.00482; solved by POT.
    """

    name = "minibatch-ot"
    title = "Minibatch optimal transport"
    source = "Pooladian et al. 2023, arXiv:2304.14772"
    ledger = "multisample-flow-matching"
    evidence = "tests/flows/test_couplings.py::test_a_coupling_keeps_both_marginals[minibatch-ot]"

    def match(self, key, cost, labels):
        return assignment(cost)


class EntropicOT(Minibatch):
    """Pairs drawn from the plan P that minimises Σ P c + reg Σ P log P over a batch: for each x1 one x0 of its column.

    P has the marginals of the batch, so a source sample may be drawn twice and another not at all, all alike on
    average. From the optimal assignment (reg small) to independent pairs (reg large). A group of 256 costs about 15 ms
    at the default.
    Source: Pooladian et al. 2023, arXiv:2304.14772 ("BatchEOT"); Cuturi 2013, arXiv:1306.0895; solved by POT.
    """

    name = "entropic-ot"
    title = "Entropic optimal transport"
    source = "Pooladian et al. 2023, arXiv:2304.14772"
    ledger = "multisample-flow-matching"
    evidence = "tests/flows/test_couplings.py::test_a_coupling_keeps_both_marginals[entropic-ot]"
    reg: Any = Hyper(0.05, 0.01, 100.0, "log", (0.02, 2.0), kind="init", doc="Entropy's price, in mean costs.")

    def match(self, key, cost, labels):
        return choose(self.plan(cost), key.uniform((len(cost),), like=torch.empty(0, dtype=torch.float64)).numpy())

    def plan(self, cost: np.ndarray) -> np.ndarray:
        """The entropic plan of a square matrix of costs, uniform marginals."""
        import ot

        each = np.full(len(cost), 1 / len(cost))
        least = cost - cost.min(1, keepdims=True)  # the plan of shifted rows and columns is the same, and no
        least -= least.min(0, keepdims=True)  # row or column of exp(-cost / reg) vanishes
        return ot.sinkhorn(each, each, least, self.reg * max(cost.mean(), 1e-12), numItermax=500, warn=False)


def choose(plan: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A row for each column, as likely as its entry in the column, from uniform u, one a column."""
    cdf = plan.cumsum(0)
    return (cdf <= u * cdf[-1]).sum(0)


class StableMatching(Minibatch):
    """Pairs such that no x0 and x1 are nearer to each other than each is to its partner.

    The nearest of all pair off, then the nearest of those left, and so on. Cheaper than the assignment, and dearer in
    total transport: those left over travel far.
    Source: Pooladian et al. 2023, arXiv:2304.14772 ("Stable"); Gale & Shapley 1962, Am. Math. Mon. 69.
    """

    name = "stable-matching"
    title = "Stable matching"
    source = "Pooladian et al. 2023, arXiv:2304.14772"
    ledger = "multisample-flow-matching"
    evidence = "tests/flows/test_couplings.py::test_a_coupling_keeps_both_marginals[stable-matching]"

    def match(self, key, cost, labels):
        row_of = np.full(len(cost), -1)
        cost = cost.copy()
        while (row_of < 0).any():
            nearest = cost.argmin(0)  # of each column
            columns = np.flatnonzero((cost.argmin(1)[nearest] == np.arange(len(cost))) & (row_of < 0))
            row_of[columns] = nearest[columns]
            cost[nearest[columns]], cost[:, columns] = np.inf, np.inf
        return row_of


class ClassOT(Minibatch):
    """Minibatch optimal transport within each class: a source sample stays with the class it was drawn beside.

    Plain OT gives each class its own corner of the source, which a sampler that asks for a class does not know of. Here
    the source of every class is the whole source. Without classes it is plain OT.
    Source: Cheng & Schwing 2025, arXiv:2503.10636 (C²OT for discrete conditions: other classes cost infinitely much).
    """

    name = "class-ot"
    title = "Optimal transport by class"
    source = "Cheng & Schwing 2025, arXiv:2503.10636"
    evidence = "tests/flows/test_couplings.py::test_within_a_class_the_source_stays_whole"

    def match(self, key, cost, labels):
        if labels is None:
            return assignment(cost)
        row_of = np.empty(len(cost), dtype=np.int64)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            row_of[own] = own[assignment(cost[np.ix_(own, own)])]
        return row_of

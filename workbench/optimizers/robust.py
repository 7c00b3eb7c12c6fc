"""Robust averages of micro-batch gradients: a direction that few samples ask for does not move the point."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.optimizers.base import Optimizer
from workbench.optimizers.classical import decay, learning_rate
from workbench.routine import Hyper

SOURCE = "Chatterjee & Zielinski 2022, arXiv:2203.10036; Zielinski, Krishnan & Chatterjee 2020, arXiv:2003.07422"
LEDGER = "on-the-generalization-mystery-in"
TEST = "tests/optimizers/test_robust.py::test_labels_that_are_wrong_are_remembered_less_and_others_learned_better"


def ordered(values: Sequence[Tensor]) -> list[Tensor]:
    """The tensors sorted number by number, smallest first; where one of them is not a number, all are not.

    Neighbours are compared and exchanged in as many rounds as there are tensors (odd-even transposition sort): minima
    and maxima, which compiled code has too.
    """
    row = list(values)
    for turn in range(len(row)):
        for i in range(turn % 2, len(row) - 1, 2):
            row[i], row[i + 1] = torch.minimum(row[i], row[i + 1]), torch.maximum(row[i], row[i + 1])
    return row


def winsorised_mean(values: Sequence[Tensor], trim: int) -> Tensor:
    """The mean, number by number, after the `trim` smallest and the `trim` largest are set to the nearest that is left.

    trim = 0 is the mean; the largest one, (count - 1) // 2, the median.

    Raises:
        ValueError: when nothing is left.
    """
    if not 0 <= 2 * trim < len(values):
        most = (len(values) - 1) // 2
        raise ValueError(f"expected trim to be a whole number from 0 to {most} for {len(values)} values, got {trim}")
    row = ordered(values)
    kept = row[trim : len(row) - trim]
    total = trim * (kept[0] + kept[-1])
    for part in kept:
        total = total + part
    return total / len(row)


class WinsorisedGradients(Optimizer):
    """x ← x - lr (w + weight_decay x);  w is the winsorised mean of `count` micro-batch gradients, number by number.

    The `trim` smallest and the `trim` largest of the `count` values of every coordinate are set to the nearest of the
    others, then averaged. A step reads `count` minibatches; trim = 0 is gradient descent on all of them. The paper
    winsorises the gradients of single samples at a percentile; here it is those of micro-batches, at a rank.

    Source: Chatterjee & Zielinski 2022, arXiv:2203.10036 (winsorised gradient descent).
    """

    name = "winsorised-gradients"
    title = "Winsorised mean of gradients"
    source = SOURCE
    ledger = LEDGER
    evidence = TEST + "[winsorised-gradients]"
    lr = learning_rate(1e-3)
    weight_decay = decay()
    count: Any = Hyper(8, 1, 64, "integer", (3, 16), kind="init", unit="minibatches", doc="Gradients read in a step.")
    trim: Any = Hyper(2, 0, 31, "integer", (0, 4), kind="init", unit="gradients", doc="Winsorised at either end.")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if 2 * self.trim >= self.count:
            raise ValueError(f"expected trim to be less than half of count, {self.count}, got {self.trim}; lower it")
        self.draws = self.count

    def step(self, space, oracle, x, state, hyper, noise):
        w = winsorised_mean([oracle(x, draw=j)[1] for j in range(self.draws)], self.trim)
        return x - hyper["lr"] * (w + hyper["weight_decay"] * x), state, {}


class MedianOfGradients(WinsorisedGradients):
    """x ← x - lr (m + weight_decay x);  m is the median of `count` micro-batch gradients, number by number.

    With an even count, the mean of the two in the middle. A step reads `count` minibatches of `batch_size` samples.

    Source: Zielinski, Krishnan & Chatterjee 2020, arXiv:2003.07422 (M3, the median of three).
    """

    name = "median-of-gradients"
    title = "Median of gradients"
    evidence = TEST + "[median-of-gradients]"
    count: Any = Hyper(3, 1, 64, "integer", (3, 9), kind="init", unit="minibatches", doc="Gradients read in a step.")
    trim: Any = None

    def __init__(self, **settings: Any) -> None:
        self.trim = 0
        super().__init__(**settings)
        self.trim = (self.count - 1) // 2

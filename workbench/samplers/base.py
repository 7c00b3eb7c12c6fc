"""What a solver is: a rule that takes samples through a field from one time to the next, with hyperparameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.flows.fields import Field, Prediction
from workbench.routine import Declared, Key

Evaluate = Callable[..., Prediction]
"""evaluate(x, t, rows=None) -> Prediction: one evaluation of the field, counted."""


class Step(NamedTuple):
    """What a solver's step gives.

    x: the new points, shaped as they came. time: where they are now, broadcastable to x without its last axis. state:
    the solver's own. info: measured for free, one value a sample (runs, samples) or a run (runs,).
    evaluations: of the field a sample, when it is not the number of calls (solvers that evaluate some samples only).
    """

    x: Tensor
    time: Tensor
    state: Any
    info: dict[str, Tensor]
    evaluations: Tensor | None = None


class Solver(Declared):
    """A rule that moves samples along a field. Subclasses declare hyperparameters and fill in `step`.

    Points are (runs, samples, dim). Times broadcast to (runs, samples): (runs, 1) in lockstep. Hyperparameters arrive
    shaped to multiply points.

    Attributes:
        order: global order of convergence on a smooth field, 0 when it has none.
        random: whether it draws noise.
        converts: whether it needs a field with an interpolant (and a unit normal source).
        adaptive: whether it chooses its own steps: then `end` is the last time, times differ by sample, and samples
            whose time is `end` have stopped: a step leaves them as they are, at no evaluations.
        both_ways: whether it can go from data to source as well.
    """

    family: ClassVar[str] = "solvers"
    kind: ClassVar[str] = "ode"
    order: ClassVar[float] = 0
    random: ClassVar[bool] = False
    converts: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    both_ways: ClassVar[bool] = True

    def init(self, field: Field, x: Tensor, t: Tensor, end: Tensor) -> Any:
        """The solver's own first state (a NamedTuple or tuple of tensors) at points x and time t, bound for `end`."""
        return ()

    def draw(self, key: Key, path: Any, x: Tensor, t: Tensor, end: Tensor) -> Any:
        """Everything random about the step from t to end; () when there is nothing.

        Args:
            key: of this step, for what only this solver needs.
            path: the Brownian path that all solvers of a seed share, a function of time; see `brownian.Brownian`.
        """
        return ()

    def step(
        self,
        field: Evaluate,
        path: Any,
        x: Tensor,
        t: Tensor,
        end: Tensor,
        state: Any,
        hyper: Mapping[str, Any],
        noise: Any,
    ) -> Step:
        """From time t to `end`. `path` is the field's interpolant. Never changes its arguments."""
        raise NotImplementedError


def column(t: Tensor) -> Tensor:
    """A time, broadcastable to (runs, samples), shaped to multiply points."""
    return t.unsqueeze(-1)


def blend(weights: Sequence[Tensor | float], vectors: Sequence[Tensor]) -> Tensor:
    """Σ weights · vectors, leaving out those whose weight is the number 0."""
    total: Tensor | None = None
    for w, v in zip(weights, vectors, strict=True):
        if not isinstance(w, Tensor) and w == 0:
            continue
        if total is None:
            total = w * v
        else:
            total = total + w * v if isinstance(w, Tensor) else torch.add(total, v, alpha=w)
    return torch.zeros_like(vectors[0]) if total is None else total

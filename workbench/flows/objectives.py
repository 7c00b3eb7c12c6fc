"""Training objectives of flows: what a network is asked to predict, on which points, and how wrong it was."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.routine import Declared

Net = Callable[..., Tensor]
"""net(x, t) -> prediction (runs, batch, dim) at points (batch, dim) or (runs, batch, dim) and times (batch,)."""


class Batch(NamedTuple):
    """What is random about a training step: pairs x0, x1 (batch, dim), times t (batch,), a latent normal z (batch, dim)
    where the interpolant has one, classes (batch,) where the data have them, further draws of the objective.

    Where each run has a seed of its own, all have a leading run axis; times have one too where a hyperparameter of
    their distribution differs by run.
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    z: Tensor | None
    labels: Tensor | None
    more: Any = ()


class Setting(NamedTuple):
    """What a flow's training has chosen: interpolant, weight(t), size(residual), values of hyperparameters (0-d or
    (runs,)), and density(t), that of the times (uniform when not given).
    """

    path: Interpolant
    weight: Callable[[Tensor], Tensor]
    size: Callable[[Tensor], Tensor]
    hyper: Mapping[str, Any]
    density: Callable[[Tensor], Tensor] = torch.ones_like

    def mean(self, t: Tensor, residual: Tensor) -> Tensor:
        """weight(t) size(residual), mean over the batch: residuals (runs, batch, dim) to (runs,)."""
        return (self.weight(t) * self.size(residual)).mean(-1)


class Question(NamedTuple):
    """Points x and times t for one evaluation of the net, and judge(answer (runs, batch, …)) -> loss per run."""

    x: Tensor
    t: Tensor
    judge: Callable[[Tensor], Tensor]


class FlowObjective(Declared):
    """What a flow's network is trained on. Subclasses say what it predicts, and may write their own loss.

    Attributes:
        predicts: one of `interpolants.KINDS`.
        also: further ones that the net gives beside it, (batch, dim) each.
    """

    family: ClassVar[str] = "flow objectives"
    kind: ClassVar[str] = "objective"
    predicts: str = "velocity"
    also: tuple[str, ...] = ()

    def check(self, path: Interpolant) -> None:
        """Whether it is defined on this interpolant.

        Raises:
            ValueError: when it is not.
        """

    def draw(self, key: Any, batch: Batch) -> Any:
        """Further draws of a step, put into the batch as `more`."""
        return ()

    def init(self, x: Tensor) -> Any:
        """The objective's own first state, for parameters x (runs, parameters): an average of them, say."""
        return ()

    def question(self, batch: Batch, setting: Setting) -> Question:
        """What one evaluation of the net is asked, and how its answer is judged."""
        x = setting.path.at(batch.x0, batch.x1, batch.t, batch.z)
        aim = setting.path.target(self.predicts, batch.x0, batch.x1, batch.t, batch.z)
        return Question(x, batch.t, lambda answer: setting.mean(batch.t, answer - aim))

    def loss(self, net: Net, old: Net | None, batch: Batch, setting: Setting) -> Tensor:
        """Loss per run, mean over the batch. `old` is the net at the objective's averaged parameters, if it has any.

        An objective that needs more than one evaluation writes its own.
        """
        asked = self.question(batch, setting)
        return asked.judge(net(asked.x, asked.t))

    def update(self, state: Any, x: Tensor, hyper: Mapping[str, Any]) -> Any:
        """The objective's state after the optimizer's step, which led to parameters x."""
        return state


class FlowMatching(FlowObjective):
    """E |v(x_t, t) - dx_t/dt|² over pairs, x_t = alpha x1 + sigma x0: the velocity whose flow has the path's marginals.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9 (theorem 2: its gradient is that of the marginal loss).
    """

    name = "flow-matching"
    title = "Flow matching"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    ledger = "flow-matching-for-generative-modeling"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_is_the_exact_field[flow-matching]"

"""Training objectives of flows: what a network is asked to predict, on which points, and how wrong it was."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.problems.densities import Density
from workbench.problems.networks import Model
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
    (runs,)), density(t) of the times (uniform when not given), and slope(residual) -> (size, its derivative).
    """

    path: Interpolant
    weight: Callable[[Tensor], Tensor]
    size: Callable[[Tensor], Tensor]
    hyper: Mapping[str, Any]
    density: Callable[[Tensor], Tensor] = torch.ones_like
    slope: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


class Question(NamedTuple):
    """One evaluation of the net, at points x and times t, and how its predictions are judged: the loss is the mean over
    the batch of factor · Σ size(scale · prediction - aim), a sum over the predictions, of which most nets give one.

    factor has the shape of t, or a leading run axis; aims and scales broadcast to (runs, batch, dim).
    """

    x: Tensor
    t: Tensor
    factor: Tensor
    aims: tuple[Tensor, ...]
    scales: tuple[Tensor | None, ...] = (None,)

    def residuals(self, answer: Tensor) -> list[Tensor]:
        """What is wrong with each prediction of an answer (runs, batch, predictions · dim)."""
        heads = answer.chunk(len(self.aims), -1) if len(self.aims) > 1 else [answer]
        each = zip(heads, self.aims, self.scales, strict=True)
        return [(head if scale is None else scale * head) - aim for head, aim, scale in each]

    def loss(self, answer: Tensor, setting: Setting) -> Tensor:
        """Per run."""
        sizes = [setting.size(residual) for residual in self.residuals(answer)]
        return (self.factor * sum(sizes[1:], sizes[0])).mean(-1)

    def loss_and_slope(self, answer: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """The loss per run and its derivative in the answer, without a tape."""
        sizes, slopes = zip(*map(setting.slope, self.residuals(answer)), strict=True)  # type: ignore[arg-type]
        share = (self.factor / self.t.shape[-1]).unsqueeze(-1)
        parts = [share * (d if scale is None else scale * d) for d, scale in zip(slopes, self.scales, strict=True)]
        return (self.factor * sum(sizes[1:], sizes[0])).mean(-1), torch.cat(parts, -1) if parts[1:] else parts[0]


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

    @property
    def asks_once(self) -> bool:
        """Whether `question` is all there is to its loss."""
        return type(self).loss is FlowObjective.loss

    def check(self, path: Interpolant) -> None:
        """Whether it is defined on this interpolant.

        Raises:
            ValueError: when it is not.
        """

    def network(self, model: Model, dim: int, classes: int) -> Any:
        """What it trains, a `training.FlowNet`: one model, whose predictions stand side by side."""
        from workbench.flows.training import FlowNet

        return FlowNet(model, dim, classes, 1 + len(self.also))

    def field(self, net: Any, params: Tensor, path: Interpolant, source: Density, target: Density) -> Any:
        """The `training.NetField` of what has been learned, of parameters (1, parameters)."""
        from workbench.flows.training import NetField

        if not self.also:
            return NetField(net, params, self.predicts, path, source, target)
        made = NetField(net, params, (self.predicts, *self.also), path, source, target)
        made.objective = self
        return made

    def draw(self, key: Any, batch: Batch) -> Any:
        """Further draws of a step, put into the batch as `more`."""
        return ()

    def init(self, x: Tensor) -> Any:
        """The objective's own first state, for parameters x (runs, parameters): an average of them, say."""
        return ()

    def question(self, batch: Batch, setting: Setting) -> Question:
        """What one evaluation of the net is asked, and what its answer is held against."""
        pairs = batch.x0, batch.x1, batch.t, batch.z
        x, aim = setting.path.at(*pairs), setting.path.target(self.predicts, *pairs)
        return Question(x, batch.t, setting.weight(batch.t), (aim,))

    def loss(self, net: Net, old: Net | None, batch: Batch, setting: Setting) -> Tensor:
        """Loss per run, mean over the batch. `old` is the net at the objective's averaged parameters, if it has any.

        An objective that needs more than one evaluation writes its own.
        """
        asked = self.question(batch, setting)
        return asked.loss(net(asked.x, asked.t), setting)

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

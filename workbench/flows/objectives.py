"""Training objectives of flows: what a network is asked to predict, on which points, and how wrong it was."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

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
    (runs,)), and density(t), that of the times.
    """

    path: Interpolant
    weight: Callable[[Tensor], Tensor]
    size: Callable[[Tensor], Tensor]
    hyper: Mapping[str, Any]
    density: Callable[[Tensor], Tensor] | None = None


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

    def loss(self, net: Net, old: Net | None, batch: Batch, setting: Setting) -> Tensor:
        """Loss per run, mean over the batch. `old` is the net at the objective's averaged parameters, if it has any."""
        x = setting.path.at(batch.x0, batch.x1, batch.t, batch.z)
        aim = setting.path.target(self.predicts, batch.x0, batch.x1, batch.t, batch.z)
        return (setting.weight(batch.t) * setting.size(net(x, batch.t) - aim)).mean(-1)

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

"""What an optimizer is: a rule over points of a space, with declared hyperparameters and a source."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from workbench.routine import Declared
from workbench.space import Space

Oracle = Callable[..., tuple[Tensor, Tensor]]
"""oracle(x, draw=0) -> (loss per run, gradient shaped like x); the same draw is the same minibatch."""


class Optimizer(Declared):
    """A rule that moves a point downhill. Subclasses declare hyperparameters and fill in `init` and `step`."""

    family: ClassVar[str] = "optimizers"
    kind: ClassVar[str] = "optimizer"
    draws: int = 1
    """Minibatches a step draws: oracle(x, draw=j) takes the j-th."""

    def init(self, space: Space, x: Tensor) -> Any:
        """The method's own first state (a NamedTuple or tuple of tensors), for points x."""
        return ()

    def step(
        self, space: Space, oracle: Oracle, x: Tensor, state: Any, hyper: Mapping[str, Tensor], noise: Any
    ) -> tuple[Tensor, Any, dict]:
        """The next point, the next state, and what was measured for free. Never changes its arguments.

        `hyper` holds tensors already shaped to multiply points: a rule reads like its paper.
        """
        raise NotImplementedError

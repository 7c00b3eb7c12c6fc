"""Splitting integrators, as in molecular dynamics: positions and momenta move in turn, the others standing still.

The first half of the coordinates are positions, the second half momenta. In phase-space diffusion (`flows.phase`) the
speed of positions is known without the score; a solver that is told the process does not ask the field for it.
"""

from typing import Any

import torch
from torch import Tensor

from workbench.flows.phase import CriticallyDamped
from workbench.samplers.base import Evaluate, Solver, Step, column

SOURCE = "Pandey, Rudolph & Mandt 2024, arXiv:2310.07894"


class Splitting(Solver):
    """Moves positions and momenta in turn. Subclasses write the order of moves in `step`.

    Args:
        process: of the field, when it is one of phase space. None asks the field for the speed of positions too, at two
            evaluations more a step.

    Raises:
        ValueError: on points with an odd number of coordinates.
    """

    def __init__(self, process: CriticallyDamped | None = None) -> None:
        super().__init__()
        self.process = process

    def init(self, field, x, t, end):
        if x.shape[-1] % 2:
            raise ValueError(
                f"expected points of an even number of coordinates for {self.title}, positions and as many momenta, "
                f"got {x.shape[-1]}"
            )
        return ()

    def moved(self, field: Evaluate, position: Tensor, momentum: Tensor, t: Tensor, end: Tensor) -> Tensor:
        """Positions after the step while momenta stand still: exactly, or by the midpoint rule."""
        h, middle = column(end - t), t + (end - t) / 2
        if self.process is not None:
            return position + h * self.process.position_speed(momentum)
        halfway = position + h / 2 * parted(field, position, momentum, t)[0]
        return position + h * parted(field, halfway, momentum, middle)[0]

    def recipe(self) -> str:
        return self.made_with(**({} if self.process is None else {"process": "process"}))


def parted(field: Evaluate, position: Tensor, momentum: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Speed of positions, and force: one evaluation."""
    speed, force = field(torch.cat([position, momentum], -1), t).velocity.chunk(2, -1)
    return speed, force


class NaiveSplitting(Splitting):
    """m ← m + h f(x, m, t); then x ← x + h v(m). f is dm/dt, v is dx/dt.

    The symplectic Euler method where f does not depend on m. One evaluation of the score a step, and first order.
    Source: Pandey, Rudolph & Mandt 2024, arXiv:2310.07894, naive splitting; derived here, not compared with their code.
    """

    name = "splitting-euler"
    title = "Splitting, momenta then positions"
    source = SOURCE
    ledger = "efficient-integrators-for-diffusion-generative"
    evidence = "tests/samplers/test_splitting.py::test_steps_are_their_rules_written_out[splitting-euler]"
    order = 1

    def step(self, field, path, x, t, end, state, hyper, noise):
        position, momentum = x.chunk(2, -1)
        momentum = momentum + column(end - t) * parted(field, position, momentum, t)[1]
        return Step(torch.cat([self.moved(field, position, momentum, t, end), momentum], -1), end, (), {})


class SymmetricSplitting(Splitting):
    """m ← m + h f / 2; x ← x + h v(m); f ← f(x, m + h f / 2, t + h); m ← m + h f / 2: velocity Verlet.

    f, the force, is kept from step to step: one evaluation of the score a step and one at the beginning. In diffusion
    it depends on the momentum, which the first half has brought halfway only; the last f is asked for where the
    momentum will be, to first order. With m there in place of m + h f / 2 the method would be of first order.
    On mixtures in the plane 10 to 50 evaluations, equal steps, end 4 to 57 times nearer to the flow's positions in W2
    than Euler's.
    Source: Pandey, Rudolph & Mandt 2024, arXiv:2310.07894, symmetric splitting with scores used twice; this form is
    derived here, not compared with their code.
    """

    name = "splitting-verlet"
    title = "Splitting, symmetric (velocity Verlet)"
    source = SOURCE
    ledger = "efficient-integrators-for-diffusion-generative"
    evidence = "tests/samplers/test_splitting.py::test_the_symmetric_order_is_two_and_the_naive_one[False]"
    order = 2

    def init(self, field, x, t, end) -> Any:
        super().init(field, x, t, end)
        position, momentum = x.chunk(2, -1)
        return (parted(field, position, momentum, t)[1],)

    def step(self, field, path, x, t, end, state, hyper, noise):
        (force,), h = state, column(end - t)
        position, momentum = x.chunk(2, -1)
        momentum = momentum + h / 2 * force
        position = self.moved(field, position, momentum, t, end)
        force = parted(field, position, momentum + h / 2 * force, end)[1]
        return Step(torch.cat([position, momentum + h / 2 * force], -1), end, (force,), {})

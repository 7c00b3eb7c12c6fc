"""Multistep solvers: one evaluation a step, and the slopes of the steps before it."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.samplers.base import Solver, Step, blend, column
from workbench.samplers.explicit import RK3, RK4, Heun, runge_kutta
from workbench.samplers.tableaus import Tableau


class Past(NamedTuple):
    """Slopes of the steps before this one and the times they are from, the latest first; as many as there are so far,
    and are needed.
    """

    slopes: tuple[Tensor, ...] = ()
    times: tuple[Tensor, ...] = ()


def adams_weights(times: tuple[Tensor, ...], end: Tensor) -> list[Tensor]:
    """Weights w_j with ∫ p dt = (end - t_0) Σ w_j p(t_j) from t_0 to `end`, p of degree below their number.

    They solve Σ_j w_j r_j^m = 1 / (m + 1) for m = 0, 1, …, where r_j = (t_j - t_0) / (end - t_0). In float64.

    Args:
        times: t_0, the latest, then those before it, all of one shape.
        end: of that shape.
    """
    nodes = torch.stack(times, -1).double()
    r = (nodes - nodes[..., :1]) / column(end - times[0])
    m = torch.arange(len(times), dtype=r.dtype, device=r.device)
    powers, wanted = r.unsqueeze(-2) ** m[:, None], (1 / (m + 1)).expand(r.shape)
    return list(torch.linalg.solve_ex(powers, wanted).result.to(end.dtype).unbind(-1))


class AdamsBashforth(Solver):
    """x ← x + ∫ p dt, p the polynomial through the last slopes at the times they are from, steps of any length.

    Its first steps are Runge–Kutta steps of its own order, with their number of evaluations.
    """

    start: ClassVar[Tableau]

    def init(self, field, x, t, end):
        return Past()

    def step(self, field, path, x, t, end, state, hyper, noise):
        if len(state.slopes) < self.order - 1:
            new, stages = runge_kutta(lambda x, t: field(x, t).velocity, self.start, x, t, end)
            slopes, times = (stages[0], *state.slopes), (t, *state.times)
        else:
            slopes, times = (field(x, t).velocity, *state.slopes), (t, *state.times)
            weights = [column(w) for w in adams_weights(times, end)]
            new = torch.addcmul(x, column(end - t), blend(weights, slopes))
        kept = int(self.order) - 1
        return Step(new, end, Past(slopes[:kept], times[:kept]), {})


class AdamsBashforth2(AdamsBashforth):
    """x ← x + h (3 k_n - k_{n-1}) / 2 when steps are equal; starts with a step of Heun's method.

    On other grids the weights are 1 + ω/2 and -ω/2, with ω the ratio of this step to the one before.
    Source: Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, Solving ODEs I, III.1 and III.5.
    """

    name = "adams-bashforth-2"
    title = "Adams–Bashforth 2"
    source = "Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, Solving ODEs I, III.1 and III.5"
    evidence = "tests/samplers/test_ode.py::test_coefficients_are_those_of_the_source[adams-bashforth-2]"
    order = 2
    start = Heun.tableau


class AdamsBashforth3(AdamsBashforth):
    """x ← x + h (23 k_n - 16 k_{n-1} + 5 k_{n-2}) / 12 when steps are equal; starts with two RK3 steps.

    Source: Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, Solving ODEs I, III.1 and III.5.
    """

    name = "adams-bashforth-3"
    title = "Adams–Bashforth 3"
    source = "Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, Solving ODEs I, III.1 and III.5"
    evidence = "tests/samplers/test_ode.py::test_coefficients_are_those_of_the_source[adams-bashforth-3]"
    order = 3
    start = RK3.tableau


class AdamsBashforth4(AdamsBashforth):
    """x ← x + h (55 k_n - 59 k_{n-1} + 37 k_{n-2} - 9 k_{n-3}) / 24 when steps are equal; starts with three RK4 steps.

    Source: Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, Solving ODEs I, III.1 and III.5.
    """

    name = "adams-bashforth-4"
    title = "Adams–Bashforth 4"
    source = "Bashforth & Adams 1883; Hairer, Nørsett & Wanner 1993, Solving ODEs I, III.1 and III.5"
    evidence = "tests/samplers/test_ode.py::test_coefficients_are_those_of_the_source[adams-bashforth-4]"
    order = 4
    start = RK4.tableau

"""Runge–Kutta solvers with a fixed tableau: coefficients are data, pinned to their sources, and check themselves."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from workbench.samplers.base import Solver, Step, blend, column
from workbench.samplers.tableaus import Tableau

__all__ = ["Euler", "Explicit", "Heun", "Midpoint", "RK3", "RK4", "Ralston", "Tableau", "runge_kutta"]

Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(x, t), of the shape of x."""


def runge_kutta(
    velocity: Velocity, tableau: Tableau, x: Tensor, t: Tensor, end: Tensor, *, first: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """One step from t to end: the new points, and the slope of every stage.

    Args:
        velocity: evaluated once a stage.
        first: the slope at (x, t), when it is known: one evaluation less.
    """
    span = end - t
    h, slopes = column(span), [velocity(x, t) if first is None else first]
    for row, c in zip(tableau.a, tableau.c[1:], strict=True):
        at = end if c == 1 else t + c * span
        slopes.append(velocity(torch.addcmul(x, h, blend(row, slopes)), at))
    return torch.addcmul(x, h, blend(tableau.b, slopes)), slopes


class Explicit(Solver):
    """x ← x + h Σ b_i k_i with a fixed tableau; as many evaluations a step as it has stages."""

    tableau: ClassVar[Tableau]

    def step(self, field, path, x, t, end, state, hyper, noise):
        new, _ = runge_kutta(lambda x, t: field(x, t).velocity, self.tableau, x, t, end)
        return Step(new, end, (), {})


class Euler(Explicit):
    """x ← x + h v(x, t).

    Source: Euler 1768, Institutiones calculi integralis, § 650.
    """

    name = "euler"
    title = "Euler"
    source = "Euler 1768, Institutiones calculi integralis, § 650"
    evidence = "tests/samplers/test_ode.py::test_order_of_convergence[euler]"
    order = 1
    tableau = Tableau((), (1.0,), (0.0,), 1)


class Midpoint(Explicit):
    """k1 = v(x, t); x ← x + h v(x + h k1 / 2, t + h / 2).

    Source: Runge 1895, Math. Ann. 46; Hairer, Nørsett & Wanner 1993, Solving ODEs I, II.1.
    """

    name = "midpoint"
    title = "Midpoint"
    source = "Runge 1895, Math. Ann. 46, pp. 167-178"
    evidence = "tests/samplers/test_ode.py::test_order_of_convergence[midpoint]"
    order = 2
    tableau = Tableau(((1 / 2,),), (0.0, 1.0), (0.0, 1 / 2), 2)


class Heun(Explicit):
    """k1 = v(x, t), k2 = v(x + h k1, t + h); x ← x + h (k1 + k2) / 2.

    Source: Heun 1900, Z. Math. Phys. 45; Hairer, Nørsett & Wanner 1993, Solving ODEs I, II.1.
    """

    name = "heun"
    title = "Heun"
    source = "Heun 1900, Z. Math. Phys. 45, pp. 23-38"
    evidence = "tests/samplers/test_ode.py::test_order_of_convergence[heun]"
    order = 2
    tableau = Tableau(((1.0,),), (0.5, 0.5), (0.0, 1.0), 2)


class Ralston(Explicit):
    """k1 = v(x, t), k2 = v(x + ⅔ h k1, t + ⅔ h); x ← x + h (k1 + 3 k2) / 4.

    Of all methods with two stages and order 2 the one with the least bound on its local error: it alone satisfies
    Σ b_i c_i² = 1/3, one of the two conditions for order 3; no such method satisfies the other.
    Source: Ralston 1962, Runge-Kutta methods with minimum error bounds, Math. Comp. 16, pp. 431-437.
    """

    name = "ralston"
    title = "Ralston"
    source = "Ralston 1962, Math. Comp. 16, pp. 431-437"
    evidence = "tests/samplers/test_ode.py::test_coefficients_are_those_of_the_source[ralston]"
    order = 2
    tableau = Tableau(((2 / 3,),), (1 / 4, 3 / 4), (0.0, 2 / 3), 2)


class RK3(Explicit):
    """k1 = v(x, t), k2 = v(x + h k1 / 2, t + h / 2), k3 = v(x + h (2 k2 - k1), t + h); x ← x + h (k1 + 4 k2 + k3) / 6.

    Source: Kutta 1901, Z. Math. Phys. 46, pp. 435-453.
    """

    name = "rk3"
    title = "Kutta's third order"
    source = "Kutta 1901, Z. Math. Phys. 46, pp. 435-453"
    evidence = "tests/samplers/test_ode.py::test_coefficients_are_those_of_the_source[rk3]"
    order = 3
    tableau = Tableau(((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), (0.0, 1 / 2, 1.0), 3)


class RK4(Explicit):
    """The classical method: slopes at the start, twice in the middle and at the end, weighted 1, 2, 2, 1.

    k1 = v(x, t), k2 = v(x + h k1 / 2, t + h / 2), k3 = v(x + h k2 / 2, t + h / 2), k4 = v(x + h k3, t + h);
    x ← x + h (k1 + 2 k2 + 2 k3 + k4) / 6.
    Source: Kutta 1901, Z. Math. Phys. 46, pp. 435-453; Hairer, Nørsett & Wanner 1993, Solving ODEs I, table II.1.2.
    """

    name = "rk4"
    title = "Classical Runge–Kutta"
    source = "Kutta 1901, Z. Math. Phys. 46, pp. 435-453"
    evidence = "tests/samplers/test_ode.py::test_coefficients_are_those_of_the_source[rk4]"
    order = 4
    tableau = Tableau(
        ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 1 / 2, 1 / 2, 1.0), 4
    )

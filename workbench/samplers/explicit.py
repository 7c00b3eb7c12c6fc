"""Runge–Kutta solvers with a fixed tableau: coefficients are data, pinned to their sources, and check themselves."""

import dataclasses
from typing import ClassVar

from workbench.samplers.base import Solver, Step, blend, column


@dataclasses.dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge–Kutta method: k_i = v(x + h Σ_j a_ij k_j, t + c_i h); x ← x + h Σ b_i k_i.

    Raises:
        ValueError: when a row of a does not sum to its c, or b does not sum to 1.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        for row, c in zip(self.a, self.c[1:], strict=True):
            if abs(sum(row) - c) > 1e-12:
                raise ValueError(f"expected a row of a that sums to c = {c}, got {row}")
        if abs(sum(self.b) - 1) > 1e-12 or len(self.b) != len(self.c) or self.c[0] != 0:
            raise ValueError(f"expected b to sum to 1 over {len(self.c)} stages, got {self.b}")


class Explicit(Solver):
    """x ← x + h Σ b_i k_i with a fixed tableau; as many evaluations a step as it has stages."""

    tableau: ClassVar[Tableau]

    def step(self, field, path, x, t, end, state, hyper, noise):
        h = column(end - t)
        rows = self.tableau
        slopes = [field(x, t).velocity]
        for row, c in zip(rows.a, rows.c[1:], strict=True):
            slopes.append(field(x + h * blend(list(row), slopes), t + c * (end - t)).velocity)
        return Step(x + h * blend(list(rows.b), slopes), end, (), {})


class Euler(Explicit):
    """x ← x + h v(x, t).

    Source: Euler 1768, Institutiones calculi integralis, § 650.
    """

    name = "euler"
    title = "Euler"
    source = "Euler 1768, Institutiones calculi integralis, § 650"
    evidence = "tests/samplers/test_ode.py::test_order_of_convergence[euler]"
    order = 1
    tableau = Tableau((), (1.0,), (0.0,))


class Heun(Explicit):
    """k1 = v(x, t), k2 = v(x + h k1, t + h); x ← x + h (k1 + k2) / 2.

    Source: Heun 1900, Z. Math. Phys. 45; Hairer, Nørsett & Wanner 1993, Solving ODEs I, II.1.
    """

    name = "heun"
    title = "Heun"
    source = "Heun 1900, Z. Math. Phys. 45, pp. 23-38"
    evidence = "tests/samplers/test_ode.py::test_order_of_convergence[heun]"
    order = 2
    tableau = Tableau(((1.0,),), (0.5, 0.5), (0.0, 1.0))

"""Implicit solvers, their equation solved by fixed-point iteration."""

from typing import Any

import torch

from workbench.routine import Hyper
from workbench.samplers.base import Solver, Step, column


class ImplicitMidpoint(Solver):
    """k = v(x + h k / 2, t + h / 2); x ← x + h k.

    Symmetric and symplectic: it keeps quadratic invariants, and the way back is the way it came. The equation is
    solved by k ← v(x + h k / 2, t + h / 2) from k = 0, `iterations` times, as many evaluations. That converges when h
    L / 2 < 1, L the Lipschitz constant of v, and gains a factor h L / 2 an iteration; two are enough for order 2.
    Where it does not converge, the step is taken with the last k all the same: `residual`, |h| times the last change
    of k in units of x, then stays large, and a run may diverge. More steps, or more iterations where it converges
    slowly, mend it.

    Source: Hairer, Lubich & Wanner 2006, Geometric Numerical Integration, II.1.1, IV.2.1, VIII.6 (fixed-point
    iteration).
    """

    name = "implicit-midpoint"
    title = "Implicit midpoint"
    source = "Hairer, Lubich & Wanner 2006, Geometric Numerical Integration, 2nd edition, II.1 and VIII.6"
    evidence = "tests/samplers/test_ode.py::test_the_implicit_midpoint_method_keeps_quadratic_invariants"
    order = 2
    iterations: Any = Hyper(
        8, 1, 1000, "integer", (1, 50), kind="shape", unit="evaluations", doc="Fixed-point iterations a step."
    )

    def step(self, field, path, x, t, end, state, hyper, noise):
        h, middle = column(end - t), t + (end - t) / 2
        old, k = torch.zeros_like(x), field(x, middle).velocity
        for _ in range(hyper["iterations"] - 1):
            old, k = k, field(torch.addcmul(x, h, k, value=0.5), middle).velocity
        residual = torch.linalg.vector_norm(h * (k - old), dim=-1)
        return Step(torch.addcmul(x, h, k), end, (), {"residual": residual})

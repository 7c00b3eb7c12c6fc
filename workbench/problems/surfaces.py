"""Surfaces to descend: each with its formula, domain, known minima and a start worth watching."""

from workbench.problems.objective import Objective
from workbench.routine import Hyper


class Rosenbrock(Objective):
    """f(x) = Σᵢ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)²; one minimum, 0 at (1, …, 1), at the end of a curved valley (for dim 2 and 3).

    Source: Rosenbrock 1960, The Computer Journal 3(3).
    """

    name = "rosenbrock"
    title = "Rosenbrock valley"
    source = "Rosenbrock 1960, The Computer Journal 3(3)"
    evidence = "tests/problems/test_surfaces.py::test_minimum_has_the_stated_value_and_no_gradient[rosenbrock]"
    dim = Hyper(2, 2, 1000, "integer", (2, 20), kind="init", doc="Number of coordinates.")
    minimum = 0.0
    log = True

    def __init__(self, **settings):
        super().__init__(**settings)
        self.domain = ((-2.0, 2.0), (-1.0, 3.0)) + ((-2.0, 2.0),) * (self.dim - 2)
        self.start = (-1.2, 1.0) * (self.dim // 2) + (-1.2,) * (self.dim % 2)
        self.minima = ((1.0,) * self.dim,)

    def __call__(self, x):
        if self.dim == 2:
            return 100 * (x[1] - x[0] * x[0]) ** 2 + (1 - x[0]) ** 2
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(0)

"""Solvers of ODEs with fixed steps: their order, their coefficients, equality with others, the way back."""

import math

import numpy as np
import pytest
import torch
import torchdiffeq

import workbench as wb
from workbench.samplers.multistep import adams_weights
from workbench.samplers.solve import solve
from workbench.samplers.tableaus import Tableau

pytestmark = pytest.mark.usefixtures("one_thread")

FIXED = [row for row in wb.catalogue("solvers") if row.kind == "ode" and not row.make.adaptive]
ORDERS = {
    "euler": 1, "midpoint": 2, "heun": 2, "ralston": 2, "rk3": 3, "rk4": 4, "implicit-midpoint": 2,
    "adams-bashforth-2": 2, "adams-bashforth-3": 3, "adams-bashforth-4": 4,
    "splitting-euler": 1, "splitting-verlet": 2, "constant-acceleration": 1,
}  # fmt: skip


def turning(x, t):
    """Turns by the angle t + t²/2: linear, and not the same at every time."""
    return (1 + t).unsqueeze(-1) * torch.stack([-x[..., 1], x[..., 0]], -1)


def turned(x):
    c, s = math.cos(1.5), math.sin(1.5)
    return x @ torch.tensor([[c, s], [-s, c]], dtype=x.dtype)


def growing(x, t):
    """x' = (1 - x) x 3 cos(2t), logistic growth at a rate that changes."""
    return 3 * torch.cos(2 * t).unsqueeze(-1) * x * (1 - x)


def grown(x):
    e = math.exp(1.5 * math.sin(2.0))
    return x * e / (1 + x * (e - 1))


PROBLEMS = [(turning, turned), (growing, grown)]
STARTS = torch.tensor([[0.2, 0.7], [0.9, 0.4], [0.5, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("name", [row.name for row in FIXED])
def test_order_of_convergence(name):
    """Slope of log error against log step, fitted where halving the step divides the error by a constant."""
    steps, hyper = [32, 64, 128, 256], {"iterations": 20} if name == "implicit-midpoint" else {}
    for field, exact in PROBLEMS:
        errors = [float((solve(field, name, x=STARTS, steps=n, hyper=hyper) - exact(STARTS)).norm()) for n in steps]
        slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert slope == pytest.approx(ORDERS[name], abs=0.15), field.__name__
    assert wb.make(name).order == ORDERS[name]


TABLEAUS = {
    "euler": ([], [1], [0]),
    "midpoint": ([[1 / 2]], [0, 1], [0, 1 / 2]),
    "heun": ([[1]], [1 / 2, 1 / 2], [0, 1]),
    "ralston": ([[2 / 3]], [1 / 4, 3 / 4], [0, 2 / 3]),
    "rk3": ([[1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6], [0, 1 / 2, 1]),
    "rk4": ([[1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 1 / 2, 1 / 2, 1]),
}
ADAMS = {
    "adams-bashforth-2": ([3, -1], 2),
    "adams-bashforth-3": ([23, -16, 5], 12),
    "adams-bashforth-4": ([55, -59, 37, -9], 24),
}


@pytest.mark.parametrize("name", [*TABLEAUS, *ADAMS])
def test_coefficients_are_those_of_the_source(name):
    if name in TABLEAUS:
        tableau = wb.make(name).tableau
        a, b, c = TABLEAUS[name]
        assert [list(row) for row in tableau.a] == [pytest.approx(row) for row in a]
        assert list(tableau.b) == pytest.approx(b)
        assert list(tableau.c) == pytest.approx(c)
        return
    weights, over = ADAMS[name]
    times = tuple(torch.tensor([-float(j)], dtype=torch.float64) for j in range(len(weights)))
    found = adams_weights(times, torch.tensor([1.0], dtype=torch.float64))
    assert [float(w) for w in found] == pytest.approx([w / over for w in weights], rel=1e-12)


@pytest.mark.parametrize("ratio", [0.5, 1.7])
def test_adams_weights_of_unequal_steps_integrate_polynomials_exactly(ratio):
    times = tuple(torch.tensor([t], dtype=torch.float64) for t in (0.0, -ratio, -1.6 * ratio, -3 * ratio))
    weights = adams_weights(times, torch.tensor([1.0], dtype=torch.float64))
    for degree in range(4):
        found = sum(float(w) * float(t) ** degree for w, t in zip(weights, times, strict=True))
        assert found == pytest.approx(1 / (degree + 1), rel=1e-10)


def test_a_tableau_that_is_wrong_is_refused_even_where_it_is_of_the_same_order():
    with pytest.raises(ValueError, match="expected a row of a that sums to c"):
        Tableau(((0.5,),), (0.0, 1.0), (0.0, 0.6), 2)
    with pytest.raises(ValueError, match="expected b to sum to 1"):
        Tableau(((0.5,),), (0.1, 1.0), (0.0, 0.5), 2)
    with pytest.raises(ValueError, match="expected weights b of order 3, got order 2"):
        Tableau(((0.5,), (-1.0, 2.0)), (0.25, 0.5, 0.25), (0.0, 0.5, 1.0), 3)


@pytest.mark.parametrize(("name", "method"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_steps_equal_those_of_torchdiffeq_where_it_has_the_same_tableau(name, method):
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    theirs = torchdiffeq.odeint(lambda t, x: turning(x, t.expand(len(x))), STARTS, grid, method=method)
    session = wb.Session(wb.sampling(turning, name, steps=10, samples=3, dtype=torch.float64), start=STARTS)
    for k in range(11):
        torch.testing.assert_close(session.state.x[0], theirs[k], rtol=1e-12, atol=1e-12)
        session.step()


@pytest.mark.parametrize("name", [row.name for row in FIXED])
def test_going_back_leads_to_the_start(name):
    end = solve(growing, name, x=STARTS, steps=400)
    again = solve(growing, name, x=end, steps=400, reverse=True)
    assert float((again - STARTS).abs().max()) < (2e-2 if ORDERS[name] == 1 else 1e-4)


def test_the_implicit_midpoint_method_keeps_quadratic_invariants():
    end = solve(turning, "implicit-midpoint", x=STARTS, steps=10, hyper={"iterations": 60})
    torch.testing.assert_close(end.norm(dim=-1), STARTS.norm(dim=-1), rtol=1e-12, atol=0)
    explicit = solve(turning, "midpoint", x=STARTS, steps=10)
    assert float((explicit.norm(dim=-1) - STARTS.norm(dim=-1)).abs().max()) > 1e-6


def test_the_implicit_midpoint_method_says_when_its_iteration_has_not_converged():
    stiff = wb.sampling(lambda x, t: -30 * x, "implicit-midpoint", steps=10, samples=3, dtype=torch.float64)
    session = wb.Session(stiff, start=STARTS, hyper={"iterations": 8}).step()
    assert float(session.last_info["residual"].max()) > 1
    session = wb.Session(stiff, start=STARTS, hyper={"steps": 60, "iterations": 30}).step()
    assert float(session.last_info["residual"].max()) < 1e-12

"""Adaptive solvers: every sample goes its own way, as it would alone; what has arrived costs nothing."""

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq

import workbench as wb
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

TWINS = {"dormand-prince": scipy.integrate.RK45, "bogacki-shampine": scipy.integrate.RK23}
STARTS = torch.tensor([[0.2, 0.7], [0.9, -0.4], [-2.5, 1.6], [3.0, 3.0]], dtype=torch.float64)


def pulled(x, t):
    """A spring that stiffens away from 0, driven."""
    u, v = x.unbind(-1)
    return torch.stack([8 * v, -8 * u**3 + 3 * torch.cos(5 * t)], -1)


def as_scipy(t, y):
    return pulled(torch.from_numpy(y), torch.tensor(t, dtype=torch.float64)).numpy()


def session_of(name, starts, **hyper):
    routine = wb.sampling(pulled, name, samples=len(starts), dtype=torch.float64)
    return wb.Session(routine, start=starts, hyper=hyper)


def lived(session):
    """Times and points of every sample at every attempt, until all have arrived."""
    states = [session.state]
    while not bool(session.routine.done(session.state).all()):
        states.append(session.step().state)
    return torch.stack([state.t[0] for state in states]), torch.stack([state.x[0] for state in states])


@pytest.mark.parametrize("name", TWINS)
def test_every_sample_goes_as_it_would_in_scipy(name, monkeypatch):
    monkeypatch.setattr(scipy.integrate._ivp.rk, "MAX_FACTOR", 5.0)  # ours grow five times at most, scipy's ten
    session = session_of(name, STARTS, rtol=1e-4, atol=1e-6)
    times, points = lived(session)
    for i, start in enumerate(STARTS.numpy()):
        theirs = scipy.integrate.solve_ivp(as_scipy, (0, 1), start, method=TWINS[name], rtol=1e-4, atol=1e-6)
        moved = torch.cat([torch.ones(1, dtype=torch.bool), times[:, i].diff() > 0])
        np.testing.assert_allclose(times[moved, i], theirs.t, rtol=1e-9)
        np.testing.assert_allclose(points[moved, i], theirs.y.T, rtol=1e-8, atol=1e-9)
        assert int(session.state.nfe[0, i]) == theirs.nfev


@pytest.mark.parametrize("name", TWINS)
def test_coefficients_are_those_of_scipy(name):
    tableau, twin = wb.make(name).tableau, TWINS[name]
    stages = len(tableau.b)
    for i, row in enumerate(tableau.a):
        np.testing.assert_allclose(row, twin.A[i + 1][: i + 1], rtol=1e-14)
    np.testing.assert_allclose(tableau.b, twin.B[:stages], rtol=1e-14)
    np.testing.assert_allclose(tableau.c, twin.C[:stages], rtol=1e-14)
    np.testing.assert_allclose(np.abs(tableau.error), np.abs(twin.E[: len(tableau.error)]), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.slow
def test_the_error_follows_the_tolerance(name):
    exact = solve(pulled, "dormand-prince", x=STARTS, hyper={"rtol": 1e-12, "atol": 1e-13})
    errors = [float((solve(pulled, name, x=STARTS, hyper={"rtol": r, "atol": r}) - exact).norm()) for r in (1e-4, 1e-6)]
    assert errors[1] < errors[0] / 20
    assert errors[1] < 1e-3


def test_the_end_is_that_of_torchdiffeq_to_the_tolerance():
    theirs = torchdiffeq.odeint(
        lambda t, x: pulled(x, t), STARTS, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-9, atol=1e-10
    )
    ours = solve(pulled, "dormand-prince", x=STARTS, hyper={"rtol": 1e-9, "atol": 1e-10})
    torch.testing.assert_close(ours, theirs[-1], rtol=1e-6, atol=1e-6)


def test_a_stiff_neighbour_changes_nothing_for_the_others():
    together = session_of("dormand-prince", STARTS)
    lived(together)
    for i in range(3):
        alone = session_of("dormand-prince", STARTS[i : i + 1])
        lived(alone)
        torch.testing.assert_close(alone.state.x[0, 0], together.state.x[0, i], rtol=1e-12, atol=1e-12)
        assert int(alone.state.nfe) == int(together.state.nfe[0, i])
    assert int(together.state.nfe[0, 3]) > 2 * int(together.state.nfe[0, 0])


def test_going_back_leads_to_the_start():
    tight = {"rtol": 1e-9, "atol": 1e-10}
    end = solve(pulled, "dormand-prince", x=STARTS, hyper=tight)
    again = solve(pulled, "dormand-prince", x=end, hyper=tight, reverse=True)
    torch.testing.assert_close(again, STARTS, rtol=1e-5, atol=1e-5)


def test_a_field_that_cannot_be_followed_is_a_run_that_diverged_and_not_an_endless_one():
    routine = wb.sampling(
        lambda x, t: 1 / (0.4 - t).unsqueeze(-1).abs() ** 2 * (1 + 0 * x), "dormand-prince", samples=2
    )
    session = wb.Session(routine).step(3000)
    assert session.status[0].startswith("diverged at step")
    assert bool(torch.isfinite(session.state.x).all())

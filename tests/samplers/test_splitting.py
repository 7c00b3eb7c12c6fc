"""Splitting integrators in phase space: the exact field there, the rules, their orders, and W2 against Euler."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import workbench as wb
from tests.samplers.cases import TARGET, double
from workbench.flows.measures.distances import w2
from workbench.flows.phase import CriticallyDamped, PhaseField
from workbench.problems.densities import Mixture
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

ROUND = TARGET
TURNED = Mixture([[1.5, 0.0], [-1.0, 0.8]], [[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]]], [1, 3])
SMOOTH = CriticallyDamped(beta=4.0, nu=4.0, kappa=0.5)
NAMES = ["splitting-euler", "splitting-verlet"]


def normal(n=16, dim=4, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- the field


def drift(process):
    """F of dz = F z ds + noise, of one coordinate's position and momentum."""
    return process.beta / 2 * np.array([[0, 1 / process.mass], [-1, -process.nu]])


def law(process, s, mean, cov):
    """Mean and covariance after s of one coordinate's (position, momentum), by solving dP/ds = F P + P Fᵀ + G Gᵀ."""
    f, noise = drift(process), np.diag([0, process.beta * process.mass * process.nu])

    def slope(_, y):
        p = y[2:].reshape(2, 2)
        return np.concatenate([f @ y[:2], (f @ p + p @ f.T + noise).ravel()])

    y = solve_ivp(slope, (0, s), np.concatenate([mean, cov.ravel()]), rtol=1e-11, atol=1e-13).y[:, -1]
    return y[:2], y[2:].reshape(2, 2)


@pytest.mark.parametrize("process", [CriticallyDamped(), CriticallyDamped(3.0, 2.0, 0.3)], ids=["usual", "other"])
@pytest.mark.parametrize("s", [0.02, 0.3, 1.0])
def test_the_score_is_that_of_the_noised_mixture_by_its_moment_equations(s, process):
    """Each component's mean and covariance from the equations of moments, and the score of the mixture of those."""
    positions = Mixture([[1.5, 0.0], [-1.0, 0.8]], [0.5, 0.4], [1, 2])
    means, covariances = [], []
    for mean, deviation in zip(positions.exact.means.tolist(), (0.5, 0.4), strict=True):
        cov = np.diag([deviation**2, process.kappa * process.mass])
        laws = [law(process, s, np.array([m, 0.0]), cov) for m in mean]
        means.append([laws[0][0][0], laws[1][0][0], laws[0][0][1], laws[1][0][1]])
        covariances.append(np.kron(laws[0][1], np.eye(2)))
    dense = Mixture(means, np.array(covariances), [1, 2])
    z = normal()
    found = PhaseField(positions, process).score(z, double(1 - s))
    torch.testing.assert_close(found, dense.score(z), rtol=1e-7, atol=1e-7)


def test_the_score_of_turned_components_is_that_of_the_dense_covariance():
    field, t, z = PhaseField(TURNED), double(0.8), normal()
    e = torch.tensor(field.process.kernel(t), dtype=torch.float64)
    rest = torch.diag(double([1.0, field.process.mass]))
    block = lambda m: torch.kron(m, torch.eye(2, dtype=torch.float64))  # noqa: E731
    means = torch.cat([e[0, 0] * TURNED.exact.means, e[1, 0] * TURNED.exact.means], -1)
    start = field.target.exact.covariances
    dense = Mixture(means, block(e) @ start @ block(e).T + block(rest - e @ rest @ e.T), [1, 3])
    torch.testing.assert_close(field.score(z, t), dense.score(z), rtol=1e-10, atol=1e-10)


def test_the_velocity_is_that_of_the_probability_flow_and_knows_the_speed_of_positions():
    """- (F z - ½ G Gᵀ score) at each point, in the direction of data."""
    field, z, t = PhaseField(ROUND, SMOOTH), normal(), torch.rand(16, dtype=torch.float64)
    found, f = field(z, t), double(drift(SMOOTH))
    score = found.score
    push = SMOOTH.beta * SMOOTH.mass * SMOOTH.nu / 2 * torch.cat([torch.zeros_like(score[:, :2]), score[:, 2:]], -1)
    expected = push - z @ torch.kron(f, torch.eye(2, dtype=torch.float64)).T
    torch.testing.assert_close(found.velocity, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(SMOOTH.position_speed(z[:, 2:]), found.velocity[:, :2], rtol=0, atol=1e-14)


@pytest.mark.slow
def test_the_flow_ends_at_the_data():
    """2,000 samples, within four standard errors of first and second moments of positions and momenta."""
    field, n = PhaseField(ROUND), 2000
    z = solve(field, "rk4", steps=400, samples=n, seed=1).double()
    exact = seen(field.target.sample(wb.Key(0), 400_000, z))
    error = (seen(z).mean(0) - exact.mean(0)) / exact.std(0) * n**0.5
    assert float(error.abs().max()) < 4, error


def seen(z):
    return torch.cat([z, z.square(), z * z.roll(1, -1)], -1)


def test_solvers_that_need_an_interpolant_are_refused_and_points_of_odd_dimension_too():
    with pytest.raises(ValueError, match="expected a field with an interpolant for DDIM, got a plain velocity"):
        wb.sampling(PhaseField(ROUND), "ddim")
    odd = wb.exact_field(Mixture([[0.0, 0.0, 1.0]], 0.5))
    with pytest.raises(ValueError, match=r"expected points of an even number of coordinates .*, got 3"):
        solve(odd, "splitting-euler", steps=3)


# ------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_their_rules_written_out(name):
    field, times = PhaseField(ROUND, SMOOTH), [0.0, 0.1, 0.25, 0.6, 1.0]
    x, m = normal().chunk(2, -1)

    def asked(x, m, t):
        return field(torch.cat([x, m], -1), t).velocity[:, 2:]

    f = asked(x, m, double(0.0))
    for s, t in itertools.pairwise(double(times)):
        h = t - s
        if name == "splitting-euler":
            m = m + h * asked(x, m, s)
            x = x - h * SMOOTH.beta / (2 * SMOOTH.mass) * m
            continue
        half = m + h / 2 * f
        x = x - h * SMOOTH.beta / (2 * SMOOTH.mass) * half
        f = asked(x, half + h / 2 * f, t)
        m = half + h / 2 * f
    found = solve(field, wb.make(name, process=SMOOTH), x=normal(), grid=times)
    torch.testing.assert_close(found, torch.cat([x, m], -1), rtol=0, atol=1e-12)
    asking = solve(field, name, x=normal(), grid=times)
    torch.testing.assert_close(asking, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "told", "asking"), [("splitting-euler", 5, 15), ("splitting-verlet", 6, 16)])
def test_the_speed_of_positions_costs_no_evaluation_when_the_process_is_told(name, told, asking):
    for process, spent in ((SMOOTH, told), (None, asking)):
        routine = wb.sampling(PhaseField(ROUND, SMOOTH), wb.make(name, process=process), steps=5, samples=4)
        assert int(wb.Session(routine).step(5).state.nfe) == spent


@pytest.mark.parametrize("reverse", [False, True])
def test_the_symmetric_order_is_two_and_the_naive_one(reverse):
    """Of positions and momenta together, against 600 steps of the classical Runge–Kutta method."""
    field = PhaseField(ROUND, SMOOTH)
    fine = solve(field, "rk4", x=normal(), steps=600)
    x, aim = (fine, normal()) if reverse else (normal(), fine)
    for name, order in (("splitting-euler", 1), ("splitting-verlet", 2)):
        steps = (80, 160, 320)
        errors = [
            float((solve(field, wb.make(name, process=SMOOTH), x=x, steps=n, reverse=reverse) - aim).norm())
            for n in steps
        ]
        assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize("target", ["two-modes", "eight-gaussians", "three"])
@pytest.mark.slow
def test_positions_are_nearer_to_the_flow_and_the_data_than_those_of_euler_at_equal_evaluations(target):
    """W2 of 300 positions at 10, 20, 30 and 50 evaluations, the same start: the paper's claim."""
    field = PhaseField(ROUND if target == "three" else wb.make(target))
    z = field.source.sample(wb.Key(0), 300, normal())
    flow = solve(field, "rk4", x=z, steps=1000)[:, :2]
    data = field.positions.sample(wb.Key(1), 300, z)
    for evaluations in (10, 20, 30, 50):
        euler = solve(field, "euler", x=z, steps=evaluations)[:, :2]
        for name, steps in (("splitting-euler", evaluations), ("splitting-verlet", evaluations - 1)):
            ours = solve(field, wb.make(name, process=field.process), x=z, steps=steps)[:, :2]
            assert w2(ours, flow).value < 0.5 * w2(euler, flow).value
            assert w2(ours, data).value < w2(euler, data).value

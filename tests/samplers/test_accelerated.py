"""Accelerated DDIM and DDPM: their rules written out, the order of one, the law of the other, and their ends."""

import itertools
import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.samplers.cases import TARGET, double, normal
from workbench.flows.fields import exact_field
from workbench.problems.densities import Mixture
from workbench.rollout import advance
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = wb.make("variance-preserving", beta_max=6.0)
FIELD = exact_field(TARGET, PATH)
NAMES = ["accelerated-ddim", "accelerated-ddpm"]


def shares(times):
    """α_t of each step as the paper counts them: what ā is multiplied by on the way to noise."""
    kept = PATH.alpha(double(times)).square()
    return [float(noisy / clean) for noisy, clean in itertools.pairwise(kept)]


def test_the_deterministic_sampler_is_its_rule_written_out():
    """On a process that keeps the variance, after a first step of DDIM."""
    times = [0.0, 0.1, 0.25, 0.3, 0.6, 0.9]
    x, alphas = normal(), shares(times)
    at = FIELD(x, double(times[0]))
    x = PATH.alpha(double(times[1])) * at.data + PATH.sigma(double(times[1])) * at.noise
    for k in range(1, 5):
        now, older = alphas[k], alphas[k - 1]
        s = FIELD(x, double(times[k])).score
        y = math.sqrt(older) * (x - (1 - older) / 2 * s)
        change = s - math.sqrt(older) * FIELD(y, double(times[k - 1])).score
        x = (x + (1 - now) / 2 * s + (1 - now) ** 2 / (4 * (1 - older)) * change) / math.sqrt(now)
    found = solve(FIELD, "accelerated-ddim", x=normal(), grid=times)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_the_stochastic_sampler_is_its_rule_written_out():
    times = [0.0, 0.1, 0.25, 0.6, 0.9]
    routine = wb.sampling(FIELD, "accelerated-ddpm", grid=times, samples=16, dtype=torch.float64)
    key, ready = wb.Key(3), routine.normalise()
    state = routine.init(key, start=normal())
    x = normal()
    for k, now in enumerate(shares(times)):
        z, other = (part[0] for part in routine.draw(key.at(k), state, ready))
        y = x + math.sqrt((1 - now) / 2) * z
        x = (y + (1 - now) * FIELD(y, double(times[k])).score + math.sqrt((1 - now) / 2) * other) / math.sqrt(now)
        state, _ = advance(routine, state, ready, key, k)
        torch.testing.assert_close(state.x[0], x, rtol=0, atol=1e-12)
        assert abs(float((z * other).mean())) < 4 / math.sqrt(32)
    assert int(state.nfe) == 4


@pytest.mark.parametrize("path", ["variance-preserving", "linear-path"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.slow
def test_the_order_is_two_on_any_path_both_ways(path, reverse):
    field = exact_field(TARGET, PATH if path == "variance-preserving" else path)
    first, last = 0.1, 0.9
    start = solve(field, "rk4", x=normal(), grid=np.linspace(first, last, 501))
    x, aim = (start, normal()) if reverse else (normal(), start)
    steps = (160, 320, 640)
    errors = [
        (solve(field, "accelerated-ddim", x=x, grid=np.linspace(first, last, n + 1), reverse=reverse) - aim).norm()
        for n in steps
    ]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2, abs=0.12)


def test_the_deterministic_sampler_is_of_second_order_and_ddim_of_first():
    """The paper's claim, O(1/T²) for O(1/T), on three normals against 500 steps of a fine method."""
    times = {n: [0.95 * i / n for i in range(n + 1)] for n in (80, 160, 320, 500)}
    exact, orders = solve(FIELD, "rk4", x=normal(), grid=times[500]), {}
    for name in ("ddim", "accelerated-ddim"):
        errors = [(solve(FIELD, name, x=normal(), grid=times[n]) - exact).norm() for n in (80, 160, 320)]
        orders[name] = -np.polyfit(np.log([80, 160, 320]), np.log(errors), 1)[0]
    assert orders["ddim"] == pytest.approx(1, abs=0.05)
    assert orders["accelerated-ddim"] == pytest.approx(2, abs=0.1)


CELLS = 20


def cells(x):
    """The share of points in each of 20 × 20 cells of the square from -4 to 4."""
    i = ((x + 4) * (CELLS / 8)).floor().clamp(0, CELLS - 1).long()
    return torch.bincount(i[:, 0] * CELLS + i[:, 1], minlength=CELLS**2).double() / len(x)


def exact_cells(field, fine=8):
    """The same of p_t at the last time, summed over a grid eight times finer."""
    n = CELLS * fine
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) * (8 / n) - 4
    grid = torch.stack(torch.meshgrid(middles, middles, indexing="ij"), -1)
    p = field.log_density(grid, double(field.interpolant.ends[1])).exp()
    return (p / p.sum()).view(CELLS, fine, CELLS, fine).sum((1, 3)).flatten()


@pytest.mark.parametrize("steps", [10, 20, 40, pytest.param(80, marks=pytest.mark.slow)])
def test_total_variation_to_the_data_is_less_than_that_of_ddpm_at_equal_steps(steps):
    """40,000 samples of three normals; with either of DDPM's variances."""
    field = exact_field(TARGET, "variance-preserving")
    exact = exact_cells(field)

    def distance(name, **hyper):
        x = solve(field, name, steps=steps, samples=40_000, seed=1, hyper=hyper)
        return float((cells(x) - exact).abs().sum()) / 2

    assert distance("accelerated-ddpm") < 0.9 * distance("ddpm", variance="large") < 0.9 * distance("ddpm")


def test_the_stochastic_sampler_is_nearer_to_the_data_than_ddpm():
    """In one coordinate, where its law is known: a normal N(0, v) stays normal, and its variance tells the distance."""
    path = wb.make("variance-preserving")
    field = exact_field(Mixture([[0.0]], 0.5), path)
    exact = float(path.alpha(double(path.ends[1])).square() / 4 + path.sigma(double(path.ends[1])).square())
    n = 40_000
    for steps in (10, 20, 40):
        found = {
            name: float(solve(field, name, steps=steps, samples=n, seed=0).double().var())
            for name in ("accelerated-ddpm", "ddpm")
        }
        error = {name: abs(math.log(v / exact)) for name, v in found.items()}
        assert error["accelerated-ddpm"] + 4 * math.sqrt(2 / n) < error["ddpm"]


@pytest.mark.parametrize("path", ["variance-preserving", "linear-path"])
def test_the_stochastic_sampler_keeps_weights_and_moments_of_the_modes(path):
    """Two modes, 4 to 1: 4,000 samples, within four standard errors of the exact weight, mean and second moments."""
    n, target = 4000, wb.make("two-modes")
    x = solve(exact_field(target, path), "accelerated-ddpm", steps=150, samples=n, seed=2).double()
    exact = seen(target.sample(wb.Key(0), 400_000, x))
    error = (seen(x).mean(0) - exact.mean(0)) / exact.std(0) * math.sqrt(n)
    assert float(error.abs().max()) < 4, error


def seen(x):
    """Whether a point is right of x = 1, as most of the smaller mode; first and second powers of its coordinates."""
    return torch.cat([x[:, :1] > 1, x, x.square(), x[:, :1] * x[:, 1:]], -1).double()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("path", ["linear-path", "trigonometric-path"])
@pytest.mark.parametrize("name", NAMES)
def test_from_pure_noise_to_none_the_only_point_there_is_is_reached_exactly(name, path, steps):
    x = solve(exact_field(Mixture([[1.5, -0.7]], 0.0), path), name, x=normal(), steps=steps)
    assert float((x - double([1.5, -0.7])).abs().max()) < 1e-12


def test_evaluations_are_one_of_the_first_step_and_two_of_the_others():
    session = wb.Session(wb.sampling(FIELD, "accelerated-ddim", steps=5, samples=4)).step(5)
    assert int(session.state.nfe) == 9

"""Momentum: the rules written out, plain solvers at beta = 1, orders, stability, and samples that do not diverge."""

import itertools
import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.samplers.cases import TARGET, double, normal
from workbench.flows.fields import FunctionField, exact_field
from workbench.flows.interpolants import Interpolant
from workbench.problems.densities import Mixture
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = wb.make("variance-preserving", beta_max=6.0)
FIELD = exact_field(TARGET, PATH)
PLAIN = {"hb-plms": "ipndm", "ghvb": "ipndm", "hb-dpm-solver-pp-2m": "dpm-solver-pp-2m"}
UNEVEN = [0.0, 0.1, 0.15, 0.3, 0.5, 0.6, 0.8, 0.95]
EVEN = [0.1 + 0.1 * i for i in range(8)]


# ------------------------------------------------------------------------------------------------- written out


def transfer(x, noise, s, t):
    a, b, c, d = PATH.alpha(s), PATH.sigma(s), PATH.alpha(t), PATH.sigma(t)
    return c * (x / a + (d / c - b / a) * noise)


def released_weights(k, b):
    """Of velocities, latest first, on equal steps: those of the released code."""
    return {
        1: [1.0],
        2: [(2 + b) / (2 * b), -(2 - b) / (2 * b)],
        3: [(18 + 5 * b) / (12 * b), -(24 - 8 * b) / (12 * b), (6 - b) / (12 * b)],
        4: [
            (46 + 9 * b) / (24 * b),
            -(78 - 19 * b) / (24 * b),
            (42 - 5 * b) / (24 * b),
            -(10 - b) / (24 * b),
        ],
    }[k]


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_heavy_ball_around_adams_bashforth_is_its_rule_written_out(terms):
    beta, x, noises, v = 0.7, normal(), [], None
    for s, t in itertools.pairwise(double(EVEN)):
        noises = [FIELD(x, s).noise, *noises][:terms]
        mean = sum(w * e for w, e in zip(released_weights(len(noises), 1.0), noises, strict=True))
        v = mean if v is None else (1 - beta) * v + beta * mean
        x = transfer(x, v, s, t)
    found = solve(FIELD, "hb-plms", x=normal(), grid=EVEN, hyper={"beta": beta, "terms": terms})
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_generalised_heavy_ball_is_its_rule_written_out(terms):
    beta, x, velocities, v = 0.7, normal(), [], None
    for s, t in itertools.pairwise(double(EVEN)):
        noise = FIELD(x, s).noise
        v = noise if v is None else (1 - beta) * v + beta * noise
        velocities = [v, *velocities][:terms]
        mean = sum(w * e for w, e in zip(released_weights(len(velocities), beta), velocities, strict=True))
        x = transfer(x, mean, s, t)
    found = solve(FIELD, "ghvb", x=normal(), grid=EVEN, hyper={"beta": beta, "terms": terms})
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_heavy_ball_around_dpm_solver_is_its_rule_written_out():
    """The first step is a DDIM step, the second plain 2M, and from there on the velocity is kept."""
    beta, x, before, v = 0.7, normal(), None, None
    times = double(UNEVEN)
    lam, alpha, sigma = PATH.log_snr(times), PATH.alpha(times), PATH.sigma(times)
    for k in range(len(times) - 1):
        data, h = FIELD(x, times[k]).data, lam[k + 1] - lam[k]
        aim = data
        if before is not None:
            aim = data + (data - before) * h / (lam[k] - lam[k - 1]) / 2
            v = aim if v is None else (1 - beta) * v + beta * aim
            aim = v
        x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * torch.expm1(-h) * aim
        before = data
    found = solve(FIELD, "hb-dpm-solver-pp-2m", x=normal(), grid=UNEVEN, hyper={"beta": beta})
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("times", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("name", PLAIN)
def test_without_momentum_it_is_the_plain_solver(name, times):
    plain, other = (solve(FIELD, which, x=normal(), grid=times) for which in (PLAIN[name], "ddim"))
    found = solve(FIELD, name, x=normal(), grid=times, hyper={"beta": 1.0})
    mixed = solve(FIELD, name, x=normal(), grid=times, hyper={"beta": 0.6})
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)
    assert float((mixed - plain).abs().max()) > 1e-4
    assert float((plain - other).abs().max()) > 1e-2


# ------------------------------------------------------------------------------------------------- order


class Straight(Interpolant):
    """Noise that falls from 3 to 0.3, or as told, by equal amounts in equal times: Adams–Bashforth is exact in it."""

    name = "straight"

    def __init__(self, first=3.0, last=0.3):
        super().__init__()
        self.first, self.last = first, last

    def alpha(self, t):
        return torch.ones_like(t)

    def d_alpha(self, t):
        return torch.zeros_like(t)

    def sigma(self, t):
        return self.first + t * (self.last - self.first)

    def d_sigma(self, t):
        return torch.full_like(t, self.last - self.first)


@pytest.fixture(scope="module")
def straight():
    field = exact_field(TARGET, Straight())
    return field, solve(field, "rk4", x=3 * normal(), steps=600)


def fitted_order(field, exact, name, **hyper):
    """On steps of which the first are as short as 1 / n²: they are of lower order."""
    steps, errors = (80, 160, 320), []
    for n in steps:
        times = [(i / n) ** 2 for i in range(n + 1)]
        errors.append(float((solve(field, name, x=3 * normal(), grid=times, hyper=hyper) - exact).norm()))
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0], errors[-1]


@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_generalised_heavy_ball_with_k_terms_is_of_order_k(terms, beta, straight):
    order, _ = fitted_order(*straight, "ghvb", beta=beta, terms=terms)
    assert order == pytest.approx(terms, abs=0.2)


@pytest.mark.parametrize("name", ["hb-plms", "hb-dpm-solver-pp-2m"])
def test_heavy_ball_is_of_first_order_and_its_error_grows_with_the_momentum(name, straight):
    order, less = fitted_order(*straight, name, beta=0.8)
    assert order == pytest.approx(1, abs=0.15)
    order, more = fitted_order(*straight, name, beta=0.5)
    assert order == pytest.approx(1, abs=0.15)
    assert more > 2 * less


# ------------------------------------------------------------------------------------------------- stability


def stable_up_to(name, most, **hyper):
    """The largest z of a fine grid below `most` up to which steps of length 1 along x' = -z x do not blow up."""
    n, z = 200, torch.linspace(most / 200, most, 200, dtype=torch.float64)
    field = FunctionField(lambda x, t: n * z.unsqueeze(-1) * x, 1, kind="noise", interpolant=Straight(1.0, 0.0))
    routine = wb.sampling(field, name, steps=n, samples=len(z), dtype=torch.float64)
    x = wb.Session(routine, start=torch.ones_like(z).unsqueeze(-1), hyper=hyper).step(n // 2).state.x
    return float(z[int((x.flatten().abs() > 10).float().argmax()) - 1])


ADAMS = {1: 2.0, 2: 1.0, 3: 6 / 11, 4: 0.3}
"""Where the stability intervals of Adams–Bashforth end. Hairer & Wanner 1996, Solving ODEs II, V.1."""


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_heavy_ball_widens_the_stability_interval_of_adams_bashforth(terms):
    for beta in (1.0, 0.8, 0.5):
        exact = ADAMS[terms] * (2 - beta) / beta
        assert stable_up_to("hb-plms", 2 * exact, beta=beta, terms=terms) == pytest.approx(exact, rel=0.1)


def test_generalised_heavy_ball_widens_it_too():
    for beta in (1.0, 0.8, 0.5):
        assert stable_up_to("ghvb", 3.0, beta=beta, terms=2) == pytest.approx(2 - beta, abs=0.05)
    for terms in (3, 4):
        wider = [stable_up_to("ghvb", 1.5, beta=beta, terms=terms) for beta in (1.0, 0.8, 0.5)]
        assert wider[0] < wider[1] - 0.05 < wider[2] - 0.1


# ------------------------------------------------------------------------------------------------- guidance


@pytest.fixture(scope="module")
def guided():
    """Two of the eight normals, by a guidance of strength 15: noise + 15 (noise of the two - noise of all)."""
    path, whole = wb.make("variance-preserving"), wb.make("eight-gaussians")
    every = exact_field(whole, path)
    two = exact_field(Mixture(whole.exact.means[:2], 0.25), path)
    strong = lambda x, t: every(x, t).noise + 15 * (two(x, t).noise - every(x, t).noise)  # noqa: E731
    return FunctionField(strong, 2, kind="noise", interpolant=path)


@pytest.mark.parametrize("steps", [6, 8, 10])
def test_fewer_samples_diverge_under_strong_guidance_than_with_plms(steps, guided):
    """Diverged is farther than 8 from the origin, with data at 3; of 4,000, for each of two seeds."""

    def diverged(name, seed, **hyper):
        x = solve(guided, name, steps=steps, samples=4000, seed=seed, hyper=hyper)
        return int((x.norm(dim=-1) > 8).sum())

    for seed in range(2):
        plms = min(diverged("plms", seed), diverged("ipndm", seed))
        assert plms >= 40
        for name, beta in (("hb-plms", 0.8), ("hb-plms", 0.5), ("ghvb", 0.5)):
            assert diverged(name, seed, beta=beta) < plms - 3 * math.sqrt(plms)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("path", ["linear-path", "trigonometric-path"])
@pytest.mark.parametrize("name", PLAIN)
def test_from_pure_noise_to_none_the_only_point_there_is_is_reached_exactly(name, path, steps):
    field = exact_field(Mixture([[1.5, -0.7]], 0.0), path)
    for beta in (0.5, 1.0):
        x = solve(field, name, x=normal(), steps=steps, hyper={"beta": beta})
        torch.testing.assert_close(x, double([1.5, -0.7]).expand(16, 2), rtol=0, atol=1e-12)

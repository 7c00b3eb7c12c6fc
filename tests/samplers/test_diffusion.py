"""Diffusion samplers: order of convergence, exact facts, finite ends, and the distribution of the noisy ones.

What equals `diffusers` step for step is in test_diffusers_parity.py.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import workbench as wb
from tests.samplers.cases import TARGET, double, normal
from workbench.flows.fields import exact_field
from workbench.problems.densities import Mixture
from workbench.rollout import advance
from workbench.samplers.exponential import phi, taylor
from workbench.samplers.unipc import UniPC

pytestmark = pytest.mark.usefixtures("one_thread")

DETERMINISTIC = [
    "ddim",
    "dpm-solver-1",
    "dpm-solver-2",
    "dpm-solver-3",
    "dpm-solver-pp-2s",
    "dpm-solver-pp-3s",
    "dpm-solver-pp-2m",
    "dpm-solver-pp-3m",
    "deis-2",
    "deis-3",
    "lms",
    "ipndm",
    "s-pndm",
    "plms",
    "pndm",
    "edm-heun",
    "unip-3",
    "unipc-1",
    "unipc-2",
    "unipc-3",
]
NOISY = ["ddim-eta", "ddpm", "edm-churn", "sde-dpm-solver-pp-2m"]


def sample(field, solver, times, start, hyper=None, reverse=False, extra=0):
    """The last state after all of one's own times, and `extra` steps more."""
    routine = wb.sampling(field, solver, grid=times, samples=len(start), reverse=reverse, dtype=torch.float64)
    return wb.Session(routine, start=start, hyper=hyper).step(len(times) - 1 + extra).state


def test_the_catalogue_has_no_diffusion_sampler_that_is_not_tested_here():
    found = {row.name: row.make for row in wb.catalogue("solvers") if row.make.__module__.split(".")[-1] in FILES}
    assert set(found) == {*DETERMINISTIC, *NOISY}
    for name, method in found.items():
        assert method.kind == "diffusion"
        assert method.converts
        assert method.random == (name in NOISY)
        assert method.both_ways == (name in DETERMINISTIC)


FILES = {"ddim", "edm", "dpm", "unipc", "deis", "plms"}


# ------------------------------------------------------------------------------------------------- parts


def test_phi_functions_are_their_integrals_near_0_and_far():
    z = double([-20.0, -3.0, -0.5, -0.49, -1e-3, 0.0, 1e-9, 0.3, 0.5, 2.0, 10.0])
    nodes, weights = (double(v) for v in np.polynomial.legendre.leggauss(60))
    u, w = (nodes + 1) / 2, weights / 2
    for k in range(1, 5):
        exact = (w * torch.exp((1 - u) * z[:, None]) * u ** (k - 1)).sum(-1) / math.factorial(k - 1)
        torch.testing.assert_close(phi(k, z), exact, rtol=1e-12, atol=0)


def test_taylor_coefficients_are_those_of_the_polynomial_and_unknown_times_lower_its_degree():
    clock = double([0.3, -0.4, 0.9, -1.1])
    for degree in range(1, 4):
        c = normal()[:degree, 0]
        tau = clock - clock[0]
        values = 2.0 + sum(c[k] * tau ** (k + 1) for k in range(degree))
        times = [*clock[: degree + 1], double(math.inf), double(-math.inf)]
        given = [*values[: degree + 1], double(7.0), double(-3.0)]
        found = taylor(times, given)
        torch.testing.assert_close(torch.stack(found[:degree]), c, rtol=1e-12, atol=1e-12)
        assert found[degree:] == [0, 0]


# ------------------------------------------------------------------------------------------------- order


PATH = wb.make("variance-preserving", beta_max=6.0)
FIELD = exact_field(TARGET, PATH)
FIRST, LAST = 0.0, 0.95
ORDERS = {
    "ddim": 1,
    "dpm-solver-1": 1,
    "dpm-solver-2": 2,
    "dpm-solver-3": 3,
    "dpm-solver-pp-2s": 2,
    "dpm-solver-pp-3s": 3,
    "dpm-solver-pp-2m": 2,
    "dpm-solver-pp-3m": 2,
    "deis-2": 2,
    "deis-3": 3,
    "lms": 4,
    "ipndm": 2,
    "s-pndm": 2,
    "plms": 2,
    "pndm": 2,
    "edm-heun": 2,
    "unip-3": 3,
    "unipc-1": 2,
    "unipc-2": 3,
    "unipc-3": 4,
}


@functools.cache
def grid(n, power, back=False):
    """Times whose λ go as (i / n)^power from one end: for power 2 the first steps are as short as 1 / n²."""
    first, last = PATH.log_snr(double([FIRST, LAST]))
    share = (torch.arange(n + 1, dtype=torch.float64) / n) ** power
    share = 1 - share.flip(0) if back else share
    inside = PATH.time_of(first + (last - first) * share)[1:-1]
    return [FIRST, *inside.tolist(), LAST]


@functools.cache
def exactly(back=False):
    """The probability-flow ODE solved to 1e-12, from `normal()`."""

    def slope(t, x):
        return FIELD(double(x).view(-1, 2), double(t)).velocity.flatten().numpy()

    span = (LAST, FIRST) if back else (FIRST, LAST)
    done = solve_ivp(slope, span, normal().flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-13)
    return double(done.y[:, -1]).view(-1, 2)


LATE = {"lms", "ipndm", "plms", "pndm", "dpm-solver-pp-3m"}
"""Terms of higher order are large: these settle at more steps than the others."""


def fitted_order(name, power, back=False, steps=None):
    steps = steps or ((80, 160, 320) if name in LATE else (40, 80, 160))
    errors = [
        (sample(FIELD, name, grid(n, power, back), normal(), reverse=back).x[0] - exactly(back)).square().mean().sqrt()
        for n in steps
    ]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.slow
def test_order_of_convergence(name):
    """The first step knows no earlier prediction and is of first order; here it is 1 / n² long, which hides it."""
    assert wb.make(name).order == ORDERS[name]
    assert fitted_order(name, 2) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_from_data_to_source(name):
    assert fitted_order(name, 2, back=True) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("name", ["deis-3", "lms", "unip-3"])
@pytest.mark.slow
def test_equal_steps_hold_multistep_methods_to_second_order_by_their_first_step(name):
    assert fitted_order(name, 1, steps=(160, 320, 640)) == pytest.approx(2, abs=0.15)


# ------------------------------------------------------------------------------------------------- exact facts


def test_ddim_is_exponential_euler_in_noise_and_in_data():
    times = [0.2, 0.45, 0.7]
    points = {name: sample(FIELD, name, times[:2], normal()).x[0] for name in ("ddim", "dpm-solver-1")}
    t = double(times)
    alpha, sigma, lam = PATH.alpha(t), PATH.sigma(t), PATH.log_snr(t)
    h, x = lam[1] - lam[0], normal()
    at = FIELD(x, t[0])
    in_noise = alpha[1] / alpha[0] * x - sigma[1] * torch.expm1(h) * at.noise
    in_data = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h) * at.data
    for point in points.values():
        torch.testing.assert_close(point, in_noise, rtol=0, atol=1e-13)
        torch.testing.assert_close(point, in_data, rtol=0, atol=1e-13)


def test_ddim_is_eulers_method_on_straight_lines():
    times = [0.0, 0.1, 0.35, 0.6, 1.0]
    field = exact_field(TARGET, "linear-path")
    euler, ddim = (sample(field, name, times, normal()).x for name in ("euler", "ddim"))
    torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-13)


class UniP2(UniPC):
    """The predictor of UniPC-2 alone."""

    past, corrects = 2, False


def test_unip_2_is_dpm_solver_pp_2m():
    times = [0.0, 0.1, 0.35, 0.6, 0.9]
    one, other = (sample(FIELD, method, times, normal()).x for method in (UniP2(), "dpm-solver-pp-2m"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("path", ["linear-path", "trigonometric-path"])
@pytest.mark.parametrize("name", [*DETERMINISTIC, "ddpm", "ddim-eta", "sde-dpm-solver-pp-2m", "edm-churn"])
def test_all_data_at_one_point_is_reached_exactly_from_pure_noise_to_none(name, path, steps):
    """Data predictions are constant then, and noise predictions along the exact path: from alpha = 0 to sigma = 0."""
    point = Mixture([[1.5, -0.7]], 0.0)
    times = [0.0, *[((i + 0.3) / steps) ** 1.3 for i in range(1, steps)], 1.0]
    state = sample(exact_field(point, path), name, times, normal())
    torch.testing.assert_close(state.x[0], double([[1.5, -0.7]]).expand(16, 2), rtol=0, atol=1e-12)
    assert state.diverged.tolist() == [-1]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_step_from_pure_noise_or_to_none_is_a_ddim_step(name):
    field = exact_field(TARGET, "linear-path")
    for times in ([0.0, 0.3], [0.0, 1.0], [0.4, 1.0]):
        if times[0] > 0 and name in ("lms", "ipndm", "s-pndm", "plms", "pndm"):
            continue  # these are polynomials in rho or t, and both are finite where there is no noise
        one, other = (sample(field, method, times, normal()).x for method in (name, "ddim"))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_from_pure_noise_to_none_on_equal_steps_a_normal_is_met_to_second_order(name):
    """x_1 = mean + scale x_0, on straight lines. The DDIM steps at both ends leave second order of any higher one."""
    field = exact_field(Mixture([[1.0, -2.0]], 0.6), "linear-path")
    exact, errors = double([1.0, -2.0]) + 0.6 * normal(), []
    for steps in (40, 160):
        times = [i / steps for i in range(steps + 1)]
        errors.append(float((sample(field, name, times, normal()).x[0] - exact).abs().max()))
    assert errors[1] < (0.02 if wb.make(name).order == 1 else 1.5e-3)
    assert errors[0] / errors[1] > (3.8 if wb.make(name).order == 1 else 8)


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_ddim_shrinks_a_unit_normal_by_a_cosine_a_step(steps):
    """data = alpha x, noise = sigma x: x ← (alpha_t alpha_s + s_t s_s) x, the cosine of the angle between."""
    field = exact_field(Mixture.normal(2), "trigonometric-path")
    x = sample(field, "ddim", [i / steps for i in range(steps + 1)], normal()).x[0]
    torch.testing.assert_close(x, math.cos(math.pi / 2 / steps) ** steps * normal(), rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------- written out


def adams_bashforth(noises, order):
    """Mean of the noise over the next of equal steps, from those before, latest first."""
    table = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    weights = table[min(order, len(noises)) - 1]
    return sum(w * e for w, e in zip(weights, noises, strict=False))


def transfer(x, noise, s, t):
    a, b, c, d = PATH.alpha(s), PATH.sigma(s), PATH.alpha(t), PATH.sigma(t)
    return c / a * (x - b * noise) + d * noise


def test_ipndm_is_adams_bashforth_on_equal_steps():
    times = [0.1 + 0.1 * i for i in range(8)]
    x, noises = normal(), []
    for s, t in itertools.pairwise(double(times)):
        noises.insert(0, FIELD(x, s).noise)
        x = transfer(x, adams_bashforth(noises, 4), s, t)
    torch.testing.assert_close(sample(FIELD, "ipndm", times, normal()).x[0], x, rtol=0, atol=1e-12)


def test_s_pndm_is_its_rule_written_out():
    times = [0.1 + 0.1 * i for i in range(6)]
    x, noises = normal(), []
    for s, t in itertools.pairwise(double(times)):
        noises.insert(0, FIELD(x, s).noise)
        mean = adams_bashforth(noises, 2)
        if len(noises) == 1:
            mean = (noises[0] + FIELD(transfer(x, noises[0], s, t), t).noise) / 2
        x = transfer(x, mean, s, t)
    state = sample(FIELD, "s-pndm", times, normal())
    torch.testing.assert_close(state.x[0], x, rtol=0, atol=1e-12)
    assert int(state.nfe) == 6


CHURNS = {
    "all": {"s_churn": 3.0},
    "most": {"s_churn": 1e3, "s_noise": 1.2},
    "window": {"s_churn": 2.0, "s_min": 0.5, "s_max": 3.0},
    "none": {"s_churn": 0.0},
}


@pytest.mark.parametrize("case", CHURNS)
@pytest.mark.parametrize("path", ["edm-path", "variance-preserving"])
def test_churn_is_algorithm_2(path, case):
    """Algorithm 2 of Karras et al. 2022 on u = x / alpha with its own noise levels, the field asked at their times."""
    interpolant = wb.make(path)
    field = exact_field(TARGET, interpolant)
    times = [0.3, 0.4, 0.55, 0.6, 0.8, 0.95]
    routine = wb.sampling(field, "edm-churn", steps=5, grid=times, samples=16, dtype=torch.float64)
    key, ready = wb.Key(0), routine.normalise(CHURNS[case])
    state = routine.init(key, start=normal())

    def denoised(u, level):
        t = interpolant.time_of(-torch.log(level))
        return field(interpolant.alpha(t) * u, t).data

    levels = [interpolant.sigma(t) / interpolant.alpha(t) for t in double(times)]
    s_churn, s_min, s_max, s_noise = (float(ready[name]) for name in ("s_churn", "s_min", "s_max", "s_noise"))
    u = normal() / interpolant.alpha(double(times[0]))
    churned = 0
    for k, (now, then) in enumerate(itertools.pairwise(levels)):
        z = routine.draw(key.at(k), state, ready)[0]
        gamma = min(s_churn / 5, math.sqrt(2) - 1) if s_min <= now <= s_max else 0.0
        churned += gamma > 0
        hat = (1 + gamma) * now
        u_hat = u + (hat**2 - now**2).sqrt() * s_noise * z
        slope = (u_hat - denoised(u_hat, hat)) / hat
        u = u_hat + (then - hat) * slope
        u = u_hat + (then - hat) * (slope + (u - denoised(u, then)) / then) / 2
        state, _ = advance(routine, state, ready, key, k)
        torch.testing.assert_close(state.x[0] / interpolant.alpha(double(times[k + 1])), u, rtol=1e-9, atol=1e-9)
    assert churned == {"all": 5, "most": 5, "none": 0}.get(case, churned)
    assert case != "window" or path != "variance-preserving" or 0 < churned < 5


def test_churn_never_goes_beyond_the_source_end():
    """At the source end there is nothing noisier: the first step is that of EDM Heun."""
    field, times = exact_field(TARGET, "variance-preserving"), [0.0, 0.3]
    one, other = (sample(field, name, times, normal()).x for name in ("edm-churn", "edm-heun"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- on the way


WAYS = {
    "linear": ("linear-path", torch.float32),
    "trigonometric": ("trigonometric-path", torch.float32),
    "trigonometric in float64": ("trigonometric-path", torch.float64),
    "stochastic": ("stochastic-path", torch.float32),
    "edm": ("edm-path", torch.float32),
}


@pytest.mark.parametrize("name", [*DETERMINISTIC, *NOISY])
@pytest.mark.parametrize("case", WAYS)
def test_whole_ways_are_finite_and_stay_where_they_arrive(name, case):
    path, dtype = WAYS[case]
    routine = wb.sampling("two-modes", name, interpolant=path, steps=6, samples=64, dtype=dtype)
    session = wb.Session(routine, seed=1)
    arrived = session.step(6).state
    later = session.step(3).state
    assert bool(routine.done(arrived).all())
    assert bool(torch.isfinite(arrived.x).all())
    # a first step from alpha = 0.001 is too long for Heun and Runge–Kutta, which are finite and far off
    assert path == "stochastic-path" or float(arrived.x.abs().max()) < 12
    assert torch.equal(later.x, arrived.x)
    assert torch.equal(later.nfe, arrived.nfe)
    assert later.diverged.tolist() == [-1]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_back_to_the_source_and_again_to_data_is_where_one_began(name):
    """The whole straight line, both ends included."""
    field = exact_field(TARGET, "linear-path")
    times = [i / 50 for i in range(51)]
    x = TARGET.sample(wb.Key(0), 64, normal())
    noise = sample(field, name, times, x, reverse=True)
    again = sample(field, name, times, noise.x[0])
    assert noise.diverged.tolist() == [-1]
    assert float((again.x[0] - x).square().mean().sqrt()) < (0.1 if wb.make(name).order == 1 else 0.02)


@pytest.mark.parametrize("name", ["dpm-solver-pp-3m", "unipc-3", "plms", "lms", "dpm-solver-3"])
def test_turning_steps_on_the_way_is_a_grid_with_these_times(name):
    field = exact_field(TARGET, "linear-path")
    routine = wb.sampling(field, name, steps=10, samples=16, dtype=torch.float64)
    session = wb.Session(routine, start=normal())
    session.step(5)
    session.set(steps=4)
    turned = session.step(2).state
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0]
    torch.testing.assert_close(turned.x, sample(field, name, times, normal()).x, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- noise


def test_noisy_samplers_share_the_unit_normals_of_a_path_and_coarse_ones_are_made_of_fine_ones():
    def drawn(name, times):
        routine = wb.sampling(exact_field(TARGET, "linear-path"), name, grid=times, samples=500, dtype=torch.float64)
        key, ready = wb.Key(5), routine.normalise()
        state, found = routine.init(key.stream("init")), []
        for k in range(len(times) - 1):
            found.append(routine.draw(key.at(k), state, ready))
            state, _ = advance(routine, state, ready, key, k)
        return found

    coarse, fine = drawn("ddpm", [0.25, 0.75]), drawn("ddpm", [0.25, 0.5, 0.75])
    torch.testing.assert_close(coarse[0], (fine[0] + fine[1]) / math.sqrt(2), rtol=0, atol=1e-12)
    assert float(coarse[0].square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 1000))
    for name in NOISY:
        assert torch.equal(drawn(name, [0.25, 0.75])[0], coarse[0])


LAWFUL = {
    "ddim-eta at 0.3": ("ddim-eta", {"eta": 0.3}),
    "ddim-eta at 1": ("ddim-eta", {"eta": 1.0}),
    "ddpm small": ("ddpm", {}),
    "ddpm large": ("ddpm", {"variance": "large"}),
    "edm-churn": ("edm-churn", {"s_churn": 20.0}),
    "sde-dpm-solver-pp-2m": ("sde-dpm-solver-pp-2m", {}),
}


@pytest.mark.parametrize("path", ["variance-preserving", "linear-path"])
@pytest.mark.parametrize("case", LAWFUL)
def test_noisy_samplers_keep_weights_and_moments_of_the_modes(case, path):
    """Two modes, 4 to 1: 4,000 samples, within four standard errors of the exact weight, mean and second moments."""
    n, steps, target = 4000, 150, wb.make("two-modes")
    name, hyper = LAWFUL[case]
    routine = wb.sampling(target, name, steps=steps, samples=n, interpolant=path)
    x = wb.Session(routine, seed=2, hyper=hyper).step(steps).state.x[0].double()
    exact = seen(target.sample(wb.Key(0), 400_000, x))
    error = (seen(x).mean(0) - exact.mean(0)) / exact.std(0) * math.sqrt(n)
    assert float(error.abs().max()) < 4, error


def seen(x):
    """Whether a point is right of x = 1, as most of the smaller mode; first and second powers of its coordinates."""
    return torch.cat([x[:, :1] > 1, x, x.square(), x[:, :1] * x[:, 1:]], -1).double()

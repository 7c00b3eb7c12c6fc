"""DPM-Solver-v3: its step for any statistics, the statistics, its special cases, order, and what it gains."""

import diffusers
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import workbench as wb
from tests.samplers.cases import double, normal
from workbench.flows.fields import FunctionField, exact_field
from workbench.problems.densities import Mixture
from workbench.samplers.dpm_v3 import DEGREE, DPMSolverV3, Statistics, measure, reach
from workbench.samplers.solve import solve

TARGET = Mixture([[1.5, 0.0], [-1.0, 0.8], [0.0, -1.2]], [0.5, 0.3, 0.6], [1, 2, 1.5])
PATH = wb.make("trigonometric-path")
FIELD = exact_field(TARGET, PATH)
UNEVEN = [0.06, 0.13, 0.27, 0.35, 0.52, 0.6, 0.79, 0.86, 0.93]
# as in test_diffusers_parity.py
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar"),
]


@pytest.mark.parametrize("kind", ["dpmsolver++", "dpmsolver"])
def test_special_statistics_are_diffusers(kind, monkeypatch):
    """Of second order with exact integrals, every prediction that of the exact field."""
    monkeypatch.setattr(diffusers.schedulers.scheduling_dpmsolver_multistep, "deprecate", lambda *args, **kwargs: None)
    more = {"algorithm_type": kind, "solver_type": "heun", "solver_order": 2, "lower_order_final": False}
    scheduler = diffusers.DPMSolverMultistepScheduler(1000, final_sigmas_type="sigma_min", **more)
    scheduler.set_timesteps(len(UNEVEN) - 1)
    alpha, sigma = PATH.alpha(double(UNEVEN)), PATH.sigma(double(UNEVEN))
    scheduler.sigmas = sigma / alpha
    scheduler.set_begin_index(0)
    x = normal()[None]
    for k, t in enumerate(UNEVEN[:-1]):
        x = scheduler.step(FIELD(x, double(t)).noise, scheduler.timesteps[k], x).prev_sample
    hyper = {"statistics": "data" if kind == "dpmsolver++" else "noise", "corrector": "off"}
    found = solve(FIELD, "dpm-solver-v3", x=normal(), grid=UNEVEN, hyper=hyper)
    torch.testing.assert_close(found, x[0], rtol=0, atol=3e-6)  # it works in float32 in places


@pytest.mark.parametrize("statistics", ["data", "noise"])
def test_of_first_order_the_special_cases_are_ddim(statistics):
    hyper = {"statistics": statistics, "degree": 1}
    found = solve(FIELD, "dpm-solver-v3", x=normal(), grid=UNEVEN, hyper=hyper)
    torch.testing.assert_close(found, solve(FIELD, "ddim", x=normal(), grid=UNEVEN), rtol=0, atol=1e-12)


def some_statistics():
    """Of one coordinate, smooth in λ from -2 to 3, all of the size of 1."""
    series = torch.zeros(DEGREE + 1, 3, dtype=torch.float64)
    series[:4] = double([[0.5, -0.3, 0.2], [-0.4, 0.5, 0.7], [0.1, 0.3, -0.5], [0.2, -0.1, 0.3]])
    return Statistics(series[None, None], -2.0, 3.0)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_step_is_exact_when_g_is_a_polynomial_whatever_the_statistics(degree):
    """du/dλ = -(f + l u), df/dλ = s f + b + e^S dg/dλ, with g a polynomial of one degree less, adaptively."""
    known, start, past, to = some_statistics(), 0.4, [0.4, -0.3, -0.9][:degree], 1.5
    c1, c2 = 0.8 * (degree > 1), -0.6 * (degree > 2)

    def rates(lam, y):
        u, f, s = y
        l, scaling, bias = (float(part) for part in known.at(double(lam).reshape(1, 1, 1)))
        return [-(f + l * u), scaling * f + bias + np.exp(s) * (c1 + 2 * c2 * (lam - start)), scaling]

    def true(lam):
        if lam == start:
            return [0.7, -0.2, 0.0]
        return solve_ivp(rates, (start, lam), [0.7, -0.2, 0.0], rtol=1e-11, atol=1e-12).y[:, -1]

    clock, values = zip(*((shaped(lam), shaped(true(lam)[1])) for lam in past), strict=True)
    found = known.advance(shaped(0.7), clock, values, shaped(to))
    assert float(found) == pytest.approx(true(to)[0], abs=1e-8)


def shaped(value):
    return double(value).reshape(1, 1, 1)


@pytest.mark.parametrize("path", ["variance-preserving", "linear-path", "edm-path"])
def test_with_its_statistics_a_gaussian_takes_few_steps(path):
    """There l is 1 - alpha² v / (alpha² v + s²), and with it f is the same for all samples: s is 0 and b is df/dλ.

    Beyond |λ| = 4 what little f varies is the error of the series, and s means nothing.
    """
    field = exact_field(Mixture([[1.0, -0.5]], [0.8]), path)
    low, high = reach(field.interpolant)
    lam = torch.linspace(max(low, -4), min(high, 4), 50, dtype=torch.float64)[None, :, None]
    l, s, _ = Statistics(measure(field, 64)[None, None], low, high).at(lam)
    assert (l - 1 / (1 + 0.64 * (2 * lam).exp())).abs().max() < 0.02
    assert s.abs().max() < 0.05
    x = normal(200) * field.interpolant.spread(double(field.interpolant.ends[0]))
    exact = solve(field, "rk4", x=x, steps=400, grid="log-snr-grid")
    ours, ddim = (
        solve(field, name, x=x, steps=6, grid="log-snr-grid", hyper=hyper)
        for name, hyper in (("dpm-solver-v3", {"degree": 1}), ("ddim", {}))
    )
    assert (ours - exact).norm() < 0.15 * (ddim - exact).norm()


@pytest.mark.parametrize("at", [-1.0, 0.5])
def test_s_and_b_are_the_regression_of_the_change_of_f_on_f(at):
    """f is followed along 8000 trajectories of the flow, λ from at - 0.01 to at + 0.01."""
    target = Mixture([[3.5, 0.0], [1.0, 0.8], [2.0, -1.2]], [0.5, 0.3, 0.6], [1, 2, 1.5])
    field = exact_field(target, PATH)
    known = Statistics(measure(field, 4096)[None, None], *reach(PATH))
    times = [float(PATH.time_of(double(at + d))) for d in (-0.01, 0.0, 0.01)]
    x1, x0 = target.sample(wb.Key(5), 8000, double(0.0)), normal(8000, 9)
    x = PATH.alpha(double(times[1])) * x1 + PATH.sigma(double(times[1])) * x0
    after = solve(field, "rk4", x=x, steps=2, grid=np.linspace(times[1], times[2], 3).tolist())
    before = solve(field, "rk4", x=x, steps=2, grid=np.linspace(times[0], times[1], 3).tolist(), reverse=True)

    def f(x, t, lam):
        l = known.at(shaped(lam))[0][0]
        return (PATH.sigma(double(t)) * field(x, double(t)).noise - l * x) / PATH.alpha(double(t))

    early, now, late = (f(x, t, at + d) for x, t, d in zip((before, x, after), times, (-0.01, 0, 0.01), strict=True))
    _, s, b = known.at(shaped(at))
    for i in range(2):
        slope, offset = np.polyfit(now[:, i].numpy(), ((late - early)[:, i] / 0.02).numpy(), 1)
        assert float(s[0, 0, i]) == pytest.approx(slope, abs=0.12)
        assert float(b[0, 0, i]) == pytest.approx(offset, abs=0.12)


@pytest.mark.parametrize("corrector", ["on", "off"])
@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.slow
def test_the_order_is_the_degree(degree, corrector):
    """The first step is of first order; here it is 1 / n² long. The corrector does not raise the order: of third order
    only the last step, which it does not make again, is seen at first, and steps are to be short.
    """
    counts = (240, 480, 960) if (degree, corrector) == (3, "on") else (60, 120, 240)
    first, last = PATH.log_snr(double([0.2, 0.8])).tolist()
    field = exact_field(Mixture([[0.8, 0.0], [-0.6, 0.5]], [0.7, 0.8], [1, 2]), PATH)
    grids = [PATH.time_of(first + (last - first) * torch.linspace(0, 1, n + 1).double() ** 2).tolist() for n in counts]
    exact = solve(field, "rk4", x=normal(), grid=np.linspace(grids[0][0], grids[0][-1], 400).tolist())
    hyper = {"degree": degree, "corrector": corrector}
    errors = [float((solve(field, "dpm-solver-v3", x=normal(), grid=g, hyper=hyper) - exact).norm()) for g in grids]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(degree, abs=0.25)


PATHS = ["variance-preserving", "linear-path"]


@pytest.fixture(scope="module")
def errors():
    """errors(target, path, solver, steps, **hyper): RMS distance to where the flow ends, 600 samples."""
    torch.set_num_threads(1)
    solved = {}

    def error(target, path, name, steps, **hyper):
        field, x = exact_field(target, path), normal(600, 3)
        if (target, path) not in solved:
            solved[target, path] = solve(field, "rk4", x=x, steps=400, grid="log-snr-grid")
        found = solve(field, name, x=x, steps=steps, grid="log-snr-grid", hyper=hyper)
        return float((found - solved[target, path]).square().mean().sqrt())

    return error


@pytest.mark.parametrize("path", PATHS)
def test_of_first_order_it_ends_nearer_than_ddim(errors, path):
    """On two modes at five to ten steps, by a quarter at least."""
    for steps in (5, 6, 8, 10):
        ours = errors("two-modes", path, "dpm-solver-v3", steps, degree=1)
        assert ours < 0.75 * errors("two-modes", path, "ddim", steps)


@pytest.mark.parametrize("path", PATHS)
def test_of_second_order_it_ends_nearer_than_others_of_that_order(errors, path):
    """The row's claim on two modes: nearer than DPM-Solver++(2M) and UniPC-1 at five to ten steps."""
    for steps in (5, 6, 8, 10):
        ours = errors("two-modes", path, "dpm-solver-v3", steps)
        for other in ("dpm-solver-pp-2m", "unipc-1"):
            assert ours < errors("two-modes", path, other, steps)


@pytest.mark.parametrize("steps", [5, 8])
def test_on_eight_gaussians_it_is_not_always_nearer(errors, steps):
    """Where the claim does not hold: 2M wins five steps on the linear path, UniPC-1 eight on variance preserving."""
    path, other = {5: ("linear-path", "dpm-solver-pp-2m"), 8: ("variance-preserving", "unipc-1")}[steps]
    assert errors("eight-gaussians", path, "dpm-solver-v3", steps) > errors("eight-gaussians", path, other, steps)


def test_a_field_of_unknown_target_gets_those_of_data_and_a_given_one_its_own():
    free = FunctionField(lambda x, t: FIELD(x, t).velocity, interpolant=PATH)
    plain = solve(free, "dpm-solver-v3", x=normal(), steps=6)
    assert torch.equal(plain, solve(free, "dpm-solver-v3", x=normal(), steps=6, hyper={"statistics": "data"}))
    measured = solve(FIELD, "dpm-solver-v3", x=normal(), steps=6)
    given = solve(free, DPMSolverV3(FIELD), x=normal(), steps=6)
    torch.testing.assert_close(given, measured, rtol=0, atol=1e-9)
    assert not torch.equal(plain, measured)

"""Times follow the densities they state, weights and premetrics are the formulas of their sources."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.flows.choices import Premetric
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES, WEIGHTS, PREMETRICS = (
    [row.name for row in wb.catalogue(family)] for family in ("time distributions", "loss weights", "premetrics")
)
PATHS = ["linear-path", "trigonometric-path", "variance-preserving", "variance-exploding", "edm-path"]
TURNED = {
    "logit_mean": -0.7,
    "logit_scale": 0.6,
    "u_steepness": 2.5,
    "time_base": 30.0,
    "noise_mean": -0.4,
    "noise_std": 0.8,
    "lambda_low": -2.0,
    "lambda_high": 3.0,
}


def values(method, given=None, dtype=torch.float64):
    """Hyperparameters as a routine gives them: 0-d tensors or (runs,)."""
    given = given or {}
    return {
        name: torch.tensor(given.get(name, h.default), dtype=dtype)
        for name, h in method.hypers.items()
        if h.kind == "value"
    }


def between(path, n):
    """n midpoints of equal cells between the ends, and the size of a cell."""
    first, last = path.ends
    return first + (last - first) * (torch.arange(n, dtype=torch.float64) + 0.5) / n, (last - first) / n


@pytest.mark.parametrize("turned", [{}, TURNED], ids=["default", "turned"])
@pytest.mark.parametrize("name", TIMES)
def test_times_follow_their_density(name, turned):
    """Kolmogorov's distance between 40,000 draws and the integral of the density stays below its 1e-6 quantile."""
    times, n = wb.make(name), 40_000
    hyper = values(times, turned)
    for path in map(wb.make, PATHS):
        t = times.sample(Key(3), n, path, hyper, torch.empty(0, dtype=torch.float64))
        assert t.shape == (n,)
        assert path.ends[0] <= float(t.min()) <= float(t.max()) <= path.ends[1]
        cells, size = between(path, 400_000)
        cdf = torch.cat([torch.zeros(1, dtype=torch.float64), times.density(cells, path, hyper).cumsum(0) * size])
        assert abs(float(cdf[-1]) - 1) < 1e-3
        place = (t.sort().values - path.ends[0]) / size
        low = place.long().clamp(max=len(cells) - 1)
        expected = torch.lerp(cdf[low], cdf[low + 1], place - low)
        steps = torch.arange(n + 1, dtype=torch.float64) / n
        distance = max(float((expected - steps[:-1]).max()), float((steps[1:] - expected).max()))
        assert distance < math.sqrt(math.log(2 / 1e-6) / (2 * n)), path.name


DENSITIES = {
    "uniform-times": torch.ones_like,
    "logit-normal-times": lambda t: (
        torch.exp(-((torch.logit(t) + 0.7) ** 2) / (2 * 0.36)) / (0.6 * math.sqrt(2 * math.pi) * t * (1 - t))
    ),
    "u-shaped-times": lambda t: 2.5 * (torch.exp(2.5 * t) + torch.exp(2.5 * (1 - t))) / (2 * (math.exp(2.5) - 1)),
    "exponential-times": lambda t: math.log(30) * 30 ** (1 - t) / 29,
    # noise level n = (1 - t) / t: log n ~ N(-0.4, 0.8²), |d log n / dt| = 1 / (t (1 - t))
    "log-normal-noise-times": lambda t: (
        torch.exp(-((torch.log((1 - t) / t) + 0.4) ** 2) / (2 * 0.64)) / (0.8 * math.sqrt(2 * math.pi) * t * (1 - t))
    ),
    # λ = log(t / (1 - t)) uniform in (-2, 3)
    "adaptive-times": lambda t: (torch.logit(t).abs() < 5) / (10 * t * (1 - t)),
    "uniform-log-snr-times": lambda t: ((torch.logit(t) > -2) & (torch.logit(t) < 3)) / (5 * t * (1 - t)),
}


@pytest.mark.parametrize("name", TIMES)
def test_densities_are_those_of_their_source(name):
    """Written out for the linear path, whose ends are 0 and 1 and whose log-SNR is log(t / (1 - t)) twice."""
    times, t = wb.make(name), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    found = times.density(t, wb.make("linear-path"), values(times, TURNED))
    torch.testing.assert_close(found, DENSITIES[name](t).to(found), rtol=1e-12, atol=1e-12)


def test_adaptive_times_look_where_they_are_told():
    """Shares of 1, 3 and 4 in 8 of three cells, on a path that reaches all of them, and cut on one that does not."""
    times, like = wb.make("adaptive-times", heights=[1.0, 3.0, 4.0], reach=3.0), torch.empty(0, dtype=torch.float64)
    for path, shares in ((wb.make("linear-path"), [1, 3, 4]), (wb.make("edm-path", sigma_max=math.e), [0, 3, 4])):
        level = path.log_snr(times.sample(Key(2), 20_000, path, {}, like))
        found = torch.stack([((level > low) & (level <= low + 2)).double().mean() for low in (-3, -1, 1)])
        expected = torch.tensor(shares, dtype=torch.float64) / sum(shares)
        assert (found - expected).abs().max() < 5 * 0.5 / 20_000**0.5
        cells, size = between(path, 200_000)
        assert float(times.density(cells, path, {}).sum() * size) == pytest.approx(1, abs=1e-3)
    again = eval(times.recipe(), {"wb": wb})  # noqa: S307
    assert torch.equal(again.heights, times.heights)
    assert again.reach == 3.0
    with pytest.raises(ValueError, match="expected a positive height for each cell, got"):
        wb.make("adaptive-times", heights=[1.0, 0.0])


def test_times_of_several_runs_are_those_of_each():
    for times in map(wb.make, TIMES):
        names = list(values(times))
        if not names:
            continue
        several = [values(times)[names[0]] * size for size in (0.9, 1.0, 1.1)]
        path, like = wb.make("linear-path"), torch.empty(0, dtype=torch.float64)
        hyper = {**values(times), names[0]: torch.stack(several)}
        together = times.sample(Key(1), 50, path, hyper, like)
        density = times.density(together, path, hyper)
        assert together.shape == density.shape == (3, 50)
        for own, row, height in zip(several, together, density, strict=True):
            alone = {**values(times), names[0]: own}
            torch.testing.assert_close(row, times.sample(Key(1), 50, path, alone, like))
            torch.testing.assert_close(height, times.density(row, path, alone))


# what the papers and their code write, by the signal-to-noise ratio or the noise level of x = alpha x1 + s noise
FORMULAS = {
    "no-weight": lambda alpha, s: np.ones_like(alpha),
    "debiased-weight": lambda alpha, s: 1 / np.sqrt(np.clip(alpha**2 / s**2, 1e-3, 1e3)),
    "min-snr-weight": lambda alpha, s: np.minimum(alpha**2 / s**2, 5) / (alpha**2 / s**2),
    "p2-weight": lambda alpha, s: 1 / (1 + alpha**2 / s**2),
    "edm-weight": lambda alpha, s: (
        (np.maximum(s / alpha, 0.002) ** 2 + 0.25) / (np.maximum(s / alpha, 0.002) * 0.5) ** 2
    ),
    "sigmoid-weight": lambda alpha, s: 1 / (1 + np.exp(np.log(alpha**2 / s**2) - 2)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_their_source(name):
    weight = wb.make(name)
    if name == "velocity-weight":
        return velocity_weight_turns_losses_of_noise_into_losses_of_velocity(weight)
    for path in map(wb.make, [*PATHS, "stochastic-path"]):
        t, _ = between(path, 37)
        found = weight.weight(path, t, values(weight))
        expected = FORMULAS[name](path.alpha(t).numpy(), path.spread(t).numpy())
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, err_msg=path.name)
        assert torch.isfinite(weight.weight(path, torch.tensor(path.ends, dtype=torch.float64), values(weight))).all()


def velocity_weight_turns_losses_of_noise_into_losses_of_velocity(weight):
    """(v̂ - v)² = w (noise_hat - noise)², as the interpolant converts them; (drift_var / sigma)² in SiT's code."""
    from workbench.flows.fields import Prediction

    for path in map(wb.make, PATHS):
        t, _ = between(path, 37)
        x = torch.ones(len(t), 1, dtype=torch.float64)
        noise = torch.linspace(-1, 1, len(t), dtype=torch.float64).unsqueeze(-1)
        velocity = [Prediction(path, x, t, {"noise": noise + shift}).velocity for shift in (0, 0.5)]
        found = weight.weight(path, t, {})
        uncapped = found < 1e4
        ratio = ((velocity[1] - velocity[0]) / 0.5).square().squeeze(-1)
        torch.testing.assert_close(found[uncapped], ratio[uncapped], rtol=1e-8, atol=1e-12)
        s, ds, rate = path.sigma(t), path.d_sigma(t), path.d_alpha(t) / path.alpha(t)
        drift_variance = rate * s**2 - s * ds
        torch.testing.assert_close(found[uncapped], (drift_variance / s).square()[uncapped], rtol=1e-8, atol=1e-12)


def test_the_debiased_weight_lies_between_no_weight_and_constant_weight_of_data():
    """|noise error|² / √SNR is between |noise error|² and |data error|² = |noise error|² / SNR, where noise wins."""
    path = wb.make("variance-preserving")
    t = torch.linspace(0.01, 0.9, 50, dtype=torch.float64)
    snr = (path.alpha(t) / path.sigma(t)).square()
    noisy = (snr < 1) & (snr > 1e-3)
    found, least = (wb.make(name).weight(path, t, values(wb.make(name))) for name in ("debiased-weight", "p2-weight"))
    assert (found[noisy] > 1).all()
    assert (found[noisy] < 1 / snr[noisy]).all()
    assert (found[noisy] > least[noisy]).all()
    assert (wb.make("min-snr-weight").weight(path, t, values(wb.make("min-snr-weight")))[noisy] == 1).all()


SIZES = {
    "squared": lambda r: np.mean(r**2),
    "pseudo-huber": lambda r: (np.sqrt(np.sum(r**2) + (0.00054 * r.size) ** 2) - 0.00054 * r.size) / r.size,
    "euclidean": lambda r: np.sqrt(np.mean(r**2)),
    "absolute": lambda r: np.mean(np.abs(r)),
    "normalised": lambda r: np.log(np.mean(r**2) + 1e-3),
}


@pytest.mark.parametrize("name", PREMETRICS)
def test_premetrics_are_those_of_their_source(name):
    premetric = wb.make(name)
    residual = Key(5).normal((3, 11, 4), like=torch.empty(0, dtype=torch.float64)) * 0.05
    found = premetric.size(residual, values(premetric))
    assert found.shape == (3, 11)
    for row, sizes in zip(residual.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(sizes, [SIZES[name](r) for r in row], rtol=1e-9, atol=1e-15)
    at_zero = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    premetric.size(at_zero, values(premetric)).sum().backward()
    assert torch.equal(at_zero.grad, torch.zeros(1, 4, dtype=torch.float64)), "nothing pulls where nothing is wrong"


@pytest.mark.parametrize("name", PREMETRICS)
def test_slopes_are_derivatives_of_sizes(name):
    """As the tape has them, one value of a hyperparameter a run included; and 0 where nothing is wrong."""
    premetric = wb.make(name)
    residual = Key(8).normal((3, 11, 4), like=torch.empty(0, dtype=torch.float64)) * 0.1
    residual[0, 0] = 0
    hyper = {label: torch.stack([h / 2, h, 3 * h]) for label, h in values(premetric).items()}
    size, slope = premetric.slope(residual, hyper)
    expected_size, expected = Premetric.slope(premetric, residual, hyper)
    torch.testing.assert_close(size, expected_size)
    torch.testing.assert_close(slope, expected)


def test_the_normalised_size_has_the_gradient_of_loss_normalisation():
    """∇ log(loss) = ∇ loss / sg[loss]: what the weight 1 / sg[loss(x_t, t)] does to a squared loss."""
    residual = Key(6).normal((9, 2), like=torch.empty(0, dtype=torch.float64)).requires_grad_()
    size = wb.make("normalised").size(residual, {"log_floor": torch.tensor(1e-8, dtype=torch.float64)})
    (found,) = torch.autograd.grad(size.sum(), residual)
    loss = residual.square().mean(-1)
    (expected,) = torch.autograd.grad((loss / loss.detach()).sum(), residual)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_weights_and_premetrics_of_several_runs_are_those_of_each():
    path, t = wb.make("trigonometric-path"), torch.linspace(0.05, 0.95, 20, dtype=torch.float64)
    residual = Key(7).normal((3, 20, 2), like=torch.empty(0, dtype=torch.float64))
    for method in map(wb.make, WEIGHTS + PREMETRICS):
        for name, value in values(method).items():
            several = torch.stack([value * size for size in (0.5, 1.0, 2.0)])
            hyper = {**values(method), name: several}
            if method.family == "loss weights":
                together = method.weight(path, t, hyper)
                each = [method.weight(path, t, {**hyper, name: own}) for own in several]
            else:
                together = method.size(residual, hyper)
                each = [method.size(r, {**hyper, name: own}) for r, own in zip(residual, several, strict=True)]
            assert together.shape == (3, 20)
            torch.testing.assert_close(together, torch.stack(each))

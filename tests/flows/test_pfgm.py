"""PFGM++: the noise has the radius its paper says, the exact field is the posterior's mean, diffusion is its limit."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import integrate, stats

import workbench as wb
from workbench.flows.fields import Field
from workbench.flows.objectives import Batch, Setting
from workbench.problems.densities import Mixture
from workbench.routine import Key
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)
POINTS = torch.tensor([[1.5, 0.2], [-0.7, 1.1], [-0.9, -1.3], [0.4, -0.6], [1.0, 1.0]], dtype=torch.float64)


def noise(dim=2, extra=64.0):
    return wb.make("heavy-tailed-noise", dim=dim, extra=extra)


# ------------------------------------------------------------------------------------------------- the noise


@pytest.mark.parametrize(("dim", "extra"), [(1, 1), (2, 1), (2, 64), (64, 128), (16, 1e6)])
def test_the_radius_follows_its_law(dim, extra):
    """5,000 radii against the integral of p_r(R) ∝ R^(N-1) / (R² + r²)^((N+D)/2), r = √D: Kolmogorov's p > 1e-3."""
    radius = noise(dim, extra).sample(Key(0), 5_000, EXACT).norm(dim=-1).sort().values.numpy()
    grid = np.geomspace(radius[0] / 10, radius[-1] * 1e3, 200_001)
    log_p = (dim - 1) * np.log(grid) - (dim + extra) / 2 * np.log1p(grid**2 / extra)
    below = integrate.cumulative_trapezoid(np.exp(log_p - log_p.max()) * grid, np.log(grid), initial=0)
    found = stats.kstest(radius, lambda r: np.interp(r, grid, below / below[-1]))
    assert found.pvalue > 1e-3


def test_every_direction_is_as_likely_whatever_the_radius():
    x = noise(3, 4.0).sample(Key(1), 20_000, EXACT)
    radius = x.norm(dim=-1)
    unit = x / radius.unsqueeze(-1)
    assert (unit.mean(0).abs() < 4 * (1 / 3 / 20_000) ** 0.5).all()
    second = (unit.unsqueeze(-1) * unit.unsqueeze(-2)).mean(0)
    assert ((second - torch.eye(3) / 3).abs() < 4 * 0.3 / 20_000**0.5).all()
    assert abs(stats.spearmanr(radius, unit[:, 0].abs()).statistic) < 4 / 20_000**0.5


def test_the_density_is_the_multivariate_t_of_scipy():
    for dim, extra in ((2, 1.0), (5, 64.0), (3, 1e6)):
        x = noise(dim, extra).sample(Key(2), 20, EXACT)
        expected = stats.multivariate_t(np.zeros(dim), np.eye(dim), df=extra).logpdf(x.numpy())
        np.testing.assert_allclose(noise(dim, extra).log_density(x), expected, rtol=1e-8)
    normal = wb.make("gaussian").log_density(x[:, :2])
    np.testing.assert_allclose(noise(2, 1e7).log_density(x[:, :2]), normal, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the exact field


@pytest.mark.parametrize("extra", [1.0, 64.0])
@pytest.mark.parametrize("path", ["edm-path", "linear-path", "variance-preserving"])
def test_the_best_answer_to_data_prediction_is_the_exact_field(path, extra):
    """Σ p_k |x̂ - y_k|² over what may have led to x, p_k by scipy's density of the noise: no slope at the field's x̂.

    And its velocity is the mean of the path's own.
    """
    field = wb.exact_field(Mixture(POINTS, 0.0), path, source=noise(2, extra))
    path, objective = field.interpolant, wb.make("data-prediction")
    law = stats.multivariate_t(np.zeros(2), np.eye(2), df=extra)
    for i, t in enumerate(torch.linspace(0.05, 0.95, 9, dtype=torch.float64)):
        x = torch.hypot(path.alpha(t), path.sigma(t)) * Key(i).normal((2,), like=EXACT)
        x0 = (x - path.alpha(t) * POINTS) / path.sigma(t)
        p = torch.from_numpy(law.pdf(x0.numpy()))
        p = p / p.sum()
        setting = Setting(path, lambda t, p=p: p * len(p), lambda r: r.square().mean(-1), {})
        question = objective.question(Batch(x0, POINTS, t.expand(5), None, None), setting)
        torch.testing.assert_close(question.x, x.expand(5, 2))
        answer = field(x, t)
        data = answer.data.requires_grad_()
        (slope,) = torch.autograd.grad(question.loss(data.expand(1, 5, 2), setting), data)
        assert slope.norm() < 1e-9 * (1 + data.norm())
        mean = p @ path.velocity(x0, POINTS, t.expand(5))
        torch.testing.assert_close(answer.velocity, mean, rtol=1e-9, atol=1e-9 * float(x0.norm()))


def test_the_exact_field_fits_its_own_noise_better_than_the_normal_one_does():
    """E |x̂ - x1|² over 20,000 pairs of five points, by more than 5 standard errors, and the other way round."""
    points, errors = Mixture(POINTS, 0.0), {}
    fields = {name: wb.exact_field(points, source=source) for name, source in SOURCES.items()}
    for name, source in SOURCES.items():
        routine = wb.flow_training(source, points, "data-prediction", dtype=torch.float64, batch_size=20_000)
        assert routine.field(routine.init(Key(0))).source is routine.source
        (batch,) = routine.draw(Key(3), None)
        asked = routine.objective.question(batch, routine.setting(routine.normalise()))
        errors[name] = {by: (field(asked.x, asked.t).data - batch.x1).square().sum(-1) for by, field in fields.items()}
    for name, other in (("heavy", "normal"), ("normal", "heavy")):
        gap = errors[name][other] - errors[name][name]
        assert gap.mean() > 5 * gap.std() / len(gap) ** 0.5


SOURCES = {"heavy": wb.make("heavy-tailed-noise", extra=1.0), "normal": wb.make("gaussian")}


def trajectories(source, start, steps=40):
    field = wb.exact_field(Mixture(POINTS, 0.0), "edm-path", source=source)
    session = wb.Session(wb.sampling(field, "edm-heun", steps=steps, dtype=torch.float64), start=start)
    return torch.stack([session.step().state.x[0] for _ in range(steps)])


def test_diffusion_is_the_limit_of_many_dimensions():
    """From 300 starts: every stop at D = 10⁶ within 1e-3 of that of normal noise, at D = 1 up to more than 1 away."""
    start = 80 * wb.make("gaussian").sample(Key(4), 300, EXACT)
    plain = trajectories("gaussian", start)
    far = [float((trajectories(noise(2, extra), start) - plain).norm(dim=-1).max()) for extra in (1e6, 1.0)]
    assert far[0] < 1e-3
    assert far[1] > 1


class Noisy(Field):
    """A field whose denoiser errs by `size` times the noise level, at random."""

    def __init__(self, field, size, key):
        self.field, self.size, self.key, self.calls = field, size, key, 0
        self.dim, self.interpolant, self.source, self.target = field.dim, field.interpolant, field.source, field.target

    def known(self, x, t, rows=None):
        self.calls += 1
        error = self.size * self.interpolant.sigma(t).unsqueeze(-1) * self.key.at(self.calls).normal(x.shape, like=x)
        return {"data": self.field(x, t).data + error}


def w2_of_errors(extra, size, seed):
    """W₂ to ten points in 64 dimensions of 1,500 samples by 18 steps of EDM Heun, whose denoiser errs."""
    source = noise(64, extra) if extra else wb.make("gaussian", dim=64)
    field = wb.exact_field(wb.make("digit-images").as_points(10), "edm-path", source=source)
    start = field.interpolant.sigma_max * source.sample(Key(seed), 1_500, EXACT)
    erring = Noisy(field, size, Key(seed).stream("errors"))
    end = solve(erring, "edm-heun", x=start, steps=18)
    return math.sqrt(ot.emd2([], [], torch.cdist(end, field.target.exact.means).square().numpy()))


@pytest.mark.slow
def test_fewer_dimensions_stand_errors_of_the_denoiser_better():
    """Xu et al., section 5.3: with errors injected, W₂ grows less at D = 64 than with normal noise.

    It is so for large errors of what the denoiser answers, four times the noise level here. What errors of the noise
    level cost, in the answer or in the point it is asked at, differs by less than 8 seeds tell. 4 standard errors.
    """
    heavy, normal = (
        np.array([w2_of_errors(extra, 4.0, seed) - w2_of_errors(extra, 0.0, seed) for seed in range(8)])
        for extra in (64.0, None)
    )
    gap = normal - heavy
    assert gap.mean() > 4 * gap.std(ddof=1) / len(gap) ** 0.5
    assert heavy.mean() < 0.6 * normal.mean()


def test_the_field_is_finite_at_both_ends_and_makes_itself_again():
    field = wb.exact_field("two-moons", source="heavy-tailed-noise", points=50)
    x = noise().sample(Key(6), 40, torch.empty(0))
    for t in (0.0, 1.0):
        found = field(x, torch.tensor(t))
        assert torch.isfinite(found.velocity).all()
    torch.testing.assert_close(field(x, torch.tensor(0.0)).data, field.target.exact.means.mean(0).float().expand(40, 2))
    again = eval(field.recipe(), {"wb": wb})  # noqa: S307
    assert torch.equal(again(x, torch.tensor(0.5)).data, field(x, torch.tensor(0.5)).data)


def test_what_has_no_exact_field_from_heavy_tailed_noise_is_refused():
    with pytest.raises(ValueError, match="expected a path without latent noise from heavy-tailed noise, got 'stoch"):
        wb.exact_field("two-moons", "stochastic-path", source="heavy-tailed-noise")
    with pytest.raises(ValueError, match="expected source and target of one dimension, got 3 and 2"):
        wb.exact_field("two-moons", source=noise(3))

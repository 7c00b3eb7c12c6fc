"""Interpolants: coefficients are those of the papers, derivatives the tape's, conversions undo each other."""

import math

import pytest
import torch

import workbench as wb
from workbench.flows.fields import Prediction
from workbench.flows.interpolants import KINDS

pytestmark = pytest.mark.usefixtures("one_thread")


HERE = "tests/flows/test_interpolants.py"
INTERPOLANTS = [row.name for row in wb.catalogue("interpolants")]
PI, exp, sqrt = math.pi, math.exp, math.sqrt

# At a time t: (alpha, sigma, gamma), worked out from the equations of the papers by hand. Song et al. and Karras et al.
# count time from the data: their t is s = 1 - t.
SONG = {s: exp(-(s**2) / 4 * (20 - 0.1) - s / 2 * 0.1) for s in (0.25, 0.5, 1.0)}  # the mean of their equation 33
SOURCES = {
    "linear-path": {0.0: (0, 1, 0), 0.25: (0.25, 0.75, 0), 1.0: (1, 0, 0)},
    "trigonometric-path": {1 / 3: (0.5, sqrt(3) / 2, 0), 0.5: (sqrt(0.5), sqrt(0.5), 0), 1.0: (1, 0, 0)},
    "variance-preserving": {
        0.75: (SONG[0.25], sqrt(1 - exp(-(0.25**2) / 2 * 19.9 - 0.025)), 0),
        0.5: (SONG[0.5], sqrt(1 - exp(-(0.5**2) / 2 * 19.9 - 0.05)), 0),
        0.0: (0.006571586494, 0.999978406, 0),
    },
    "sub-variance-preserving": {
        0.75: (SONG[0.25], 1 - exp(-(0.25**2) / 2 * 19.9 - 0.025), 0),
        0.5: (SONG[0.5], 1 - exp(-(0.5**2) / 2 * 19.9 - 0.05), 0),
        0.0: (0.006571586494, 0.99995681, 0),
    },
    "variance-exploding": {1.0: (1, 0.01, 0), 0.5: (1, sqrt(0.01 * 50), 0), 0.0: (1, 50, 0)},
    "edm-path": {
        1.0: (1, 0.002, 0),
        0.5: (1, ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, 0),
        1 / 17: (1, 57.586, 0),  # the second and the sixth of the paper's 18 noise levels
        5 / 17: (1, 12.910, 0),
        0.0: (1, 80, 0),
    },
    "stochastic-path": {
        0.0: (0, 1, 0),
        0.2: (0.2, 0.8, sqrt(2 * 0.2 * 0.8)),
        0.5: (0.5, 0.5, sqrt(0.5)),
        1.0: (1, 0, 0),
    },
}


def tensor(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def draw(density, n):
    return density.sample(wb.Key(0).stream(density.name), n, tensor(0.0))


def within(path, n=101, dtype=torch.float64):
    """Times between the ends, both included."""
    first, last = path.ends
    return first + (last - first) * torch.linspace(0, 1, n, dtype=dtype)


def test_every_interpolant_with_evidence_here_has_its_numbers_here():
    assert {row.name for row in wb.catalogue("interpolants") if row.evidence.startswith(HERE)} == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_coefficients_are_those_of_the_source(name):
    path = wb.make(name)
    for t, (alpha, sigma, gamma) in SOURCES[name].items():
        relative = 1e-5 if name in ("edm-path", "variance-preserving", "sub-variance-preserving") else 1e-12
        assert path.alpha(tensor(t)).item() == pytest.approx(alpha, rel=relative, abs=1e-15)
        assert path.sigma(tensor(t)).item() == pytest.approx(sigma, rel=relative, abs=1e-15)
        assert path.gamma(tensor(t)).item() == pytest.approx(gamma, rel=relative, abs=1e-15)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("coefficient", ["alpha", "sigma", "gamma", "spread"])
def test_derivatives_are_those_of_the_tape(name, coefficient):
    path = wb.make(name)
    t = within(path)[1:-1].requires_grad_()
    value = getattr(path, coefficient)(t)
    wanted = torch.autograd.grad(value.sum(), t, allow_unused=True)[0] if value.requires_grad else None
    derivative = getattr(path, f"d_{coefficient}")(t.detach())
    torch.testing.assert_close(derivative, torch.zeros_like(derivative) if wanted is None else wanted)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_time_of_a_noise_level_is_where_that_noise_is(name, dtype):
    path = wb.make(name)
    t = within(path, dtype=dtype)
    levels = path.log_snr(t)
    assert (levels.diff() > 0).all()
    inside = torch.isfinite(levels)
    slope = (path.d_alpha(t) / path.alpha(t) - path.d_spread(t) / path.spread(t))[inside]
    allowed = torch.finfo(dtype).eps * (4 + 8 * (1 + levels[inside].abs()) / slope.abs())
    assert ((path.time_of(levels[inside]) - t[inside]).abs() <= allowed).all()
    extremes = path.time_of(torch.tensor([-math.inf, math.inf], dtype=dtype))
    torch.testing.assert_close(extremes, torch.tensor(path.ends, dtype=dtype))


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nearly_all_is_noise_at_the_first_end_and_data_at_the_last_and_rates_are_finite_there(name, dtype):
    path = wb.make(name)
    first, last = (torch.tensor(end, dtype=dtype) for end in path.ends)
    assert 0 <= first < last <= 1
    assert path.alpha(first) <= 0.021 * path.spread(first)
    assert abs(path.alpha(last) - 1) <= 2e-3
    assert path.spread(last) <= 0.05
    for t in (first, last):
        for part in ("alpha", "sigma", "gamma", "spread"):
            assert torch.isfinite(getattr(path, part)(t))
            assert torch.isfinite(getattr(path, f"d_{part}")(t))
            assert getattr(path, part)(t) >= 0


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_points_of_pairs_move_at_their_velocity(name):
    path = wb.make(name)
    key, like = wb.Key(0), tensor(0.0)
    x0, x1, z = key.normal((3, 99, 2), like=like)
    t = within(path)[1:-1].requires_grad_()
    z = z if path.latent else None
    x = path.at(x0, x1, t, z)
    columns = [torch.autograd.grad(x[:, i].sum(), t, retain_graph=True)[0] for i in range(2)]
    torch.testing.assert_close(path.velocity(x0, x1, t.detach(), z), torch.stack(columns, -1))


def predictions(path, dtype):
    """The true velocity, data, noise and score of pairs, and the points they are at."""
    key, like = wb.Key(1), tensor(0.0)
    t = path.time_of(torch.linspace(-1.5, 1.5, 201, dtype=torch.float64))  # towards the ends some say nothing of others
    x0, x1, z = key.normal((3, len(t), 2), like=like)
    z = z if path.latent else None
    x = path.at(x0, x1, t, z)
    noise = path.noise(x0, t, z)
    known = {"data": x1, "noise": noise, "score": -noise / path.spread(t).unsqueeze(-1)}
    known["velocity"] = path.d_alpha(t).unsqueeze(-1) * x1 + path.d_spread(t).unsqueeze(-1) * noise
    return x.to(dtype), t.to(dtype), {kind: value.to(dtype) for kind, value in known.items()}


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("given", KINDS)
def test_each_kind_of_prediction_gives_the_three_others(name, given):
    path = wb.make(name)
    x, t, known = predictions(path, torch.float64)
    made = Prediction(path, x, t, {given: known[given]})
    for kind in KINDS:
        torch.testing.assert_close(made[kind], known[kind], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("through", KINDS)
def test_conversions_undo_each_other_to_1e_6_in_single_precision(name, given, through):
    path = wb.make(name)
    x, t, known = predictions(path, torch.float32)
    there = Prediction(path, x, t, {given: known[given]})[through]
    back = Prediction(path, x, t, {through: there})[given]
    assert (back - known[given]).abs().max() <= 1e-6 * known[given].abs().max()


SIT = ["linear-path", "trigonometric-path", "variance-preserving"]


@pytest.mark.parametrize("name", SIT)
def test_score_and_velocity_of_an_exact_field_convert_to_1e_6(name):
    """SiT's equations: s = (alpha v - alpha' x) / (sigma (alpha' sigma - alpha sigma')), and back."""
    field = wb.exact_field("two-modes", name)
    path = field.interpolant
    t = torch.linspace(0.05, 0.95, 37, dtype=torch.float64).repeat_interleave(30)
    x = path.at(draw(field.source, len(t)), draw(field.target, len(t)), t)
    exact = field(x, t)
    assert {"velocity", "score"} <= set(exact.known)  # neither is made from the other
    score = Prediction(path, x, t, {"velocity": exact.velocity}).score
    velocity = Prediction(path, x, t, {"score": exact.score}).velocity
    a, s, da, ds = (part(t).unsqueeze(-1) for part in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
    by_paper = (a * exact.velocity - da * x) / (s * (da * s - a * ds))
    assert (score - exact.score).abs().max() <= 1e-6
    assert (by_paper - exact.score).abs().max() <= 1e-6
    assert (velocity - exact.velocity).abs().max() <= 1e-6


def lengths(target, name, n=20_000):
    """(E ∫ |v|² dt, E ∫ |v| dt) of a flow and their standard errors, at points of its marginals."""
    field = wb.exact_field(target, name)
    path = field.interpolant
    x0, x1 = draw(field.source, n), draw(field.target, n)
    first, last = path.ends
    t = first + (last - first) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    speed = (last - first) * field(path.at(x0, x1, t), t).velocity.norm(dim=-1)
    return [(value.mean(), value.std() / n**0.5) for value in (speed.square(), speed)]


@pytest.mark.parametrize("target", ["eight-gaussians", "two-modes"])
def test_the_linear_interpolant_has_the_lower_path_length_of_sit(target):
    """SiT calls E ∫ |v|² dt the path length. Lengths proper, E ∫ |v| dt, go the other way on these two targets:

    the linear interpolant draws everything together before it spreads out.
    """
    (cost, cost_error), (length, length_error) = lengths(target, "linear-path")
    (cost_of_vp, cost_error_of_vp), (length_of_vp, length_error_of_vp) = lengths(target, "variance-preserving")
    assert cost + 4 * math.hypot(cost_error, cost_error_of_vp) < cost_of_vp
    assert length > length_of_vp + 4 * math.hypot(length_error, length_error_of_vp)

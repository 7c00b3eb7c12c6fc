"""Densities: samples follow what is stated, log-density and score are the closed form's, bad input is one sentence."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import workbench as wb
from workbench.problems.densities import Density, Mixture, from_points

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)
DENSITIES = {row.name: row.make for row in wb.catalogue("densities")}
MIXTURES = [name for name, make in DENSITIES.items() if issubclass(make, Mixture)]
CORRELATED = Mixture(
    [[0.5, -1.0], [2.0, 1.0], [-1.0, 0.3]],
    [[[1.0, 0.6], [0.6, 0.8]], [[0.3, -0.1], [-0.1, 0.5]], [[0.2, 0.0], [0.0, 2.0]]],
    [3, 1, 2],
)


def draw(density, n, seed=0):
    return density.sample(wb.Key(seed).stream("test"), n, EXACT)


# ------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_have_the_stated_moments(name):
    """Mean and covariance within 4 standard errors, as the samples' own spread and fourth moments tell them."""
    density, n = wb.make(name), 40_000
    x = draw(density, n)
    mean, covariance = density.moments()
    centred = x - mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    assert ((x.mean(0) - mean).abs() < 4 * x.std(0) / math.sqrt(n)).all()
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_components_are_drawn_by_their_weights_and_have_their_own_moments(name):
    density, n = wb.make(name), 40_000
    x, k = density.sample_component(wb.Key(1), n, EXACT)
    share = k.bincount(minlength=len(density.weights)) / n
    assert ((share - density.weights).abs() <= 4 * (density.weights * (1 - density.weights) / n).sqrt()).all()
    parts = density.parts(EXACT)
    for j in range(len(density.weights)):
        own = x[k == j] - parts.means[j]
        spread = (own @ torch.linalg.inv(torch.linalg.cholesky(parts.covariances[j])).mT).square()
        assert abs(spread.mean() - 1) < 5 * math.sqrt(2 / spread.numel())


STATED = {
    # number of components, standard deviations along their axes, weights, norms of the means
    "gaussian": (1, [1.0, 1.0], 1, [0.0]),
    "eight-gaussians": (8, [0.25, 0.25], 1 / 8, [3.0] * 8),
    "gaussian-grid": (25, [0.15, 0.15], 1 / 25, [1.5 * math.hypot(i - 2, j - 2) for i in range(5) for j in range(5)]),
    "two-modes": (2, [0.3, 1.2], [0.8, 0.2], [1.5, 2.0]),
    "gaussian-spiral": (40, [0.12, 0.12], 1 / 40, [0.3 + 3 * i / 39 for i in range(40)]),
    "high-dimensional-mixture": (6, [(4 + i) / 10 for i in range(6)], [i / 21 for i in range(1, 7)], [3.0] * 6),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_preset_has_the_components_it_states(name):
    count, deviations, weights, norms = STATED[name]
    density = wb.make(name)
    parts = density.parts(EXACT)
    assert len(parts.means) == count
    np.testing.assert_allclose(density.weights, weights if isinstance(weights, list) else [weights] * count)
    np.testing.assert_allclose(parts.means.norm(dim=1), norms, atol=1e-12)
    spectra = torch.linalg.eigvalsh(parts.covariances).sqrt()
    if name == "high-dimensional-mixture":
        wanted = torch.tensor(deviations, dtype=torch.float64).unsqueeze(-1).expand(spectra.shape)
    else:
        wanted = torch.tensor(deviations, dtype=torch.float64).expand(spectra.shape)
    torch.testing.assert_close(spectra, wanted, rtol=1e-6, atol=1e-6)


def test_the_long_axes_of_the_two_modes_are_at_right_angles():
    covariances = wb.make("two-modes").exact.covariances
    long = torch.linalg.eigh(covariances).eigenvectors[:, :, 1]
    assert abs(long[0] @ long[1]) < 1e-12


def band(distance, deviation):
    """Whether distances from a curve look like normals of a standard deviation around it."""
    return distance.abs().max() < 5.5 * deviation and abs(distance.std() / deviation - 1) < 0.1


def on_two_moons(x):
    u = x / 1.7 + torch.tensor([0.5, 0.25], dtype=torch.float64)
    v = torch.tensor([1.0, 0.5], dtype=torch.float64) - u  # the lower moon, turned onto the upper one
    off = [torch.where(p[:, 1] > -0.3, p.norm(dim=1) - 1, math.inf) for p in (u, v)]
    upper = off[0].abs() < off[1].abs()
    assert abs(upper.double().mean() - 0.5) < 0.03
    assert band(1.7 * torch.where(upper, *off), 0.1)


def on_checkerboard(x):
    assert x.abs().max() < 3
    square = ((x + 3) / 1.5).floor().long()
    assert (square.sum(1) % 2 == 0).all()
    counts = (4 * square[:, 0] + square[:, 1]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    n = len(x)
    assert ((counts[counts > 0] - n / 8).abs() < 4 * math.sqrt(n * (1 / 8) * (7 / 8))).all()
    inside = ((x + 3) / 1.5) % 1
    assert ((inside.mean(0) - 0.5).abs() < 4 / math.sqrt(12 * n)).all()


def on_swiss_roll(x):
    turns = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi)
    angle = 2 * math.pi * (turns.unsqueeze(-1) + torch.arange(0, 4))
    wanted = 3.3 * angle / (4.5 * math.pi)
    wanted[(angle < 1.5 * math.pi - 0.3) | (angle > 4.5 * math.pi + 0.3)] = math.inf
    distance = (x.norm(dim=1, keepdim=True) - wanted).abs().amin(1)
    assert distance.max() < 5.5 * 0.08
    assert (x.norm(dim=1) > 3.3 / 3 - 0.5).all()
    assert abs(distance.square().mean().sqrt() / 0.08 - 1) < 0.1


def on_circles(x):
    radius = x.norm(dim=1)
    outer = radius > 2.25
    assert abs(outer.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(len(x))
    assert band(torch.where(outer, radius - 3, radius - 1.5), 0.1)
    assert (x.mean(0).abs() < 4 * 2.4 / math.sqrt(2 * len(x)) + 0.01).all()


def on_pinwheel(x):
    """Untwisting by the arm's radius leaves five straight arms of the stated widths."""
    along = (x / 2).norm(dim=1)
    angle = torch.atan2(x[:, 1], x[:, 0]) - 0.25 * torch.exp(along)
    arm = (angle / (2 * math.pi / 5)).round()
    across = along * torch.sin(angle - arm * (2 * math.pi / 5))
    usual = (along - 1).abs() < 0.6
    assert abs(along.mean() - 1) < 0.02
    assert abs(along.std() - 0.3) < 0.02
    assert (across[usual].abs() < 0.55).all()
    assert abs(across[usual].std() - 0.1) < 0.012
    counts = (arm.long() % 5).bincount(minlength=5)
    assert ((counts / len(x) - 0.2).abs() < 0.02).all()


SHAPES = {
    "two-moons": on_two_moons,
    "checkerboard": on_checkerboard,
    "swiss-roll": on_swiss_roll,
    "circles": on_circles,
    "pinwheel": on_pinwheel,
}


@pytest.mark.parametrize("name", SHAPES)
def test_samples_lie_where_the_shape_is(name):
    density = wb.make(name)
    x = draw(density, 10_000)
    SHAPES[name](x)
    assert x.abs().max() < density.reach + 1


def test_digits_are_the_real_ones_and_keep_their_labels():
    from sklearn.datasets import load_digits

    bundle = load_digits()
    density = wb.make("digit-images")
    x, labels = density.sample_labelled(wb.Key(3), 4_000, EXACT)
    assert x.min() == -1
    assert x.max() == 1
    known = {row.tobytes(): int(label) for row, label in zip(bundle.data, bundle.target, strict=True)}
    grey = ((x + 1) * 8).numpy()
    assert all(known[row.tobytes()] == label for row, label in zip(grey, labels.tolist(), strict=True))
    assert torch.equal(x, density.sample(wb.Key(3), 4_000, EXACT))
    share = labels.bincount(minlength=10) / 4_000
    wanted = torch.from_numpy(np.bincount(bundle.target) / len(bundle.target))
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / 4_000).sqrt()).all()
    assert density.classes[labels[0]] == str(int(labels[0]))


@pytest.mark.parametrize("name", DENSITIES)
def test_the_same_key_gives_the_same_samples_in_either_dtype(name):
    density = wb.make(name)
    x = draw(density, 50)
    assert x.shape == (50, density.dim)
    assert torch.equal(x, draw(density, 50))
    assert not torch.equal(x, draw(density, 50, seed=1))
    single = density.sample(wb.Key(0).stream("test"), 50, torch.empty(0))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), x, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- closed forms


def dense(density, x):
    """Σ w_k N(x; m_k, C_k) by scipy."""
    parts = density.parts(EXACT)
    rows = zip(density.weights, parts.means, parts.covariances, strict=True)
    return sum(float(w) * multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy()) for w, m, c in rows)


@pytest.mark.parametrize("density", [*MIXTURES, CORRELATED], ids=[*MIXTURES, "correlated"])
def test_log_density_is_that_of_scipy_and_the_score_its_gradient(density):
    density = wb.make(density) if isinstance(density, str) else density
    x = torch.cat([draw(density, 20), 1.5 * draw(density, 20, seed=1)]).requires_grad_()
    log_density = density.log_density(x)
    np.testing.assert_allclose(log_density.detach().exp(), dense(density, x.detach()), rtol=1e-10)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(density.score(x.detach()), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("density", [*MIXTURES, CORRELATED], ids=[*MIXTURES, "correlated"])
def test_a_plane_density_integrates_to_one(density):
    density = wb.make(density) if isinstance(density, str) else density
    if density.dim != 2:
        density = Mixture(
            density.parts(EXACT).means[:, :2], density.parts(EXACT).spectrum[:, 0].sqrt(), density.weights
        )
    side = torch.linspace(-9, 9, 181, dtype=torch.float64)
    mass = density.log_density(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert abs(mass - 1) < 1e-5


def test_covariances_and_standard_deviations_describe_the_same_mixture():
    means, scale = [[0.0, 1.0], [2.0, -1.0]], torch.tensor([0.5, 0.9], dtype=torch.float64)
    by_scale = Mixture(means, scale, [1, 2])
    by_matrix = Mixture(means, scale.square()[:, None, None] * torch.eye(2, dtype=torch.float64), [1, 2])
    x = draw(by_scale, 30)
    torch.testing.assert_close(by_scale.log_density(x), by_matrix.log_density(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_scale.score(x), by_matrix.score(x), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(by_scale.moments(), by_matrix.moments(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_points_keep_their_numbers_and_are_equally_likely():
    points = [[0.0, 1.0], [2.0, -1.5], [4.25, 3.0]]
    density = from_points(points)
    x, k = density.sample_component(wb.Key(0), 9_000, EXACT)
    assert torch.equal(x, torch.tensor(points, dtype=torch.float64)[k])
    assert ((k.bincount() / 9_000 - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / 9_000)).all()
    again = eval(density.recipe(), {"wb": wb})  # noqa: S307
    assert torch.equal(again.exact.means, density.exact.means)
    assert from_points(points, scale=0.2).log_density(torch.tensor(points)).isfinite().all()
    assert abs(density.reach - 1.15 * 4.25) < 1e-12
    some = wb.make("two-moons").as_points(40)
    twice = eval(some.recipe(), {"wb": wb})  # noqa: S307
    assert torch.equal(some.exact.means, twice.exact.means)


# ------------------------------------------------------------------------------------------------- bad input

BAD_POINTS = {
    "two points": ([[0.0, 0.0], [1.0, 1.0]], r"expected 3 to 20,000 points, got 2"),
    "none": ([], r"expected points of shape \(n, dim\), got shape \(0,\)"),
    "one column of numbers": ([0.0, 1.0, 2.0], r"expected points of shape \(n, dim\), got shape \(3,\)"),
    "words": ([["a", "b"]] * 4, r"expected points to be numbers in rows of one length, got list"),
    "ragged rows": ([[0, 0], [1, 1], [2]], r"expected points to be numbers in rows of one length, got list"),
    "nan": ([[0, 0], [1, math.nan], [2, 2]], r"expected finite points, got inf or nan in it"),
    "huge numbers": ([[0, 0], [1, 1e20], [2, 2]], r"expected points within ±1,000,000, got 1e\+20; make them smaller"),
    "too many": (np.zeros((20_001, 2)), r"expected 3 to 20,000 points, got 20,001"),
    "too wide": (np.zeros((3, 4097)), r"expected points of 1 to 4,096 coordinates, got 4,097"),
    "no width": (np.zeros((3, 0)), r"expected points of 1 to 4,096 coordinates, got 0"),
    "a word": ("eight-gaussians", r"expected points to be numbers in rows of one length, got str"),
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_points_that_cannot_be_used_are_refused_in_one_clear_sentence(case):
    points, words = BAD_POINTS[case]
    with pytest.raises(ValueError, match=f"^{words}$") as caught:
        from_points(points)
    assert "\n" not in str(caught.value)


TWO = [[0.0, 0.0], [1.0, 1.0]]
BAD_MIXTURES = {
    "flat means": (([0.0, 1.0],), r"expected means of shape \(K, dim\), got shape \(2,\)"),
    "no means": ((torch.zeros(0, 2),), r"expected means of shape \(K, dim\), got shape \(0, 2\)"),
    "nan": (([[0.0, math.nan]],), r"expected finite means, got inf or nan in it"),
    "a weight of 0": ((TWO, 1.0, [1, 0]), r"expected 2 positive weights, one a component, got \[1.0, 0.0\]"),
    "three weights": ((TWO, 1.0, [1, 1, 1]), r"expected 2 positive weights, one a component, got \[1.0, 1.0, 1.0\]"),
    "a negative scale": ((TWO, -1.0), r"expected scale to be standard deviations from 0, got -1"),
    "three scales": ((TWO, [1.0, 1.0, 1.0]), r"expected one scale or one for each of 2 components, got 3"),
    "one matrix": ((TWO, np.eye(2)), r"expected covariances of shape \(2, 2, 2\), got shape \(2, 2\)"),
    "askew": ((TWO, [[[1.0, 0.5], [0.0, 1.0]]] * 2), r"expected symmetric covariances, got one that differs .* by 0.5"),
    "saddle": ((TWO, [[[1.0, 2.0], [2.0, 1.0]]] * 2), r"expected covariances without negative eigenvalues, got -1"),
}


@pytest.mark.parametrize("case", BAD_MIXTURES)
def test_mixtures_that_do_not_exist_are_refused_in_one_clear_sentence(case):
    given, words = BAD_MIXTURES[case]
    with pytest.raises(ValueError, match=f"^{words}$"):
        Mixture(*given)


def test_points_have_no_density_and_say_so():
    with pytest.raises(ValueError, match=r"expected components with some spread .* 'scale'"):
        from_points(TWO + TWO).log_density(torch.zeros(2))
    flat = Mixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 0.0]]])
    with pytest.raises(ValueError, match="expected components with some spread in every direction"):
        flat.score(torch.zeros(2))


def test_a_density_without_a_rule_to_sample_says_so():
    with pytest.raises(NotImplementedError):
        Density().sample(wb.Key(0), 1, EXACT)

"""Fields: the exact one against brute force, its derivatives and the continuity equation; anybody's own, checked."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.flows import posteriors
from workbench.flows.fields import ExactField, FunctionField, Prediction, as_field
from workbench.flows.interpolants import KINDS
from workbench.flows.posteriors import joint_posterior
from workbench.problems.densities import Mixture
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

INTERPOLANTS = [row.name for row in wb.catalogue("interpolants")]
ROUND = Mixture([[0.0, 1.0], [2.0, -1.0]], [0.7, 0.4], [2, 1])
LONG = Mixture(
    [[-1.0, 0.5], [1.5, 0.0], [0.0, -2.0]],
    [[[1.0, 0.6], [0.6, 0.8]], [[0.3, -0.1], [-0.1, 0.5]], [[0.2, 0], [0, 2]]],
)
POINTS = Mixture([[-1.0, 0.0], [1.0, 0.5], [0.5, -1.5], [2.0, 2.0]], 0.0)
SETTINGS = {
    # source, target
    "normal to round": (Mixture.normal(2), ROUND),
    "normal to long": (Mixture.normal(2), LONG),
    "normal to points": (Mixture.normal(2), POINTS),
    "round to round": (ROUND, wb.make("eight-gaussians")),
    "round to long": (ROUND, LONG),
    "long to round": (LONG, ROUND),
    "long to long": (LONG, wb.make("two-modes")),
    "five coordinates": (Mixture.normal(5), wb.make("high-dimensional-mixture", dim=5)),
}
over_settings = pytest.mark.parametrize("setting", SETTINGS)


def exact(*shape, dtype=torch.float64):
    return torch.empty(shape, dtype=dtype)


def field_of(setting, name="linear-path"):
    source, target = SETTINGS[setting]
    return ExactField(source, target, wb.make(name))


def somewhere(field, n, seed=0, last=0.9):
    """n points of the marginals at n times away from the ends, where no component is narrower than rounding."""
    key, path = wb.Key(seed), field.interpolant
    t = 0.1 + (last - 0.1) * key.stream("t").uniform((n,), like=exact())
    x0, x1 = field.source.sample(key.stream("0"), n, exact()), field.target.sample(key.stream("1"), n, exact())
    z = key.stream("z").normal(x1.shape, like=exact()) if path.latent else None
    return path.at(x0, x1, t, z), t


# ------------------------------------------------------------------------------------------------- posteriors


def as_matrices(density):
    """The same mixture, its components given by covariances."""
    return Mixture(density.exact.means, density.exact.covariances, density.weights)


@pytest.mark.parametrize("lockstep", [True, False], ids=["one time", "times of their own"])
@pytest.mark.parametrize("dim", [2, 6])
def test_the_three_ways_to_a_posterior_agree(dim, lockstep):
    key = wb.Key(dim)
    source = Mixture(key.normal((2, dim), like=exact()), [0.5, 1.1], [1, 2])
    target = Mixture(2 * key.stream("t").normal((3, dim), like=exact()), [0.3, 0.2, 0.8], [3, 1, 1])
    x = 2 * key.stream("x").normal((40, dim), like=exact())
    t = exact(1).fill_(0.37) if lockstep else torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    weights = 1 - t, t, (2 * t * (1 - t)).sqrt()
    by_distance = joint_posterior(source, target, x, *weights)
    by_eigenbasis = joint_posterior(source, as_matrices(target), x, *weights)
    by_cholesky = joint_posterior(as_matrices(source), as_matrices(target), x, *weights)
    for one in (by_eigenbasis, by_cholesky):
        for ours, theirs in zip(one, by_distance, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@over_settings
def test_posterior_means_are_those_of_importance_sampling(setting):
    """E[x1 | x], E[x0 | x] and E[z | x] by 400,000 draws of (x1, z), each weighted by how likely its x0 is: 5 sigma."""
    source, target = SETTINGS[setting]
    n = 400_000
    path = wb.make("stochastic-path")
    field = ExactField(source, target, path)
    x, t = somewhere(field, 6, seed=3, last=0.6)
    x1 = target.sample(wb.Key(5), n, exact())
    z = wb.Key(6).normal(x1.shape, like=exact())
    for point, time in zip(x, t, strict=True):
        alpha, sigma, gamma = path.alpha(time), path.sigma(time), path.gamma(time)
        x0 = (point - alpha * x1 - gamma * z) / sigma
        w = source.log_density(x0)
        w = (w - w.max()).exp()
        found = joint_posterior(source, target, point, sigma, alpha, gamma)
        for draws, ours in ((x0, found.source), (x1, found.target), (z, found.latent)):
            mean = (w.unsqueeze(-1) * draws).sum(0) / w.sum()
            error = (w.unsqueeze(-1) * (draws - mean)).square().sum(0).sqrt() / w.sum()
            assert ((ours - mean).abs() < 5 * error + 1e-9).all()


@over_settings
def test_the_log_density_is_that_of_the_mixture_that_the_marginal_is(setting):
    """By scipy: every pair of components moves as a normal."""
    from scipy.stats import multivariate_normal

    field = field_of(setting, "stochastic-path")
    path, (x, t) = field.interpolant, somewhere(field, 5)
    for point, time in zip(x, t, strict=True):
        a, b, c = (float(part(time)) for part in (path.sigma, path.alpha, path.gamma))
        total = 0.0
        for v, m, s in zip(field.source.weights, field.source.exact.means, field.source.exact.covariances, strict=True):
            for w, k, l in zip(
                field.target.weights, field.target.exact.means, field.target.exact.covariances, strict=True
            ):
                covariance = a * a * s + b * b * l + c * c * torch.eye(field.dim, dtype=torch.float64)
                total += float(v * w) * multivariate_normal((a * m + b * k).numpy(), covariance.numpy()).pdf(
                    point.numpy()
                )
        assert float(field.log_density(point, time)) == pytest.approx(math.log(total), abs=1e-9)


@over_settings
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_score_is_the_gradient_of_the_log_density(setting, name):
    field = field_of(setting, name)
    x, t = somewhere(field, 30)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(field.log_density(leaf, t).sum(), leaf)
    torch.testing.assert_close(field(x, t).score, gradient, rtol=1e-8, atol=1e-8)


@over_settings
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_velocity_carries_the_marginals(setting, name):
    """The continuity equation, d/dt log p + div v + v · ∇ log p = 0, the derivative in t by central differences."""
    field = field_of(setting, name)
    x, t = somewhere(field, 30)
    h = 1e-5
    in_time = (field.log_density(x, t + h) - field.log_density(x, t - h)) / (2 * h)
    leaf = x.clone().requires_grad_()
    velocity = field(leaf, t).velocity
    rows = [torch.autograd.grad(velocity[:, i].sum(), leaf, retain_graph=True)[0][:, i] for i in range(field.dim)]
    moved = (velocity.detach() * field(x, t).score).sum(-1)
    terms = torch.stack([in_time, sum(rows), moved])
    assert (terms.sum(0).abs() <= 1e-6 * (1 + terms.abs().sum(0))).all()


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_field_of_points_is_the_naive_sum_over_them(name):
    """v = Σ p_i (alpha' x_i + sigma' (x - alpha x_i) / sigma), p_i ∝ exp(-|x - alpha x_i|² / 2 sigma²)."""
    path = wb.make(name)
    points = wb.make("two-moons").as_points(50)
    field = ExactField(Mixture.normal(2), points, path)
    x, t = somewhere(field, 40)
    for point, time in zip(x, t, strict=True):
        alpha, spread = float(path.alpha(time)), float(path.spread(time))
        total, mass = torch.zeros(2, dtype=torch.float64), 0.0
        nearest = min(float((point - alpha * data).square().sum()) for data in points.exact.means)
        for data in points.exact.means:
            p = math.exp(-(float((point - alpha * data).square().sum()) - nearest) / (2 * spread**2))
            total += p * (path.d_alpha(time) * data + path.d_spread(time) * (point - alpha * data) / spread)
            mass += p
        torch.testing.assert_close(field(point, time).velocity, total / mass, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------- ends, pieces, shapes


@over_settings
@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_velocities_are_finite_at_both_ends(setting, name, dtype):
    field = field_of(setting, name)
    for end, density in zip(field.interpolant.ends, (field.source, field.target), strict=True):
        x = density.sample(wb.Key(0), 50, exact(dtype=dtype))
        assert torch.isfinite(field(x, torch.tensor(end, dtype=dtype)).velocity).all()
        assert torch.isfinite(field(x + 0.3, torch.tensor(end, dtype=dtype)).velocity).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_at_the_last_time_of_points_the_data_are_the_nearest_point_and_the_source_its_mean(dtype):
    field, points = field_of("normal to points"), POINTS.exact.means.to(dtype)
    x = points + torch.tensor([0.1, -0.05], dtype=dtype)
    made = field(x, torch.tensor(1.0, dtype=dtype))
    assert float((made.data - points).abs().max()) < 1e-30  # no point weighs less than e⁻⁸⁰
    assert float((made.velocity - points).abs().max()) < 1e-30  # E[x1 | x] - E[x0]


@over_settings
@pytest.mark.parametrize("lockstep", [True, False], ids=["one time", "times of their own"])
def test_points_taken_in_pieces_are_the_same_to_rounding(setting, lockstep, monkeypatch):
    field = field_of(setting, "stochastic-path")
    x, t = somewhere(field, 101)
    t = t[0] if lockstep else t
    whole = field(x, t)
    monkeypatch.setattr(posteriors, "MOST_NUMBERS", 40)
    pieces = field(x, t)
    for kind in KINDS:
        torch.testing.assert_close(pieces[kind], whole[kind], rtol=1e-12, atol=1e-12)


@over_settings
def test_times_broadcast_to_points(setting):
    """Runs in lockstep, samples at their own times, and one time for all give what point after point gives."""
    field = field_of(setting)
    x, t = somewhere(field, 24)
    x = x.view(2, 12, field.dim)
    for times in (t[0], t[:2].view(2, 1), t.view(2, 12)):
        made = field(x, times)
        each = times.expand(2, 12)
        for run in range(2):
            for sample in range(0, 12, 5):
                alone = field(x[run, sample], each[run, sample])
                for kind in KINDS:
                    torch.testing.assert_close(made[kind][run, sample], alone[kind], rtol=1e-9, atol=1e-11)


def test_no_temporary_is_larger_than_it_should_be(monkeypatch):
    """20,000 points of data and 1,000 samples in the plane, whether times are shared or not."""
    target = wb.from_points(wb.make("two-moons").sample(wb.Key(0), 20_000, exact()))
    field = ExactField(Mixture.normal(2), target, wb.make("linear-path"))
    sizes, whole = [], posteriors._by_distance

    def watched(pairs, x, *rest):
        sizes.append(len(x) * 20_000)
        return whole(pairs, x, *rest)

    monkeypatch.setattr(posteriors, "_by_distance", watched)
    field(torch.zeros(1000, 2), 0.5)
    field(torch.zeros(1000, 2), torch.full((1000,), 0.5))
    assert max(sizes) <= posteriors.MOST_NUMBERS
    assert len(sizes) == 4


# ------------------------------------------------------------------------------------------------- somebody's own


def inward(x, t):
    return -x * t.unsqueeze(-1)


def test_a_function_is_a_velocity_and_nothing_else_unless_it_says_more():
    x, t = torch.ones(3, 2), torch.full((3,), 0.5)
    plain = as_field(inward)
    assert torch.equal(plain(x, t).velocity, -0.5 * x)
    with pytest.raises(
        ValueError, match="expected a field with an interpolant to tell its score, got one that is only v"
    ):
        plain(x, t).score  # noqa: B018
    told = as_field(inward, interpolant="linear-path")
    torch.testing.assert_close(told(x, t).score, Prediction(wb.make("linear-path"), x, t, {"velocity": -0.5 * x}).score)
    field = wb.exact_field("two-modes")
    by_data = FunctionField(lambda x, t: field(x, t).data, kind="data", interpolant=wb.make("linear-path"))
    x, t = somewhere(field, 20)
    torch.testing.assert_close(by_data(x, t).velocity, field(x, t).velocity, rtol=1e-9, atol=1e-9)


def test_a_function_is_given_a_time_for_every_point():
    seen = []
    field = as_field(lambda x, t: seen.append(t.shape) or x)
    seen.clear()  # it was tried once
    field(torch.ones(2, 5, 2), torch.full((2, 1), 0.5))
    assert seen == [(2, 5)]


WRONG = {
    "a number a point": (
        lambda x, t: x.sum(-1),
        r"expected the field to return shape \(1, 7, 2\), as its points have, got \(1, 7\)",
    ),
    "one vector": (
        lambda x, t: torch.ones(2),
        r"expected the field .* shape \(1, 7, 2\), as its points have, got \(2,\)",
    ),
    "an array": (lambda x, t: np.ones((1, 7, 2)), r"expected the field .* as its points have, got ndarray"),
    "nothing": (lambda x, t: None, r"expected the field .* as its points have, got NoneType"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_field_of_a_wrong_shape_is_said_in_one_sentence_and_the_session_stays_as_it_was(case, solver):
    function, words = WRONG[case]
    armed = []
    session = wb.Session(wb.sampling(lambda x, t: function(x, t) if armed else -x, solver, samples=7)).step(3)
    before = session.now
    armed.append(True)
    with pytest.raises(ValueError, match=f"^{words}$"):
        session.step()
    assert session.index == 3
    assert session.state is before[1]
    armed.clear()
    again = wb.Session(wb.sampling(lambda x, t: -x, solver, samples=7)).step(5)
    assert same_bits(session.step(2).state, again.state)


def test_a_field_that_is_not_finite_stops_its_run_where_it_was_and_no_other():
    def hole(x, t):
        return torch.where(t.unsqueeze(-1) * (x[..., :1, :] > 100) > 0.45, math.nan, torch.ones_like(x))

    start = torch.stack([torch.zeros(4, 2), torch.full((4, 2), 1000.0)])
    session = wb.Session(wb.sampling(hole, "euler", steps=10), start=start).step(10)
    assert session.status == ["ok", "diverged at step 5"]
    torch.testing.assert_close(session.state.x[0], torch.ones(4, 2))
    torch.testing.assert_close(session.state.x[1], torch.full((4, 2), 1000.5))
    assert session.state.t[1] == pytest.approx(0.5)


def test_a_field_of_another_dtype_does_not_change_that_of_the_samples():
    session = wb.Session(wb.sampling(lambda x, t: -x.double(), "heun", samples=3)).step(2)
    assert session.state.x.dtype == torch.float32


BAD = {
    "a number": (lambda: as_field(3), "expected a field, a density's name or a function f\\(x, t\\), got int"),
    "no such density": (lambda: as_field("eight-gausians"), ".*Did you mean 'eight-gaussians'.*"),
    "no such path": (lambda: as_field(inward, interpolant="linear"), "expected an interpolant to be one of .*"),
    "two paths": (
        lambda: as_field(wb.exact_field("gaussian"), interpolant="linear-path"),
        "expected no interpolant besides a field, which has its own, got one",
    ),
    "score of no path": (
        lambda: FunctionField(inward, kind="score"),
        "expected an interpolant with a field that predicts score, got none",
    ),
    "no such kind": (lambda: FunctionField(inward, kind="speed"), "expected a kind of prediction to be one of .*"),
    "two widths": (
        lambda: wb.exact_field("high-dimensional-mixture", source="eight-gaussians"),
        "expected source and target of one dimension, got 2 and 16",
    ),
    "a source of samples": (
        lambda: wb.exact_field("eight-gaussians", source="two-moons"),
        "expected a Gaussian mixture as the source of an exact field, got 'two-moons'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_fields_that_cannot_be_are_refused_in_one_sentence(case):
    make, words = BAD[case]
    with pytest.raises(ValueError, match=f"^{words}$"):
        make()


def test_what_no_prediction_knows_is_refused_by_name():
    x, t = torch.ones(3, 2), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match=r"expected a kind of prediction to be one of .*; got 'scores'. Did you mean"):
        wb.exact_field("two-modes")(x, t)["scores"]
    with pytest.raises(ValueError, match="expected a kind of prediction to be one of"):
        wb.make("linear-path").target("scores", x, x, t)


def test_an_exact_field_is_made_again_by_its_recipe():
    made = [
        wb.exact_field("two-modes", wb.make("variance-preserving", beta_max=15.0)),
        wb.exact_field("two-moons", points=30),
        wb.exact_field("eight-gaussians", source="two-modes"),
        wb.exact_field(wb.from_points([[0.0, 1.0], [2.0, 1.0], [1.0, -1.0]], scale=0.3), "edm-path"),
    ]
    for field in made:
        again = eval(field.recipe(), {"wb": wb})  # noqa: S307
        x, t = somewhere(field, 10)
        assert same_bits(again(x, t).velocity, field(x, t).velocity)

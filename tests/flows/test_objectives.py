"""Objectives: the best answer to each is the exact field, in closed form on a finite data set."""

import functools
import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.descent import value_and_gradient
from workbench.flows.fields import ExactField
from workbench.flows.objectives import Batch, FlowMatching, Setting
from workbench.problems.densities import Mixture
from workbench.rollout import advance
from workbench.routine import Key
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)
POINTS = torch.tensor([[1.5, 0.2], [-0.7, 1.1], [-0.9, -1.3], [0.4, -0.6], [1.0, 1.0]], dtype=torch.float64)
PATHS = [row.name for row in wb.catalogue("interpolants")]
REGRESSIONS = [
    "flow-matching",
    "alpha-deblending",
    "noise-prediction",
    "data-prediction",
    "denoising-score-matching",
    "stochastic-interpolant",
    "weighted-elbo",
]


def squared(residual):
    """The size that the papers use, divided by the dimension."""
    return residual.square().mean(-1)


@functools.cache
def finite(path):
    """The exact field from the unit normal to five points."""
    return ExactField(wb.make("gaussian"), Mixture(POINTS, 0.0), wb.make(path))


def posterior(path, x, t):
    """All (x0, x1, z) that may have led to one point x (dim,) at time t, and how probable each is.

    Given x1, noise d = x - alpha x1 = sigma x0 + gamma z is known; with a latent, z given d is normal, and two values
    one deviation to either side have its mean and variance: exact for whatever is at most quadratic in it.
    """
    alpha, sigma, gamma, spread = path.alpha(t), path.sigma(t), path.gamma(t), path.spread(t)
    d = x - alpha * POINTS
    p = torch.softmax(-(d / spread).square().sum(-1) / 2, 0)
    if not path.latent:
        return d / sigma, POINTS, None, p
    middle, deviation = gamma * d / spread**2, sigma / spread
    z = torch.cat([middle + deviation, middle - deviation])
    return (torch.cat([d, d]) - gamma * z) / sigma, torch.cat([POINTS, POINTS]), z, torch.cat([p, p]) / 2


def asked(objective, path, x, t):
    """(loss as a function of the answer at x, the exact field's own answer), squared, weighted by the posterior."""
    x0, x1, z, p = posterior(path, x, t)
    batch = Batch(x0, x1, t.expand(len(x0)), z, None)
    setting = Setting(path, lambda t: p * len(p), squared, {})
    question = objective.question(batch, setting)
    torch.testing.assert_close(question.x, x.expand_as(question.x))
    exact = finite(path.name)(x, t)
    answer = torch.cat([exact[kind] for kind in (objective.predicts, *objective.also)])
    return lambda a: question.loss(a.expand(1, len(x0), -1), setting), answer


@pytest.mark.parametrize("name", REGRESSIONS)
def test_the_best_answer_is_the_exact_field(name):
    """At 24 points and times of every interpolant the slope vanishes there, and any other answer has a larger loss."""
    objective, x = wb.make(name), 1.5 * Key(1).normal((24, 2), like=EXACT)
    for path in map(wb.make, ["linear-path"] if name == "alpha-deblending" else PATHS):
        times = path.ends[0] + (path.ends[1] - path.ends[0]) * torch.linspace(0.04, 0.96, 24, dtype=torch.float64)
        for point, t in zip(x, times, strict=True):
            if name == "weighted-elbo" and abs(float(path.log_snr(t))) > objective.reach:
                continue
            point = point * torch.hypot(path.alpha(t), path.spread(t))
            loss, answer = asked(objective, path, point, t)
            answer = answer.requires_grad_()
            (slope,) = torch.autograd.grad(loss(answer), answer)
            away = answer.detach() + 0.1 * answer.detach().norm() * torch.ones_like(answer) / len(answer) ** 0.5
            (steep,) = torch.autograd.grad(loss(away.requires_grad_()), away)
            assert slope.norm() < 1e-7 * steep.norm(), (path.name, float(t))
            assert loss(away) > loss(answer)


def test_the_best_answer_between_two_mixtures_is_the_exact_field():
    """Velocity and score of a stochastic interpolant, whose source is no normal: slopes vanish within 4.5 errors."""
    field = ExactField(wb.make("two-modes"), wb.make("eight-gaussians"), wb.make("stochastic-path"))
    objective, path = wb.make("stochastic-interpolant"), field.interpolant
    setting = Setting(path, torch.ones_like, squared, {})
    slopes = []
    for step in range(60):
        key = Key(2).at(step)
        pairs = wb.make("independent").draw(key, field.source, field.target, 400, {}, EXACT)
        t = 0.05 + 0.9 * key.stream("time").uniform((400,), like=EXACT)
        batch = Batch(*pairs[:2], t, key.stream("z").normal((400, 2), like=EXACT), None)
        mix = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        net = tilted(field, ("velocity", "score"), mix)
        slopes.append(torch.autograd.grad(objective.loss(net, None, batch, setting).sum(), mix)[0])
    slopes = torch.stack(slopes)
    error = slopes.std(0) / len(slopes) ** 0.5
    assert (slopes.mean(0).abs() < 4.5 * error).all()
    assert (error < 0.05).all()


def tilted(field, kinds, mix):
    """A net that answers as the exact field does, and a little more along given functions of x and t."""

    def net(x, t):
        exact = torch.cat([field(x, t)[kind] for kind in kinds], -1)
        columns = torch.stack([torch.ones_like(t), x[:, 0], x[:, 1] * t], -1)
        more = torch.stack([columns @ mix[:3], columns @ mix[3:]], -1)
        return (exact + more.repeat(1, len(kinds))).unsqueeze(0)

    return net


@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_of_the_conditional_loss_is_that_of_the_marginal_loss(path):
    """Of a net's 122 parameters, at 40 points: Σ_k p_k ∇|v - u_k|² = ∇|v - Σ_k p_k u_k|², with u the exact field."""
    path, small = wb.make(path), wb.make("mlp", width=8, depth=2, activation="tanh")
    training = wb.flow_training(None, "two-moons", network=small, interpolant=path, dtype=torch.float64)
    params = training.init(Key(3)).x.requires_grad_()
    times = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    points = Key(4).normal((40, 2), like=EXACT) * torch.hypot(path.alpha(times), path.spread(times)).unsqueeze(-1)
    losses = []
    for x, t in zip(points, times, strict=True):
        x0, x1, z, p = posterior(path, x, t)
        setting = Setting(path, lambda t, p=p: p * len(p), squared, {})
        batch = Batch(x0, x1, t.expand(len(x0)), z, None)
        losses.append(training.objective.loss(lambda x, t: training.net(params, x, t), None, batch, setting))
    (conditional,) = torch.autograd.grad(torch.stack(losses).mean(), params)
    exact = finite(path.name)(points, times).velocity
    marginal = (training.net(params, points, times) - exact).square().mean()
    (expected,) = torch.autograd.grad(marginal, params)
    torch.testing.assert_close(conditional, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_flow_matching_and_deblending_ask_what_their_papers_write():
    x0, x1 = Key(5).normal((7, 2), like=EXACT), Key(6).normal((7, 2), like=EXACT)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    setting = Setting(wb.make("linear-path"), torch.ones_like, squared, {})
    for name in ("flow-matching", "alpha-deblending"):
        question = wb.make(name).question(Batch(x0, x1, t, None, None), setting)
        torch.testing.assert_close(question.x, t[:, None] * x1 + (1 - t[:, None]) * x0)
        assert float(question.loss((x1 - x0).unsqueeze(0), setting)) < 1e-30
        assert float(question.loss((x1 - x0 + 1).unsqueeze(0), setting)) == pytest.approx(1)


def test_deblending_learns_what_flow_matching_learns():
    """The same seed, 30 steps: the same parameters but for rounding."""
    small = wb.make("mlp", width=16, depth=2, activation="silu")
    learned = [
        wb.Session(wb.flow_training(None, "two-moons", name, network=small, dtype=torch.float64), seed=3).step(30)
        for name in ("flow-matching", "alpha-deblending")
    ]
    torch.testing.assert_close(learned[0].state.x, learned[1].state.x, rtol=1e-9, atol=1e-9)


def test_objectives_of_straight_lines_refuse_other_paths():
    for name, title in (("alpha-deblending", "Iterative α-deblending"), ("one-step-distillation", "Distillation")):
        with pytest.raises(ValueError, match=f"expected the linear path for {title}.*, got 'edm-path'"):
            wb.flow_training(None, "two-moons", name, interpolant="edm-path")


def test_score_matching_is_noise_prediction_by_another_name():
    """|s score + noise|² with score = -noise_hat / s is |noise_hat - noise|², on every interpolant."""
    for path in map(wb.make, PATHS):
        t = path.ends[0] + (path.ends[1] - path.ends[0]) * torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        x0, x1, z = (Key(k).normal((9, 2), like=EXACT) for k in (7, 8, 9))
        batch = Batch(x0, x1, t, z if path.latent else None, None)
        setting = Setting(path, torch.ones_like, squared, {})
        guess = Key(10).normal((1, 9, 2), like=EXACT)
        noise = wb.make("noise-prediction").question(batch, setting).loss(guess, setting)
        score = (
            wb.make("denoising-score-matching").question(batch, setting).loss(-guess / path.spread(t)[:, None], setting)
        )
        torch.testing.assert_close(noise, score)


def test_the_best_answer_of_distillation_is_where_pairs_end():
    """At t = 0 the loss of v = x1 - x0 is nothing; with two stops half of the looks are at t = 1/2, on the line."""
    x0, x1 = Key(11).normal((400, 2), like=EXACT), Key(12).normal((400, 2), like=EXACT)
    t = Key(13).uniform((400,), like=EXACT)
    setting = Setting(wb.make("linear-path"), torch.ones_like, squared, {})
    for stops, looks in ((1, [0.0]), (2, [0.0, 0.5]), (4, [0.0, 0.25, 0.5, 0.75])):
        question = wb.make("one-step-distillation", stops=stops).question(Batch(x0, x1, t, None, None), setting)
        assert question.t.unique().tolist() == looks
        torch.testing.assert_close(question.x, x0 + question.t[:, None] * (x1 - x0))
        assert float(question.loss((x1 - x0).unsqueeze(0), setting)) == 0
        counts = torch.stack([(question.t == look).sum() for look in looks])
        assert (counts > 400 / len(looks) - 5 * 20).all()
    edge = Batch(x0[:1], x1[:1], torch.ones(1, dtype=torch.float64), None, None)
    assert wb.make("one-step-distillation").question(edge, setting).t.tolist() == [0.0]


# ------------------------------------------------------------------------------------------------- weighted ELBO


@functools.cache
def elbo(path, times, weight, n=2000, batches=40):
    """Estimates of L_w over |λ| ≤ 3 with the exact denoiser of two modes, one a batch of n."""
    objective, options = wb.make("weighted-elbo", reach=3.0), {"weight": weight, "dtype": torch.float64}
    routine = wb.flow_training(None, "two-modes", objective, interpolant=path, times=times, **options)
    exact, hyper = wb.exact_field("two-modes", path), routine.normalise({"batch_size": n})
    found = []
    for step in range(batches):
        (batch,) = routine.draw(Key(20).at(step), None, hyper)
        question = objective.question(batch, routine.setting(hyper))
        found.append(question.loss(exact(question.x, question.t).noise.unsqueeze(0), routine.setting(hyper)))
    return torch.cat(found)


def test_the_weighted_elbo_depends_on_the_weight_alone():
    """Four interpolants and distributions of times agree within 4 errors; another weight has another value."""
    for weight in ("no-weight", "sigmoid-weight"):
        means, errors = [], []
        for path, times in CASES:
            found = elbo(path, times, weight)
            means.append(float(found.mean()))
            errors.append(float(found.std()) / len(found) ** 0.5)
        gaps = np.abs(np.subtract.outer(means, means)) / np.hypot.outer(errors, errors)
        assert gaps.max() < 4
        assert max(np.array(errors) / means) < 0.02
    values = [float(elbo(*CASES[0], weight).mean()) for weight in ("no-weight", "sigmoid-weight")]
    assert values[1] < 0.8 * values[0]


CASES = [
    ("linear-path", "uniform-log-snr-times"),
    ("trigonometric-path", "uniform-times"),
    ("variance-preserving", "uniform-times"),
    ("edm-path", "log-normal-noise-times"),
]


@functools.cache
def noise_error(cells=60):
    """(λ in the middle of equal cells from -3 to 3, E|noise_hat - noise|² / dim there) of the exact denoiser."""
    level = torch.linspace(-3, 3, 2 * cells + 1, dtype=torch.float64)[1::2]
    x0, x1 = (wb.make(name).sample(Key(21).stream(name), 20_000, EXACT) for name in ("gaussian", "two-modes"))
    field = wb.exact_field("two-modes")

    def error(t):
        return (field(field.interpolant.at(x0, x1, t.expand(len(x0))), t).noise - x0).square().mean()

    return level, torch.stack([error(t) for t in torch.sigmoid(level)])


def test_the_weighted_elbo_is_a_weighted_integral_of_elbos():
    """L_w = ∫ w m dλ = w(3) E(3) - ∫ w' E dλ, E(λ) = ∫ m up to λ the ELBO's part; the estimate is within 5 errors."""
    level, m = noise_error()
    cell = float(level[1] - level[0])
    weighted = float((torch.sigmoid(2 - 2 * level) * m).sum() * cell)
    up_to = torch.cat([torch.zeros(1, dtype=torch.float64), (m * cell).cumsum(0)])
    edges = torch.sigmoid(2 - 2 * torch.linspace(-3, 3, len(level) + 1, dtype=torch.float64))
    by_parts = edges[-1] * up_to[-1] - (edges.diff() * (up_to[1:] + up_to[:-1]) / 2).sum()
    assert float(by_parts) == pytest.approx(weighted, rel=1e-3)
    found = elbo(*CASES[0], "sigmoid-weight")
    assert abs(float(found.mean()) - weighted) < 5 * float(found.std()) / len(found) ** 0.5 + 0.01 * weighted


def test_adaptive_times_make_the_estimate_steadier():
    """Variance of the estimate, times where the weighted loss is: below that of uniform t, and of uniform λ."""
    level, m = noise_error()
    heights = (torch.sigmoid(2 - 2 * level) * m).view(12, -1).mean(-1)
    chosen = (
        wb.make("adaptive-times", heights=heights, reach=3.0),
        wb.make("adaptive-times", reach=3.0),
        "uniform-times",
    )
    found = [elbo("linear-path", times, "sigmoid-weight") for times in chosen]
    means, variances = (np.array([float(part) for part in map(what, found)]) for what in (torch.mean, torch.var))
    assert np.ptp(means) < 5 * math.sqrt(2 * variances.max() / len(found[0]))
    assert variances[0] < 0.8 * variances[1:].min()


# ------------------------------------------------------------------------------------------------- training


def gradients(routine, runs=3):
    """(by hand, by the tape), each (loss, gradient), at the first parameters of runs of their own."""
    state, hyper = routine.init(Key((1, 2, 3)).stream("init"), runs=runs), routine.normalise()
    (batch,) = routine.draw(Key(4), state, hyper)
    taped = value_and_gradient(lambda p: routine.loss(p, state.objective, batch, hyper), state.x)
    return routine.gradient(state.x, state.objective, batch, hyper), taped


@pytest.mark.parametrize("name", [*REGRESSIONS, "one-step-distillation"])
def test_gradients_by_hand_are_those_of_the_tape(name):
    """Of every objective that asks the net once, and with every premetric, weight and interpolant."""
    small = wb.make("mlp", width=7, depth=2, activation="silu")
    made = {"network": small, "dtype": torch.float64, "batch_size": 33}
    parts = [{}, {"weight": "debiased-weight"}, {"times": "uniform-log-snr-times"}]
    parts += [{"premetric": row.name} for row in wb.catalogue("premetrics")]
    if name not in ("alpha-deblending", "one-step-distillation"):
        parts += [{"interpolant": path} for path in PATHS]
    for options in parts:
        routine = wb.flow_training(None, "two-moons", name, **options, **made)
        assert routine.net.model.by_hand
        assert routine.objective.asks_once
        found, expected = gradients(routine)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-10 * float(expected[1].abs().max()))


def test_an_objective_with_a_loss_of_its_own_is_taped():
    routine = wb.flow_training(None, "two-moons", Doubled(), network=wb.make("mlp", width=5), dtype=torch.float64)
    plain = wb.flow_training(None, "two-moons", network=wb.make("mlp", width=5), dtype=torch.float64)
    assert not routine.objective.asks_once
    found, expected = gradients(routine)[0], gradients(plain)[0]
    torch.testing.assert_close(found[0], 2 * expected[0])
    torch.testing.assert_close(found[1], 2 * expected[1])


class Doubled(FlowMatching):
    """Flow matching whose loss is written anew: twice as large."""

    def loss(self, net, old, batch, setting):
        return 2 * super().loss(net, old, batch, setting)


def test_runs_with_seeds_of_their_own_train_as_if_alone():
    """Batches, times and first weights: three seeds together are three trainings."""
    small = wb.make("mlp", width=6, depth=1, activation="tanh")
    routine = wb.flow_training(
        None, "two-moons", network=small, coupling="minibatch-ot", times="logit-normal-times", dtype=torch.float64
    )
    means, seeds = [-0.5, 0.0, 0.5], (4, 5, 6)
    together = wb.Session(routine, seed=seeds, hyper={"logit_mean": means}).step(5)
    for run, (mean, seed) in enumerate(zip(means, seeds, strict=True)):
        alone = wb.Session(routine, seed=seed, hyper={"logit_mean": mean}).step(5)
        torch.testing.assert_close(together.state.x[run], alone.state.x[0], rtol=1e-10, atol=1e-10)
    assert not torch.equal(together.state.x[0], together.state.x[1])


def test_runs_may_differ_in_every_choice_that_has_a_value():
    small = wb.make("mlp", width=6, depth=1, activation="tanh")
    for part, name in [
        *(("times", row.name) for row in wb.catalogue("time distributions")),
        *(("weight", row.name) for row in wb.catalogue("loss weights")),
        *(("premetric", row.name) for row in wb.catalogue("premetrics")),
    ]:
        routine = wb.flow_training(
            None, "two-moons", network=small, interpolant="variance-preserving", dtype=torch.float64, **{part: name}
        )
        for label, hyper in wb.make(name).hypers.items():
            if hyper.kind != "value":
                continue
            each = [hyper.default * size for size in (0.8, 1.0, 1.2)]
            together = wb.Session(routine, hyper={label: each}).step(2)
            for run, value in enumerate(each):
                alone = wb.Session(routine, hyper={label: value}).step(2)
                torch.testing.assert_close(together.state.x[run], alone.state.x[0], rtol=1e-9, atol=1e-9)


def test_hyperparameters_of_all_choices_have_names_of_their_own():
    families = ("time distributions", "loss weights", "premetrics", "couplings", "flow objectives", "optimizers")
    owners = {}
    for family in families:
        for row in wb.catalogue(family):
            for label, hyper in row.make.hypers.items():
                if hyper.kind != "init":
                    owners.setdefault(label, set()).add(family)
    shared = {label: names for label, names in owners.items() if len(names) > 1}
    assert shared == {}


def test_a_net_of_two_predictions_is_a_field_of_both():
    small = wb.make("mlp", width=6, depth=1, activation="tanh")
    routine = wb.flow_training(
        "two-modes", "eight-gaussians", "stochastic-interpolant", network=small, interpolant="stochastic-path"
    )
    state, _ = advance(routine, routine.init(Key(0)), routine.normalise(), Key(0), 0)
    field, x, t = routine.field(state), torch.randn(5, 2), torch.full((5,), 0.3)
    both = routine.net(state.x, x, t)
    prediction = field(x, t)
    assert both.shape == (1, 5, 4)
    torch.testing.assert_close(torch.cat([prediction.velocity, prediction.score], -1), both[0])
    found = wb.rollout(wb.sampling(field, "euler", steps=4, samples=9), 4)
    assert np.isfinite(found.x.values).all()


def test_a_recipe_makes_the_same_training_again():
    made = [
        wb.flow_training(None, "two-moons", "weighted-elbo", times="u-shaped-times", weight="p2-weight"),
        wb.flow_training(None, "two-moons", coupling=wb.make("entropic-ot", reg=0.2), premetric="pseudo-huber"),
        wb.flow_training(None, "two-moons", coupling=wb.make("reflow", steps=3, pool=64)),
        wb.flow_training(None, "digit-images", coupling=wb.make("data-dependent", spoil="downsample")),
        wb.flow_training(None, "eight-gaussians", coupling=wb.make("reflow", solver="euler", forward=0.5, pool=0)),
    ]
    for routine in made:
        again = eval(routine.recipe(), {"wb": wb, "torch": torch})  # noqa: S307
        states = [wb.Session(one, seed=2).step(1).state for one in (routine, again)]
        assert same_bits(*states)

"""Couplings: marginals stay, plans are the optimal ones, and what each promises of its pairs."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2, ks_2samp

import workbench as wb
from workbench.flows.couplings import choose, squared_distances
from workbench.flows.fields import FunctionField
from workbench.problems.densities import Density
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

COUPLINGS = [row.name for row in wb.catalogue("couplings")]
EXACT = torch.empty(0, dtype=torch.float64)
MATCHED = ["minibatch-ot", "stable-matching", "class-ot"]


def values(coupling, **given):
    """Hyperparameters as a routine gives them."""
    return {name: given.get(name, hyper.default) for name, hyper in coupling.hypers.items() if hyper.kind != "init"}


def draw(coupling, source, target, n, seed=0, step=0, like=EXACT, **given):
    source, target = (wb.make(d) if isinstance(d, str) else d for d in (source, target))
    key = Key(seed).at(step)
    return coupling.draw(key, coupling.base(source, target), target, n, values(coupling, **given), like)


def same_law(found, expected):
    """p-value of Hotelling's test on means, squares and products of coordinates of two samples."""

    def moments(x):
        return np.column_stack([x, x**2, x[:, :1] * x[:, 1:2], np.abs(x[:, 0]) > 1, np.abs(x[:, 1]) > 1])

    a, b = moments(found.numpy()), moments(expected.numpy())
    gap = a.mean(0) - b.mean(0)
    spread = np.cov(a.T) / len(a) + np.cov(b.T) / len(b)
    return chi2.sf(gap @ np.linalg.solve(spread, gap), len(gap))


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_coupling_keeps_both_marginals(name):
    """7,168 pairs against as many fresh samples of either density: no moment of theirs tells them apart (p > 1e-5)."""
    coupling, source, target = wb.make(name), wb.make("gaussian"), wb.make("two-modes")
    batches = [draw(coupling, source, target, 512, step=step) for step in range(14)]
    x0, x1 = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    base = coupling.base(source, target)
    for found, density in ((x0, base), (x1, target)):
        expected = density.sample(Key(99), len(found), EXACT)
        assert same_law(found, expected) > 1e-5
        assert ks_2samp(found[:, 0], expected[:, 0]).pvalue > 1e-5
        assert ks_2samp(found[:, 1], expected[:, 1]).pvalue > 1e-5


@pytest.mark.parametrize("name", COUPLINGS)
def test_every_step_draws_anew_and_both_dtypes_the_same(name):
    coupling = wb.make(name)
    first, again, next_one = (draw(coupling, "gaussian", "two-modes", 64, step=step) for step in (0, 0, 1))
    single = draw(coupling, "gaussian", "two-modes", 64, like=torch.empty(0))
    for i in (0, 1):
        assert torch.equal(first[i], again[i])
        assert not torch.equal(first[i], next_one[i])
        assert single[i].dtype == torch.float32
        torch.testing.assert_close(single[i].double(), first[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MATCHED)
def test_matched_couplings_only_reorder_what_was_drawn(name):
    independent = draw(wb.make("independent"), "gaussian", "two-moons", 100)
    matched = draw(wb.make(name), "gaussian", "two-moons", 100, group=40)
    assert torch.equal(independent[1], matched[1])
    for rows in (slice(0, 40), slice(40, 80), slice(80, 100)):
        before, after = independent[0][rows], matched[0][rows]
        assert not torch.equal(before, after)
        assert torch.equal(before[before[:, 0].argsort()], after[after[:, 0].argsort()])


@pytest.mark.parametrize("density", ["eight-gaussians", "two-moons", "high-dimensional-mixture"])
def test_the_exact_plan_is_the_cheapest_assignment(density):
    target = wb.make(density)
    source = wb.make("gaussian", dim=target.dim)
    x0, x1, _ = draw(wb.make("independent"), source, target, 150)
    cost = squared_distances(x0, x1)
    rows, columns = linear_sum_assignment(cost)
    assert np.array_equal(wb.make("minibatch-ot").match(Key(0), cost, None)[columns], rows)
    matched = draw(wb.make("minibatch-ot"), source, target, 150)
    assert torch.equal(matched[0][columns], x0[rows])


def test_the_entropic_plan_has_the_marginals_and_the_shape_of_an_optimum():
    """P = diag(u) K diag(v) with K = exp(-cost / reg): log P + cost / reg is a sum of a row's and a column's number."""
    x0, x1, _ = draw(wb.make("independent"), "gaussian", "eight-gaussians", 60)
    cost = squared_distances(x0, x1)
    plan = wb.make("entropic-ot", reg=0.1).plan(cost)
    np.testing.assert_allclose(plan.sum(0), 1 / 60, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 60, rtol=1e-6)
    potential = np.log(plan) + cost / (0.1 * cost.mean())
    additive = potential[:, :1] + potential[:1] - potential[0, 0]
    np.testing.assert_allclose(potential, additive, atol=1e-8)


def test_entropic_pairs_are_drawn_from_their_plan():
    """A 6 by 6 plan from 20,000 draws: each entry within 5 standard errors."""
    x0, x1, _ = draw(wb.make("independent"), "gaussian", "eight-gaussians", 6)
    coupling, n = wb.make("entropic-ot", reg=0.3), 20_000
    plan = coupling.plan(squared_distances(x0, x1))
    u = Key(1).uniform((6 * n,), like=EXACT).numpy()
    rows = choose(np.tile(plan, n), u).reshape(n, 6)
    share, expected = (rows[:, None, :] == np.arange(6)[:, None]).mean(0), plan / plan.sum(0)
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / n) + 1e-12).all()


def test_entropy_leads_from_the_assignment_to_independence():
    def cost(coupling):
        x0, x1, _ = draw(coupling, "gaussian", "eight-gaussians", 2_048)
        return float((x1 - x0).square().sum(-1).mean())

    costs = [cost(wb.make("entropic-ot", reg=reg)) for reg in (0.02, 0.1, 0.5, 10.0)]
    assert costs == sorted(costs)
    assert cost(wb.make("minibatch-ot")) < costs[0]
    assert abs(costs[-1] / cost(wb.make("independent")) - 1) < 0.05


def test_no_pair_of_a_stable_matching_would_rather_have_each_other():
    for density in ("eight-gaussians", "two-moons"):
        x0, x1, _ = draw(wb.make("independent"), "gaussian", density, 120)
        cost = squared_distances(x0, x1)
        row_of = wb.make("stable-matching").match(Key(0), cost, None)
        assert sorted(row_of) == list(range(120))
        own = cost[row_of, np.arange(120)]
        of_row = np.empty(120)
        of_row[row_of] = own
        assert not ((cost < own) & (cost < of_row[:, None])).any()


def test_equal_points_are_matched_too():
    cost = np.zeros((7, 7))
    for name in MATCHED:
        assert sorted(wb.make(name).match(Key(0), cost, None)) == list(range(7))
    assert wb.make("entropic-ot").match(Key(0), cost, None).shape == (7,)


def test_transport_costs_less_the_more_pairs_are_matched_at_once():
    """Groups of 1 are the independent coupling; 1, 4, 16, 64 and 256 fall strictly (8,192 pairs each)."""
    coupling, costs = wb.make("minibatch-ot"), []
    for group in (1, 4, 16, 64, 256):
        x0, x1, _ = draw(coupling, "gaussian", "eight-gaussians", 8_192, group=group)
        costs.append(float((x1 - x0).square().sum(-1).mean()))
    assert (np.diff(costs) < 0).all()
    x0, x1, _ = draw(wb.make("independent"), "gaussian", "eight-gaussians", 8_192)
    assert costs[0] == float((x1 - x0).square().sum(-1).mean())


def test_within_a_class_the_source_stays_whole():
    """Two classes left and right: plain transport gives each a half of the source, transport by class the whole."""
    target = TwoClasses()
    by_class, plain = (draw(wb.make(name), "gaussian", target, 2_048) for name in ("class-ot", "minibatch-ot"))
    fresh = Key(98).normal((2_048, 2), like=EXACT)
    for label in (0, 1):
        own = by_class[0][by_class[2] == label]
        assert ks_2samp(own[:, 0], fresh[:, 0]).pvalue > 1e-4
        assert ks_2samp(own[:, 1], fresh[:, 1]).pvalue > 1e-4
        assert ks_2samp(plain[0][plain[2] == label][:, 0], fresh[:, 0]).pvalue < 1e-50
    costs = [float((x1 - x0).square().sum(-1).mean()) for x0, x1, _ in (plain, by_class)]
    independent = draw(wb.make("independent"), "gaussian", target, 2_048)
    assert costs[0] < costs[1] < float((independent[1] - independent[0]).square().sum(-1).mean())


# ------------------------------------------------------------------------------------------------- reflow


def ends_of_a_path(x0, x1, field):
    """How far x1 is from where 400 steps of Heun's method take x0."""
    start = field.interpolant.spread(torch.tensor(field.interpolant.ends[0], dtype=torch.float64)) * x0
    routine = wb.sampling(field, "heun", steps=400, samples=len(x0), dtype=torch.float64)
    there = wb.Session(routine, start=start, budget=1).step(400).state.x[0]
    return (there - x1).norm(dim=-1)


@pytest.mark.parametrize("path", ["linear-path", "variance-preserving", "edm-path"])
def test_reflow_pairs_are_ends_of_one_path(path):
    """Whatever the interpolant of the first flow: x0 is of unit size, x1 where the flow takes it, to 0.01 at most."""
    field = wb.exact_field("two-modes", path)
    coupling = wb.make("reflow", field=field, steps=200, pool=0)
    x0, x1, labels = draw(coupling, "gaussian", "two-modes", 200)
    assert labels is None
    assert torch.equal(x0, wb.make("gaussian").sample(Key(0).stream("source"), 200, EXACT))
    assert ends_of_a_path(x0, x1, field).max() < 0.01


def test_mixed_pairs_start_at_either_end():
    """Half of them from the source's own samples, half from the data's, and all are ends of one path."""
    field = wb.exact_field("eight-gaussians")
    coupling = wb.make("mixed-reflow", field=field, steps=200, pool=0)
    x0, x1, _ = draw(coupling, "gaussian", "eight-gaussians", 200)
    given = wb.make("gaussian").sample(Key(0).stream("source"), 200, EXACT)
    data = wb.make("eight-gaussians").sample(Key(0).stream("target"), 200, EXACT)
    assert torch.equal(x0[:100], given[:100])
    assert torch.equal(x1[100:], data[100:])
    assert not torch.equal(x0[100:], given[100:])
    assert ends_of_a_path(x0, x1, field).median() < 1e-3


def test_a_pool_of_pairs_is_computed_once_and_drawn_from():
    source, target = wb.make("gaussian"), wb.make("eight-gaussians")
    field = CountedField(wb.exact_field(target))
    coupling = wb.make("reflow", field=field, solver="euler", steps=5, pool=300)
    batches = [draw(coupling, source, target, 100, step=step) for step in range(40)]
    pool = torch.unique(torch.cat([torch.cat(batch[:2], 1) for batch in batches]), dim=0)
    assert len(pool) == 300
    assert field.calls == 5
    assert not torch.equal(batches[0][0], batches[1][0])


class CountedField(FunctionField):
    """A field that counts its evaluations."""

    def __init__(self, field):
        super().__init__(lambda x, t: field(x, t).velocity, interpolant=field.interpolant, source=field.source)
        self.calls = 0

    def known(self, x, t, rows=None):
        self.calls += 1
        return super().known(x, t, rows)


def test_reflow_with_classes_takes_each_to_its_own():
    """A net that knows classes is asked for the class of each data sample, and pairs keep it."""
    target = TwoClasses()
    training = wb.flow_training(None, target, network=wb.make("mlp", width=8, depth=1), dtype=torch.float64)
    field = training.field(training.init(Key(0)))
    coupling = wb.make("reflow", field=field, solver="euler", steps=3, pool=0)
    x0, x1, labels = draw(coupling, "gaussian", target, 50)
    asked = target.sample_labelled(Key(0).stream("target"), 50, EXACT)[1]
    assert torch.equal(labels, asked)
    x, given = x0, field.given(labels)
    for t in (0, 1 / 3, 2 / 3):
        x = x + given(x, torch.full((50,), t, dtype=torch.float64)).velocity / 3
    torch.testing.assert_close(x1, x)


def test_reflow_refuses_solvers_with_noise_and_sources_it_cannot_know():
    with pytest.raises(ValueError, match="expected a field for reflow from Two moons that is no mixture, got none"):
        draw(wb.make("reflow"), "two-moons", "eight-gaussians", 8)
    with pytest.raises(ValueError, match="expected a solver to be one of"):
        wb.make("reflow", solver="eulerr")


# ------------------------------------------------------------------------------------------------- spoiled data


def test_what_a_mask_leaves_stays_and_the_rest_is_noise():
    coupling = wb.make("data-dependent", noise=0.3)
    x0, x1, labels = draw(coupling, "gaussian", "two-modes", 4_000)
    assert labels is None
    assert torch.equal(x0[:, 0], x1[:, 0])
    assert abs(float(x0[:, 1].std()) - 0.3) < 5 * 0.3 / 8_000**0.5
    assert abs(float(torch.corrcoef(torch.stack([x0[:, 1], x1[:, 1]]))[0, 1])) < 5 / 4_000**0.5
    pictures = draw(coupling, wb.make("gaussian", dim=64), "digit-images", 30)
    before, after = (part.view(30, 8, 8) for part in pictures[:2])
    assert torch.equal(before[:, :4], after[:, :4])
    assert not (before[:, 4:] == after[:, 4:]).any()
    assert pictures[2].shape == (30,)


def test_downsampled_pictures_are_means_of_blocks_and_noise():
    coupling = wb.make("data-dependent", spoil="downsample", noise=0.0)
    x0, x1, _ = draw(coupling, wb.make("gaussian", dim=64), "digit-images", 20)
    before, after = (part.view(20, 1, 8, 8) for part in (x0, x1))
    means = torch.nn.functional.avg_pool2d(after, 2)
    torch.testing.assert_close(before, torch.nn.functional.interpolate(means, scale_factor=2))
    noisy = draw(
        wb.make("data-dependent", spoil="downsample", noise=0.2), wb.make("gaussian", dim=64), "digit-images", 200
    )
    clean = draw(coupling, wb.make("gaussian", dim=64), "digit-images", 200)
    assert float((noisy[0] - clean[0]).std()) == pytest.approx(0.2, abs=5 * 0.2 / (2 * 12_800) ** 0.5)
    flat, _, _ = draw(coupling, "gaussian", "two-modes", 10)
    torch.testing.assert_close(flat[:, 0], flat[:, 1])
    with pytest.raises(ValueError, match="expected an even number of coordinates"):
        draw(coupling, wb.make("gaussian", dim=3), wb.make("high-dimensional-mixture", dim=3), 5)


def test_a_flow_from_spoiled_data_starts_at_spoiled_data():
    """The field that is learned has the law of x0 as its source, so that sampling starts where training did."""
    routine = wb.flow_training(None, "two-modes", coupling="data-dependent", network=wb.make("mlp", width=4))
    field = routine.field(routine.init(Key(0)))
    start = wb.sampling(field, "euler", samples=3_000).init(Key(1)).x[0]
    expected = draw(wb.make("data-dependent"), "gaussian", "two-modes", 3_000, seed=7)[0]
    assert same_law(start.double(), expected) > 1e-5
    assert same_law(torch.randn(3_000, 2).double(), expected) < 1e-20


class TwoClasses(Density):
    """Left and right, with the side as the class."""

    classes = ("left", "right")

    def sample_labelled(self, key, n, like):
        side = (key.stream("side").uniform((n,), like=like) < 0.5).long()
        x = 0.3 * key.stream("noise").normal((n, 2), like=like)
        return x + torch.stack([4.0 * side - 2, torch.zeros(n)], -1).to(like), side

"""Measures: closed forms, naive twins, and standard errors that are as large as what they tell of."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats

import workbench as wb
from workbench.flows import measures
from workbench.flows.fields import FunctionField
from workbench.flows.measures import Paths
from workbench.problems.densities import Mixture
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


EXACT = torch.empty(0, dtype=torch.float64)


def normal(*shape, seed=0):
    return wb.Key(seed).normal(shape, like=EXACT)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def calibrated(values, errors, truth, most=1.25):
    """Repeated estimates are right on average, within 4 standard errors, and vary as much as they say, within a fifth.

    400 repeats know a standard deviation to 3.5 per cent; the band leaves room for that and for errors being estimates.
    """
    assert len(values) >= 400
    assert abs(values.mean() - truth) < 4 * values.std() / len(values) ** 0.5
    assert 0.8 < errors.square().mean().sqrt() / values.std() < most
    assert 0.8 < errors.median() / values.std() < 1.25


def repeats(measure, n=400):
    """(values, standard errors) of measure(i) for i below n."""
    found = [measure(i) for i in range(n)]
    return torch.stack([one.value for one in found]), torch.stack([one.standard_error for one in found])


# ------------------------------------------------------------------------------------------------- 2-Wasserstein


def test_w2_in_one_coordinate_is_that_of_the_quantiles():
    a, b = normal(40, 1), 2 * normal(40, 1, seed=1) + 1
    found = measures.w2(a, b)
    assert found.standard_error is None
    assert found.value.item() == pytest.approx(np.sqrt(np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2)), rel=1e-12)
    other = normal(25, 1, seed=2)
    many = [part.repeat_interleave(n, 0) for part, n in ((a, 25), (other, 40))]
    assert measures.w2(a, other).value.item() == pytest.approx(measures.w2(*many).value.item(), rel=1e-12)


def test_w2_is_the_cheapest_of_all_pairings():
    a, b = normal(6, 2), normal(6, 2, seed=1) * 1.5 + 0.3
    costs = [(a - b[list(order)]).square().sum(1).mean() for order in itertools.permutations(range(6))]
    assert measures.w2(a, b).value.item() == pytest.approx(math.sqrt(min(costs)), rel=1e-12)


def test_w2_of_sets_of_different_sizes_is_the_linear_program():
    a, b = normal(5, 3), normal(8, 3, seed=1) + 0.5
    cost = torch.cdist(a, b).square().numpy()
    rows = np.kron(np.eye(5), np.ones(8)), np.kron(np.ones(5), np.eye(8))
    from scipy.optimize import linprog

    least = linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=[1 / 5] * 5 + [1 / 8] * 8).fun
    assert measures.w2(a, b).value.item() == pytest.approx(math.sqrt(least), rel=1e-9)
    twice = measures.w2(a.repeat(8, 1), b.repeat(5, 1)).value
    assert twice.item() == pytest.approx(math.sqrt(least), rel=1e-9)


def test_w2_between_normals_is_the_closed_form():
    """Points and where the best map between two normals takes them: the map is a gradient of a convex function, so that

    no pairing of these points is cheaper, and the mean cost is |Δm|² + tr(C + D - 2 (C^½ D C^½)^½), within 4 errors.
    """
    c, d = np.array([[1.0, 0.5], [0.5, 0.8]]), np.array([[0.5, -0.2], [-0.2, 1.5]])
    root = linalg.sqrtm(c)
    inverse = np.linalg.inv(root)
    best = torch.from_numpy(inverse @ linalg.sqrtm(root @ d @ root) @ inverse)
    x = normal(800, 2) @ torch.from_numpy(root)
    y = x @ best + torch.tensor([1.0, -0.5])
    costs = (x - y).square().sum(1)
    assert measures.w2(x, y).value.item() == pytest.approx(costs.mean().sqrt().item(), rel=1e-9)
    closed = 1.25 + np.trace(c + d - 2 * linalg.sqrtm(root @ d @ root))
    assert abs(costs.mean() - closed) < 4 * costs.std() / 800**0.5


def test_w2_refuses_more_points_than_it_can_take_and_sets_that_do_not_fit():
    with pytest.raises(
        ValueError, match="expected at most 2,000 points in each set, got 2,001; take some, or use sliced"
    ):
        measures.w2(torch.zeros(2001, 2), torch.zeros(3, 2))
    for measure in (measures.w2, measures.sliced_w2, measures.energy_distance, measures.mmd):
        with pytest.raises(
            ValueError, match=r"expected samples of shapes \(n, dim\) and \(m, dim\), got \(5, 2\) and \(5, 3\)"
        ):
            measure(torch.zeros(5, 2), torch.zeros(5, 3))
        with pytest.raises(ValueError, match=r"expected samples of shapes .* got \(0, 2\) and \(5, 2\)"):
            measure(torch.zeros(0, 2), torch.zeros(5, 2))


# ------------------------------------------------------------------------------------------------- sliced


def naive_sliced(a, b, theta):
    """Mean over directions of the squared difference of sorted projections."""
    return np.array([np.mean((np.sort(a @ t) - np.sort(b @ t)) ** 2) for t in theta.numpy()])


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_sliced_w2_is_the_naive_mean_less_what_its_control_variates_know(dim):
    a, b = normal(50, dim), 1.5 * normal(50, dim, seed=1).abs()
    theta = wb.Key(3).normal((300, dim), like=EXACT)
    theta = theta / theta.norm(dim=1, keepdim=True)
    costs = naive_sliced(a.numpy(), b.numpy(), theta)
    found = measures.sliced_w2(a, b, directions=300, key=wb.Key(3))
    shift, spread = (a.mean(0) - b.mean(0)).numpy(), np.cov(a.T, ddof=0) + np.cov(b.T, ddof=0)
    lower, upper = (theta.numpy() @ shift) ** 2, np.einsum("ij,jk,ik->i", theta, spread, theta)
    design = np.column_stack([np.ones(300), lower - shift @ shift / dim, upper - np.trace(spread) / dim])
    weights, residual, *_ = np.linalg.lstsq(design, costs, rcond=None)
    assert found.value.item() == pytest.approx(np.sqrt(weights[0]), rel=1e-10)
    error = np.sqrt(residual[0] / 297 * np.linalg.inv(design.T @ design)[0, 0]) / (2 * np.sqrt(weights[0]))
    assert found.standard_error.item() == pytest.approx(error, rel=1e-10)
    plain = costs.std(ddof=1) / np.sqrt(300) / (2 * np.sqrt(costs.mean()))
    assert found.standard_error < plain


def test_sliced_w2_is_exact_where_the_control_variates_know_everything():
    """A shift by δ: |δ| / √dim. The same points k times as large: (k - 1) (E|x|² / dim)^½."""
    a, shift = normal(100, 3), tensor([1.0, 2.0, -2.0])
    moved = measures.sliced_w2(a, a + shift)
    assert moved.value.item() == pytest.approx(3 / math.sqrt(3), rel=1e-9)
    assert moved.standard_error < 1e-9
    grown = measures.sliced_w2(a, 1.7 * a)
    assert grown.value.item() == pytest.approx(0.7 * math.sqrt(a.square().sum(1).mean() / 3), rel=1e-9)
    same = measures.sliced_w2(a, a)
    assert same.value == 0
    assert not torch.isnan(same.standard_error)


def test_sliced_w2_of_sets_of_different_sizes_repeats_their_points():
    a, b = normal(12, 4), normal(30, 4, seed=1) + 1
    whole = measures.sliced_w2(a.repeat(5, 1), b.repeat(2, 1)).value
    assert measures.sliced_w2(a, b).value.item() == pytest.approx(whole.item(), rel=1e-9)


def test_the_error_of_sliced_w2_is_what_other_directions_make_of_it():
    a, b = normal(60, 3), torch.stack([normal(60, seed=i).exp() for i in (1, 2, 3)], 1)
    theta = wb.Key(99).normal((40_000, 3), like=EXACT)
    projected = [part @ (theta / theta.norm(dim=1, keepdim=True)).T for part in (a, b)]
    truth = (projected[0].sort(0).values - projected[1].sort(0).values).square().mean().sqrt()
    calibrated(*repeats(lambda i: measures.sliced_w2(a, b, directions=100, key=wb.Key(i))), truth)


# ------------------------------------------------------------------------------------------------- energy, MMD


def naive_two_samples(a, b, kernel):
    n, m = len(a), len(b)
    of_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    of_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return of_a + of_b - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def test_energy_distance_and_mmd_are_the_naive_sums():
    a, b = normal(9, 2), normal(7, 2, seed=1) + 0.5
    energy = naive_two_samples(a, b, lambda x, y: -(x - y).norm())
    assert measures.energy_distance(a, b).value.item() == pytest.approx(float(energy), rel=1e-12)
    own = naive_two_samples(a, b, lambda x, y: torch.exp(-(x - y).square().sum() / (2 * 0.8**2)))
    assert measures.mmd(a, b, bandwidth=0.8).value.item() == pytest.approx(float(own), rel=1e-12)
    both = torch.cat([a, b])
    median = np.median([float((both[i] - both[j]).norm()) for i in range(16) for j in range(i)])
    assert "bandwidth" in measures.mmd(a, b).estimator
    torch.testing.assert_close(measures.mmd(a, b).value, measures.mmd(a, b, bandwidth=median).value, rtol=0.02, atol=0)


def naive_variance(a, b, kernel):
    """Hoeffding's decomposition of `naive_two_samples`, written out."""
    n, m = len(a), len(b)
    aa, bb, ab = (np.array([[float(kernel(x, y)) for y in ys] for x in xs]) for xs, ys in ((a, a), (b, b), (a, b)))
    rows, spread = [], []
    for square in (aa, bb):
        np.fill_diagonal(square, 0)
        size, sums = len(square), square.sum(1)
        total = 0.0
        for i, j in itertools.permutations(range(size), 2):
            inner = square[i, j] - (sums[i] + sums[j]) / (size - 2) + sums.sum() / ((size - 1) * (size - 2))
            total += inner**2 / (size * (size - 3))
        rows.append(sums / (size - 1))
        spread.append(total)
    across = ((ab - ab.mean(1)[:, None] - ab.mean(0) + ab.mean()) ** 2).sum() / ((n - 1) * (m - 1))
    first = 4 * max(0, np.var(rows[0] - ab.mean(1), ddof=1) - spread[0] / (n - 1) - across / m) / n
    second = 4 * max(0, np.var(rows[1] - ab.mean(0), ddof=1) - spread[1] / (m - 1) - across / n) / m
    return first + second + 2 * spread[0] / (n * (n - 1)) + 2 * spread[1] / (m * (m - 1)) + 4 * across / (n * m)


def test_the_error_of_two_sample_measures_is_the_decomposition_written_out():
    for shift in (0.0, 2.0):
        a, b = normal(9, 2), normal(7, 2, seed=1) + shift
        expected = naive_variance(a, b, lambda x, y: -(x - y).norm()) ** 0.5
        assert measures.energy_distance(a, b).standard_error.item() == pytest.approx(expected, rel=1e-9)


def mean_distance(shift, variance):
    """E|shift + √variance Z| on the line."""
    s = math.sqrt(variance)
    return s * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * variance)) + shift * (
        1 - 2 * stats.norm.cdf(-shift / s)
    )


TWO_NORMALS = {"apart": (0.8, 1.5), "alike": (0.0, 1.0)}


@pytest.mark.parametrize("case", TWO_NORMALS)
def test_energy_distance_between_normals_is_the_closed_form_and_its_error_is_what_repeats_show(case):
    shift, s = TWO_NORMALS[case]
    truth = 2 * mean_distance(shift, 1 + s * s) - mean_distance(0, 2) - mean_distance(0, 2 * s * s)
    found = repeats(
        lambda i: measures.energy_distance(normal(50, 1, seed=i), shift + s * normal(70, 1, seed=10_000 + i))
    )
    calibrated(*found, truth, most=1.25 if case == "apart" else 1.6)


@pytest.mark.parametrize("case", TWO_NORMALS)
def test_mmd_between_normals_is_the_closed_form_and_its_error_is_what_repeats_show(case):
    shift, s = TWO_NORMALS[case]
    dim, h = 3, 1.2

    def mean_kernel(variance, distance):
        return (h * h / (h * h + variance)) ** (dim / 2) * math.exp(-distance / (2 * (h * h + variance)))

    truth = mean_kernel(2, 0) + mean_kernel(2 * s * s, 0) - 2 * mean_kernel(1 + s * s, dim * shift**2)
    found = repeats(
        lambda i: measures.mmd(normal(50, dim, seed=i), shift + s * normal(70, dim, seed=10_000 + i), bandwidth=h)
    )
    calibrated(*found, truth)


def test_too_few_points_or_no_bandwidth_are_refused():
    with pytest.raises(ValueError, match="expected at least 4 points in each set, got 3"):
        measures.energy_distance(normal(3, 2), normal(9, 2))
    with pytest.raises(ValueError, match="expected a bandwidth above 0, got 0; are all points the same"):
        measures.mmd(torch.zeros(9, 2), torch.zeros(9, 2))


# ------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("name", ["two-modes", "eight-gaussians", "gaussian-spiral"])
def test_samples_of_a_mixture_give_its_weights_within_their_errors(name):
    """The spiral's neighbours overlap: counting samples at their nearest component would be wrong there."""
    mixture = wb.make(name)
    found = measures.mode_weights(mixture.sample(wb.Key(0), 20_000, EXACT), mixture)
    assert found.value.sum().item() == pytest.approx(1)
    assert ((found.value - mixture.weights).abs() < 4 * found.standard_error).all()


def test_where_modes_are_apart_samples_are_counted_and_the_error_is_binomial():
    mixture = Mixture([[-9.0, 0.0], [9.0, 0.0], [0.0, 30.0]], 0.5, [5, 4, 1])
    x, k = mixture.sample_component(wb.Key(0), 300, EXACT)
    found = measures.mode_weights(x, mixture)
    share = k.bincount(minlength=3) / 300
    torch.testing.assert_close(found.value, share.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.standard_error, (share * (1 - share) / 299).sqrt().double(), rtol=1e-6, atol=1e-9)


def test_points_have_no_modes_and_say_so():
    with pytest.raises(ValueError, match="expected components with some spread"):
        measures.mode_weights(normal(5, 2), wb.make("two-moons").as_points(4))


# ------------------------------------------------------------------------------------------------- paths


def constant(x, t):
    return torch.tensor([3.0, 4.0]).to(x).expand(x.shape)


def growing(x, t):
    """The straight flow x0 -> x0 + t (0.5 x0 + m): every sample at its own even speed."""
    m, t = torch.tensor([1.0, -1.0]).to(x), t.unsqueeze(-1)
    return 0.5 * (x - t * m) / (1 + 0.5 * t) + m


@pytest.mark.parametrize("flow", [constant, growing])
def test_straight_flows_have_a_straightness_of_0(flow):
    x = normal(50, 2)
    for reverse in (False, True):
        paths = measures.follow(FunctionField(flow), x, reverse=reverse)
        for known in (paths, Paths(paths.times, paths.points)):
            found = measures.straightness(known)
            assert abs(found.value) < 1e-12
            assert found.standard_error < 1e-12
    ends = measures.follow(FunctionField(flow), x)
    expected = 25.0 if flow is constant else (0.5 * x + torch.tensor([1.0, -1.0])).square().sum(1).mean().item()
    assert measures.transport_cost(ends).value.item() == pytest.approx(expected, rel=1e-9)
    assert measures.turning(ends.points).value < 1e-6


SPREAD = 0.3


def bend():
    """∫ ((s - 1) - d/dt √((1 - t)² + s² t²))² dt: what bends between a unit normal and one of standard deviation s."""

    def rate(t):
        return (SPREAD**2 * t - (1 - t)) / math.sqrt((1 - t) ** 2 + SPREAD**2 * t**2)

    return integrate.quad(lambda t: ((SPREAD - 1) - rate(t)) ** 2, 0, 1, epsabs=1e-12)[0]


@pytest.mark.parametrize("known", ["velocities", "points alone"])
def test_straightness_between_normals_is_the_closed_form(known):
    """x_t = t m + √((1 - t)² + s² t²) x0 under the exact field: S = dim times what bends, up to O(steps⁻²)."""
    field = wb.exact_field(Mixture([[2.0, -1.0, 0.5]], SPREAD))
    x = normal(300, 3)
    truth, errors = bend() * x.square().sum(1).mean(), []
    for steps in (50, 100, 200):
        paths = measures.follow(field, x, steps=steps)
        found = measures.straightness(paths if known == "velocities" else Paths(paths.times, paths.points))
        errors.append(float(found.value - truth))
    assert abs(errors[2]) < 1e-3 * truth
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, abs=0.3)
    assert abs(found.value - 3 * bend()) < 4 * found.standard_error


def test_straightness_is_the_kinetic_energy_less_the_transport_cost():
    paths = measures.follow(wb.exact_field("two-modes"), normal(100, 2), steps=400)
    squares = paths.velocities.square().sum(-1).mean(1)
    energy = torch.trapezoid(squares, paths.times)
    found = measures.straightness(paths).value + measures.transport_cost(paths).value
    assert found.item() == pytest.approx(energy.item(), rel=1e-4)


def test_straightness_does_not_depend_on_how_long_a_path_takes():
    """Twice as fast in half the time."""
    slow = measures.follow(wb.exact_field("two-modes"), normal(40, 2), steps=50)
    fast = Paths(slow.times / 2 + 0.25, slow.points, 2 * slow.velocities)
    assert measures.straightness(fast).value.item() == pytest.approx(
        measures.straightness(slow).value.item(), rel=1e-12
    )


def test_a_record_gives_the_paths_that_were_sampled():
    routine = wb.sampling("two-modes", "heun", steps=30, samples=40, dtype=torch.float64)
    record = wb.rollout(routine, 40, seed=[0, 1])
    for run in (0, 1):
        paths = measures.recorded(record, run)
        assert paths.points.shape == (31, 40, 2)
        torch.testing.assert_close(paths.times, torch.linspace(0, 1, 31, dtype=torch.float64))
        fine = measures.follow(routine.field, paths.points[0], steps=300)
        found, exact = measures.straightness(paths), measures.straightness(fine)
        assert found.value.item() == pytest.approx(exact.value.item(), rel=0.03)
    with pytest.raises(ValueError, match=r"expected a record of wb\.sampling"):
        measures.recorded(wb.rollout(wb.descent("rosenbrock", "adam"), 2))


def test_runs_are_measured_one_by_one():
    field, x = wb.exact_field("two-modes"), normal(3, 20, 2)
    together = measures.follow(field, x, steps=10)
    for run in range(3):
        alone = measures.follow(field, x[run], steps=10)
        for measure in (measures.straightness, measures.transport_cost):
            torch.testing.assert_close(measure(together).value[run], measure(alone).value)
            torch.testing.assert_close(measure(together).standard_error[run], measure(alone).standard_error)


def test_the_field_of_a_coupling_that_does_not_cross_misses_nothing():
    x0 = normal(200, 2)
    x1 = 1.5 * x0 + torch.tensor([1.0, -1.0])
    assert measures.crossing(FunctionField(growing), x0, x1, wb.Key(0)).value < 1e-20


def test_crossing_of_independent_normals_is_the_closed_form_and_its_error_is_what_repeats_show():
    """E Var(x1 - x0 | x_t) = 1 + s² - (s² t - (1 - t))² / ((1 - t)² + s² t²) in each coordinate, over t."""
    s = SPREAD

    def missed(t):
        return 1 + s**2 - (s**2 * t - (1 - t)) ** 2 / ((1 - t) ** 2 + s**2 * t**2)

    truth = 2 * integrate.quad(missed, 0, 1)[0]
    field = wb.exact_field(Mixture([[2.0, -1.0]], s))
    x0, z = normal(400, 50, 2), normal(400, 50, 2, seed=1)
    found = repeats(lambda i: measures.crossing(field, x0[i], s * z[i] + tensor([2.0, -1.0]), wb.Key(i)))
    calibrated(*found, truth)


def test_a_circle_is_curved_by_1_over_its_radius_however_unevenly_it_is_passed():
    angle = torch.cumsum(wb.Key(0).uniform((60,), like=EXACT) * 0.2 + 0.01, 0)
    circle = 2.5 * torch.stack([angle.cos(), angle.sin()], -1)
    turned = circle @ torch.linalg.qr(normal(4, 4)).Q[:2]  # in a plane of four dimensions
    for points in (circle, turned):
        torch.testing.assert_close(
            measures.curvature(points.unsqueeze(1)), torch.full((58, 1), 0.4, dtype=torch.float64)
        )
    total = measures.turning(circle.unsqueeze(1)).value
    # chords turn by half the angles before and after
    assert total.item() == pytest.approx((angle[-1] + angle[-2] - angle[1] - angle[0]).item() / 2, rel=1e-9)


def test_a_line_is_not_curved_however_unevenly_it_is_passed_nor_where_it_stands_still():
    line = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.5, 3.0], [4.0, 8.0]]).unsqueeze(1)
    assert measures.curvature(line).abs().max() < 1e-6
    assert not torch.isnan(measures.curvature(line)).any()
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]).unsqueeze(1)
    assert measures.turning(corner).value.item() == pytest.approx(math.pi / 2)
    assert measures.curvature(corner).item() == pytest.approx(2 / math.sqrt(5))
    back = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).unsqueeze(1)
    assert measures.turning(back).value.item() == pytest.approx(math.pi)


def test_paths_of_a_flow_are_curved_as_its_derivatives_say():
    """κ = |x'' - (x''·u) u| / |x'|² with u along x', by the tape, against points 1/400 apart."""
    field = wb.exact_field("two-modes")
    paths = measures.follow(field, normal(20, 2), steps=400)
    at = 200
    x, t = paths.points[at].clone().requires_grad_(), paths.times[at].clone().requires_grad_()
    v = field(x, t).velocity
    rows = [torch.autograd.grad(v[:, i].sum(), (x, t), retain_graph=True) for i in range(2)]
    jacobian = torch.stack([row[0] for row in rows], 1)
    h = 1e-6
    in_time = (field(x.detach(), t.detach() + h).velocity - field(x.detach(), t.detach() - h).velocity) / (2 * h)
    v = v.detach()
    force = in_time + (jacobian @ v.unsqueeze(-1)).squeeze(-1)
    along = (force * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True)
    expected = (force - along * v).norm(dim=-1) / v.square().sum(-1)
    torch.testing.assert_close(measures.curvature(paths.points)[at - 1], expected, rtol=5e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------- references


MATRIX = tensor([[-1.0, 2.0], [-3.0, 0.5]])


def linear(x, t):
    return x @ MATRIX.to(x).T


def test_a_fine_solution_of_a_linear_flow_is_the_matrix_exponential_and_knows_its_error():
    x = normal(4, 5, 2)
    times = torch.linspace(0, 2, 20, dtype=torch.float64).view(4, 5)  # every sample to a time of its own
    found, error = measures.solve_to(FunctionField(linear), x, torch.zeros(4, 1, dtype=torch.float64), times)
    exact = (torch.linalg.matrix_exp(times[..., None, None] * MATRIX) @ x.unsqueeze(-1)).squeeze(-1)
    off = (found - exact).norm(dim=-1).max()
    assert off < 1e-7
    assert off <= 1.5 * error
    assert error <= 1e-7 * x.abs().max()
    rough, told = measures.solve_to(
        FunctionField(linear), x, torch.zeros(4, 1, dtype=torch.float64), times, tolerance=1e-3
    )
    assert off < (rough - exact).norm(dim=-1).max() <= 1.5 * told


def test_a_flow_too_fast_for_the_steps_there_are_says_how_far_off_it_is():
    """Five turns around the origin."""
    zero, one = tensor([[0.0]]), tensor([[1.0]])
    turning = FunctionField(lambda x, t: 10 * math.pi * torch.stack([-x[..., 1], x[..., 0]], -1))
    start = tensor([[[1.0, 0.0]]])
    found, error = measures.solve_to(turning, start, zero, one)
    assert error > 1e-6
    assert 0.5 * error < (found - start).norm() < 1.5 * error


@pytest.mark.parametrize("name", ["linear-path", "variance-preserving", "edm-path"])
def test_a_reference_is_the_solution_of_scipy(name):
    routine = wb.sampling("eight-gaussians", "euler", steps=10, samples=3, interpolant=name, dtype=torch.float64)
    session = wb.Session(routine)
    stops = routine.times(routine.normalise(), session.state.x)
    found = measures.reference(routine, session.state, stops)
    assert torch.equal(found.points[0], session.state.x)
    solved = integrate.solve_ivp(
        lambda t, x: routine.field(torch.from_numpy(x), tensor(t)).velocity.numpy(),
        (float(stops[0]), float(stops[-1])),
        session.state.x[0, 0].numpy(),
        method="DOP853",
        t_eval=stops.numpy(),
        rtol=1e-9,
        atol=1e-9,
    )
    np.testing.assert_allclose(found.points[:, 0, 0], solved.y.T, rtol=2e-6, atol=2e-6)
    assert found.error[0] == 0
    assert (found.error.diff() >= 0).all()


def test_a_reference_in_reverse_leads_back():
    routine = wb.sampling("two-modes", "heun", steps=5, samples=10, reverse=True, dtype=torch.float64)
    state = wb.Session(routine).state
    there = measures.reference(routine, state, [1.0, 0.5, 0.0])
    forth, _ = measures.solve_to(routine.field, there.points[-1], tensor([[0.0]]), tensor([[1.0]]))
    assert (forth - state.x).abs().max() < 1e-6


def test_the_distance_to_the_reference_falls_with_the_order_of_the_solver():
    for solver, order in (("euler", 1), ("heun", 2)):
        found = []
        for steps in (30, 60):
            session = wb.Session(wb.sampling("two-modes", solver, steps=steps, samples=20, dtype=torch.float64))
            routine, start = session.routine, session.state
            assert measures.distance_to_reference(routine, start, start).value == 0
            found.append(measures.distance_to_reference(routine, start, session.step(steps).state, tolerance=1e-6))
        assert torch.log2(found[0].value / found[1].value).item() == pytest.approx(order, abs=0.25)
        assert found[0].value.shape == found[0].standard_error.shape == (1,)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_local_error_of_a_step_is_the_closed_form(solver):
    """dx/dt = x: a step of h takes x to x (1 + h) or x (1 + h + h²/2), the flow to x exp(h)."""
    routine = wb.sampling(lambda x, t: x, solver, samples=7, dtype=torch.float64)
    state = wb.Session(routine, seed=[0, 1]).step(2).state
    for steps in (20, 50):
        h = 1 / steps
        begun = state if steps == 20 else wb.Session(routine, seed=[0, 1], hyper={"steps": 50}).step(5).state
        found = measures.local_error(routine, begun, {"steps": steps})
        made = 1 + h if solver == "euler" else 1 + h + h * h / 2
        expected = begun.x.norm(dim=-1).mean(-1) * (math.exp(h) - made)
        torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=0)


def test_a_step_that_draws_noise_has_no_local_error():
    from workbench.samplers.explicit import Euler

    class Noisy(Euler):
        random = True

    routine = wb.sampling(linear, Noisy(), samples=3)
    with pytest.raises(ValueError, match="expected a solver of an ODE, whose steps have an error, got Euler"):
        measures.local_error(routine, wb.Session(routine).state)


# ------------------------------------------------------------------------------------------------- likelihood

PATHS = [row.name for row in wb.catalogue("interpolants")]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("target", ["two-modes", "eight-gaussians"])
def test_the_likelihood_of_an_exact_flow_is_the_closed_form_to_1e_3(name, target):
    """Of the probability-flow ODE: log p at the last time of the interpolant."""
    field = wb.exact_field(target, name)
    x = field.target.sample(wb.Key(0), 10, EXACT)
    found = measures.log_likelihood(field, x, steps=60)
    last = tensor(field.interpolant.ends[1])
    exact = field.log_density(x, last)
    assert (found.value - exact).abs().max() < 1e-3
    assert found.standard_error is None


def test_the_likelihood_in_sixteen_coordinates_is_the_closed_form_to_1e_3():
    field = wb.exact_field("high-dimensional-mixture")
    x = field.target.sample(wb.Key(0), 10, EXACT)
    found = measures.log_likelihood(field, x, steps=40)
    assert (found.value - field.target.log_density(x)).abs().max() < 1e-3


def test_the_likelihood_of_a_linear_flow_is_that_of_a_normal():
    """x -> exp(A) x: log N(exp(-A) x; 0, I) - tr A, of a velocity of no known origin."""
    x = normal(20, 2)
    found = measures.log_likelihood(FunctionField(linear), x)
    back = x @ torch.linalg.matrix_exp(-MATRIX).T
    expected = stats.multivariate_normal(np.zeros(2)).logpdf(back.numpy()) - float(MATRIX.trace())
    np.testing.assert_allclose(found.value, expected, atol=1e-6)
    given = measures.log_likelihood(FunctionField(linear), x, start=lambda x: torch.zeros(len(x), dtype=torch.float64))
    np.testing.assert_allclose(given.value, -float(MATRIX.trace()), atol=1e-9)


def test_a_flow_whose_marginals_are_not_known_begins_at_its_source_times_its_spread():
    """At noise level 80 the marginal is the normal of that size to 1 part in 1,000."""
    exact = wb.exact_field("eight-gaussians", "edm-path")
    field = FunctionField(lambda x, t: exact(x, t).velocity, interpolant=exact.interpolant)
    x = exact.target.sample(wb.Key(0), 10, EXACT)
    ways = [measures.log_likelihood(one, x, steps=40).value for one in (field, exact)]
    assert (ways[0] - ways[1]).abs().max() < 0.01


def test_hutchinsons_trace_is_right_on_average_and_its_error_is_what_repeats_show():
    """400 copies of a point: each has draws of its own."""
    field = wb.exact_field("high-dimensional-mixture")
    for point in field.target.sample(wb.Key(0), 3, EXACT):
        exact = measures.log_likelihood(field, point.unsqueeze(0), steps=4, trace="exact").value[0]
        found = measures.log_likelihood(field, point.expand(400, 16), steps=4, trace="hutchinson", draws=12)
        calibrated(found.value, found.standard_error, exact)


def test_hutchinsons_trace_is_exact_where_coordinates_do_not_mix():
    x = normal(5, 3)
    rates = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    field = FunctionField(lambda x, t: x * rates, dim=3)
    ways = [measures.log_likelihood(field, x, trace=trace) for trace in ("exact", "hutchinson")]
    torch.testing.assert_close(ways[0].value, ways[1].value)
    assert ways[1].standard_error.max() < 1e-12
    with pytest.raises(ValueError, match="expected a trace to be one of exact, hutchinson; got 'Hutchinson'"):
        measures.log_likelihood(field, x, trace="Hutchinson")


def learned(steps=60):
    small = wb.make("mlp", width=16, depth=2, activation="tanh")
    routine = wb.flow_training(None, "two-modes", network=small, batch_size=128)
    return wb.Session(routine, hyper={"lr": [0.02, 0.005]}).step(steps)


def test_what_a_net_has_learned_integrates_to_one():
    field = wb.trained_field(learned())
    side = torch.linspace(-7, 7, 71)
    grid = torch.cartesian_prod(side, side)
    density = measures.log_likelihood(field, grid, steps=40).value.exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=2e-3)


# ------------------------------------------------------------------------------------------------- probes


def test_probes_of_a_sampling_are_the_measures_against_fixed_samples_of_the_target():
    routine = wb.sampling("two-modes", "heun", steps=4, samples=60)
    record = wb.rollout(routine, 4, seed=[3, 4], probes=tuple(routine.probes))
    wanted = routine.field.target.sample(wb.Key(0).stream("reference"), 60, torch.empty(0))
    for name, measure in {
        "w2": measures.w2,
        "sliced": measures.sliced_w2,
        "energy": measures.energy_distance,
        "mmd": measures.mmd,
    }.items():
        assert record[name].dims == ("run", "step")
        assert record[name].attrs["long_name"]
        for run, step in ((0, 0), (1, 4)):
            found = measure(torch.from_numpy(record.x.values[run, step]), wanted)
            assert record[name].values[run, step] == pytest.approx(float(found.value), rel=1e-5, abs=1e-6)
            if name != "w2":
                assert record[f"{name}_error"].values[run, step] == pytest.approx(float(found.standard_error), rel=1e-4)
        assert (record[name].values[:, -1] < record[name].values[:, 0]).all()
    assert record.mode_weight.dims == ("run", "step", "mode")
    weights, error = record.mode_weight.values[:, -1], record.mode_weight_error.values[:, -1]
    assert (np.abs(weights - [0.8, 0.2]) < 4 * error).all()
    assert "w2_error" not in record


def test_a_probe_changes_nothing_and_gives_the_same_bits_again():
    routine = wb.sampling("two-modes", "heun", steps=4, samples=30)
    plain = wb.Session(routine).step(4)
    session = wb.Session(routine, probes=("sliced", "energy")).step(4)
    records = [session.record(), session.back(2).step(2).record()]
    assert same_bits(session.state, plain.state)
    assert np.array_equal(records[0].sliced, records[1].sliced)
    assert np.array_equal(records[0].energy_error, records[1].energy_error)


def test_going_back_samples_are_compared_with_the_source():
    routine = wb.sampling("two-modes", "heun", steps=30, samples=400, reverse=True, interpolant="edm-path")
    record = wb.rollout(routine, 30, probes=("sliced",), every=30)
    assert record.sliced.values[0, 0] > 70
    assert record.sliced.values[0, 1] < 8  # of a normal of standard deviation 80


def test_where_samples_are_bound_for_is_not_always_known():
    assert wb.sampling(lambda x, t: -x).probes == {}
    assert "modes" not in wb.sampling("two-moons").probes
    with pytest.raises(ValueError, match="expected a probe to be one of"):
        wb.rollout(wb.sampling("two-moons"), 1, probes=("modes",))


def test_solvers_side_by_side_have_the_probes_they_share():
    parts = {name: wb.sampling("two-modes", name, steps=4, samples=50) for name in ("euler", "heun")}
    record = wb.rollout(wb.side_by_side(parts), 4, probes=("energy", "modes"))
    for run, part in enumerate(parts.values()):
        alone = wb.rollout(part, 4, probes=("energy",))
        np.testing.assert_allclose(record.energy.values[run], alone.energy.values[0], rtol=1e-6)
    assert record.mode_weight.shape == (2, 5, 2)


def test_the_error_of_a_run_is_a_probe_of_its_start():
    routine = wb.sampling("two-modes", "euler", steps=10, samples=20)
    start = wb.Session(routine).state
    record = wb.rollout(routine, 10, probes=(measures.reference_probe(start),), every=5)
    assert record.error.values[0, 0] == 0
    state = wb.Session(routine).step(10).state
    found = measures.distance_to_reference(routine, start, state)
    assert record.error.values[0, 2] == pytest.approx(float(found.value[0]), rel=1e-5)
    assert record.error_error.values[0, 2] == pytest.approx(float(found.standard_error[0]), rel=1e-5)


def test_probes_of_a_training_are_of_the_flow_learned_so_far():
    session = learned()
    routine, state = session.routine, session.state
    found = {name: probe.measure(routine, state) for name, probe in routine.probes.items()}
    assert set(found) == {"w2", "sliced", "energy", "mmd", "modes", "straightness", "likelihood"}
    starts = routine.source.sample(wb.Key(0).stream("reference").stream("starts"), 1000, state.x)
    for run in (0, 1):
        field = routine.field(state, run)
        paths = measures.follow(field, starts, steps=32)
        assert found["straightness"]["straightness"][run] == pytest.approx(
            float(measures.straightness(paths).value), rel=1e-5
        )
        wanted = routine.target.sample(wb.Key(0).stream("reference"), 1000, state.x)
        w2 = measures.w2(paths.points[-1], wanted).value
        assert found["w2"]["w2"][run] == pytest.approx(float(w2), rel=1e-5)
        data = routine.target.sample(wb.Key(0).stream("reference").stream("held"), 200, state.x)
        likelihood = measures.log_likelihood(field, data, steps=32).value
        assert found["likelihood"]["log_likelihood"][run] == pytest.approx(float(likelihood.mean()), rel=1e-5)
        error = float(likelihood.std()) / 200**0.5
        assert found["likelihood"]["log_likelihood_error"][run] == pytest.approx(error, rel=1e-4)
    begun = routine.probes["likelihood"].measure(routine, wb.Session(routine, hyper={"lr": [0.02, 0.005]}).state)
    assert (found["likelihood"]["log_likelihood"] > begun["log_likelihood"] + 0.8).all()
    record = wb.rollout(routine, 2, probes=("straightness", "modes"), every=2)
    assert record.straightness.dims == ("run", "step")
    assert record.mode_weight.dims == ("run", "step", "mode")

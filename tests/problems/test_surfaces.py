import functools
import math

import numpy as np
import pytest
import torch

from workbench.catalogue import catalogue, make
from workbench.routine import Key

f64 = functools.partial(torch.tensor, dtype=torch.float64)
CLASSES = {row.name: row.make for row in catalogue("surfaces")}
CASES = {name: {} for name in CLASSES} | {
    f"{name}-{dim}d": {"dim": dim} for name, cls in CLASSES.items() for dim in (3, 5) if "dim" in cls.hypers
}
each_case = pytest.mark.parametrize("case", CASES)


def surface(case):
    settings = CASES[case]
    return make(case.removesuffix(f"-{settings.get('dim')}d"), **settings)


def sampled(objective, count, seed=0):
    """Points spread over the domain, (dim, count), float64."""
    low, high = np.array(objective.domain).T
    points = np.random.default_rng(seed).uniform(low[:, None], high[:, None], (objective.dim, count))
    return torch.from_numpy(points)


def gradient(objective, x):
    return torch.func.grad(lambda p: objective(p).sum())(x)


def as_points(points):
    return [f64(point) for point in points]


def hessian(objective, point):
    return torch.func.jacrev(torch.func.grad(objective))(point)


def curvatures(objective, point):
    return torch.linalg.eigvalsh(hessian(objective, point))


# ------------------------------------------------------------------- the formulas once more, one number at a time


def quadratic(x, condition, angle):
    n, turn = len(x), math.radians(angle)
    basis = [[float(i == j) for j in range(n)] for i in range(n)]
    basis[0][:2], basis[1][:2] = [math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]
    order = [0, n - 1, *range(1, n - 1)]
    lengths = [sum(b * v for b, v in zip(row, x, strict=True)) for row in basis]
    return sum(0.5 * condition ** (k / (n - 1)) * s * s for k, s in zip(order, lengths, strict=True))


def rosenbrock(x):
    return sum(100 * (x[i + 1] - x[i] ** 2) ** 2 + (1 - x[i]) ** 2 for i in range(len(x) - 1))


def beale(x):
    return sum((c - x[0] * (1 - x[1] ** k)) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def scalar_net(w):
    return 0.5 * (math.prod(w) - 1) ** 2


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def goldstein_price(point):
    x, y = point
    a = 19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2
    b = 18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2
    return (1 + (x + y + 1) ** 2 * a) * (30 + (2 * x - 3 * y) ** 2 * b)


def three_hump_camel(x):
    return 2 * x[0] ** 2 - 1.05 * x[0] ** 4 + x[0] ** 6 / 6 + x[0] * x[1] + x[1] ** 2


def styblinski_tang(x):
    return 0.5 * sum(v**4 - 16 * v**2 + 5 * v for v in x)


def rastrigin(x):
    return 10 * len(x) + sum(v**2 - 10 * math.cos(2 * math.pi * v) for v in x)


def ackley(x):
    n = len(x)
    root = math.sqrt(sum(v**2 for v in x) / n)
    return -20 * math.exp(-0.2 * root) - math.exp(sum(math.cos(2 * math.pi * v) for v in x) / n) + 20 + math.e


def levy(x):
    w = [1 + (v - 1) / 4 for v in x]
    first, last = math.sin(math.pi * w[0]) ** 2, (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return first + sum((v - 1) ** 2 * (1 + 10 * math.sin(math.pi * v + 1) ** 2) for v in w[:-1]) + last


def muller_brown(point):
    x, y = point
    heights, a, b, c = (-200, -100, -170, 15), (-1, -1, -6.5, 0.7), (0, 0, 11, 0.6), (-10, -10, -6.5, 0.7)
    centres = ((1, 0), (0, 0.5), (-0.5, 1.5), (-1, 1))
    return sum(
        heights[k] * math.exp(a[k] * (x - p) ** 2 + b[k] * (x - p) * (y - q) + c[k] * (y - q) ** 2)
        for k, (p, q) in enumerate(centres)
    )


TWINS = {
    "quadratic": lambda x: quadratic(x, 20, 30),
    "noisy-ravine": lambda x: quadratic(x, 50, 0),
    "rosenbrock": rosenbrock,
    "beale": beale,
    "monkey-saddle": lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2,
    "scalar-net": scalar_net,
    "himmelblau": himmelblau,
    "goldstein-price": goldstein_price,
    "three-hump-camel": three_hump_camel,
    "styblinski-tang": styblinski_tang,
    "rastrigin": rastrigin,
    "ackley": ackley,
    "levy": levy,
    "muller-brown": muller_brown,
}


@each_case
def test_formula_equals_the_one_written_out_by_hand(case):
    objective = surface(case)
    points = sampled(objective, 200)
    expected = [TWINS[objective.name](column) for column in points.T.tolist()]
    torch.testing.assert_close(objective(points), f64(expected), rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------- the stated facts


@each_case
def test_minima_have_the_stated_value_and_no_gradient(case):
    objective = surface(case)
    assert bool(objective.minima) == (objective.minimum is not None)
    for point in as_points(objective.minima):
        assert objective(point).item() == pytest.approx(objective.minimum, rel=1e-12, abs=1e-12)
        slope = gradient(objective, point)
        steepest = 1.0 if objective.kink else curvatures(objective, point)[-1]
        assert slope.abs().max() <= 1e-11 * steepest


@each_case
def test_curvature_is_nowhere_negative_at_the_minima(case):
    objective = surface(case)
    if objective.kink:  # no Hessian: see the test of the cone
        return
    for point in as_points((*objective.minima, *objective.local_minima)):
        found = curvatures(objective, point)
        assert found[0] >= -1e-12 * found[-1]
        assert found[-1] > 0


@each_case
def test_no_point_of_the_domain_lies_below_the_minimum(case):
    objective = surface(case)
    values = objective(sampled(objective, 5000, seed=1))
    assert values.isfinite().all()
    if objective.minimum is not None:
        assert values.min() >= objective.minimum
    else:
        further = objective(100 * sampled(objective, 5000, seed=1))
        assert further.min() < 1e5 * values.min() < 0


@each_case
def test_other_stationary_points_are_what_they_are_called(case):
    objective = surface(case)
    ring = torch.from_numpy(np.random.default_rng(2).standard_normal((objective.dim, 2000)))
    ring *= 0.1 / ring.norm(dim=0)
    for point in as_points((*objective.local_minima, *objective.saddles)):
        slope, found = gradient(objective, point), curvatures(objective, point)
        assert slope.abs().max() <= 1e-11 * found.abs().max().clamp(min=1e-3)
        around = objective(point[:, None] + ring) - objective(point)
        assert around.max() > 0
        assert (around.min() < 0) == (tuple(point.tolist()) in objective.saddles)
        if objective.minimum is not None:
            assert objective(point) > objective.minimum


@each_case
def test_start_minima_and_saddles_lie_in_the_domain(case):
    objective = surface(case)
    assert len(objective.domain) == len(objective.dims) == objective.dim
    for point in (objective.start, *objective.minima, *objective.local_minima, *objective.saddles):
        assert len(point) == objective.dim
        assert all(low <= v <= high for v, (low, high) in zip(point, objective.domain, strict=True))
    slope = gradient(objective, f64(objective.start))
    assert slope.isfinite().all()
    assert slope.norm() > 1e-3, "a start from which descent does not move"


# --------------------------------------------------------------------------------------------- the contract


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_points_at_once_equal_one_at_a_time(case, dtype):
    objective = surface(case)
    points = sampled(objective, 12).to(dtype)
    together = objective(points.reshape(-1, 3, 4))
    alone = torch.stack([objective(points[:, i]) for i in range(12)]).reshape(3, 4)
    assert together.shape == (3, 4)
    assert together.dtype == dtype
    torch.testing.assert_close(together, alone, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@each_case
def test_gradient_equals_finite_differences(case):
    objective = surface(case)
    points, h = sampled(objective, 50, seed=3), 1e-5
    slope = gradient(objective, points)
    nudges = h * torch.eye(objective.dim, dtype=torch.float64)[:, :, None]
    expected = torch.stack([(objective(points + n) - objective(points - n)) / (2 * h) for n in nudges])
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6 * slope.abs().max().item())


@each_case
def test_value_and_gradient_need_nothing_from_the_host(case):
    objective = surface(case)
    points = torch.empty(objective.dim, 7, device="meta", requires_grad=True)
    loss = objective(points)
    (slope,) = torch.autograd.grad(loss.sum(), points)
    assert (loss.device.type, slope.device.type) == ("meta", "meta")
    assert (loss.shape, slope.shape) == ((7,), (objective.dim, 7))


@pytest.mark.parametrize("case", CLASSES)
def test_compiles_without_a_graph_break(case):
    objective = surface(case)
    points = sampled(objective, 5)

    def value_and_gradient(x):
        slope, value = torch.func.grad(lambda p: ((v := objective(p)).sum(), v), has_aux=True)(x)
        return value, slope

    torch.compiler.reset()
    compiled = torch.compile(value_and_gradient, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(points), value_and_gradient(points), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------- what single surfaces promise


@pytest.mark.parametrize("name", ["quadratic", "noisy-ravine"])
@pytest.mark.parametrize(("condition", "angle", "dim"), [(1, 10, 2), (7.5, -30, 2), (1e4, 77, 2), (300, 45, 5)])
def test_quadratic_hessian_has_the_stated_spectrum_and_rotation(name, condition, angle, dim):
    objective = make(name, condition=condition, angle=angle, dim=dim)
    found = hessian(objective, torch.ones(dim, dtype=torch.float64))
    expected = torch.from_numpy(np.geomspace(1, condition, dim))
    torch.testing.assert_close(torch.linalg.eigvalsh(found), expected, rtol=1e-10, atol=1e-10)
    turn = math.radians(angle)
    flat = f64([math.cos(turn), math.sin(turn)] + [0.0] * (dim - 2))
    steep = f64([-math.sin(turn), math.cos(turn)] + [0.0] * (dim - 2))
    torch.testing.assert_close(found @ flat, flat, rtol=0, atol=1e-12 * condition)
    torch.testing.assert_close(found @ steep, condition * steep, rtol=0, atol=1e-12 * condition)


PUBLISHED = {  # Müller & Brown's figures
    (-0.558, 1.442): -146.700,
    (0.623, 0.028): -108.167,
    (-0.050, 0.467): -80.768,
    (-0.822, 0.624): -40.665,
    (0.212, 0.293): -72.249,
}


def test_muller_brown_stationary_points_are_the_published_ones_to_the_last_digit():
    objective = make("muller-brown")
    stated = as_points((*objective.minima, *objective.local_minima, *objective.saddles))
    for point, ((x, y), energy) in zip(stated, PUBLISHED.items(), strict=True):
        found = f64([x, y])
        for _ in range(6):
            found = found - torch.linalg.solve(hessian(objective, found), gradient(objective, found))
        torch.testing.assert_close(found, point, rtol=1e-13, atol=1e-13)
        assert objective(point).item() == pytest.approx(energy, abs=6e-4)


def test_himmelblau_has_four_minima_and_a_hill_between_them():
    objective = make("himmelblau")
    assert len(set(objective.minima)) == 4
    assert curvatures(objective, f64([-0.270845, -0.923039]))[-1] < 0


def test_goldstein_price_minima_have_the_published_values():
    objective = make("goldstein-price")
    values = [objective(point).item() for point in as_points(objective.local_minima)]
    assert values == pytest.approx([30, 84, 840], rel=1e-12)


@pytest.mark.parametrize("dim", [4, 5, 6, 7])
def test_rosenbrock_has_a_second_minimum_from_four_dimensions_on(dim):
    objective = make("rosenbrock", dim=dim)
    x = f64([-1.0] + [1.0] * (dim - 1))
    for _ in range(30):
        x = x - torch.linalg.solve(hessian(objective, x), gradient(objective, x))
    assert gradient(objective, x).norm() < 1e-10
    assert curvatures(objective, x)[0] > 0
    assert (x[0] < 0) & (x[1:] > 0).all()
    if dim == 4:
        torch.testing.assert_close(x, f64([-0.78, 0.61, 0.38, 0.15]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_ackley_is_a_cone_at_its_minimum_and_its_gradient_there_is_zero(dim):
    objective = make("ackley", dim=dim)
    centre = torch.zeros(dim, 3, dtype=torch.float64)
    assert objective(centre).tolist() == [0, 0, 0]
    assert gradient(objective, centre).abs().max() == 0
    direction = torch.from_numpy(np.random.default_rng(4).standard_normal((dim, 100)))
    direction /= direction.norm(dim=0)
    slope = objective(1e-7 * direction) / 1e-7
    torch.testing.assert_close(slope, torch.full((100,), 4 / math.sqrt(dim), dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["rastrigin", "ackley", "levy"])
def test_values_near_the_minimum_keep_their_digits_in_float32(name):
    objective = make(name)
    points = torch.tensor(objective.minima[0])[:, None] + torch.tensor([2.0**-9, 2.0**-12])
    torch.testing.assert_close(objective(points).double(), objective(points.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_sharpness_of_the_scalar_net_on_its_minima_is_the_sum_of_inverse_squares(dim):
    objective = make("scalar-net", dim=dim)
    w = torch.from_numpy(np.random.default_rng(5).uniform(0.5, 2, dim))
    w[-1] = 1 / w[:-1].prod()
    assert objective(w).item() == pytest.approx(0, abs=1e-25)
    found = curvatures(objective, w)
    assert found[-1].item() == pytest.approx((1 / w**2).sum().item(), rel=1e-12)
    assert found[:-1].abs().max() < 1e-12 * found[-1]


def test_gradient_of_the_scalar_net_is_right_where_weights_are_zero():
    objective = make("scalar-net", dim=3)
    w = f64([[0.0, 0.0], [2.0, 0.0], [3.0, 3.0]])
    assert gradient(objective, w).tolist() == [[-6, 0], [0, 0], [0, 0]]


# ------------------------------------------------------------------------------------------- the noisy ravine


def noise_of(objective, x, hyper, key):
    drawn = objective.draw(key, x)
    return torch.func.grad(lambda p: objective.sample(p, hyper, drawn).sum())(x) - gradient(objective, x)


@pytest.mark.slow
def test_gradient_noise_has_the_stated_mean_and_size():
    objective, n, size = make("noisy-ravine"), 4000, 2.5
    x = f64([[0.3, -1.0], [0.7, 0.2]])
    hyper = {"noise": f64([size, 0.0])}
    noise = torch.stack([noise_of(objective, x, hyper, Key(0).at(step)) for step in range(n)])
    assert noise[:, :, 1].abs().max() < 1e-12
    noise = noise[:, :, 0]
    assert (noise.mean(0).abs() < 4 * size / math.sqrt(n)).all()
    assert ((noise.std(0) - size).abs() < 4 * size / math.sqrt(2 * n)).all()
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4 / math.sqrt(n)


def test_mean_of_a_sample_is_the_surface_itself():
    objective, x = make("noisy-ravine"), f64([[0.3], [0.7]])
    drawn = objective.draw(Key(0).at(3), x)
    both = [objective.sample(x, {"noise": f64(2.0)}, sign * drawn) for sign in (1, -1)]
    torch.testing.assert_close((both[0] + both[1]) / 2, objective(x))


def test_gradient_noise_is_a_function_of_the_key_alone():
    objective, x = make("noisy-ravine", dim=3), torch.zeros(3, 4)
    before = torch.get_rng_state()
    drawn = objective.draw(Key(0).at(5), x)
    torch.manual_seed(123)
    assert torch.equal(drawn, objective.draw(Key(0).at(5), x))
    assert not torch.equal(drawn, objective.draw(Key(0).at(6), x))
    assert not torch.equal(drawn, objective.draw(Key(1).at(5), x))
    assert torch.equal(drawn, objective.draw(Key(0).at(5), x.double()).float())
    torch.set_rng_state(before)
    objective.draw(Key(0).at(7), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_share_the_noise_unless_each_has_its_own_seed():
    objective, x = make("noisy-ravine"), torch.zeros(2, 3, dtype=torch.float64)
    hyper = {"noise": f64(1.0)}
    shared = noise_of(objective, x, hyper, Key(0).at(1))
    assert torch.equal(shared, shared[:, :1].expand(2, 3))
    own = noise_of(objective, x, hyper, Key((0, 1, 2)).at(1))
    assert torch.equal(own[:, 0], shared[:, 0])
    assert len(set(own[0].tolist())) == 3

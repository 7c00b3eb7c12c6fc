"""Slices are the loss at their points; planes hold what they say; a path on a plane is told from the true one."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests.landscapes.test_landscape import net, samples
from workbench.landscapes.evaluation import losses
from workbench.landscapes.landscape import landscape
from workbench.landscapes.planes import (
    Plane,
    eigen_plane,
    fit_span,
    line_through,
    pca_plane,
    plane_through,
    random_plane,
)
from workbench.landscapes.slices import coarse_to_fine, levels, on_plane, slice1d, slice2d

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scene():
    return landscape(net(), "cross_entropy", samples(), dtype=torch.float64)


def walk(dim=20, steps=9, runs=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, dim) if runs is None else (runs, steps, dim)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).cumsum(-2)


# ---- values


@pytest.mark.parametrize("model", ["mlp", "linear", "module"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_losses_equal_each_sample_alone(model, loss):
    chosen = net() if model == "module" else wb.make(model) if model == "linear" else wb.make("mlp", width=6, depth=2)
    scene = landscape(chosen, loss, samples(), dtype=torch.float64)
    points = scene.start + torch.randn(5, scene.dim, dtype=torch.float64)
    mean, error = losses(scene, points)
    each = torch.stack([scene.on([i])(points) for i in range(scene.samples)], 1)
    torch.testing.assert_close(mean, each.mean(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(error, each.std(1) / scene.samples**0.5, rtol=1e-10, atol=1e-14)


def test_chunks_of_points_and_of_samples_change_nothing(scene):
    points = scene.start + torch.randn(7, scene.dim, dtype=torch.float64)
    whole = losses(scene, points)
    for memory in (1, 3 * 8 * 21 * 5, 2**14):
        for ours, theirs in zip(losses(scene, points, memory=memory), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    given = losses(scene, lambda i, j: points[i:j], 7, memory=1)
    torch.testing.assert_close(given[0], whole[0], rtol=1e-12, atol=0)


def test_the_error_is_that_of_a_mean_over_samples():
    """Over many subsets of 100 samples the mean varies as the error says: 4 sigma of a variance of 400 draws."""
    x, y = torch.randn(4000, 5, dtype=torch.float64), torch.arange(4000) % 3
    scene = landscape(net(), "cross_entropy", (x, y, x[:3], y[:3]), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = [losses(scene.on(torch.randint(4000, (100,), generator=generator)), scene.start[None]) for _ in range(400)]
    means, errors = torch.cat([m for m, _ in found]), torch.cat([e for _, e in found])
    assert (means.std() / errors.mean() - 1).abs() < 4 / (2 * 400) ** 0.5


def test_a_loss_that_is_not_finite_stays_at_its_point():
    scene = landscape(lambda x: (x[0] - 1).log() + x[1], start=torch.ones(2), dtype=torch.float64)
    plane = Plane(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), ("x", "y"), "own", "own")
    found = slice2d(scene, plane, span=((0, 4), (0, 2)), points=(5, 3))
    assert np.isnan(found.loss.values[:, 0]).all()
    assert np.isneginf(found.loss.values[:, 1]).all()
    np.testing.assert_allclose(found.loss.values[1, 2:], np.log([1, 2, 3]) + 1)
    assert np.isnan(found.loss_error.values).all()


# ---- planes


@pytest.mark.parametrize("normalise", ["filter", "layer", "none"])
def test_random_directions_have_the_lengths_they_promise(scene, normalise):
    plane = random_plane(scene, normalise=normalise)
    for axis in plane.axes:
        blocks = list(zip(scene.space.blocks(axis), scene.space.blocks(scene.start), strict=True))
        if normalise == "none":
            torch.testing.assert_close(axis.norm(), scene.start.norm())
            continue
        for d, w in blocks:
            if w.ndim == 1:
                assert not d.any()
            elif normalise == "filter":
                torch.testing.assert_close(d.norm(dim=1), w.norm(dim=1))
            else:
                torch.testing.assert_close(d.norm(), w.norm())
                assert not torch.allclose(d.norm(dim=1), w.norm(dim=1))
    assert not torch.allclose(plane.axes[0], plane.axes[1])
    assert torch.equal(random_plane(scene, normalise=normalise).axes, plane.axes)


def test_rescaling_a_relu_network_leaves_its_filter_normalised_picture_alone():
    """Twice the first layer and half the second are the same function: only normalised directions know it."""
    module = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)).double()
    scene = landscape(module, "cross_entropy", samples(), dtype=torch.float64)
    with torch.no_grad():
        module[0].weight *= 4
        module[2].weight /= 4
    scaled = landscape(module, "cross_entropy", samples(), dtype=torch.float64)
    scaled.inputs, scaled.targets = scene.inputs, scene.targets
    pictures = [
        [slice2d(s, random_plane(s, normalise=n), points=5).loss for s in (scene, scaled)] for n in ("filter", "none")
    ]
    np.testing.assert_allclose(pictures[0][0], pictures[0][1], rtol=1e-10)
    assert np.abs(pictures[1][0] - pictures[1][1]).max() > 0.01


def test_coordinates_and_residual_are_the_least_squares_ones():
    points = walk()
    axes = torch.stack([points[3], points[3] + 0.5 * points[5]])
    plane = Plane(points[0], axes, ("u", "v"), "own", "own")
    at = plane.coords(points)
    expected = torch.linalg.lstsq(axes.T, (points - points[0]).T).solution.T
    torch.testing.assert_close(at, expected)
    torch.testing.assert_close(plane.residual(points), (points - plane.points(at)).norm(dim=1))
    torch.testing.assert_close(plane.coords(plane.points(at)), at)
    assert plane.residual(plane.points(at)).max() < 1e-12


def test_the_best_plane_is_that_of_the_singular_vectors():
    points = walk(runs=3)
    plane = pca_plane(points)
    flat = points.flatten(0, 1)
    away = flat - flat.mean(0)
    _, sigma, vectors = torch.linalg.svd(away, full_matrices=False)
    torch.testing.assert_close((plane.axes @ vectors[:2].T).abs(), torch.eye(2, dtype=torch.float64))
    share = float((sigma[:2] ** 2).sum() / (sigma**2).sum())
    assert plane.share(points) == pytest.approx(share, rel=1e-10)
    assert sum(plane.facts["variance_shares"]) == pytest.approx(share, rel=1e-10)
    left = flat.sub(plane.points(plane.coords(flat))).square().sum() / away.square().sum()
    assert float(left) == pytest.approx(1 - share, rel=1e-9)


def test_planes_through_points_hold_them():
    a, b, c = walk(steps=3)
    plane = plane_through(a, b, c)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    for point in (a, b, c):
        assert plane.residual(point) < 1e-12
    assert plane.coords(a).abs().max() == 0
    assert plane.coords(b)[1].abs() < 1e-12
    line = line_through(a, b)
    torch.testing.assert_close(line.coords(b), torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="on one line"):
        plane_through(a, b, a + 2 * (b - a))
    with pytest.raises(ValueError, match="points coincide"):
        line_through(a, a)
    with pytest.raises(ValueError, match="bend"):
        pca_plane(torch.stack([a, a + b, a + 2 * b]))


def test_axes_keep_pointing_the_way_they_did():
    plane = pca_plane(walk())
    flipped = Plane(plane.center, -plane.axes, plane.labels, plane.kind, plane.title)
    torch.testing.assert_close(flipped.turned_like(plane).axes, plane.axes)
    assert eigen_plane(plane.center, plane.axes, torch.tensor([3.0, 1.0])).labels[0] == "eigenvector 1 (λ = 3)"


def test_a_span_holds_the_points_with_a_margin():
    points = walk(runs=2)
    plane = pca_plane(points)
    at = plane.coords(points.flatten(0, 1)).numpy()
    for i, (low, high) in enumerate(fit_span(plane, points, margin=0.1)):
        width = np.ptp(at[:, i])
        assert low == pytest.approx(at[:, i].min() - 0.1 * width)
        assert high == pytest.approx(at[:, i].max() + 0.1 * width)
    assert fit_span(plane, points[:1, :1]) == fit_span(plane, points[:1, :1], 0.15)
    assert all(high > low for low, high in fit_span(plane, points[:1, :1]))


# ---- slices


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_of_an_mlp_too_whose_first_layer_is_combined(depth):
    model = wb.make("mlp", width=6, depth=depth) if depth else "linear"
    scene = landscape(model, "cross_entropy", samples(), dtype=torch.float64)
    plane = random_plane(scene, normalise="none")
    found = slice2d(scene, plane, span=((-1, 0.5), (-0.2, 2)), points=(4, 3))
    at = torch.cartesian_prod(torch.tensor(found.b.values), torch.tensor(found.a.values)).flip(1)
    np.testing.assert_allclose(found.loss.values.ravel(), scene(plane.points(at)), rtol=1e-12)


def test_a_slice_is_the_loss_at_its_points(scene):
    plane = random_plane(scene)
    found = slice2d(scene, plane, span=((-1, 0.5), (-0.2, 2)), points=(4, 3))
    assert found.loss.dims == ("b", "a")
    for i, b in enumerate(found.b.values):
        for j, a in enumerate(found.a.values):
            point = scene.start + a * plane.axes[0] + b * plane.axes[1]
            assert found.loss.values[i, j] == pytest.approx(float(scene(point[None])), rel=1e-12)
    line = random_plane(scene, dims=1)
    along = slice1d(scene, line, span=(0, 1), points=3)
    assert along.loss.values[2] == pytest.approx(float(scene((scene.start + line.axes[0])[None])), rel=1e-12)


def test_coarse_pictures_are_the_fine_one_at_fewer_points_and_nothing_is_done_twice(scene):
    counted = []
    plane, whole = random_plane(scene), scene.each

    def each(x, rows=None):
        counted.append(len(x))
        return whole(x, rows)

    scene.each = each
    shares = []
    found = list(coarse_to_fine(scene, plane, points=13, watch=shares.append))
    assert [one.sizes["a"] for one in found] == [7, 13]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert sum(counted) == 13 * 13
    fine = slice2d(scene, plane, points=13)
    np.testing.assert_allclose(found[-1].loss, fine.loss, rtol=1e-13)
    np.testing.assert_allclose(found[0].loss, fine.loss[::2, ::2], rtol=1e-13)
    np.testing.assert_allclose(found[0].a, fine.a[::2])


@pytest.mark.parametrize(("points", "sizes"), [(51, [6, 26, 51]), (49, [7, 13, 25, 49]), (14, [14]), (2, [2])])
def test_levels_are_even_and_nested(points, sizes):
    found = levels(points)
    assert [len(level) for level in found] == sizes
    for level in found:
        assert level[0] == 0
        assert level[-1] == points - 1
        assert len(set(np.diff(level))) == 1
    for coarse, fine in itertools.pairwise(found):
        assert set(coarse) <= set(fine)


def test_a_slice_stops_within_a_chunk(scene):
    done = []

    def watch(share):
        done.append(share)
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slice2d(scene, points=21, watch=watch, memory=2**14)
    assert 0.3 < done[-1] < 0.5
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"span": ((1, 0), (0, 1))}, "low < high"),
        ({"span": ((0, float("nan")), (0, 1))}, "low < high"),
        ({"points": 1}, "at least 2 points"),
        ({"plane": "line"}, "expected a plane"),
    ],
)
def test_bad_slices_are_refused_in_a_sentence(scene, options, words):
    if options.get("plane") == "line":
        options = {"plane": random_plane(scene, dims=1)}
    with pytest.raises(ValueError, match=words):
        slice2d(scene, **options)


def test_a_slice_is_a_record_that_reopens(scene, tmp_path):
    found = slice2d(scene, points=3)
    again = wb.open(wb.save(found, tmp_path / "slice.zarr"))
    assert again.load().identical(found)


def test_a_path_on_a_plane_tells_both_losses_and_the_distance(scene):
    path = scene.start + 0.3 * walk(scene.dim, 6, runs=2)
    plane = pca_plane(path)
    found = on_plane(scene, plane, path, steps=[0, 2, 4, 6, 8, 10])
    assert found.loss.dims == ("run", "step")
    for run in range(2):
        for k in range(6):
            point, one = path[run, k], found.isel(run=run, step=k)
            below = plane.points(plane.coords(point)[None])
            assert float(one.loss) == pytest.approx(float(scene(point[None])), rel=1e-10)
            assert float(one.plane_loss) == pytest.approx(float(scene(below)), rel=1e-10)
            assert float(one.residual) == pytest.approx(float((point - below).norm()), rel=1e-8)
    assert found.attrs["variance_share"] == pytest.approx(plane.share(path))
    alone = on_plane(scene, plane, path[1])
    np.testing.assert_allclose(alone.loss, found.loss[1])

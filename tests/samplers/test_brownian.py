"""Brownian paths: the law of increments and areas, exact sums, and the same path whoever asks in whatever order."""

import itertools

import pytest
import torch

from workbench.routine import Key
from workbench.samplers.brownian import DEPTH, Brownian, inside, paths, weights

LIKE = torch.empty(0, dtype=torch.float64)


def at(t):
    return torch.full((1, 1), t, dtype=torch.float64)


def path(seed=0, shape=(500, 2), like=LIKE):
    return Brownian(Key(seed).stream("brownian"), shape, like)


def increments(brownian, times):
    return [brownian.increment(at(a), at(b)) for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize("level", [3, 10, DEPTH])
def test_a_coarse_increment_is_the_sum_of_the_fine_ones_bit_for_bit(level):
    """And so is its area, with the rectangle under it: on dyadic grids nothing is rounded."""
    brownian, h = path(shape=(60, 2)), 0.5**level
    first = 2**level // 3
    times = [h * k for k in range(first, first + 6)]
    (dw, dz), fine = brownian.increment(at(times[0]), at(times[-1])), increments(brownian, times)
    assert torch.equal(dw, sum(w for w, _ in fine))
    total = torch.zeros_like(dz)
    for t, (_, z) in zip(times, fine, strict=False):
        total = total + z + h * brownian.increment(at(times[0]), at(t))[0]
    assert torch.equal(dz, total)


def test_sums_of_increments_are_exact_at_any_times_and_areas_to_rounding():
    brownian = path()
    a, b, c = 0.1234, 0.5, 0.777
    (w, z), (w1, z1), (w2, z2) = (brownian.increment(at(s), at(t)) for s, t in ((a, c), (a, b), (b, c)))
    assert torch.equal(w, w1 + w2)
    assert (z - (z1 + z2 + (c - b) * w1)).abs().max() < 1e-15


def test_going_back_undoes_going_there():
    brownian = path()
    (w, z), (back, area) = brownian.increment(at(0.3), at(0.8)), brownian.increment(at(0.8), at(0.3))
    assert torch.equal(back, -w)
    assert torch.allclose(area, 0.5 * w - z, rtol=0, atol=1e-15)


TIMES = [0.0, 0.1, 0.1001, 0.37, 0.5, 0.5 + 2**-14, 0.62, 0.8712, 1.0]


def test_the_weights_of_the_normals_give_the_covariances_of_brownian_motion():
    """E W(s) W(t) = s, E W(s) I(t) = st - s²/2, E I(s) W(t) = s²/2, E I(s) I(t) = s²(3t - s)/6 for s <= t."""
    for s, t in itertools.combinations_with_replacement(TIMES, 2):
        one, other = weights(s), weights(t)
        shared = [(one[node], other[node]) for node in one if node in other]
        found = [[sum(a[i] * b[j] + a[i + 1] * b[j + 1] for a, b in shared) for j in (0, 2)] for i in (0, 2)]
        exact = [[s, s * t - s * s / 2], [s * s / 2, s * s * (3 * t - s) / 6]]  # of s <= t
        assert torch.allclose(torch.tensor(found), torch.tensor(exact), rtol=0, atol=1e-15)


@pytest.mark.parametrize("u", [1e-6, 0.2, 0.5, 0.9])
def test_at_the_bottom_of_the_tree_value_and_area_have_the_law_they_have_given_their_interval(u):
    """Together with increment and area of an interval of length 1: Var W = u, Cov = u²/2, Var I = u³/3."""
    w1, w2, i1, i2 = torch.tensor([weights(u)[0], inside(u, 1.0)], dtype=torch.float64).T
    found = [w1 @ w1 + w2 @ w2, w1 @ i1 + w2 @ i2, i1 @ i1 + i2 @ i2]
    assert found == pytest.approx([u, u**2 / 2, u**3 / 3], rel=1e-9)


N = 20_000


def test_increments_and_areas_have_the_law_of_brownian_motion():
    """First, second and fourth moments of (dW, dZ) over nine intervals, all pairs, within 4 sigma."""
    found = torch.cat([torch.stack(pair) for pair in increments(path(3, (N, 1)), TIMES)]).squeeze(1).squeeze(-1)
    h = torch.tensor(TIMES).double().diff()
    size = torch.stack([h.sqrt(), (h**3 / 3).sqrt()], 1).flatten()
    z = found / size[:, None]
    exact = torch.block_diag(*[torch.tensor([[1, 0.75**0.5], [0.75**0.5, 1]])] * len(h)).double()
    sigma = torch.sqrt((1 + exact**2) / N)  # of a mean of products of two normals
    assert ((z @ z.T / N - exact).abs() < 4 * sigma).all()
    assert (z.mean(1).abs() < 4 / N**0.5).all()
    assert ((z.pow(4).mean(1) - 3).abs() < 4 * (96 / N) ** 0.5).all()


def test_order_and_company_of_calls_change_nothing():
    times = [0.05 * k for k in range(21)]
    there = increments(path(7), times)
    paths.cache_clear()
    for t in (0.333, 0.9, 0.01):
        path(7).increment(at(t), at(0.5))
    back = [path(7).increment(at(a), at(b)) for a, b in reversed(list(itertools.pairwise(times)))][::-1]
    for (w, z), (v, y) in zip(there, back, strict=True):
        assert torch.equal(w, v)
        assert torch.equal(z, y)
    assert not torch.equal(there[0][0], path(8).increment(at(0.0), at(0.05))[0])


def test_float32_sees_the_float64_path_rounded():
    for a, b in ((0.25, 0.75), (0.0, 1.0), (0.5, 0.5 + 2**-10)):
        exact = path().increment(at(a), at(b))
        single = path(like=LIKE.float()).increment(at(a).float(), at(b).float())
        for one, other in zip(exact, single, strict=True):
            assert other.dtype == torch.float32
            assert torch.equal(one.float(), other)


def test_a_time_rounded_to_float32_is_still_nearly_the_same_path():
    exact, single = (
        path().increment(at(0.05).to(dtype), at(0.35).to(dtype))[0] for dtype in (torch.float64, torch.float32)
    )
    assert (exact - single).abs().max() < 1e-5


def test_runs_with_seeds_of_their_own_have_paths_of_their_own():
    many = Brownian(Key((4, 9)).stream("brownian"), (50, 2), LIKE).increment(at(0.1), at(0.7))
    for run, seed in enumerate((4, 9)):
        alone = Brownian(Key(seed).stream("brownian"), (50, 2), LIKE).increment(at(0.1), at(0.7))
        assert all(torch.equal(m[run : run + 1], one) for m, one in zip(many, alone, strict=True))


def test_samples_and_runs_may_each_be_at_a_time_of_their_own():
    brownian = path(shape=(3, 2))
    t0, t1 = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.1, 0.2]]).double(), torch.tensor([[0.5], [0.9]]).double()
    dw, dz = brownian.increment(t0, t1)
    assert dw.shape == dz.shape == (2, 3, 2)
    for run, sample in itertools.product(range(2), range(3)):
        w, z = brownian.increment(at(t0[run, sample]), at(t1[run, 0]))
        assert torch.equal(dw[run, sample], w[0, sample])
        assert torch.equal(dz[run, sample], z[0, sample])


def test_on_meta_only_shapes_are_made():
    t = torch.zeros(4, 1, device="meta")
    dw, dz = path(like=torch.empty(0, device="meta")).increment(t, t)
    assert dw.shape == dz.shape == (4, 500, 2)
    assert dw.device.type == dz.device.type == "meta"


@pytest.mark.parametrize("t", [-0.1, 1.01, float("nan")])
def test_times_outside_the_path_are_refused(t):
    with pytest.raises(ValueError, match="expected times from 0 to 1, got"):
        path().increment(at(0.5), at(t))

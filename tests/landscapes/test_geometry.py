"""Geometry of a way: closed forms of known curves, a naive twin, and the same numbers from one point after another."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import landscapes as g
from workbench.landscapes.live_geometry import Geometry

pytestmark = pytest.mark.usefixtures("one_thread")


def walk(runs=3, steps=40, dim=7, drift=0.3):
    key = wb.Key(0).stream("walk")
    s = key.normal((runs, steps, dim), like=torch.empty(0, dtype=torch.float64)) + drift
    return s.cumsum(1)


def circle(radius=2.0, turns=1.0, steps=50, dim=5):
    """A circle in a tilted plane of `dim` dimensions, and the angle of each step."""
    q, _ = torch.linalg.qr(wb.Key(1).normal((dim, 2), like=torch.empty(0, dtype=torch.float64)))
    t = torch.linspace(0, 2 * math.pi * turns, steps, dtype=torch.float64)
    return radius * torch.stack([t.cos(), t.sin()], 1) @ q.T + 10, float(t[1])


def test_a_circle_has_its_own_curvature_length_and_turning():
    x, angle = circle(radius=2.0)
    chord = 2 * 2.0 * math.sin(angle / 2)
    inner = slice(1, -1)
    torch.testing.assert_close(g.menger_curvature(x)[inner], torch.full((48,), 0.5).double())
    torch.testing.assert_close(g.turning_angle(x)[inner], torch.full((48,), angle).double())
    torch.testing.assert_close(g.turning_per_length(x)[inner], torch.full((48,), angle / chord).double())
    torch.testing.assert_close(g.path_length(x), chord * torch.arange(50.0).double())
    assert g.straightness(x)[-1] < 1e-12
    assert g.effective_dimension(x[:-1]) == pytest.approx(2, rel=1e-12)


def test_a_straight_line_is_straight_even_where_arccos_would_not_say_so():
    u = torch.nn.functional.normalize(walk()[0, :1], dim=-1)
    x = 3 + torch.linspace(0, 5, 20).double()[:, None] ** 2 * u
    assert g.turning_angle(x)[1:-1].abs().max() < 1e-13
    torch.testing.assert_close(g.straightness(x)[1:], torch.ones(19).double())
    even = torch.arange(20.0).double()[:, None] * u
    torch.testing.assert_close(g.step_autocorrelation(even, [1, 3]), torch.ones(2).double())
    assert g.effective_dimension(x) == pytest.approx(1)
    torch.testing.assert_close(g.directional_similarity(x, origin="start")[1:], torch.ones(19).double())


def test_a_zigzag_turns_back_each_time():
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(5, 1)
    assert g.turning_angle(x)[1:-1].tolist() == [math.pi] * 8
    assert g.menger_curvature(x).isnan().all()  # the point before is the point after: no circle
    assert g.step_autocorrelation(x, [1, 2]).tolist() == [-1.0, 1.0]


def test_every_measure_equals_its_definition_written_out():
    x = walk()
    made = g.geometry(x, lags=[1, 3])
    points = x.numpy()
    norm = np.linalg.norm
    for run, way in enumerate(points):
        s = [way[t] - way[t - 1] for t in range(1, len(way))]
        length = np.cumsum([0, *(norm(v) for v in s)])
        np.testing.assert_allclose(made["length"][run], length, rtol=1e-13)
        distance = np.array([norm(p - way[0]) for p in way])
        np.testing.assert_allclose(made["distance"][run], distance, rtol=1e-13)
        np.testing.assert_allclose(made["straightness"][run][1:], distance[1:] / length[1:], rtol=1e-13)
        np.testing.assert_allclose(made["norm"][run], [norm(p) for p in way], rtol=1e-13)
        for t in range(1, len(way) - 1):
            a, b, c = norm(s[t - 1]), norm(s[t]), norm(way[t + 1] - way[t - 1])
            theta = math.acos(s[t - 1] @ s[t] / (a * b))
            half = (a + b + c) / 2
            area = math.sqrt(half * (half - a) * (half - b) * (half - c))  # Heron
            assert made["turning_angle"][run, t] == pytest.approx(theta, rel=1e-9)
            assert made["turning_per_length"][run, t] == pytest.approx(2 * theta / (a + b), rel=1e-9)
            assert made["curvature"][run, t] == pytest.approx(4 * area / (a * b * c), rel=1e-9)
        for name, o in (("similarity", 0 * way[0]), ("similarity_from_start", way[0])):
            for t in (1, 5, len(way) - 1):
                ways = [p - o for p in way[: t + 1] if norm(p - o) > 0]
                pairs = [u @ v / (norm(u) * norm(v)) for u in ways for v in ways]
                assert made[name][run, t] == pytest.approx(np.mean(pairs), rel=1e-12)
        for k, lag in enumerate([1, 3]):
            heads, tails = np.array(s[:-lag]), np.array(s[lag:])
            rho = (heads * tails).sum() / math.sqrt((heads**2).sum() * (tails**2).sum())
            assert made["autocorrelation"][run, k] == pytest.approx(rho, rel=1e-12)
        variances = np.linalg.eigvalsh(np.cov(way.T))
        expected = variances.sum() ** 2 / (variances**2).sum()
        assert made["effective_dimension"][run] == pytest.approx(expected, rel=1e-10)


def test_independent_steps_are_uncorrelated_and_use_all_directions_that_a_walk_has():
    """ρ(l) of independent steps has mean 0 and standard deviation 1/√(steps · dim) over many runs."""
    x = walk(runs=64, steps=200, dim=20, drift=0)
    rho = g.step_autocorrelation(x, [1, 7])
    sigma = 1 / math.sqrt(200 * 20)
    assert (rho.mean(0).abs() < 4 * sigma / math.sqrt(64)).all()
    assert (rho.std(0) / sigma - 1).abs().max() < 4 / math.sqrt(2 * 63)
    # Noise that is no walk: independent points have all variances alike, so dim of dim directions, less 1/steps.
    noise = wb.Key(3).normal((4000, 20), like=torch.empty(0, dtype=torch.float64))
    assert g.effective_dimension(noise) == pytest.approx(20 / (1 + 20 / 4000), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_point_after_another_gives_the_same_numbers(dtype):
    x = walk().to(dtype)
    x[0, 10:13] = x[0, 10]  # it stands still for a while
    x[1, 20] = x[1, 18]  # it goes back to where it was
    x[2, 5] = 0  # it passes the origin
    x[2, 30:] = x[2, 0]
    live = Geometry(lags=[1, 2, 50])
    for t in range(x.shape[1]):
        last = live.add(x[:, t], step=5 * t)
    whole = g.geometry(x, 5 * np.arange(x.shape[1]), lags=[1, 2, 50])
    streamed = live.record()
    assert set(whole) - set(streamed) == {"effective_dimension"}
    for name in streamed.variables:
        np.testing.assert_allclose(streamed[name], whole[name], rtol=1e-12, atol=1e-14, err_msg=name)
        assert streamed[name].attrs == whole[name].attrs
    assert whole["step"].values[-1] == 195
    np.testing.assert_allclose(last["length"], whole["length"][:, -1], rtol=1e-12)
    assert all(rows[0].shape == (3,) for rows in live.rows.values())
    assert len(live.recent) <= 50


def test_memory_of_the_streaming_one_does_not_grow_with_points():
    live, x = Geometry(lags=[1, 2]), walk(runs=1, steps=30, dim=1000)
    for t in range(30):
        live.add(x[:, t])
    held = [v for v in [*vars(live).values(), *live.recent, *live.sums.values()] if isinstance(v, torch.Tensor)]
    assert sum(v.numel() for v in held if v.numel() >= 1000) <= 8 * 1000


def test_where_points_coincide_a_number_without_meaning_is_missing():
    x = torch.zeros(6, 3).double()
    made = g.geometry(x, lags=[1])
    for name in made:
        expected = {"length": 0.0, "distance": 0.0, "norm": 0.0}.get(name, np.nan)
        np.testing.assert_array_equal(made[name], np.full(made[name].shape, expected), err_msg=name)
    x = walk(runs=1)[0]
    x[7] = x[6]
    angle = g.turning_angle(x)
    assert angle.isnan().nonzero().flatten().tolist() == [0, 6, 7, 39]
    assert g.menger_curvature(x).isnan().nonzero().flatten().tolist() == [0, 6, 7, 39]


def test_float32_points_are_added_up_in_float64():
    x = torch.zeros(20001, 1)
    x[:, 0] = 1000 + torch.arange(20001) * 2.0**-10
    assert g.path_length(x)[-1] == 20000 * 2.0**-10


def test_what_does_not_fit_is_refused_with_what_was_expected():
    for wrong in (torch.zeros(5), torch.zeros(1, 3), torch.zeros(2, 2, 2, 2)):
        with pytest.raises(ValueError, match="expected points"):
            g.geometry(wrong)
    with pytest.raises(ValueError, match="a step number for each of 4 points"):
        g.geometry(torch.zeros(4, 2), [1, 2])
    with pytest.raises(ValueError, match="expected a lag"):
        g.geometry(torch.zeros(4, 2), lags=[0])
    with pytest.raises(ValueError, match="'zero' or 'start'"):
        g.directional_similarity(torch.zeros(4, 2), origin="end")
    live = Geometry()
    live.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least two points"):
        live.record()
    with pytest.raises(ValueError, match="expected points of shape"):
        live.add(torch.zeros(1, 3))


def test_watch_hears_of_every_run_and_ends_the_work():
    heard = []
    g.geometry(walk(), watch=heard.append)
    assert heard == pytest.approx([1 / 3, 2 / 3, 1])

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        g.geometry(walk(), watch=stop)


def test_momentum_points_its_steps_where_plain_descent_scatters_them():
    """Over four seeds of minibatches: successive steps of momentum align, those of sgd do not."""
    found = {}
    for name in ("sgd", "momentum"):
        routine = wb.training("linear", "cross_entropy", "digits", name, batch_size=16)
        record = wb.rollout(routine, 60, seed=[0, 1, 2, 3], probes=["weights"], hyper={"lr": 0.01})
        found[name] = g.geometry(record["weights"].values, record["step"].values)["autocorrelation"].sel(lag=1)
    assert float(found["momentum"].min()) > 0.8
    assert float(found["sgd"].max()) < 0.6

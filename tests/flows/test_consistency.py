"""Consistency flow matching: its loss, the average it keeps, and what one and two steps of its flow come to."""

import functools

import pytest
import torch

import workbench as wb
from tests.flows.test_claims import learn, w2s
from workbench.flows.objectives import Batch, Setting
from workbench.rollout import advance
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)


def squares(residual):
    return residual.square().mean(-1)


SETTING = Setting(wb.make("linear-path"), lambda t: 1 + t, squares, {})


def batch(n=40):
    key = Key(3)
    x0, x1 = (key.stream(name).normal((n, 2), like=EXACT) for name in ("x0", "x1"))
    return Batch(x0, x1, key.stream("t").uniform((n,), like=EXACT), None, None)


def bent(scale):
    return lambda x, t: (scale * torch.sin(x) + t.unsqueeze(-1) * x).unsqueeze(0)


@pytest.mark.parametrize("segments", [1, 2])
def test_the_loss_is_the_formula(segments):
    """Sample by sample, in plain numbers: f and v of the net against those of the averaged net."""
    pairs, net, old = batch(), bent(1.0), bent(0.7)
    objective = wb.make("consistency-flow-matching", segments=segments, dt=0.2, alpha=0.3)
    total, ends = 0.0, [(i + 1) / segments for i in range(segments)]
    for x0, x1, t in zip(pairs.x0, pairs.x1, pairs.t, strict=True):
        e = min(end for end in ends if end > t)
        r = torch.as_tensor(min(float(t) + 0.2, e), dtype=torch.float64)
        a, b = t * x1 + (1 - t) * x0, r * x1 + (1 - r) * x0
        v, w = net(a, t)[0], old(b, r)[0]
        term = squares(a + (e - t) * v - b - (e - r) * w) + (0.3 * squares(v - w) if r < e else 0.0)
        total = total + (1 + t) * term
    torch.testing.assert_close(objective.loss(net, old, pairs, SETTING)[0], total / len(pairs.t))


@pytest.mark.parametrize("segments", [1, 3])
def test_a_constant_velocity_loses_nothing(segments):
    """x1 = x0 + c: the velocity c everywhere has a loss of 0 to rounding, and any other a larger one."""
    pairs, c = batch(), torch.tensor([2.0, -1.0], dtype=torch.float64)
    pairs = pairs._replace(x1=pairs.x0 + c)
    objective = wb.make("consistency-flow-matching", segments=segments, dt=0.1)
    for v, zero in ((c, True), (1.1 * c, False)):

        def net(x, t, v=v):
            return v.expand(1, *x.shape)

        assert (float(objective.loss(net, net, pairs, SETTING)) < 1e-28) == zero


def test_the_average_lags_behind_and_gives_no_gradient():
    """After each step x⁻ = ema x⁻ + (1 - ema) x; the gradient of the loss in x⁻ is left out."""
    routine = wb.flow_training(None, "eight-gaussians", wb.make("consistency-flow-matching", ema=0.75), batch_size=8)
    state, hyper, own = routine.init(Key(0)), routine.normalise(), None
    for k in range(3):
        before = state.objective[0]
        state, _ = advance(routine, state, hyper, Key(0), k)
        own = 0.75 * before + 0.25 * state.x
        torch.testing.assert_close(state.objective[0], own, rtol=0, atol=1e-7)
    assert not torch.equal(own, state.x)


@functools.cache
def trained(**settings):
    return learn("eight-gaussians", wb.make("consistency-flow-matching", **settings), steps=1000)


@pytest.mark.slow
def test_few_steps_come_nearer_than_those_of_rectified_flow():
    """Yang et al.: W₂ of one and of two steps after equal training; in two, two segments are better than one."""
    plain, one, two = learn("eight-gaussians", steps=1000), trained(), trained(segments=2)
    for steps in (1, 2):
        assert (w2s(one, steps, "eight-gaussians") < 0.6 * w2s(plain, steps, "eight-gaussians")).all()
    assert (w2s(two, 2, "eight-gaussians") < w2s(one, 2, "eight-gaussians")).all()


@pytest.mark.slow
def test_the_velocities_term_adds_nothing_or_does_harm():
    """Without it (alpha = 0) W₂ is the same to 1 %: 0.76 and 0.62 in one and two steps; alpha = 0.1 makes it worse."""
    one, ablated, strong = (w2s(trained(alpha=alpha), 2, "eight-gaussians") for alpha in (1e-5, 0.0, 0.1))
    assert abs(ablated / one - 1).max() < 0.01
    assert (strong > 2 * one).all()

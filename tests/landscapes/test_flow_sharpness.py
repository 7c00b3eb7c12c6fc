"""The sharpness that gradient flow ends in: as integrated flow finds it, and how descent moves it."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.landscapes.flow_sharpness import FLOW_SHARPNESS, flow_sharpness, flow_solution

pytestmark = pytest.mark.usefixtures("one_thread")


def velocity(w):
    """-∇L of ½ (w₁ ⋯ wₙ - 1)² at weights (n, points), with products of the others written out."""
    others = np.stack([np.delete(w, i, 0).prod(0) for i in range(len(w))])
    return (1 - w.prod(0)) * others, others


def integrated(w, steps=2500):
    """The end of gradient flow by Runge–Kutta's fourth-order method; each point's step fits its own curvature."""
    for _ in range(steps):
        k1, others = velocity(w)
        h = 0.2 / ((others**2).sum(0) + np.abs(1 - w.prod(0)) * (1 + (w**2).sum(0)) + 0.1)
        k2, _ = velocity(w + h / 2 * k1)
        k3, _ = velocity(w + h / 2 * k2)
        k4, _ = velocity(w + h * k3)
        w = w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return w


@pytest.mark.parametrize("depth", [2, 4, 5])
def test_equals_flow_integrated_and_the_curvature_where_it_ends(depth):
    """From 40 starts, half of them with a negative product, whose flow first passes through 0."""
    random = np.random.default_rng(depth)
    w = random.uniform(0.3, 1.8, (depth, 40)) * random.choice([-1, 1], (depth, 40))
    assert 10 < (w.prod(0) < 0).sum() < 30
    end = integrated(w)
    assert np.abs(end.prod(0) - 1).max() < 1e-9
    found = flow_solution(torch.from_numpy(w))
    np.testing.assert_allclose(found, end, rtol=0, atol=1e-4)
    net = wb.make("scalar-net", dim=depth)
    curvature = [
        torch.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(net))(point))[-1] for point in torch.from_numpy(end).T
    ]
    np.testing.assert_allclose(flow_sharpness(torch.from_numpy(w)), torch.stack(curvature), rtol=1e-4)


def test_far_from_balance_and_from_the_end_the_root_is_exact():
    w = torch.tensor([[1e3, 1e-4, 40.0, 1.0], [1e-3, -2.0, 50.0, 1.0], [0.0, 3.0, 60.0, 1.0]], dtype=torch.float64)
    end = flow_solution(w)
    torch.testing.assert_close(end.prod(0), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
    squares = end.square() - end.square()[:1]
    torch.testing.assert_close(squares, w.square() - w.square()[:1], rtol=1e-12, atol=1e-12)
    assert flow_sharpness(w)[-1] == 3
    single = flow_sharpness(w.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double()[1:], flow_sharpness(w)[1:], rtol=1e-4, atol=0)


def test_a_flow_into_a_saddle_ends_in_no_minimum():
    w = torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, -1.0], [2.0, 2.0, -2.0]], dtype=torch.float64)
    assert flow_sharpness(w).isnan().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="expected weights"):
        flow_sharpness(torch.tensor(1.0))


@pytest.mark.parametrize("start", [(2.0, 0.4, 1.2, 0.9), (1.5, 0.6, 1.2, 0.8), (1.8, 0.5, 1.0, 1.0)])
def test_descent_never_raises_it_while_the_loss_goes_up_and_ends_near_the_edge(start):
    """Depth 4, 2/lr at 0.98, 0.95 and 0.9 of the first value: the last one is within 5 % below 2/lr."""
    first = flow_sharpness(torch.tensor(start, dtype=torch.float64)).item()
    edge = first * np.array([0.98, 0.95, 0.9])
    descent = wb.descent(wb.make("scalar-net", dim=4), "sgd", dtype=torch.float64)
    record = wb.rollout(descent, 1000, hyper={"lr": 2 / edge}, start=start, probes=[FLOW_SHARPNESS])
    sharpness, loss = record.flow_sharpness.values, record.loss.values
    assert sharpness[:, 0] == pytest.approx(first)
    assert (np.diff(sharpness) <= 1e-13 * first).all()
    assert ((np.diff(loss) > 1e-9).sum(1) >= 3).all()
    assert (loss[:, -1] < 1e-9).all()
    assert (sharpness[:, -1] < edge).all()
    assert (sharpness[:, -1] > 0.95 * edge).all()


def test_the_probe_says_where_it_belongs():
    with pytest.raises(ValueError, match="expected a descent on 'scalar-net'"):
        wb.rollout(wb.descent("rosenbrock", "sgd"), 2, probes=[FLOW_SHARPNESS])

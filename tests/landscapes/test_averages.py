"""Averages equal their running forms; the Fisher diagonal its definition; merging does what the paper's sum says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.landscapes import landscape
from workbench.landscapes.averages import ema, fisher, fisher_average, power_ema, swa
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

LIKE = torch.zeros(0, dtype=torch.float64)


def walk(count=60):
    return Key(0).normal((count, 2, 5), like=LIKE).cumsum(0)


def test_swa_is_the_average():
    x = walk()
    torch.testing.assert_close(swa(x), x.mean(0))
    torch.testing.assert_close(swa(x[:3], [1, 0, 3]), (x[0] + 3 * x[2]) / 4)
    for wrong in ([1, 2], [1, -1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match="expected a weight"):
            swa(x[:3], wrong)


@pytest.mark.parametrize("length", [1, 1.5, 10, 1e4])
def test_ema_equals_the_running_one(length):
    x, beta = walk(), 1 - 1 / length
    m = x[0]
    for point in x[1:]:
        m = beta * m + (1 - beta) * point
    torch.testing.assert_close(ema(x, length), m, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.15, 0.25])
def test_power_ema_equals_the_running_one_and_has_its_width(width):
    count = 20000
    weights = power_ema(torch.eye(60, dtype=torch.float64), width)
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    # Steps as points: the average of steps and of their squares give mean and spread of the weights themselves.
    mean, squares = power_ema(torch.stack([steps, steps**2], 1), width, list(range(1, count + 1)))
    assert ((squares - mean**2).sqrt() / count).item() == pytest.approx(width, rel=1e-3)
    gamma = (1 / (1 - mean.item() / count)) - 2  # the mean of the density is (γ + 1) / (γ + 2)
    x = walk()
    m = torch.zeros_like(x[0])
    for t in range(1, len(x)):
        beta = (1 - 1 / t) ** (gamma + 1)
        m = beta * m + (1 - beta) * x[t]
    torch.testing.assert_close(power_ema(x, width), m, rtol=0.01, atol=0.01)
    torch.testing.assert_close((weights[:, None, None] * x).sum(0), power_ema(x, width))
    assert weights[0] == 0


@pytest.mark.parametrize("average", [lambda x, steps: ema(x, 7, steps), lambda x, steps: power_ema(x, 0.1, steps)])
def test_a_checkpoint_stands_for_the_steps_since_the_one_before(average):
    stored = [0, 1, 5, 6, 20, 33]
    x = walk(len(stored))
    held = torch.stack([x[next(i for i, s in enumerate(stored) if s >= k)] for k in range(34)])
    torch.testing.assert_close(average(x, stored), average(held, None), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="rising step"):
        average(x, stored[::-1])


def classifier(samples=30):
    x, y = torch.randn(samples, 4, dtype=torch.float64), torch.arange(samples) % 3
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return net, landscape(net, "cross_entropy", (x, y, x[:3], y[:3]), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize("labels", ["model", "data"])
def test_fisher_equals_its_definition_one_gradient_at_a_time(labels, chunk, monkeypatch):
    monkeypatch.setattr("workbench.landscapes.averages.CHUNK", chunk * 1000)
    net, made = classifier()
    squares = []
    for x, y in zip(made.inputs, made.targets, strict=True):
        logs = F.log_softmax(net(x), -1)
        one = 0
        for label in range(3) if labels == "model" else [int(y)]:
            gradients = torch.autograd.grad(logs[label], list(net.parameters()), retain_graph=True)
            flat = torch.cat([g.flatten() for g in gradients])
            one = one + (logs[label].exp().detach() if labels == "model" else 1) * flat**2
        squares.append(one)
    squares = torch.stack(squares)
    found = fisher(made, made.start, labels=labels)
    torch.testing.assert_close(found.value, squares.mean(0), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.standard_error, squares.std(0) / 30**0.5, rtol=1e-10, atol=1e-14)


def test_the_models_fisher_is_the_gauss_newton_diagonal():
    """For a linear model the Fisher information is the Hessian of the loss, whatever the labels."""
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    made = landscape("linear", "cross_entropy", (x, y, x[:3], y[:3]), dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda p: made(p[None])[0], made.start)
    torch.testing.assert_close(fisher(made, made.start).value, hessian.diagonal(), rtol=1e-10, atol=1e-14)


def test_fisher_says_what_it_needs():
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    made = landscape("linear", "mse", (x, y, x[:3], y[:3]), dtype=torch.float64)
    slopes = 2 * (made.outputs(made.start[None])[0] - made.targets)
    expected = (slopes * torch.cat([made.inputs, torch.ones(9, 1)], 1)).square().mean(0)
    torch.testing.assert_close(fisher(made, made.start, labels="data").value, expected)
    with pytest.raises(ValueError, match="use labels='data'"):
        fisher(made, made.start)
    with pytest.raises(ValueError, match="single samples"):
        fisher(landscape(lambda x: x.sum(), start=torch.ones(3)), torch.ones(3))
    with pytest.raises(ValueError, match="'model' or 'data'"):
        fisher(made, made.start, labels="true")


def test_the_fisher_average_minimises_two_quadratics_jointly():
    h, at = Key(1).uniform((2, 7), like=LIKE) + 0.1, Key(2).normal((2, 7), like=LIKE)
    share = [0.3, 0.7]
    merged = fisher_average(at, h, share).requires_grad_()
    joint = sum(w * (h[i] * (merged - at[i]) ** 2).sum() / 2 for i, w in enumerate(share))
    assert torch.autograd.grad(joint, merged)[0].abs().max() < 1e-12
    joint_minimum = torch.linalg.solve(torch.diag(0.3 * h[0] + 0.7 * h[1]), 0.3 * h[0] * at[0] + 0.7 * h[1] * at[1])
    torch.testing.assert_close(merged.detach(), joint_minimum, rtol=0, atol=1e-8)
    torch.testing.assert_close(fisher_average(at, torch.ones_like(at), share), swa(at, share))
    torch.testing.assert_close(fisher_average(at, 1e-30 * h, share), merged.detach())
    h[:, 2] = 0
    torch.testing.assert_close(fisher_average(at, h, share)[2], swa(at, share)[2])
    with pytest.raises(ValueError, match="0 or more"):
        fisher_average(at, -h)

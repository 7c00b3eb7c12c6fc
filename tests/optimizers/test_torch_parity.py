"""The optimizers written here against torch.optim, step for step, in float64."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.catalogue import find_objective, find_optimizer
from workbench.descent import Descent, value_and_gradient
from workbench.routine import Key
from workbench.space import Space

STEPS = 200
TOLERANCE = 1e-12
"""Of every coordinate at every step: |ours - torch's| ≤ TOLERANCE · max(1, |torch's|). Rounding alone gives below 1e-14
here (settings that amplify it, such as lr = 0.6 for Adam, are left out); a wrong rule misses by far more at once."""

NESTEROV = functools.partial(torch.optim.SGD, nesterov=True)
PEERS = {
    "sgd": (
        torch.optim.SGD,
        [{}, {"lr": 2e-4}, {"lr": 1e-3, "weight_decay": 0.3}],
    ),
    "momentum": (
        torch.optim.SGD,
        [
            {"momentum": 0.9},
            {"lr": 5e-4, "momentum": 0.5, "weight_decay": 0.1},
            {"lr": 1e-3, "momentum": 0.9, "dampening": 0.5},
            {"lr": 1e-3, "momentum": 0.8, "dampening": 0.9, "weight_decay": 0.05},
            {"lr": 1e-3, "momentum": 0.0},
        ],
    ),
    "nesterov": (
        NESTEROV,
        [
            {"lr": 1e-3, "momentum": 0.9},
            {"lr": 3e-4, "momentum": 0.99},
            {"lr": 1e-3, "momentum": 0.5, "weight_decay": 0.2},
        ],
    ),
    "rmsprop": (
        torch.optim.RMSprop,
        [
            {},
            {"lr": 1e-3, "alpha": 0.9, "eps": 1e-2},
            {"lr": 3e-3, "alpha": 0.5, "eps": 1e-6, "weight_decay": 0.1},
        ],
    ),
    "adam": (
        torch.optim.Adam,
        [
            {},
            {"lr": 1e-2, "beta1": 0.5, "beta2": 0.9, "eps": 1e-1},
            {"lr": 1e-2, "beta1": 0.95, "beta2": 0.99, "eps": 1e-4, "weight_decay": 0.2},
            {"lr": 1e-2, "beta1": 0.0},
        ],
    ),
    "adamw": (
        torch.optim.AdamW,
        [
            {},
            {"lr": 1e-2, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.5},
            {"lr": 1e-2, "weight_decay": 0.0},
        ],
    ),
}
"""Catalogue name → its torch class and settings; what a setting leaves out is the method's own default."""


@functools.cache
def method_of(name):
    return find_optimizer(name)


def full(name, setting):
    """Every hyperparameter of the method, as Python numbers."""
    return {**{key: hyper.default for key, hyper in method_of(name).hypers.items()}, **setting}


def torch_words(setting):
    """The same as torch.optim takes it: beta1 and beta2 are a pair."""
    words = dict(setting)
    if "beta1" in words:
        words["betas"] = (words.pop("beta1"), words.pop("beta2"))
    return words


def assert_same_path(ours, theirs, what):
    assert ours.dtype == theirs.dtype == torch.float64
    assert torch.isfinite(theirs).all(), f"{what}: the peer diverged, the comparison says nothing"
    assert (theirs[-1] - theirs[0]).abs().max() > 1e-3, f"{what}: nothing moved, the comparison says nothing"
    miss = (ours - theirs).abs() / theirs.abs().clamp(min=1.0)
    worst = miss.flatten(1).amax(1)
    first = int((worst > TOLERANCE).int().argmax())
    assert float(worst.max()) <= TOLERANCE, f"{what}: off by {float(worst[first]):.3e} from step {first} on"


# ---------------------------------------------------------------------------------------------------- a surface


def surface_path(name, hyper, runs=None):
    """(steps + 1, dim, runs) of one method on Rosenbrock."""
    routine = Descent(find_objective("rosenbrock"), method_of(name), dtype=torch.float64)
    state = routine.init(Key(0), runs=runs)
    ready = routine.normalise(hyper, runs=runs)
    points = [state.x]
    for _ in range(STEPS):
        state, _ = routine.step(state, ready, ())
        points.append(state.x)
    return torch.stack(points)


def torch_surface_path(make, setting):
    """(steps + 1, dim) of a plain PyTorch loop."""
    objective = find_objective("rosenbrock")
    x = torch.tensor(objective.start, dtype=torch.float64, requires_grad=True)
    optimizer = make([x], **torch_words(setting))
    points = [x.detach().clone()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        objective(x).backward()
        optimizer.step()
        points.append(x.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("name", PEERS)
def test_equals_torch_on_a_surface(name):
    make, settings = PEERS[name]
    for setting in settings:
        ours, theirs = surface_path(name, full(name, setting)), torch_surface_path(make, full(name, setting))
        assert_same_path(ours[..., 0], theirs, f"{name} {setting}")


@pytest.mark.parametrize("name", PEERS)
def test_runs_with_different_hyperparameters_at_once_equal_them_one_by_one(name):
    _, settings = PEERS[name]
    rows = [full(name, setting) for setting in settings]
    together = surface_path(name, {key: [row[key] for row in rows] for key in rows[0]}, len(rows))
    for run, row in enumerate(rows):
        assert_same_path(together[..., run], surface_path(name, row)[..., 0], f"{name} run {run}")


# ------------------------------------------------------------------------------------------------- a small network

SHAPES = ((8, 5), (8,), (3, 8), (3,))
SAMPLES, BATCH = 64, 16


def draws():
    """Inputs, labels, the minibatch of every step, and first weights: fixed numbers."""
    generator = torch.Generator().manual_seed(2026)
    inputs = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (SAMPLES,), generator=generator)
    batches = torch.randint(SAMPLES, (STEPS, BATCH), generator=generator)
    count = sum(torch.Size(shape).numel() for shape in SHAPES)
    weights = 0.4 * torch.randn(count, generator=generator, dtype=torch.float64)
    return inputs, labels, batches, weights


def network_loss(space, x, inputs, labels):
    """Cross-entropy of a two-layer tanh network over a batch, one a run; x is (runs, parameters)."""
    w1, b1, w2, b2 = space.blocks(x)
    hidden = torch.tanh(torch.einsum("roi,bi->rbo", w1, inputs) + b1[:, None])
    scores = torch.einsum("roi,rbi->rbo", w2, hidden) + b2[:, None]
    return torch.stack([F.cross_entropy(row, labels) for row in scores])


def network_path(name, hypers):
    """(steps + 1, runs, parameters) of one method, a run for each row of hyperparameters."""
    inputs, labels, batches, weights = draws()
    space, method = Space(axis=-1, shapes=SHAPES), method_of(name)
    x = weights.repeat(len(hypers), 1)
    state = method.init(space, x)
    ready = {key: space.per_run(torch.tensor([row[key] for row in hypers], dtype=x.dtype)) for key in hypers[0]}
    points = [x]
    for rows in batches:

        def oracle(p, draw=0, rows=rows):
            return value_and_gradient(lambda q: network_loss(space, q, inputs[rows], labels[rows]), p)

        x, state, _ = method.step(space, oracle, x, state, ready, ())
        points.append(x)
    return torch.stack(points)


def torch_network_path(make, setting):
    """(steps + 1, parameters) of a plain PyTorch loop on an nn.Module with the same weights and minibatches."""
    inputs, labels, batches, weights = draws()
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    nn.utils.vector_to_parameters(weights.clone(), net.parameters())
    optimizer = make(net.parameters(), **torch_words(setting))
    points = [weights]
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        points.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("name", PEERS)
def test_equals_torch_on_an_mlp(name):
    make, settings = PEERS[name]
    faster = 20 if make in (torch.optim.SGD, NESTEROV) else 1  # the net is flatter than Rosenbrock's valley
    rows = [{**full(name, setting), "lr": faster * full(name, setting)["lr"]} for setting in settings]
    together = network_path(name, rows)
    for run, row in enumerate(rows):
        assert_same_path(together[:, run], torch_network_path(make, row), f"{name} {row}")
    assert_same_path(network_path(name, rows[:1])[:, 0], together[:, 0], f"{name} {rows[0]} alone")

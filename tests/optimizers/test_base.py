"""Adding an optimizer is one declaration: the class body below, nothing else, makes a method that works everywhere."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from workbench.catalogue import find_objective
from workbench.descent import Descent
from workbench.optimizers import Optimizer
from workbench.optimizers.classical import learning_rate
from workbench.routine import Hyper, Key
from workbench.space import Space


class LionState(NamedTuple):
    m: Tensor


class Lion(Optimizer):
    """x ← x - lr sign(beta1 m + (1 - beta1) g);  m ← beta2 m + (1 - beta2) g."""

    name = "lion-of-this-test"
    title = "Lion"
    source = "Chen et al. 2023, arXiv:2302.06675, program 1"
    lr = learning_rate(1e-3)
    beta1 = Hyper(0.9, 0.0, 1.0)
    beta2 = Hyper(0.99, 0.0, 1.0)

    def init(self, space, x):
        return LionState(torch.zeros_like(x))

    def step(self, space, oracle, x, state, hyper, noise):
        _, g = oracle(x)
        m = hyper["beta2"] * state.m + (1 - hyper["beta2"]) * g
        x = x - hyper["lr"] * (hyper["beta1"] * state.m + (1 - hyper["beta1"]) * g).sign()
        return x, LionState(m), {}


def test_a_declared_optimizer_runs_on_a_surface_batched_over_its_own_hyperparameters():
    routine = Descent(find_objective("rosenbrock"), Lion())
    assert set(routine.hypers) == {"lr", "beta1", "beta2"}
    state = routine.init(Key(0), runs=3)
    hyper = routine.normalise({"lr": [1e-4, 1e-3, 1e-2], "beta1": 0.5}, runs=3)
    first = state.x
    for _ in range(5):
        state, info = routine.step(state, hyper, ())
    moved = (state.x - first).abs().amax(0)
    torch.testing.assert_close(moved, 5 * torch.tensor([1e-4, 1e-3, 1e-2]), rtol=1e-3, atol=0)
    assert info["loss"].shape == (3,)
    assert routine.recipe() == "wb.descent('rosenbrock', 'lion-of-this-test')"


def test_the_same_declaration_runs_on_layers_with_the_run_axis_first():
    space, method = Space(axis=-1, shapes=((2, 3), (2,))), Lion()
    x = torch.ones(2, 8)
    hyper = {
        name: space.per_run(torch.tensor([value, 2 * value]))
        for name, value in {"lr": 0.1, "beta1": 0.4, "beta2": 0.4}.items()
    }
    moved, state, _ = method.step(
        space, lambda p, draw=0: (p.square().sum(-1), 2 * p), x, method.init(space, x), hyper, ()
    )
    assert torch.equal(moved, torch.tensor([0.9, 0.8])[:, None].expand(2, 8))
    assert isinstance(state, LionState)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"momentum": 0.9}, "expected a hyperparameter to be one of beta1, beta2, lr; got 'momentum'"),
        ({"beta1": 1.5}, "expected beta1 to be a number from 0 to 1, got 1.5"),
        ({"lr": [0.1, -1.0]}, "expected lr to be a number from 0 to 10000, got -1.0 in one run"),
    ],
)
def test_unknown_and_illegal_hyperparameters_are_named(hyper, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Descent(find_objective("rosenbrock"), Lion()).normalise(hyper)

"""Gradient descent and the two momenta: Cauchy 1847, Polyak 1964, Nesterov 1983."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.optimizers.base import Optimizer
from workbench.routine import Hyper

OVERVIEW = "an-overview-of-gradient-descent"


def learning_rate(default: float) -> Hyper:
    """The step size `lr`, per step."""
    return Hyper(default, 0.0, 1e4, "log", (1e-5, 10.0), doc="Step size.")


def decay() -> Hyper:
    """L2 penalty added to the gradient, as torch.optim does."""
    return Hyper(0.0, 0.0, 1.0, soft=(0.0, 0.1), doc="L2 penalty: adds weight_decay * x to the gradient.")


class GradientDescent(Optimizer):
    """x ← x - lr (g + weight_decay x).

    Source: Cauchy 1847; equal to torch.optim.SGD(momentum=0) step for step.
    """

    name = "sgd"
    title = "Gradient descent"
    source = "Cauchy 1847, Comptes Rendus 25; survey: Ruder 2016, arXiv:1609.04747"
    ledger = OVERVIEW
    evidence = "tests/optimizers/test_torch_parity.py::test_equals_torch_on_a_surface[sgd]"
    lr = learning_rate(1e-3)
    weight_decay = decay()

    def step(self, space, oracle, x, state, hyper, noise):
        _, g = oracle(x)
        return x - hyper["lr"] * (g + hyper["weight_decay"] * x), state, {}


class MomentumState(NamedTuple):
    """`b`: the velocity, shaped like the point. `started`: 0 before the first step, then 1."""

    b: Tensor
    started: Tensor


class HeavyBall(Optimizer):
    """b ← momentum b + (1 - dampening) g, the first b is g;  x ← x - lr b;  g includes weight_decay x.

    Source: Polyak 1964; equal to torch.optim.SGD(momentum, dampening) step for step.
    """

    name = "momentum"
    title = "Heavy-ball momentum"
    source = "Polyak 1964, USSR Comp. Math. 4(5); survey: Ruder 2016, arXiv:1609.04747"
    ledger = OVERVIEW
    evidence = "tests/optimizers/test_torch_parity.py::test_equals_torch_on_a_surface[momentum]"
    lr = learning_rate(1e-3)
    momentum = Hyper(0.9, 0.0, 1.0, soft=(0.0, 0.999), doc="Share of the velocity kept each step.")
    dampening = Hyper(0.0, 0.0, 1.0, doc="Share of the new gradient left out of the velocity.")
    weight_decay = decay()

    def init(self, space, x):
        return MomentumState(torch.zeros_like(x), x.new_zeros(()))

    def velocity(self, x, g, state, hyper):
        """The new velocity and the gradient with its L2 penalty."""
        g = g + hyper["weight_decay"] * x
        fresh = 1 - hyper["dampening"] * state.started
        return hyper["momentum"] * state.b + fresh * g, g

    def step(self, space, oracle, x, state, hyper, noise):
        _, g = oracle(x)
        b, _ = self.velocity(x, g, state, hyper)
        return x - hyper["lr"] * b, MomentumState(b, torch.ones_like(state.started)), {}


class Nesterov(HeavyBall):
    """b ← momentum b + g;  x ← x - lr (g + momentum b);  g includes weight_decay x.

    The form of Sutskever et al. 2013, with the gradient taken at the point itself; equal to
    torch.optim.SGD(nesterov=True) step for step.
    """

    name = "nesterov"
    title = "Nesterov momentum"
    source = "Nesterov 1983, Dokl. Akad. Nauk SSSR 269(3); form of Sutskever et al. 2013, ICML"
    evidence = "tests/optimizers/test_torch_parity.py::test_equals_torch_on_a_surface[nesterov]"
    dampening = None  # type: ignore[assignment]

    def velocity(self, x, g, state, hyper):
        g = g + hyper["weight_decay"] * x
        return hyper["momentum"] * state.b + g, g

    def step(self, space, oracle, x, state, hyper, noise):
        _, g = oracle(x)
        b, g = self.velocity(x, g, state, hyper)
        return x - hyper["lr"] * (g + hyper["momentum"] * b), MomentumState(b, state.started), {}

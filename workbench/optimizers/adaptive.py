"""Step sizes from the gradient's own running second moment: RMSprop, Adam, AdamW."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.optimizers.base import Optimizer
from workbench.optimizers.classical import OVERVIEW, decay, learning_rate
from workbench.routine import Hyper


def _eps() -> Hyper:
    return Hyper(1e-8, 0.0, 1.0, "log", (1e-12, 1e-1), doc="Added to the root of the second moment.")


class RMSpropState(NamedTuple):
    """`v`: running mean of g², shaped like the point."""

    v: Tensor


class RMSprop(Optimizer):
    """v ← alpha v + (1 - alpha) g²;  x ← x - lr g / (√v + eps);  g includes weight_decay x.

    Source: Tieleman & Hinton 2012, lecture 6.5; equal to torch.optim.RMSprop (not centred, no momentum) step for step.
    """

    name = "rmsprop"
    title = "RMSprop"
    source = "Tieleman & Hinton 2012, COURSERA lecture 6.5; survey: Ruder 2016, arXiv:1609.04747"
    ledger = OVERVIEW
    evidence = "tests/optimizers/test_torch_parity.py::test_equals_torch_on_a_surface[rmsprop]"
    lr = learning_rate(1e-2)
    alpha = Hyper(0.99, 0.0, 1.0, soft=(0.5, 0.9999), doc="Memory of the running mean of squared gradients.")
    eps = _eps()
    weight_decay = decay()

    def init(self, space, x):
        return RMSpropState(torch.zeros_like(x))

    def step(self, space, oracle, x, state, hyper, noise):
        _, g = oracle(x)
        g = g + hyper["weight_decay"] * x
        v = hyper["alpha"] * state.v + (1 - hyper["alpha"]) * g * g
        return x - hyper["lr"] * g / (v.sqrt() + hyper["eps"]), RMSpropState(v), {}


class AdamState(NamedTuple):
    """`m`, `v`: running means of g and g². `p1`, `p2`: running products of beta1 and beta2, for the corrections."""

    m: Tensor
    v: Tensor
    p1: Tensor
    p2: Tensor


class Adam(Optimizer):
    """m ← beta1 m + (1 - beta1) g;  v ← beta2 v + (1 - beta2) g²;  x ← x - lr m̂ / (√v̂ + eps).

    m̂ = m / (1 - ∏ beta1), v̂ = v / (1 - ∏ beta2): with betas turned while it runs, the products keep the correction
    exact, where powers of the present beta would not. g includes weight_decay x.
    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; equal to torch.optim.Adam step for step.
    """

    name = "adam"
    title = "Adam"
    source = "Kingma & Ba 2015, arXiv:1412.6980"
    ledger = OVERVIEW
    evidence = "tests/optimizers/test_torch_parity.py::test_equals_torch_on_a_surface[adam]"
    lr = learning_rate(1e-3)
    beta1 = Hyper(0.9, 0.0, 1.0, soft=(0.0, 0.999), doc="Memory of the running mean of gradients.")
    beta2 = Hyper(0.999, 0.0, 1.0, soft=(0.5, 0.9999), doc="Memory of the running mean of squared gradients.")
    eps = _eps()
    weight_decay = decay()

    def init(self, space, x):
        one = torch.ones_like(x.select(space.axis, 0)).unsqueeze(space.axis)
        return AdamState(torch.zeros_like(x), torch.zeros_like(x), one, one)

    def shrink(self, x, g, hyper):
        """Where the weight decay acts: on the gradient."""
        return x, torch.addcmul(g, hyper["weight_decay"], x)

    def step(self, space, oracle, x, state, hyper, noise):
        _, g = oracle(x)
        x, g = self.shrink(x, g, hyper)
        m = torch.lerp(g, state.m, hyper["beta1"])
        v = torch.lerp(g * g, state.v, hyper["beta2"])
        p1, p2 = state.p1 * hyper["beta1"], state.p2 * hyper["beta2"]
        root = (1 - p2).sqrt()  # as the paper's section 2 orders it: x - lr root/(1 - p1) m / (√v + root eps)
        rate, eps = hyper["lr"] * root / (1 - p1), hyper["eps"] * root
        return torch.addcdiv(x, rate * m, v.sqrt() + eps, value=-1), AdamState(m, v, p1, p2), {}


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: x ← (1 - lr weight_decay) x first, then Adam's step.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2; equal to torch.optim.AdamW step for step.
    """

    name = "adamw"
    title = "AdamW"
    source = "Loshchilov & Hutter 2019, arXiv:1711.05101"
    ledger = "decoupled-weight-decay-regularization"
    evidence = "tests/optimizers/test_torch_parity.py::test_equals_torch_on_a_surface[adamw]"
    weight_decay = Hyper(1e-2, 0.0, 1.0, soft=(0.0, 0.5), doc="Decoupled decay: shrinks x by lr * weight_decay.")

    def shrink(self, x, g, hyper):
        return x * (1 - hyper["lr"] * hyper["weight_decay"]), g

"""c-rectified flow: reflow whose velocity comes from a potential, so that its rounds lower a chosen transport cost."""

from typing import Any

import torch

from workbench.flows.nets import Nets
from workbench.flows.objectives import FlowObjective
from workbench.flows.predictions import straight
from workbench.flows.training import NetField
from workbench.problems.networks import Model
from workbench.routine import Hyper


class CRectified(FlowObjective):
    """E [c*(∇φ(x_t, t)) - (x1 - x0)·∇φ(x_t, t) + c(x1 - x0)] p / dim, with c(v) = Σ |v_i|^p / p and v = ∇c*(∇φ).

    The net is a potential φ, one number, and c*(g) = Σ |g_i|^q / q with 1/p + 1/q = 1 is the conjugate of the cost: the
    bracket is 0 where v = x1 - x0 and above 0 elsewhere. With p = 2 it is flow matching whose velocity is a gradient:
    what turns and moves no mass is left out. Train it on the pairs of a "reflow" of its own last field, and
    E c(x1 - x0) falls from round to round, to that of optimal transport between normals, with the marginals kept; plain
    reflow stops where straight lines do not cross. It need not come there in general: Hertrich, Chambolle & Delon 2025,
    arXiv:2505.19712, have counterexamples. The net should be smooth ("silu"). Above p = 2 the velocity is infinitely
    steep where it is 0, and is learned less well. The premetric is not used: the cost takes its place.
    Source: Liu 2022, arXiv:2209.14577, on c-rectified flow; the loss for a power p derived here from
    Fenchel's inequality.
    """

    name = "c-rectified-flow"
    title = "c-rectified flow (velocity of a potential)"
    source = "Liu 2022, arXiv:2209.14577"
    ledger = "rectified-flow"
    evidence = "tests/flows/test_c_rectified.py::test_the_best_quadratic_potential_is_the_closed_form[0.3]"
    power: Any = Hyper(2.0, 1.1, 10.0, "log", (1.2, 6.0), kind="init", doc="p of the cost |x1 - x0|^p that is lowered.")

    def check(self, path):
        straight(self, path)

    def network(self, model, dim, classes):
        return Potential(model, dim, classes, self.power)

    def field(self, net, params, path, source, target):
        made = PotentialField(net, params, "velocity", path, source, target)
        made.objective = self
        return made

    def loss(self, net, old, batch, setting):
        p, moved = self.power, batch.x1 - batch.x0
        slope = net(setting.path.at(batch.x0, batch.x1, batch.t), batch.t)
        cost = moved.abs() ** p / p
        gap = conjugate(slope, p) - moved * slope + cost
        return (setting.weight(batch.t) * p * gap.mean(-1)).mean(-1)


def conjugate(slope: torch.Tensor, p: float) -> torch.Tensor:
    """c*(g) of each coordinate, of c(v) = |v|^p / p."""
    q = p / (p - 1)
    return slope.abs() ** q / q


def fastest(slope: torch.Tensor, p: float) -> torch.Tensor:
    """∇c*(g): the velocity that a slope of the potential asks for."""
    return slope.sign() * slope.abs() ** (1 / (p - 1))


class Potential(Nets):
    """A net of one output φ that answers with its slope ∇φ in the points; `power` is that of the cost."""

    def __init__(self, model: Model, dim: int, classes: int, power: float) -> None:
        super().__init__(model, dim, classes, {"potential": (0, 1)})
        self.power = power

    def __call__(self, params, x, t, labels=None, **more):
        """∇φ (runs, n, dim), at points, times and classes as for `FlowNet`."""
        taped = torch.is_grad_enabled() and (params.requires_grad or x.requires_grad)
        with torch.enable_grad():
            x = x.expand(len(params), *x.shape[-2:])
            x = x if x.requires_grad else x.detach().requires_grad_()
            height = super().__call__(params, x, t, labels)
            (slope,) = torch.autograd.grad(height.sum(), x, create_graph=taped)
        return slope


class PotentialField(NetField):
    """The velocity ∇c*(∇φ) of a potential."""

    net: Any

    def known(self, x, t, rows=None):
        slope = self.net(self.params, *self.asked(x, t, rows)).squeeze(0)
        return {"velocity": fastest(slope, self.net.power).reshape(x.shape)}

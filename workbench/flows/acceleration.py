"""Constant acceleration flow: paths that start at one velocity and change it evenly, so that one step goes all the way.

x_t = x0 + v0 t + a t² / 2        v0 = h (x1 - x0), a = 2 (x1 - x0) - 2 v0        t = 0 is the source, 1 the data
"""

from typing import Any

from workbench.flows.interpolants import Interpolant
from workbench.flows.nets import Nets
from workbench.flows.objectives import FlowObjective
from workbench.flows.predictions import straight
from workbench.flows.training import NetField
from workbench.routine import Hyper
from workbench.samplers.base import Solver, Step, column


class AcceleratedPath(Interpolant):
    """alpha = h t + (1 - h) t², sigma = 1 - alpha: the line from x0 to x1, entered at h times its mean speed."""

    name = "accelerated-path"
    title = "Constant acceleration"
    h: Any = Hyper(1.5, 0.0, 1.99, kind="init", doc="The first speed, in units of the mean speed.")

    def alpha(self, t):
        return self.h * t + (1 - self.h) * t * t

    def sigma(self, t):
        return 1 - self.alpha(t)

    def d_alpha(self, t):
        return self.h + 2 * (1 - self.h) * t

    def d_sigma(self, t):
        return -self.d_alpha(t)


class ConstantAcceleration(FlowObjective):
    """E |v(x_t, t) - h (x1 - x0)|² + E |a(x̂_t, t, v̂) - 2 (x1 - x0) + 2 v̂|² with v̂ = v(x0, 0) held fixed.

    Two nets, trained at once, in one vector of parameters: a first velocity v and an acceleration a, which is told the
    first velocity v̂ that was predicted and makes up for its errors. x_t = x0 + h (x1 - x0) t + (1 - h) (x1 - x0) t²,
    and x̂_t is the same curve from v̂ instead. h = 1 is rectified flow, whose acceleration is 0. Meant for pairs of a
    reflow, whose paths do not cross; the solver "constant-acceleration" goes x0 + v + a / 2 in one step. Other solvers
    see the velocity v(x, t) + a(x, t, v(x, t)) t, which is defined everywhere.
    Source: Park et al. 2024, arXiv:2411.00322; checked with flow/pipeline_caf.py of its code (h is its alpha, 1.5),
    which trains v first and a after it.
    """

    name = "constant-acceleration-flow"
    title = "Constant acceleration flow"
    source = "Park et al. 2024, arXiv:2411.00322"
    ledger = "constant-acceleration-flow"
    evidence = "tests/flows/test_acceleration.py::test_exact_nets_have_no_loss_and_reach_the_end_in_one_step[1.5]"
    h: Any = Hyper(1.5, 0.0, 1.99, kind="init", doc="The first speed, in units of the mean speed; 1 is rectified flow.")
    told: Any = Hyper(
        "velocity", scale="choice", choices=("velocity", "nothing"), kind="init", doc="What the acceleration is told."
    )

    def check(self, path):
        straight(self, path)

    def network(self, model, dim, classes):
        return Nets(model, dim, classes, {"velocity": (0, dim), "acceleration": (dim, dim)})

    def field(self, net, params, path, source, target):
        kind = ("velocity", "acceleration") if self.told == "velocity" else ("velocity",)
        made = AcceleratedField(net, params, kind, path, source, target)
        made.objective, made.interpolant = self, AcceleratedPath(h=self.h)
        return made

    def loss(self, net, old, batch, setting):
        whole, t = batch.x1 - batch.x0, batch.t.unsqueeze(-1)
        v0 = self.h * whole
        of_v = net(batch.x0 + v0 * t + (whole - v0) * t * t, batch.t) - v0
        guess = net(batch.x0, batch.t.new_zeros(())).detach()
        x, told = batch.x0 + guess * t + (whole - guess) * t * t, guess if self.told == "velocity" else 0 * guess
        of_a = net(x, batch.t, part="acceleration", given=told) - 2 * (whole - guess)
        return (setting.weight(batch.t) * (setting.size(of_v) + setting.size(of_a))).mean(-1)


class AcceleratedField(NetField):
    """Of the two nets: velocity v + a t at (x, t), beside the acceleration a and the velocity v that paths began with.

    `kind` names "acceleration" when a is told v.
    """

    net: Any

    def known(self, x, t, rows=None):
        flat, times, labels = self.asked(x, t, rows)
        v0 = self.net(self.params, flat, times, labels)
        told = v0 if "acceleration" in self.kind else 0 * v0
        a = self.net(self.params, flat, times, labels, part="acceleration", given=told)
        v = v0 + a * times.unsqueeze(-1)
        return {kind: value.reshape(x.shape) for kind, value in {"velocity": v, "acceleration": a}.items()}


class ConstantAccelerationStep(Solver):
    """x ← x + η v + η² a / 2 with η the step in time: exact, in one step, where the acceleration a is constant.

    v and a are the field's at (x, t). Only a field that a constant acceleration flow has learned tells an acceleration,
    and from t = 0 to 1 its step is x0 + v0 + a / 2; with others this is Euler's method. With several steps the first
    velocity v0 is asked anew at each of them, where the paper keeps the one of the start.
    Source: Park et al. 2024, arXiv:2411.00322; `sample` in flow/pipeline_caf.py of its code.
    """

    name = "constant-acceleration"
    title = "Constant acceleration"
    source = "Park et al. 2024, arXiv:2411.00322"
    evidence = "tests/flows/test_acceleration.py::test_exact_nets_have_no_loss_and_reach_the_end_in_one_step[1.5]"
    order = 1

    def step(self, field, path, x, t, end, state, hyper, noise):
        prediction, h = field(x, t), column(end - t)
        x = x + h * prediction.velocity
        a = prediction.known.get("acceleration")
        return Step(x if a is None else x + h * h / 2 * a, end, (), {})

"""Consistency flow matching: a flow whose velocity stays what it is along a path, learned without a teacher."""

from typing import Any

import torch

from workbench.flows.interpolants import Interpolant
from workbench.flows.objectives import FlowObjective
from workbench.flows.predictions import straight
from workbench.routine import Hyper


class ConsistencyFlowMatching(FlowObjective):
    """E |f(x_t, t) - f⁻(x_r, r)|² + alpha |v(x_t, t) - v⁻(x_r, r)|², f(x, t) = x + (e - t) v(x, t), r = min(t + dt, e).

    [s, e] is the segment of time that t is in, x_t and x_r are points of one line (1 - t) x0 + t x1, and ⁻ is the net
    at an average of its parameters, x⁻ ← ema x⁻ + (1 - ema) x. At r = e, f⁻ is the point x_e itself, and velocities are
    not compared. 0 exactly where v is constant along every line. Draw with Euler's method, one step a segment or more.

    Source: Yang et al. 2024, arXiv:2407.02398; checked against its public code, whose ⁻ is the net itself without a
    gradient (ema = 0), and which does not stop r at the end of a segment but the last. In
    the plane the velocities' term was seen to help nothing, and from 0.1 on to do harm: hence the small default.
    """

    name = "consistency-flow-matching"
    title = "Consistency flow matching"
    source = "Yang et al. 2024, arXiv:2407.02398"
    ledger = "consistency-flow-matching"
    evidence = "tests/flows/test_consistency.py::test_the_loss_is_the_formula[2]"
    segments: Any = Hyper(
        1, 1, 16, "integer", (1, 4), kind="init", unit="segments", doc="Parts of time, each straight."
    )
    dt: Any = Hyper(
        0.05, 1e-4, 1.0, "log", (1e-3, 0.2), kind="init", doc="Time from a point to the one it agrees with."
    )
    alpha: Any = Hyper(1e-5, 0.0, 10.0, soft=(0.0, 0.01), kind="init", doc="What differing velocities count for.")
    ema: Any = Hyper(0.9, 0.0, 0.99999, soft=(0.0, 0.999), kind="init", doc="Of the average is kept at each step.")

    def check(self, path: Interpolant) -> None:
        straight(self, path)

    def init(self, x):
        return (x.clone(),)

    def update(self, state, x, hyper):
        return (self.ema * state[0] + (1 - self.ema) * x,)

    def loss(self, net, old, batch, setting):
        t = batch.t
        end = (t * self.segments).floor().clamp(max=self.segments - 1).add(1) / self.segments
        later = torch.minimum(t + self.dt, end)
        here, there = (setting.path.at(batch.x0, batch.x1, when) for when in (t, later))
        v = net(here, t)
        with torch.no_grad():
            aim = old(there, later)
        missed = here + (end - t).unsqueeze(-1) * v - there - (end - later).unsqueeze(-1) * aim
        apart = (later < end) * setting.size(v - aim)
        return (setting.weight(t) * (setting.size(missed) + self.alpha * apart)).mean(-1)

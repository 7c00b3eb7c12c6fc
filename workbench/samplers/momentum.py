"""Momentum for multistep diffusion solvers: Polyak's heavy ball around what they integrate, for wider stability.

v ← (1 - beta) v + beta u mixes the last increments u, or the last predictions; beta = 1 leaves the plain solver. The
first v is what it would be mixed with. One evaluation a step.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.routine import Hyper
from workbench.samplers.base import Solver, Step
from workbench.samplers.deis import transfer
from workbench.samplers.exponential import Past, first_order, level, moment, span, taylor

MOST = 4
"""Terms of Adams–Bashforth."""

BETA_DOC = "How much of the step is new: 1 is no momentum."
TERMS_DOC = "Predictions that a step is made of; the first steps have fewer."


class Moving(NamedTuple):
    """`velocity`: the mean so far. `past`: earlier predictions, or velocities."""

    velocity: Tensor
    past: Past


def mixed(new: Tensor, old: Tensor, beta: Tensor, there_is_old: Tensor) -> Tensor:
    """(1 - beta) old + beta new, which is `new` to the bit where beta is 1 or there is no old one."""
    return new + torch.where(there_is_old, (1 - beta) * (old - new), 0)


def mean_over_step(clock: list[Tensor], values: list[Tensor], h: Tensor) -> Tensor:
    """The mean over the next h of the polynomial in time through values at times clock, latest first."""
    total = values[0]
    for k, slope in enumerate(taylor(clock, values), 1):
        total = total + h**k / (k + 1) * slope
    return total


class HeavyBallPLMS(Solver):
    """v ← (1 - beta) v + beta u, u the mean of the noise over the step by Adams–Bashforth; x_t = transfer(x, v).

    `transfer` is the DDIM step, (alpha_t / alpha_s) (x - s_s v) + s_t v: Euler's method for x / alpha in s / alpha.
    beta = 1 and four terms is "ipndm", which is PLMS with fewer terms in its first steps. Of first order when beta < 1.
    Steps of length 1 along x' = -z x are stable as far as those of Adams–Bashforth, times (2 - beta) / beta.
    Source: Wizadwongsa, Chinchuthakun, Khungurn, Raj & Suwajanakorn 2023, arXiv:2307.11118, "HB", as in
    https://github.com/sWizad/momentum-diffusion; on unequal steps by the polynomial, which they do not have.
    """

    name = "hb-plms"
    title = "PLMS with heavy ball"
    kind = "diffusion"
    source = "Wizadwongsa et al. 2023, arXiv:2307.11118"
    ledger = "diffusion-sampling-with-momentum-for"
    evidence = "tests/samplers/test_momentum.py::test_heavy_ball_around_adams_bashforth_is_its_rule_written_out[4]"
    converts = True
    order = 1
    beta: Any = Hyper(0.8, 0.05, 1.0, doc=BETA_DOC)
    terms: Any = Hyper(4, 1, MOST, "integer", kind="shape", unit="terms", doc=TERMS_DOC)

    def init(self, field, x, t, end):
        return Moving(torch.zeros_like(x), Past.nothing(MOST - 1, x, t))

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        velocity, past, used = self.push(prediction.noise, here.t, there.t - here.t, state, hyper)
        new = first_order(prediction, there) + transfer(here, there) * (used - prediction.noise)
        return Step(new, end, Moving(velocity, past), {})

    def push(self, noise: Tensor, now: Tensor, h: Tensor, state: Moving, hyper: Any) -> tuple[Tensor, Past, Tensor]:
        """The new velocity, what is kept for the next step, and what the DDIM step takes for the noise."""
        n, past = hyper["terms"], state.past
        mean = mean_over_step([now, *past.clock][:n], [noise, *past.values][:n], h)
        velocity = mixed(mean, state.velocity, hyper["beta"], torch.isfinite(past.clock[0]))
        return velocity, past.then(noise, now), velocity


class GeneralisedHeavyBall(HeavyBallPLMS):
    """v ← (1 - beta) v + beta noise; x_t = transfer(x, u), with u a multistep rule for v: GHVB with k terms.

    noise = v + ((1 - beta) / beta) (v - v') undoes the mixing, and u is the mean over the step of that, with the
    polynomial through k values of v and through k - 1 of the difference; on equal steps in time

        k = 1: v        2: ((2 + b) v - (2 - b) v') / 2b        3: ((18 + 5b) v - (24 - 8b) v' + (6 - b) v'') / 12b
        4: ((46 + 9b) v - (78 - 19b) v' + (42 - 5b) v'' - (10 - b) v''') / 24b

    with b = beta. beta = 1 and four terms is "ipndm". Where s / alpha is linear in time k terms are of order k at any
    beta, with an error that grows as beta falls; elsewhere of second order at most, as "ipndm" is. The stretch of
    x' = -z x where steps of length 1 are stable is, for k = 2, z < 2 - beta instead of 1.
    Source: Wizadwongsa, Chinchuthakun, Khungurn, Raj & Suwajanakorn 2023, arXiv:2307.11118, "GHVB", as in
    https://github.com/sWizad/momentum-diffusion; derived here for unequal steps, which they do not have.
    """

    name = "ghvb"
    title = "Generalised heavy ball (GHVB)"
    evidence = "tests/samplers/test_momentum.py::test_generalised_heavy_ball_is_its_rule_written_out[4]"

    def push(self, noise, now, h, state, hyper):
        n, past, beta = hyper["terms"], state.past, hyper["beta"]
        velocity = mixed(noise, state.velocity, beta, torch.isfinite(past.clock[0]))
        clock, values = [now, *past.clock][:n], [velocity, *past.values][:n]
        used = mean_over_step(clock, values, h)
        if n > 1:
            there = [torch.isfinite(c) for c in clock[1:]]
            changes = [torch.where(known, values[j] - values[j + 1], 0) for j, known in enumerate(there)]
            times = [clock[0], *(torch.where(there[j], clock[j], torch.inf) for j in range(1, n - 1))]
            used = used + (1 - beta) / beta * mean_over_step(times, changes, h)
        return velocity, past.then(velocity, now), used


class HeavyBallDPMSolverPP2M(Solver):
    """v ← (1 - beta) v + beta (data + (h / 2 h') (data - data')); x_t = (s_t / s_s) x + alpha_t (1 - e^-h) v.

    beta = 1 is "dpm-solver-pp-2m". v starts with the second step: the first is a DDIM step. Of first order when
    beta < 1.
    Source: Wizadwongsa, Chinchuthakun, Khungurn, Raj & Suwajanakorn 2023, arXiv:2307.11118, DPM-Solver++ with HB, as in
    https://github.com/sWizad/momentum-diffusion.
    """

    name = "hb-dpm-solver-pp-2m"
    title = "DPM-Solver++(2M) with heavy ball"
    kind = "diffusion"
    source = "Wizadwongsa et al. 2023, arXiv:2307.11118"
    ledger = "diffusion-sampling-with-momentum-for"
    evidence = "tests/samplers/test_momentum.py::test_heavy_ball_around_dpm_solver_is_its_rule_written_out"
    converts = True
    order = 1
    beta: Any = Hyper(0.8, 0.05, 1.0, doc=BETA_DOC)

    def init(self, field, x, t, end):
        return Moving(torch.zeros_like(x), Past.nothing(2, x, t))

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction, h, past = field(x, t), span(here, there), state.past
        (slope,) = taylor([here.lam, past.clock[0]], [prediction.data, past.values[0]])
        change = h / 2 * slope
        aim = prediction.data + change
        velocity = mixed(aim, state.velocity, hyper["beta"], torch.isfinite(past.clock[1]))
        weight = there.alpha * moment(0, h, "data")
        new = first_order(prediction, there) + weight * change + weight * (velocity - aim)
        return Step(new, end, Moving(velocity, past.then(prediction.data, here.lam)), {})

"""Samplers of diffusion bridges, which know where they started. On a field without a known start they are DDIM and kin.

A bridge is q(x_t | data, start) = N(a start + b data, c² I); `flows.bridge` has exact fields of them, whose points are
pairs (x_t, start). Everywhere else a = 0, b = alpha and c = spread. With data as predicted at t and
noise = (x_t - a_t start - b_t data) / c_t, the step from t to s is

    x_s = a_s start + b_s data + c_s (√(1 - v) noise + √v z),        z ~ N(0, I)

which keeps q for every v from 0 to 1. Where a bridge starts c is 0: there is no noise yet, and v = 1 draws it.
Source: Zheng, He, Chen, Bao & Zhu 2025, arXiv:2405.15885; times run the other way there, and derived here.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.flows.bridge import BrownianBridge
from workbench.flows.interpolants import Interpolant
from workbench.routine import Hyper
from workbench.samplers.base import Evaluate, Solver, Step, column
from workbench.samplers.ddim import fresh_share
from workbench.samplers.exponential import Level, Past, finite, integral, level, moment, span, unit_normal
from workbench.samplers.stochastic import generative

SOURCE = "Zheng, He, Chen, Bao & Zhu 2025, arXiv:2405.15885"
LEDGER = "diffusion-bridge-implicit-models"


def bridge_level(path: Interpolant, t: Tensor) -> Level:
    """b, c and λ = log(b / c) at time t, as `alpha`, `sigma` and `lam`, each shaped to multiply points."""
    if not isinstance(path, BrownianBridge):
        return level(path, t)
    t = column(t)
    return Level(t, t, path.gamma(t), (t / ((1 - t) * path.scale)).log() / 2)


def drawn_anew(path: Interpolant, here: Level, there: Level, eta: Any) -> Tensor:
    """v: eta² times that of the Markov chain; 1 where a bridge has no noise yet. Going back to the start it is 0.

    Of a Brownian bridge from t to s: (s - t) / (s (1 - t)). Else 1 - e^-2h, as in DDIM.
    """
    if not isinstance(path, BrownianBridge):
        return eta * eta * fresh_share(here, there).clamp(min=0.0)
    markov = finite((there.t - here.t) / (there.t * (1 - here.t))).clamp(0.0, 1.0)
    return torch.where(here.sigma > 0, eta * eta * markov, 1.0)


class Seen(NamedTuple):
    """Data as predicted, and noise and start that go with it; the start is None where none is known."""

    data: Tensor
    noise: Tensor
    start: Any


def look(field: Evaluate, path: Interpolant, x: Tensor, t: Tensor, here: Level) -> Seen:
    """One evaluation."""
    prediction = field(x, t)
    if not isinstance(path, BrownianBridge):
        return Seen(prediction.data, prediction.noise, None)
    (now, start), data = x.chunk(2, -1), prediction.data.chunk(2, -1)[0]
    return Seen(data, finite((now - here.alpha * data - path.sigma(here.t) * start) / here.sigma), start)


def placed(path: Interpolant, x: Tensor, start: Any, there: Level) -> Tensor:
    """x, which is b data + c noise, with a_s start, and the start beside it."""
    return x if start is None else torch.cat([x + path.sigma(there.t) * start, start], -1)


class DBIM(Solver):
    """x_s = a_s start + b_s data + c_s (√(1 - v) noise + √v z), v = eta² times that of the Markov chain.

    eta = 0 is deterministic after the first step from a known start, and can go back; eta = 1 is the Markov chain. With
    the exact prediction and 5 to 20 steps "bridge-euler-maruyama" is nearer to the law: it forgets early errors.
    Points of `flows.bridge` are pairs (x, start). On other fields it is "ddim-eta".
    Source: Zheng, He, Chen, Bao & Zhu 2025, arXiv:2405.15885, "DBIM"; v is derived here.
    """

    name = "dbim"
    title = "Diffusion bridge implicit model (DBIM)"
    kind = "diffusion"
    source = SOURCE
    ledger = LEDGER
    evidence = "tests/samplers/test_bridges.py::test_the_law_of_the_bridge_is_kept[0.5]"
    converts = True
    random = True
    order = 1
    eta: Any = Hyper(0.0, 0.0, 1.0, doc="How much of the noise is drawn anew: 0 is deterministic, 1 a Markov chain.")

    def draw(self, key, path, x, t, end):
        return unit_normal(path, t, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = bridge_level(path, t), bridge_level(path, end)
        seen = look(field, path, x, t, here)
        new = first_step(path, seen, here, there, hyper["eta"], noise)
        return Step(placed(path, new, seen.start, there), end, (), {})


def first_step(path: Interpolant, seen: Seen, here: Level, there: Level, eta: Any, z: Tensor) -> Tensor:
    """b_s data + c_s (√(1 - v) noise + √v z)."""
    z, v = z[..., : seen.noise.shape[-1]], drawn_anew(path, here, there, eta)
    return there.alpha * seen.data + there.sigma * ((1 - v).sqrt() * seen.noise + v.sqrt() * z)


class DBIM2(Solver):
    """x_s = (the step of "dbim" at eta = 0) + b_s ∫ e^(τ - h) (data(τ) - data) dτ, data linear in λ = log(b / c).

    Exact for d(x / c) = start d(a / c) + data d(b / c) when data are that; one evaluation a step. The first step from a
    known start draws its noise, and like the last, where c = 0, it is of first order. On other fields it is a
    multistep DPM-Solver++ whose integrals are exact.
    Source: Zheng, He, Chen, Bao & Zhu 2025, arXiv:2405.15885, second order; the integrals are derived here.
    """

    name = "dbim-2"
    title = "DBIM of second order"
    kind = "diffusion"
    source = SOURCE
    ledger = LEDGER
    evidence = "tests/samplers/test_bridges.py::test_order_of_convergence_on_a_bridge[dbim-2]"
    converts = True
    random = True
    order = 2
    past: ClassVar[int] = 1

    def init(self, field, x, t, end):
        return Past.nothing(self.past, x.chunk(2, -1)[0] if isinstance(field.interpolant, BrownianBridge) else x, t)

    def draw(self, key, path, x, t, end):
        return unit_normal(path, t, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = bridge_level(path, t), bridge_level(path, end)
        seen, h = look(field, path, x, t, here), span(here, there)
        new = first_step(path, seen, here, there, 0.0, noise)
        clock, values = [here.lam, *state.clock], [seen.data, *state.values]
        new = new + there.alpha * integral(h, clock, values, "data", moment(1, h, "data"))
        return Step(placed(path, new, seen.start, there), end, state.then(seen.data, here.lam), {})


class DBIM3(DBIM2):
    """As "dbim-2", with data quadratic in λ = log(b / c) through three predictions.

    Of third order when the first step, which has one prediction only, is short; of second when it is like the others.
    Source: Zheng, He, Chen, Bao & Zhu 2025, arXiv:2405.15885, third order; the integrals are derived here.
    """

    name = "dbim-3"
    title = "DBIM of third order"
    evidence = "tests/samplers/test_bridges.py::test_order_of_convergence_on_a_bridge[dbim-3]"
    order = 3
    past = 2


class BridgeEulerMaruyama(Solver):
    """dx = (data - x) / (1 - t) dt + √scale dW by Euler–Maruyama, from a known start; the last step draws no noise.

    The Markov process that bridges to data, with the mean of where it may end in place of the end. On other fields it
    is "euler-maruyama" on the reverse SDE.
    Source: Zhou, Lou, Khanna & Ermon 2024, arXiv:2309.16948; written out here for the Brownian bridge.
    """

    name = "bridge-euler-maruyama"
    title = "Euler–Maruyama of a bridge"
    kind = "sde"
    source = "Zhou, Lou, Khanna & Ermon 2024, arXiv:2309.16948"
    evidence = "tests/samplers/test_bridges.py::test_euler_maruyama_is_its_rule_and_tends_to_the_law"
    converts = True
    random = True
    both_ways = False
    order = 1

    def draw(self, key, path, x, t, end):
        return path.increment(t, end)[0]

    def step(self, field, path, x, t, end, state, hyper, noise):
        h = column(end - t)
        if not isinstance(path, BrownianBridge):
            turned = {"diffusion": torch.ones_like(h), "diffusion_form": "reverse-sde"}
            drift, diffusion = generative(field, path, turned, torch.ones_like(t))
            return Step(x + h * drift(x, t) + diffusion(x, t) * noise, end, (), {})
        (now, start), data = x.chunk(2, -1), field(x, t).data.chunk(2, -1)[0]
        dw = torch.where(column(end) < 1, noise.chunk(2, -1)[0], 0.0)
        new = now + finite(h / column(1 - t)) * (data - now) + path.scale**0.5 * dw
        return Step(torch.cat([new, start], -1), end, (), {})

"""What samplers of diffusion models share: noise levels, the exact first-order step, and polynomials in between.

With s the spread of the interpolant, λ = log(alpha / s), the probability-flow ODE is

    d(x / s) / dλ = e^λ data        or        d(x / alpha) / dλ = -e^-λ noise

so a step of h = λ_t - λ_s on which the prediction is c_0 + c_1 τ + c_2 τ² + …, τ = λ - λ_s, ends at

    x_t = alpha_t data + s_t noise + scale Σ_{k ≥ 1} J_k c_k
    J_k = ∫_0^h e^{-(h - τ)} τ^k dτ, scale = alpha_t (data);        J_k = ∫_0^h e^{h - τ} τ^k dτ, scale = -s_t (noise)

The first two terms are the DDIM step: finite even from λ = -∞ (alpha = 0) and to λ = +∞ (s = 0). There no polynomial in
λ means anything, and that step is all of it. Going back, from data to source, is h < 0. A field that predicts noise
alone cannot tell data at alpha = 0: its samples start later.
"""

import functools
import math
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.flows.fields import Prediction
from workbench.flows.interpolants import Interpolant
from workbench.samplers.base import Solver, Step, column


class Level(NamedTuple):
    """An interpolant at a time, each shaped to multiply points: the time, weights of data and unit noise, and λ."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    @property
    def rho(self) -> Tensor:
        """sigma / alpha: the noise level once data has weight 1; infinite where there is no data."""
        return self.sigma / self.alpha


def level(path: Interpolant, t: Tensor) -> Level:
    """The interpolant at time t; a weight too small for the dtype to tell from 0 is 0."""
    t = column(t)
    least = torch.finfo(t.dtype).eps
    alpha, sigma = (torch.where(weight < least, 0, weight) for weight in (path.alpha(t), path.spread(t)))
    return Level(t, alpha, sigma, alpha.log() - sigma.log())


def first_order(prediction: Prediction, there: Level) -> Tensor:
    """alpha_t data + s_t noise: exact when the prediction does not change on the way."""
    return there.alpha * prediction.data + there.sigma * prediction.noise


def span(here: Level, there: Level) -> Tensor:
    """h = λ_t - λ_s; 0 when it is infinite, which leaves the first-order step alone."""
    return finite(there.lam - here.lam)


def finite(x: Tensor) -> Tensor:
    """x, or 0 where it is infinite or no number."""
    return torch.where(torch.isfinite(x), x, 0)


def inside(*levels: Level) -> Tensor:
    """Whether there are both data and noise at every level: otherwise λ is infinite."""
    return torch.isfinite(sum(at.lam for at in levels))  # type: ignore[arg-type]


def inverse(gap: Tensor) -> Tensor:
    """1 / gap, or 0 where there is no finite gap: an evaluation at no distance or never made tells nothing."""
    return finite(1 / finite(gap))


def phi(k: int, z: Tensor) -> Tensor:
    """φ_k(z) = Σ_j z^j / (j + k)!, that is φ_0 = e^z, φ_{k+1}(z) = (φ_k(z) - 1 / k!) / z; accurate near 0 too."""
    small = z.abs() < 0.5
    near, far = torch.where(small, z, 0), torch.where(small, 1, z)
    series = torch.full_like(z, 1 / math.factorial(k + 13))
    for j in reversed(range(13)):
        series = series * near + 1 / math.factorial(j + k)
    value = far.exp()
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / far
    return torch.where(small, series, value)


def moment(k: int, h: Tensor, form: str) -> Tensor:
    """J_k = k! h^(k+1) φ_{k+1}(-h) for form "data", k! h^(k+1) φ_{k+1}(h) for form "noise"."""
    return math.factorial(k) * h ** (k + 1) * phi(k + 1, h if form == "noise" else -h)


def slope_moment(h: Tensor, clock: list[Tensor], form: str, alone: Tensor) -> Tensor:
    """J_1, or `alone` where the times on the clock give one slope only."""
    if len(clock) < 3:
        return alone
    return torch.where(torch.isfinite(clock[2]), moment(1, h, form), alone)


def scale(there: Level, form: str) -> Tensor:
    """What a change of the prediction weighs in x_t: alpha_t of data, -s_t of noise."""
    return there.alpha if form == "data" else -there.sigma


def taylor(clock: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """c_1, c_2, … of the polynomial values[0] + c_1 τ + c_2 τ² + … through values at times clock, τ from clock[0].

    By Newton's divided differences. A time that is not finite is left out, and the degree is lower by one: such times
    stand last.
    """
    newton, table = [], values
    for k in range(1, len(values)):
        table = [(table[i] - table[i + 1]) * inverse(clock[i] - clock[i + k]) for i in range(len(table) - 1)]
        newton.append(table[0])
    powers: list[Tensor] = []
    for k in reversed(range(len(newton))):
        if not powers:
            powers = [newton[k]]
            continue
        back = finite(clock[0] - clock[k + 1])  # powers ← newton[k] + (τ + back) powers
        middle = [low + back * high for low, high in pairwise(powers)]
        powers = [newton[k] + back * powers[0], *middle, powers[-1]]
    return powers


def integral(h: Tensor, clock: list[Tensor], values: list[Tensor], form: str, alone: Tensor) -> Tensor:
    """Σ_k J_k c_k after h from clock[0] on, of the polynomial through the values; `alone` is J_1 of a single slope."""
    total = torch.zeros_like(values[0])
    for k, slope in enumerate(taylor(clock, values), 1):
        total = total + (slope_moment(h, clock, form, alone) if k == 1 else moment(k, h, form)) * slope
    return total


def gauss_legendre(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (n,) of the rule for ∫ from 0 to 1."""
    nodes, weights = _gauss_legendre(n)
    return torch.as_tensor(nodes).to(like), torch.as_tensor(weights).to(like)


@functools.cache
def _gauss_legendre(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


class Past(NamedTuple):
    """Earlier predictions (runs, samples, dim), latest first, and when on the clock (runs, 1, 1); inf: never."""

    values: tuple[Tensor, ...]
    clock: tuple[Tensor, ...]

    @classmethod
    def nothing(cls, n: int, x: Tensor, t: Tensor) -> "Past":
        """Room for n predictions, none made yet."""
        return cls((torch.zeros_like(x),) * n, (torch.full_like(column(t), math.inf),) * n)

    def then(self, value: Tensor, now: Tensor) -> "Past":
        """With one more, and without the oldest."""
        return Past((value, *self.values)[: len(self.values)], (now, *self.clock)[: len(self.clock)])


def unit_normal(path: Any, t: Tensor, end: Tensor) -> Tensor:
    """The Brownian path's increment from t to end as a unit normal, (runs or 1, samples, dim); 0 over no time."""
    return path.increment(t, end)[0] * inverse((end - t).abs().sqrt()).unsqueeze(-1)


class Multistep(Solver):
    """x_t = alpha_t data + s_t noise + Σ_k weight_k c_k, the polynomial through this and earlier predictions.

    One evaluation a step. The first steps have fewer predictions, and the lower order that goes with it. Subclasses
    write `weights`.

    Attributes:
        form: which prediction is taken for a polynomial, "data" or "noise".
        past: how many earlier predictions are kept.
        clock: what it is a polynomial in: a field of `Level`, "lam", "rho" or "t".
    """

    kind = "diffusion"
    converts = True
    form: ClassVar[str] = "data"
    past: ClassVar[int] = 1
    clock: ClassVar[str] = "lam"

    def init(self, field, x, t, end):
        return Past.nothing(self.past, x, t)

    def weights(self, here: Level, there: Level, clock: list[Tensor]) -> list[Tensor]:
        """What c_1, c_2, … weigh in x_t; `clock` says when each prediction was made, this one first."""
        raise NotImplementedError

    def first(self, prediction: Prediction, here: Level, there: Level, noise: Any) -> Tensor:
        """The step of first order that the polynomial's change is added to."""
        return first_order(prediction, there)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        value, now = prediction[self.form], getattr(here, self.clock)
        clock = [now, *state.clock]
        slopes = taylor(clock, [value, *state.values])
        new = self.first(prediction, here, there, noise)
        for weight, slope in zip(self.weights(here, there, clock), slopes, strict=True):
            new = new + weight * slope
        return Step(new, end, state.then(value, now), {})

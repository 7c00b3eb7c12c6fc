"""Adaptive solvers: every sample has its own time, step and error; a step is one attempt of all still on their way."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.routine import Hyper
from workbench.samplers.base import Solver, Step, blend, column
from workbench.samplers.explicit import Velocity, runge_kutta
from workbench.samplers.tableaus import Tableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
"""Aim below the tolerance; a step gets at most so much shorter or longer than the one before."""
LEAST = 10
"""A step has at least so many units in the last place of its time."""


class Control(NamedTuple):
    """Of each sample: the slope where it is (runs, samples, dim), the length of its next step (runs, samples; 0 when
    none is chosen yet), and 1 when its last attempt was rejected, else 0.
    """

    slope: Tensor
    h: Tensor
    rejected: Tensor


class Attempt(NamedTuple):
    """What came of an attempt, of each sample: where it is now, its next state, the error and the length tried."""

    x: Tensor
    t: Tensor
    control: Control
    error: Tensor
    length: Tensor


class Live:
    """Which samples are still on their way: these alone are evaluated, as one row of points (n, dim) and times (n,)."""

    def __init__(self, t: Tensor, end: Tensor) -> None:
        self.mask = t != end
        self.rows = self.mask.flatten().nonzero().squeeze(-1)
        self.all = len(self.rows) == t.numel()

    def take(self, whole: Tensor) -> Tensor:
        """Their part of (runs, samples, …). Points in few dimensions have one coordinate after the other in memory: a
        product with one number a point then takes a fifth of the time.
        """
        flat = whole.flatten(0, 1)
        part = flat if self.all else flat.index_select(0, self.rows)
        return part.T.contiguous().T if part.ndim == 2 and part.shape[1] <= 4 else part

    def tolerance(self, h: Tensor) -> Tensor:
        """A hyperparameter, shaped to multiply their points."""
        return self.take(h.expand(*self.mask.shape, 1)) if h.ndim else h

    def put(self, part: Tensor, whole: Tensor) -> Tensor:
        """`whole` with their part replaced."""
        if self.all:
            return part.reshape(whole.shape)
        return whole.flatten(0, 1).index_copy(0, self.rows, part).view(whole.shape)


class Embedded(Solver):
    """A Runge–Kutta step with a second result of a lower order, whose distance tells the error; a step for each sample.

    err = √(mean over coordinates of (h Σ (b_i - b̂_i) k_i / (atol + rtol max(|x|, |x_new|)))²). An attempt is accepted
    when err < 1. The next step is h · 0.9 err^(-1/(q+1)), q the lower order, at most 5 times as long, at least a
    fifth, and not longer right after a rejection. The last slope of an accepted attempt is the first of the next. A
    sample whose attempts fail down to ten units in the last place of its time cannot go on: its run is marked as
    diverged there. The first attempt costs two evaluations more: the first slope, and one to choose the first step.

    Measured of each sample in this attempt: `local_error` (err, in units of the tolerance), `step_size` (tried, in
    units of t) and `rejected` (1 or 0); all 0 once it has arrived.

    Source: Hairer, Nørsett & Wanner 1993, Solving ODEs I, II.4 (error, step size, starting step).
    """

    adaptive = True
    host_sync = True
    tableau: ClassVar[Tableau]
    rtol: Any = Hyper(1e-5, 1e-13, 1.0, "log", (1e-8, 1e-2), doc="Error allowed in a step, relative to the point.")
    atol: Any = Hyper(1e-6, 1e-14, 1.0, "log", (1e-8, 1e-2), doc="Error allowed in a step, in units of x.")

    def init(self, field, x, t, end):
        return Control(torch.zeros_like(x), torch.zeros_like(t), torch.zeros_like(t))

    def step(self, field, path, x, t, end, state, hyper, noise):
        live, zero = Live(t, end), torch.zeros_like(t)
        if not len(live.rows):
            return Step(x, t, state, dict.fromkeys(("local_error", "step_size", "rejected"), zero), zero.int())
        spent, samples = len(self.tableau.b), live.rows if len(t) == 1 else live.rows % t.shape[1]

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return field(x, t, samples).velocity

        def scale(x: Tensor) -> Tensor:
            return atol + rtol * x

        rtol, atol = live.tolerance(hyper["rtol"]), live.tolerance(hyper["atol"])
        start = live.take(x), live.take(t), live.take(end)
        control = Control(*map(live.take, state))
        if not bool(control.h.any()):
            control, spent = begin(self.tableau, velocity, *start, control, scale), spent + 2
        made = attempt(self.tableau, velocity, *start, control, scale)
        measured = {"local_error": made.error, "step_size": made.length, "rejected": made.control.rejected}
        info = {name: live.put(part, zero) for name, part in measured.items()}
        evaluations = live.mask.int() * spent
        new = Control(*map(live.put, made.control, state))
        return Step(live.put(made.x, x), live.put(made.t, t), new, info, evaluations)


def attempt(
    tableau: Tableau,
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    end: Tensor,
    now: Control,
    scale: Callable[[Tensor], Tensor],
) -> Attempt:
    """One try from points x (n, dim) at times t towards end, (n,): accepted or rejected sample by sample.

    Args:
        scale: what an error is measured in, of absolute values of points.
    """
    least = LEAST * (torch.nextafter(t, end) - t).abs()
    h = torch.maximum(now.h, least)
    to = torch.clamp(t + h.copysign(end - t), torch.minimum(t, end), torch.maximum(t, end))
    new, slopes = runge_kutta(velocity, tableau, x, t, to, first=now.slope)
    slopes.append(velocity(new, to))
    error = column(to - t) * blend(tableau.error, slopes)
    size, length = rms(error / scale(torch.maximum(x.abs(), new.abs()))), (to - t).abs()
    kept = (size < 1).to(t.dtype)  # what is not a number is not less
    factor = (SAFETY * size ** (-1 / (tableau.low_order + 1))).clamp(SHRINK, GROW).nan_to_num(SHRINK)
    factor = torch.minimum(factor, GROW - (GROW - 1) * now.rejected)
    following = Control(choose(column(kept), slopes[-1], now.slope), length * factor, 1 - kept)
    x = choose(column(kept), new, x)
    if bool((now.h <= least).any()):
        x = torch.where(column((now.h <= least) & (kept == 0)), torch.nan, x)
    return Attempt(x, choose(kept, to, t), following, size, length)


def choose(keep: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where keep is 1, `old` where it is 0, to the bit. `torch.where` would take seven times as long."""
    return torch.lerp(old, new.nan_to_num(0.0, 0.0, 0.0), keep)


def begin(
    tableau: Tableau,
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    end: Tensor,
    now: Control,
    scale: Callable[[Tensor], Tensor],
) -> Control:
    """The first slope, and a first step such that an Euler step of it would be about right: two evaluations."""
    slope, unit, way = velocity(x, t), scale(x.abs()), (end - t).abs()
    d0, d1 = rms(x / unit), rms(slope / unit)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    h0 = torch.minimum(h0, way)
    signed = h0.copysign(end - t)
    d2 = rms((velocity(torch.addcmul(x, column(signed), slope), t + signed) - slope) / unit) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / (tableau.low_order + 1)))
    h = torch.minimum(torch.minimum(100 * h0, h1), way)
    return Control(slope, h.nan_to_num(0.0), now.rejected)


def rms(x: Tensor) -> Tensor:
    """The root of the mean square over coordinates."""
    return (x * x).mean(-1).sqrt()


class DormandPrince(Embedded):
    """Order 5 with an error estimate of order 4: seven stages, six evaluations an attempt.

    Source: Dormand & Prince 1980, J. Comput. Appl. Math. 6, pp. 19-26, table 2.
    """

    name = "dormand-prince"
    title = "Dormand–Prince 5(4)"
    source = "Dormand & Prince 1980, J. Comput. Appl. Math. 6, pp. 19-26"
    evidence = "tests/samplers/test_adaptive.py::test_every_sample_goes_as_it_would_in_scipy[dormand-prince]"
    order = 5
    tableau = Tableau(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        5,
        (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
        4,
    )


class BogackiShampine(Embedded):
    """Order 3 with an error estimate of order 2: four stages, three evaluations an attempt.

    Source: Bogacki & Shampine 1989, Appl. Math. Lett. 2(4), pp. 321-325.
    """

    name = "bogacki-shampine"
    title = "Bogacki–Shampine 3(2)"
    source = "Bogacki & Shampine 1989, Appl. Math. Lett. 2, pp. 321-325"
    evidence = "tests/samplers/test_adaptive.py::test_every_sample_goes_as_it_would_in_scipy[bogacki-shampine]"
    order = 3
    tableau = Tableau(
        ((1 / 2,), (0.0, 3 / 4)),
        (2 / 9, 1 / 3, 4 / 9),
        (0.0, 1 / 2, 3 / 4),
        3,
        (7 / 24, 1 / 4, 1 / 3, 1 / 8),
        2,
    )

"""Paths of samples: how straight they are, how far they go, where they turn."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.flows.measures.reference import classical_step
from workbench.routine import Key


class Paths(NamedTuple):
    """times: (n + 1,), rising or falling. points: (n + 1, ..., samples, dim). velocities: there, None when unknown."""

    times: Tensor
    points: Tensor
    velocities: Tensor | None = None


def follow(field: Any, x: Tensor, *, steps: int = 64, reverse: bool = False) -> Paths:
    """Paths of the flow dx/dt = v(x, t) from x (..., samples, dim), by equal steps of the classical Runge–Kutta method.

    Args:
        field: a `Field`; it is followed between the ends of its interpolant (0 and 1 without one).
        reverse: from the last time to the first instead.
    """
    first, last = field.interpolant.ends if field.interpolant is not None else (0.0, 1.0)
    times = torch.linspace(first, last, steps + 1, dtype=x.dtype, device=x.device)
    times = times.flip(0) if reverse else times
    points, velocities = [x], []
    for t, end in itertools.pairwise(times):
        velocities.append(field(points[-1], t).velocity)
        points.append(classical_step(field, points[-1], t, end, velocities[-1]))
    velocities.append(field(points[-1], times[-1]).velocity)
    return Paths(times, torch.stack(points), torch.stack(velocities))


def recorded(record: Any, run: int = 0) -> Paths:
    """The paths of one run of a record of `wb.sampling`; steps in which time stood still are left out.

    Raises:
        ValueError: on a record of something else.
    """
    if not {"x", "time"} <= set(record.data_vars) or record["x"].dims != ("run", "step", "sample", "dim"):
        raise ValueError("expected a record of wb.sampling, with x (run, step, sample, dim) and time, got another")
    times, points = (torch.from_numpy(np.array(record[name].values[run])) for name in ("time", "x"))
    moved = torch.cat([torch.ones(1, dtype=torch.bool), times.diff() != 0])
    return Paths(times[moved], points[moved])


def straightness(paths: Paths) -> Estimate:
    """S = E ∫ |(X_1 - X_0) - v(X_t, t)|² dt along the paths of a flow: 0 exactly when all are straight, at even speed.

    The integral is by the trapezoid rule over the stops, or, where only points are known, that of the broken line
    through them, Σ h_k |(X_1 - X_0) - ΔX_k / h_k|². Time is measured in units of what the whole path takes.

    Returns:
        0-d, or one for each run. The standard error is that of a mean over samples.

    Source: Liu, Gong & Liu 2023, arXiv:2209.03003 (straightness); Lee et al. 2023, arXiv:2301.12003 (curvature).
    """
    span = (paths.times[-1] - paths.times[0]).abs()
    h = _column(paths.times.diff() / (paths.times[-1] - paths.times[0]), paths.points)
    whole = paths.points[-1] - paths.points[0]
    if paths.velocities is None:
        squares = (whole - paths.points.diff(dim=0) / h).square().sum(-1)
        return mean_of((h.squeeze(-1) * squares).sum(0), "mean over samples, integral of the broken line")
    direction = torch.sign(paths.times[-1] - paths.times[0])
    squares = (whole - direction * span * paths.velocities).square().sum(-1)
    between = (squares[1:] + squares[:-1]) / 2
    return mean_of((h.squeeze(-1) * between).sum(0), "mean over samples, integral by the trapezoid rule")


def transport_cost(paths: Paths) -> Estimate:
    """E |X_1 - X_0|², of where paths begin and end.

    Source: Liu, Gong & Liu 2023, arXiv:2209.03003, with the convex cost c(x) = |x|².
    """
    return mean_of((paths.points[-1] - paths.points[0]).square().sum(-1), "mean over samples")


def crossing(field: Any, x0: Tensor, x1: Tensor, key: Key) -> Estimate:
    """E ∫ |(X_1 - X_0) - v(X_t, t)|² dt over pairs, with X_t = (1 - t) X_0 + t X_1 on the line between them.

    0 exactly when v goes along all the lines, which then do not cross. Times 1 / dim it is the loss of flow matching.

    Args:
        x0, x1: pairs (n, dim), of a coupling.
        key: of the times, one a pair.

    Source: Liu, Gong & Liu 2023, arXiv:2209.03003 (V of a coupling, with the best v).
    """
    t = key.stream("time").uniform((len(x0),), like=x0)
    column = t.unsqueeze(-1)
    missed = (x1 - x0) - field((1 - column) * x0 + column * x1, t).velocity
    return mean_of(missed.square().sum(-1), "mean over pairs, each at one time of its own")


def curvature(points: Tensor) -> Tensor:
    """The curvature of paths (n + 1, ..., samples, dim) at their inner points, (n - 1, ..., samples), in 1 / length.

    1 / radius of the circle through a point, the one before and the one after (Menger): a matter of the path's shape
    alone, however unevenly it is passed. 0 where two of them coincide.

    Source: Menger 1930, Mathematische Annalen 103; 4 · area / (product of the sides).
    """
    a, b = points[1:-1] - points[:-2], points[2:] - points[1:-1]
    sides = a.norm(dim=-1), b.norm(dim=-1), (a + b).norm(dim=-1)
    apart = torch.stack(sides).amin(0) > 0
    return torch.where(apart, 2 * _across(a, b) / (sides[1] * sides[2]), 0.0)


def _across(a: Tensor, b: Tensor) -> Tensor:
    """The part of b that is at right angles to a: its length."""
    along = (a * b).sum(-1, keepdim=True) / a.square().sum(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)
    return (b - along * a).norm(dim=-1)


def turning(points: Tensor) -> Estimate:
    """How far paths turn in all, in radians: the sum of the angles between successive chords (0 when straight)."""
    a, b = points[1:-1] - points[:-2], points[2:] - points[1:-1]
    angles = torch.atan2(_across(a, b) * a.norm(dim=-1), (a * b).sum(-1))
    return mean_of(angles.sum(0), "mean over samples, angles between successive chords")


def _column(values: Tensor, points: Tensor) -> Tensor:
    """One value a step, shaped to multiply points."""
    return values.reshape(-1, *[1] * (points.ndim - 1)).to(points)

"""The shape of an optimizer's own way: how long it is, how it turns, where it points and how many directions it uses.

Every function takes points (…, steps, parameters), accumulates in float64 and gives NaN where two points coincide and
the number has no meaning. `geometry` is all of them as one record; `Geometry` (`live_geometry`) gives the same numbers
from one point after another. All are of the points given: recorded every tenth step, a way is a shorter polyline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.landscapes.progress import Watch, within
from workbench.routine import whole

LAGS = (1, 2, 5, 10)
MEASURES = {
    "length": ("length of the way so far, Σ|x_t − x_(t−1)|", "1"),
    "distance": ("distance from the start, |x_t − x_0|", "1"),
    "straightness": ("distance from the start over length of the way, from 0 to 1", "1"),
    "norm": ("Euclidean norm of all parameters", "1"),
    "turning_angle": ("angle between the steps before and after a point, from 0 to π", "rad"),
    "turning_per_length": ("turning angle over the mean of the two steps' lengths", "rad"),
    "curvature": ("Menger curvature: one over the radius of the circle through three successive points", "1"),
    "similarity": ("mean directional similarity of all points so far, seen from the origin", "1"),
    "similarity_from_start": ("mean directional similarity of all points so far, seen from the start", "1"),
    "autocorrelation": ("mean alignment of steps that are `lag` apart, from −1 to 1", "1"),
    "effective_dimension": ("participation ratio of the points' principal variances", "1"),
}
"""What `geometry` measures, by name: (in words, units)."""


def _points(points: Any, least: int = 1) -> Tensor:
    """(…, steps, parameters) in float64."""
    x = torch.as_tensor(points).detach()
    if x.ndim < 2 or x.shape[-2] < least or not x.shape[-1]:
        raise ValueError(
            f"expected points as (steps, parameters) or (runs, steps, parameters) with at least {least} steps, "
            f"got shape {tuple(x.shape)}"
        )
    return x.double()


def size(a: Tensor) -> Tensor:
    """Euclidean norm over the parameters."""
    return torch.linalg.vector_norm(a, dim=-1)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, NaN where b is 0."""
    return torch.where(b == 0, torch.nan, a / b)


def angle(s: Tensor, r: Tensor) -> Tensor:
    """The angle between two vectors, 2 atan2(|u − v|, |u + v|) of their directions (Kahan): exact when small too."""
    u, v = ratio(s, size(s)[..., None]), ratio(r, size(r)[..., None])
    return 2 * torch.atan2(size(u - v), size(u + v))


def _between(values: Tensor) -> Tensor:
    """Values of the inner points as values of all points, NaN at both ends."""
    return torch.nn.functional.pad(values, (1, 1), value=torch.nan)


def path_length(points: Any) -> Tensor:
    """Length of the way up to each point, L_t = Σ_(s≤t) |x_s − x_(s−1)|: (…, steps, parameters) to (…, steps)."""
    x = _points(points)
    return torch.nn.functional.pad(size(x.diff(dim=-2)).cumsum(-1), (1, 0))


def distance_from_start(points: Any) -> Tensor:
    """|x_t − x_0|: (…, steps, parameters) to (…, steps)."""
    x = _points(points)
    return size(x - x[..., :1, :])


def straightness(points: Any) -> Tensor:
    """|x_t − x_0| / L_t, from 0 (back at the start) to 1 (a straight line); NaN until the first move."""
    return ratio(distance_from_start(points), path_length(points))


def turning_angle(points: Any) -> Tensor:
    """Angle between the steps before and after each point, 0 (straight on) to π (back): (…, steps), NaN at both ends.

    NaN beside a step of length 0. Successive steps' angle: Singh et al. 2024, arXiv:2403.07379.
    """
    x = _points(points)
    if x.shape[-2] < 3:
        return x.new_full(x.shape[:-1], torch.nan)
    s = x.diff(dim=-2)
    return _between(angle(s[..., :-1, :], s[..., 1:, :]))


def turning_per_length(points: Any) -> Tensor:
    """2 θ_t / (|s_t| + |s_(t+1)|) of the turning angle θ_t: the discrete curvature of a polyline, (…, steps)."""
    x = _points(points)
    if x.shape[-2] < 3:
        return turning_angle(x)
    lengths = size(x.diff(dim=-2))
    return ratio(2 * turning_angle(x), _between(lengths[..., :-1] + lengths[..., 1:]))


def menger_curvature(points: Any) -> Tensor:
    """1 / R of the circle through x_(t−1), x_t, x_(t+1): 2 sin θ_t / |x_(t+1) − x_(t−1)|, (…, steps), NaN at both ends.

    Equal to 4 · area / (product of the sides). NaN where two of the three points coincide. Source: Menger 1930, Math.
    Annalen 103.
    """
    x = _points(points)
    if x.shape[-2] < 3:
        return turning_angle(x)
    return ratio(2 * turning_angle(x).sin(), _between(size(x[..., 2:, :] - x[..., :-2, :])))


def directional_similarity(points: Any, *, origin: str = "zero") -> Tensor:
    """Mean directional similarity of the points up to each one: (…, steps), from 0 to 1; 1: all in one direction.

    ω_t = (1/n²) Σ_(i,j≤t) cos∠(x_i − o, x_j − o), the mean of the map of cosines between all pairs of checkpoints, each
    with itself among them; computed as the squared length of their mean direction, which is the same and needs no map.
    Points at o have no direction and are left out.

    Args:
        origin: o, "zero" or "start" (x_0).

    Source: Singh, He, Hofmann & Schölkopf 2024, arXiv:2403.07379 (that the diagonal counts was not checked there; it
    adds at most 1/n).
    """
    if origin not in ("zero", "start"):
        raise ValueError(f"expected origin to be 'zero' or 'start', got {origin!r}")
    x = _points(points)
    x = x - x[..., :1, :] if origin == "start" else x
    sizes = size(x)
    total = torch.where(sizes[..., None] == 0, 0.0, ratio(x, sizes[..., None])).cumsum(-2)
    return ratio(total.square().sum(-1), (sizes != 0).cumsum(-1).double().square())


def step_autocorrelation(points: Any, lags: Sequence[int] = LAGS) -> Tensor:
    """Alignment of steps that are `lag` apart, one number a lag: (…, lags), from −1 to 1.

    ρ(l) = Σ_t s_t·s_(t+l) / √(Σ_t |s_t|² · Σ_t |s_(t+l)|²), s_t = x_t − x_(t−1), sums over all t that have both. Steps
    are not centred: a way with a steady drift has ρ near 1. NaN where nothing moves or no two steps are so far apart.
    """
    x = _points(points, 2)
    s, found = x.diff(dim=-2), []
    for lag in as_lags(lags):
        a, b = s[..., : max(0, s.shape[-2] - lag), :], s[..., lag:, :]
        ends = a.square().sum((-2, -1)) * b.square().sum((-2, -1))
        found.append(ratio((a * b).sum((-2, -1)), ends.sqrt()))
    return torch.stack(found, -1)


def effective_dimension(points: Any) -> Tensor:
    """How many directions the way uses: (Σλ)² / Σλ² of the variances λ along its principal axes, (…,).

    From 1 (a line) to min(steps − 1, parameters); the participation ratio. By the Gram matrix of the centred points,
    (steps, steps). NaN where nothing moves.
    """
    x = _points(points)
    centred = x - x.mean(-2, keepdim=True)
    gram = centred @ centred.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ratio(trace.square(), gram.square().sum((-2, -1)))


def as_lags(lags: Sequence[int]) -> tuple[int, ...]:
    """Lags as whole numbers from 1."""
    return tuple(whole("a lag", lag, 1) for lag in lags)


def geometry(
    points: Any,
    steps: Sequence[int] | None = None,
    *,
    lags: Sequence[int] = LAGS,
    watch: Watch | None = None,
) -> xr.Dataset:
    """All measures of this module, of points (steps, parameters) or (runs, steps, parameters), as a record.

    Dims run and step; `autocorrelation` has dims run and lag (in recorded steps), `effective_dimension` run alone. One
    run at a time is held in float64.

    Args:
        steps: number of each recorded step; 0, 1, … when not given.
        watch: called with the share of runs done, from 0 to 1; what it raises ends the work.

    Raises:
        ValueError: on points of another shape, fewer than two of them, or steps of another number.
    """
    x = torch.as_tensor(points)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[1] < 2:
        raise ValueError(
            f"expected points as (steps, parameters) or (runs, steps, parameters), two steps or more, got shape "
            f"{tuple(torch.as_tensor(points).shape)}"
        )
    rows = []
    watch = within(watch)
    for run, way in enumerate(x):
        way = _points(way)
        found = {
            "length": path_length(way),
            "distance": distance_from_start(way),
            "straightness": straightness(way),
            "norm": size(way),
            "turning_angle": turning_angle(way),
            "turning_per_length": turning_per_length(way),
            "curvature": menger_curvature(way),
            "similarity": directional_similarity(way),
            "similarity_from_start": directional_similarity(way, origin="start"),
            "autocorrelation": step_autocorrelation(way, lags),
            "effective_dimension": effective_dimension(way),
        }
        rows.append({name: value.cpu().numpy() for name, value in found.items()})
        watch((run + 1) / len(x))
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return as_record(arrays, range(x.shape[1]) if steps is None else steps, lags, x.shape[2])


def as_record(arrays: Mapping[str, np.ndarray], steps: Sequence[int], lags: Sequence[int], dim: int) -> xr.Dataset:
    """Arrays (runs, steps) and the like, labelled."""
    kept = np.asarray(steps)
    if kept.shape != arrays["length"].shape[1:]:
        raise ValueError(f"expected a step number for each of {arrays['length'].shape[1]} points, got {kept.shape}")
    dims = {"autocorrelation": ("run", "lag"), "effective_dimension": ("run",)}
    attrs = {name: {"long_name": MEASURES[name][0], "units": MEASURES[name][1]} for name in arrays}
    variables = {name: (dims.get(name, ("run", "step")), array, attrs[name]) for name, array in arrays.items()}
    coords = {
        "run": ("run", np.arange(len(arrays["length"])), {"long_name": "run", "units": "1"}),
        "step": ("step", kept, {"long_name": "steps made", "units": "step"}),
        "lag": ("lag", list(as_lags(lags)), {"long_name": "recorded steps between two steps", "units": "1"}),
    }
    return xr.Dataset(variables, coords, {"made_by": "workbench.landscapes.geometry", "parameters": dim})

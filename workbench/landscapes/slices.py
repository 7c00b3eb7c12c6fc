"""Slices: the loss on a line or a plane as a record, drawn at once or coarse to fine; and paths as seen on it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.landscapes.evaluation import MEMORY, OnPlane, losses
from workbench.landscapes.landscape import Landscape
from workbench.landscapes.planes import Plane, Span, random_plane
from workbench.landscapes.progress import Watch, within
from workbench.record import mark

COARSEST = 4
"""Fewest steps a side of a first picture."""


def slice1d(
    landscape: Landscape,
    plane: Plane | None = None,
    *,
    span: Span = (-1.0, 1.0),
    points: int = 51,
    watch: Watch | None = None,
    memory: int = MEMORY,
) -> xr.Dataset:
    """The loss along a line (a random one around the start when None): `loss (a)` and its standard error `loss_error`.

    Raises:
        ValueError: on a span that does not increase or fewer than 2 points.
    """
    plane = plane or random_plane(landscape, dims=1)
    _check_axes(plane, 1)
    a = _grid("span", span, points)
    mean, error = losses(landscape, OnPlane(plane, torch.from_numpy(a)[:, None]), points, watch=watch, memory=memory)
    return _record(landscape, plane, {"a": a}, mean.cpu().numpy(), error.cpu().numpy())


def slice2d(
    landscape: Landscape,
    plane: Plane | None = None,
    *,
    span: Sequence[Span] = ((-1.0, 1.0), (-1.0, 1.0)),
    points: int | tuple[int, int] = 51,
    watch: Watch | None = None,
    memory: int = MEMORY,
) -> xr.Dataset:
    """The loss on a plane (a random, filter-normalised one around the start when None): `loss (b, a)`, `loss_error`.

    Args:
        span: (low, high) of the coordinate a along the first axis, and of b along the second.
        points: along each axis, or (along a, along b).
        watch: called before each chunk of points with the share done; what it raises ends the work.
        memory: bytes of activations at a time, about.

    Raises:
        ValueError: on spans that do not increase, or fewer than 2 points a side.
    """
    plane = plane or random_plane(landscape)
    _check_axes(plane, 2)
    counts = (points, points) if isinstance(points, int) else points
    a, b = (_grid(name, one, n) for name, one, n in zip(("span of a", "span of b"), span, counts, strict=True))
    loss, error = np.empty((len(b), len(a))), np.empty((len(b), len(a)))
    _fill(landscape, plane, a, b, np.ones_like(loss, dtype=bool), loss, error, watch, memory)
    return _record(landscape, plane, {"a": a, "b": b}, loss, error)


def coarse_to_fine(
    landscape: Landscape,
    plane: Plane | None = None,
    *,
    span: Sequence[Span] = ((-1.0, 1.0), (-1.0, 1.0)),
    points: int = 51,
    watch: Watch | None = None,
    memory: int = MEMORY,
) -> Iterator[xr.Dataset]:
    """The same slice again and again, finer each time, up to `points` a side; no point is computed twice.

    See `levels` for which. Closing the iterator, or what `watch` raises, ends the work within a chunk.
    """
    plane = plane or random_plane(landscape)
    _check_axes(plane, 2)
    a, b = (_grid(name, one, points) for name, one in zip(("span of a", "span of b"), span, strict=True))
    loss = np.full((points, points), np.nan)
    error, known = loss.copy(), np.zeros_like(loss, dtype=bool)
    for level in levels(points):
        wanted = np.zeros_like(known)
        wanted[np.ix_(level, level)] = True
        wanted &= ~known
        begin, part = float(known.mean()), float(wanted.mean())
        _fill(landscape, plane, a, b, wanted, loss, error, within(watch, begin, begin + part), memory)
        known |= wanted
        at = np.ix_(level, level)
        yield _record(landscape, plane, {"a": a[level], "b": b[level]}, loss[at], error[at])


def levels(points: int) -> list[np.ndarray]:
    """Which points of a side are taken, coarse to fine: evenly spaced, the ends always, each within the next.

    The steps between are divided by their prime factors: 51 comes as 6, 26, 51 and 49 as 7, 13, 25, 49; a number of
    steps that is prime has no coarser picture.
    """
    stride, found = 1, [np.arange(points)]
    while True:
        steps = (points - 1) // stride
        factor = next((p for p in range(2, steps + 1) if steps % p == 0), steps + 1)
        if steps // factor < COARSEST:
            return found[::-1]
        stride *= factor
        found.append(np.arange(0, points, stride))


def _fill(
    landscape: Landscape,
    plane: Plane,
    a: Any,
    b: Any,
    wanted: Any,
    loss: Any,
    error: Any,
    watch: Watch | None,
    memory: int,
) -> None:
    """Compute the wanted points of a grid in place; points of one row of the grid lie together."""
    rows, columns = np.nonzero(wanted)
    coords = torch.from_numpy(np.stack([a[columns], b[rows]], 1))
    mean, spread = losses(landscape, OnPlane(plane, coords), len(coords), watch=watch, memory=memory)
    loss[rows, columns], error[rows, columns] = mean.cpu().numpy(), spread.cpu().numpy()


def on_plane(
    landscape: Landscape, plane: Plane, points: Tensor, *, steps: Any = None, watch: Watch | None = None
) -> xr.Dataset:
    """A path as a plane shows it, and what the plane does not show.

    `a`, `b`: coordinates of the nearest point of the plane. `residual`: the distance to it. `loss`: the true loss of
    the path's point, `loss_error` its standard error; `plane_loss`: the loss of the point of the plane. Attribute
    `variance_share`: the share of the path's variance that lies along the plane.

    Args:
        points: (steps, parameters), or (runs, steps, parameters).
        steps: (steps,) numbers of the steps; counted from 0 when None.
    """
    path = points if points.ndim == 3 else points.unsqueeze(0)
    runs, count = path.shape[:2]
    flat = path.flatten(0, 1)
    at = plane.coords(flat)
    true, error = losses(landscape, flat, watch=within(watch, 0.0, 0.5))
    seen, _ = losses(landscape, plane.points(at), watch=within(watch, 0.5, 1.0))
    columns = {"loss": true, "loss_error": error, "plane_loss": seen, "residual": plane.residual(flat)}
    columns |= {name: at[:, i] for i, name in enumerate(("a", "b")[: len(plane.axes)])}
    words = {
        "loss": "true loss",
        "loss_error": "standard error of the true loss",
        "plane_loss": "loss at the point of the plane",
        "residual": "distance from the plane",
        "a": "coordinate along the first axis",
        "b": "coordinate along the second axis",
    }
    variables = {
        name: (("run", "step"), column.reshape(runs, count).cpu().numpy(), {"long_name": words[name], "units": "1"})
        for name, column in columns.items()
    }
    numbers = np.arange(count) if steps is None else np.asarray(steps)
    attrs = {**_attrs(landscape, plane), "variance_share": plane.share(flat)}
    made = xr.Dataset(variables, {"step": numbers, "run": np.arange(runs)}, attrs)
    return made if points.ndim == 3 else made.isel(run=0)


def _check_axes(plane: Plane, axes: int) -> None:
    if len(plane.axes) != axes:
        words = {1: "a line (slice1d)", 2: "a plane (slice2d)"}
        raise ValueError(f"expected {words[axes]}, got one with {len(plane.axes)} axes")


def _grid(name: str, span: Span, points: int) -> np.ndarray:
    low, high = map(float, span)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"expected {name} to be (low, high) with low < high, got {tuple(span)!r}")
    if isinstance(points, bool) or points < 2:
        raise ValueError(f"expected at least 2 points a side, got {points!r}")
    return np.linspace(low, high, points)


def _attrs(landscape: Landscape, plane: Plane) -> dict[str, Any]:
    return {
        **mark(),
        "landscape": landscape.title,
        "samples": landscape.samples,
        "plane": plane.title,
        "plane_kind": plane.kind,
        "facts": json.dumps(plane.facts),
    }


def _record(landscape: Landscape, plane: Plane, axes: dict[str, Any], loss: Any, error: Any) -> xr.Dataset:
    dims = tuple(reversed(axes))
    coords = {
        name: (name, at, {"long_name": plane.labels[i], "units": "1"}) for i, (name, at) in enumerate(axes.items())
    }
    words = f"standard error of the mean over {landscape.samples:,} samples" if landscape.samples else "unknown"
    variables = {
        "loss": (dims, loss, {"long_name": landscape.title, "units": "1"}),
        "loss_error": (dims, error, {"long_name": words, "units": "1"}),
    }
    return xr.Dataset(variables, coords, _attrs(landscape, plane))

"""The geometry of a way while it is walked: from one point after another, without keeping the way."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.landscapes.geometry import LAGS, angle, as_lags, as_record, ratio, size

TURNS = ("turning_angle", "turning_per_length", "curvature")
"""Measures of a point that are known only when the next one is."""


class Geometry:
    """The record of `geometry` from one point after another, for live use: `add(x)` as it trains, then `record()`.

    Holds the start, the last point and step, two sums of directions, and the last max(lags) steps: O(parameters) a run,
    in float64, on the device of the points. `effective_dimension` needs all pairs of points and is left out.
    """

    start: Tensor
    last: Tensor
    before: Tensor
    """The point before the last one."""
    step: Tensor
    """The last step, from `before` to `last`."""
    length: Tensor
    sums: dict[str, Tensor]
    """Sums of directions, seen from the origin and from the start; `counts` says of how many."""
    counts: dict[str, Tensor]
    products: Tensor
    """Σ s·r, Σ |s|², Σ |r|² of steps s and r that are a lag apart, (lags, 3, runs)."""
    turn: dict[str, Tensor]

    def __init__(self, lags: Sequence[int] = LAGS) -> None:
        self.lags, self.steps = as_lags(lags), list[int]()
        self.rows: dict[str, list[Tensor]] = {}
        self.recent: deque[Tensor] = deque(maxlen=max(self.lags, default=0))

    def add(self, x: Tensor, step: int | None = None) -> dict[str, Tensor]:
        """Take the next points, (runs, parameters); gives what is known of them, (runs,) each.

        The three measures of turning are those of the point before: a point's own turn is known one point later.

        Raises:
            ValueError: on points of another shape than the ones before.
        """
        x = torch.as_tensor(x).detach().double()
        if x.ndim != 2 or (self.steps and x.shape != self.start.shape):
            wanted = f"(runs, parameters), {tuple(self.start.shape)} here" if self.steps else "(runs, parameters)"
            raise ValueError(f"expected points of shape {wanted}, got {tuple(x.shape)}")
        if not self.steps:
            self._begin(x)
        else:
            self._move(x - self.last, x)
        directed = {"similarity": x, "similarity_from_start": x - self.start}
        for name, way in directed.items():
            long = size(way)
            self.sums[name] += torch.where(long[:, None] == 0, 0.0, way / long.clamp_min(1e-300)[:, None])
            self.counts[name] += long != 0
        found = {"length": self.length.clone(), "distance": size(x - self.start), "norm": size(x), **self.turn}
        found["straightness"] = ratio(found["distance"], found["length"])
        for name in directed:
            found[name] = ratio(self.sums[name].square().sum(-1), self.counts[name].square())
        for name, value in found.items():
            self.rows.setdefault(name, []).append(value)
        self.last = x.clone()
        self.steps.append(len(self.steps) if step is None else step)
        return found

    def _begin(self, x: Tensor) -> None:
        self.start, self.length = x.clone(), x.new_zeros(len(x))
        self.sums = {name: torch.zeros_like(x) for name in ("similarity", "similarity_from_start")}
        self.counts = {name: x.new_zeros(len(x)) for name in self.sums}
        self.products = x.new_zeros(len(self.lags), 3, len(x))
        self.turn = {name: x.new_full((len(x),), torch.nan) for name in TURNS}

    def _move(self, s: Tensor, x: Tensor) -> None:
        self.length = self.length + size(s)
        if len(self.steps) > 1:
            before = self.step
            theta = angle(before, s)
            self.turn = {
                "turning_angle": theta,
                "turning_per_length": ratio(2 * theta, size(before) + size(s)),
                "curvature": ratio(2 * theta.sin(), size(x - self.before)),
            }
        for k, lag in enumerate(self.lags):
            if lag <= len(self.recent):
                a = self.recent[-lag]
                self.products[k] += torch.stack([(a * s).sum(-1), a.square().sum(-1), s.square().sum(-1)])
        self.recent.append(s)
        self.before, self.step = self.last, s

    def record(self) -> xr.Dataset:
        """What `geometry` gives of all points taken, without `effective_dimension`.

        Raises:
            ValueError: before the second point.
        """
        if len(self.steps) < 2:
            raise ValueError(f"expected at least two points, got {len(self.steps)}; add more")
        arrays = {name: torch.stack(rows, 1).cpu().numpy() for name, rows in self.rows.items()}
        for name in TURNS:
            arrays[name] = np.concatenate([arrays[name][:, 1:], np.full_like(arrays[name][:, :1], np.nan)], 1)
        dot, a, b = self.products.unbind(1)
        arrays["autocorrelation"] = ratio(dot, (a * b).sqrt()).T.cpu().numpy()
        return as_record(arrays, self.steps, self.lags, self.start.shape[1])

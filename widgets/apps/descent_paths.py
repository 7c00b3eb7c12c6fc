"""Where every method has been at every step, and the little of it that a picture needs.

The routine of the Descent app measures positions along with the losses, so a session's own trace holds them: exact at
every step, cut where a branch leaves, whatever was skipped, replayed or sought in between.
"""

import threading
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workbench as wb
from workbench.descent import Descent, value_and_gradient
from workbench.together import Together

MOST_VERTICES = 4000
"""Vertices drawn of one path; of a longer one the newest."""


class Tracked(Together):
    """Descents side by side that also measure where they stand: `x`, `y` before the step, `lost` after it."""

    def step(self, state: Any, hyper: Any, noise: Any) -> tuple[Any, dict]:
        new, info = super().step(state, hyper, noise)
        return new, {**info, "at": torch.cat([part.x for part in state.parts], 1), "lost": new.diverged}

    def measure(self, info: dict) -> dict[str, Tensor]:
        return {"x": info["at"][0], "y": info["at"][1], "lost": info["lost"]}


def parts_of(session: wb.Session) -> dict[str, Descent]:
    """The descents of a session of this app, by label."""
    return cast("Any", session.routine).parts


class Growing:
    """An array that grows along its first axis; `array` is what there is so far."""

    def __init__(self, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> None:
        self._room, self._n = np.empty((256, *shape), dtype), 0

    def __len__(self) -> int:
        return self._n

    @property
    def array(self) -> NDArray[Any]:
        """The filled part; valid until the next `extend`."""
        return self._room[: self._n]

    def extend(self, rows: NDArray[Any]) -> None:
        """Add rows at the end."""
        end = self._n + len(rows)
        if end > len(self._room):
            larger = np.empty((max(end, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            larger[: self._n] = self.array
            self._room = larger
        self._room[self._n : end] = rows
        self._n = end


class Track:
    """The way of every method of one session so far, kept up at the cost of what is new.

    Args:
        methods: how many.
        cell: (x, y) spacing of the grid whose cells thin a path: a vertex stays when it enters another cell.
        objective: whose values `losses` and `slopes` are, in float64 and without sampling noise.
    """

    def __init__(self, methods: int, cell: tuple[float, float], objective: wb.Objective) -> None:
        self.steps = Growing(dtype=np.int64)
        self.points = Growing((2, methods))
        self.losses, self.slopes = Growing((methods,), np.float64), Growing((methods,), np.float64)
        self.lost = np.full(methods, -1)
        self._kept = [Growing(dtype=np.int64) for _ in range(methods)]
        self._cell, self._objective, self._last = np.asarray(cell)[:, None], objective, None
        self._lock = threading.Lock()

    def grow(self, session: wb.Session) -> "Track":
        """Take in what the session has lived since."""
        with self._lock:
            since = int(self.steps.array[-1]) + 1 if len(self.steps) else 0
            steps, found = session.trace(since)
            if len(steps):
                self._take(steps, np.stack([found["x"], found["y"]], 1))
                self.lost = found["lost"][-1]
        return self

    def _take(self, steps: NDArray[Any], points: NDArray[Any]) -> None:
        cells = np.floor(points / self._cell)
        before = np.full_like(cells[:1], np.nan) if self._last is None else self._last
        moved = (np.diff(cells, axis=0, prepend=before) != 0).any(1)
        for i, kept in enumerate(self._kept):
            kept.extend(np.flatnonzero(moved[:, i]) + len(self.steps))
        self._last = cells[-1:]
        self.steps.extend(steps)
        self.points.extend(points)

    def path(self, i: int, index: int, head: NDArray[Any]) -> NDArray[Any]:
        """Vertices (n, 2) of method i from the start up to step `index`, where it stands at `head`."""
        with self._lock:
            kept = self._kept[i].array
            until = np.searchsorted(self.steps.array, index)
            kept = kept[max(0, np.searchsorted(kept, until) - MOST_VERTICES) : np.searchsorted(kept, until)]
            return np.concatenate([self.points.array[kept, :, i], head[None]])

    def measured(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(steps, losses, gradient norms), (n,) and (n, methods): f and |∇f| at the positions, NaN once one is lost."""
        with self._lock:
            done = len(self.losses)
            if done < len(self.steps):
                new = self.points.array[done:]
                losses, slopes = values(self._objective, np.moveaxis(new, 1, 0))
                gone = (self.lost >= 0) & (self.steps.array[done:, None] > self.lost)
                self.losses.extend(np.where(gone, np.nan, losses))
                self.slopes.extend(np.where(gone, np.nan, slopes))
            return self.steps.array.copy(), self.losses.array.copy(), self.slopes.array.copy()


def values(objective: wb.Objective, points: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(f, |∇f|) at points (2, …), in float64."""
    x = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64))
    loss, gradient = value_and_gradient(objective, x.flatten(1))
    shape = points.shape[1:]
    return loss.numpy().reshape(shape), torch.linalg.vector_norm(gradient, dim=0).numpy().reshape(shape)

"""Measurements of the Training app along lines of time: losses, scores and norms at marked steps, under a time budget.

Every measurement is a pure function of a state, so going back and measuring again gives the same numbers.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

import workbench as wb

SHARE = 0.2
"""Most of the time that measuring may take while a run plays."""
MOST = 3000
"""Marked steps kept of one line of time; beyond, every second one goes."""


class Row(NamedTuple):
    """What was measured at one step. A score is the accuracy for classes (0 to 1), R² for values."""

    train_loss: float
    heldout_loss: float
    train_score: float
    heldout_score: float
    weight_norms: NDArray[np.float64]
    grad_norms: NDArray[np.float64]


def score(data: wb.Data, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Accuracy, or for values R² = 1 - Σ (y - ŷ)² / Σ (y - mean y)²; NaN when outputs are not finite."""
    if not bool(torch.isfinite(outputs).all()):
        return float("nan")
    if data.classes:
        return float((outputs.argmax(-1) == targets).double().mean())
    guess, true = outputs.double().reshape(len(targets), -1), targets.double().reshape(len(targets), -1)
    spread = float((true - true.mean(0)).square().sum())
    return 1 - float((true - guess).square().sum()) / spread if spread else float("nan")


def measure(routine: Any, state: Any) -> Row:
    """Losses and scores over all training and all held-out samples, and the norms of every layer."""
    data = routine.data
    values: list[float] = []
    scores: list[float] = []
    for inputs, targets in ((data.x, data.y), (data.x_test, data.y_test)):
        outputs = routine.outputs(state, inputs)
        with torch.no_grad():
            values.append(float(routine.loss(outputs, targets)))
        scores.append(score(data, outputs[0], targets))
    norms = routine.probes["norms"].measure(routine, state)
    weights, gradients = (norms[name][0].double().cpu().numpy() for name in ("layer_weight_norm", "layer_grad_norm"))
    return Row(values[0], values[1], scores[0], scores[1], weights, gradients)


class Measures:
    """Rows by line of time and step, and what they cost.

    Args:
        measure: (routine, state) to a row, a named tuple of numbers and arrays of one shape at every step.
        share: most of the time that measuring may take while a run plays.

    Attributes:
        cost: seconds one measurement takes.
        share: part of the time that measuring took lately, 0 to 1.
        most: most of it that measuring may take from now on.
    """

    def __init__(self, measure: Callable[[Any, Any], Any] = measure, share: float = SHARE) -> None:
        self._measure, self.most = measure, share
        self._rows: WeakKeyDictionary[wb.Session, dict[int, Any]] = WeakKeyDictionary()
        self._pasts: WeakKeyDictionary[wb.Session, int] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self.cost, self.share = 0.0, 0.0
        self._next, self._ended = 0.0, 0.0

    def due(self) -> bool:
        """Whether the budget allows another measurement while a run plays."""
        return time.perf_counter() >= self._next

    def take(self, session: wb.Session, *, into: wb.Session | None = None) -> Any:
        """Measure where a session stands (nothing is done twice), and keep it under that session or `into`."""
        step, state = session.now
        owner = into or session
        known = self._kept(owner).get(step)
        if known is not None:
            return known
        began = time.perf_counter()
        row = self._measure(session.routine, state)
        ended = time.perf_counter()
        spent = ended - began
        self.cost = spent if not self.cost else 0.7 * self.cost + 0.3 * spent
        self.share = 0.7 * self.share + 0.3 * spent / max(spent, ended - self._ended)
        self._next, self._ended = ended + spent * (1 / self.most - 1), ended
        with self._lock:
            rows = self._rows.setdefault(owner, {})
            rows[step] = row
            if len(rows) > MOST:
                self._thin(rows)
        return row

    def share_past(self, parent: wb.Session, twin: wb.Session) -> None:
        """Give a branch the rows of the past it shares."""
        with self._lock:
            past = {k: row for k, row in self._rows.get(parent, {}).items() if k <= twin.index}
            self._rows[twin] = {**past, **self._rows.get(twin, {})}

    def beside(self, parent: wb.Session, twin: wb.Session) -> "Measures":
        """Measures apart for a branch, with the rows of the past it shares: its cost slows no live measuring."""
        apart = Measures(self._measure, self.most)
        apart.cost, past = self.cost, self._kept(parent)
        with self._lock:
            apart._rows[twin] = {k: row for k, row in past.items() if k <= twin.index}
        return apart

    def at(self, session: wb.Session, step: int) -> Any:
        """The row of a step, None when that step was not measured."""
        return self._kept(session).get(step)

    def _kept(self, session: wb.Session) -> dict[int, Any]:
        """A session's rows, without those of a future that code which holds the session has changed since."""
        with self._lock:
            rows, known = self._rows.setdefault(session, {}), self._pasts.get(session, 0)
            fresh = session.others[known:]
            if fresh:
                self._pasts[session] = known + len(fresh)
                parted = min((edit.step for edit in session.edits if edit not in fresh[0].edits), default=0)
                for k in [k for k in rows if k > parted]:
                    del rows[k]
            return rows

    def arrays(self, session: wb.Session) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
        """(steps, {name: (steps,) or (steps, layers)}), by step; empty when nothing was measured."""
        kept = self._kept(session)
        with self._lock:
            rows = sorted(kept.items())
        steps = np.array([k for k, _ in rows], dtype=np.int64)
        if not rows:
            return steps, {}
        return steps, {name: np.array([getattr(row, name) for _, row in rows]) for name in rows[0][1]._fields}

    @staticmethod
    def _thin(rows: dict[int, Any]) -> None:
        for k in sorted(rows)[1:-1:2]:
            del rows[k]

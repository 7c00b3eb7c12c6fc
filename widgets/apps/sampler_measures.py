"""What the Sampler app measures of each solver at each step, in words too, and error against evaluations."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workbench as wb
from widgets.apps.flow_measures import distance
from workbench.flows.measures.reference import classical_step, equal_steps
from workbench.rollout import advance
from workbench.samplers.sampling import Sampling

NODES, AIMED, MOST = 160, 400, 2000
FINE = 16
"""Runge–Kutta steps that one step of a solver is compared with."""
TRIES = (1, 2, 4, 8, 16, 32, 64)


class Row(NamedTuple):
    """One solver at one step; see `MEANING`. NaN where a number means nothing."""

    nfe: float
    time: float
    error: float
    local: float
    bent: float
    w2: float


MEANING = {
    "nfe": ("NFE", "Evaluations of the field so far, a sample: what sampling costs."),
    "time": ("time", "Where the samples are on their way, 0 the source and 1 the data; mean over samples."),
    "error": (
        "error",
        "Root mean square distance to the reference solution at the same time, which is Runge–Kutta 4 in "
        f"{NODES} steps from the same noise. – for solvers that draw noise of their own, which have another end.",
    ),
    "local": (
        "local error",
        f"Root mean square distance between the last step and {FINE} Runge–Kutta steps from the same points: the error "
        "this step added. – at the start, and for solvers that draw noise.",
    ),
    "bent": (
        "bend",
        "Length of the way so far divided by the straight distance, mean over samples: 1 when straight.",
    ),
    "w2": (
        "W₂",
        f"2-Wasserstein distance between {AIMED} of the samples and {AIMED} samples of the target, by the optimal "
        "assignment; it is about the generated law only once time is 1.",
    ),
}


class Reference:
    """The exact way of the samples, to be compared with: solved once, when first asked for, finer near both ends."""

    def __init__(self, field: wb.Field, x0: Tensor, part: Sampling) -> None:
        self.field, self.x0 = field, x0
        first, last = (float(end) for end in part.ends(x0))
        u = (1 - torch.cos(math.pi * torch.linspace(0, 1, NODES + 1, dtype=torch.float64))) / 2
        self.times = (first + (last - first) * u).to(x0.dtype)
        self._points: Tensor | None = None

    @property
    def points(self) -> Tensor:
        """(nodes, samples, dim)."""
        if self._points is None:
            x, found = self.x0, [self.x0]
            with torch.no_grad():
                for t, end in zip(self.times[:-1], self.times[1:], strict=True):
                    x = classical_step(self.field, x, t, end)
                    found.append(x)
            self._points = torch.stack(found)
        return self._points

    def at(self, t: Tensor) -> NDArray[Any]:
        """Positions (samples, dim) at a time (1,), or at one a sample (samples,), linear between nodes."""
        along = self.times if self.times[-1] > self.times[0] else -self.times
        t = (t if self.times[-1] > self.times[0] else -t).clamp(float(along[0]), float(along[-1]))
        i = torch.searchsorted(along, t.contiguous()).clamp(1, len(along) - 1)
        share = ((t - along[i - 1]) / (along[i] - along[i - 1])).unsqueeze(-1)
        row = torch.arange(self.points.shape[1]) if len(t) > 1 else slice(None)
        low, high = (self.points[i - k, row] if len(t) > 1 else self.points[int(i[0]) - k] for k in (1, 0))
        return (low + share * (high - low)).numpy()


class Measures:
    """Rows by session and step; the newest are shown."""

    def __init__(self) -> None:
        self._rows: WeakKeyDictionary[wb.Session, dict[int, list[Row]]] = WeakKeyDictionary()
        self.aim: Tensor | None = None
        self.cost, self._ready = 0.0, 0.0

    def begin(self, parts: Mapping[str, Sampling]) -> None:
        """Another field: samples of its target are drawn."""
        lead = next(iter(parts.values()))
        density = lead.field.source if lead.reverse else lead.field.target
        key, like = wb.Key(0).stream("measures"), torch.empty(0, dtype=lead.dtype)
        self.aim = None if density is None else density.sample(key, min(AIMED, lead.samples), like)

    def take(self, session: wb.Session, parts: Mapping[str, Sampling], reference: Reference) -> None:
        """Measure every solver at the session's present step, at most a fifth of the time while it plays."""
        rows = self._rows.setdefault(session, {})
        step, now = session.index, time.monotonic()
        if step in rows or (session.playing and now < self._ready):
            return
        states = session.state.parts
        before = dict(session.kept(max(0, step - 1))).get(step - 1)
        olds = before.parts if before is not None and step else [None] * len(states)
        starts = session.kept(0)
        ways = [torch.stack([state.parts[i].x[0] for k, state in starts if k <= step]) for i in range(len(states))]
        rows[step] = [
            self._row(part, state, old, way, reference)
            for part, state, old, way in zip(parts.values(), states, olds, ways, strict=True)
        ]
        self.cost = time.monotonic() - now
        self._ready = time.monotonic() + 4 * self.cost

    def _row(self, part: Sampling, state: Any, old: Any, way: Tensor, reference: Reference) -> Row:
        x, random = state.x[0], part.method.random
        error = float("nan") if random else rms(x - torch.from_numpy(reference.at(state.t[0])))
        local = float("nan") if random or old is None else self._local(part, old, state)
        chord = (way[-1] - way[0]).norm(dim=-1).clamp(min=1e-12)
        bent = float((way.diff(dim=0).norm(dim=-1).sum(0) / chord).mean()) if len(way) > 1 else float("nan")
        far = (
            distance(x[: len(self.aim)], self.aim) if self.aim is not None and len(self.aim) <= len(x) else float("nan")
        )
        nfe = float(state.nfe.double().mean())
        return Row(nfe, float(state.t.mean()), error, local, bent, far)

    @staticmethod
    def _local(part: Sampling, old: Any, state: Any) -> float:
        if part.method.adaptive:
            return float("nan")
        with torch.no_grad():
            return rms(state.x[0] - equal_steps(part.field, old.x[0], old.t[0], state.t[0], FINE))

    def newest(self, session: wb.Session) -> tuple[int, list[Row]]:
        """(step, rows) last measured at or before where the session stands."""
        rows = {step: row for step, row in dict(self._rows.get(session, {})).items() if step <= session.index}
        return (max(rows), rows[max(rows)]) if rows else (0, [])

    def arrays(self, session: wb.Session) -> tuple[NDArray[Any], NDArray[Any]]:
        """(steps (n,), values (n, solvers, measures)) so far."""
        rows = dict(self._rows.get(session, {}))
        steps = sorted(rows)
        return np.array(steps), np.array([[list(row) for row in rows[step]] for step in steps])


def rms(difference: Tensor) -> float:
    """Root of the mean squared length of rows."""
    return float(difference.square().sum(-1).mean().sqrt())


class Job:
    """Error at the end against evaluations, solver by solver, from few steps to many; `work` does one piece."""

    def __init__(self, parts: Mapping[str, Sampling], reference: Reference, session: wb.Session) -> None:
        self.parts, self.reference, self.key = dict(parts), reference, session.key
        self.given = {label: {} for label in parts}  # type: dict[str, dict]
        for name, value in session.hyper.items():
            label, _, own = name.rpartition(".")
            self.given[label][own] = value
        self.left = [(label, n) for n in TRIES for label, part in parts.items() if "steps" in part.hypers]
        self.total = len(self.left)
        self.found: dict[str, list[tuple[float, float]]] = {label: [] for label in parts}

    def work(self) -> bool:
        """One solver at one number of steps; whether more is left."""
        if self.left:
            label, n = self.left.pop(0)
            self.found[label].append(self._end(self.parts[label], {**self.given[label], "steps": n}))
        return bool(self.left)

    def _end(self, part: Sampling, given: dict) -> tuple[float, float]:
        state, hyper = part.init(self.key.stream("init"), start=self.reference.x0), part.normalise(given, runs=1)
        for k in range(given["steps"]):
            state, _ = advance(part, state, hyper, self.key, k)
        return float(state.nfe.double().mean()), rms(state.x[0] - self.reference.points[-1])


class Errors:
    """The newest job of errors."""

    def __init__(self) -> None:
        self.job: Job | None = None

    def begin(self, parts: Mapping[str, Sampling], reference: Reference, session: wb.Session) -> Job:
        """A new job in place of the one before."""
        self.job = Job({label: part for label, part in parts.items() if not part.method.random}, reference, session)
        return self.job

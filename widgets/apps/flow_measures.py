"""What the Flow app measures of each setting along the run, under a time budget, and how each number is explained."""

import time
from statistics import fmean
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

import workbench as wb
from widgets.apps.flow_picture import Flight
from workbench.flows.measures import Paths, straightness, transport_cost, w2

SHARE = 0.05
"""Most of the time that measuring may take while a run plays."""
SAMPLES, STEPS, MOST, AGAIN = 400, 20, 2000, 4


class Row(NamedTuple):
    """One setting at one step; see `MEANING`."""

    w2: float
    curvature: float
    cost: float
    one_step: float


MEANING = {
    "w2": (
        "W₂",
        f"2-Wasserstein distance between {SAMPLES} generated and {SAMPLES} target samples, by the optimal assignment "
        "of one to the other. Fresh samples of the target itself are apart too: see the last row.",
    ),
    "curvature": (
        "curvature",
        "E ∫ |v(x_t, t) − (x₁ − x₀)|² dt along the flow's own paths: 0 when every path is straight and at constant "
        "speed. The less, the fewer steps a solver needs.",
    ),
    "cost": ("transport", "E |x₁ − x₀|²: mean squared distance from source sample to where the flow takes it."),
    "one_step": (
        "W₂, 1 step",
        "2-Wasserstein distance to the target when the flow is solved with a single Euler step: close to W₂ when paths "
        "are straight.",
    ),
}


class Measures:
    """Rows by session and step; `cost` is what one measurement takes, in seconds, `count` how many were taken."""

    def __init__(self) -> None:
        self._rows: WeakKeyDictionary[wb.Session, dict[int, list[Row]]] = WeakKeyDictionary()
        self._aims: WeakKeyDictionary[wb.Session, tuple] = WeakKeyDictionary()
        self.before: list[tuple[str, list[Row]]] = []
        self.cost, self.count, self._ready = 0.0, 0, 0.0

    def begin(self, session: wb.Session) -> None:
        """A new session: its target samples are drawn."""
        routine: Any = session.routine
        lead = next(iter(routine.parts.values()))
        like, key = torch.empty(0, dtype=lead.dtype), wb.Key(0).stream("measures")
        aim = lead.target.sample(key.stream("target"), SAMPLES, like)
        again = [lead.target.sample(key.stream(f"again {i}"), SAMPLES, like) for i in range(AGAIN)]
        x0 = lead.source.sample(key.stream("source"), SAMPLES, like)
        self._aims[session] = (x0, aim, fmean(float(w2(one, aim).value) for one in again))

    def floor(self, session: wb.Session) -> float:
        """W₂ of fresh sets of target samples, a mean of `AGAIN`: as near as samples of the target itself come."""
        return self._aims[self._first(session)][2]

    def _first(self, session: wb.Session) -> wb.Session:
        if session not in self._aims:
            self.begin(session)
        return session

    def due(self) -> bool:
        """Whether measuring again keeps within its share of the time."""
        return time.monotonic() >= self._ready

    def take(self, session: wb.Session, fields: list[Any]) -> list[Row]:
        """Measure every setting at the session's present step; a step measured before is not measured again."""
        rows = self._rows.setdefault(session, {})
        step = session.index
        if step not in rows:
            began = time.monotonic()
            x0, aim, _ = self._aims[self._first(session)]
            parts = cast_parts(session)
            rows[step] = [measure(part, field, x0, aim) for part, field in zip(parts, fields, strict=True)]
            self.cost, self.count = time.monotonic() - began, self.count + 1
            self._ready = time.monotonic() + self.cost / SHARE
            if len(rows) > MOST:
                for old in sorted(rows)[1:-1:2]:
                    del rows[old]
        return rows[step]

    def arrays(self, session: wb.Session) -> tuple[NDArray[Any], NDArray[Any]]:
        """(steps (n,), values (n, settings, measures)) so far."""
        rows = dict(self._rows.get(session, {}))
        steps = sorted(rows)
        return np.array(steps), np.array([[list(row) for row in rows[step]] for step in steps])

    def remember(self, session: wb.Session) -> None:
        """Keep the last rows of a session that a reflow ends, to compare with."""
        rows = self._rows.get(session)
        if rows:
            last = max(rows)
            self.before = [*self.before, (f"before reflow {len(self.before) + 1}", rows[last])][-4:]


def cast_parts(session: wb.Session) -> list[Any]:
    """The flow trainings of a session."""
    routine: Any = session.routine
    return list(routine.parts.values())


def measure(routine: Any, field: Any, x0: torch.Tensor, aim: torch.Tensor) -> Row:
    """One setting's numbers, from `SAMPLES` paths of `STEPS` midpoint steps."""
    flight = Flight(routine, x0)
    if routine.target.classes:
        field = field.given(torch.arange(len(x0)) % len(routine.target.classes))
    path = flight.path(field, len(x0), steps=STEPS)
    way = Paths(torch.linspace(0, 1, STEPS + 1, dtype=path.dtype), path)
    with torch.no_grad():
        begin = flight.time(0.0)
        jump = path[0] + (flight.last - flight.first) * field(path[0], begin).velocity
    bent, cost = float(straightness(way).value), float(transport_cost(way).value)
    return Row(distance(path[-1], aim), bent, cost, distance(jump, aim))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """W₂ between two sets of samples; NaN when some are not finite."""
    return float(w2(a, b).value) if bool(torch.isfinite(a).all()) else float("nan")

"""Pictures of a session that no desk holds: what a notebook's player shows of a descent in the plane, or of training.

A picture is made for one routine and holds no session: `scene()` is what stays, `frame(session)` what moves.
"""

import threading
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

import workbench as wb
from widgets.apps.descent_paths import Growing
from widgets.apps.plane import contour_lines
from widgets.apps.training_picture import Picture as HeldOut
from widgets.player import Frame, LegendEntry, Marker, Paths, Points, Scene, thin
from workbench.descent import Descent
from workbench.figures.fields import Field, field
from workbench.figures.palette import method_indices
from workbench.together import Together
from workbench.training import Training

MARKS = ("dot", "square", "triangle", "diamond", "plus", "star")
CONTOURS = 11
MOST_TRAILS = 64
"""Runs that are drawn with their paths; of more, the heads alone."""
VERTICES = 4000
"""Vertices drawn of one path; of a longer one the newest."""


class Picture(Protocol):
    """What a player needs to know of a routine."""

    def scene(self) -> Scene:
        """What stays."""

    def frame(self, session: wb.Session) -> Frame:
        """What moves, as the session stands."""


def picture_of(session: wb.Session) -> Picture:
    """The usual picture of a session: paths over the surface, or where the model puts each held-out sample.

    Raises:
        ValueError: when there is none for its routine.
    """
    routine = session.routine
    lead = routine.lead if isinstance(routine, Together) else routine
    if isinstance(lead, Descent) and lead.objective.dim == 2:
        return DescentPicture(session)
    if isinstance(routine, Training):
        return TrainingPicture(session)
    what = f"a descent in {lead.objective.dim} coordinates" if isinstance(lead, Descent) else type(routine).__name__
    raise ValueError(
        f"expected a session of a descent in two coordinates or of one training, got {what}; "
        "say what to draw: Player(session, frame=..., scene=...)"
    )


def drawn_field(objective: wb.Objective) -> tuple[Field, Paths | None]:
    """Heights over the domain, and contour lines at equal shares of the area between."""
    heights = field(objective, size=160)
    return heights, contour_lines(heights.x, heights.y, heights.z, CONTOURS, 0.28, cell(objective))


def surface_scene(objective: wb.Objective, legend: list[LegendEntry], start: Any = None) -> Scene:
    """A surface of two coordinates with its contours, known minima, and the start when there is one for all."""
    heights, contours = drawn_field(objective)
    (x0, x1), (y0, y1) = objective.domain
    marks = [Marker(*m, label="minimum") for m in objective.minima if x0 <= m[0] <= x1 and y0 <= m[1] <= y1]
    if start is not None:
        marks.append(Marker(float(start[0]), float(start[1]), label="start", shape="ring"))
    return Scene(
        x=(x0, x1), y=(y0, y1), x_label=objective.dims[0], y_label=objective.dims[1], title=objective.title[:80],
        field=heights.z, field_label=heights.label, contours=contours, markers=marks, legend=legend,
    )  # fmt: skip


def positions(state: Any) -> NDArray[Any]:
    """Where the runs of a descent stand, (dim, runs); those side by side in order."""
    x = torch.cat([part.x for part in state.parts], 1) if hasattr(state, "parts") else state.x
    return x.detach().cpu().numpy()


def cell(objective: wb.Objective) -> tuple[float, float]:
    """(x, y) spacing of the grid whose cells thin a path: a 900th of the domain, about a pixel."""
    (x0, x1), (y0, y1) = objective.domain
    return (x1 - x0) / 900, (y1 - y0) / 900


class Trail:
    """Where each run has been, from the states a session keeps; grows at the cost of what is new.

    Runs of very many steps keep fewer of their old states: between two of them a path is a straight line.

    Args:
        cell: (x, y) spacing of the grid whose cells thin a path.
    """

    def __init__(self, cell: tuple[float, float]) -> None:
        self._cell, self._past = cell, -1
        self._lock = threading.Lock()

    def grow(self, session: wb.Session) -> "Trail":
        """Take in what the session has lived since; all anew when its past was changed."""
        with self._lock:
            past = len(session.others)
            if past != self._past:
                self._past, self._seen, self._last = past, -1, None
                self._steps, self._points = Growing(dtype=np.int64), Growing((2, session_runs(session)))
            for step, state in session.kept(self._seen + 1):
                self._take(step, positions(state))
        return self

    def _take(self, step: int, points: NDArray[Any]) -> None:
        """Keep a step in which some run has entered another cell."""
        cells = np.floor(points / np.asarray(self._cell)[:, None])
        if self._last is None or not np.array_equal(cells, self._last):
            self._steps.extend(np.array([step]))
            self._points.extend(points[None])
        self._seen, self._last = step, cells

    def paths(self, index: int, head: NDArray[Any]) -> list[NDArray[Any]]:
        """Vertices (n, 2) of each run from the start up to step `index`, where it stands at `head` (2, runs)."""
        with self._lock:
            until = int(np.searchsorted(self._steps.array, index))
            points = np.concatenate([self._points.array[max(0, until - VERTICES) : until], head[None]])
        return [thin(points[:, :, run], self._cell) for run in range(head.shape[1])]


class DescentPicture:
    """One descent in the plane, runs of it, or several methods side by side: the surface, paths and heads."""

    def __init__(self, session: wb.Session) -> None:
        routine = session.routine
        together = isinstance(routine, Together)
        self.objective = (routine.lead if together else routine).objective
        self.start = positions(
            routine.init(session.key.stream("init"), start=session.start, runs=session_runs(session))
        )
        self.labels = list(routine.parts) if together else [routine.method.name]
        self.colours = method_indices(self.labels)
        self._trail = Trail(cell(self.objective))

    def scene(self) -> Scene:
        rows = enumerate(zip(self.labels, self.colours, strict=True))
        legend = [LegendEntry(name, colour, MARKS[i % len(MARKS)]) for i, (name, colour) in rows]
        one = bool((self.start == self.start[:, :1]).all())
        return surface_scene(self.objective, legend, self.start[:, 0] if one else None)

    def frame(self, session: wb.Session) -> Frame:
        index, state = session.now
        heads, lost = positions(state), state.diverged.cpu().numpy() >= 0
        runs = heads.shape[1]
        colour = self._colour(runs)
        look: dict[str, Any] = {"scale": "viridis" if len(self.labels) < runs else None}
        layers: list[Any] = []
        if runs <= MOST_TRAILS:
            ways = self._trail.grow(session).paths(index, heads)
            layers.append(Paths.of(ways, colour=colour, width=2, crossed=lost, **look))
        for i in range(len(self.labels)):
            own = slice(i, i + 1) if len(self.labels) == runs else slice(None)
            style = {"radius": 6 if runs <= 8 else 3.5, "marker": MARKS[i % len(MARKS)], **look}
            layers.append(Points(*heads[:, own], colour=colour[own], crossed=lost[own], **style))
        words = f"step {index:,}" + (f" · {int(lost.sum())} of {runs} diverged" if lost.any() else "")
        return Frame(index, layers, caption=words)

    def _colour(self, runs: int) -> NDArray[np.uint8]:
        """A method's own colour; runs of one method by their order along viridis."""
        if runs == len(self.labels):
            return np.array(self.colours, dtype=np.uint8)
        return np.linspace(0, 255, runs).astype(np.uint8)


class TrainingPicture:
    """One model learning: where it puts each held-out sample, and which it gets wrong."""

    def __init__(self, session: wb.Session) -> None:
        routine = session.routine
        if session_runs(session) != 1:
            raise ValueError(f"expected a training of one run, got {session_runs(session)}; give frame= and scene=")
        self._held = HeldOut(routine.data, routine.outputs(session.state, routine.data.x_test[:1])[0].shape[-1])

    def scene(self) -> Scene:
        return self._held.scene()

    def frame(self, session: wb.Session) -> Frame:
        step, state = session.now
        answers = self._held.read(session.routine.outputs(state, self._held.x)[0])
        words = f"step {step:,}"
        if self._held.classes:
            words += f" · held-out accuracy {100 * (1 - answers.wrong.mean()):.1f} %"
        else:
            words += f" · held-out mean squared error {answers.cost.mean():.3g}"
        return self._held.frame(answers, step, words)


def session_runs(session: wb.Session) -> int:
    """How many runs a session has."""
    return session.routine.runs(session.state)

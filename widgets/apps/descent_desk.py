"""The desk of the Descent app: optimizers side by side from one start on one surface.

A link holds the surface, its settings, the methods, the start, first values and edits of the live line of time; other
lines, the fan and the heat map stay behind. A desk made from `query()` stands at the same step in the same bits.
"""

import contextlib
import math
import time
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.descent_ahead import Fan, HeatMap, fan, first_rate
from widgets.apps.descent_paths import Track, Tracked, parts_of, values
from widgets.apps.desk import QUIET, Desk
from widgets.palette import DARK, LIGHT
from widgets.pictures import cell, drawn_field
from widgets.player import Frame, LegendEntry, Marker, Paths, Points, Scene, thin
from workbench.figures.palette import method_indices
from workbench.problems.expression import parse
from workbench.routine import unknown

MOST = 6
MARKS = ("dot", "square", "triangle", "diamond", "plus", "star")
BUDGET = 64 * 2**20
"""Bytes of snapshots of one line of time; a visitor may keep six."""
FIRST_SPEED = 100.0
"""Steps a second until another speed is chosen: slow enough to see the turns."""
FAN_SECONDS = 1.5
"""How long a fan stays in the picture of a session that has moved on from where it was made."""


class DescentDesk(Desk):
    """Up to six optimizers from one start on one surface of two coordinates.

    Settings: `surface` (a catalogue name or an expression), `shape` (its init settings), `methods` (labels: a catalogue
    name, with a number after it when it appears again), `start` (two numbers, None for the surface's own), `seed`.
    """

    name = "descent"
    title = "Descent"

    def default_settings(self) -> dict[str, Any]:
        methods = ["sgd", "momentum", "adam"]
        return {"surface": "rosenbrock", "shape": {}, "methods": methods, "start": None, "seed": 0}

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        methods = settings["methods"]
        if not isinstance(methods, list) or not 1 <= len(methods) <= MOST or len(set(map(str, methods))) < len(methods):
            raise ValueError(f"expected 1 to {MOST} different optimizers, got {str(methods)[:80]}")
        for label in methods:
            method_name(str(label))
        objective_of(settings)
        start, seed = settings["start"], settings["seed"]
        if start is not None and not is_point(start):
            raise ValueError(f"expected start to be two finite numbers, got {str(start)[:60]}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"expected seed to be a whole number from 0 to {2**32 - 1}, got {str(seed)[:40]}")
        return dict(settings)

    # ---- what is

    def _open(self, query: dict[str, str]) -> None:
        self.speed = FIRST_SPEED
        super()._open(query)

    def build(self) -> wb.Session:
        settings = self.settings
        objective = objective_of(settings)
        parts = {label: wb.descent(objective, method_name(label)) for label in settings["methods"]}
        routine = Tracked(parts)
        first = {**self._rates(parts), **legal(routine, self.first)}
        session = wb.Session(routine, seed=settings["seed"], start=settings["start"], hyper=first, budget=BUDGET)
        self.objective = objective
        self.heights, self.contours = drawn_field(objective)
        self.colours = method_indices(list(parts))
        self._tracks: weakref.WeakKeyDictionary[wb.Session, tuple[Track, int]] = weakref.WeakKeyDictionary()
        self.fan_result, self.heat_map = None, None
        if self.fan_choice["label"] not in parts:
            self.fan_choice = {**self.fan_choice, "label": next(iter(parts)), "name": "lr"}
        return session

    def _rates(self, parts: dict[str, Any]) -> dict[str, float]:
        """First rates of the methods that were given none."""
        names = [method_name(label) for label in parts]
        found: dict[str, float] = {}
        for i, (label, part) in enumerate(parts.items()):
            if f"{label}.lr" not in self.first:
                rate = first_rate(part, self.settings["start"], self.settings["seed"], names[:i].count(names[i]))
                found |= {} if rate is None else {f"{label}.lr": rate}
        return found

    fan_choice: dict[str, Any] = {"on": False, "label": "", "name": "lr", "count": 33}
    fan_result: Fan | None = None
    heat_map: HeatMap | None = None

    @property
    def labels(self) -> list[str]:
        """The methods, in order."""
        return list(self.settings["methods"])

    def track(self, session: wb.Session) -> Track:
        """The positions of a session so far."""
        past = len(session.others)  # grows when code that holds the session changes its past
        made, known = self._tracks.get(session, (None, -1))
        if made is None or known != past:
            made = Track(len(self.labels), cell(self.objective), self.objective)
            self._tracks[session] = made, past
        return made.grow(session)

    def ending(self) -> str:
        if self.all_lost:
            return "every method diverged: lower lr, or press Back"
        hint = "press Play, or click in the picture to set the start" if self.session.head == 0 else ""
        return super().ending() or hint

    @property
    def all_lost(self) -> bool:
        """Whether every method has diverged."""
        return bool((self.session.state.diverged >= 0).all())

    # ---- commands

    def click(self, x: float, y: float) -> None:
        """Begin anew at a point, with the hyperparameters as they stand."""
        self.do(lambda: self._start(x, y), newest="start")

    def choose(self, **settings: Any) -> None:
        newest = "shape" if list(settings) == ["shape"] else ""
        self.do(lambda: self._choose(settings), newest=newest)

    def choose_text(self, text: str) -> None:
        """An expression as the surface; the signal "expression" tells what is wrong with it, "" when nothing is."""
        self.do(lambda: self._choose_text(text), newest="expression")

    def add(self, name: str) -> None:
        """Put another optimizer beside the others, which keep their values, the start and the step."""
        self.do(lambda: self._alter([*self.labels, new_label(name, self.labels)]))

    def remove(self, label: str) -> None:
        """Take an optimizer away; the others keep their values, the start and the step."""
        self.do(lambda: self._alter([other for other in self.labels if other != label]))

    def turn_surface(self, name: str, value: Any) -> None:
        """Turn a hyperparameter of the surface (its noise) for every method together."""
        self._ask({f"{label}.{name}": value for label in self.labels}, newest=f"turn {name}")

    def show_fan(self, **choice: Any) -> None:
        """Choose the fan: `on`, `label` of a method, `name` of its hyperparameter, `count` of values (2 to 64)."""
        self.do(lambda: self._choose_fan(choice), newest="choose fan")

    def draw_heat(self, label: str, x: str, y: str, *, steps: int = 200, side: int = 24) -> None:
        """Begin a heat map of final losses; a newer one takes the place of one under way."""
        self.do(lambda: self._draw_heat(label, x, y, steps, side))

    def cancel_heat(self) -> None:
        """Stop drawing the heat map."""
        if self.heat_map is not None:
            self.heat_map.cancelled = True

    # ---- the picture

    def scene(self) -> Scene:
        objective, heights = self.objective, self.heights
        (x0, x1), (y0, y1) = objective.domain
        start = self.settings["start"] or objective.start
        stars = [Marker(*m, label="minimum") for m in objective.minima if x0 <= m[0] <= x1 and y0 <= m[1] <= y1]
        looks = zip(self.labels, self.colours, MARKS, strict=False)
        return Scene(
            x=(x0, x1),
            y=(y0, y1),
            x_label=objective.dims[0],
            y_label=objective.dims[1],
            title=objective.title[:80],
            field=heights.z,
            field_label=heights.label,
            contours=self.contours,
            markers=[*stars, Marker(*start, label="start", shape="ring")],
            legend=[LegendEntry(*look) for look in looks],
        )

    def frame(self, session: wb.Session | None = None) -> Frame:
        """Paths and heads of the live line, the others faded, the fan; another session (an export's) stands alone."""
        alone, live = session is not None, session or self.session
        index, state = live.now
        heads = np.concatenate([part.x.numpy() for part in state.parts], 1).T
        lost = state.diverged.numpy() >= 0
        track = self.track(self.session if alone else live)
        paths = [track.path(i, index, head) for i, head in enumerate(heads)]
        layers: list[Any] = [] if alone else [*self._other_lines(), *self._fan_layer(index)]
        layers.append(Paths.of(paths, colour=np.array(self.colours), width=2, crossed=lost))
        for i, (x, y) in enumerate(heads):
            layers.append(Points([x], [y], colour=self.colours[i], radius=6, marker=MARKS[i], crossed=[lost[i]]))
        return Frame(index, layers, caption=self._caption(index, state))

    def _caption(self, index: int, state: Any) -> str:
        rows = zip(self.labels, state.diverged.tolist(), strict=True)
        words = [f"{label} diverged at step {at:,}" for label, at in rows if at >= 0]
        return " · ".join([f"step {index:,}", *words])[:200]

    def _other_lines(self) -> list[Paths]:
        """Other lines of time, dashed and faded."""
        found = []
        for line in self.lines:
            if line.session is not self.session:
                index, state = line.session.now
                track = self.track(line.session)
                heads = np.concatenate([part.x.numpy() for part in state.parts], 1).T
                if index < line.session.head:
                    index, heads = line.session.head, track.points.array[-1].T
                ways = [track.path(i, index, head) for i, head in enumerate(heads)]
                found.append(Paths.of(ways, colour=np.array(self.colours), width=1.5, opacity=0.45, dashed=True))
        return found

    def _fan_layer(self, index: int) -> list[Paths]:
        made = self.fan_result
        if made is None or (made.first != index and time.monotonic() - made.made > FAN_SECONDS):
            return []
        cell = self.track(self.session)._cell[:, 0] * 2
        ways = [thin(made.points[:, :, i], tuple(cell)) for i in range(len(made.values))]
        colour = np.linspace(0, 255, len(ways)).astype(np.uint8)
        return [Paths.of(ways, colour=colour, width=1, opacity=0.8, scale="viridis", crossed=made.diverged >= 0)]

    # ---- curves

    def objective_values(self, points: Any) -> NDArray[np.float64]:
        """f at points (2, …)."""
        return values(self.objective, np.asarray(points))[0]

    @property
    def start_loss(self) -> float:
        """f at the start."""
        start = self.settings["start"] or self.objective.start
        return float(self.objective_values(np.reshape(start, (2, 1)))[0])

    def gap(self, losses: Any) -> NDArray[np.float64]:
        """loss - minimum where the minimum is known, else the loss."""
        return np.asarray(losses, dtype=np.float64) - (self.objective.minimum or 0.0)

    def curve_figures(self, theme: str = "light") -> list[dict[str, Any]]:
        """Two figures: loss (less the minimum, where it is known) and gradient norm against steps."""
        known, rows = self.objective.minimum is not None, []
        for line in sorted(self.lines, key=lambda line: line.session is self.session):
            rows += self._line_curves(line.session, theme, live=line.session is self.session)
        title = "loss − minimum" if known else "loss"
        look: dict[str, Any] = {"theme": theme, "cursor": self.session.index}
        return [
            curves([row[0] for row in rows], title=title, log=known, **look),
            curves([row[1] for row in rows], title="gradient norm", log=True, **look),
        ]

    def _line_curves(self, session: wb.Session, theme: str, *, live: bool) -> list[list[dict[str, Any]]]:
        track, palette = self.track(session), DARK if theme == "dark" else LIGHT
        steps, losses, slopes = self._with_head(session, *track.measured())
        style = {"dash": "solid", "opacity": 1.0} if live else {"dash": "dash", "opacity": 0.45}
        rows = []
        for i, label in enumerate(self.labels):
            row = []
            for array in (self.gap(losses[:, i]), slopes[:, i]):
                at = int(np.searchsorted(steps, track.lost[i]))
                cross = (int(track.lost[i]), array[at]) if track.lost[i] >= 0 and at < len(array) else None
                curve = {"name": label, "steps": steps, "values": array, "colour": palette[self.colours[i]]}
                row.append({**curve, **style, "cross": cross if live else None})
            rows.append(row)
        return rows

    def _with_head(self, session: wb.Session, steps: Any, losses: Any, slopes: Any) -> tuple[Any, Any, Any]:
        """The same and where the session stands, when that is the furthest it has been: no step measured it yet."""
        index, state = session.now
        if index < session.head:
            return steps, losses, slopes
        heads = np.concatenate([part.x.numpy() for part in state.parts], 1)
        gone = state.diverged.numpy() >= 0
        ends = [np.where(gone, np.nan, part)[None] for part in values(self.objective, heads)]
        return np.append(steps, index), np.concatenate([losses, ends[0]]), np.concatenate([slopes, ends[1]])

    def tick(self, session: wb.Session) -> None:
        """Says once when every method has diverged, and what to do."""
        lost = self.all_lost
        if lost and not self._said_lost:
            self.tell("message", "Every method has diverged: lower lr, or press Back.", "warning")
        self._said_lost = lost

    _said_lost = False

    def series(self, steps: list[int]) -> dict[str, Any]:
        """Loss (less the minimum) of every method at these steps, for the exported page."""
        at, losses, _ = self._with_head(self.session, *self.track(self.session).measured())
        rows = np.searchsorted(at, steps)
        return {label: self.gap(losses[rows, i]) for i, label in enumerate(self.labels)}

    def meta(self) -> dict[str, Any]:
        objective = self.objective
        known = {"minimum": f"{objective.minimum:g}"} if objective.minimum is not None else {}
        start = self.settings["start"] or objective.start
        return {"surface": objective.title, **known, "start": str(tuple(start)), **super().meta()}

    # ---- inside

    def _start(self, x: float, y: float) -> None:
        before = self.settings
        try:
            point = [float(f"{v:.4g}") for v in (x, y)]
            self.settings = self.check_settings({**before, "start": point})
            self._again(keep=True)
        except ValueError:
            self.settings = before
            raise

    def _choose(self, settings: dict[str, Any]) -> None:
        """Other settings. Another surface has its own shape, start and rates; all else keeps the hyperparameters."""
        before = self.settings
        another = settings.get("surface", before["surface"]) != before["surface"]
        if another:
            settings = {"shape": {}, "start": None, **settings}
        try:
            self.settings = self.check_settings({**before, **settings})
            self._again(keep=not another)
        except ValueError:
            self.settings = before
            raise

    def _choose_text(self, text: str) -> None:
        text = f"({text})" if text.isalpha() else text  # a lone name would be looked up in the catalogue
        try:
            self._choose({"surface": text})
        except ValueError as error:
            self.tell("expression", str(error))
        else:
            self.tell("expression", "")

    def _again(self, *, keep: bool) -> None:
        """Begin anew, and go on playing if it was."""
        playing = self.session.playing
        self._rebuild(keep=keep)
        if playing:
            self.session.play(self.speed)
        self._fan()

    def _alter(self, methods: list[str]) -> None:
        """Other methods at the same place: the live line is lived again with them, the other lines are let go."""
        before, old = self.settings, self.session
        playing = old.playing
        old.pause()
        place, edits = old.index, old.edits
        try:
            self.settings = self.check_settings({**before, "methods": methods})
            self.first = self._for_methods(old.first, methods)
            fresh = self.build()
        except ValueError:
            self.settings = before
            raise
        for line in self.lines:
            line.session.close()
        self.lines, self.live = [type(self.line)("A", fresh)], 0
        fresh.listen(self._tick)
        self.tell("settings")
        still = [(edit.step, self._for_methods({edit.target: edit.value}, methods)) for edit in edits]
        turned = [(step, name, value) for step, row in still if step <= place for name, value in row.items()]
        self._relive(fresh, turned, place)
        if playing:
            fresh.play(self.speed)
        self._fan()

    def _for_methods(self, given: Mapping[str, Any], methods: list[str]) -> dict[str, Any]:
        """Values by full name for these methods: those of the methods that stay, and the surface's for all of them."""
        found: dict[str, Any] = {}
        for full, value in given.items():
            label, _, name = full.rpartition(".")
            whose = methods if name in self.objective.hypers else [label]
            found |= {f"{each}.{name}": value for each in whose if each in methods}
        return found

    def _turn_all(self, values: Any) -> None:
        super()._turn_all(values)
        if self.fan_choice["on"]:
            self.tell("frame", self.picture())  # the answer first: a fan takes a while
            if not any(name.startswith("turn ") for name in self._newest.names()):  # a newer value brings its own
                self._fan()

    def step(self, n: int = 1) -> None:
        super().step(n)
        self._fan_soon()

    def back(self, n: int = 1) -> None:
        super().back(n)
        self._fan_soon()

    def seek(self, step: int) -> None:
        super().seek(step)
        self._fan_soon()

    def toggle(self) -> None:
        super().toggle()
        self._fan_soon()

    def _fan_soon(self) -> None:
        if self.fan_choice["on"]:
            self.do(self._fan, newest="fan")

    def _fan(self) -> Any:
        choice = self.fan_choice
        if not choice["on"]:
            self.fan_result = None
            return
        self.fan_result = fan(self.session, choice["label"], choice["name"], choice["count"])
        self.tell("fan")

    def _choose_fan(self, choice: dict[str, Any]) -> None:
        wanted = {**self.fan_choice, **choice}
        part = parts_of(self.session).get(wanted["label"])
        if part is None:
            raise unknown("a method of the fan", wanted["label"], self.labels)
        if wanted["name"] not in fan_names(part):
            wanted["name"] = fan_names(part)[0]
        if not 2 <= wanted["count"] <= 64:
            raise ValueError(f"expected 2 to 64 values in a fan, got {wanted['count']}")
        self.fan_choice = wanted
        self._fan()
        self.tell("fan")

    def _draw_heat(self, label: str, x: str, y: str, steps: int, side: int) -> Any:
        if label not in parts_of(self.session):
            raise unknown("a method of the heat map", label, self.labels)
        self.heat_map = HeatMap(self.session, label, x, y, steps=steps, side=side)
        return self._heat_slice(self.heat_map)

    def _heat_slice(self, job: HeatMap) -> Any:
        more = job.work()
        if job is self.heat_map and not self.closed:
            self.tell("heat")
            if more:
                self.do(lambda: self._heat_slice(job))
        return QUIET


def objective_of(settings: dict[str, Any]) -> wb.Objective:
    """The surface that settings name, made.

    Raises:
        ValueError: on an unknown name, an expression that is not one, or a surface that is not of two coordinates.
    """
    surface, shape = settings["surface"], settings["shape"]
    if not isinstance(surface, str) or not isinstance(shape, dict):
        raise ValueError(f"expected a surface's name or formula and its settings, got {surface!r} and {shape!r}")
    rows = {row.name: row for row in wb.catalogue("surfaces")}
    objective: Any = rows[surface].make(**shape) if surface in rows else parse(surface)
    if objective.dim != 2:
        words = f"expected a surface of two coordinates, which is what can be drawn, got {objective.dim}"
        raise ValueError(f"{words}; wb.descent descends in any number")
    return objective


def method_name(label: str) -> str:
    """The catalogue name behind a label: adam2 is adam."""
    rows = {row.name for row in wb.catalogue("optimizers")}
    name = label if label in rows else label.rstrip("0123456789")
    if name not in rows:
        raise unknown("an optimizer", label, rows)
    return name


def new_label(name: str, labels: list[str]) -> str:
    """A label for one more of that name: adam, then adam2, adam3, …"""
    tries = [name, *(f"{name}{k}" for k in range(2, MOST + 2))]
    return next(label for label in tries if label not in labels and method_name(label) == name)


def is_point(value: Any) -> bool:
    """Whether it is two finite numbers."""
    with contextlib.suppress(TypeError, ValueError):
        return len(value) == 2 and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    return False


def legal(routine: Any, first: dict[str, Any]) -> dict[str, Any]:
    """The first values that the routine knows and takes; those left out are said when a link is read."""
    found = {}
    for name, value in first.items():
        with contextlib.suppress(ValueError, KeyError):
            if not isinstance(value, list | dict):
                found[name] = routine.hypers[name].check(value)
    return found


def fan_names(part: Any) -> list[str]:
    """Hyperparameters a fan or a heat map can go along, the rate first."""
    names = [name for name, hyper in part.hypers.items() if hyper.kind == "value" and hyper.scale != "choice"]
    return sorted(names, key=lambda name: name != "lr")

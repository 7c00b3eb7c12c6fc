"""Flow: networks learn to carry a source to a target, side by side on the same noise; draw the target, see paths bend.

What the page shows of it is in `flow_view`, the picture in `flow_picture`, measurements in `flow_measures`.
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

import workbench as wb
from widgets.apps.desk import QUIET, Desk
from widgets.apps.files import place
from widgets.apps.flow_measures import Measures
from widgets.apps.flow_picture import SHOWN, FlowPicture, ImagePicture
from widgets.apps.settings import SEEDS, check_column, check_whole
from widgets.player import Frame, Scene
from workbench.catalogue import catalogue, find
from workbench.flows.training import FlowTraining
from workbench.problems.densities import from_points
from workbench.problems.networks import MLP
from workbench.problems.points import read_points

LABELS = "ABC"
"""Settings side by side."""
CHOICES = {
    "coupling": "couplings",
    "interpolant": "interpolants",
    "objective": "flow objectives",
    "times": "time distributions",
    "weight": "loss weights",
    "premetric": "premetrics",
}
COLUMN = {
    "coupling": "independent",
    "interpolant": "linear-path",
    "objective": "flow-matching",
    "times": "uniform-times",
    "weight": "no-weight",
    "premetric": "squared",
    "optimizer": "adam",
}
FAMILIES = {key: (CHOICES.get(key, "optimizers"), f"the flow's {key}") for key in COLUMN}
NEXT = {"coupling": "minibatch-ot"}
"""What an added setting tries that the others may not."""
OWN = "drawn"
INK, SPACING, MOST_INK, BLUR = 0.05, 0.12, 600, 0.06
"""A drawn line is kept as points this far apart, at most so many, each blurred by this standard deviation."""
LAP_SECONDS = 4.0
"""How long a particle takes from source to target in the picture."""
RATE = 2e-3
REPLAYED = 50_000
FRAMES = 120


class FlowDesk(Desk):
    """One to three flows learning side by side.

    Args:
        runs, query: as of every desk.
        target: your own density; None is chosen by settings.
    """

    name = "flow"
    title = "Flow"
    frame_seconds = 1 / 60
    page_frames = 150
    """Each takes a fifteenth of a second to work out."""

    def __init__(
        self, *, runs: str | Path = "runs", query: Mapping[str, str] | None = None, target: wb.Density | None = None
    ) -> None:
        self.own = target
        self.measures = Measures()
        self.tau, self.flowing, self.shown = 1.0, True, list(SHOWN)
        self.drawing, self.ink = False, cast("list[list[float]]", [])
        self._uploaded: wb.Mixture | None = None
        self._taught: dict[str, tuple[list[Any], torch.Tensor]] = {}
        self._lap = time.monotonic()
        super().__init__(runs=runs, query=query)
        threading.Thread(target=self._fly, daemon=True, name="flow particles").start()

    # ---- settings

    def default_settings(self) -> dict[str, Any]:
        target = OWN if self.own is not None else "eight-gaussians"
        net = {"width": 128, "depth": 3, "activation": "silu"}
        return {
            "source": "gaussian", "target": target, "points": None, "columns": [{}], "batch": 256, "seed": 0,
            "rounds": [], **net,
        }  # fmt: skip

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        columns = settings["columns"]
        if not isinstance(columns, list) or not 1 <= len(columns) <= len(LABELS):
            raise ValueError(f"expected 1 to {len(LABELS)} settings side by side, got {columns!r}"[:200])
        settings["columns"] = [check_column(given, "a part of a flow", COLUMN, FAMILIES) for given in columns]
        for name, hyper in MLP.hypers.items():
            settings[name] = hyper.check(settings[name])
        check_whole(settings, seed=SEEDS, batch=(1, 8192))
        find("densities", "a source", settings["source"])
        if settings["target"] == OWN:
            if self.own is None and self._uploaded is None:
                drawn(settings["points"])
        else:
            find("densities", "a target", settings["target"])
        if not isinstance(settings["rounds"], list) or len(settings["rounds"]) > 4:
            raise ValueError("expected at most 4 rounds of reflow")
        return settings

    def target(self) -> wb.Density:
        """The density that is learned."""
        if self.settings["target"] != OWN:
            return cast(wb.Density, wb.make(self.settings["target"]))
        return self.own or self._uploaded or drawn(self.settings["points"])

    def source(self, target: wb.Density) -> wb.Density:
        """The density that is carried there; the unit normal where the chosen one has another dimension."""
        made: Any = wb.make(self.settings["source"])
        return made if made.dim == target.dim else wb.Mixture.normal(target.dim)

    @property
    def parts(self) -> dict[str, FlowTraining]:
        """The flow trainings of the live session, by label."""
        return cast("Any", self.session.routine).parts

    def titles(self) -> list[str]:
        """What distinguishes the settings, in words, one a panel."""
        columns = self.settings["columns"]
        names = {row.name: row.title for row in catalogue()}
        varied = [key for key in COLUMN if len({column.get(key, COLUMN[key]) for column in columns}) > 1]
        rounds = len(self.settings["rounds"])
        again = f" · {rounds + 1}-rectified" if rounds else ""
        return [
            f"{LABELS[i]}: {', '.join(names[column.get(key, COLUMN[key])] for key in varied or ['coupling'])}{again}"
            for i, column in enumerate(columns)
        ]

    def build(self) -> wb.Session:
        target = self.target()
        if target.dim != 2 and not target.image:
            raise ValueError(
                f"expected a target in the plane or one of pictures, which can be drawn, got {target.title} of "
                f"{target.dim} numbers: wb.flow_training learns it in a notebook"
            )
        source = self.source(target)
        fields, start = self._taught.get(json.dumps(self.settings["rounds"]), ([], None))
        parts = {}
        for i, column in enumerate(self.settings["columns"]):
            chosen = {**COLUMN, **column}
            if fields:
                from workbench.flows.reflow import Reflow

                chosen["coupling"] = Reflow(fields[min(i, len(fields) - 1)])
            objective, optimizer = chosen.pop("objective"), chosen.pop("optimizer")
            network = wb.make("mlp", **{name: self.settings[name] for name in MLP.hypers})
            more = {"network": network, "optimizer": optimizer, "batch_size": self.settings["batch"], **chosen}
            parts[LABELS[i]] = wb.flow_training(source, target, objective, **more)
        routine = wb.side_by_side(parts)
        first = {f"{label}.lr": RATE for label, part in parts.items() if "lr" in part.hypers}
        first |= {name: value for name, value in self.first.items() if name in routine.hypers}
        if start is not None and len(start) != len(parts):
            start = start[:1].expand(len(parts), -1)
        session = wb.Session(routine, seed=self.settings["seed"], hyper=first, start=start)
        make = ImagePicture if target.image else FlowPicture
        self.picture_ = make(parts, self.titles())
        self.measures.begin(session)
        return session

    # ---- commands

    def set_column(self, i: int, **chosen: str) -> None:
        """Choose parts of one of the settings side by side."""
        self.do(lambda: self._set_column(i, chosen))

    def add_column(self) -> None:
        """One more setting, like the last."""
        self.do(self._add_column)

    def drop_column(self) -> None:
        """Let the last of the settings go."""
        self.do(self._drop_column)

    def set_tau(self, tau: float) -> None:
        """Show the particles at this share of the way, and stay there."""
        self.flowing, self.tau = False, min(1.0, max(0.0, tau))
        self.do(lambda: None, newest="tau")

    def set_flowing(self, flowing: bool) -> None:
        """Let the particles flow round and round, or stay where they are."""
        self.flowing = flowing
        self.do(lambda: None, newest="tau")

    def show_only(self, shown: list[str]) -> None:
        """What is drawn: some of particles, paths, arrows, target."""
        self.shown = [name for name in SHOWN if name in shown]
        self.do(lambda: self.tell("settings"), newest="shown")

    def reflow(self) -> None:
        """Train again on the pairs that the flows as they are now make: straighter paths, the same ends."""
        self.do(self._reflow)

    def save_fields(self, name: str) -> None:
        """Keep the fields as they are now, each in a file of the folder of runs, for the Sampler app."""
        self.do(lambda: self._save_fields(name))

    # ---- a target drawn by hand

    def begin_drawing(self) -> None:
        """An empty sheet, in place of the picture."""
        self.do(self._begin_drawing)

    def stroke(self, x: list[float], y: list[float]) -> None:
        """A line drawn on the sheet."""
        self.do(lambda: self._stroke(x, y))

    def click(self, x: float, y: float) -> None:
        """On the sheet, a dot."""
        if self.drawing:
            self.stroke([x], [y])

    def undo_stroke(self) -> None:
        """Take the last line back."""
        self.do(self._undo_stroke)

    def end_drawing(self, *, keep: bool) -> None:
        """Train on what was drawn, or forget it."""
        self.do(lambda: self._end_drawing(keep))

    def upload(self, name: str, content: bytes) -> None:
        """Points of a CSV or NPZ file as the target; one that cannot be read changes nothing."""
        self.do(lambda: self._upload(name, content))

    def _set_column(self, i: int, chosen: dict[str, str]) -> None:
        columns = [dict(column) for column in self.settings["columns"]]
        columns[i] |= chosen
        self._choose({"columns": columns, "rounds": []})

    def _add_column(self) -> None:
        columns = self.settings["columns"]
        if len(columns) < len(LABELS):
            self._choose({"columns": [*columns, {**columns[-1], **NEXT}], "rounds": []})

    def _drop_column(self) -> None:
        if len(self.settings["columns"]) > 1:
            self._choose({"columns": self.settings["columns"][:-1], "rounds": []})

    def _begin_drawing(self) -> None:
        self.session.pause()
        self.drawing, self.ink = True, []
        self.tell("settings")

    def _stroke(self, x: list[float], y: list[float]) -> None:
        if self.drawing and sum(map(len, self.ink)) < 2 * MOST_INK:
            self.ink.append(resampled(x, y))

    def _undo_stroke(self) -> None:
        self.ink = self.ink[:-1]

    def _end_drawing(self, keep: bool) -> None:
        points = [[round(v, 2) for v in point] for line in self.ink for point in _pairs(line)]
        if keep:
            self._choose({"target": OWN, "points": points[:MOST_INK], "rounds": []})
            self._uploaded = None
        self.drawing = False
        self.tell("settings")

    def _upload(self, name: str, content: bytes) -> None:
        before = self._uploaded
        try:
            self._uploaded = read_points(name, content)
            self._choose({"target": OWN, "points": None, "rounds": []})
        except ValueError as error:
            self._uploaded = before
            self.tell("upload", f"{name}: {error}", "error")
            return
        count = len(self._uploaded.exact.means)
        self.tell("upload", f"{name}: {count:,} points, centred and scaled to a standard deviation of 1.5.", "success")

    # ---- what is shown

    def fields(self, session: wb.Session, state: Any = None) -> list[Any]:
        """The field of every setting, at the session's state or another."""
        state = session.state if state is None else state
        routine = cast("Any", session.routine)
        return [part.field(own) for part, own in zip(routine.parts.values(), state.parts, strict=True)]

    def scene(self) -> Scene:
        if self.drawing:
            reach = 4.0
            title = "Draw the target: drag lines, click dots"
            return Scene(x=(-reach, reach), y=(-reach, reach), equal=True, draw=True, title=title)
        return self.picture_.scene(self.shown)

    def frame(self, session: wb.Session | None = None) -> Frame:
        if self.drawing and session is None:
            return self._sheet()
        live = session is None or session is self.session
        session = session or self.session
        step, state = session.now
        exact = not (live and session.playing and self.flowing)
        tau = self._now_tau() if live and self.flowing else self.tau if live else 1.0
        coarse = step if exact else int(time.monotonic() * 1.5)
        fields = self.fields(session, state)
        layers = self.picture_.layers(fields, tau, self.shown, exact=exact, stamp=(id(session), coarse))
        return Frame(step=step, layers=layers, caption=self._caption(step, tau, exact))

    def _sheet(self) -> Frame:
        from widgets.player import Points

        at = [point for line in self.ink for point in _pairs(line)]
        x, y = ([p[0] for p in at], [p[1] for p in at]) if at else ([], [])
        words = f"{len(at)} points" if at else "an empty sheet: drag lines with mouse or finger"
        return Frame(step=0, layers=[Points(x, y, colour=0, radius=3)], caption=words)

    def _now_tau(self) -> float:
        lap = ((time.monotonic() - self._lap) / LAP_SECONDS) % 1.25
        return min(1.0, lap)

    def _caption(self, step: int, tau: float, exact: bool) -> str:
        how = "" if exact else " · carried as it learns"
        return f"step {step:,} · flow time {tau:.2f}{how}"

    def tick(self, session: wb.Session) -> None:
        if not session.playing or self.measures.due():
            self.measures.take(session, self.fields(session))

    def _fly(self) -> None:
        """Keeps particles moving while nothing trains."""
        while not self.closed:
            time.sleep(self.frame_seconds)
            if self.flowing and not self.closed and not self.session.playing and not self.drawing and self.can_draw():
                self.do(self._flutter, newest="fly")

    def _flutter(self) -> Any:
        if self.flowing and not self.session.playing and not self.closed:
            self.tell("frame", self.picture())
        return QUIET

    # ---- inside

    def _choose(self, settings: dict[str, Any]) -> None:
        super()._choose(settings)
        self._taught = {key: value for key, value in self._taught.items() if key == json.dumps(self.settings["rounds"])}

    def _reflow(self) -> None:
        session = self.session.pause()
        if not session.index:
            raise ValueError("expected a flow that has learned something to reflow, got one at step 0: play it first")
        edits = [[edit.step, edit.target, edit.value] for edit in session.edits if edit.step <= session.index]
        lived = {"steps": session.index, "first": session.first, "edits": edits}
        rounds = [*self.settings["rounds"], lived]
        self._taught[json.dumps(rounds)] = (self.fields(session), torch.cat([part.x for part in session.state.parts]))
        self.measures.remember(session)
        self.first = dict(session.hyper)
        before = self.settings
        try:
            self.settings = self.check_settings({**before, "rounds": rounds})
            self._rebuild(keep=True)
        except ValueError:
            self.settings = before
            raise

    def _open(self, query: dict[str, str]) -> None:
        rounds = query.pop("rounds", "")
        super()._open(query)
        if rounds:
            self.do(lambda: self._open_rounds(rounds, dict(query)))

    def _open_rounds(self, text: str, query: dict[str, str]) -> None:
        """Live the rounds of reflow that a link tells of, one after the other, then what came after them."""
        try:
            rounds = [(int(r["steps"]), dict(r["first"]), list(r["edits"])) for r in json.loads(text)]
        except (ValueError, KeyError, TypeError):
            raise ValueError("The link's rounds of reflow could not be read and were left out.") from None
        for steps, first, edits in rounds:
            self.first = first
            self._rebuild(keep=False)
            self._relive(self.session, edits, min(steps, REPLAYED))
            if self.session.index != steps:
                return
            self._reflow()
        from widgets.apps import link

        wanted, _ = link.unpack(query, self.default_settings())
        self._relive(self.session, wanted["edits"], wanted["step"])

    def _save_fields(self, name: str) -> None:
        labels = list(self.parts)
        for label, field in zip(labels, self.fields(self.session), strict=True):
            path = place(self.runs, f"{name} {label}.safetensors" if len(labels) > 1 else f"{name}.safetensors")
            wb.save_field(field, path)
        self.tell("message", f"Kept as {name}: open Sampler and choose it there.", "success")
        self.tell("fields", name)

    # ---- to take away

    def html(self) -> str:
        """The run as a page: what the flows made of the same noise, from step 0 to now."""
        return super().html()

    def series(self, steps: list[int]) -> dict[str, Any]:
        return self.traced("loss", steps, [f"loss {label}" for label in self.parts])


def drawn(points: Any) -> wb.Mixture:
    """A target from points drawn by hand.

    Raises:
        ValueError: on fewer than 3 points, or anything that is not pairs of numbers.
    """
    if not isinstance(points, list) or not points:
        raise ValueError("expected a drawn target of at least 3 points, got an empty sheet: draw a line first")
    made = from_points(points, scale=BLUR)
    if made.dim != 2:
        raise ValueError(f"expected points of two numbers, got {made.dim}")
    made.title, made.reach = f"{len(points)} points drawn", 4.0
    return made


def resampled(x: list[float], y: list[float]) -> list[float]:
    """A drawn line as points SPACING apart, flat: x0, y0, x1, y1, …; a dot as a few points around it."""
    if len(x) == 1:
        around = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
        return [v for dx, dy in around for v in (x[0] + INK * dx, y[0] + INK * dy)]
    found, left = [x[0], y[0]], SPACING
    for (ax, ay), (bx, by) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=True), strict=False):
        length = float(((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5)
        at = left
        while at <= length and len(found) < 2 * MOST_INK:
            share = at / length
            found += [ax + share * (bx - ax), ay + share * (by - ay)]
            at += SPACING
        left = at - length
    return found


def _pairs(flat: list[float]) -> list[tuple[float, float]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def page(query: Mapping[str, str], runs: str | Path) -> Any:
    """One visitor's page."""
    from widgets.apps.flow_view import FlowShell

    return FlowShell(FlowDesk(runs=runs, query=query))

"""Landscape: networks learn side by side, and their ways are drawn on one plane through the loss, honestly.

What the page shows of it is in `landscape_view`, the picture in `landscape_picture`, curvature in `landscape_measures`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import workbench as wb
from widgets.apps import files
from widgets.apps.background import Watch
from widgets.apps.landscape_picture import CHECKPOINT, Track
from widgets.apps.landscape_ways import MEMORY, Average, between, marks, points_made, shapes, worth
from widgets.apps.settings import SEEDS, check_column, check_whole
from widgets.apps.slices import VIEW, SlicingDesk
from widgets.apps.training import OWN, load
from widgets.player import Frame, Scene
from workbench import landscapes
from workbench.catalogue import find
from workbench.problems.data import as_data
from workbench.problems.losses import OF_CLASSES
from workbench.problems.networks import MLP

LABELS = "ABC"
"""Trainings side by side."""
RATES = (0.3, 0.5, 0.8)
COLUMN = {"optimizer": "sgd"}
FAMILIES = {"optimizer": ("optimizers", "an optimizer")}
CHECKPOINTS, CHARACTERS = 3, 40
"""Checkpoints that are kept, the oldest goes first; characters of their names."""
SPECTRUM, BETWEEN, AVERAGES, SHAPES = "the spectrum", "the paths between", "averages", "the shape of the ways"
PROBES, LANCZOS = 6, 48


class LandscapeDesk(SlicingDesk):
    """One to three networks learning, on one plane.

    Args:
        runs, query: as of every desk.
        model: your own `nn.Module` or anything `wb.training` takes; None is chosen by settings.
        loss: as `wb.training` takes it; None is chosen by settings.
        data: your own `Data` or tuple of arrays, or a catalogue name; None is chosen.

    Raises:
        ValueError: when model, loss and data do not go together.
    """

    name = "landscape"
    title = "Landscape"

    def __init__(
        self,
        *,
        runs: str | Path = "runs",
        query: Mapping[str, str] | None = None,
        model: Any = None,
        loss: Any = None,
        data: Any = None,
    ) -> None:
        data = as_data(*data) if isinstance(data, tuple | list) else data
        self.own = {"model": model, "loss": loss, "data": data}
        self.spectra: dict[str, Any] = {}
        self.between: dict[str, Any] = {}
        self.averages: list[Average] = []
        self.shapes: dict[str, Any] = {}
        super().__init__(runs=runs, query=query)

    # ---- settings

    def default_settings(self) -> dict[str, Any]:
        net = {"width": 32, "depth": 2, "activation": "tanh"}
        settings = {
            "data": "digits", "model": "mlp", "loss": "squared", "columns": [{}, {}, {}], "seed": 0, "batch": 0,
            "memory": MEMORY.default, **VIEW, **net,
        }  # fmt: skip
        for name, given in self.own.items():
            if given is not None:
                settings[name] = given if isinstance(given, str) else OWN
        return settings

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        columns = settings["columns"]
        if not isinstance(columns, list) or not 1 <= len(columns) <= len(LABELS):
            raise ValueError(f"expected 1 to {len(LABELS)} trainings side by side, got {columns!r}"[:200])
        settings["columns"] = [check_column(given, "a part of a training", COLUMN, FAMILIES) for given in columns]
        for name, family, what in (("data", "datasets", "a data set"), ("model", "models", "a model")):
            if settings[name] != OWN or self.own[name] is None:
                find(family, what, settings[name])
        self.check_view(settings)
        settings["memory"] = MEMORY.check(settings["memory"])
        for name, hyper in MLP.hypers.items():
            settings[name] = hyper.check(settings[name])
        check_whole(settings, seed=SEEDS, batch=(0, 100_000))
        return settings

    def _pick(self, name: str, family: str) -> Any:
        chosen = self.settings[name]
        if chosen == OWN:
            return self.own[name]
        row = find(family, f"a {name}", chosen)
        return row.make(**{h["name"]: self.settings[h["name"]] for h in row.hyper if h["name"] in MLP.hypers})

    def _pick_loss(self, data: wb.Data) -> Any:
        chosen = self.own["loss"] if self.settings["loss"] == OWN else self.settings["loss"]
        if isinstance(chosen, str) and (chosen in OF_CLASSES) != bool(data.classes):
            return OF_CLASSES[0] if data.classes else "mse"
        return chosen

    @property
    def parts(self) -> dict[str, Any]:
        """The trainings of the live session, by label."""
        return cast("Any", self.session.routine).parts

    def titles(self) -> list[str]:
        """What each training is, in words."""
        names = {row.name: row.title for row in wb.catalogue("optimizers")}
        return [f"{LABELS[i]}: {names[{**COLUMN, **column}['optimizer']]}" for i, column in enumerate(self.columns)]

    @property
    def columns(self) -> list[dict[str, str]]:
        """The trainings side by side, as settings."""
        return cast("list[dict[str, str]]", self.settings["columns"])

    def build(self) -> wb.Session:
        data: Any = self.own["data"] if self.settings["data"] == OWN else load(self.settings["data"])
        model, loss = self._pick("model", "models"), self._pick_loss(data)
        batch = self.settings["batch"] or min(100_000, len(data.x))
        parts = {}
        for label, column in zip(LABELS, self.columns, strict=False):
            made: Any = wb.training(model, loss, data, {**COLUMN, **column}["optimizer"])
            parts[label] = made
        routine = wb.side_by_side(parts)
        samples = next(iter(parts.values())).samples
        first: dict[str, Any] = {}
        for label, rate in zip(parts, RATES if len(parts) > 1 else RATES[1:], strict=False):
            first[f"{label}.batch_size"] = min(batch, samples)
            if {**COLUMN, **self.columns[LABELS.index(label)]}["optimizer"] == "sgd":
                first[f"{label}.lr"] = rate
        first |= {name: value for name, value in self.first.items() if name in routine.hypers}
        session = wb.Session(routine, seed=self.settings["seed"], hyper=first)
        self.spectra, self.between, self.averages, self.shapes = {}, {}, [], {}
        self.begin_slices(list(parts), self.titles(), session)
        self._mark()
        return session

    def _relive(self, session: wb.Session, edits: Any, end: int) -> None:
        """Live a link's run, and measure its curvature here and there, as if it had been watched."""
        super()._relive(session, edits, end)
        self.look_back()

    # ---- commands

    def set_column(self, i: int, **chosen: str) -> None:
        """Choose the optimizer of one of the trainings side by side."""
        self.do(lambda: self._set_columns([{**c, **chosen} if j == i else c for j, c in enumerate(self.columns)]))

    def add_column(self) -> None:
        """One more training, like the last."""
        self.do(lambda: self._set_columns([*self.columns, self.columns[-1]][: len(LABELS)]))

    def drop_column(self) -> None:
        """Let the last of the trainings go."""
        self.do(lambda: self._set_columns(self.columns[: max(1, len(self.columns) - 1)]))

    def _set_columns(self, columns: list[dict[str, str]]) -> None:
        self._choose({"columns": columns})

    def show_spectrum(self) -> None:
        """Work out the spectrum of the Hessian of every training where it stands."""
        session = self.session
        now = session.now
        self.background.ask(SPECTRUM, lambda watch: self._spectra(session, now, watch), self._take_spectrum)

    def show_between(self) -> None:
        """Work out paths between the first two trainings where they stand."""
        session = self.session
        if len(self.parts) < 2:
            self.tell("message", "Add a second training: there is nothing to connect one with.", "info")
            return
        now = session.now
        self.background.ask(BETWEEN, lambda watch: self._between(session, now, watch), self._take_between)

    def show_averages(self) -> None:
        """Average the weights along the ways and across the trainings, and place the averages on the picture."""
        session, memory = self.session, self.settings["memory"]
        track = Track.of(session)
        self.background.ask(AVERAGES, lambda watch: self._average(session, track, memory, watch), self._take_averages)

    def set_memory(self, memory: float) -> None:
        """Another memory of the moving averages."""
        self.do(lambda: self._set_memory(memory), newest="memory")

    def _set_memory(self, memory: float) -> None:
        self.settings = self.check_settings({**self.settings, "memory": memory})
        if self.averages:
            self.show_averages()

    def add_checkpoint(self, name: str, content: bytes) -> None:
        """Show the weights of a safetensors file, of the same network, on the plane; what comes of it is told."""
        self.do(lambda: self._add_checkpoint(Path(name.replace("\\", "/")).stem[:CHARACTERS], content))

    def _add_checkpoint(self, name: str, content: bytes) -> None:
        try:
            point = self.surroundings(0).point(files.read_weights(content))
        except ValueError as error:
            self.tell("upload", f"{name}: {error}", "error")
            return
        self.checkpoints = [*(one for one in self.checkpoints if one[0] != name), (name, point)][-CHECKPOINTS:]
        self.tell("upload", f"{name} is on the picture.", "success")
        self._mark()
        self.look()

    def drop_checkpoints(self) -> None:
        """Forget all checkpoints."""
        self.do(self._drop_checkpoints)

    def _drop_checkpoints(self) -> None:
        self.checkpoints = []
        self.averages = [one for one in self.averages if one.marker != CHECKPOINT]
        self._mark()
        self.look()

    def _mark(self) -> None:
        """Place averages and checkpoints on the picture."""
        made = [one for one in marks(self.averages) if one[0] != CHECKPOINT]
        self.plane_picture.marks = [*made, *((CHECKPOINT, 7, point) for _, point in self.checkpoints)]

    def show_shapes(self) -> None:
        """Measure the geometry of the ways so far, and look for phases in them."""
        session = self.session
        track = Track.of(session)
        if len(track.steps) < 2:
            self.tell("message", "Step on first: a way has a shape once it has begun.", "info")
            return
        scene = self.surroundings(0, session, track.state)
        self.background.ask(SHAPES, lambda watch: shapes(scene, track, watch), self._take_shape)

    # ---- in the background

    def _spectra(self, session: wb.Session, now: tuple[int, Any], watch: Watch) -> Iterator[tuple[str, Any]]:
        for i, label in enumerate(LABELS[: len(self.columns)]):
            scene, size = self.surroundings(i, session, now[1]), len(self.columns)
            part = landscapes.within(watch, i / size, (i + 1) / size)
            density = landscapes.spectral_density(landscapes.hessian(scene), probes=PROBES, steps=LANCZOS, watch=part)
            yield label, density.assign_attrs(step=now[0])

    def _take_spectrum(self, found: tuple[str, Any]) -> None:
        self.spectra = {**self.spectra, found[0]: found[1]}
        self.tell("curves")

    def _between(self, session: wb.Session, now: tuple[int, Any], watch: Watch) -> Iterator[tuple[str, Any]]:
        scene = self.surroundings(0, session, now[1])
        a, b = (now[1].parts[i].x[0].detach() for i in (0, 1))
        for name, path in between(scene, a, b, watch):
            yield name, landscapes.along(scene, path, points=41).assign_attrs(step=now[0])

    def _take_between(self, found: tuple[str, Any]) -> None:
        self.between = {**self.between, found[0]: found[1]}
        self.tell("curves")

    def _average(
        self, session: wb.Session, track: Track, memory: float, watch: Watch
    ) -> Iterator[tuple[int, list[Average]]]:
        scene, heldout = (self.surroundings(0, session, track.state, part) for part in ("", "heldout"))
        data = next(iter(cast("Any", session.routine).parts.values())).data
        made = points_made(scene, track, list(self.parts), memory, self.checkpoints, watch)
        for found in worth(scene, heldout, data, made, watch):
            yield int(track.steps[-1]), found

    def _take_averages(self, found: tuple[int, list[Average]]) -> None:
        self.averaged_at, self.averages = found
        self._mark()
        self.tell("scene")
        self.tell("curves")

    def _take_shape(self, found: tuple[str, Any]) -> None:
        self.shapes = {**self.shapes, found[0]: found[1]}
        self.tell("curves")

    # ---- what is shown

    def scene(self) -> Scene:
        return self.plane_scene()

    def frame(self, session: wb.Session | None = None) -> Frame:
        return self.plane_frame(session)

    def tick(self, session: wb.Session) -> None:
        self.measure_curvature(session)
        self.slice_if_due(session)

    # ---- to take away

    def series(self, steps: list[int]) -> dict[str, Any]:
        return self.traced("loss", steps, [f"loss {label}" for label in self.parts])

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "plane": self.plane_picture.words}


def page(query: Mapping[str, str], runs: str | Path) -> Any:
    """One visitor's page."""
    from widgets.apps.landscape_view import LandscapeShell

    return LandscapeShell(LandscapeDesk(runs=runs, query=query))

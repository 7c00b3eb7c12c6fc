"""The loss around trainings on one plane, for desks: laid through their ways, drawn coarse to fine, laid anew in time.

What the plane looks like is in `landscape_picture`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workbench as wb
from widgets.apps.background import Background, Watch
from widgets.apps.desk import Desk, Line
from widgets.apps.landscape_measures import Curvature, parts_of
from widgets.apps.landscape_picture import PlanePicture, Track
from widgets.player import Frame, Scene
from workbench import landscapes
from workbench.routine import unknown

PLANES = {
    "paths": "Best plane of the paths (PCA)",
    "ends": "Through the start and the ends of two paths",
    "stands": "Through where three trainings stand",
    "checkpoints": "Through checkpoints, then where trainings stand",
    "sharpest": "Two sharpest directions of A",
    "filter": "Random, normalised by filter, around A",
    "layer": "Random, normalised by layer, around A",
    "none": "Random, as drawn, around A",
}
PARTS = {"train": "training samples", "heldout": "held-out samples", "all": "all samples"}
FINEST = (13, 25, 51, 97)
"""Points a side of the finest picture."""
PLAYING_POINTS = 25
"""While a run plays, a picture is at most as fine as this."""
SLICE, PAST, HERE = "the slice", "the curvature so far", "the curvature"
MARKS = 25
"""Steps at which the curvature of the past is measured."""
GROWN, FIRST_STEPS = 1.5, 8
"""While it plays, a plane of the paths is laid anew when they have grown by this factor, from so many steps on."""
VIEW = {"plane": "paths", "part": "train", "points": 51}
MOST_OTHERS = 3
"""Other lines of time drawn beside the live one; the newest come first."""


class Survey(NamedTuple):
    """What was found out about a plane: the plane, loss on its grid, the paths seen on it (None before they are)."""

    plane: Any
    grid: Any
    paths: Any


class SlicingDesk(Desk):
    """A desk of trainings that also draws the loss around them, and other things beside the run.

    Signals: "scene" when the plane's picture is another. Settings: those of `VIEW`. Subclasses call `begin_slices` when
    they build a session, and `slice_if_due` when they tick.
    """

    curvature: Curvature

    def __init__(self, **given: Any) -> None:
        self.curvature = Curvature()
        self.survey: Survey | None = None
        self.checkpoints: list[tuple[str, Tensor]] = []
        """Further points of the landscape and what they are called; the oldest comes first."""
        self._seen: Any = None
        playing = lambda: bool(self.lines) and self.session.playing  # noqa: E731
        self.background, self.measuring = Background(self.tell, playing), Background(self.tell, playing)
        """Work beside the run: what is asked for; and curvature while it rests, which no picture waits for."""
        super().__init__(**given)

    def check_view(self, settings: dict[str, Any]) -> None:
        """Raises ValueError when the settings of the view are not legal."""
        for name, options in (("plane", PLANES), ("part", PARTS)):
            if settings[name] not in options:
                raise unknown(f"a {name}", settings[name], options)
        if settings["points"] not in FINEST:
            raise ValueError(f"expected points a side to be one of {FINEST}, got {settings['points']!r}")

    def begin_slices(self, labels: Sequence[str], titles: Sequence[str], session: wb.Session) -> None:
        """Another session: nothing is known of its surroundings."""
        for one in self._beside:
            one.cancel()
        self.curvature.begin()
        self.resting = self.curvature.at_rest()
        self.survey, self._seen = None, None
        dim = parts_of(session.state)[0].x.shape[-1]
        self.checkpoints = [(name, point) for name, point in self.checkpoints if len(point) == dim]
        self.plane_picture = PlanePicture(labels, titles, session.state)

    # ---- commands

    def set_view(self, **chosen: Any) -> None:
        """Another plane, other samples or another fineness of the picture; the run goes on."""
        self.do(lambda: self._set_view(chosen))

    def _set_view(self, chosen: dict[str, Any]) -> None:
        self.settings = self.check_settings({**self.settings, **chosen})
        self.look()

    def look(self) -> None:
        """Lay the plane anew and draw the loss on it, coarse to fine, beside everything else."""
        session = self.session
        self._seen = (session, session.index)
        settings = dict(self.settings)
        if session.playing:
            settings["points"] = min(settings["points"], PLAYING_POINTS)
        track, names = Track.of(session, self.others()), self.path_names()
        self.background.ask(SLICE, lambda watch: self._look(session, track, names, settings, watch), self._looked)

    def others(self) -> list[wb.Session]:
        """Sessions of other lines of time."""
        return [line.session for line in self._other_lines()]

    def path_names(self) -> list[str]:
        """What the paths on the plane are called: those of the live session, then those of other lines of time."""
        labels = self.plane_picture.labels
        others = [(line.label, label) for line in self._other_lines() for label in labels]
        return [
            *(label or f"line {self.line.label}" for label in labels),
            *(f"{label} of line {line}" if label else f"line {line}" for line, label in others),
        ]

    def _other_lines(self) -> list[Line]:
        return [line for i, line in enumerate(self.lines) if i != self.live][-MOST_OTHERS:]

    def look_back(self) -> None:
        """Measure the curvature of the past at evenly spaced steps, where a paused run has few measurements."""
        session = self.session
        wanted = np.unique(np.linspace(0, session.index, MARKS).astype(int))
        if not session.playing and len(self.curvature.arrays(session)[0]) < len(wanted) // 2:
            self.measuring.ask(PAST, lambda watch: self._look_back(session, wanted, watch), self._measured)

    # ---- in the background

    def _look_back(self, session: wb.Session, steps: NDArray[np.int_], watch: Watch) -> Iterator[Any]:
        with session.branch() as twin:
            for i, step in enumerate(steps):
                if session.playing:
                    return
                self.resting.watch = landscapes.within(watch, i / len(steps), i / len(steps))
                yield self.resting.take(twin.seek(int(step)), into=session)

    def _measure(self, session: wb.Session, watch: Watch) -> Iterator[Any]:
        self.resting.watch = watch
        yield self.resting.take(session)

    def _measured(self, _: Any) -> None:
        self.tell("curves")

    def surroundings(self, i: int, session: wb.Session | None = None, state: Any = None, part: str = "") -> Any:
        """The landscape that a training moves in: by default of the live session, where it stands, as in view."""
        session = session or self.session
        state = session.state if state is None else state
        routine, own = parts_of(session.routine)[i], parts_of(state)[i]
        return landscapes.of_training(routine, own, part=part or self.settings["part"])

    def _look(
        self, session: wb.Session, track: Track, names: list[str], settings: dict[str, Any], watch: Watch
    ) -> Iterator[Survey]:
        scene = self.surroundings(0, session, track.state, settings["part"])
        further = list(self.checkpoints)
        plane = lay(settings["plane"], scene, track, self.survey.plane if self.survey else None, names, further)
        seen = torch.cat([track.all, *(point.unsqueeze(0) for _, point in further)])
        spans = landscapes.fit_span(plane, seen, margin=0.25)
        grids = landscapes.coarse_to_fine(scene, plane, span=spans, points=settings["points"], watch=watch)
        grid = None
        for grid in grids:
            yield Survey(plane, grid, None)
        yield Survey(plane, grid, landscapes.on_plane(scene, plane, track.points, steps=track.steps))

    def _looked(self, survey: Survey) -> None:
        self.survey = survey
        self.plane_picture.lay(survey)
        self.tell("scene")
        self.tell("curves")
        session = self.session
        if survey.paths is not None and not session.playing and self._behind(session):
            self.look()  # it came to rest meanwhile, and no other tick will say so

    def measure_curvature(self, session: wb.Session) -> None:
        """Of a run that plays as often as the budget allows; of one that rests thoroughly, beside everything else."""
        if not session.playing:
            if self.curvature.at(session, session.index) is not None:
                return
            self.measuring.ask(HERE, lambda watch: self._measure(session, watch), self._measured)
        elif self.curvature.due():
            self.curvature.take(session)

    def slice_if_due(self, session: wb.Session) -> None:
        """Look anew if the picture has fallen behind."""
        if self._outgrown(session):
            self.look()

    def _outgrown(self, session: wb.Session) -> bool:
        """Whether the picture has fallen behind: paths have grown or left it, or the run has come to rest."""
        known = self._seen is not None and self._seen[0] is session
        if known and (self.background.progress is not None or self.survey is None):
            return False  # it is being looked at
        return self._behind(session)

    def _behind(self, session: wb.Session) -> bool:
        """Whether what was seen last is not where a session is now, far enough to look again."""
        seen, step = self._seen or (None, -1)
        if seen is not session:
            return True
        if step == session.index:
            return False
        if not session.playing:
            return True
        grown = self.settings["plane"] in ("paths", "ends") and session.index > GROWN * max(step, FIRST_STEPS)
        return grown or not self.plane_picture.holds(session)

    def plane_scene(self) -> Scene:
        """The loss on the plane."""
        return self.plane_picture.scene()

    def plane_frame(self, session: wb.Session | None = None) -> Frame:
        """The ways of the trainings, and of other lines of time, on the plane."""
        return self.plane_picture.frame(session or self.session, self.others() if session is None else ())

    # ---- what goes on beside the run

    @property
    def busy(self) -> bool:
        return super().busy or any(one.progress for one in self._beside)

    @property
    def _beside(self) -> tuple[Background, Background]:
        return self.background, self.measuring

    def status(self) -> str:
        working = [one.progress for one in self._beside if one.progress]
        return " · ".join([super().status(), *(f"{what} {share:.0%}" if share else what for what, share in working)])

    def cancel(self) -> None:
        for one in self._beside:
            one.cancel()
        super().cancel()

    def wait(self, seconds: float = 30.0) -> None:
        super().wait(seconds)
        if not all(one.wait(seconds) for one in self._beside):
            raise TimeoutError(f"expected the background to be done within {seconds} s")

    def close(self) -> None:
        for one in self._beside:
            one.close()
        super().close()


def lay(
    kind: str, scene: Any, track: Track, before: Any, names: Sequence[str], further: list[tuple[str, Tensor]]
) -> Any:
    """A plane of a kind for paths so far, of these names; while there are none, a random one around the start."""
    a, ends = scene.start, track.ends
    if kind == "paths" and track.moved:
        plane = landscapes.pca_plane(track.all)
        return plane if before is None else plane.turned_like(before)
    if kind == "ends" and len(ends) > 1 and track.moved:
        return landscapes.plane_through(track.points[0, 0], ends[0], ends[1], labels=("the start", *names[:2]))
    if kind == "stands" and len(ends) > 2 and track.moved:
        return landscapes.plane_through(ends[0], ends[1], ends[2], labels=names[:3])
    if kind == "checkpoints":
        found = [*further, *zip(names, ends, strict=True)][:3]
        if len(found) < 3:
            raise ValueError(f"expected three checkpoints, or trainings that stand for them, got {len(found)}")
        a, b, c = (point for _, point in found)
        return landscapes.plane_through(a, b, c, labels=[name for name, _ in found])
    if kind == "sharpest":
        pairs = landscapes.top_eigenpairs(landscapes.hessian(scene), 2, tolerance=1e-3)
        return landscapes.eigen_plane(a, pairs.vectors, pairs.values)
    return landscapes.random_plane(scene, a, normalise=kind if kind in ("layer", "none") else "filter")

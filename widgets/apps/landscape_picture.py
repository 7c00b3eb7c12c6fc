"""The picture of the Landscape app: loss on a plane as colours and contours, and the paths as they fall on it."""

import math
import weakref
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workbench as wb
from widgets.apps.landscape_measures import parts_of
from widgets.apps.plane import contour_lines
from widgets.player import LegendEntry, Paths, Points, Scene
from widgets.player.frames import Frame
from workbench.figures.landscapes import log_heights

MOST_POINTS, LEAST_POINTS, BYTES = 120, 8, 2**28
"""States of a path that a plane is laid through: so many, or fewer where they would take more bytes."""
MARKS = ("dot", "square", "triangle")
HALF, MOVING, MEAN, FISHER, CHECKPOINT = "diamond", "star", "plus", "cross", "ring"
MADE = {
    HALF: "mean of the second half",
    MOVING: "moving average",
    MEAN: "mean of all",
    FISHER: "Fisher-weighted mean",
    CHECKPOINT: "checkpoint",
}
"""Markers of further points on the picture, and what they stand for."""
CONTOURS = 12
ROUND = 1e-9
MOST_KNOWN = 5000
"""Steps of a session whose places on the plane are remembered."""
MOST_DRAWN = 400
"""Points of a path that are drawn, about."""


def stands(state: Any) -> list[Tensor]:
    """Where every training stands, (parameters,) each."""
    return [part.x[0].detach() for part in parts_of(state)]


def some(kept: list[tuple[int, Any]], most: int) -> list[tuple[int, Any]]:
    """Of what is kept, by rising step, at most so many at about evenly spaced steps, the first and the last among them.

    By step and not by number: the latest steps are kept more closely, and a way would seem to turn more there.
    """
    steps = np.array([step for step, _ in kept])
    wanted = np.linspace(steps[0], steps[-1], most)
    return [kept[i] for i in np.unique(np.abs(steps[:, None] - wanted).argmin(0))]


class Track:
    """States of trainings side by side on their way, as far as they are kept.

    Attributes:
        steps: (n,) steps they are of.
        points: (runs, n, parameters).
        others: (m, parameters) each, the ways of other lines of time.
        state: the last one, whole.
    """

    def __init__(self, steps: NDArray[np.int64], points: Tensor, others: list[Tensor], state: Any) -> None:
        self.steps, self.points, self.others, self.state = steps, points, others, state

    @classmethod
    def of(cls, session: wb.Session, others: Sequence[wb.Session] = (), most: int = MOST_POINTS) -> "Track":
        """Evenly many of what a session keeps, the first and the present one among them; and of other sessions."""
        index, state = session.now
        first = stands(state)
        runs = len(first) * (1 + len(others))
        room = BYTES // max(1, runs * first[0].numel() * first[0].element_size())
        most = max(LEAST_POINTS, min(most, room))
        steps, points = ways(session, (index, state), most)
        return cls(steps, points, [way for other in others for way in ways(other, other.now, most)[1]], state)

    @property
    def moved(self) -> bool:
        """Whether there is a path at all."""
        return len(self.steps) > 2 and bool((self.points[:, -1] != self.points[:, 0]).any())

    @property
    def all(self) -> Tensor:
        """Every point of every path, (points, parameters)."""
        return torch.cat([self.points.flatten(0, 1), *self.others])

    @property
    def ends(self) -> list[Tensor]:
        """Where every path ends, (parameters,) each."""
        return [*self.points[:, -1], *(path[-1] for path in self.others)]


def ways(session: wb.Session, now: tuple[int, Any], most: int) -> tuple[NDArray[np.int64], Tensor]:
    """(steps (n,), points (runs, n, parameters)) of what a session keeps up to where it stands now."""
    kept = some([*((step, one) for step, one in session.kept() if step < now[0]), now], most)
    return np.array([step for step, _ in kept]), torch.stack([torch.stack(stands(one)) for _, one in kept], 1)


class PlanePicture:
    """Scenes and frames of trainings on a plane.

    Args:
        labels: of the trainings.
        titles: what each is, in words.
        start: the state they begin in.
    """

    def __init__(self, labels: Sequence[str], titles: Sequence[str], start: Any) -> None:
        self.labels, self.titles, self.start = labels, titles, torch.stack(stands(start))
        self.plane: Any = None
        self.grid: Any = None
        self.paths: Any = None
        self.marks: list[tuple[str, int, Tensor]] = []
        """(marker, palette index, point) of further points shown where they fall on the plane."""
        self._placed: tuple[Any, Any, list[Points]] = (None, None, [])
        self._coords: WeakKeyDictionary[Any, dict[int, tuple[Any, NDArray[Any]]]] = WeakKeyDictionary()

    def lay(self, survey: Any) -> None:
        """Another plane, or a finer picture of the same."""
        if survey.plane is not self.plane:
            self._coords.clear()
        self.plane, self.grid, self.paths = survey.plane, survey.grid, survey.paths

    @property
    def words(self) -> str:
        """What the picture is, and how much of the paths it holds."""
        if self.grid is None:
            return "The loss on a plane through the parameters: working on it"
        if self.paths is None or not math.isfinite(self.paths.attrs["variance_share"]):
            return str(self.plane.title)
        return f"{self.plane.title}: {100 * self.paths.attrs['variance_share']:.1f} % of their variance"

    @property
    def data(self) -> str:
        """What the loss was taken over, and how sure it is."""
        errors = self.grid.loss_error.values
        known = errors[np.isfinite(errors)]
        sure = f", ± {known.max():.2g} at most" if len(known) else ""
        return f"{self.grid.attrs['landscape']}{sure}"

    @property
    def legend(self) -> str:
        """What the colours are; "" while there are none."""
        return "" if self.grid is None else f"{self.heights()[1]} {self.data}"

    def scene(self) -> Scene:
        legend = [LegendEntry(title, i, MARKS[i]) for i, title in enumerate(self.titles)]
        used = {marker for marker, _, _ in self.marks}
        legend += [LegendEntry(words, 7, marker) for marker, words in MADE.items() if marker in used]
        if self.grid is None:
            return Scene(x=(-1.0, 1.0), y=(-1.0, 1.0), title=self.words, legend=legend)
        a, b = self.grid.a.values, self.grid.b.values
        heights, _ = self.heights()
        return Scene(
            x=(float(a[0]), float(a[-1])), y=(float(b[0]), float(b[-1])),
            x_label=self.plane.labels[0], y_label=self.plane.labels[1], title=self.words, legend=legend,
            field=heights, field_label=self.legend, contours=contour_lines(a, b, heights, CONTOURS, 0.35),
        )  # fmt: skip

    def heights(self) -> tuple[NDArray[Any], str]:
        """(what is drawn at each point of the grid, what it is called): log10 of the loss where that can be taken."""
        heights, logarithmic = log_heights(self.grid.loss.values)
        return heights, "log10" if logarithmic else "values"

    def holds(self, session: wb.Session) -> bool:
        """Whether all trainings of a session stand within the picture."""
        if self.grid is None:
            return False
        at, a, b = self._at(session, *session.now), self.grid.a.values, self.grid.b.values
        inside = (at[:, 0] >= a[0]) & (at[:, 0] <= a[-1]) & (at[:, 1] >= b[0]) & (at[:, 1] <= b[-1])
        return bool(inside.all())

    def frame(self, session: wb.Session, others: Sequence[wb.Session] = ()) -> Frame:
        """The paths so far as they fall on the plane, and where every training stands; paler, those of others."""
        step, state = session.now
        if self.plane is None:
            return Frame(step, [], caption=f"step {step:,}")
        layers: list[Any] = []
        for other in others:
            trail = self._trail(other)
            layers.append(Paths.of(list(trail), colour=np.arange(len(trail)), width=1.25, opacity=0.5, dashed=True))
            layers += self._heads(other.now[1], trail[:, -1], radius=4, opacity=0.5)
        trail = self._trail(session)
        layers.append(Paths.of(list(trail), colour=np.arange(len(trail)), width=2.0))
        layers += self._heads(state, trail[:, -1], radius=6)
        return Frame(step, layers + self._marked(), caption=f"step {step:,} · off the plane: {self._off(state)}"[:240])

    def _marked(self) -> list[Points]:
        """The further points on the plane, remembered while both are the same."""
        plane, marks, found = self._placed
        if plane is not self.plane or marks is not self.marks:
            plane, marks = self.plane, self.marks
            at = [plane.coords(point.unsqueeze(0)).double().cpu().numpy().T for _, _, point in marks]
            looks = [{"marker": marker, "colour": colour, "radius": 5} for marker, colour, _ in marks]
            found = [Points(*xy, **look) for xy, look in zip(at, looks, strict=True)]
            self._placed = plane, marks, found
        return found

    def _trail(self, session: wb.Session) -> NDArray[Any]:
        """(runs, points, 2): the way of a session so far, on the plane."""
        step, state = session.now
        kept = [(k, one) for k, one in session.kept() if k < step]
        thin = kept[:: max(1, len(kept) // MOST_DRAWN)]
        return np.stack([*(self._at(session, k, one) for k, one in thin), self._at(session, step, state)], 1)

    @staticmethod
    def _heads(state: Any, at: NDArray[Any], **look: Any) -> list[Points]:
        lost = state.diverged.cpu().numpy() >= 0
        return [
            Points(*head[:, None], colour=i, marker=MARKS[i], crossed=lost[i : i + 1], **look)
            for i, head in enumerate(at)
        ]

    def _off(self, state: Any) -> str:
        """How far each training is from the plane, as a share of the distance it has come from its start."""
        points = torch.stack(stands(state))
        off = self.plane.residual(points)
        whole = torch.linalg.vector_norm(points - self.start.to(points), dim=1).clamp_min(ROUND)
        return ", ".join(
            f"{label} {100 * float(o / w):.0f} %".strip() for label, o, w in zip(self.labels, off, whole, strict=True)
        )

    def _at(self, session: wb.Session, step: int, state: Any) -> NDArray[Any]:
        """(runs, 2): where the trainings fall on the plane, remembered of a step while its state is the same."""
        lead, coords = parts_of(state)[0].x, self._coords.setdefault(session, {})
        known = coords.get(step)
        if known is None or known[0]() is not lead:
            if len(coords) > MOST_KNOWN:
                coords.clear()
            found = self.plane.coords(torch.stack(stands(state))).double().cpu().numpy()
            known = coords[step] = weakref.ref(lead), found
        return known[1]

"""The picture of the Landscape app: loss on a plane as colours and contours, and the paths as they fall on it."""

import math
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workbench as wb
from widgets.apps.plane import contour_lines
from widgets.player import LegendEntry, Paths, Points, Scene
from widgets.player.frames import Frame
from workbench.figures.landscapes import log_heights

MOST_POINTS, LEAST_POINTS, BYTES = 120, 8, 2**28
"""States of a path that a plane is laid through: so many, or fewer where they would take more bytes."""
MARKS = ("dot", "square", "triangle")
CONTOURS = 12
ROUND = 1e-9
MOST_KNOWN = 5000
"""Steps whose places on the plane are remembered."""


def stands(state: Any) -> list[Tensor]:
    """Where every training stands, (parameters,) each."""
    return [part.x[0].detach() for part in state.parts]


class Track:
    """States of trainings side by side on their way, as far as they are kept.

    Attributes:
        steps: (n,) steps they are of.
        points: (runs, n, parameters).
        state: the last one, whole.
    """

    def __init__(self, steps: NDArray[np.int64], points: Tensor, state: Any) -> None:
        self.steps, self.points, self.state = steps, points, state

    @classmethod
    def of(cls, session: wb.Session, most: int = MOST_POINTS) -> "Track":
        """Evenly many of what a session keeps, the first and the present one among them."""
        index, state = session.now
        kept = [(step, one) for step, one in session.kept() if step < index]
        first = stands(state)
        room = BYTES // max(1, len(first) * first[0].numel() * first[0].element_size())
        most = max(LEAST_POINTS, min(most, room))
        chosen = sorted({round(i * (len(kept) - 1) / max(1, most - 2)) for i in range(most - 1)}) if kept else []
        rows = [(kept[i][0], stands(kept[i][1])) for i in chosen if i < len(kept)] + [(index, first)]
        points = torch.stack([torch.stack([row[run] for _, row in rows]) for run in range(len(first))])
        return cls(np.array([step for step, _ in rows]), points, state)

    @property
    def moved(self) -> bool:
        """Whether there is a path at all."""
        return len(self.steps) > 2 and bool((self.points[:, -1] != self.points[:, 0]).any())


class PlanePicture:
    """Scenes and frames of trainings on a plane.

    Args:
        labels: of the trainings.
        titles: what each is, in words.
        start: where they begin, (trainings, parameters).
    """

    def __init__(self, labels: list[str], titles: list[str], start: Tensor) -> None:
        self.labels, self.titles, self.start = labels, titles, start
        self.plane: Any = None
        self.grid: Any = None
        self.paths: Any = None
        self._coords: dict[int, tuple[Any, NDArray[Any]]] = {}

    def lay(self, survey: Any) -> None:
        """Another plane, or a finer picture of the same."""
        if survey.plane is not self.plane:
            self._coords = {}
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

    def scene(self) -> Scene:
        legend = [LegendEntry(title, i, MARKS[i]) for i, title in enumerate(self.titles)]
        if self.grid is None:
            return Scene(x=(-1.0, 1.0), y=(-1.0, 1.0), title=self.words, legend=legend)
        a, b = self.grid.a.values, self.grid.b.values
        heights, label = self.heights()
        return Scene(
            x=(float(a[0]), float(a[-1])), y=(float(b[0]), float(b[-1])),
            x_label=self.plane.labels[0], y_label=self.plane.labels[1], title=self.words, legend=legend,
            field=heights, field_label=f"{label} {self.data}", contours=contour_lines(a, b, heights, CONTOURS, 0.35),
        )  # fmt: skip

    def heights(self) -> tuple[NDArray[Any], str]:
        """(what is drawn at each point of the grid, what it is called): log10 of the loss where that can be taken."""
        heights, logarithmic = log_heights(self.grid.loss.values)
        return heights, "log10" if logarithmic else "values"

    def holds(self, session: wb.Session) -> bool:
        """Whether all trainings of a session stand within the picture."""
        if self.grid is None:
            return False
        at, a, b = self._at(*session.now), self.grid.a.values, self.grid.b.values
        inside = (at[:, 0] >= a[0]) & (at[:, 0] <= a[-1]) & (at[:, 1] >= b[0]) & (at[:, 1] <= b[-1])
        return bool(inside.all())

    def frame(self, session: wb.Session) -> Frame:
        """The paths so far as they fall on the plane, and where every training stands."""
        step, state = session.now
        if self.plane is None:
            return Frame(step, [], caption=f"step {step:,}")
        known = [(k, one) for k, one in session.kept() if k < step]
        thin = known[:: max(1, len(known) // 400)]
        trail = np.stack([*(self._at(k, one) for k, one in thin), self._at(step, state)], 1)
        layers: list[Any] = [Paths.of(list(trail), colour=np.arange(len(trail)), width=2.0)]
        lost = state.diverged.cpu().numpy() >= 0
        for i, head in enumerate(trail[:, -1]):
            layers.append(Points(*head[:, None], colour=i, radius=6, marker=MARKS[i], crossed=lost[i : i + 1]))
        return Frame(step, layers, caption=f"step {step:,} · off the plane: {self._off(state)}"[:240])

    def _off(self, state: Any) -> str:
        """How far each training is from the plane, as a share of the distance it has come from its start."""
        points = torch.stack(stands(state))
        off = self.plane.residual(points)
        whole = torch.linalg.vector_norm(points - self.start.to(points), dim=1).clamp_min(ROUND)
        return ", ".join(
            f"{label} {100 * float(o / w):.0f} %" for label, o, w in zip(self.labels, off, whole, strict=True)
        )

    def _at(self, step: int, state: Any) -> NDArray[Any]:
        """(runs, 2): where the trainings fall on the plane, remembered of a step while its state is the same."""
        lead = state.parts[0].x
        known = self._coords.get(step)
        if known is None or known[0]() is not lead:
            if len(self._coords) > MOST_KNOWN:
                self._coords.clear()
            found = self.plane.coords(torch.stack(stands(state))).double().cpu().numpy()
            known = self._coords[step] = weakref.ref(lead), found
        return known[1]

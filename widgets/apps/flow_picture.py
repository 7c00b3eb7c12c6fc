"""The picture of the Flow app: particles on their way, their paths, the velocity field; or pictures that a net makes.

Several settings stand side by side, each in a panel of its own, all on the same source samples.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import workbench as wb
from widgets.apps.plane import ROOM, Arrows
from widgets.player import Images, LegendEntry, Panel, Paths, Points, Scene, panels_of
from workbench.flows.training import FlowTraining

PARTICLES, PATHS, BACKDROP = 2000, 48, 700
STEPS, ROUGH = 24, 12
"""Midpoint steps of a path from one end to the other: drawn exactly, and while a net learns."""
TURNS = 4
"""Frames in which every particle's velocity is asked for once, while a net learns."""
LOOKS = 40
"""Arrows are drawn anew so many times a lap while a net learns."""
TILES = 60
SHOWN = ("particles", "paths", "arrows", "target")


class Flight:
    """The samples of one setting, carried by its field: exactly when asked for, or a little further each frame.

    Args:
        routine: the flow training whose field it is.
        x0: source samples (n, dim), the same for every setting.
    """

    def __init__(self, routine: FlowTraining, x0: Tensor) -> None:
        self.routine = routine
        self.first, self.last = routine.path.ends
        begin = torch.tensor(self.first, dtype=x0.dtype)
        self.x0 = routine.path.spread(begin) * x0
        self.x, self.tau = self.x0, 0.0
        self.v, self.turn, self.rows = self.x0, cast("int | None", None), torch.arange(len(x0))

    def time(self, tau: float) -> Tensor:
        """The interpolant's time at a share of the way."""
        return torch.tensor(self.first + tau * (self.last - self.first), dtype=self.x0.dtype)

    def advance(self, field: wb.Field, tau: float) -> Tensor:
        """Carry the samples on to `tau` by one Euler step of the field as it is; a new lap starts at the source.

        Each frame asks the field for one sample in `TURNS`, the others go on as they went: what that misses of a curve
        is less than what the net learns meanwhile.
        """
        if tau < self.tau or self.turn is None:
            self.x, self.tau, self.turn = self.x0, 0.0, None
        t, end = self.time(self.tau), self.time(tau)
        with torch.no_grad():
            if self.turn is None:
                self.v, self.turn = field(self.x, t).velocity, 0
            else:
                own = slice(self.turn, None, TURNS)
                self.v[own] = field(self.x[own], t, rows=self.rows[own]).velocity
            self.x, self.tau, self.turn = self.x + (end - t) * self.v, tau, (self.turn + 1) % TURNS
        return self.x

    def path(self, field: wb.Field, n: int, tau: float = 1.0, steps: int = STEPS) -> Tensor:
        """(steps + 1, n, dim): the way of the first n samples to `tau`, exact to the solver's error."""
        x, points = self.x0[:n], [self.x0[:n]]
        for i in range(steps):
            x = midpoint(field, x, self.time(tau * i / steps), self.time(tau * (i + 1) / steps))
            points.append(x)
        return torch.stack(points)


def midpoint(field: wb.Field, x: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """One midpoint step from t to end."""
    with torch.no_grad():
        h = end - t
        half = x + h / 2 * field(x, t).velocity
        return x + h * field(half, t + h / 2).velocity


class FlowPicture:
    """Scenes and frames of flow trainings side by side in the plane.

    Args:
        parts: the trainings by label.
        titles: what stands above each panel.
    """

    def __init__(self, parts: dict[str, FlowTraining], titles: Sequence[str]) -> None:
        self.parts = parts
        lead = next(iter(parts.values()))
        reach = max(lead.target.reach, 3.0)
        self.reach = reach
        self.panels, self.x, (low, high) = panels_of(titles, (-reach, reach), (-reach, reach))
        self.y = low - ROOM * (high - low), high
        like, key = torch.empty(0, dtype=lead.dtype), wb.Key(0).stream("picture")
        x0 = lead.source.sample(key.stream("source"), PARTICLES, like)
        self.flights = [Flight(part, x0) for part in parts.values()]
        target = lead.target.sample(key.stream("target"), BACKDROP, like).numpy()
        self.target = np.concatenate([target + np.array([panel.dx, panel.dy]) for panel in self.panels])
        self.arrows = Arrows(reach, lead.dtype)
        self._paths: dict[int, tuple[Any, Paths]] = {}
        self._arrows: dict[int, tuple[Any, Paths]] = {}

    def scene(self, shown: Sequence[str]) -> Scene:
        """The panels, with the target's samples behind them."""
        target = self.target if "target" in shown else self.target[:0]
        backdrop = Points(target[:, 0], target[:, 1], colour=7, radius=1.2, opacity=0.35)
        return Scene(
            x=self.x, y=self.y, equal=True, panels=self.panels, backdrop=backdrop,
            legend=[LegendEntry("target", 7)] if len(target) else [],
        )  # fmt: skip

    def layers(self, fields: Sequence[wb.Field], tau: float, shown: Sequence[str], *, exact: bool, stamp: Any) -> list:
        """What moves, at a share `tau` of the way. `stamp` says which state the fields are of."""
        found: list[Any] = []
        for i, (flight, field, panel) in enumerate(zip(self.flights, fields, self.panels, strict=True)):
            ways = flight.path(field, PARTICLES, tau) if exact and "particles" in shown else None
            if "paths" in shown:
                whole = ways[:, :PATHS] if ways is not None and tau == 1 else None
                found.append(self._path_layer(i, flight, field, panel, stamp, STEPS if exact else ROUGH, whole))
            if "particles" in shown:
                at = (flight.advance(field, tau) if ways is None else ways[-1]).numpy()
                found.append(Points(at[:, 0] + panel.dx, at[:, 1] + panel.dy, colour=i, radius=1.6, opacity=0.8))
            if "arrows" in shown:
                found.append(self._arrow_layer(i, flight, field, panel, tau, None if exact else round(tau * LOOKS)))
        return found

    def _arrow_layer(self, i: int, flight: Flight, field: wb.Field, panel: Panel, tau: float, stamp: Any) -> Paths:
        known = self._arrows.get(i)
        if known is None or stamp is None or known[0] != stamp:
            arrows = self.arrows.of(field, flight.time(tau), np.array([panel.dx, panel.dy]))
            known = self._arrows[i] = (stamp, arrows)
        return known[1]

    def _path_layer(
        self, i: int, flight: Flight, field: wb.Field, panel: Panel, stamp: Any, steps: int, ways: Tensor | None
    ) -> Paths:
        """`ways`: of these samples from one end to the other, where they are known already."""
        known, stamp = self._paths.get(i), (steps, stamp)
        if known is None or known[0] != stamp:
            path = (flight.path(field, PATHS, steps=steps) if ways is None else ways).numpy().swapaxes(0, 1)
            at = path + np.array([panel.dx, panel.dy], dtype=path.dtype)
            known = self._paths[i] = (stamp, Paths.of(list(at), colour=i, width=1.0, opacity=0.6))
        return known[1]


class ImagePicture:
    """Pictures that the nets make of the same noise, class by class."""

    def __init__(self, parts: dict[str, FlowTraining], titles: Sequence[str]) -> None:
        self.parts, self.titles = parts, titles
        lead = next(iter(parts.values()))
        self.shape = lead.target.image or (1, lead.target.dim)
        self.classes = lead.target.classes
        each = TILES // len(parts)
        self.labels = torch.arange(each) % max(1, len(self.classes)) if self.classes else None
        like = torch.empty(0, dtype=lead.dtype)
        x0 = lead.source.sample(wb.Key(0).stream("picture"), each, like)
        self.flights = [Flight(part, x0) for part in parts.values()]

    def scene(self, shown: Sequence[str]) -> Scene:
        """Pictures only."""
        entries = [LegendEntry(title, i) for i, title in enumerate(self.titles)]
        return Scene(axes=False, title="Pictures made of noise, the asked class below each", legend=entries)

    def layers(self, fields: Sequence[Any], tau: float, shown: Sequence[str], *, exact: bool, stamp: Any) -> list:
        """The pictures at a share `tau` of the way."""
        tiles, names, colours = [], [], []
        for i, (flight, field) in enumerate(zip(self.flights, fields, strict=True)):
            asked = field if self.labels is None else field.given(self.labels)
            x = flight.path(asked, len(flight.x0), tau, 16)[-1].reshape(-1, *self.shape).numpy()
            tiles.append(np.clip(np.nan_to_num((x + 1) * 127.5), 0, 255).astype(np.uint8))
            names += [self.classes[int(c)] for c in self.labels] if self.labels is not None else [""] * len(x)
            colours += [i] * len(x)
        return [Images(np.concatenate(tiles), names, colour=np.array(colours, dtype=np.int64))]

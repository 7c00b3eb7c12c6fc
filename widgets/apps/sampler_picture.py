"""The picture of the Sampler app: samples on their way, where they were, where they should be; or emerging pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import workbench as wb
from widgets.apps.plane import ROOM, Arrows
from widgets.player import Images, LegendEntry, Paths, Points, Scene, panels_of
from workbench.samplers.sampling import Sampling

TRAILS, BACKDROP = 40, 700
SHOWN = ("samples", "trails", "reference", "arrows", "target")
TILES = 60


class PlanePicture:
    """Scenes and frames of samplers side by side in the plane, each in a panel of its own.

    Args:
        parts: the samplings by label.
        titles: what stands above each panel.
        colours: palette index of each.
    """

    def __init__(self, parts: dict[str, Sampling], titles: Sequence[str], colours: Sequence[int]) -> None:
        self.parts, self.colours = parts, list(colours)
        lead = next(iter(parts.values()))
        target = lead.field.target
        self.reach = max(target.reach if target is not None else 4.0, 3.0)
        self.panels, self.x, (low, high) = panels_of(titles, (-self.reach, self.reach), (-self.reach, self.reach))
        self.y = low - ROOM * (high - low), high
        self.target = np.empty((0, 2))
        if target is not None:
            like = torch.empty(0, dtype=lead.dtype)
            found = target.sample(wb.Key(0).stream("picture").stream("target"), BACKDROP, like).numpy()
            self.target = np.concatenate([found + np.array([panel.dx, panel.dy]) for panel in self.panels])
        self.arrows = Arrows(self.reach, lead.dtype)

    def scene(self, shown: Sequence[str]) -> Scene:
        """The panels, with samples of the target behind them."""
        target = self.target if "target" in shown else self.target[:0]
        backdrop = Points(target[:, 0], target[:, 1], colour=7, radius=1.2, opacity=0.35)
        legend = [LegendEntry("target", 7)] if len(target) else []
        if "reference" in shown:
            legend.append(LegendEntry("reference solution", 7, "ring"))
        return Scene(x=self.x, y=self.y, equal=True, panels=self.panels, backdrop=backdrop, legend=legend)

    def layers(
        self,
        states: Sequence[Any],
        trails: Sequence[NDArray[Any]],
        aims: Sequence[Any],
        stages: Any,
        shown: Sequence[str],
    ) -> list:
        """What moves.

        Args:
            states: of each sampling, as it stands.
            trails: of each, positions so far (steps, samples, 2).
            aims: of each, where the reference solution is at the same time (samples, 2), or None.
            stages: of each, (points, velocities) of evaluations made within the next step, or () of none.
        """
        found: list[Any] = []
        for i, (part, state, panel) in enumerate(zip(self.parts.values(), states, self.panels, strict=True)):
            at, colour = np.array([panel.dx, panel.dy]), self.colours[i]
            x = state.x[0].numpy() + at
            if "arrows" in shown:
                found.append(self.arrows.of(part.field, state.t.mean(), at))
            if "trails" in shown and len(trails[i]) > 1:
                way = trails[i][:, :TRAILS].swapaxes(0, 1) + at
                found.append(Paths.of(list(way), colour=colour, width=1.1, opacity=0.6))
            if "samples" in shown:
                found.append(Points(x[:, 0], x[:, 1], colour=colour, radius=2, opacity=0.75))
            if "reference" in shown and aims[i] is not None:
                found += self._errors(x[:TRAILS], aims[i][:TRAILS] + at)
            for points, velocity in stages[i] if stages else ():
                found += self._stage(points[:TRAILS].numpy() + at, velocity[:TRAILS].numpy(), colour)
        return found

    def _errors(self, x: NDArray[Any], aim: NDArray[Any]) -> list:
        """Rings where samples should be, and lines from where they are."""
        lines = np.stack([x, aim], 1).reshape(-1, 2)
        joined = Paths(lines[:, 0], lines[:, 1], np.arange(len(x) + 1) * 2, colour=7, width=1.0, opacity=0.8)
        return [joined, Points(aim[:, 0], aim[:, 1], colour=7, radius=3.5, marker="ring", opacity=0.8)]

    def _stage(self, at: NDArray[Any], velocity: NDArray[Any], colour: int) -> list:
        """Where the field was asked, and what it said."""
        tip = at + 0.12 * self.reach / 4 * velocity
        lines = np.stack([at, tip], 1).reshape(-1, 2)
        arrows = Paths(lines[:, 0], lines[:, 1], np.arange(len(at) + 1) * 2, colour=colour, width=1.4)
        return [arrows, Points(at[:, 0], at[:, 1], colour=colour, radius=4, marker="diamond")]


class TilesPicture:
    """Pictures emerging from noise, the same noise for every sampler."""

    def __init__(self, parts: dict[str, Sampling], titles: Sequence[str], colours: Sequence[int]) -> None:
        self.parts, self.titles, self.colours = parts, list(titles), list(colours)
        lead = next(iter(parts.values()))
        self.shape = lead.field.target.image
        self.each = max(4, TILES // len(parts))

    def scene(self, shown: Sequence[str]) -> Scene:
        """Pictures only."""
        entries = [LegendEntry(title, colour) for title, colour in zip(self.titles, self.colours, strict=True)]
        return Scene(axes=False, title="The same noise for every sampler; asked class below", legend=entries)

    def layers(self, states: Sequence[Any], trails: Any, aims: Any, stages: Any, shown: Sequence[str]) -> list:
        """The pictures as they are, or what the field thinks they will be."""
        tiles, names, colours = [], [], []
        for i, (part, state) in enumerate(zip(self.parts.values(), states, strict=True)):
            x = state.x[0]
            if "prediction" in shown:
                with torch.no_grad():
                    x = part.field(x, state.t[0]).data
            x = x[: self.each].reshape(-1, *self.shape).numpy()
            tiles.append(np.clip(np.nan_to_num((x + 1) * 127.5), 0, 255).astype(np.uint8))
            labels = getattr(part.field, "labels", None)
            classes = part.field.target.classes
            names += [classes[int(c)] for c in labels[: len(x)]] if labels is not None else [""] * len(x)
            colours += [self.colours[i]] * len(x)
        return [Images(np.concatenate(tiles), names, colour=np.array(colours, dtype=np.int64))]

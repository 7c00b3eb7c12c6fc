"""The paths of a record over its objective: from above, and on the surface in three dimensions."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.figures.fields import Domain, Field, field, objective_of, plane_notes, seen_from_above
from workbench.figures.runs import pick_runs, run_colours, run_labels
from workbench.figures.theme import blank, colour_map, faded, look
from workbench.problems.objective import Objective
from workbench.routine import RUNNING, status

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def paths(
    record: xr.Dataset,
    objective: Objective | None = None,
    *,
    domain: Domain | None = None,
    size: int = 96,
    log: bool | None = None,
    runs: Sequence[int] | None = None,
    theme: str = "light",
) -> "Figure":
    """The runs' paths over the objective: a ring where each starts, a dot where it stands, an × where it diverged.

    With more than two coordinates it is a projection onto the first two, and says how much of the paths lies outside
    that plane.

    Args:
        objective: what was descended; found by the record's attributes when None.

    Raises:
        ValueError: when the record has no positions, or the objective is not known.
    """
    objective = _known(record, objective)
    heights = field(objective, domain, size, log=log)
    shown, notes = pick_runs(record, runs)
    points = record["x"].values[shown].astype(np.float64)
    notes = [*notes, *_outside_plane(points)]
    if run_colours(record, shown, theme)[1] is not None:
        notes += _fates(_trails(record, shown, theme, heights))
    figure = seen_from_above(objective, heights, theme, look(theme)["field"], notes)
    trails = _trails(record, shown, theme, heights)
    for trail in sorted(trails, key=lambda trail: not trail.fate):
        trail.draw(figure, theme, casing=len(trails) <= 8)
    scale = run_colours(record, shown, theme)[1]
    if scale is not None:
        figure.update_traces(showscale=False, selector={"type": "contour"})
        figure.update_layout(showlegend=False)
        scale.show(figure, theme)
    return figure


def _known(record: xr.Dataset, objective: Objective | None) -> Objective:
    if "x" not in record:
        raise ValueError(f"expected a record with positions x, got {', '.join(map(str, record.data_vars))}")
    found = objective if objective is not None else objective_of(record)
    if found is None:
        raise ValueError(f"expected an objective for {record.attrs.get('recipe', 'this record')}; pass objective=…")
    if found.dim != record.sizes["dim"]:
        raise ValueError(f"expected an objective of {record.sizes['dim']} coordinates, got {found.dim} ({found.title})")
    return found


def _outside_plane(points: NDArray[np.float64]) -> list[str]:
    if points.shape[-1] < 3:
        return []
    moves = np.diff(points, axis=1)
    total = np.nansum(moves**2)
    share = np.nansum(moves[..., 2:] ** 2) / total if total else 0.0
    return [f"{share:.0%} of the squared step lengths lie outside this plane"]


@dataclasses.dataclass(frozen=True, eq=False)
class Trail:
    """One run's way over the plane, up to where it diverged; `rank` is its place in the legend."""

    label: str
    colour: str
    points: NDArray[np.float64]
    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    diverged: int
    corners: NDArray[np.float64]
    rank: int

    @property
    def fate(self) -> str:
        """What became of it when it is not in the picture any more, else ""."""
        out = ((self.points[:, :2] < self.corners[0]) | (self.points[:, :2] > self.corners[1])).any(1)
        if self.diverged != RUNNING:
            return status(self.diverged)
        if out.all():
            return "outside the picture"
        return f"leaves the picture at step {self.steps[len(out) - out[::-1].argmin()]}" if out[-1] else ""

    @property
    def name(self) -> str:
        """Its name in the legend, with its fate."""
        return f"{self.label}: {self.fate}" if self.fate else self.label

    @functools.cached_property
    def kept(self) -> NDArray[np.intp]:
        """Which of its points are drawn: not those that stay in the same pixel."""
        return thin(self.points, tuple((self.corners[1] - self.corners[0]) / 1500))

    def seen(self) -> dict[str, Any]:
        """What hovering over its points says."""
        place = "(%{x:.5g}, %{y:.5g})<br>f = %{customdata[1]:.5g}"
        hover = f"<b>{self.label}</b><br>step %{{customdata[0]}}<br>{place}<extra></extra>"
        return {"customdata": np.stack([self.steps, self.losses], -1)[self.kept], "hovertemplate": hover}

    def draw(self, figure: "Figure", theme: str, *, casing: bool) -> None:
        """Add it to a figure seen from above: a casing in the paper's colour if wanted, the line, its two ends."""
        x, y = self.points[self.kept, 0], self.points[self.kept, 1]
        paper = look(theme)["paper"]
        group = {"legendgroup": self.label, "name": self.name, "legendrank": 1001 + self.rank}
        line = {"x": x, "y": y, "mode": "lines", **group}
        if casing:
            wide = {"color": faded(paper, 0.6), "width": 4}
            figure.add_scatter(**line, line=wide, hoverinfo="skip", showlegend=False)
        thickness = {"color": self.colour, "width": 2 if casing else 1.3}
        figure.add_scatter(**line, line=thickness, **self.seen(), showlegend=True)
        ends = self._near(x, y)
        symbols = np.array(["circle-open", "circle" if self.diverged == RUNNING else "x"])[ends]
        said = np.array(["start", f"step {self.steps[-1]}" if self.diverged == RUNNING else self.fate])[ends]
        rims = {"width": np.array([2, 1])[ends], "color": np.array([self.colour, paper])[ends]}
        size = np.array([8, 9] if casing else [6, 5])[ends]
        marker = {"symbol": symbols, "size": size, "color": self.colour, "line": rims, "opacity": 1}
        hover = f"<b>{self.label}</b><br>%{{text}}<br>(%{{x:.5g}}, %{{y:.5g}})<extra></extra>"
        at = {"x": x[[0, -1]][ends], "y": y[[0, -1]][ends], "mode": "markers", "text": said}
        figure.add_scatter(**at, **group, marker=marker, hovertemplate=hover, showlegend=False)

    def _near(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.intp]:
        """Which of its two ends a browser can place: not one that lies millions of pictures away."""
        far = 1e6 * (self.corners[1] - self.corners[0])
        ends = np.stack([x[[0, -1]], y[[0, -1]]], -1)
        return np.flatnonzero((np.abs(ends - self.corners[0]) < far).all(1))


def _fates(trails: Sequence[Trail]) -> list[str]:
    """How many runs are not in the picture any more, where no legend says it."""
    lost = sum(trail.diverged != RUNNING for trail in trails)
    left = sum(bool(trail.fate) for trail in trails) - lost
    words = [f"{lost} of {len(trails)} runs diverged"] if lost else []
    return words + ([f"{left} of {len(trails)} runs left the picture"] if left else [])


def _trails(record: xr.Dataset, shown: Sequence[int], theme: str, heights: Field) -> list[Trail]:
    labels, (colours, _) = run_labels(record), run_colours(record, shown, theme)
    stops = record["diverged_at"].values if "diverged_at" in record else np.full(record.sizes["run"], RUNNING)
    steps = record["step"].values
    corners = np.array([[heights.x[0], heights.y[0]], [heights.x[-1], heights.y[-1]]])
    trails = []
    for row, run in enumerate(shown):
        lived = steps <= stops[run] if stops[run] != RUNNING else np.ones(len(steps), dtype=bool)
        points = record["x"].values[run, lived].astype(np.float64)
        losses = record["loss"].values[run, lived] if "loss" in record else np.full(len(points), np.nan)
        trails.append(Trail(labels[run], colours[row], points, steps[lived], losses, int(stops[run]), corners, row))
    return trails


def thin(points: NDArray[np.float64], cell: Sequence[float], most: int = 2000) -> NDArray[np.intp]:
    """Indices of a path's points without those in the same cell of a grid as the one before; the two ends stay.

    While more than `most` are left the grid is made coarser, up to sixteen times: a path is off by a few pixels then.
    """
    places = np.clip(points[:, :2] / np.asarray(cell), -1e15, 1e15)
    kept = np.arange(len(points))
    for coarser in (1, 2, 4, 8, 16):
        moved = (np.diff(np.floor(places / coarser), axis=0) != 0).any(1)
        kept = np.flatnonzero(np.concatenate([[True], moved[:-1], [True]])) if len(points) > 2 else kept
        if len(kept) <= most:
            break
    return kept


def surface3d(
    objective: Objective,
    record: xr.Dataset | None = None,
    *,
    domain: Domain | None = None,
    size: int = 128,
    log: bool | None = None,
    runs: Sequence[int] | None = None,
    theme: str = "light",
) -> "Figure":
    """The objective as a surface in three dimensions, with the record's paths on it where they lie in the domain.

    Heights are log10(1 + f - min) where the objective says so (or `log=True`), and the axis says it.
    """
    heights = field(objective, domain, size, log=log)
    notes = plane_notes(objective, heights)
    trails: list[Trail] = []
    if record is not None:
        _known(record, objective)
        shown, said = pick_runs(record, runs)
        notes += [*said, *_outside_plane(record["x"].values[shown].astype(np.float64))]
        trails = _trails(record, shown, theme, heights)
    figure = blank(theme, objective.title, notes, uirevision=objective.title)
    x, y = objective.dims[:2]
    hover = f"{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<br>{heights.label} %{{z:.4g}}<extra></extra>"
    light = {"ambient": 0.75, "diffuse": 0.45, "specular": 0.05, "roughness": 0.9}
    colours = {"colorscale": colour_map("viridis", theme, 0.75), "showscale": not trails}
    colours["colorbar"] = {"title": {"text": heights.label}}
    figure.add_surface(x=heights.x, y=heights.y, z=heights.z, lighting=light, hovertemplate=hover, **colours)
    for trail in trails:
        _draw_above(figure, trail, heights)
    names = {f"{axis}axis": {"title": {"text": text}} for axis, text in (("x", x), ("y", y), ("z", heights.label))}
    camera = {"eye": {"x": -0.55, "y": -1.05, "z": 1.5}, "center": {"x": 0, "y": 0, "z": -0.15}}
    figure.update_layout(scene={**names, "aspectratio": {"x": 1, "y": 1, "z": 0.5}, "camera": camera})
    return figure


def _draw_above(figure: "Figure", trail: Trail, heights: Field) -> None:
    """A path on the surface, a hair above it so that the surface, made of flat pieces, does not swallow it."""
    x, y = trail.points[trail.kept, 0], trail.points[trail.kept, 1]
    (x0, y0), (x1, y1) = trail.corners
    inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    drawn = np.where(inside, heights.drawn(np.clip(x, x0, x1), np.clip(y, y0, y1)), np.nan)
    hair = 0.012 * float(np.nanmax(heights.z) - np.nanmin(heights.z))
    z = np.fmax(heights.height(trail.losses[trail.kept]), drawn) + hair
    x, y, z = (np.where(inside, part, np.nan) for part in (x, y, z))
    line = {"color": trail.colour, "width": 5}
    figure.add_scatter3d(x=x, y=y, z=z, mode="lines", name=trail.name, line=line, connectgaps=False, **trail.seen())

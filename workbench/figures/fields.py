"""Surfaces from above and in three dimensions, with the paths of a record on them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from workbench.figures.theme import blank, colour_map, faded, look, star
from workbench.problems.objective import Objective

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Domain = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """Heights on a grid of a plane.

    x, y: the grid's coordinates. z: (len(y), len(x)) float32 heights, NaN where the function is not finite. label:
    what the heights are. log: whether they are log10(1 + f - base). at: the point whose first two coordinates span the
    plane (the others are those of this point).
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    z: NDArray[np.float32]
    label: str
    log: bool
    base: float
    at: tuple[float, ...]

    def height(self, values: Any) -> Any:
        """What stands in `z` for function values."""
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.log10(1 + np.maximum(np.asarray(values) - self.base, 0)) if self.log else np.asarray(values)
        return np.where(np.isfinite(scaled), scaled, np.nan)

    def drawn(self, x: Any, y: Any) -> NDArray[np.float64]:
        """Heights between the grid's points, bilinear, for points inside it: the surface as a picture has it."""
        row, column = ((len(axis) - 1) * (v - axis[0]) / (axis[-1] - axis[0]) for axis, v in ((self.y, y), (self.x, x)))
        i, j = (np.clip(at.astype(int), 0, len(axis) - 2) for at, axis in ((row, self.y), (column, self.x)))
        up, across = row - i, column - j
        near = (1 - across) * self.z[i, j] + across * self.z[i, j + 1]
        far = (1 - across) * self.z[i + 1, j] + across * self.z[i + 1, j + 1]
        return (1 - up) * near + up * far

    @property
    def missing(self) -> float:
        """Share of the grid where the function is not finite."""
        return float(np.isnan(self.z).mean())


def field(
    objective: Objective, domain: Domain | None = None, size: int = 96, *, log: bool | None = None, at: Any = None
) -> Field:
    """Heights of an objective over the plane of its first two coordinates.

    Args:
        domain: ((low, high), (low, high)); the objective's own when None.
        size: grid points a side.
        log: whether heights are log10(1 + f - min); the objective's own `log` when None. Where the minimum is not known
            the lowest value on the grid takes its place, and the label says so.
        at: a point of the plane, for more than two coordinates; the first known minimum, else the start, when None.

    Raises:
        ValueError: on a domain that is not two increasing pairs.
    """
    point = tuple(float(v) for v in (at if at is not None else [*objective.minima, objective.start][0]))
    (x0, x1), (y0, y1) = _domain(domain if domain is not None else objective.domain[:2])
    x, y = np.linspace(x0, x1, size), np.linspace(y0, y1, size)
    plane = torch.from_numpy(np.stack(np.meshgrid(x, y)))
    rest = torch.tensor(point[2:], dtype=torch.float64).reshape(-1, 1, 1).expand(-1, size, size)
    with torch.no_grad():
        values = objective(torch.cat([plane, rest])).numpy()
    log = objective.log if log is None else log
    known = objective.minimum is not None
    finite = values[np.isfinite(values)]
    base = objective.minimum if objective.minimum is not None else float(finite.min()) if len(finite) else 0.0
    label = f"log10(1 + f - {'min' if known else 'lowest value shown'})" if log else "f"
    empty = Field(x, y, np.empty(0, np.float32), label, log, base, point)
    return dataclasses.replace(empty, z=empty.height(values).astype(np.float32))


def _domain(domain: Domain) -> Domain:
    pairs = [(float(low), float(high)) for low, high in domain]
    if len(pairs) != 2 or not all(np.isfinite(pair).all() and pair[0] < pair[1] for pair in pairs):
        raise ValueError(f"expected domain to be two pairs (low, high) with low < high, got {domain!r}")
    return pairs


def contours(
    objective: Objective,
    *,
    domain: Domain | None = None,
    size: int = 96,
    log: bool | None = None,
    at: Any = None,
    theme: str = "light",
) -> "Figure":
    """The objective from above: heights as colours and contour lines, its minima as stars. Arguments as for `field`."""
    heights = field(objective, domain, size, log=log, at=at)
    return seen_from_above(objective, heights, theme, 1.0, [])


def seen_from_above(
    objective: Objective, heights: Field, theme: str, strength: float, notes: Sequence[str]
) -> "Figure":
    """Heights as colours (`strength` 1: full, less: mixed with the paper), contour lines, minima, axes, notes."""
    figure = blank(theme, objective.title, [*plane_notes(objective, heights), *notes], uirevision=objective.title)
    ink = look(theme)["ink"]
    x, y = objective.dims[:2]
    lines = {"coloring": "heatmap", "showlines": True}
    hover = f"{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<br>{heights.label} %{{z:.4g}}<extra></extra>"
    style = {
        "contours": lines,
        "ncontours": 18,
        "line": {"width": 0.6, "color": faded(ink, 0.3)},
        "hovertemplate": hover,
    }
    colours = {"colorscale": colour_map("viridis", theme, strength), "colorbar": {"title": {"text": heights.label}}}
    figure.add_contour(x=heights.x, y=heights.y, z=heights.z, connectgaps=False, **style, **colours)
    _minima(figure, objective, heights, theme)
    figure.update_xaxes(title_text=x, range=[heights.x[0], heights.x[-1]], constrain="domain", zeroline=False)
    figure.update_yaxes(title_text=y, range=[heights.y[0], heights.y[-1]], constrain="domain", zeroline=False)
    return figure


def plane_notes(objective: Objective, heights: Field) -> list[str]:
    """What has to be said: which plane it is, and where the function is not finite."""
    notes = []
    if objective.dim > 2:
        rest = zip(objective.dims[2:5], heights.at[2:5], strict=False)
        more = " …" if objective.dim > 5 else ""
        notes.append("plane through " + ", ".join(f"{name} = {value:.3g}" for name, value in rest) + more)
    if heights.missing:
        notes.append(f"blank: not finite ({max(heights.missing, 0.001):.1%} of the plane)")
    return notes


def _minima(figure: "Figure", objective: Objective, heights: Field, theme: str) -> None:
    """Stars where the known minima are, as far as they lie in the picture and in its plane."""
    inside = [point for point in objective.minima if _within(point, heights)]
    if not inside:
        return
    at = {"x": [point[0] for point in inside], "y": [point[1] for point in inside]}
    value = "" if objective.minimum is None else f"<br>f = {objective.minimum:.6g}"
    hover = f"minimum (%{{x:.4g}}, %{{y:.4g}}){value}<extra></extra>"
    figure.add_scatter(**at, mode="markers", marker=star(theme), name="minimum", hovertemplate=hover, showlegend=True)


def _within(point: Sequence[float], heights: Field) -> bool:
    here = heights.x[0] <= point[0] <= heights.x[-1] and heights.y[0] <= point[1] <= heights.y[-1]
    return bool(here and np.allclose(point[2:], heights.at[2:], atol=1e-6))


def objective_of(record: xr.Dataset) -> Objective | None:
    """The objective a record descended, made again from its attributes; None when they do not say.

    Nothing in the record is run as code. What is found is checked: its value at the first recorded point has to be the
    recorded loss.
    """
    from workbench.catalogue import catalogue
    from workbench.problems.expression import Expression, parse

    if "x" not in record or "loss" not in record or "dim" not in record["x"].dims:
        return None
    attrs, name = record.attrs, record.attrs.get("problem")
    rows = {row.name: row.make for row in catalogue("surfaces")}
    found: Any = None
    try:
        if name == Expression.name and "text" in attrs:
            found = parse(str(attrs["text"]))
        elif name in rows:
            declared = [key for key, hyper in rows[name].hypers.items() if hyper.kind == "init"]
            found = rows[name](**{key: attrs[key] for key in declared if key in attrs})
    except ValueError:
        return None
    return found if found is not None and _agrees(found, record) else None


def _agrees(objective: Objective, record: xr.Dataset) -> bool:
    points = record["x"].values[:, 0].astype(np.float64)
    if points.shape[-1] != objective.dim:
        return False
    with torch.no_grad():
        values = objective(torch.from_numpy(points.T.copy())).numpy()
    return bool(np.allclose(values, record["loss"].values[:, 0], rtol=1e-3, atol=1e-4, equal_nan=True))

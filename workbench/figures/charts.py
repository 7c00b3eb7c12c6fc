"""Lines against steps: what every chart is made of, whether its numbers come from a record or from a live session."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.figures.theme import bar_ticks, blank, colours_along, line_map, log_axis, look, number
from workbench.routine import RUNNING, status

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Numbers = NDArray[np.float64]
DECADES = 3
"""How far above the sound runs a logarithmic axis goes for the sake of runs that diverged."""


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One line.

    Args:
        label: its name in the legend and on hover.
        x, y: steps and values, equally long; a value that is not finite leaves a gap.
        colour: "#RRGGBB" or "rgb(…)".
        dash: "solid", "dot" or "dash".
        diverged: the step at which its run stopped being finite (what comes after is not drawn), -1 when it did not.
    """

    label: str
    x: Any
    y: Any
    colour: str
    dash: str = "solid"
    diverged: int = RUNNING

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"expected x and y of {self.label!r} to be equally long rows, got {x.shape} and {y.shape}")
        if self.diverged != RUNNING:
            x, y = x[x <= self.diverged], y[x <= self.diverged]
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", np.where(np.isfinite(y), y, np.nan))

    @property
    def finite(self) -> Numbers:
        """Its finite values."""
        return self.y[np.isfinite(self.y)]

    @property
    def fate(self) -> str:
        """What became of it, "" while it is sound: "diverged at step k", or from which step on it is not finite."""
        if self.diverged != RUNNING:
            return status(self.diverged)
        known = np.flatnonzero(np.isfinite(self.y))
        ends = len(known) and known[-1] + 1 < len(self.y)
        return f"not finite from step {self.x[known[-1] + 1]:g}" if ends else ""

    @property
    def gaps(self) -> int:
        """How many values within it are missing; not its first (nothing was measured yet), nor those after its fate."""
        known = np.flatnonzero(np.isfinite(self.y))
        return int(np.isnan(self.y[1 : known[-1] + 1]).sum()) if len(known) else 0

    @property
    def last(self) -> tuple[float, float] | None:
        """Where its last finite value stands, None when it has none."""
        known = np.flatnonzero(np.isfinite(self.y))
        return (float(self.x[known[-1]]), float(self.y[known[-1]])) if len(known) else None


@dataclasses.dataclass(frozen=True)
class Scale:
    """A colour bar in place of a legend: what the colours stand for, and whether they run over its logarithm."""

    name: str
    low: float
    high: float
    log: bool = False

    def place(self, values: Any) -> Numbers:
        """Where values stand on the bar, from 0 to 1."""
        numbers, low, high = (np.log10(v) if self.log else np.asarray(v) for v in (values, self.low, self.high))
        return np.clip((numbers - low) / ((high - low) or 1.0), 0, 1)

    @classmethod
    def of(cls, name: str, values: ArrayLike) -> "Scale":
        """The scale of these values: logarithmic when they are positive and span more than a factor of 20."""
        low, high = float(np.min(values)), float(np.max(values))
        return cls(name, low, high, log=low > 0 and high / low > 20)

    def show(self, figure: "Figure", theme: str) -> None:
        """Add the colour bar, by way of an empty trace that carries it."""
        low, high = (float(np.log10(v)) for v in (self.low, self.high)) if self.log else (self.low, self.high)
        bar = {"title": {"text": self.name}, **bar_ticks(low, high, self.log)}
        marker = {"color": [low], "cmin": low, "cmax": high if high > low else low + 1, "showscale": True}
        marker |= {"colorscale": line_map(theme), "colorbar": bar}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, hoverinfo="skip", showlegend=False)


def decimate(y: ArrayLike, points: int = 2000) -> NDArray[np.intp]:
    """Indices of at most `points` values that draw the same line as all of them (min–max decimation).

    The row is cut into equal buckets, about as many as a screen has pixels; of each its lowest and its highest value
    stay, and one that is not finite where there is one, so that no peak and no gap is lost. The first and the last stay
    too. Taking every n-th value instead would lose peaks.
    """
    values = np.asarray(y, dtype=np.float64)
    n, finite = len(values), np.isfinite(values)
    if points < 8:
        raise ValueError(f"expected points to be at least 8, got {points}")
    if n <= points:
        return np.arange(n)
    width = -(-n // ((points - 2) // (2 if finite.all() else 3)))
    starts = np.arange(0, n, width)
    padded = np.full(len(starts) * width, np.nan)
    padded[:n] = np.where(finite, values, np.nan)
    rows = padded.reshape(-1, width)
    known = np.isfinite(rows)
    lowest = np.where(known, rows, np.inf).argmin(1) + starts
    highest = np.where(known, rows, -np.inf).argmax(1) + starts
    gaps = (~known).argmax(1) + starts
    some = known.any(1)
    kept = np.concatenate([[0, n - 1], lowest[some], highest[some], gaps[(~known).any(1)]])
    return np.unique(kept[kept < n])


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log: bool | str = "auto",
    scale: Scale | None = None,
    notes: Sequence[str] = (),
    max_points: int = 2000,
    theme: str = "light",
) -> "Figure":
    """Lines on one pair of axes.

    Lines longer than `max_points` are reduced by min–max decimation (see `decimate`), never by plain striding. A run
    that diverged ends in an × at its last finite value; where that lies far beyond all sound runs the axis stops short
    of it, and the × is repeated at the edge.

    Args:
        log: "auto": a logarithmic axis when all values are positive and span more than a factor of 30; True: whenever
            they are all positive, otherwise a linear one and a note; False: linear.
        scale: what colours stand for; a colour bar is shown in place of the legend.
        notes: what a reader must know; shown beneath the title.
    """
    upright, said = _logarithmic(series, log)
    notes = [*notes, *said, *_missing(series, legend=scale is None)]
    figure = blank(theme, title, notes, uirevision=y_label, showlegend=scale is None and len(series) > 0)
    figure.update_xaxes(title_text=x_label, type="linear")
    figure.update_yaxes(title_text=y_label, type="linear")
    if upright:
        values = np.concatenate([one.finite for one in series])
        figure.update_yaxes(**log_axis(values.min(), values.max()))
    figure.add_traces([_line(one, y_label, max_points) for one in series])
    edges = _stop_short(series, upright)
    if edges is not None:
        figure.update_yaxes(range=list(edges))
    for one in series:
        _mark_end(figure, one, edges, upright, theme)
    if scale is not None:
        scale.show(figure, theme)
    return figure


def fan(
    steps: ArrayLike,
    values: ArrayLike,
    losses: ArrayLike,
    *,
    name: str,
    current: float | None = None,
    diverged: ArrayLike | None = None,
    y_label: str = "loss",
    **options: Any,
) -> "Figure":
    """Where one run would go under other values of one hyperparameter: a line a value, coloured by the value.

    Args:
        steps: (steps,). values: (runs,) of the hyperparameter `name`. losses: (runs, steps).
        current: the value in force; its line is drawn on top in ink.
        diverged: (runs,) the step at which each stopped being finite, -1 when it did not.
        options: those of `chart`.
    """
    values, losses = np.asarray(values, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    stops = np.full(len(values), RUNNING) if diverged is None else np.asarray(diverged)
    scale = Scale.of(name, values)
    theme = options.get("theme", "light")
    colours = colours_along(scale.place(values), theme)
    rows = zip(values, losses, colours, stops, strict=True)
    lines = [Series(f"{name} = {number(v)}", steps, row, c, "solid", int(stop)) for v, row, c, stop in rows]
    if current is not None:
        nearest = int(np.argmin(np.abs(values - current)))
        ink = look(theme)["ink"]
        lines.append(
            dataclasses.replace(lines.pop(nearest), colour=ink, label=f"{name} = {number(values[nearest])} (now)")
        )
    options.setdefault("title", f"{y_label} ahead, by {name}")
    return chart(lines, x_label="step", y_label=y_label, scale=scale, **options)


def _logarithmic(series: Sequence[Series], log: bool | str) -> tuple[bool, list[str]]:
    """(whether the axis is logarithmic, what has to be said about it)."""
    if log is False or not series:
        return False, []
    values = np.concatenate([one.finite for one in series])
    positive = len(values) > 0 and bool((values > 0).all())
    if log is True:
        said = "linear axis: some values are zero or negative"
        return positive, [] if positive or not len(values) else [said]
    return positive and float(values.max() / values.min()) > 30, []


def _missing(series: Sequence[Series], *, legend: bool) -> list[str]:
    """What has to be said about values that are not finite; a legend says each line's fate by itself."""
    empty = [one.label for one in series if not len(one.finite)]
    gaps, lost = sum(one.gaps for one in series), sum(bool(one.fate) for one in series)
    said = [f"{gaps} value{'s are' if gaps > 1 else ' is'} not finite and left out"] if gaps else []
    if lost and not legend:
        said.append(f"× {lost} of {len(series)} runs diverged")
    return said + ([f"no finite value: {', '.join(empty[:4])}{' …' if len(empty) > 4 else ''}"] if empty else [])


def _line(one: Series, y_label: str, max_points: int) -> Any:
    from plotly import graph_objects as go

    kept = decimate(one.y, max_points)
    name = f"{one.label}: {one.fate}" if one.fate else one.label
    hover = f"<b>{one.label}</b><br>step %{{x}}<br>{y_label}: %{{y:.5g}}<extra></extra>"
    line, dot = {"color": one.colour, "width": 1.8, "dash": one.dash}, {"color": one.colour, "size": 5}
    style = {"mode": "lines" if len(one.finite) > 1 else "markers", "line": line, "marker": dot, "connectgaps": False}
    return go.Scatter(x=one.x[kept], y=one.y[kept], name=name, legendgroup=one.label, hovertemplate=hover, **style)


def _stop_short(series: Sequence[Series], log: bool) -> tuple[float, float] | None:
    """Ends of the axis that keep runs that were lost from squeezing all others; None when the picture needs none."""
    sound = [one.finite for one in series if not one.fate and len(one.finite)]
    lost = [one.finite for one in series if one.fate and len(one.finite)]
    if not sound or not lost:
        return None
    seen = np.concatenate([*sound, *(values[:1] for values in lost)])
    seen, every = (np.log10(v) if log else v for v in (seen, np.concatenate([seen, *lost])))
    low, high = float(seen.min()), float(seen.max())
    room = DECADES if log else (high - low) or 1.0
    top, bottom = bool(every.max() > high + room), bool(every.min() < low - room)
    if not top and not bottom:
        return None
    margin = 0.04 * (high - low) or 1.0
    return low - (room / 2 if bottom else margin), high + (room / 2 if top else margin)


def _mark_end(figure: "Figure", one: Series, edges: tuple[float, float] | None, log: bool, theme: str) -> None:
    """An × at the last finite value of a line that was lost, and one where it leaves the picture if it does."""
    if not one.fate or one.last is None:
        return
    x, y = one.last
    far = False
    if edges is not None:
        heights = np.log10(one.y) if log else one.y
        outside = np.flatnonzero((heights > edges[1]) | (heights < edges[0]))
        if len(outside):
            at = outside[0]
            _edge_cross(figure, one, float(one.x[at]), up=bool(heights[at] > edges[1]))
        far = not log and abs(y - edges[0]) > 1e6 * (edges[1] - edges[0])  # beyond what a browser can place
    rim = {"width": 1, "color": look(theme)["paper"]}
    marker = {"symbol": "x", "size": 9, "color": one.colour, "line": rim}
    hover = f"<b>{one.label}</b><br>{one.fate}<br>last finite value {y:.5g} at step {x:g}<extra></extra>"
    named = {"name": one.fate, "legendgroup": one.label, "showlegend": False, "visible": not far}
    figure.add_scatter(x=[x], y=[y], mode="markers", marker=marker, text=[one.fate], hovertemplate=hover, **named)


def _edge_cross(figure: "Figure", one: Series, x: float, *, up: bool) -> None:
    words = f"{one.label}: {one.fate}; last finite value {(one.last or (0, 0))[1]:.5g}, beyond this axis"
    place = {"x": x, "y": 1 if up else 0, "yref": "paper", "yanchor": "middle", "showarrow": False}
    figure.add_annotation(text="<b>×</b>", font={"color": one.colour, "size": 17}, hovertext=words, **place)

"""Lines against steps: what every chart is made of, whether its numbers come from a record or from a live session."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.figures.theme import blank, colour_map, colours_along, look, number
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
    def sound(self) -> Numbers:
        """Its finite values."""
        return self.y[np.isfinite(self.y)]

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

    def bar(self) -> dict[str, Any]:
        """The marker of an invisible trace that carries the colour bar."""
        low, high = (np.log10(self.low), np.log10(self.high)) if self.log else (self.low, self.high)
        ticks = np.linspace(low, high, 5)
        bar = {"title": {"text": self.name}, "tickvals": ticks}
        bar["ticktext"] = [number(10**tick if self.log else tick) for tick in ticks]
        marker = {"color": [low], "cmin": low, "cmax": high if high > low else low + 1, "showscale": True}
        return marker | {"colorscale": colour_map("viridis"), "colorbar": bar}


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
    notes = [*notes, *said, *_gaps(series)]
    figure = blank(theme, title, notes, uirevision=y_label, showlegend=scale is None and len(series) > 0)
    figure.update_xaxes(title_text=x_label)
    figure.update_yaxes(title_text=y_label, type="log" if upright else "linear")
    if upright:
        figure.update_yaxes(exponentformat="power", dtick=_decades(series))
    figure.add_traces([_line(one, y_label, max_points) for one in series])
    figure.add_traces([_cross(one, theme) for one in series if one.diverged != RUNNING and one.last])
    if scale is not None:
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=scale.bar(), hoverinfo="skip", showlegend=False)
    _stop_short(figure, series, upright)
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
    colours = colours_along(scale.place(values))
    rows = zip(values, losses, colours, stops, strict=True)
    lines = [Series(f"{name} = {number(v)}", steps, row, c, "solid", int(stop)) for v, row, c, stop in rows]
    if current is not None:
        nearest = int(np.argmin(np.abs(values - current)))
        ink = look(options.get("theme", "light"))["ink"]
        lines.append(
            dataclasses.replace(lines.pop(nearest), colour=ink, label=f"{name} = {number(values[nearest])} (now)")
        )
    return chart(lines, x_label="step", y_label=y_label, scale=scale, **options)


def _logarithmic(series: Sequence[Series], log: bool | str) -> tuple[bool, list[str]]:
    """(whether the axis is logarithmic, what has to be said about it)."""
    if log is False or not series:
        return False, []
    values = np.concatenate([one.sound for one in series])
    positive = len(values) > 0 and bool((values > 0).all())
    if log is True:
        said = "linear axis: some values are zero or negative"
        return positive, [] if positive or not len(values) else [said]
    return positive and float(values.max() / values.min()) > 30, []


def _decades(series: Sequence[Series]) -> int | None:
    """Whole decades between ticks: one where few are shown, None (Plotly's own choice) where many are."""
    values = np.concatenate([one.sound for one in series])
    return 1 if 1.5 < np.log10(values.max() / values.min()) < 8 else None


def _gaps(series: Sequence[Series]) -> list[str]:
    """What has to be said about values that are not finite; a line's first may be missing: nothing was measured yet."""
    empty = [one.label for one in series if not len(one.sound)]
    missing = sum(int(np.isnan(one.y[1:]).sum()) for one in series if len(one.sound))
    words = [f"{missing} value{'s are' if missing > 1 else ' is'} not finite and left out"] if missing else []
    return words + ([f"no finite value: {', '.join(empty[:4])}{' …' if len(empty) > 4 else ''}"] if empty else [])


def _line(one: Series, y_label: str, max_points: int) -> Any:
    from plotly import graph_objects as go

    kept = decimate(one.y, max_points)
    name = one.label if one.diverged == RUNNING else f"{one.label}: {status(one.diverged)}"
    hover = f"<b>{one.label}</b><br>step %{{x}}<br>{y_label}: %{{y:.5g}}<extra></extra>"
    line = {"color": one.colour, "width": 1.8, "dash": one.dash}
    mode = "lines" if len(one.sound) > 1 else "markers"
    style = {"mode": mode, "line": line, "marker": {"color": one.colour, "size": 5}, "connectgaps": False}
    return go.Scatter(x=one.x[kept], y=one.y[kept], name=name, legendgroup=one.label, hovertemplate=hover, **style)


def _cross(one: Series, theme: str) -> Any:
    from plotly import graph_objects as go

    (x, y), words = one.last or (0.0, 0.0), status(one.diverged)
    marker = {"symbol": "x", "size": 9, "color": one.colour, "line": {"width": 1, "color": look(theme)["paper"]}}
    hover = f"<b>{one.label}</b><br>{words}<br>last finite value %{{y:.5g}}<extra></extra>"
    named = {"name": words, "legendgroup": one.label, "showlegend": False, "text": [words]}
    return go.Scatter(x=[x], y=[y], mode="markers", marker=marker, hovertemplate=hover, cliponaxis=False, **named)


def _stop_short(figure: "Figure", series: Sequence[Series], log: bool) -> None:
    """Keep runs that diverged from squeezing all others: end the axis above the sound ones, with an × at its edge."""
    sound = [one.sound for one in series if one.diverged == RUNNING and len(one.sound)]
    gone = [one for one in series if one.diverged != RUNNING and len(one.sound)]
    if not sound or not gone:
        return
    seen = np.concatenate([*sound, *(one.sound[:1] for one in gone)])
    seen, everything = (np.log10(v) if log else v for v in (seen, np.concatenate([seen, *(one.sound for one in gone)])))
    low, high = float(seen.min()), float(seen.max())
    room = DECADES if log else (high - low) or 1.0
    top, bottom = float(everything.max()) > high + room, float(everything.min()) < low - room
    if not top and not bottom:
        return
    margin = 0.04 * (high - low) if high > low else 1.0
    edges = (low - (room / 2 if bottom else margin), high + (room / 2 if top else margin))
    figure.update_yaxes(range=list(edges))
    for one in gone:
        heights = np.log10(one.y) if log else one.y
        outside = np.flatnonzero((heights > edges[1]) | (heights < edges[0]))
        if len(outside):
            at = outside[0]
            _edge_cross(figure, one, float(one.x[at]), up=bool(heights[at] > edges[1]))


def _edge_cross(figure: "Figure", one: Series, x: float, *, up: bool) -> None:
    """An × where a line leaves the picture."""
    words = f"{one.label}: {status(one.diverged)}, beyond this axis"
    place = {"x": x, "y": 1 if up else 0, "yref": "paper", "yanchor": "middle", "showarrow": False}
    figure.add_annotation(text="<b>×</b>", font={"color": one.colour, "size": 17}, hovertext=words, **place)

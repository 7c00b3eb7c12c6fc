"""The last loss over one or two hyperparameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from workbench.figures.palette import THEMES
from workbench.figures.runs import hyper_names
from workbench.figures.theme import blank, colour_map, look, number, with_units, words
from workbench.routine import RUNNING, status, unknown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def heatmap(
    values: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    xname: str,
    yname: str,
    xlog: bool | None = None,
    ylog: bool | None = None,
    diverged: ArrayLike | None = None,
    name: str = "last loss",
    title: str = "",
    log: bool | str = "auto",
    ceiling: float | None = None,
    theme: str = "light",
) -> "Figure":
    """A number for each pair of two hyperparameters, the last loss as a rule; the best cell carries a star.

    Args:
        values: (len(y), len(x)). x, y: the values of the hyperparameters, increasing.
        xname, yname: what they are called.
        xlog, ylog: whether the axis is logarithmic; by the spacing of the values when None.
        diverged: (len(y), len(x)) the step at which a run stopped being finite, -1 when it did not. Those cells, and
            those whose value is not finite, are grey with an ×, say so on hover, and are counted in the legend.
        log: "auto": colours run over the logarithm when all sound values are positive and span more than a factor of
            30; True: whenever they are positive; False: never.
        ceiling: colours end here (the first loss, say: everything worse looks alike); the colour bar says so.

    Raises:
        ValueError: on shapes that do not fit together, or values that do not increase.
    """
    z, xs, ys = (np.asarray(part, dtype=np.float64) for part in (values, x, y))
    if z.shape != (len(ys), len(xs)) or not all(bool((np.diff(part) > 0).all()) for part in (xs, ys)):
        raise ValueError(f"expected values of shape (len(y), len(x)) over increasing x and y, got {z.shape}")
    stops = np.full(z.shape, RUNNING) if diverged is None else np.asarray(diverged)
    lost = (stops != RUNNING) | ~np.isfinite(z)
    figure = blank(theme, title or f"{name} over {xname} and {yname}", uirevision=f"{xname} {yname}")
    texts = _texts(z, xs, ys, stops, xname, yname, name)
    heights, bar = _colours(np.where(lost, np.nan, z), log, ceiling, name)
    axes = {"x": xs, "y": ys, "hoverinfo": "text", "hoverongaps": False}
    style = {
        "colorscale": colour_map("viridis", theme),
        "zmin": bar.pop("zmin"),
        "zmax": bar.pop("zmax"),
        "colorbar": bar,
    }
    figure.add_heatmap(**axes, z=heights, text=texts, customdata=z, name=name, **style)
    if lost.any():
        _lost(figure, axes, lost, texts, theme)
    if not lost.all():
        _best(figure, xs, ys, np.where(lost, np.inf, z), texts, theme)
    spaced = [_geometric(part) if given is None else given for part, given in ((xs, xlog), (ys, ylog))]
    kinds = ["log" if wanted and part[0] > 0 else "linear" for part, wanted in zip((xs, ys), spaced, strict=True)]
    figure.update_xaxes(title_text=xname, type=kinds[0], showgrid=False, zeroline=False)
    figure.update_yaxes(title_text=yname, type=kinds[1], showgrid=False, zeroline=False)
    return figure


def sweep(record: xr.Dataset, variable: str = "loss", *, log: bool | str = "auto", theme: str = "light") -> "Figure":
    """The last value of a variable over the hyperparameters that differ between runs: a line or a heat map.

    Raises:
        ValueError: when runs differ in none or more than two, or two do not form a grid.
    """
    if variable not in record:
        raise unknown("a variable", variable, map(str, record.data_vars))
    names, array = hyper_names(record), record[variable]
    if array.dims != ("run", "step") or not 1 <= len(names) <= 2:
        got = f"{variable} with dims {array.dims}, hyperparameters {names}"
        raise ValueError(
            f"expected a variable with dims run and step, and one or two hyperparameters that differ, got {got}"
        )
    last, stops = array.isel(step=-1).values, record["diverged_at"].values
    label = with_units(f"last {words(variable)}", array.attrs.get("units", ""))
    title = f"{label} after {int(record['step'].values[-1])} steps"
    if len(names) == 1:
        return _line(record[names[0]].values, last, stops, names[0], label, title, log, theme)
    xs, column = np.unique(record[names[0]].values, return_inverse=True)
    ys, row = np.unique(record[names[1]].values, return_inverse=True)
    if len(xs) * len(ys) != len(last) or len(set(zip(row, column, strict=True))) != len(last):
        raise ValueError(f"expected runs to form a grid over {names[0]} and {names[1]}, got {len(last)} runs")
    grid, ends = np.empty((len(ys), len(xs))), np.empty((len(ys), len(xs)), dtype=int)
    grid[row, column], ends[row, column] = last, stops
    given: dict[str, Any] = {"xname": names[0], "yname": names[1], "diverged": ends, "name": label, "title": title}
    first = array.isel(step=0).values
    ceiling = float(np.max(first)) if np.isfinite(first).all() else None
    return heatmap(grid, xs, ys, **given, log=log, ceiling=ceiling, theme=theme)


def _geometric(values: NDArray[np.float64]) -> bool:
    """Whether values are spaced more evenly by their logarithms than by themselves."""
    if len(values) < 3 or values[0] <= 0:
        return False
    gaps, ratios = np.diff(values), np.diff(np.log(values))
    return bool(ratios.std() / ratios.mean() < gaps.std() / gaps.mean())


def _texts(z: Any, xs: Any, ys: Any, stops: Any, xname: str, yname: str, name: str) -> list[list[str]]:
    """What each cell says on hover."""

    def cell(i: int, j: int) -> str:
        said = status(int(stops[i, j])) if stops[i, j] != RUNNING else ""
        said = said or ("not finite" if not np.isfinite(z[i, j]) else f"{name} {z[i, j]:.5g}")
        return f"{xname} = {number(xs[j])}<br>{yname} = {number(ys[i])}<br><b>{said}</b>"

    return [[cell(i, j) for j in range(len(xs))] for i in range(len(ys))]


def _colours(z: NDArray[np.float64], log: bool | str, ceiling: float | None, name: str) -> tuple[Any, dict[str, Any]]:
    """(heights for the colours, the colour bar with zmin and zmax)."""
    sound = z[np.isfinite(z)]
    if not len(sound):
        return z, {"zmin": 0, "zmax": 1}
    capped = ceiling is not None and bool(sound.max() > ceiling) and bool(sound.min() < ceiling)
    low, high = float(sound.min()), float(ceiling if capped and ceiling is not None else sound.max())
    upright = log is not False and low > 0 and (log is True or high / low > 30)
    if upright:
        z, low, high = np.log10(z), np.log10(low), np.log10(high)
    high = high if high > low else low + 1
    ticks = np.linspace(low, high, 5)
    text = [number(10**tick if upright else tick) for tick in ticks]
    if capped:
        text[-1] = f"≥ {text[-1]}"
    return z, {"zmin": low, "zmax": high, "tickvals": ticks, "ticktext": text, "title": {"text": name}}


def _lost(figure: "Figure", axes: dict[str, Any], lost: NDArray[np.bool_], texts: Any, theme: str) -> None:
    """Grey cells with an × for the runs that diverged."""
    made, (i, j) = look(theme), np.nonzero(lost)
    grey = [[0, made["rule"]], [1, made["rule"]]]
    figure.add_heatmap(
        **axes, z=np.where(lost, 1.0, np.nan), colorscale=grey, showscale=False, text=texts, name="diverged"
    )
    size = float(np.clip(240 / max(lost.shape), 3, 9))
    marker = {"symbol": "x-thin", "size": size, "line": {"width": 1, "color": made["muted"]}}
    at = {"x": axes["x"][j], "y": axes["y"][i], "mode": "markers", "hoverinfo": "skip", "showlegend": True}
    figure.add_scatter(**at, marker=marker, name=f"diverged ({len(i)} of {lost.size})")


def _best(figure: "Figure", xs: Any, ys: Any, z: NDArray[np.float64], texts: Any, theme: str) -> None:
    i, j = np.unravel_index(int(np.argmin(z)), z.shape)
    marker = {"symbol": "star", "size": 14, "color": "#E69F00", "line": {"width": 1, "color": look(theme)["paper"]}}
    said = f"best: {number(z[i, j])} at {number(xs[j])}, {number(ys[i])}"
    at = {
        "x": [xs[j]],
        "y": [ys[i]],
        "mode": "markers",
        "hovertext": [texts[i][j]],
        "hoverinfo": "text",
        "showlegend": True,
    }
    figure.add_scatter(**at, marker=marker, name=said)


def _line(x: Any, last: Any, stops: Any, xname: str, label: str, title: str, log: bool | str, theme: str) -> "Figure":
    """The last value over one hyperparameter, × along the edge for runs that diverged."""
    order = np.argsort(x)
    x, last, stops = np.asarray(x, dtype=float)[order], np.asarray(last, dtype=float)[order], stops[order]
    lost = (stops != RUNNING) | ~np.isfinite(last)
    sound = last[~lost]
    figure = blank(theme, title, uirevision=xname)
    colour, made = THEMES[theme][0], look(theme)
    line = {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 1.8},
        "marker": {"size": 5},
        "connectgaps": False,
    }
    hover = f"{xname} = %{{x:.4g}}<br>{label} %{{y:.5g}}<extra></extra>"
    figure.add_scatter(x=x, y=np.where(lost, np.nan, last), **line, name=label, hovertemplate=hover, showlegend=False)
    if lost.any():
        said = [status(int(stop)) if stop != RUNNING else "not finite" for stop in stops[lost]]
        marker = {"symbol": "x", "size": 8, "color": made["muted"]}
        at = {"x": x[lost], "y": np.full(int(lost.sum()), 1.0), "yaxis": "y2", "mode": "markers", "cliponaxis": False}
        hover = f"{xname} = %{{x:.4g}}<br>%{{text}}<extra></extra>"
        named = {"name": f"diverged ({int(lost.sum())} of {len(x)})", "showlegend": True}
        figure.add_scatter(**at, text=said, marker=marker, hovertemplate=hover, **named)
        figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    if len(sound):
        best = int(np.argmin(np.where(lost, np.inf, last)))
        marker = {"symbol": "star", "size": 13, "color": "#E69F00", "line": {"width": 1, "color": made["paper"]}}
        named = {"name": f"best: {number(last[best])} at {xname} = {number(x[best])}", "showlegend": True}
        figure.add_scatter(x=[x[best]], y=[last[best]], mode="markers", marker=marker, hoverinfo="skip", **named)
    figure.update_xaxes(title_text=xname, type="log" if _geometric(x) else "linear")
    figure.update_yaxes(title_text=label, type="log" if _upright(sound, log) else "linear", exponentformat="power")
    return figure


def _upright(sound: Sequence[float] | NDArray[np.float64], log: bool | str) -> bool:
    values = np.asarray(sound)
    return (
        log is not False and len(values) > 0 and values.min() > 0 and (log is True or values.max() / values.min() > 30)
    )

"""The last loss over one or two hyperparameters."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from workbench.figures.palette import THEMES
from workbench.figures.runs import hyper_names, what_ran
from workbench.figures.theme import bar_ticks, blank, colour_map, log_axis, look, number, star, with_units, words
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
    best: str = "lowest",
    ceiling: float | None = None,
    theme: str = "light",
) -> "Figure":
    """A number for each pair of two hyperparameters, the last loss as a rule; a star marks the best.

    Args:
        values: (len(y), len(x)). x, y: the values of the hyperparameters, increasing.
        xname, yname: what they are called.
        xlog, ylog: whether the axis is logarithmic; by the spacing of the values when None.
        diverged: (len(y), len(x)) the step at which a run stopped being finite, -1 when it did not. Those cells, and
            those whose value is not finite, are grey with an ×, say so on hover, and are counted in the legend.
        log: "auto": colours run over the logarithm when all sound values are positive and span more than a factor of
            30; True: whenever they are positive; False: never.
        best: "lowest" or "highest": which sound value gets the star.
        ceiling: colours end here (the first loss, say: everything worse looks alike); the colour bar says so.

    Raises:
        ValueError: on shapes that do not fit together, x or y that do not increase, or another word for `best`.
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
    colours = {"colorscale": colour_map("viridis", theme), "zmin": bar.pop("zmin"), "zmax": bar.pop("zmax")}
    figure.add_heatmap(**axes, z=heights, text=texts, customdata=z, name=name, colorbar=bar, **colours)
    if lost.any():
        _lost(figure, axes, lost, texts, theme)
    if not lost.all():
        i, j = np.unravel_index(_best(np.where(lost, np.nan, z), best), z.shape)
        said = f"{best}: {number(z[i, j])}<br>at {xname} = {number(xs[j])}, {yname} = {number(ys[i])}"
        at = {"x": [xs[j]], "y": [ys[i]], "hovertext": [texts[i][j]], "hoverinfo": "text"}
        figure.add_scatter(**at, mode="markers", marker=star(theme), name=said, showlegend=True)
    figure.update_xaxes(title_text=xname, **_cells(xs, xlog))
    figure.update_yaxes(title_text=yname, **_cells(ys, ylog))
    return figure


def sweep(
    record: xr.Dataset,
    variable: str = "loss",
    *,
    log: bool | str = "auto",
    best: str = "lowest",
    theme: str = "light",
) -> "Figure":
    """The last value of a variable over the hyperparameters that differ between runs: a line or a heat map.

    Args:
        best: "lowest" or "highest": which value gets the star.

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
    title = f"{label} after {int(record['step'].values[-1])} steps, {what_ran(record)}"
    given: dict[str, Any] = {"xname": names[0], "name": label, "title": title, "log": log, "best": best, "theme": theme}
    if len(names) == 1:
        return _line(record[names[0]].values, last, stops, **given)
    xs, column = np.unique(record[names[0]].values, return_inverse=True)
    ys, row = np.unique(record[names[1]].values, return_inverse=True)
    if len(xs) * len(ys) != len(last) or len(set(zip(row, column, strict=True))) != len(last):
        raise ValueError(f"expected runs to form a grid over {names[0]} and {names[1]}, got {len(last)} runs")
    grid, ends = np.empty((len(ys), len(xs))), np.empty((len(ys), len(xs)), dtype=int)
    grid[row, column], ends[row, column] = last, stops
    first = array.isel(step=0).values
    ceiling = float(np.max(first)) if best == "lowest" and np.isfinite(first).all() else None
    return heatmap(grid, xs, ys, yname=names[1], diverged=ends, ceiling=ceiling, **given)


def _geometric(values: NDArray[np.float64]) -> bool:
    """Whether values are spaced more evenly by their logarithms than by themselves."""
    if len(values) < 3 or values[0] <= 0:
        return False
    gaps, ratios = np.diff(values), np.diff(np.log(values))
    return bool(ratios.std() / ratios.mean() < gaps.std() / gaps.mean())


def _cells(values: NDArray[np.float64], log: bool | None) -> dict[str, Any]:
    """An axis that shows the cells around these values and nothing beside."""
    upright = (_geometric(values) if log is None else log) and bool(values[0] > 0)
    places = np.log10(values) if upright else values
    half = np.diff(places) / 2 if len(places) > 1 else np.array([0.15 if upright else 0.5])
    axis = log_axis(values[0], values[-1]) if upright else {"type": "linear"}
    ends = [float(places[0] - half[0]), float(places[-1] + half[-1])]
    return {**axis, "range": ends, "showgrid": False, "zeroline": False}


def _best(values: NDArray[np.float64], best: str) -> int:
    """Where the best of the values stands, NaN left out."""
    if best not in ("lowest", "highest"):
        raise unknown("best", best, ("lowest", "highest"))
    return int(np.nanargmin(values) if best == "lowest" else np.nanargmax(values))


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
    ticks = bar_ticks(low, high, upright)
    return z, {
        "zmin": low,
        "zmax": high,
        "title": {"text": f"{name}, capped at the first" if capped else name},
        **ticks,
    }


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


def _line(
    x: Any, last: Any, stops: Any, *, xname: str, name: str, title: str, log: bool | str, best: str, theme: str
) -> "Figure":
    """The last value over one hyperparameter, with an × at the upper edge for each run that diverged."""
    order = np.argsort(x)
    x, last, stops = np.asarray(x, dtype=float)[order], np.asarray(last, dtype=float)[order], stops[order]
    lost = (stops != RUNNING) | ~np.isfinite(last)
    values = np.where(lost, np.nan, last)
    figure = blank(theme, title, uirevision=xname)
    style = {"mode": "lines+markers", "line": {"color": THEMES[theme][0], "width": 1.8}, "marker": {"size": 5}}
    hover = f"{xname} = %{{x:.4g}}<br>{name} %{{y:.5g}}<extra></extra>"
    figure.add_scatter(x=x, y=values, name=name, hovertemplate=hover, connectgaps=False, showlegend=False, **style)
    if not lost.all():
        at = _best(values, best)
        said = f"{best}: {number(last[at])} at {xname} = {number(x[at])}"
        place = {"x": [x[at]], "y": [last[at]], "mode": "markers", "hoverinfo": "skip", "showlegend": True}
        figure.add_scatter(**place, marker=star(theme), name=said)
    figure.update_xaxes(title_text=xname, **(log_axis(x[0], x[-1]) if _geometric(x) else {}))
    sound = last[~lost]
    upright = len(sound) > 0 and log is not False and bool(sound.min() > 0)
    upright = upright and (log is True or bool(sound.max() / sound.min() > 30))
    figure.update_yaxes(title_text=name, **(log_axis(sound.min(), sound.max()) if upright else {}))
    if lost.any():
        _lost_above(figure, x[lost], stops[lost], xname, len(x), theme)
    return figure


def _lost_above(figure: "Figure", x: Any, stops: Any, xname: str, runs: int, theme: str) -> None:
    """A row of × on an axis of its own, which runs along the upper edge."""
    said = [status(int(stop)) if stop != RUNNING else "not finite" for stop in stops]
    marker = {"symbol": "x", "size": 8, "color": look(theme)["muted"]}
    hover = f"{xname} = %{{x:.4g}}<br>%{{text}}<extra></extra>"
    at = {"x": x, "y": np.full(len(x), 0.98), "yaxis": "y2", "mode": "markers", "text": said, "hovertemplate": hover}
    figure.add_scatter(**at, marker=marker, name=f"diverged ({len(x)} of {runs})", showlegend=True)
    figure.update_layout(yaxis2={"overlaying": "y", "type": "linear", "range": [0, 1], "visible": False})

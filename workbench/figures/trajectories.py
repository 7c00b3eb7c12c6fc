"""The shape of trainings against steps: several measures one below the other, and latent states under a curve."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.figures.charts import decimate
from workbench.figures.palette import THEMES
from workbench.figures.runs import pick_runs, run_colours, run_labels
from workbench.figures.theme import axis_label, blank, colours_along, look, with_units, words
from workbench.routine import unknown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURES = ("distance", "straightness", "turning_angle", "curvature")
GAP = 0.05
"""Room between two panels, in shares of the figure."""


def geometry_curves(
    record: xr.Dataset,
    measures: Sequence[str] = MEASURES,
    *,
    runs: Sequence[int] | None = None,
    title: str = "the shape of the way",
    max_points: int = 2000,
    theme: str = "light",
) -> "Figure":
    """Measures of ways against steps, one panel each, one line a run; all panels share their steps.

    A run is named by the coordinates of `run` that differ (give them with `record.assign_coords(lr=("run", […]))`).
    Where a measure has no meaning its line has a gap. A panel whose values are positive and span more than a factor of
    30 is logarithmic.

    Args:
        record: what `geometry` or `Geometry.record` gives.
        measures: names of variables with dims run and step.
        runs: which runs to draw; at most 64, evenly spaced, when not given, and the figure says so.

    Raises:
        ValueError: on a measure that is not there, or a run that is not.
    """
    known = [str(name) for name, array in record.data_vars.items() if set(array.dims) == {"run", "step"}]
    for name in measures:
        if name not in known:
            raise unknown("a measure with dims run and step", name, known)
    if not measures:
        raise ValueError(f"expected at least one measure of {', '.join(known)}, got none")
    shown, notes = pick_runs(record, runs)
    labels, (colours, scale) = run_labels(record), run_colours(record, shown, theme)
    named = scale is None and 1 < len(shown) <= len(set(colours))
    figure = blank(
        theme, title, notes, showlegend=named, uirevision=" ".join(measures), height=90 + 130 * len(measures)
    )
    tops = _panels(figure, [1.0] * len(measures), record["step"])
    for row, (name, axis) in enumerate(zip(measures, tops, strict=True)):
        array = record[name].transpose("run", "step")
        values = np.where(np.isfinite(array.values), array.values, np.nan).astype(np.float64)
        label = with_units(words(name), array.attrs.get("units", ""))
        for run, colour in zip(shown, colours, strict=True):
            _line(figure, record["step"].values, values[run], labels[run], colour, label, axis, row == 0, max_points)
        _scale(figure, axis, values[shown], label)
    if scale is not None:
        scale.show(figure, theme)
    return figure


def segments(
    segmentation: xr.Dataset,
    curve: xr.DataArray | None = None,
    *,
    times: Sequence[float] | None = None,
    runs: Sequence[int] | None = None,
    title: str = "latent states of training",
    max_points: int = 2000,
    theme: str = "light",
) -> "Figure":
    """A strip of latent states along the training of each run, under their curves.

    Args:
        segmentation: what `segment` gives.
        curve: what stands above the strips, (run, step): `record["heldout_loss"]`, say.
        times: (runs,) steps at which runs converged, marked on their strips; NaN where they did not.
        runs: which runs to draw, from above; at most 64, evenly spaced, when not given.

    Raises:
        ValueError: on a curve of other runs, or times of another number.
    """
    shown, notes = pick_runs(segmentation, runs)
    count, total = segmentation.sizes["state"], segmentation.sizes["run"]
    if curve is not None and (set(curve.dims) != {"run", "step"} or curve.sizes["run"] != total):
        raise ValueError(f"expected a curve (run, step) of {total} runs, got {dict(curve.sizes)}")
    if times is not None and len(times) != total:
        raise ValueError(f"expected a time for each of {total} runs, got {len(times)}")
    figure = blank(theme, title, notes, showlegend=True, uirevision="segments", legend={"traceorder": "normal"})
    axes = _panels(figure, [1.0] if curve is None else [1.0, 1.2], segmentation["step"])
    if curve is not None:
        heights = curve.transpose("run", "step").values.astype(np.float64)
        label = with_units(words(str(curve.name or "curve")), curve.attrs.get("units", ""))
        for run in shown:
            colour = look(theme)["muted"]
            where = (figure, curve["step"].values, heights[run], f"run {run}", colour, label, axes[0])
            _line(*where, False, max_points, width=1)
        _scale(figure, axes[0], heights[shown], label)
    steps, rows = segmentation["step"].values, np.arange(len(shown))
    states = segmentation["states"].transpose("run", "step").values[shown]
    colours = state_colours(count, theme)
    text = np.array([[f"run {run}, step {k}<br>state {s}" for k, s in zip(steps, row, strict=True)]
                     for run, row in zip(shown, states, strict=True)])  # fmt: skip
    stops = [[(k + side) / count, colour] for k, colour in enumerate(colours) for side in (0, 1)]
    paint: dict[str, Any] = {"colorscale": stops, "zmin": -0.5, "zmax": count - 0.5, "showscale": False}
    place = {"x": steps, "y": rows, "yaxis": axes[-1]}
    figure.add_heatmap(**place, z=states, text=text, hoverinfo="text", name="states", **paint)
    for k, colour in enumerate(colours):
        dot = {"symbol": "square", "size": 10, "color": colour}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=dot, name=f"state {k}", hoverinfo="skip")
    if times is not None:
        at = np.asarray(times, dtype=np.float64)[shown]
        mark = {"symbol": "line-ns", "size": 8, "line": {"width": 2, "color": look(theme)["ink"]}}
        spot = {"x": at[np.isfinite(at)], "y": rows[np.isfinite(at)], "yaxis": axes[-1]}
        figure.add_scatter(**spot, mode="markers", marker=mark, name="converged", hovertemplate="%{x}<extra></extra>")
    few = rows[:: -(-len(shown) // 10)]
    upright = {"range": [len(shown) - 0.5, -0.5], "tickvals": few, "ticktext": [f"{shown[k]}" for k in few]}
    figure.update_layout({_long(axes[-1]): {"title": {"text": "run"}, "showgrid": False, "type": "linear", **upright}})
    return figure


def state_colours(count: int, theme: str = "light") -> list[str]:
    """A colour for each state: the palette's own, or along the colour map where there are more states than colours."""
    palette = THEMES[theme]
    return list(palette[:count]) if count <= len(palette) else colours_along(np.linspace(0, 1, count), theme)


def _panels(figure: "Figure", shares: Sequence[float], step: xr.DataArray) -> list[str]:
    """Names of as many y axes one below the other, over one axis of steps."""
    heights = np.asarray(shares) / np.sum(shares) * (1 - GAP * (len(shares) - 1))
    names, top, layout = [], 1.0, dict[str, Any]()
    for row, height in enumerate(heights):
        names.append(f"y{row + 1}" if row else "y")
        layout[_long(names[-1])] = {"domain": [max(0.0, top - height), top], "anchor": "x"}
        top -= height + GAP
    figure.update_layout({**layout, "xaxis": {"title": {"text": axis_label(step)}, "anchor": names[-1]}})
    return names


def _long(axis: str) -> str:
    return f"yaxis{axis[1:]}"


def _line(figure: "Figure", steps: Any, values: np.ndarray, label: str, colour: str, measure: str, axis: str,
          first: bool, points: int, width: float = 1.8) -> None:  # fmt: skip
    kept = decimate(values, points)
    hover = f"<b>{label}</b><br>step %{{x}}<br>{measure}: %{{y:.5g}}<extra></extra>"
    style = {"mode": "lines", "line": {"color": colour, "width": width}, "connectgaps": False, "hovertemplate": hover}
    named = {"name": label, "legendgroup": label, "showlegend": first}
    figure.add_scatter(x=np.asarray(steps)[kept], y=values[kept], yaxis=axis, **style, **named)


def _scale(figure: "Figure", axis: str, values: np.ndarray, label: str) -> None:
    """The panel's label, and a logarithmic axis where values need one."""
    sound = values[np.isfinite(values)]
    wide = len(sound) > 0 and bool((sound > 0).all()) and float(sound.max() / sound.min()) > 30
    kind = {"type": "log", "exponentformat": "power", "nticks": 4} if wide else {"type": "linear", "nticks": 4}
    figure.update_layout({_long(axis): {"title": {"text": label, "font": {"size": 11}}, **kind}})

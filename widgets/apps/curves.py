"""Light live curves: plain dict figures for the Plotly pane, cheap enough to be made again six times a second.

Plotly's own figure objects check every value, which costs tens of milliseconds; these are made of arrays as they are.
Axis ranges are fixed, so that the page does not report every redraw back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST = 600
"""Points drawn of one curve: about one a pixel."""
LOOK = {
    "light": {"ink": "#1b1f23", "muted": "#59636e", "grid": "#e6eaed"},
    "dark": {"ink": "#f2f4f5", "muted": "#a3adb6", "grid": "#2b3137"},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def curves(
    series: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    units: str = "",
    log: bool = False,
    theme: str = "light",
    x_title: str = "step",
    x_log: bool = False,
    cursor: float | None = None,
    bounds: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """A figure of curves as {"data": [...], "layout": {...}}.

    Args:
        series: one mapping a curve: `name`, `steps` (n,), `values` (n,), and optionally `colour` (#RRGGBB), `dash`
            ("solid", "dash", "dot"), `opacity` (0 to 1), `cross` ((step, value) where it ends because it diverged),
            `markers` (True draws points on the line), `legend` (False leaves it out of the legend).
            Values that are not finite, and on a logarithmic axis those that are not positive, leave a gap.
        title: what the curves are; units: of their values, "" when they have none.
        log: a logarithmic axis of values; x_log: of steps.
        theme: "light" or "dark".
        cursor: where on the step axis a thin line stands.
        bounds: (low, high) of the value axis in data units; found from the values when None.

    Raises:
        ValueError: when steps and values of a curve differ in length.
    """
    found = [_drawn(one, log, x_log) for one in series]
    ink = LOOK[theme]
    xs = [x for x, _ in found] + ([] if cursor is None else [np.asarray([cursor])])
    x_range, y_range = _range(xs, x_log, pad=0.0), _range([y for _, y in found], log, given=bounds)
    data = [_trace(one, x, y) for one, (x, y) in zip(series, found, strict=True)]
    data += [_cross(one, y_range, log) for one in series if one.get("cross")]
    layout = {
        "title": {"text": title + (f" ({units})" if units else ""), "font": {"size": 13}, "x": 0.01, "xanchor": "left"},
        "font": {"family": FONT, "size": 11, "color": ink["ink"]},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 58, "r": 12, "t": 34 + 16 * title.count("<br>"), "b": 38},
        "xaxis": _axis(x_title, x_range, x_log, ink),
        "yaxis": _axis("", y_range, log, ink),
        "showlegend": False,
        "hovermode": "x unified" if len(series) <= 12 else "closest",
        "hoverlabel": {"font": {"size": 11}},
        "uirevision": f"{title} {log} {x_log}",
        "shapes": [] if cursor is None else [_cursor(cursor, ink["muted"])],
    }
    return {"data": data, "layout": layout}


def decimate(steps: ArrayLike, values: ArrayLike, most: int = MOST) -> tuple[NDArray[Any], NDArray[Any]]:
    """(steps, values) with at most `most` points, the lowest and highest of each bucket kept, so that no peak is lost.

    A bucket with a value that is not finite keeps it as a gap in place of its lowest. The first and last point stay.
    """
    x, y = np.asarray(steps), np.asarray(values, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected as many values as steps, got {y.shape} and {x.shape}")
    n = len(x)
    if n <= most:
        return x, y
    width = -(-n // ((most - 2) // 2))
    starts = np.arange(0, n, width)
    padded = np.full(len(starts) * width, np.nan)
    padded[:n] = y
    rows, known = padded.reshape(-1, width), np.isfinite(padded.reshape(-1, width))
    lows = np.where(known, rows, math.inf).argmin(1)
    gaps = ~known & (np.arange(rows.size).reshape(rows.shape) < n)
    lows = np.where(gaps.any(1), gaps.argmax(1), lows) + starts
    highs = np.where(known, rows, -math.inf).argmax(1) + starts
    kept = np.unique(np.clip(np.concatenate([[0, n - 1], lows, highs]), 0, n - 1))
    return x[kept], y[kept]


def _drawn(one: Mapping[str, Any], log: bool, x_log: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = np.asarray(one["steps"], dtype=np.float64), np.asarray(one["values"], dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"expected as many values as steps in {one['name']!r}, got {len(y)} and {len(x)}")
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(y) | ((y <= 0) if log else False) | ((x <= 0) if x_log else False)
    return decimate(x, np.where(bad, np.nan, y))


def _trace(one: Mapping[str, Any], x: NDArray[Any], y: NDArray[Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if one.get("markers") or len(x) == 1 else "lines",
        "name": one["name"],
        "x": x,
        "y": y,
        "opacity": one.get("opacity", 1.0),
        "line": {
            "color": one.get("colour", "#0072B2"),
            "width": one.get("width", 1.8),
            "dash": one.get("dash", "solid"),
        },
        "marker": {"size": 5},
        "connectgaps": False,
        "hovertemplate": "%{y:.4g}",
        "hoverinfo": "skip" if one.get("opacity", 1.0) < 0.7 else "all",
    }


def _cross(one: Mapping[str, Any], y_range: list[float], log: bool) -> dict[str, Any]:
    """An × where a curve stopped being finite, at the edge of the picture when it left it."""
    step, value = one["cross"]
    top = 10 ** y_range[1] if log else y_range[1]
    inside = min(value, top) if np.isfinite(value) and (value > 0 or not log) else top
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{one['name']} diverged",
        "x": [step],
        "y": [inside],
        "marker": {"symbol": "x", "size": 9, "color": one.get("colour", "#0072B2")},
        "opacity": one.get("opacity", 1.0),
        "hovertemplate": f"diverged at step {step:.0f}",
    }


def _range(parts: Sequence[NDArray[Any]], log: bool, *, pad: float = 0.05, given: Any = None) -> list[float]:
    """(low, high) of an axis, in logarithms to base 10 where it is logarithmic."""
    values = np.concatenate([np.asarray(part, dtype=np.float64) for part in parts]) if parts else np.empty(0)
    if given is not None:
        values = np.asarray(given, dtype=np.float64)
    values = values[np.isfinite(values) & ((values > 0) if log else True)]
    if not len(values):
        return [0.0, 1.0]
    low, high = (math.log10(v) if log else float(v) for v in (values.min(), values.max()))
    room = pad * (high - low) if high > low else 0.5 if log else max(1e-3, abs(high) * 0.1) if pad else 1.0
    return [low - (room if pad or log else 0.0), high + room]


def _axis(title: str, around: list[float], log: bool, ink: Mapping[str, str]) -> dict[str, Any]:
    axis = {
        "title": {"text": title, "standoff": 4},
        "range": around,
        "autorange": False,
        "gridcolor": ink["grid"],
        "linecolor": ink["muted"],
        "tickcolor": ink["muted"],
        "zeroline": False,
        "showline": True,
        "nticks": 7,
        "exponentformat": "power",
        "ticklabeloverflow": "allow",  # otherwise every label is measured at every redraw
    }
    if not log:
        return axis
    if around[1] - around[0] > 2:
        return {**axis, "type": "log", "dtick": max(1, round((around[1] - around[0]) / 6))}
    marks = _marks(*around)
    return {**axis, "type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}


def _marks(low: float, high: float) -> list[float]:
    """Numbers to label on a logarithmic axis of two decades or less, which holds no or one power of ten."""
    leads = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    found = [float(f"{lead}e{power}") for power in range(math.floor(low), math.ceil(high) + 1) for lead in leads]
    return [mark for mark in found if low <= math.log10(mark) <= high]


def _cursor(at: float, colour: str) -> dict[str, Any]:
    ends = {"x0": at, "x1": at, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": colour, "width": 1, "dash": "dot"}}

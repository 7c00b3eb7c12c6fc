"""The look of every figure: a light and a dark template, colour maps faded towards the paper, labels with units."""

import functools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from workbench.figures.palette import PAPER, THEMES
from workbench.routine import unknown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LOOK = {
    "light": {"ink": "#1b1f23", "muted": "#59636e", "rule": "#c9d0d6", "grid": "#e6eaed", "field": 0.36},
    "dark": {"ink": "#f2f4f5", "muted": "#a3adb6", "rule": "#4a525a", "grid": "#262b30", "field": 0.4},
}
CHIP = {"light": "rgba(255,255,255,0.86)", "dark": "rgba(18,18,18,0.82)"}
WIDTH = 48
"""Characters of a title's line: what fits on a phone."""


def look(theme: str) -> dict[str, Any]:
    """Colours of a theme: ink, muted, rule, grid, paper; and `field`, how strong a colour map stands under paths.

    Raises:
        ValueError: on a theme that is not "light" or "dark".
    """
    if theme not in LOOK:
        raise unknown("theme", theme, LOOK)
    return {**LOOK[theme], "paper": PAPER[theme], "chip": CHIP[theme]}


@functools.cache
def template(theme: str = "light") -> Any:
    """The Plotly template of a theme."""
    from plotly import graph_objects as go

    made = look(theme)
    axis = {
        "automargin": True,
        "gridcolor": made["grid"],
        "linecolor": made["rule"],
        "tickcolor": made["rule"],
        "zerolinecolor": made["rule"],
        "zerolinewidth": 1,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "title": {"standoff": 8},
    }
    scene = {"backgroundcolor": made["paper"], "gridcolor": made["rule"], "color": made["muted"], "showline": False}
    bar = {"outlinewidth": 0, "thickness": 11, "ticks": "outside", "ticklen": 3, "tickcolor": made["rule"]}
    bar |= {"title": {"side": "right", "font": {"size": 12, "color": made["muted"]}}}
    layout = {
        "font": {"family": FONT, "size": 12, "color": made["ink"]},
        "paper_bgcolor": made["paper"],
        "plot_bgcolor": made["paper"],
        "colorway": list(THEMES[theme]),
        "margin": {"l": 56, "r": 16, "t": 40, "b": 44},
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container"}
        | {"pad": {"t": 12}, "font": {"size": 14}, "subtitle": {"font": {"size": 12, "color": made["muted"]}}},
        "xaxis": axis,
        "yaxis": axis,
        "scene": {"xaxis": scene, "yaxis": scene, "zaxis": scene, "bgcolor": made["paper"]},
        "legend": {"orientation": "h", "x": 0, "xref": "paper", "y": 0, "yref": "container", "yanchor": "bottom"}
        | {"bgcolor": "rgba(0,0,0,0)", "itemwidth": 30, "font": {"size": 12}},
        "hoverlabel": {"bgcolor": made["paper"], "bordercolor": made["rule"], "align": "left"}
        | {"font": {"color": made["ink"], "family": FONT}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": made["muted"], "activecolor": made["ink"]},
    }
    maps = {kind: [{"colorbar": bar}] for kind in ("contour", "heatmap", "surface")}
    scatters = {kind: [{"marker": {"colorbar": bar}}] for kind in ("scatter", "scatter3d")}
    return go.layout.Template(layout=layout, data={**maps, **scatters})


def blank(theme: str, title: str = "", notes: Sequence[str] = (), **layout: Any) -> "Figure":
    """A figure with nothing in it yet: its look, a title, and beneath it `notes` (what a reader must know)."""
    from plotly import graph_objects as go

    first, rest = _break(title)
    under = [*textwrap.wrap(rest, WIDTH + 2), *textwrap.wrap(" · ".join(notes), WIDTH + 2)]
    head = {"text": first, "subtitle": {"text": "<br>".join(under)}}
    margin = {"t": 26 + 16 * bool(first) + 17 * len(under) if first or under else 16}
    return go.Figure(layout={"template": template(theme), "title": head, "margin": margin, **layout})


def _break(title: str) -> tuple[str, str]:
    """The title's first line and the rest of it, parted at a comma if there is one early enough, else at a space."""
    if len(title) <= WIDTH:
        return title, ""
    at = max(title.rfind(", ", 0, WIDTH), 0) or max(title.rfind(" ", 0, WIDTH), 0) or WIDTH
    return title[:at], title[at:].lstrip(", ")


def colour_map(name: str, theme: str = "light", strength: float = 1.0) -> list[list[Any]]:
    """ "viridis" or "cividis" as a Plotly colour scale, mixed with the theme's paper when strength is below 1."""
    from plotly import colors

    anchors = {"viridis": colors.sequential.Viridis, "cividis": colors.sequential.Cividis}[name]
    paper, inks = np.array(_rgb(PAPER[theme])), np.array([_rgb(colour) for colour in anchors])
    mixed = np.rint(strength * inks + (1 - strength) * paper).astype(int)
    return [[float(at), "rgb({},{},{})".format(*rgb)] for at, rgb in zip(_stops(len(mixed)), mixed, strict=True)]


def line_map(theme: str = "light") -> list[list[Any]]:
    """The part of viridis that lines can have: without what would vanish on the theme's paper."""
    low, high = (0.0, 0.88) if theme == "light" else (0.25, 1.0)
    stops = _stops(9)
    return [[float(at), colour] for at, colour in zip(stops, _along(low + stops * (high - low)), strict=True)]


def colours_along(values: ArrayLike, theme: str = "light") -> list[str]:
    """The colour of a line for each number from 0 to 1, along `line_map`."""
    return _along(np.asarray(values), line_map(theme))


def _along(places: np.ndarray, scale: Sequence[Sequence[Any]] = ()) -> list[str]:
    scale = scale or colour_map("viridis")
    inks = np.array([_rgb(colour) for _, colour in scale])
    parts = [np.interp(places, _stops(len(inks)), inks[:, k]) for k in range(3)]
    return ["rgb({:.0f},{:.0f},{:.0f})".format(*rgb) for rgb in zip(*parts, strict=True)]


def _stops(n: int) -> np.ndarray:
    return np.linspace(0, 1, n)


def _rgb(colour: str) -> tuple[int, int, int]:
    if colour.startswith("rgb"):
        red, green, blue = (int(part) for part in colour[4:-1].split(","))
        return red, green, blue
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Settings of a logarithmic axis that shows values from low to high: powers of ten where there are several."""
    decades = np.log10(high / low) if high > low > 0 else 0.0
    return (
        {"type": "log", "exponentformat": "power", "dtick": 1, "tickfont": {"size": 11}}
        if 1.5 < decades < 8
        else {"type": "log", "exponentformat": "power", "tickfont": {"size": 11}}
    )


def bar_ticks(low: float, high: float, log: bool) -> dict[str, Any]:
    """Places and words along a colour bar from low to high, which are logarithms when `log`."""
    decades = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
    if log and len(decades) >= 3:
        places = decades[:: -(-len(decades) // 7)]
        return {"tickvals": places, "ticktext": [f"10<sup>{place:.0f}</sup>" for place in places]}
    places = np.linspace(low, high, 5)
    return {"tickvals": places, "ticktext": [f"{10**place if log else place:.2g}" for place in places]}


def star(theme: str) -> dict[str, Any]:
    """The marker of a minimum or of the best of several."""
    return {"symbol": "star", "size": 13, "color": "#E69F00", "line": {"width": 1, "color": look(theme)["paper"]}}


def words(name: str) -> str:
    """A variable's name as a reader says it: "grad_norm" as "grad norm"."""
    return name.replace("_", " ")


def with_units(text: str, units: str) -> str:
    """The text with its unit in brackets, none for pure numbers and where the text has it already."""
    return text if units in ("", "1") or units in text.split() or f"{units}s" in text.split() else f"{text} [{units}]"


def axis_label(array: xr.DataArray) -> str:
    """What stands at an axis: the array's long name and unit, from its attributes."""
    return with_units(array.attrs.get("long_name", words(str(array.name))), array.attrs.get("units", ""))


def number(value: float) -> str:
    """A number for a label: four digits at most, no needless zeros."""
    return f"{value:.4g}"


def faded(colour: str, alpha: float) -> str:
    """A colour #RRGGBB made transparent."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"

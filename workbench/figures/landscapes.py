"""Figures of landscapes: slices from above, in 3-D and in profile; a path and what its plane leaves out; spectra."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.figures.palette import THEMES
from workbench.figures.theme import blank, colour_map, faded, look, number

FLOOR = 1e-7
"""Densities below this are drawn there: a logarithm needs some floor."""

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def contours(record: xr.Dataset, path: xr.Dataset | None = None, *, theme: str = "light") -> "Figure":
    """A slice in the plane from above: colours and contour lines of log10 of the loss, and a path as it falls on it.

    The subtitle says what the loss was taken over, its largest standard error, and with a path (of `on_plane`) the
    share of its variance that the plane holds.
    """
    heights, label = _heights(record)
    figure = blank(theme, str(record.attrs["plane"]), [*_notes(record), *_path_notes(path)], uirevision="landscape")
    style = {"contours": {"coloring": "heatmap", "showlines": True}, "ncontours": 18, "connectgaps": False}
    line = {"width": 0.6, "color": faded(look(theme)["ink"], 0.3)}
    hover = f"%{{x:.4g}}, %{{y:.4g}}<br>{label} %{{z:.4g}}<extra></extra>"
    colours = {"colorscale": colour_map("viridis", theme), "colorbar": {"title": {"text": label}}}
    at = {"x": record.a.values, "y": record.b.values, "z": heights}
    figure.add_contour(**at, **style, **colours, line=line, hovertemplate=hover)
    for i, one in enumerate(_runs(path)):
        colour = THEMES[theme][(i + 1) % 8]
        off = zip(one.step.values, one.residual.values, strict=True)
        away = [f"step {int(k)}<br>{number(float(r))} off the plane" for k, r in off]
        drawn = {"x": one.a.values, "y": one.b.values, "hovertext": away, "hoverinfo": "text", "name": f"path {i + 1}"}
        figure.add_scatter(**drawn, mode="lines+markers", marker={"size": 3}, line={"width": 2, "color": colour})
    for update, name in ((figure.update_xaxes, "a"), (figure.update_yaxes, "b")):
        values = record[name].values
        update(title_text=record[name].attrs["long_name"], range=[values[0], values[-1]], zeroline=False)
    return figure


def surface(record: xr.Dataset, *, theme: str = "light") -> "Figure":
    """A slice in the plane as a surface of log10 of the loss."""
    heights, label = _heights(record)
    figure = blank(theme, str(record.attrs["plane"]), _notes(record), uirevision="landscape")
    colours = {"colorscale": colour_map("viridis", theme), "colorbar": {"title": {"text": label}}}
    figure.add_surface(x=record.a.values, y=record.b.values, z=heights, **colours)
    names = {f"{axis}axis": {"title": {"text": text}} for axis, text in (("x", "across"), ("y", "up"), ("z", label))}
    figure.update_layout(scene=names)
    return figure


def profile(record: xr.Dataset, *, theme: str = "light") -> "Figure":
    """A slice along a line: the loss, with a band of one standard error to each side."""
    figure = blank(theme, str(record.attrs["plane"]), _notes(record), uirevision="profile")
    a, loss, error = record.a.values, record.loss.values, np.nan_to_num(record.loss_error.values)
    ink = look(theme)["ink"]
    band = {"x": [*a, *a[::-1]], "y": [*(loss + error), *(loss - error)[::-1]], "hoverinfo": "skip"}
    figure.add_scatter(**band, fill="toself", fillcolor=faded(ink, 0.15), line={"width": 0}, name="± standard error")
    figure.add_scatter(x=a, y=loss, mode="lines", name="loss")
    figure.update_xaxes(title_text=record.a.attrs["long_name"])
    figure.update_yaxes(title_text="loss")
    return figure


def plane_against_true(path: xr.Dataset, *, theme: str = "light") -> "Figure":
    """The true loss along a path beside the loss at the point of the plane below it (dashed), over the steps."""
    figure = blank(theme, "True loss, and the loss on the plane (dashed)", _path_notes(path), uirevision="path")
    for i, one in enumerate(_runs(path)):
        name, steps = f"path {i + 1}", one.step.values
        figure.add_scatter(x=steps, y=one.loss.values, mode="lines", name=f"{name}, true")
        figure.add_scatter(x=steps, y=one.plane_loss.values, mode="lines", line={"dash": "dash"}, name=f"{name}, plane")
    figure.update_xaxes(title_text="step")
    positive = float(np.nanmin([path.loss.min(), path.plane_loss.min()])) > 0
    figure.update_yaxes(title_text="loss", type="log" if positive else "linear")
    return figure


def spectrum(record: xr.Dataset, *, theme: str = "light") -> "Figure":
    """The density of an operator's eigenvalues (of `spectral_density`), logarithmic, its standard error as a band."""
    attrs = record.attrs
    notes = [f"{attrs['probes']} random vectors of {attrs['steps']} steps, broadened by {number(attrs['width'])}"]
    figure = blank(theme, f"Eigenvalues of the {attrs['operator']}", notes, uirevision="spectrum")
    x, y, error = record.eigenvalue.values, record.density.values, np.nan_to_num(record.density_error.values)
    low, high = (np.maximum(y + sign * error, FLOOR) for sign in (-1, 1))
    band = {"x": [*x, *x[::-1]], "y": [*high, *low[::-1]], "hoverinfo": "skip", "name": "± standard error"}
    figure.add_scatter(**band, fill="toself", fillcolor=faded(look(theme)["ink"], 0.15), line={"width": 0})
    figure.add_scatter(x=x, y=np.maximum(y, FLOOR), mode="lines", name="density")
    figure.update_xaxes(title_text="eigenvalue")
    figure.update_yaxes(title_text="share of the eigenvalues per unit", type="log")
    return figure


def log_heights(loss: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """(log10 of the loss, True) where every finite value is positive, else (the loss, False)."""
    finite = loss[np.isfinite(loss)]
    if not (len(finite) and finite.min() > 0):
        return loss, False
    with np.errstate(invalid="ignore"):
        return np.log10(loss), True


def _heights(record: xr.Dataset) -> tuple[NDArray[Any], str]:
    heights, logarithmic = log_heights(record.loss.values)
    return heights, "log10 loss" if logarithmic else "loss"


def _notes(record: xr.Dataset) -> list[str]:
    errors = record.loss_error.values
    known = errors[np.isfinite(errors)]
    sure = f", standard error at most {number(float(known.max()))}" if len(known) else ""
    missing = 1 - np.isfinite(record.loss.values).mean()
    blanks = [f"blank: not finite ({max(missing, 0.001):.1%} of the points)"] if missing else []
    return [f"{record.attrs['landscape']}{sure}", *blanks]


def _path_notes(path: xr.Dataset | None) -> list[str]:
    return (
        [] if path is None else [f"the plane holds {100 * path.attrs['variance_share']:.1f} % of the path's variance"]
    )


def _runs(path: xr.Dataset | None) -> list[xr.Dataset]:
    if path is None:
        return []
    return [path.isel(run=i) for i in range(path.sizes["run"])] if "run" in path.loss.dims else [path]

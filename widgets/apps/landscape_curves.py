"""What Landscape and Training draw of trainings: sharpness and its edge, the loss along the path, how far off."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.drawing import named
from widgets.apps.landscape_measures import edge, known

DASHED = {"dash": "dash", "width": 1.2, "opacity": 0.8}
APART = 20
"""Sharpness and edge further apart than this factor are drawn on a logarithmic axis."""
FEW = 40
"""Measurements, up to which each has its mark."""


def sharpness(
    session: wb.Session,
    found: tuple[NDArray[Any], Mapping[str, NDArray[Any]]],
    labels: Sequence[str],
    colours: Sequence[str],
    theme: str,
) -> dict[str, Any]:
    """Sharpness of every training, after Adam's scaling where it has one, and the edge, dashed.

    Args:
        found: steps, and what was measured at them, as `Curvature.arrays` gives it.
        labels: of the trainings; "" where there is one alone.
    """
    steps, rows = found
    series: list[dict[str, Any]] = []
    for i, label in enumerate(labels if rows else ()):
        scaled = bool(np.isfinite(rows["turned"][:, i]).any())
        name, values = ("after Adam's scaling", "turned") if scaled else ("sharpness", "sharpness")
        marks = {"colour": colours[i], "markers": len(steps) < FEW}
        name = name if not label else f"{label} scaled" if scaled else label
        series.append({"name": name, **known(steps, rows[values][:, i]), **marks})
        limit = edge(session, label, steps)
        if np.isfinite(limit).any():
            own = {"colour": colours[i] if label else colours[1], **DASHED}
            series.append({"name": f"{label} edge".strip(), **known(steps, limit), **own})
    heights = np.concatenate([one["values"] for one in series]) if series else np.ones(1)
    log = bool((heights > 0).all()) and bool(heights.max(initial=1) > APART * heights.min(initial=1))
    return named(curves(series, title="Sharpness, and the edge (dashed)", log=log, theme=theme, cursor=session.index))


def along_path(paths: Any, labels: Sequence[str], colours: Sequence[str], theme: str) -> dict[str, Any]:
    """The true loss of every training along its way, and that of the plane below it, dashed; `paths` may be None."""
    series: list[dict[str, Any]] = []
    for i, label in enumerate(labels if paths is not None else ()):
        steps = paths.step.values
        series.append(
            {"name": f"{label} true".strip(), "steps": steps, "values": paths.loss.values[i], "colour": colours[i]}
        )
        on = {"name": f"{label} on the plane".strip(), "steps": steps, "values": paths.plane_loss.values[i]}
        series.append({**on, "colour": colours[i], **DASHED})
    positive = all(np.nanmin(one["values"], initial=np.inf) > 0 for one in series)
    title = "True loss, and the loss on the plane below it (dashed)"
    return named(curves(series, title=title, log=positive, theme=theme))


def off_plane(paths: Any, labels: Sequence[str], colours: Sequence[str], theme: str) -> dict[str, Any]:
    """How far every training was from the plane; `paths` may be None."""
    series = [
        {"name": label, "steps": paths.step.values, "values": paths.residual.values[i], "colour": colours[i]}
        for i, label in enumerate(labels if paths is not None else ())
    ]
    return named(curves(series, title="Distance from the plane, in parameters", theme=theme))

"""Figures: pure functions from a record (or an objective) to a Plotly figure. Plotly is imported when one is asked for.

record.wb.plot()                                  # the path in the plane, or the loss against steps
figures.curves(record, "grad_norm", theme="dark")
figures.sweep(record)                             # the last loss over the hyperparameters that differ between runs
"""

from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench.figures.charts import Series, chart, fan
from workbench.figures.fields import Field, contours, field, objective_of
from workbench.figures.grids import heatmap, sweep
from workbench.figures.palette import method_colour, method_index, method_indices
from workbench.figures.runs import curves, decimate
from workbench.figures.theme import template
from workbench.figures.trails import paths, surface3d

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def plot(record: xr.Dataset, variable: str | None = None, **options: Any) -> "Figure":
    """What `record.wb.plot(...)` draws: curves of a variable, or the path in the plane.

    Args:
        record: what `wb.rollout` or `session.record()` gave.
        variable: a variable's name; None draws paths over the objective when positions have two coordinates and the
            objective is known (given as `objective`, or found by the record's own attributes), else curves of the loss.
        options: those of `paths` or `curves`.

    Raises:
        ValueError: on a name the record does not have.
    """
    objective = options.pop("objective", None)
    if variable is None and "x" in record and record.sizes.get("dim") == 2:
        objective = objective if objective is not None else objective_of(record)
        if objective is not None:
            return paths(record, objective, **options)
    return curves(record, variable or _first(record), **options)


def _first(record: xr.Dataset) -> str:
    """The variable that says most: the loss, else the first one that has steps."""
    names = [str(name) for name, array in record.data_vars.items() if "step" in array.dims]
    return "loss" if "loss" in names or not names else names[0]


__all__ = [
    "Field",
    "Series",
    "chart",
    "contours",
    "curves",
    "decimate",
    "fan",
    "field",
    "heatmap",
    "method_colour",
    "method_index",
    "method_indices",
    "objective_of",
    "paths",
    "plot",
    "surface3d",
    "sweep",
    "template",
]

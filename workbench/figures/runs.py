"""Curves of a record's variables against steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.figures.charts import Scale, Series, chart, decimate
from workbench.figures.palette import LIGHT, THEMES, method_indices
from workbench.figures.theme import axis_label, colours_along, look, number, with_units, words
from workbench.routine import RUNNING, unknown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["curves", "decimate", "hyper_names", "pick_runs", "run_colours", "run_labels"]

SHOWN = 64
"""Runs drawn when nobody said which."""
DASHES = ("solid", "dash", "dot", "dashdot")
LINES = 256


def curves(
    record: xr.Dataset,
    variable: str = "loss",
    *,
    log: bool | str = "auto",
    runs: Sequence[int] | None = None,
    max_points: int = 2000,
    theme: str = "light",
) -> "Figure":
    """A variable against steps, one line a run (and a layer, where the variable has layers).

    A line is named by the run's method, or by the hyperparameters that differ between runs; more than eight runs that
    differ in one hyperparameter are coloured by its value. Lines longer than `max_points` are reduced by min–max
    decimation to about the pixels of a screen (never plain striding, which loses peaks). Values that are not finite
    leave gaps, and are counted beneath the title; a run that diverged ends in an × at its last finite value.

    Args:
        variable: a name in the record, with dims run, step and at most one more.
        log: "auto" (logarithmic when all values shown are positive and span more than a factor of 30), True or False;
            never logarithmic when a value is zero or negative.
        runs: which runs to draw; at most 64, evenly spaced, when not given, and the figure says so.

    Raises:
        ValueError: on a variable that is not there or cannot be drawn as lines, or a run that is not there.
    """
    array = _variable(record, variable)
    shown, notes = pick_runs(record, runs)
    labels = run_labels(record)
    colours, scale = run_colours(record, shown, theme)
    extra = [str(dim) for dim in array.dims if dim not in ("run", "step")]
    stops = record["diverged_at"].values if "diverged_at" in record else np.full(record.sizes["run"], RUNNING)
    steps = record["step"].values.astype(np.float64)
    values = array.isel(run=shown).transpose("run", "step", *extra).values
    parts = _parts(array, extra, len(shown))
    series = []
    for row, run in enumerate(shown):
        for j, part in enumerate(parts):
            label = part if len(shown) == 1 and part else " · ".join(filter(None, (labels[run], part)))
            style = (THEMES[theme][j % 8], DASHES[row % 4]) if part else (colours[row], "solid")
            series.append(Series(label, steps, values[row, :, j] if extra else values[row], *style, int(stops[run])))
    given: dict[str, Any] = {
        "title": array.attrs.get("long_name", words(variable)),
        "y_label": _short(array),
        "x_label": axis_label(record["step"]),
    }
    return chart(
        series, **given, log=log, scale=None if extra else scale, notes=notes, max_points=max_points, theme=theme
    )


def _variable(record: xr.Dataset, name: str) -> xr.DataArray:
    known = [str(key) for key, array in record.data_vars.items() if "step" in array.dims]
    if name not in known:
        raise unknown("a variable with steps", name, known)
    array = record[name]
    if "run" not in array.dims or len(array.dims) > 3:
        raise ValueError(f"expected {name} to have dims run, step and at most one more, got {array.dims}")
    return array


def _parts(array: xr.DataArray, extra: list[str], runs: int) -> list[str]:
    """Names of the lines of one run: of its layers or coordinates, [""] when the variable is one number a step."""
    if not extra:
        return [""]
    (dim,) = extra
    count = array.sizes[dim]
    if count * runs > LINES:
        raise ValueError(
            f"expected at most {LINES} lines, got {count} along {dim!r} for each of {runs} runs; choose runs"
        )
    return [str(part) for part in array[dim].values] if dim in array.coords else [f"{dim} {j}" for j in range(count)]


def _short(array: xr.DataArray) -> str:
    return with_units(words(str(array.name)), array.attrs.get("units", ""))


def pick_runs(record: xr.Dataset, runs: Sequence[int] | None) -> tuple[list[int], list[str]]:
    """(which runs to draw, what has to be said about the others).

    Raises:
        ValueError: on a run that is not there.
    """
    count = record.sizes["run"]
    if runs is not None:
        for run in runs:
            if not 0 <= run < count:
                raise ValueError(f"expected runs from 0 to {count - 1}, got {run!r}")
        return [int(run) for run in runs], []
    if count <= SHOWN:
        return list(range(count)), []
    shown = np.unique(np.linspace(0, count - 1, SHOWN).astype(int)).tolist()
    return shown, [f"{len(shown)} of {count:,} runs shown, evenly spaced"]


def hyper_names(record: xr.Dataset) -> list[str]:
    """Hyperparameters that differ between runs: the numeric coordinates of `run`."""
    along = [name for name, coord in record.coords.items() if coord.dims == ("run",) and name not in ("run", "method")]
    return [str(name) for name in along if np.issubdtype(record[name].dtype, np.number)]


def what_ran(record: xr.Dataset) -> str:
    """Method and problem in words, as far as the record's attributes say: "adam on rosenbrock"."""
    problem = record.attrs.get("text", record.attrs.get("problem"))
    return " on ".join(str(name) for name in (record.attrs.get("method"), problem) if name)


def run_labels(record: xr.Dataset) -> list[str]:
    """What each run is called: its method, its hyperparameters ("lr = 0.01"), or the one method they all share."""
    count, names = record.sizes["run"], hyper_names(record)
    if "method" in record.coords and record["method"].dims == ("run",):
        return [str(name) for name in record["method"].values]
    if names:
        columns = [record[name].values for name in names]
        rows = zip(*columns, strict=True)
        return [", ".join(f"{name} = {number(v)}" for name, v in zip(names, row, strict=True)) for row in rows]
    if count == 1:
        return [str(record.attrs.get("method", "run 0"))]
    return [f"run {run}" for run in record["run"].values]


def run_colours(record: xr.Dataset, shown: Sequence[int], theme: str) -> tuple[list[str], Scale | None]:
    """(a colour for each run shown, what the colours stand for when they follow a value).

    By method where runs have one each; by value where more than eight runs differ in one hyperparameter; otherwise in
    the palette's order, and all alike when there are more runs than colours.
    """
    look(theme)
    palette, names = THEMES[theme], hyper_names(record)
    if "method" in record.coords and record["method"].dims == ("run",):
        every = method_indices([str(name) for name in record["method"].values])
        return [palette[every[run]] for run in shown], None
    if len(shown) == 1:
        return [palette[method_indices([str(record.attrs.get("method", ""))])[0]]], None
    if len(shown) <= len(LIGHT):
        return [palette[k] for k in range(len(shown))], None
    if len(names) == 1:
        values = record[names[0]].values[list(shown)]
        scale = Scale.of(names[0], values)
        return colours_along(scale.place(values), theme), scale
    return [palette[0]] * len(shown), None

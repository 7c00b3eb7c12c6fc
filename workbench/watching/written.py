"""The record of a watched loop."""

import json
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from workbench.record import mark
from workbench.watching.probes import WORDS


def written(run: Any) -> xr.Dataset:
    """The record of a `Watch`: one run; `step` k is what the k-th optimizer step did.

    Loss and gradient are those that the step was made of, before it; weights are those after it. A number that was not
    measured at a step is NaN. Norms by layer are at the steps `measured` alone, weights at the steps `kept`.
    """
    steps = run.index
    variables: dict[str, Any] = {}
    for name, series in run.series.items():
        if name != "lr" and len(series):
            words = "loss of the step's batch, before the step" if name == "loss" else WORDS.get(name, name)
            values = series.on(steps)
            more = [f"{name}_{i}" for i in range(values.ndim - 1)]
            variables[name] = _said(("run", "step", *more), values, words)
    variables["lr"] = _said(("run", "step", "group"), _rates(run), "learning rate of each group")
    at, norms = run.norms.arrays()
    for i, (name, words) in enumerate(NORMS.items()):
        whole = np.full(steps, np.nan, norms.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            whole[at - 1] = np.linalg.norm(norms[:, i].astype(np.float64), axis=1)
        variables[name] = _said(("run", "step"), whole, words)
        variables[f"layer_{name}"] = _said(("run", "measured", "layer"), norms[:, i], f"{words}, by layer")
    kept, points = run.trajectory()
    variables["x"] = _said(("run", "kept", "parameter"), points, "trained weights after the step")
    variables["diverged_at"] = (
        ("run",),
        np.array([_diverged(run)]),
        {"long_name": "first step known to have a loss or norm that is not finite, -1 when there is none"} | STEP,
    )
    coords = {
        "run": ("run", np.arange(1), {"long_name": "run", "units": "1"}),
        "step": ("step", np.arange(1, steps + 1), {"long_name": "steps made"} | STEP),
        "layer": ("layer", run.names, {"long_name": "parameter tensor", "units": "1"}),
        "measured": ("measured", at, {"long_name": "steps made when norms were measured"} | STEP),
        "kept": ("kept", kept, {"long_name": "steps made when weights were kept"} | STEP),
    }
    return xr.Dataset(variables, coords, _attrs(run))


STEP = {"units": "step"}
NORMS = {
    "gradient_norm": "Euclidean norm of the gradient, before the step",
    "weight_norm": "Euclidean norm of the weights, after the step",
    "update_norm": "Euclidean norm of the step",
}


def _said(dims: tuple[str, ...], values: np.ndarray, words: str) -> tuple:
    return dims, values[None], {"long_name": words, "units": "1"}


def _rates(run: Any) -> np.ndarray:
    """(steps, groups): rates are noted when they change; a group that came later has none before."""
    series = run.series["lr"]
    steps, groups = run.index, len(run.optimizer.param_groups)
    found = np.full((steps, groups), np.nan)
    at, values = series.ragged()
    for step, value in zip(at, values, strict=True):
        found[step - 1 :, : len(value)] = value
    return found


def _diverged(run: Any) -> int:
    at, loss = run.series["loss"].arrays()
    measured, norms = run.norms.arrays()
    bad = [*at[~np.isfinite(loss)], *measured[~np.isfinite(norms).all((1, 2))]]
    return int(min(bad, default=-1))


def _attrs(run: Any) -> dict[str, Any]:
    optimizer, given = run.optimizer, run.given
    loss = given["loss"]
    said = repr(loss) if isinstance(loss, nn.Module | str) else getattr(loss, "__name__", None)
    groups = [
        {name: value for name, value in group.items() if isinstance(value, int | float | bool | str)}
        for group in optimizer.param_groups
    ]
    return {
        **mark(),
        "recipe": f"wb.watch({type(run.model).__name__}(), {type(optimizer).__name__}(), loss={said})",
        "seed": "null",
        "start": "null",
        "hyper": json.dumps(groups),
        "edits": "[]",
        "steps": run.index,
        "mode": "watch",
        "probes": json.dumps(list(given["probes"])),
        "share": round(run.share, 4),
        "budget": "none" if given["budget"] is None else given["budget"],
        "device": str(run.parameters[0].device),
        "dtype": str(run.parameters[0].dtype).removeprefix("torch."),
    }

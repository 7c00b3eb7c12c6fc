"""What latent states have to do with when a run converges: whether they change there, and which of them cost time.

Source: Hu, Chen, Saphra & Cho 2023, arXiv:2308.09543, section 2 (regression on a bag of states). The permutation tests
and the cross-validation are this module's.
"""

from typing import Any

import numpy as np
import xarray as xr

from workbench.routine import Key


def state_changes(segmentation: xr.Dataset) -> xr.DataArray:
    """Where a run enters another state than it was in at the recorded step before: (run, step), False at the first."""
    states = segmentation["states"].transpose("run", "step")
    values = np.zeros(states.shape, bool)
    values[:, 1:] = states.values[:, 1:] != states.values[:, :-1]
    return states.copy(data=values).rename("changes").assign_attrs(long_name="entered another state", units="1")


def alignment(segmentation: xr.Dataset, times: Any, *, key: Key | None = None, shuffles: int = 999) -> xr.Dataset:
    """Do states change where runs converge? The mean distance from a run's time to its nearest change, and a test.

    The test gives runs each other's times: if a change belongs to its own run's convergence, its own time is nearer.
    p = (1 + number of shuffles at least as near) / (1 + shuffles). A run without a change is a whole record away; runs
    whose time is NaN (never converged) are left out.

    Args:
        segmentation: what `segment` gives.
        times: (runs,) steps at which runs converged, in steps, NaN where they did not.
        key: what the shuffles are drawn from.
    """
    times, kept = _times(segmentation, times)
    steps = segmentation["step"].values.astype(np.float64)
    changes = state_changes(segmentation).values[kept]
    far = steps[-1] - steps[0]
    distance = np.stack(  # (run of the changes, run of the time)
        [np.abs(steps[row][:, None] - times).min(0, initial=far) for row in changes]
    )
    rows = np.arange(len(times))
    null = np.array([distance[rows, order].mean() for order in _orders(key, shuffles, len(times))])
    found = float(distance[rows, rows].mean())
    label = {"units": "step", "long_name": "mean distance from convergence to the nearest change of state"}
    return xr.Dataset(
        {
            "distance": ((), found, label),
            "shuffled": ("shuffle", null, {**label, "long_name": label["long_name"] + ", times shuffled"}),
            "p_value": ((), (1 + (null <= found).sum()) / (1 + shuffles), {"units": "1", "long_name": "p value"}),
        },
        attrs={"made_by": "workbench.landscapes.alignment", "runs": len(times), "shuffles": shuffles},
    )


def detours(
    segmentation: xr.Dataset,
    times: Any,
    *,
    until: int | None = None,
    folds: int = 5,
    key: Key | None = None,
    shuffles: int = 199,
) -> xr.Dataset:
    """Linear regression of convergence time on visits to each state; detours have positive coefficients.

    times ≈ a + Σ_k c_k n_k, n_k the recorded steps that a run is in state k, by least squares. The n_k of a run add up
    to its length, so only differences of the c_k mean something: theirs is the solution of least norm, Σ c_k = 0 over
    states that vary. R² is cross-validated: 1 − Σ(t − t̂)² / Σ(t − t̄)², t̂ and t̄ of the other folds. p is the share of
    shuffles of the times, and of this one, with at least its R².

    Of whole runs, n_k say in part what they shall predict: a state that ends at convergence lasts as long as it takes.
    With `until`, only steps up to that one are counted: then, where no run has yet converged, it is a forecast.

    Args:
        segmentation: what `segment` gives.
        times: (runs,) steps at which runs converged; NaN leaves a run out.
        until: last step that is counted.
        folds: parts of the cross-validation.

    Raises:
        ValueError: on times of another length, or fewer runs than 2 · folds.
    """
    times, kept = _times(segmentation, times)
    if not 2 <= folds <= len(times) // 2:
        raise ValueError(f"expected 2 folds or more of at least two converged runs, got {folds} of {len(times)} runs")
    key = key or Key(0)
    states = segmentation["states"].transpose("run", "step").values[kept]
    if until is not None:
        states = states[:, segmentation["step"].values <= until]
    counts = (states[:, :, None] == segmentation["state"].values).sum(1).astype(np.float64)
    centred, goal = counts - counts.mean(0), times - times.mean()
    inverse = np.linalg.pinv(centred, rcond=1e-10)
    coefficients = inverse @ goal
    freedom = len(times) - 1 - np.linalg.matrix_rank(centred, tol=1e-10 * max(1.0, np.abs(centred).max()))
    noise = float(np.square(goal - centred @ coefficients).sum()) / freedom if freedom > 0 else np.nan
    errors = np.sqrt(noise * np.square(inverse).sum(1))
    parts = np.empty(len(times), int)
    parts[key.stream("folds").permutation(len(times)).numpy()] = np.arange(len(times)) % folds
    orders = [np.arange(len(times)), *_orders(key, shuffles, len(times))]
    r2 = _cross_validated(counts, np.stack([times[order] for order in orders], 1), parts)
    one = {"units": "1"}
    per = {"units": "step", "long_name": "steps of convergence time for each recorded step in the state"}
    return xr.Dataset(
        {
            "visits": (("run", "state"), counts, {"long_name": "recorded steps in the state", **one}),
            "coefficient": ("state", coefficients, per),
            "standard_error": ("state", errors, {**per, "long_name": "standard error of the coefficient"}),
            "r2": ((), r2[0], {"long_name": "cross-validated R²", **one}),
            "r2_shuffled": ("shuffle", r2[1:], {"long_name": "cross-validated R², times shuffled", **one}),
            "p_value": ((), (1 + (r2[1:] >= r2[0]).sum()) / (1 + shuffles), {"long_name": "p value", **one}),
        },
        {"run": segmentation["run"].values[kept], "state": segmentation["state"]},
        {"made_by": "workbench.landscapes.detours", "folds": folds, "until": -1 if until is None else until},
    )


def _cross_validated(x: np.ndarray, y: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """R² of each column of y (runs, targets) from x (runs, features), every run foretold by the other parts."""
    missed, spread = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for part in np.unique(parts):
        test, train = parts == part, parts != part
        centre, mean = x[train].mean(0), y[train].mean(0)
        slope = np.linalg.pinv(x[train] - centre, rcond=1e-10) @ (y[train] - mean)
        missed += np.square(y[test] - mean - (x[test] - centre) @ slope).sum(0)
        spread += np.square(y[test] - mean).sum(0)
    return 1 - missed / np.where(spread == 0, np.nan, spread)


def _times(segmentation: xr.Dataset, times: Any) -> tuple[np.ndarray, np.ndarray]:
    """(times of the runs that converged, which these are)."""
    given = np.asarray(times, dtype=np.float64)
    if given.shape != (segmentation.sizes["run"],):
        raise ValueError(f"expected a time for each of {segmentation.sizes['run']} runs, got shape {given.shape}")
    kept = np.isfinite(given)
    if kept.sum() < 2:
        raise ValueError(f"expected at least two runs that converged, got {kept.sum()}")
    return given[kept], kept


def _orders(key: Key | None, shuffles: int, count: int) -> list[np.ndarray]:
    key = (key or Key(0)).stream("shuffles")
    return [key.at(i).permutation(count).numpy() for i in range(shuffles)]

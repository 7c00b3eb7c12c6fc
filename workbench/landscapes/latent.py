"""Latent states of training: weight metrics along many runs, read as a Markov chain of a few hidden states.

Source of all of it: Hu, Chen, Saphra & Cho 2023, "Latent State Models of Training Dynamics", TMLR, arXiv:2308.09543.

What of it was seen here, many seeds of a small MLP each (tests/landscapes/test_latent.py): on sparse parity states
change near each run's own convergence, and visits predict when that is. On modular addition, grokked under weight decay
within 1,600 steps, states do not change near it, but visits predict it (cross-validated R² 0.27 and 0.29 of sixty seeds
each; with thirty, chance alone may hide it). On both, BIC takes more than one state, mostly the largest number tried.
"""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.landscapes.progress import Watch, within
from workbench.routine import Key, Probe, Variable, unknown, whole
from workbench.space import Space

METRICS = {
    "l1": "sum of absolute weights, mean over layers",
    "l2": "Euclidean norm of the weights, mean over layers",
    "trace": "trace of the weight matrix, mean over layers",
    "spectral": "largest singular value of the weight matrix, mean over layers",
    "code_sparsity": "l1 over l2, mean over layers",
    "computational_sparsity": "trace over largest singular value, mean over layers",
    "mean_singular": "mean of the singular values, mean over layers",
    "var_singular": "variance of the singular values, mean over layers",
    "mean_w": "mean of all weights",
    "median_w": "median of all weights",
    "var_w": "variance of all weights",
    "mean_b": "mean of all biases",
    "median_b": "median of all biases",
    "var_b": "variance of all biases",
}
"""The fourteen of the paper's appendix, by the names of its code."""


def measured(space: Space, x: Tensor) -> dict[str, Tensor]:
    """Every metric of points (…, parameters), as (…,) in float64; those of biases only where there are biases.

    Weights are blocks of two axes or more (the first against all others), biases blocks of one. Variances divide by
    one less than the count, and are 0 of a single number.
    """
    blocks = space.blocks(x.detach().double())
    lead = x.ndim - 1
    weights = [block.flatten(lead + 1) for block in blocks if block.ndim - lead >= 2]
    biases = [block for block in blocks if block.ndim - lead == 1]
    if not weights:
        raise ValueError(f"expected a model with a weight matrix, got blocks of shapes {space.shapes}")
    rows = []
    for w in weights:
        sigma = torch.linalg.svdvals(w)
        l1, l2 = w.abs().sum((-2, -1)), w.square().sum((-2, -1)).sqrt()
        trace, spectral = w.diagonal(dim1=-2, dim2=-1).sum(-1), sigma[..., 0]
        rows.append([l1, l2, trace, spectral, l1 / l2, trace / spectral, sigma.mean(-1), _variance(sigma)])
    means = [torch.stack(column).mean(0) for column in zip(*rows, strict=True)]
    for part in (weights, biases):
        if part:
            flat = torch.cat([block.flatten(lead) for block in part], -1)
            means += [flat.mean(-1), flat.median(-1).values, _variance(flat)]
    return dict(zip(METRICS, means, strict=False))


def _variance(values: Tensor) -> Tensor:
    return values.var(-1, correction=min(1, values.shape[-1] - 1))


WEIGHT_METRICS = Probe(
    "weight_metrics",
    {name: Variable((), words) for name, words in METRICS.items()},
    lambda routine, state: measured(routine.space, state.x),  # type: ignore[attr-defined]
    "Fourteen numbers that say how the weights are distributed; what latent states are found from.",
)
"""For `rollout(…, probes=[WEIGHT_METRICS])`: the metrics at every recorded step, without keeping the weights."""


def weight_metrics(points: Any, space: Space, steps: Sequence[int] | None = None) -> xr.Dataset:
    """The fourteen metrics of points (steps, parameters) or (runs, steps, parameters), one variable each (run, step).

    Args:
        space: the layers that the parameters are made of: `landscape.space` or `routine.space`.
        steps: number of each recorded step; 0, 1, … when not given.
    """
    x = torch.as_tensor(points)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[-1] != sum(space.sizes):
        raise ValueError(f"expected points (runs, steps, {sum(space.sizes)}) of this space, got {tuple(x.shape)}")
    kept = np.arange(x.shape[1]) if steps is None else np.asarray(steps)
    dims = ("run", "step")
    found = measured(space, x)
    variables = {name: (dims, v.cpu().numpy(), {"long_name": METRICS[name], "units": "1"}) for name, v in found.items()}
    coords = {
        "run": ("run", np.arange(len(x)), {"long_name": "run", "units": "1"}),
        "step": ("step", kept, {"long_name": "steps made", "units": "step"}),
    }
    return xr.Dataset(variables, coords, {"made_by": "workbench.landscapes.weight_metrics"})


# --------------------------------------------------------------------------------------------- the hidden Markov model

COUNTS = {
    "bic": "Bayesian information criterion",
    "log_likelihood": "log likelihood of all runs",
    "converged": "whether the fit ended before its last iteration",
}
"""What is known of every number of states tried."""


def segment(
    metrics: Any,
    *,
    states: Sequence[int] = range(1, 8),
    key: Key | None = None,
    features: Sequence[str] | None = None,
    each_run: bool = False,
    restarts: int = 3,
    iterations: int = 200,
    tolerance: float = 1e-2,
    watch: Watch | None = None,
) -> xr.Dataset:
    """Runs of training as paths through a few latent states: a Gaussian hidden Markov model, its size chosen by BIC.

    Metrics are standardised over all runs and steps, or over the steps of each run by itself (`each_run`: runs then
    differ in when they change, not in level; so does the paper's code). For each number of states K the model, of
    diagonal covariances, is fitted by expectation maximisation from several starts and the best likelihood L is kept;
    of all K the one with the smallest BIC = −2 log L + k log n, k = K² − 1 + 2 K · metrics, n = runs · steps, is taken.
    The path is Viterbi's. States are numbered in the order of time: by the mean step at which runs are in them.

    n counts all steps as if each said something new; training is smooth, so BIC leans to many states, and the largest
    number asked for often wins. The covariances have hmmlearn's weak prior, so L is of its maximum a posteriori.

    Args:
        metrics: a record with variables (run, step), or an array (runs, steps, metrics).
        states: numbers of states to try.
        key: what the starts are drawn from.
        features: which variables; the weight metrics that the record has when not given.
        restarts: starts for each number of states.
        iterations, tolerance: where a fit ends: at most so many, or when log L gains less.
        watch: called with the share of fits done; what it raises ends the work.

    Returns:
        states, certainty (run, step); mean, variance (state, metric) in standard deviations; transition (state, next);
        first (state); bic, log_likelihood, converged (count): one for each number of states tried.

    Raises:
        ValueError: on no metric that varies, values that are not finite, or fewer points than states.
    """
    values, names, coords = _table(metrics, features)
    varies = values.std((0, 1)) > 1e-12 * np.abs(values).max((0, 1))
    if not np.isfinite(values).all() or not varies.any():
        words = "no value that is not finite" if not np.isfinite(values).all() else "at least one metric that varies"
        raise ValueError(f"expected {words}, got metrics {', '.join(names)}; leave out diverged runs and constants")
    values, names = values[..., varies], [name for name, kept in zip(names, varies, strict=True) if kept]
    over = 1 if each_run else (0, 1)
    spread = values.std(over, keepdims=True)
    z = (values - values.mean(over, keepdims=True)) / np.where(spread == 0, 1, spread)
    counts = [whole("a number of states", count, 1) for count in states]
    if not counts or max(counts) > z.shape[0] * z.shape[1]:
        raise ValueError(f"expected numbers of states from 1 to {z.shape[0] * z.shape[1]} points, got {counts}")
    key, tried, watch = key or Key(0), [], within(watch)
    for k, count in enumerate(counts):
        seeds = [key.stream(f"{count} states").at(i).generator().initial_seed() % 2**32 for i in range(restarts)]
        fits = []
        for i, seed in enumerate(seeds[: 1 if count == 1 else None]):
            fits.append(_fit(z, count, seed, iterations, tolerance))
            watch((k + (i + 1) / restarts) / len(counts))
        tried.append(max(fits, key=lambda fit: fit[1]))
        watch((k + 1) / len(counts))
    free = np.array([count**2 - 1 + 2 * count * len(names) for count in counts])
    likelihoods = np.array([fit[1] for fit in tried])
    bic = -2 * likelihoods + free * np.log(z.shape[0] * z.shape[1])
    made = _decoded(tried[int(bic.argmin())][0], z, names, coords)
    tables = {"bic": bic, "log_likelihood": likelihoods, "converged": np.array([fit[2] for fit in tried])}
    made = made.assign({name: ("count", v, {"long_name": COUNTS[name], "units": "1"}) for name, v in tables.items()})
    made = made.assign_coords(count=("count", counts, {"long_name": "number of states", "units": "1"}))
    said = {"made_by": "workbench.landscapes.segment", "seed": str(key.seed), "restarts": restarts}
    said["standardised"] = "over each run" if each_run else "over all runs"
    return made.assign_attrs(**said, iterations=iterations, tolerance=tolerance)


def _table(metrics: Any, features: Sequence[str] | None) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """(values (runs, steps, metrics), their names, coordinates)."""
    if isinstance(metrics, xr.Dataset):
        known = [str(name) for name, array in metrics.data_vars.items() if set(array.dims) == {"run", "step"}]
        names = [name for name in METRICS if name in known] if features is None else list(features)
        for name in names:
            if name not in known:
                raise unknown("a variable with dims run and step", name, known)
        if not names:
            raise ValueError(f"expected a record with weight metrics, or features, got {', '.join(known) or 'none'}")
        values = np.stack([metrics[name].transpose("run", "step").values for name in names], -1)
        return values.astype(np.float64), names, {dim: metrics[dim] for dim in ("run", "step")}
    values = np.asarray(metrics, dtype=np.float64)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"expected metrics as (runs, steps, metrics), got shape {values.shape}")
    labels = {"run": {"long_name": "run", "units": "1"}, "step": {"long_name": "steps made", "units": "step"}}
    coords = {dim: (dim, np.arange(n), labels[dim]) for dim, n in zip(labels, values.shape, strict=False)}
    return values, [f"metric {i}" for i in range(values.shape[2])], coords


def _fit(z: np.ndarray, count: int, seed: int, iterations: int, tolerance: float) -> tuple[Any, float, bool]:
    """(model, log likelihood, whether it ended before its last iteration) of one start."""
    from hmmlearn.hmm import GaussianHMM
    from sklearn.exceptions import ConvergenceWarning

    rows, lengths = z.reshape(-1, z.shape[2]), [z.shape[1]] * z.shape[0]
    model = GaussianHMM(count, covariance_type="diag", n_iter=iterations, tol=tolerance, random_state=seed)
    with _quiet("hmmlearn.base"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than states: k-means says so
        model.fit(rows, lengths)
    alone = model.transmat_.sum(1) == 0  # entered at the very last step only: nothing is known of where it leads
    model.transmat_[alone] = np.eye(count)[alone]
    return model, float(model.score(rows, lengths)), model.monitor_.iter < iterations


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """This thread's log lines of a library kept from the screen: what they say is in `converged`."""
    here, logger = threading.get_ident(), logging.getLogger(name)

    def elsewhere(line: logging.LogRecord) -> bool:
        return line.thread != here

    logger.addFilter(elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(elsewhere)


def _decoded(model: Any, z: np.ndarray, names: list[str], coords: dict[str, Any]) -> xr.Dataset:
    """Viterbi's path of every run and the model, states in the order of time."""
    rows, lengths = z.reshape(-1, z.shape[2]), [z.shape[1]] * z.shape[0]
    path = model.predict(rows, lengths).reshape(z.shape[:2])
    posterior = model.predict_proba(rows, lengths)
    certainty = np.take_along_axis(posterior, path.reshape(-1, 1), 1).reshape(path.shape)
    when = [np.nonzero(path == k)[1].mean() if (path == k).any() else np.inf for k in range(model.n_components)]
    order = np.argsort(when, kind="stable")
    variance = np.stack([np.diag(c) for c in model.covars_])
    label = {"units": "1"}
    return xr.Dataset(
        {
            "states": (("run", "step"), np.argsort(order)[path], {"long_name": "latent state", **label}),
            "certainty": (("run", "step"), certainty, {"long_name": "posterior of the latent state", **label}),
            "mean": (("state", "metric"), model.means_[order], {"long_name": "mean, in standard deviations", **label}),
            "variance": (("state", "metric"), variance[order], {"long_name": "variance, standardised", **label}),
            "transition": (
                ("state", "next"),
                model.transmat_[np.ix_(order, order)],
                {"long_name": "probability of the next recorded step's state", **label},
            ),
            "first": ("state", model.startprob_[order], {"long_name": "probability of the first state", **label}),
        },
        {**coords, "state": np.arange(len(order)), "next": np.arange(len(order)), "metric": names},
    )

"""Measures as probes, for records and apps: of samples on their way, and of the flow that a training has learned.

What samples are compared with is drawn from fixed keys, the same at every step and in every run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.flows.measures import distances
from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.flows.measures.likelihood import log_likelihood
from workbench.flows.measures.paths import follow, straightness, transport_cost
from workbench.flows.measures.reference import distance_to_reference
from workbench.problems.densities import Mixture
from workbench.routine import Key, Probe, Variable

SAMPLES, LEAVES = 1_000, 200
"""Samples that a training's flow is measured on, and held data that its likelihood is of."""
MODES = 100
"""Most components whose weights are shown."""
STEPS = 32
"""Runge–Kutta steps of a training's flow from source to data, 4 evaluations each."""

REFERENCE = Key(0).stream("reference")

DISTANCES: dict[str, tuple[Callable[[Tensor, Tensor], Estimate], str, str]] = {
    "w2": (
        lambda a, b: distances.w2(a[: distances.EXACT], b[: distances.EXACT]),
        "2-Wasserstein distance to as many samples of the target, exact between the samples (at most 2,000)",
        "About 0.2 s for 1,000 samples.",
    ),
    "sliced": (
        distances.sliced_w2,
        "sliced 2-Wasserstein distance to as many samples of the target, 512 directions with control variates",
        "About 0.05 s for 1,000 samples in the plane.",
    ),
    "energy": (
        distances.energy_distance,
        "energy distance to as many samples of the target, unbiased: may be below 0",
        "About 0.05 s for 1,000 samples.",
    ),
    "mmd": (
        distances.mmd,
        "squared MMD to as many samples of the target, normal kernel, median bandwidth, unbiased: may be below 0",
        "About 0.1 s for 1,000 samples.",
    ),
}


def sampling_probes(routine: Any) -> dict[str, Probe]:
    """Probes of a sampling: how far its samples are from where they are bound for. {} when that is not known."""
    aim = routine.field.source if routine.reverse else routine.field.target
    if aim is None:
        return {}

    def samples(routine: Any, state: Any) -> list[Tensor]:
        return list(state.x)

    def wanted(routine: Any, like: Tensor) -> Tensor:
        size = routine.path.spread(routine.ends(like)[1]) if routine.reverse else 1.0
        return size * aim.sample(REFERENCE, len(like), like)

    return _distances(samples, wanted, aim)


def flow_probes(routine: Any) -> dict[str, Probe]:
    """Probes of a flow's training: of 1,000 samples taken through the flow learned so far, from fixed starts."""

    flows = _remembered(_flows)

    def samples(routine: Any, state: Any) -> list[Tensor]:
        return [paths.points[-1] for paths in flows(routine, state)]

    def straight(routine: Any, state: Any) -> dict[str, Estimate]:
        measures = {"straightness": straightness, "transport_cost": transport_cost}
        return {name: _stacked([of(paths) for paths in flows(routine, state)]) for name, of in measures.items()}

    def wanted(routine: Any, like: Tensor) -> Tensor:
        return routine.target.sample(REFERENCE, len(like), like)

    found = _distances(samples, wanted, routine.target)
    words = "mean over samples of ∫ |(x1 - x0) - v|² dt along their paths: 0 when these are straight, at even speed"
    found["straightness"] = _probe(
        "straightness",
        {"straightness": words, "transport_cost": "mean over samples of |x1 - x0|²"},
        straight,
        f"Of {SAMPLES:,} paths, {STEPS} Runge–Kutta steps each.",
    )
    if isinstance(routine.source, Mixture) and bool((routine.source.exact.spectrum > 0).all()):
        words = f"log-likelihood of {LEAVES} samples of the target, mean per sample"
        found["likelihood"] = _probe(
            "likelihood", {"log_likelihood": words}, _likelihood, "By the change of variables.", "nat"
        )
    return found


def reference_probe(start: Any, *, tolerance: float | None = None) -> Probe:
    """How far a sampling's samples are from where the flow itself takes them from the state `start`, its first one.

    `wb.Session(routine, probes=[reference_probe(routine.init(key))])`. Every step solves the flow anew, finely.
    """

    def measure(routine: Any, state: Any) -> dict[str, Estimate]:
        return {"error": distance_to_reference(routine, start, state, tolerance=tolerance)}

    words = "distance from where the flow itself takes the same starts, mean over samples"
    return _probe("error", {"error": words}, measure, "Against a fine Runge–Kutta solution from the same starts.")


def _flows(routine: Any, state: Any) -> list:
    """The paths of fixed starts through what each run has learned."""
    starts = routine.source.sample(REFERENCE.stream("starts"), SAMPLES, state.x)
    starts = starts * routine.path.spread(torch.full_like(starts[0, 0], routine.path.ends[0]))
    return [follow(routine.field(state, run), starts, steps=STEPS) for run in range(routine.runs(state))]


def _remembered(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """What was computed of the last state, as long as it is asked for by one probe after another."""
    last: list[tuple] = [(None, None)]

    def of(routine: Any, state: Any) -> Any:
        known, found = last[0]
        if known is not state:
            found = compute(routine, state)
            last[0] = state, found
        return found

    return of


def _likelihood(routine: Any, state: Any) -> dict[str, Estimate]:
    data = routine.target.sample(REFERENCE.stream("held"), LEAVES, state.x)
    fields = [routine.field(state, run) for run in range(routine.runs(state))]
    values = [mean_of(log_likelihood(field, data, steps=STEPS).value, "mean over samples") for field in fields]
    return {"log_likelihood": _stacked(values)}


def _distances(samples: Callable, wanted: Callable, aim: Any) -> dict[str, Probe]:
    """The probes that compare samples, one set a run, with samples of the density they are bound for."""

    def compared(name: str, measure: Callable[[Tensor, Tensor], Estimate]) -> Callable:
        def of(routine: Any, state: Any) -> dict[str, Estimate]:
            sets = samples(routine, state)
            return {name: _stacked([measure(x, wanted(routine, x)) for x in sets])}

        return of

    found = {
        name: _probe(name, {name: words}, compared(name, measure), cost, exact=name == "w2")
        for name, (measure, words, cost) in DISTANCES.items()
    }
    if isinstance(aim, Mixture) and len(aim.weights) <= MODES and bool((aim.exact.spectrum > 0).all()):

        def weights(routine: Any, state: Any) -> dict[str, Estimate]:
            return {"mode_weight": _stacked([distances.mode_weights(x, aim) for x in samples(routine, state)])}

        words = "share of the samples that a component of the target accounts for"
        cost = "Compare with the components' own weights."
        found["modes"] = _probe("modes", {"mode_weight": words}, weights, cost, dims=("mode",))
    return found


def _stacked(estimates: list[Estimate]) -> Estimate:
    """The estimates of several runs as one."""
    errors = [one.standard_error for one in estimates]
    joined = None if any(error is None for error in errors) else torch.stack(errors)  # type: ignore[arg-type]
    return Estimate(torch.stack([one.value for one in estimates]), joined, estimates[0].estimator)


def _probe(
    name: str,
    words: dict[str, str],
    measure: Callable[[Any, Any], dict[str, Estimate]],
    doc: str,
    unit: str = "1",
    *,
    dims: tuple[str, ...] = (),
    exact: bool = False,
) -> Probe:
    """A probe of estimates: each variable, and its standard error as `name_error` unless it is exact."""
    labels = {label: Variable(dims, text, unit) for label, text in words.items()}
    if not exact:
        labels |= {f"{label}_error": Variable(dims, f"standard error of {label}", unit) for label in words}

    def plain(routine: Any, state: Any) -> dict[str, Tensor]:
        found = {}
        for label, estimate in measure(routine, state).items():
            found[label] = estimate.value.to(routine.dtype)
            if not exact:
                error = (
                    torch.full_like(estimate.value, torch.nan)
                    if estimate.standard_error is None
                    else estimate.standard_error
                )
                found[f"{label}_error"] = error.to(routine.dtype)
        return found

    return Probe(name, labels, plain, doc)

"""How good, how straight, how far: measures of flows and of samples, as plain functions over tensors.

Every one gives an `Estimate`: its value, its standard error (None when it is exact), and the estimator in words.
"""

from workbench.flows.measures.distances import energy_distance, mmd, mode_weights, sliced_w2, w2
from workbench.flows.measures.estimate import Estimate
from workbench.flows.measures.likelihood import log_likelihood
from workbench.flows.measures.paths import (
    Paths,
    crossing,
    curvature,
    follow,
    recorded,
    straightness,
    transport_cost,
    turning,
)
from workbench.flows.measures.probes import flow_probes, reference_probe, sampling_probes
from workbench.flows.measures.reference import Reference, distance_to_reference, local_error, reference, solve_to

__all__ = [
    "Estimate",
    "Paths",
    "Reference",
    "crossing",
    "curvature",
    "distance_to_reference",
    "energy_distance",
    "flow_probes",
    "follow",
    "local_error",
    "log_likelihood",
    "mmd",
    "mode_weights",
    "recorded",
    "reference",
    "reference_probe",
    "sampling_probes",
    "sliced_w2",
    "solve_to",
    "straightness",
    "transport_cost",
    "turning",
    "w2",
]

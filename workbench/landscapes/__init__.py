"""Loss landscapes: slices through them, their curvature, paths between solutions, and the geometry of the way there.

Plain functions of a `Landscape` (a loss over all parameters) and of points in it; pictures come back as records.
"""

from workbench.landscapes.alignment import activation_matching, straight_through_matching, weight_matching
from workbench.landscapes.averages import ema, fisher, fisher_average, power_ema, swa
from workbench.landscapes.coherence import coherence, gradient_statistics, m_coherence, noise_scale
from workbench.landscapes.connections import Path, along, barrier, bezier, line, polygon
from workbench.landscapes.detours import alignment, detours, state_changes
from workbench.landscapes.dropout import drop, dropout_path, dropout_stability
from workbench.landscapes.evaluation import losses
from workbench.landscapes.flow_sharpness import flow_sharpness, flow_solution
from workbench.landscapes.geometry import (
    MEASURES,
    directional_similarity,
    distance_from_start,
    effective_dimension,
    geometry,
    menger_curvature,
    path_length,
    step_autocorrelation,
    straightness,
    turning_angle,
    turning_per_length,
)
from workbench.landscapes.gradients import gram, per_example_gradients
from workbench.landscapes.lanczos import Eigenpairs, top_eigenpairs, tridiagonal
from workbench.landscapes.landscape import FunctionLandscape, Landscape, ModelLandscape, landscape, of_training
from workbench.landscapes.latent import WEIGHT_METRICS, segment, weight_metrics
from workbench.landscapes.live_geometry import Geometry
from workbench.landscapes.operators import Operator, dense, gauss_newton, hessian, preconditioned, second_moment
from workbench.landscapes.planes import (
    Plane,
    eigen_plane,
    fit_span,
    line_through,
    pca_plane,
    plane_through,
    random_plane,
)
from workbench.landscapes.progress import Watch, within
from workbench.landscapes.sharpness import batch_sharpness, edge, sharpness
from workbench.landscapes.slices import coarse_to_fine, on_plane, slice1d, slice2d
from workbench.landscapes.spectra import spectral_density
from workbench.landscapes.subspaces import layer_alignment, overlap, random_share, share
from workbench.landscapes.traces import hutch_plus_plus, hutchinson
from workbench.landscapes.units import permute, unit_spec

__all__ = [
    "Eigenpairs",
    "FunctionLandscape",
    "Geometry",
    "Landscape",
    "MEASURES",
    "ModelLandscape",
    "Operator",
    "Path",
    "Plane",
    "Watch",
    "WEIGHT_METRICS",
    "activation_matching",
    "alignment",
    "along",
    "barrier",
    "batch_sharpness",
    "bezier",
    "coarse_to_fine",
    "coherence",
    "dense",
    "detours",
    "directional_similarity",
    "distance_from_start",
    "drop",
    "dropout_path",
    "dropout_stability",
    "edge",
    "effective_dimension",
    "eigen_plane",
    "ema",
    "fisher",
    "fisher_average",
    "fit_span",
    "flow_sharpness",
    "flow_solution",
    "gauss_newton",
    "geometry",
    "gradient_statistics",
    "gram",
    "hessian",
    "hutch_plus_plus",
    "hutchinson",
    "landscape",
    "layer_alignment",
    "line",
    "line_through",
    "losses",
    "m_coherence",
    "menger_curvature",
    "noise_scale",
    "of_training",
    "on_plane",
    "overlap",
    "path_length",
    "pca_plane",
    "per_example_gradients",
    "permute",
    "plane_through",
    "polygon",
    "power_ema",
    "preconditioned",
    "random_plane",
    "random_share",
    "second_moment",
    "segment",
    "share",
    "sharpness",
    "slice1d",
    "slice2d",
    "spectral_density",
    "state_changes",
    "step_autocorrelation",
    "straight_through_matching",
    "straightness",
    "swa",
    "top_eigenpairs",
    "tridiagonal",
    "turning_angle",
    "turning_per_length",
    "unit_spec",
    "weight_matching",
    "weight_metrics",
    "within",
]

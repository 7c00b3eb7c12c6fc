"""Rectified diffusion: a diffusion model retrained, in its own form, on pairs of its own flow."""

from workbench.flows.interpolants import VariancePreserving
from workbench.flows.reflow import Reflow


class RectifiedDiffusion(Reflow):
    """Pairs (noise, sample) of a diffusion model's own flow, to retrain it on with its own path and prediction.

    E |ε̂(alpha x1 + sigma x0, t) - x0|² over such pairs ("noise-prediction" on "variance-preserving") makes ε̂ the same
    all along a path. One step of DDIM, x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) ε̂, is then
    exact between any two times, while the path stays as curved as alpha and sigma make it. Pairs are those of "reflow";
    what differs is what the net predicts, where, and which flow they are of when none is given.

    Args:
        field: the model, such as `wb.trained_field(session)`; the exact field on the variance-preserving path when None
            (of 64 samples of a target that is no mixture).
        solver: that takes noise to samples, a name or a `Solver` without noise.

    Source: Wang et al. 2024, arXiv:2410.07303; the exact step derived here from x = alpha x1 + sigma ε.
    """

    name = "rectified-diffusion"
    title = "Rectified diffusion"
    source = "Wang et al. 2024, arXiv:2410.07303"
    ledger = "rectified-diffusion"
    evidence = "tests/flows/test_rectified.py::test_one_step_between_any_two_times_is_exact"
    path = VariancePreserving

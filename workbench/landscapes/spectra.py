"""The density of all eigenvalues of an operator, from a few Lanczos runs: stochastic Lanczos quadrature."""

import math

import numpy as np
import torch
import xarray as xr

from workbench.landscapes.lanczos import tridiagonal
from workbench.landscapes.operators import Operator
from workbench.landscapes.progress import Watch, within
from workbench.routine import Key

WIDTH = 0.01
"""Standard deviation that a node is broadened by, as a share of the spectrum's range."""


def spectral_density(
    operator: Operator,
    *,
    probes: int = 8,
    steps: int = 64,
    points: int = 400,
    width: float | None = None,
    key: Key | None = None,
    watch: Watch | None = None,
) -> xr.Dataset:
    """φ(t) = (1/n) Σ N(t; λᵢ, width²) as a record: `density (eigenvalue)` and its standard error over the probes.

    From each random direction z, Lanczos gives nodes θ and weights w (squared first components of the eigenvectors of
    the tridiagonal matrix) with zᵀ f(A) z ≈ Σ w f(θ), exact for polynomials up to degree 2 steps - 1; their mean over
    directions is tr f(A) / n. `node`, `weight (probe, number)` are kept: `weight` sums to 1 for each probe.

    Source: Ghorbani et al. 2019, arXiv:1901.10159, section 2; Lin et al. 2016, SIAM Review 58(1).

    Args:
        probes: random directions. steps: Lanczos steps of each.
        width: standard deviation by which values are broadened; a hundredth of the range when None.
    """
    key, tell = key or Key(0).stream("spectrum"), within(watch)
    found = []
    for i in range(probes):

        def own(vectors: torch.Tensor, i: int = i, began: int = operator.products) -> torch.Tensor:
            tell((i + min(1.0, (operator.products - began) / steps)) / probes)
            return operator(vectors)

        start = key.at(i).normal((operator.dim,), like=operator.like)
        alpha, beta = tridiagonal(Operator(own, operator.like, operator.title), start, steps)
        found.append(_rule(alpha, beta, steps))
    nodes, weights = (np.stack(part) for part in zip(*found, strict=True))
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    reach = (high - low) or max(abs(high), 1e-12)
    sigma = WIDTH * reach if width is None else width
    grid = np.linspace(low - 4 * sigma, high + 4 * sigma, points)
    bumps = np.exp(-0.5 * ((grid[:, None, None] - nodes) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    each = np.nansum(bumps * weights, 2)
    error = each.std(1, ddof=1) / math.sqrt(probes) if probes > 1 else np.full(points, np.nan)
    words = {"long_name": "share of the eigenvalues per unit", "units": "1"}
    variables = {
        "density": (("eigenvalue",), each.mean(1), words),
        "density_error": (("eigenvalue",), error, {"long_name": "standard error over the probes", "units": "1"}),
        "node": (("probe", "number"), nodes, {"long_name": "node of the quadrature", "units": "1"}),
        "weight": (("probe", "number"), weights, {"long_name": "weight of the node", "units": "1"}),
    }
    attrs = {"operator": operator.title, "width": sigma, "probes": probes, "steps": steps, "dim": operator.dim}
    return xr.Dataset(variables, {"eigenvalue": ("eigenvalue", grid, {"units": "1"})}, attrs)


def _rule(alpha: torch.Tensor, beta: torch.Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(nodes, weights) of a tridiagonal matrix, padded to `steps` with NaN and 0."""
    matrix = torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)
    values, vectors = torch.linalg.eigh(matrix)
    nodes, weights = np.full(steps, np.nan), np.zeros(steps)
    nodes[: len(values)], weights[: len(values)] = values.numpy(), vectors[0].square().numpy()
    return nodes, weights

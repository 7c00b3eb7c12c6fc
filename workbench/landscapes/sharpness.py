"""Sharpness: the largest curvature of a loss, on all data and on minibatches, and the edge it is held against."""

from typing import Any

import torch

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.landscapes.lanczos import Eigenpairs, top_eigenpairs
from workbench.landscapes.landscape import Landscape, ModelLandscape
from workbench.landscapes.operators import hessian
from workbench.routine import Key


def sharpness(landscape: Landscape, x: Any = None, *, start: Any = None, tolerance: float = 1e-3) -> Eigenpairs:
    """λ₁ of the Hessian and its vector; `start`, the vector at a point nearby, makes it quick."""
    return top_eigenpairs(hessian(landscape, x), 1, start=start, tolerance=tolerance)


def batch_sharpness(
    landscape: ModelLandscape, x: Any = None, *, batch_size: int = 32, batches: int = 32, key: Key | None = None
) -> Estimate:
    """E[gᵀ H g / |g|²] over minibatches, g and H the gradient and the Hessian of the same minibatch.

    What SGD's own step sees of curvature: it is this, and not λ₁ of the whole loss, that hovers at 2/lr for small
    batches. Source: Andreyev & Beneventano 2024, arXiv:2412.20553, definition 3: the mean of the quotients, not the
    quotient of the means.
    """
    key = key or Key(0).stream("batches")
    point, values = landscape.point(x), []
    for i in range(batches):
        part = landscape.on(key.at(i).permutation(landscape.samples)[:batch_size])
        _, g = part.gradient(point.unsqueeze(0))
        values.append((g[0] @ hessian(part, point)(g[0])) / (g[0] @ g[0]))
    return mean_of(torch.stack(values), f"mean over {batches} minibatches of {batch_size}")


def edge(lr: Any, *, momentum: Any = 0.0, beta1: Any = None) -> Any:
    """The curvature above which a step along that direction grows instead of shrinking, on a quadratic.

    2 (1 + momentum) / lr for gradient descent (heavy ball); with `beta1`, that of Adam's preconditioned Hessian:
    (2 + 2 beta1) / ((1 - beta1) lr), 38 / lr at beta1 = 0.9. Source: Cohen et al. 2021, arXiv:2103.00065, appendix B;
    Cohen et al. 2022, arXiv:2207.14484, section 2.
    """
    if beta1 is not None:
        return (2 + 2 * beta1) / ((1 - beta1) * lr)
    return 2 * (1 + momentum) / lr

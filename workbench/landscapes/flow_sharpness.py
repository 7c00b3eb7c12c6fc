"""Sharpness of gradient-flow solutions in scalar nets: how sharp the minimum is that flow from here would end in.

Descent at the edge of stability goes up and down in the loss, and down alone in this quantity.
"""

from typing import Any

import torch
from torch import Tensor

from workbench.routine import Probe, Variable

STEPS = 32
"""Newton steps: each weight bends the function once, and between bends convergence is quadratic."""


def flow_solution(w: Tensor) -> Tensor:
    """Where gradient flow on L(w) = ½ (w₁ ⋯ wₙ - 1)² ends: weights (n, ...) to weights (n, ...) of product 1.

    Flow moves every wᵢ² at one rate, so that dᵢ = wᵢ² - min w² is conserved; the end has squares dᵢ + u, where u > 0 is
    the one root of Σᵢ log(dᵢ + u) = 0. In t = log u that sum is increasing and convex, with a root at t ≤ 0: Newton's
    method from t = 0 falls to it without overshooting. Signs are kept, but that of the smallest weight changes when the
    product starts at or below 0: the flow then passes through its 0. Not a number where two or more weights are the
    smallest together and the product is not positive: that flow ends in a saddle.

    Raises:
        ValueError: when there are no weights.

    Source: Kreisler, Nacson, Soudry & Carmon 2023, arXiv:2305.13064, who define the quantity; the closed form is
    derived here from the conservation law, and compared with integrated flow.
    """
    if w.ndim == 0 or not w.shape[0] or not w.is_floating_point():
        raise ValueError(f"expected weights (n, ...) with the layers first, got shape {tuple(w.shape)} of {w.dtype}")
    smallest = w.abs().argmin(0, keepdim=True)
    d = w.square() - w.gather(0, smallest).square()
    t = torch.zeros_like(d[0])
    for _ in range(STEPS):
        squares = d + t.exp()
        t = t - squares.log().sum(0) / (t.exp() / squares).sum(0)
    size = (d + t.exp()).sqrt()
    positive = w.sign().prod(0, keepdim=True) > 0
    rest = torch.where(w < 0, -1.0, 1.0).scatter(0, smallest, 1.0).to(w)
    signs = rest.scatter(0, smallest, rest.prod(0, keepdim=True))
    alone = (d == 0).sum(0, keepdim=True) == 1
    return torch.where(positive | alone, signs * size, torch.nan)


def flow_sharpness(w: Tensor) -> Tensor:
    """Σᵢ 1/wᵢ² at `flow_solution(w)`, the largest curvature of L there: weights (n, ...) to (...), in curvature units.

    At a minimum the Hessian is ∇π ∇πᵀ of the product π = 1, with one eigenvalue that is not 0. Smallest at balanced
    weights, where it is n. Descent with step size η can come to rest where it is at most 2/η.

    Source: Kreisler, Nacson, Soudry & Carmon 2023, arXiv:2305.13064 ("GFS sharpness").
    """
    return flow_solution(w).square().reciprocal().sum(0)


def _measure(routine: Any, state: Any) -> dict[str, Tensor]:
    name = getattr(getattr(routine, "objective", None), "name", None)
    if name != "scalar-net":
        raise ValueError(f"expected a descent on 'scalar-net', whose flow has a closed form, got {name!r}")
    return {"flow_sharpness": flow_sharpness(state.x)}


FLOW_SHARPNESS = Probe(
    "flow_sharpness",
    {"flow_sharpness": Variable((), "sharpness of the minimum that gradient flow from here ends in")},
    _measure,
    "Largest curvature at the end of gradient flow; for descent on 'scalar-net'.",
)

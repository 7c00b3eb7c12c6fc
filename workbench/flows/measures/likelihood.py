"""Likelihood of a flow by the instantaneous change of variables: log p_1(x_1) = log p_0(x_0) - ∫ div v(x_t, t) dt."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate
from workbench.routine import Key, unknown

FEW = 16
"""Up to so many coordinates the trace is exact unless asked otherwise."""


def log_likelihood(
    field: Any,
    x: Tensor,
    *,
    steps: int = 100,
    trace: str | None = None,
    draws: int = 16,
    key: Key | None = None,
    start: Callable[[Tensor], Tensor] | None = None,
) -> Estimate:
    """log-density, in nats, of data x (n, dim) under the flow of a field: backwards to the source, adding up div v.

    Equal steps of the classical Runge–Kutta method, in the dtype of x.

    Args:
        steps: from the last time to the first.
        trace: "exact" (dim derivatives an evaluation), "hutchinson" (E εᵀ (∂v/∂x) ε over fixed signs ε), or None: exact
            up to 16 coordinates.
        draws: how many ε; the standard error comes from their differences.
        key: of the ε.
        start: log-density where the flow begins, of points (n, dim). None: that of the field's own marginal at the
            first time when it knows it, else of the source times the spread it has there.

    Returns:
        One value for each x; the standard error is that of the trace alone, None when it is exact.

    Source: Chen et al. 2018, arXiv:1806.07366, theorem 1; Grathwohl et al. 2019, arXiv:1810.01367, equation 8; Song et
    al. 2021, arXiv:2011.13456, equation 39.
    """
    if trace not in (None, "exact", "hutchinson"):
        raise unknown("a trace", trace, ("exact", "hutchinson"))
    exact = trace == "exact" or (trace is None and field.dim <= FEW)
    signs = None if exact else _signs(key or Key(0).stream("trace"), (draws, *x.shape), x)
    first, last = field.interpolant.ends if field.interpolant is not None else (0.0, 1.0)
    times = torch.linspace(last, first, steps + 1, dtype=x.dtype, device=x.device)
    gained = torch.zeros(1 if exact else draws, len(x), dtype=x.dtype, device=x.device)
    for t, end in itertools.pairwise(times):
        x, change = _step(field, x, t, end, signs)
        gained = gained + change
    values = (start or _start(field, times[-1]))(x) + gained
    if exact:
        return Estimate(values[0], None, f"exact trace, {steps} Runge–Kutta steps")
    error = values.std(0) / draws**0.5
    return Estimate(values.mean(0), error, f"Hutchinson's trace, {draws} draws of signs, {steps} Runge–Kutta steps")


def _signs(key: Key, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """±1, equally likely."""
    return torch.where(key.uniform(shape, like=like) < 0.5, -1.0, 1.0).to(like)


def _start(field: Any, t: Tensor) -> Callable[[Tensor], Tensor]:
    """The log-density at the first time."""
    if hasattr(field, "log_density"):
        return lambda x: field.log_density(x, t)
    spread = torch.ones_like(t) if field.interpolant is None else field.interpolant.spread(t)
    return lambda x: field.source.log_density(x / spread) - field.dim * torch.log(spread)


def _step(field: Any, x: Tensor, t: Tensor, end: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor]:
    """A step of the classical method for x and for ∫ div v dt, whose sign is that of going from t to `end`."""
    h, middle = end - t, (t + end) / 2
    k1, d1 = _slope(field, x, t, signs)
    k2, d2 = _slope(field, x + h / 2 * k1, middle, signs)
    k3, d3 = _slope(field, x + h / 2 * k2, middle, signs)
    k4, d4 = _slope(field, x + h * k3, end, signs)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


def _slope(field: Any, x: Tensor, t: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor]:
    """(v (n, dim), its divergence (1, n), or one estimate for each draw (draws, n))."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        velocity = field(leaf, t).velocity

        def row(weights: Tensor) -> Tensor:
            return torch.autograd.grad(velocity, leaf, weights, retain_graph=True)[0]

        if signs is None:
            units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            divergence = sum(row(unit.expand_as(x)) @ unit for unit in units)
            return velocity.detach(), divergence.unsqueeze(0)
        return velocity.detach(), torch.stack([(row(sign) * sign).sum(-1) for sign in signs])

"""Probes of a watched loop: functions of a landscape and a point (1, parameters), run without touching the loop."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.landscapes.landscape import Landscape
from workbench.routine import Key

Probe = Callable[[Landscape, Tensor], Mapping[str, Any]]


@contextlib.contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Work that leaves nothing behind: the global generators (torch, NumPy, random) stand afterwards as before.

    Inside, gradients are on and autocast is off.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the loop's own may draw from it
    devices = [] if device.type in ("cpu", "meta") else [device]
    kind = device.type if devices else "cuda"
    try:
        with (
            torch.random.fork_rng(devices, device_type=kind),
            torch.enable_grad(),
            torch.autocast(device.type if devices else "cpu", enabled=False),
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def data_loss(landscape: Landscape, x: Tensor) -> dict[str, Any]:
    """L(x), over the samples that the landscape has."""
    with torch.no_grad():
        return {"data_loss": landscape(x)[0]}


def sharpness(landscape: Landscape, x: Tensor, *, most: int = 30, tolerance: float = 1e-3) -> dict[str, float]:
    """λ₁, the largest eigenvalue of ∇²L(x), by Lanczos with every vector orthogonalised against all before.

    With β the norm of what is left after the last product and s the last entry of the top Ritz vector, some eigenvalue
    is within `sharpness_error` = β|s| of `sharpness` (up to rounding); it ends when that is at most `tolerance` times
    the value, or after `most` products.

    Source: Lanczos 1950; the bound: Parlett, The Symmetric Eigenvalue Problem, 1998, section 13.2.
    """
    product = _hessian(landscape, x)
    v = Key(0).normal((x.shape[1],), like=x)
    basis, table = (v / v.norm()).unsqueeze(0), np.zeros((most + 1, most + 1))
    value = error = float("nan")
    for k in range(min(most, x.shape[1])):
        w = product(basis[k])
        table[k, k] = float(w @ basis[k])
        for _ in range(2):
            w = w - (basis @ w) @ basis
        beta = float(w.norm())
        if not np.isfinite(table[k, k] + beta):
            return {"sharpness": float("nan"), "sharpness_error": float("nan")}
        values, vectors = np.linalg.eigh(table[: k + 1, : k + 1])
        value, error = float(values[-1]), beta * abs(float(vectors[-1, -1]))
        if error <= tolerance * abs(value) or beta == 0:
            break
        table[k, k + 1] = table[k + 1, k] = beta
        basis = torch.cat([basis, (w / beta).unsqueeze(0)])
    return {"sharpness": value, "sharpness_error": error}


def trace(landscape: Landscape, x: Tensor, *, draws: int = 10) -> dict[str, float]:
    """tr ∇²L(x) ≈ mean of vᵀ∇²L v over Rademacher v, and its standard error (Hutchinson 1990).

    The draws are the same at every step, so that a change of the trace is not hidden under their noise.
    """
    product, key = _hessian(landscape, x), Key(0)
    signs = [key.stream(f"draw {i}").normal((x.shape[1],), like=x).sign() for i in range(draws)]
    found = torch.stack([product(v) @ v for v in signs])
    return {"trace": float(found.mean()), "trace_error": float(found.std() / draws**0.5)}


def _hessian(landscape: Landscape, x: Tensor) -> Callable[[Tensor], Tensor]:
    """v -> ∇²L(x) v, both (parameters,)."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(landscape(x).sum(), x, create_graph=True)
    if not slope.requires_grad:  # L is linear
        return torch.zeros_like
    return lambda v: torch.autograd.grad(slope, x, v.unsqueeze(0), retain_graph=True)[0][0]


PROBES: dict[str, Probe] = {"loss": data_loss, "sharpness": sharpness, "trace": trace}
"""Probes by name; add your own."""

WORDS = {
    "data_loss": "loss over the samples given",
    "sharpness": "largest eigenvalue of the Hessian",
    "sharpness_error": "bound on the error of the sharpness",
    "trace": "trace of the Hessian",
    "trace_error": "standard error of the trace",
}

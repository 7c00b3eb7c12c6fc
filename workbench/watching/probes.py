"""Probes of a watched loop: functions of a landscape and a point (1, parameters), run without touching the loop."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.landscapes.lanczos import top_eigenpairs
from workbench.landscapes.landscape import Landscape
from workbench.landscapes.operators import hessian
from workbench.landscapes.traces import hutchinson

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


def sharpness(landscape: Landscape, x: Tensor, *, most: int = 60, tolerance: float = 1e-4) -> dict[str, float]:
    """λ₁, the largest eigenvalue of ∇²L(x), and `sharpness_error`, within which some eigenvalue of it is."""
    found = top_eigenpairs(hessian(landscape, x[0]), 1, tolerance=tolerance, most=most)
    return {"sharpness": float(found.values[0]), "sharpness_error": float(found.residuals[0])}


def trace(landscape: Landscape, x: Tensor, *, draws: int = 10) -> dict[str, float]:
    """tr ∇²L(x) by Hutchinson's estimator, and its standard error; the draws are the same at every step."""
    found = hutchinson(hessian(landscape, x[0]), draws)
    return {"trace": float(found.value), "trace_error": float(found.standard_error or 0.0)}


PROBES: dict[str, Probe] = {"loss": data_loss, "sharpness": sharpness, "trace": trace}
"""Probes by name; add your own."""

WORDS = {
    "data_loss": "loss over the samples given",
    "sharpness": "largest eigenvalue of the Hessian",
    "sharpness_error": "bound on the error of the sharpness",
    "trace": "trace of the Hessian",
    "trace_error": "standard error of the trace",
}

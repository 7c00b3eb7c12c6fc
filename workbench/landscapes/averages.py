"""Averages of points: of the last ones of a training, with any memory chosen afterwards, or weighted by information."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.flows.measures.estimate import Estimate
from workbench.landscapes.landscape import Landscape, ModelLandscape
from workbench.landscapes.progress import Watch, within

CHUNK = 2**24
"""Numbers that the gradients of single samples may take at once."""


def swa(points: Tensor, weights: Tensor | Sequence[float] | None = None) -> Tensor:
    """Σ_k w_k x_k / Σ_k w_k: the average of checkpoints, all alike when no weights are given.

    Args:
        points: (checkpoints, ...): (checkpoints, parameters), or with runs between.
        weights: one for each checkpoint, at least 0.

    Returns:
        The average, shaped like one checkpoint.

    Source: Izmailov et al. 2018, arXiv:1803.05407. Batch-norm means are no part of a point: measure them anew.
    """
    return torch.tensordot(_weights(points, weights), points, 1)


def ema(points: Tensor, length: float, steps: Sequence[int] | None = None) -> Tensor:
    """The exponential moving average of a training, of a memory chosen afterwards, from its stored checkpoints.

    m ← β m + (1 - β) x_k each step, from m = x_0, where β = 1 - 1/length. Exact when every step is stored. Otherwise
    a checkpoint stands for all steps since the one before: at s_j, m ← β^Δ m + (1 - β^Δ) x_j with Δ = s_j - s_{j-1}.

    Args:
        points: (checkpoints, ...), in the order of their steps.
        length: memory in steps, at least 1: the mean age of what is averaged, but for the start, is length - 1.
        steps: the step of each checkpoint, rising; 0, 1, 2, … when not given.

    Returns:
        The average after the last step, shaped like one checkpoint.
    """
    if not length >= 1:
        raise ValueError(f"expected length to be a number of steps, at least 1, got {length!r}")
    s = _steps(points, steps)
    kept = torch.pow(1 - 1 / length, s[-1] - s)  # what the start weighs, had it been at each checkpoint
    return swa(points, torch.cat([kept[:1], kept.diff()]))


def power_ema(points: Tensor, width: float, steps: Sequence[int] | None = None) -> Tensor:
    """The power-function moving average of a training: the step t of T weighs as t^γ, from its stored checkpoints.

    A memory that grows with the training: width is its standard deviation as a share of T, and γ the number that solves
    width² = (γ + 1) / ((γ + 2)² (γ + 3)), the variance of the density (γ + 1) τ^γ on [0, 1]. Checkpoint j stands for
    all steps since the one before: its weight is (s_j/T)^(γ+1) - (s_{j-1}/T)^(γ+1). With every step stored that is the
    running m ← β_t m + (1 - β_t) x_t with β_t = (1 - 1/t)^(γ + 1), as its products telescope.

    Args:
        points: (checkpoints, ...), in the order of their steps.
        width: above 0, below 1/√12 (all steps alike: γ = 0).
        steps: the step of each checkpoint, rising from 0 or more; 0, 1, 2, … when not given. Step 0 weighs nothing.

    Returns:
        The average, shaped like one checkpoint.

    Source: Karras et al. 2024, arXiv:2312.02696, section 3.1; they reconstruct it from stored averages, here it is made
    of stored points. Width and weights are derived as said above.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"expected width to be a share of the training above 0 and below 0.2886, got {width!r}")
    s = _steps(points, steps)
    if not s[0] >= 0 or not s[-1] > 0:
        raise ValueError(f"expected steps from 0 to some step after it, got {s[0].item():g} to {s[-1].item():g}")
    power = (s / s[-1]) ** (_exponent(width) + 1)
    return swa(points, torch.cat([power[:1], power.diff()]))


def _exponent(width: float) -> float:
    """γ of a width: the variance falls from 1/12 at 0 towards 0."""
    low, high = 0.0, 2 / width
    for _ in range(200):
        middle = (low + high) / 2
        above = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if above else (low, middle)
    return low


def _steps(points: Tensor, steps: Sequence[int] | None) -> Tensor:
    s = torch.as_tensor(range(len(points)) if steps is None else steps, dtype=torch.float64)
    if s.shape != (len(points),) or not bool((s.diff() > 0).all()):
        raise ValueError(f"expected a rising step for each of {len(points)} checkpoints, got {s.tolist()}")
    return s


def _weights(points: Tensor, weights: Any) -> Tensor:
    """Weights of checkpoints that sum to 1, like the points."""
    given = [1.0] * len(points) if weights is None else weights
    w = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    if w.shape != (len(points),) or not bool((w >= 0).all()) or not 0 < w.sum() < math.inf:
        raise ValueError(f"expected a weight, 0 or more, for each of {len(points)} points, got {w.tolist()}")
    return (w / w.sum()).to(points.dtype).to(points.device)


def fisher(landscape: Landscape, x: Tensor, *, labels: str = "model", watch: Watch | None = None) -> Estimate:
    """The diagonal of the Fisher information at a point: the mean squared gradient of the log-likelihood of a label.

    "model": F_p = mean over samples of Σ_y p(y|s, x) (∂ log p(y|s, x) / ∂x_p)²: the Fisher information, in which the
    labels follow the model's own probabilities; their mean is taken exactly, nothing is drawn.
    "data": mean over samples of (∂ log p(y_s|s, x) / ∂x_p)²: the empirical Fisher, with the labels of the data. It goes
    to 0 as they are fitted; for other losses it is the mean squared gradient of one sample's loss.

    Args:
        landscape: the mean loss of a model over samples; cross-entropy for "model".
        x: one point, (parameters,).
        labels: "model" or "data".
        watch: told the share of samples done; what it raises ends the work.

    Returns:
        Value and standard error, (parameters,): that of a mean over the samples.

    Raises:
        ValueError: on other labels, or where the loss says no probabilities.

    Source: Matena & Raffel 2022, arXiv:2111.09832; on the two, Kunstner et al. 2019, arXiv:1905.12558.
    """
    if labels not in ("model", "data"):
        raise ValueError(f"expected labels to be 'model' or 'data', got {labels!r}")
    if not landscape.samples:
        raise ValueError(
            f"expected a loss that is a mean over samples, got {landscape.title}: it has no single samples"
        )
    watch = within(watch)
    squares, rows = _squares(landscape, labels)
    x, done = landscape.point(x), 0
    mean, spread = torch.zeros_like(x), torch.zeros_like(x)
    for chunk in torch.arange(landscape.samples, device=x.device).split(max(1, CHUNK // (rows * landscape.dim))):
        found, count = torch.func.vmap(squares, (None, 0))(x, chunk), len(chunk)
        apart = found.mean(0) - mean  # means and sums of squared deviations of two parts, put together
        spread += (found - found.mean(0)).square().sum(0) + apart.square() * (done * count / (done + count))
        mean += apart * (count / (done + count))
        done += count
        watch(done / landscape.samples)
    error = (spread / (done - 1) / done).sqrt() if done > 1 else None
    return Estimate(mean, error, f"mean over {done:,} samples, labels of the {labels}")


def _squares(landscape: Any, labels: str) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """(what a sample, by number, adds to the Fisher diagonal at a point; gradients that it takes)."""

    def loss(x: Tensor, row: Tensor) -> Tensor:
        return landscape.each(x[None], row[None])[0, 0]

    def logs(x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        found = landscape.outputs(x[None], landscape.inputs[row[None]])[0, 0].log_softmax(-1)
        return found, found.detach()

    def expected(x: Tensor, row: Tensor) -> Tensor:
        slopes, found = torch.func.jacrev(logs, has_aux=True)(x, row)
        return found.exp() @ slopes.square()

    if labels == "data":
        return lambda x, row: torch.func.grad(loss)(x, row).square(), 1
    if not isinstance(landscape, ModelLandscape) or landscape.loss_given not in ("cross_entropy", F.cross_entropy):
        raise ValueError(f"expected cross-entropy for labels='model', got {landscape.title}; use labels='data'")
    return expected, landscape.outputs(landscape.start[None], landscape.inputs[:1]).shape[-1]


def fisher_average(points: Tensor, fishers: Tensor, weights: Tensor | Sequence[float] | None = None) -> Tensor:
    """θ_p = Σ_i λ_i F_ip θ_ip / Σ_i λ_i F_ip: where Gaussians around the points, of precision λ_i F_i, agree best.

    It minimises Σ_i λ_i Σ_p F_ip (θ_p - θ_ip)², so it is exact for quadratic losses with diagonal Hessians F_i; with
    all F alike it is the plain average. Where no point has information, the average by λ alone. Measured on networks
    tuned from one start on digits 0 to 4 and 5 to 9: held-out accuracy on all ten 0.83 to 0.84, plain averages 0.80.

    Args:
        points: (points, parameters), of one architecture, best fine-tuned from one start.
        fishers: (points, parameters), at least 0, as `fisher(...).value` gives them.
        weights: λ, one for each point, at least 0; all alike when not given.

    Source: Matena & Raffel 2022, arXiv:2111.09832 (the formula is checked as the minimiser of that sum).
    """
    if points.ndim != 2 or fishers.shape != points.shape or not bool((fishers >= 0).all()):
        shapes = f"{tuple(points.shape)} and {tuple(fishers.shape)}"
        raise ValueError(f"expected a Fisher of 0 or more for every parameter of every point, got shapes {shapes}")
    shares = _weights(points, weights)[:, None]
    information = shares * (fishers / fishers.amax().clamp(min=torch.finfo(fishers.dtype).tiny))
    total = information.sum(0)
    plain = (shares * points).sum(0)
    return torch.where(total > 0, (information * points).sum(0) / torch.where(total > 0, total, 1), plain)

"""Losses of a network's outputs, mean per sample and one a run, and their slopes: where the chain rule starts."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(outputs (runs, batch, …), targets (batch, …) or (runs, batch, …)) -> (runs,)."""

Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""slope(outputs, targets) -> (loss (runs,), its derivative in the outputs)."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(outputs)[target], mean over the batch, per run: (runs, batch, classes), (batch,) to (runs,)."""
    if outputs.shape[0] == 1 and targets.ndim == 1:
        return F.cross_entropy(outputs.squeeze(0), targets).view(1)
    runs, batch, _ = outputs.shape
    return F.cross_entropy(outputs.transpose(1, 2), targets.expand(runs, batch), reduction="none").mean(1)


def cross_entropy_slope(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and (softmax(outputs) - one-hot target) / batch; targets are whole numbers from 0.

    With the classes before the batch, as a network makes its outputs: the softmax of 64 × 128 samples then takes 24 µs
    where it takes 590 µs with the classes last (measured).
    """
    runs, batch, _ = outputs.shape
    aims = targets.expand(runs, batch).unsqueeze(1)
    logs = outputs.transpose(1, 2).log_softmax(1)
    slope = logs.exp().scatter(1, aims, -1.0, reduce="add") / batch
    return logs.gather(1, aims).mean((1, 2)).neg(), slope.transpose(1, 2)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """(outputs - targets)², mean over the batch and its values, per run: (runs, batch, values) to (runs,)."""
    return _residuals(outputs, targets).square().flatten(1).mean(1)


def mse_slope(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and 2 (outputs - targets) over the number of values of a run."""
    rest = _residuals(outputs, targets)
    return rest.square().flatten(1).mean(1), rest * (2 / rest[0].numel())


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ |outputs - one-hot target|², mean over the batch, per run: (runs, batch, classes), (batch,) to (runs,).

    Squared error for classes, with which the edge of stability is clearest. Source: Cohen et al. 2021,
    arXiv:2103.00065, section 3.
    """
    return squared_each(outputs, targets).mean(1)


def squared_slope(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and (outputs - one-hot target) / batch."""
    rest = _from_one_hot(outputs, targets)
    return rest.square().sum(2).mean(1) / 2, rest / outputs.shape[1]


def _from_one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    classes = torch.arange(outputs.shape[2], device=targets.device)  # one_hot looks at values, which vmap forbids
    return outputs - (targets.unsqueeze(-1) == classes).to(outputs.dtype)


def _residuals(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.shape[-outputs.ndim + 1 :] != outputs.shape[1:]:
        shapes = tuple(outputs.shape[1:]), tuple(targets.shape)
        raise ValueError(f"expected outputs and targets of one shape for 'mse', got {shapes[0]} and {shapes[1]}")
    return outputs - targets


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse, "squared": squared}
SLOPES: Mapping[str, Slope] = {"cross_entropy": cross_entropy_slope, "mse": mse_slope, "squared": squared_slope}


def cross_entropy_each(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample: (runs, samples, classes), (samples,) to (runs, samples)."""
    return F.cross_entropy(outputs.transpose(1, 2), targets.expand(outputs.shape[:2]), reduction="none")


def squared_each(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ |output - one-hot target|² of each sample: (runs, samples, classes) to (runs, samples)."""
    return _from_one_hot(outputs, targets).square().sum(2) / 2


def mse_each(outputs: Tensor, targets: Tensor) -> Tensor:
    """(output - target)², mean over the values of each sample: (runs, samples, values) to (runs, samples)."""
    return _residuals(outputs, targets).square().flatten(2).mean(2)


EACH: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy_each,
    "mse": mse_each,
    "squared": squared_each,
}
"""The losses of single samples, whose means the losses are."""
OF_CLASSES = ("cross_entropy", "squared")
"""Losses whose targets are classes; those of the others are values."""


def per_run(loss: Callable[[Tensor, Tensor], Tensor], dims: int) -> Loss:
    """Somebody's loss(outputs, targets) -> one number, of every run; targets have `dims` axes, or runs before them."""

    def runs(outputs: Tensor, targets: Tensor) -> Tensor:
        shared = targets.ndim == dims
        if outputs.shape[0] == 1:
            return _one_number(loss(outputs[0], targets if shared else targets[0])).reshape(1)
        each = torch.func.vmap(lambda out, aim: _one_number(loss(out, aim)), in_dims=(0, None if shared else 0))
        return each(outputs, targets)

    return runs


def spectral_decoupling(strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss -log softmax(outputs)[target] + (strength / 2) ‖outputs‖², mean over the batch, for `wb.training`.

    The penalty is on what the net says, not on its weights. Without it the gradient of a sample dies out once one
    feature tells its class, and the others are never learned ("gradient starvation"). With two classes it settles at
    outputs of sum 0, where it is that of the paper, (λ/2) ŷ² on ŷ = outputs[1] - outputs[0], with λ = strength / 2.

    Args:
        strength: from 0 (cross-entropy alone).

    Raises:
        ValueError: when it is negative or not finite.

    Source: Pezeshki et al. 2021, arXiv:2011.09468. Implementations that add λ ŷ² without the half are twice as strong.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"expected strength to be a number from 0, got {strength}")

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + strength / 2 * outputs.square().sum(-1).mean()

    loss.__name__ = f"cross-entropy with spectral decoupling {strength:g}"
    return loss


def _one_number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected loss(outputs, targets) to return one number (a tensor), got {shape}")
    return value.reshape(())

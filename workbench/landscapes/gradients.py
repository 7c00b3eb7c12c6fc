"""Gradients of single samples, without holding more than a chunk of them.

In a multilayer perceptron the gradient of a sample is one outer product δ hᵀ a layer, so that norms and inner products
come from the factors: (δ hᵀ) · (δ' h'ᵀ) = (δ·δ') (h·h'). Other models form the gradients, a chunk at a time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.landscapes.landscape import Landscape, ModelLandscape
from workbench.landscapes.progress import Watch, within
from workbench.problems.networks import ACTIVATIONS, MLP
from workbench.routine import Key

CHUNK_NUMBERS = 2**22
"""Numbers in the gradients formed at once: 32 MB in float64."""


def per_example_gradients(landscape: Landscape, x: Tensor, rows: Any = None) -> Tensor:
    """g_i = ∇ℓ_i(x) of each sample, or of samples number `rows`: (parameters,) to (samples, parameters).

    Raises:
        ValueError: of a loss that is no mean over samples.
    """
    rows = samples_of(landscape, rows)
    return torch.cat(list(_formed(landscape, x, rows)))


def gram(landscape: Landscape, x: Tensor, rows: Any = None) -> Tensor:
    """g_i · g_j, all inner products of the samples' gradients: (parameters,) to (samples, samples)."""
    rows = samples_of(landscape, rows)
    if _layered(landscape):
        total = x.new_zeros(len(rows), len(rows))
        for h, delta in _factors(landscape, x, rows):
            total += (delta @ delta.mT) * (h @ h.mT + 1)
        return total
    parts = rows.split(_chunk(landscape))
    lines = []
    for part in parts:
        (g,) = _formed(landscape, x, part)
        lines.append(torch.cat([g @ other.mT for other in _formed(landscape, x, rows)], 1))
    return torch.cat(lines)


def alignment(landscape: Landscape, x: Tensor, rows: Any = None) -> Tensor:
    """cos(g_i, g_j) of the samples' gradients, from -1 to 1: (parameters,) to (samples, samples).

    Not a number where a sample has no gradient.
    """
    products = gram(landscape, x, rows)
    norms = products.diagonal().sqrt()
    return products / (norms.unsqueeze(0) * norms.unsqueeze(1))


class Moments(NamedTuple):
    """Of n samples' gradients at one point: `squares` ‖g_i‖² (n,), `along` g_i · ḡ (n,), `mean` ḡ (parameters,)."""

    squares: Tensor
    along: Tensor
    mean: Tensor

    @property
    def norm(self) -> Tensor:
        """‖ḡ‖², 0-d."""
        return self.mean @ self.mean


def moments(landscape: Landscape, x: Tensor, rows: Any = None, watch: Watch | None = None) -> Moments:
    """What the estimates are made of, at one point x (parameters,), without keeping the gradients."""
    rows = samples_of(landscape, rows)
    parts, watch = rows.split(_chunk(landscape, factors=True)), within(watch)
    squares, along, total = [], [], torch.zeros_like(x)
    for i, part in enumerate(parts):
        square, own = _norms(landscape, x, part)
        squares.append(square)
        total = total + own
        watch((i + 1) / (2 * len(parts)))
    mean = total / len(rows)
    for i, part in enumerate(parts):
        along.append(_along(landscape, x, part, mean))
        watch((len(parts) + i + 1) / (2 * len(parts)))
    return Moments(torch.cat(squares), torch.cat(along), mean)


def samples_of(landscape: Landscape, rows: Any = None) -> Tensor:
    """The numbers of the samples as a tensor; all of them when none are given."""
    if rows is None:
        if not landscape.samples:
            raise ValueError(f"expected a loss that is a mean over samples, got {landscape.title}: it has none")
        rows = range(landscape.samples)
    return torch.as_tensor(rows, device=landscape.start.device)


def _chunk(landscape: Landscape, factors: bool = False) -> int:
    """How many samples at once: what one of them takes is its gradient, or the factors of it."""
    shapes = landscape.space.shapes
    numbers = sum(map(sum, shapes)) if factors and _layered(landscape) else landscape.dim
    return max(1, CHUNK_NUMBERS // numbers)


def _layered(landscape: Landscape) -> bool:
    """Whether gradients come as outer products."""
    return isinstance(landscape, ModelLandscape) and isinstance(landscape.model, MLP) and landscape.model.by_hand


def _formed(landscape: Landscape, x: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """The gradients themselves, (chunk, parameters) at a time."""

    def one(point: Tensor, row: Tensor) -> Tensor:
        return landscape.each(point.unsqueeze(0), row.unsqueeze(0))[0, 0]

    for part in rows.split(_chunk(landscape)):
        yield torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(x.detach(), part)


def _factors(landscape: Any, x: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer z = W h + b: (h (samples, inputs), δ = ∂ℓ/∂z (samples, outputs)); ∇W = δ hᵀ, ∇b = δ."""
    squash, blocks = ACTIVATIONS[landscape.model.activation], landscape.space.blocks(x.detach())
    hs: list[Tensor] = []
    zs: list[Tensor] = []
    h = landscape.inputs[rows]
    with torch.enable_grad():
        for i in range(0, len(blocks), 2):
            h = squash(zs[-1]) if i else h
            hs.append(h.detach())
            zs.append(torch.addmm(blocks[i + 1], h, blocks[i].mT).requires_grad_())
        losses = landscape.sample_losses(zs[-1].unsqueeze(0), landscape.targets[rows])
        deltas = torch.autograd.grad(losses.sum(), zs)
    return zip(hs, deltas, strict=True)


def _norms(landscape: Landscape, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(‖g_i‖² (samples,), Σ g_i (parameters,))."""
    if not _layered(landscape):
        (g,) = _formed(landscape, x, rows)
        return g.square().sum(1), g.sum(0)
    squares, total = x.new_zeros(len(rows)), []
    for h, delta in _factors(landscape, x, rows):
        squares = squares + delta.square().sum(1) * (h.square().sum(1) + 1)
        total += [(delta.mT @ h).flatten(), delta.sum(0)]
    return squares, torch.cat(total)


def _along(landscape: Landscape, x: Tensor, rows: Tensor, direction: Tensor) -> Tensor:
    """g_i · direction, (samples,)."""
    if not _layered(landscape):
        (g,) = _formed(landscape, x, rows)
        return g @ direction
    blocks, total = landscape.space.blocks(direction), x.new_zeros(len(rows))
    for layer, (h, delta) in enumerate(_factors(landscape, x, rows)):
        total = total + (delta * torch.addmm(blocks[2 * layer + 1], h, blocks[2 * layer].mT)).sum(1)
    return total


def minibatch_gradient(landscape: Landscape, x: Tensor, key: Key, size: int) -> Tensor:
    """∇L at points (runs, parameters), on a keyed minibatch where L is a mean over more samples than `size`."""
    if landscape.samples <= size:
        return landscape.gradient(x)[1]
    rows = key.permutation(landscape.samples)[:size].to(x.device)
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(landscape.each(leaf, rows).mean(1).sum(), leaf)[0]

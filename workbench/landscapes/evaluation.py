"""The loss at many points, a chunk at a time: fast, under a limit of memory, and with its standard error."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.landscapes.landscape import Landscape, ModelLandscape
from workbench.landscapes.progress import Watch, within
from workbench.problems.networks import MLP, Module

MEMORY = 2**26
"""Bytes of activations at a time: what fits a processor's cache is read back faster than what does not."""
MOST_POINTS = 64

Points = Callable[[int, int], Tensor]
"""points(i, j): those from number i up to j, (j - i, parameters): all of them need not be in memory together."""


class OnPlane:
    """Points of a plane, made when they are asked for. Of an MLP the first layer is affine in the plane's coordinates:
    it is made at the center and along the axes, and combined.

    Args:
        plane: a `Plane`.
        coords: (n, axes).
    """

    def __init__(self, plane: Any, coords: Tensor) -> None:
        self.plane, self.coords = plane, coords
        self._parts: Tensor | None = None

    def __call__(self, i: int, j: int) -> Tensor:
        return self.plane.points(self.coords[i:j])

    def each(self, landscape: ModelLandscape, i: int, j: int) -> Tensor:
        """The loss of each sample at points i to j."""
        model: Any = landscape.model
        if self._parts is None:
            ends = torch.cat([self.plane.center.unsqueeze(0), self.plane.axes])
            self._parts = model.first_layer(ends, landscape.inputs)
        at = self.coords[i:j].to(self._parts)
        mix = torch.cat([torch.ones_like(at[:, :1]), at], 1)
        outputs = model.answers(self(i, j), landscape.inputs, (mix, self._parts))
        return landscape.sample_losses(outputs.transpose(1, 2), landscape.targets)


def losses(
    landscape: Landscape,
    points: Tensor | Points,
    count: int | None = None,
    *,
    watch: Watch | None = None,
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor]:
    """(mean loss, its standard error), (points,) each, over the landscape's samples; without gradients.

    The error is s / √n, s the standard deviation of the n single losses; NaN where there are no samples. A loss that is
    not finite stays as it is, at its point.

    Args:
        points: (points, parameters), or a function that gives a range of them (then `count` says how many).
        watch: called before each chunk with the share done, 0 to 1; what it raises ends the work within a chunk.
        memory: bytes of activations at a time, about; at least one point and one sample are taken together.
    """
    if isinstance(points, Tensor):
        table, count = points, len(points)
        points = lambda i, j: table[i:j]  # noqa: E731 - one line beside its one use
    if count is None:
        raise ValueError("expected count, how many points there are, beside a function that gives them")
    watch = within(watch)
    at_once, rows = chunks(landscape, memory)
    means = torch.full((count,), math.nan, dtype=landscape.start.dtype, device=landscape.start.device)
    errors = means.clone()
    with torch.no_grad():
        for i in range(0, count, at_once):
            watch(i / count)
            j = min(count, i + at_once)
            look = functools.partial(watch, i / count)
            means[i:j], errors[i:j] = _some(landscape, points, i, j, rows, look)
    watch(1.0)
    return means, errors


def _some(
    landscape: Landscape, points: Points, i: int, j: int, rows: int, look: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Points i to j, by the quickest way that there is for them."""
    if not landscape.samples:
        loss = landscape(points(i, j))
        return loss, torch.full_like(loss, math.nan)
    if rows < landscape.samples:
        return _in_pieces(landscape, points(i, j), rows, look)
    if isinstance(points, OnPlane) and isinstance(landscape, ModelLandscape) and isinstance(landscape.model, MLP):
        return _mean(points.each(landscape, i, j))
    return _mean(landscape.each(points(i, j)))


def _mean(each: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, its standard error) over the samples on the last axis, which is written over."""
    n = each.shape[-1]
    mean = each.mean(-1)
    if n < 2:
        return mean, torch.full_like(mean, math.nan)
    return mean, each.sub_(mean.unsqueeze(-1)).square_().sum(-1).div_(n * (n - 1)).sqrt_()


def _in_pieces(landscape: Landscape, x: Tensor, rows: int, look: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """The same where not all samples fit at once: single losses are kept, activations are not."""
    parts = []
    for first in range(0, landscape.samples, rows):
        look()
        last = min(landscape.samples, first + rows)
        parts.append(landscape.each(x, torch.arange(first, last, device=x.device)))
    return _mean(torch.cat(parts, -1))


def chunks(landscape: Landscape, memory: int) -> tuple[int, int]:
    """(points, samples) that are taken together so that activations need about so many bytes."""
    size = landscape.start.element_size()
    by_parameters = max(1, memory // (4 * size * landscape.dim))
    if not isinstance(landscape, ModelLandscape):
        return min(MOST_POINTS, by_parameters), 0
    for_one = size * activations(landscape)
    rows = max(1, memory // for_one)
    return max(1, min(MOST_POINTS, by_parameters, rows // landscape.samples)), min(rows, landscape.samples)


def activations(landscape: ModelLandscape) -> int:
    """Numbers that one sample needs on its way through the model, about: thrice the largest layer's outputs."""
    model: Any = landscape.model
    inputs = math.prod(landscape.inputs.shape[1:])
    if isinstance(model, MLP):
        return 3 * max([shape[0] for shape in model.space.shapes])
    if not isinstance(model, Module):
        return 3 * inputs
    found = [inputs]
    hooks = [
        part.register_forward_hook(lambda _, __, out: found.append(out.numel() if isinstance(out, Tensor) else 0))
        for part in model.module.modules()
        if not list(part.children())
    ]
    try:
        with torch.no_grad():
            landscape.outputs(landscape.start.unsqueeze(0), landscape.inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return 3 * max(found)

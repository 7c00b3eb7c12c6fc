"""Where a method's points live: which axis is the coordinate, which the run, and the few reductions a rule may need.

Surfaces put the coordinate first and the runs last, (dim, runs); networks put the runs first, (runs, parameters).
A rule written with elementwise arithmetic and these functions does not care which.
"""

import dataclasses
import functools
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Space:
    """Points with one coordinate axis and one run axis.

    Args:
        axis: the coordinate axis, 0 (surfaces) or -1 (networks).
        shapes: shapes of the blocks (layers) that the coordinates are made of, in order; one flat block when empty.
    """

    axis: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def run_axis(self) -> int:
        """The axis of the runs."""
        return -1 if self.axis == 0 else 0

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Number of coordinates of each block."""
        return [math.prod(shape) for shape in self.shapes]

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product over the coordinates, one a run; keeps the coordinate axis with length 1."""
        return (a * b).sum(self.axis, keepdim=True)

    def norm(self, a: Tensor) -> Tensor:
        """Euclidean norm over the coordinates, one a run; keeps the coordinate axis with length 1."""
        return torch.linalg.vector_norm(a, dim=self.axis, keepdim=True)

    def per_run(self, h: Tensor) -> Tensor:
        """A hyperparameter, 0-d or (runs,), shaped to multiply points."""
        return h if h.ndim == 0 or self.axis == 0 else h.unsqueeze(-1)

    def blocks(self, x: Tensor) -> list[Tensor]:
        """The points as layer-shaped views, (runs, *shape) each for networks; [x] when there are no layers."""
        if not self.shapes:
            return [x]
        parts, lead = x.split_with_sizes(self.sizes, -1), x.shape[:-1]
        return [part.view((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, blocks: list[Tensor]) -> Tensor:
        """The inverse of `blocks`."""
        if not self.shapes:
            return blocks[0]
        return torch.cat([block.reshape(block.shape[0], -1) for block in blocks], -1)

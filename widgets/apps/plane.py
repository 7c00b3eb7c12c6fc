"""What pictures in the plane share: a grid of arrows, and contour lines."""

from typing import Any

import contourpy
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widgets.player import Paths, thin

SIDE = 13
ROOM = 0.08
"""What the plane is taller than its panels, so that no words lie over them."""


def contour_lines(
    x: NDArray[Any],
    y: NDArray[Any],
    z: NDArray[Any],
    count: int,
    opacity: float,
    cell: tuple[float, float] | None = None,
) -> Paths | None:
    """Lines of equal height z (y, x) that divide what is shown into equal shares; None where nothing is finite.

    Args:
        count: how many heights.
        cell: (x, y) spacing of the grid whose cells thin a line; as they are when None.
    """
    finite = z[np.isfinite(z)]
    if not len(finite):
        return None
    generator = contourpy.contour_generator(x, y, np.ma.masked_invalid(z))
    levels = np.unique(np.quantile(finite, np.linspace(0, 1, count + 2)[1:-1]))
    lines = [line if cell is None else thin(line, cell) for level in levels for line in generator.lines(level)]
    return Paths.of(lines, colour=7, width=0.75, opacity=opacity) if lines else None


class Arrows:
    """Velocities of fields on a grid of the square from -reach to reach; the longest arrow spans the spacing."""

    def __init__(self, reach: float, dtype: torch.dtype) -> None:
        side = torch.linspace(-0.92 * reach, 0.92 * reach, SIDE, dtype=dtype)
        self.grid, self.spacing = torch.cartesian_prod(side, side), 1.84 * reach / (SIDE - 1)

    def of(self, field: Any, t: Tensor, at: NDArray[Any]) -> Paths:
        """The arrows of a field at time t, shifted by `at`."""
        with torch.no_grad():
            v = field(self.grid, t).velocity.double().numpy()
        longest = float(np.linalg.norm(v, axis=1).max())
        step = v * (0.95 * self.spacing / longest) if longest > 0 and np.isfinite(longest) else np.zeros_like(v)
        start = self.grid.numpy() + at
        tip, across = start + step, np.stack([-step[:, 1], step[:, 0]], 1)
        barbs = [tip - 0.3 * step + sign * 0.16 * across for sign in (1, -1)]
        flat = np.stack([start, tip, barbs[0], tip, barbs[1]], 1).reshape(-1, 2)
        return Paths(flat[:, 0], flat[:, 1], np.arange(len(start) + 1) * 5, colour=7, width=0.9, opacity=0.6)

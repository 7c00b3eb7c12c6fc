"""Time grids: where a solver stops on its way, steps + 1 times from one end of the interpolant to the other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.routine import Declared


class Grid(Declared):
    """Times t_0 < … < t_steps. Subclasses write `times`."""

    family: ClassVar[str] = "grids"
    kind: ClassVar[str] = "grid"

    def times(self, path: Interpolant, steps: int, hyper: Mapping[str, Any], like: Tensor) -> Tensor:
        """(steps + 1,) times, or (runs, steps + 1) when a hyperparameter has one value a run; both ends included.

        Args:
            path: whose `ends` they go between, and whose noise levels they may follow.
            steps: at least 1.
            hyper: values by name, 0-d or (runs,).
            like: tells dtype and device.
        """
        raise NotImplementedError

    @staticmethod
    def unit(steps: int, like: Tensor) -> Tensor:
        """0, 1/steps, …, 1."""
        return torch.arange(steps + 1, dtype=like.dtype, device=like.device) / steps


class Uniform(Grid):
    """t_i = first + (last - first) i / steps.

    Source: Euler 1768, Institutiones calculi integralis, § 650.
    """

    name = "uniform-grid"
    title = "Uniform"
    source = "Euler 1768, Institutiones calculi integralis, § 650"
    evidence = "tests/samplers/test_grids.py::test_a_grid_is_what_its_source_says[uniform-grid]"

    def times(self, path, steps, hyper, like):
        first, last = path.ends
        return first + (last - first) * self.unit(steps, like)


class Quadratic(Grid):
    """1 - t_i = (√(1 - first) + (√(1 - last) - √(1 - first)) i / steps)²: finer towards the data.

    Source: Song, Meng & Ermon 2021, arXiv:2010.02502, section 5 and appendix D.2 ("quadratic" time steps).
    """

    name = "quadratic-grid"
    title = "Quadratic"
    source = "Song, Meng & Ermon 2021, arXiv:2010.02502"
    evidence = "tests/samplers/test_grids.py::test_a_grid_is_what_its_source_says[quadratic-grid]"

    def times(self, path, steps, hyper, like):
        first, last = (math.sqrt(1 - end) for end in path.ends)
        return 1 - (first + (last - first) * self.unit(steps, like)).square()


class ExplicitGrid(Grid):
    """Your own times, in units of t; they are used as they are, whatever `steps` says.

    Raises:
        ValueError: on fewer than two times, or times that do not rise strictly within [0, 1].
    """

    name = "explicit-grid"
    title = "Your own times"

    def __init__(self, times: Sequence[float] | Tensor) -> None:
        super().__init__()
        try:
            found = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"expected times to be numbers, got {type(times).__name__}") from None
        if found.ndim != 1 or len(found) < 2:
            raise ValueError(f"expected a time grid of at least two times, got shape {tuple(found.shape)}")
        if not bool((found.diff() > 0).all()) or not 0 <= float(found[0]) < float(found[-1]) <= 1:
            short = [float(f"{v:.4g}") for v in found.tolist()[:8]]
            raise ValueError(f"expected times that rise strictly from 0 or later to 1 or earlier, got {short}")
        self.given = found

    def times(self, path, steps, hyper, like):
        return self.given.to(like)

    def recipe(self):
        return repr(self.given.tolist())

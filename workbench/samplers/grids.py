"""Time grids: where a solver stops on its way, steps + 1 times from one end of the interpolant to the other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.routine import Declared, Hyper


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


class Levels(Grid):
    """Times by their noise level: subclasses say how log-SNR λ = log(alpha / spread) goes from one end to the other.

    Where alpha or spread is less than `floor` at an end, 0 on many paths, it counts as `floor`; first and last time are
    the path's own ends all the same.
    """

    floor: Any = Hyper(
        1e-3, 1e-6, 0.1, "log", (1e-5, 1e-2), doc="The least that alpha and spread count as at the ends of the path."
    )

    def levels(self, first: Tensor, last: Tensor, unit: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """λ at unit = 0, 1/steps, …, 1, between λ's ends; everything broadcasts."""
        raise NotImplementedError

    def times(self, path, steps, hyper, like):
        unit = self.unit(steps, like)
        turned = {name: hyper[name].to(like).unsqueeze(-1) for name in self.hypers}
        first, last = (
            torch.log(
                torch.maximum(path.alpha(end), turned["floor"]) / torch.maximum(path.spread(end), turned["floor"])
            )
            for end in torch.tensor(path.ends, dtype=like.dtype, device=like.device)
        )
        inside = path.time_of(self.levels(first, last, unit, turned)[..., 1:-1])
        first, last = (inside.new_full((*inside.shape[:-1], 1), end) for end in path.ends)
        return torch.cat([first, inside, last], -1)


class LogSNRGrid(Levels):
    """λ(t_i) = λ_first + (λ_last - λ_first) i / steps: equal steps of log-SNR λ = log(alpha / spread).

    Source: Lu et al. 2022, arXiv:2206.00927, section 3.3 and appendix D.4 ("uniform in λ").
    """

    name = "log-snr-grid"
    title = "Equal steps of log-SNR"
    source = "Lu et al. 2022, arXiv:2206.00927"
    evidence = "tests/samplers/test_grids.py::test_a_grid_is_what_its_source_says[log-snr-grid]"

    def levels(self, first, last, unit, hyper):
        return first + (last - first) * unit


class EDMGrid(Levels):
    """s(t_i) = (s_first^(1/rho) + (s_last^(1/rho) - s_first^(1/rho)) i / steps)^rho, with s = spread / alpha.

    The noise levels of Karras et al. between those of the path's own ends; the level 0 that they append is not a stop
    of its own. rho = 1 makes equal steps of s; the larger rho, the finer towards the data.
    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """

    name = "edm-grid"
    title = "EDM noise levels"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/samplers/test_grids.py::test_a_grid_is_what_its_source_says[edm-grid]"
    rho: Any = Hyper(7.0, 1.0, 100.0, "log", (1.0, 20.0), doc="How much finer the noise levels are near the data.")

    def levels(self, first, last, unit, hyper):
        first, last = (torch.exp(-end / hyper["rho"]) for end in (first, last))
        return -hyper["rho"] * torch.log(first + (last - first) * unit)


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

"""A time grid by dynamic programming: the stops at which Euler's jumps through a field lose the least."""

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.flows.fields import Field, exact_field
from workbench.flows.interpolants import Interpolant
from workbench.routine import Key, whole
from workbench.samplers.grids import Grid


class BellmanGrid(Grid):
    """The steps + 1 of `fine` + 1 times, both ends among them, with the least Σ_i c(t_i, t_{i+1}).

    c(s, t) = E |x_s + (t - s) v(x_s, s) - x_t|², the mean squared error of one Euler jump from s to t on the fine path,
    over `samples` source samples whose fine paths are Heun's. The same grid serves every solver and sample afterwards.
    The cost and its minimisation are checked against the paper's public code, whose fine path is Euler's. Four steps on
    it come nearer to the target than on equal, quadratic and cosine steps on the linear and the variance-preserving
    path; not on every path, nor at every number of steps: what it minimises is local. The paper's second part, to
    retrain the net on these jumps, is the objective "bellman-straightening".

    Args:
        field: whose paths are followed; the exact field to eight Gaussians on the sampling's own path when None.
        fine: equal steps of the fine grid.
        samples: how many paths are followed.

    Raises:
        ValueError: when more steps are asked for than the fine grid has.

    Source: Nguyen, Nguyen & Nguyen 2024, arXiv:2312.16414, section 3.
    """

    name = "bellman-grid"
    title = "Bellman optimal"
    source = "Nguyen, Nguyen & Nguyen 2024, arXiv:2312.16414"
    ledger = "bellman-optimal-step-size-straightening-of"
    evidence = "tests/samplers/test_bellman.py::test_the_cheapest_stops_are_those_of_brute_force[5]"

    def __init__(self, field: Field | None = None, *, fine: int = 64, samples: int = 128) -> None:
        super().__init__()
        self.field, self.fine, self.samples = field, whole("fine", fine, 1), whole("samples", samples, 1)
        self._costs: dict[str, NDArray[np.float64]] = {}

    def times(self, path, steps, hyper, like):
        if steps > self.fine:
            raise ValueError(f"expected at most {self.fine} steps of a grid with {self.fine} fine ones, got {steps}")
        first, last = path.ends
        stops = torch.tensor(cheapest(self.costs(path), steps), dtype=like.dtype, device=like.device)
        return first + (last - first) * stops / self.fine

    def costs(self, path: Interpolant) -> NDArray[np.float64]:
        """c between any two fine times, (fine + 1, fine + 1); inf backwards. Worked out once a path."""
        key = path.recipe()
        if key not in self._costs:
            self._costs[key] = jump_costs(self.field or exact_field("eight-gaussians", path), self.fine, self.samples)
        return self._costs[key]

    def recipe(self):
        given = {} if self.field is None else {"field": self.field.recipe()}
        given |= {"fine": repr(self.fine)} if self.fine != 64 else {}
        return self.made_with(**given, **({"samples": repr(self.samples)} if self.samples != 128 else {}))


def jump_costs(field: Field, fine: int, samples: int) -> NDArray[np.float64]:
    """E |x_s + (t - s) v(x_s, s) - x_t|² for any two of fine + 1 equally spaced times s < t; inf elsewhere."""
    path = field.interpolant
    first, last = path.ends if path is not None else (0.0, 1.0)
    like = getattr(field, "params", torch.empty(0, dtype=torch.float64))
    times = torch.linspace(first, last, fine + 1, dtype=like.dtype)
    x = field.source.sample(Key(0).stream("bellman"), samples, like)
    points, slopes = fine_paths(field, x if path is None else path.spread(times[0]) * x, times)
    cost = np.full((fine + 1, fine + 1), np.inf)
    for i in range(fine):
        jumps = points[i] + (times[i + 1 :] - times[i])[:, None, None] * slopes[i]
        cost[i, i + 1 :] = (jumps - points[i + 1 :]).double().square().sum(-1).mean(-1).numpy()
    return cost


def fine_paths(field: Field, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities of Heun's method at all of the times, (times, samples, dim) each."""
    points, slopes = [x], []
    with torch.no_grad():
        for t, end in itertools.pairwise(times):
            slopes.append(field(x, t).velocity)
            x = x + (end - t) / 2 * (slopes[-1] + field(x + (end - t) * slopes[-1], end).velocity)
            points.append(x)
    return torch.stack(points), torch.stack(slopes)


def cheapest(cost: NDArray[np.float64], steps: int) -> list[int]:
    """The stops 0 = i_0 < i_1 < … < i_steps = n - 1 with the least Σ cost[i_k, i_{k+1}], by Bellman's recursion."""
    n = len(cost)
    best, choices = cost[:, -1], []
    for _ in range(steps - 1):
        ahead = cost + best  # from i by way of j
        choices.append(ahead.argmin(1))
        best = ahead.min(1)
    stops = [0]
    for choice in reversed(choices):
        stops.append(int(choice[stops[-1]]))
    return [*stops, n - 1]

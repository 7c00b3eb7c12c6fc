"""The grid by dynamic programming: it is the cheapest there is, and sampling on it is better than on equal steps."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import workbench as wb
from workbench.samplers.bellman import BellmanGrid, cheapest, jump_costs

pytestmark = pytest.mark.usefixtures("one_thread")


def total(cost, stops):
    return sum(cost[a, b] for a, b in itertools.pairwise(stops))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_the_cheapest_stops_are_those_of_brute_force(steps):
    cost = jump_costs(wb.exact_field("eight-gaussians"), 9, 64)
    stops = cheapest(cost, steps)
    inside = itertools.combinations(range(1, 9), steps - 1)
    least = min(total(cost, [0, *chosen, 9]) for chosen in inside)
    assert len(stops) == steps + 1
    assert (stops[0], stops[-1]) == (0, 9)
    assert total(cost, stops) == pytest.approx(least, rel=1e-12)


def test_costs_are_those_of_single_euler_jumps_against_the_fine_path():
    field = wb.exact_field("two-modes")
    cost = jump_costs(field, 8, 32)
    x = field.source.sample(wb.Key(0).stream("bellman"), 32, torch.empty(0, dtype=torch.float64))
    routine = wb.sampling(field, "heun", steps=8, samples=32, dtype=torch.float64)
    session = wb.Session(routine, start=x).step(2)
    here = session.state.x[0]
    there = session.step(3).state.x[0]
    jump = here + 3 / 8 * field(here, torch.tensor(0.25, dtype=torch.float64)).velocity
    assert cost[2, 5] == pytest.approx(float((jump - there).square().sum(-1).mean()), rel=1e-9)
    assert np.isinf(cost[5, 2])


def w2(a, b):
    cost = torch.cdist(a, b).square().numpy()
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def cosine(path, steps):
    first, last = path.ends
    return (first + (last - first) * (1 - np.cos(np.pi * np.linspace(0, 1, steps + 1))) / 2).tolist()


@pytest.mark.parametrize("interpolant", ["linear-path", "variance-preserving"])
@pytest.mark.parametrize("target", ["eight-gaussians", "two-modes"])
def test_four_euler_steps_on_it_come_nearer_to_the_target_than_on_other_grids(interpolant, target):
    """Mean W2 of 500 samples over three seeds, the same noise on every grid."""
    field, like = wb.exact_field(target, interpolant), torch.empty(0, dtype=torch.float64)
    aims = [field.target.sample(wb.Key(seed).stream("aim"), 500, like) for seed in range(3)]

    def distance(grid):
        routine = wb.sampling(field, "euler", steps=4, grid=grid, samples=500, dtype=torch.float64)
        ends = [wb.Session(routine, seed=seed).step(4).state.x[0] for seed in range(3)]
        return np.mean([w2(end, aim) for end, aim in zip(ends, aims, strict=True)])

    others = ("uniform-grid", "quadratic-grid", cosine(field.interpolant, 4))
    assert distance(BellmanGrid(field)) < min(map(distance, others))


def test_more_steps_than_the_fine_grid_has_are_refused_and_all_of_them_are_the_fine_grid():
    grid = BellmanGrid(fine=8, samples=8)
    path, like = wb.make("linear-path"), torch.empty(0)
    assert torch.equal(grid.times(path, 8, {}, like), torch.linspace(0, 1, 9))
    with pytest.raises(ValueError, match="expected at most 8 steps of a grid with 8 fine ones, got 9"):
        grid.times(path, 9, {}, like)
    assert grid.recipe() == "wb.make('bellman-grid', fine=8, samples=8)"

"""Bellman straightening: piecewise reflow whose windows are the steps that lose the least."""

import pytest
import torch

import workbench as wb
from tests.flows.test_claims import drawn, first_flow, learn, w2
from tests.flows.test_perflow import asked
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)


def test_windows_are_the_steps_of_the_bellman_grid():
    """Unequal ones: each question is on the chord that begins and ends at the steps around its time."""
    teacher = wb.exact_field("eight-gaussians")
    objective = wb.make("bellman-straightening", field=teacher, windows=3)
    stops = wb.make("bellman-grid", field=teacher).times(teacher.interpolant, 3, {}, EXACT)
    assert (stops.diff() - 1 / 3).abs().max() > 0.05
    batch, question = asked(objective)
    index = (batch.t.unsqueeze(-1) >= stops).sum(-1)
    begin = teacher.interpolant.at(batch.x0, batch.x1, stops[index - 1])
    (aim,) = question.aims
    torch.testing.assert_close(question.x - (batch.t - stops[index - 1]).unsqueeze(-1) * aim, begin)
    torch.testing.assert_close(batch.more[1], stops[index])


@pytest.mark.slow
def test_straightening_comes_nearer_again_on_the_same_steps():
    """Nguyen et al.: with four steps W₂ falls from equal to Bellman's steps, and again once they are straightened.

    The ends are then nearer to those of the teacher's own 64 steps as well.
    """
    teacher, data = first_flow()[0], [drawn("eight-gaussians", seed=seed) for seed in (3, 4)]
    start, objective = drawn("gaussian", seed=2), wb.make("bellman-straightening", field=teacher)
    students = learn("eight-gaussians", objective, steps=800, lr=2e-3, start=first_flow())
    optimal, fine = objective.grid.tolist(), solve(teacher, "heun", x=start, steps=64)
    equal, chosen, *straight = [
        solve(field, "euler", x=start, steps=4, grid=grid)
        for field, grid in [(teacher, "uniform-grid"), (teacher, optimal), *((field, optimal) for field in students)]
    ]

    def missed(ends):
        return sum(w2(ends, real) for real in data) / 2

    assert max(map(missed, straight)) < missed(chosen) < missed(equal)
    off = [float((ends - fine).square().sum(-1).mean()) for ends in (chosen, *straight)]
    assert max(off[1:]) < off[0]

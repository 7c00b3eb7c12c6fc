"""Piecewise reflow: its questions lie on chords of the teacher's flow, and a student crosses a window in one step."""

import functools

import pytest
import torch

import workbench as wb
from tests.flows.test_claims import drawn, first_flow, learn, w2s
from workbench.flows.fields import FunctionField
from workbench.flows.measures.paths import follow
from workbench.flows.measures.reference import solve_to
from workbench.flows.objectives import Batch, Setting
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)


def asked(objective, n=64):
    """A batch of the objective on its teacher's path, and what is asked on it."""
    key, path = Key(0), objective.teacher
    t = path.ends[0] + (path.ends[1] - path.ends[0]) * key.stream("t").uniform((n,), like=EXACT)
    x0, x1 = (drawn(name, n, seed).double() for name, seed in (("gaussian", 1), ("eight-gaussians", 2)))
    batch = Batch(x0, x1, t, None, None)
    batch = batch._replace(more=objective.draw(key, batch))
    return batch, objective.question(batch, Setting(path, torch.ones_like, lambda r: r.square().mean(-1), {}))


@pytest.mark.parametrize("windows", [1, 4])
@pytest.mark.parametrize("path", ["linear-path", "variance-preserving"])
def test_a_question_lies_on_the_chord_of_its_window(path, windows):
    """Going on along the aim to the window's end comes where a fine solution of the teacher's flow does."""
    teacher = wb.exact_field("eight-gaussians", path)
    objective = wb.make("perflow", field=teacher, windows=windows, steps=256)
    batch, question = asked(objective)
    first, last = teacher.interpolant.ends
    width = (last - first) / windows
    start = first + ((batch.t - first) / width).floor() * width
    begin = teacher.interpolant.at(batch.x0, batch.x1, start)
    fine, _ = solve_to(teacher, begin, start, start + width)
    (aim,) = question.aims
    torch.testing.assert_close(question.x - (batch.t - start).unsqueeze(-1) * aim, begin)
    torch.testing.assert_close(question.x + (start + width - batch.t).unsqueeze(-1) * aim, fine, rtol=0, atol=2e-3)


def test_pairs_take_their_share_of_the_solver_s_steps():
    """A pair in one of K windows costs 1/K of the teacher's evaluations that a pair over the whole path costs."""
    exact, calls = wb.exact_field("eight-gaussians"), []

    def counted(x, t):
        calls.append(len(x))
        return exact(x, t).velocity

    costs = []
    for windows in (1, 4):
        calls.clear()
        teacher = FunctionField(counted, 2)
        asked(wb.make("perflow", field=teacher, windows=windows, steps=16))
        costs.append(sum(calls))
    assert costs[0] == 4 * costs[1] > 0


def test_another_path_or_dimension_is_refused():
    objective = wb.make("perflow")
    with pytest.raises(ValueError, match="expected the teacher's path, 'linear-path', got 'variance-preserving'"):
        wb.flow_training(None, "eight-gaussians", objective, interpolant="variance-preserving")
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="expected a teacher of dimension 1"):
        objective.draw(Key(0), Batch(x, x, torch.zeros(3), None, None))


@functools.cache
def student():
    objective = wb.make("perflow", field=first_flow()[0])
    return learn("eight-gaussians", objective, steps=800, lr=2e-3, start=first_flow())


def bent(fields, windows=4):
    """E |X_e - X_s - (e - s) v(X_s, s)|² of the flow's own paths, mean over windows: 0 where each is straight."""
    found, each = [], 16
    for field in fields:
        with torch.no_grad():
            paths = follow(field, drawn("gaussian", 1000, seed=5), steps=windows * each)
        chord = paths.points[each::each] - paths.points[:-1:each]
        found.append((chord - paths.velocities[:-1:each] / windows).square().sum(-1).mean())
    return torch.stack(found)


@pytest.mark.slow
def test_one_step_a_window_comes_nearer_than_the_teacher():
    """Yan et al.: W₂ of four Euler steps is below the teacher's, and windows are straighter than its are."""
    assert (w2s(student(), 4, "eight-gaussians") < w2s(first_flow(), 4, "eight-gaussians")).all()
    assert (bent(student()) < bent(first_flow())).all()


def test_a_script_trains_its_teacher_first():
    """The recipe of a training names the teacher, and its setup defines it."""
    small = wb.make("mlp", width=5, depth=1)
    teacher = wb.trained_field(wb.Session(wb.flow_training(network=small, batch_size=8)).step(2))
    routine = wb.flow_training(None, "eight-gaussians", wb.make("perflow", field=teacher, windows=2), network=small)
    made: dict = {"wb": wb, "torch": torch}
    exec(f"import workbench as wb\n{routine.setup()}\nagain = {routine.recipe()}", made)  # noqa: S102 - what a script would run
    assert made["again"].objective.windows == 2
    assert torch.equal(made["again"].objective.flow.params, teacher.params)

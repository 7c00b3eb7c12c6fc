"""Refitted solvers: nearer to the fine solution at equal evaluations, and their own coefficients in the limit."""

import pytest
import torch

import workbench as wb
from tests.samplers.cases import TARGET, error, fine
from workbench.samplers.exponential import first_order, level
from workbench.samplers.iia import sum_of

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {"ddim": "ddim", "edm": "edm-heun"}
STAGES = {"ddim": 1, "edm": 2}


def times(*values):
    return [torch.tensor([[value]], dtype=torch.float64) for value in values]


@pytest.mark.parametrize("kind", BASE)
@pytest.mark.parametrize("evaluations", [6, 8, 12, 20])
def test_few_evaluations_end_nearer_to_the_fine_solution(kind, evaluations):
    """The paper's claim below 25 evaluations, on starts that it was not fitted on; at least twice as near here."""
    steps, field = evaluations // STAGES[kind], fine("variance-preserving")[0]
    found = error(wb.make(f"iia-{kind}", field=field), "variance-preserving", steps)
    assert found < 0.5 * error(BASE[kind], "variance-preserving", steps)


@pytest.mark.parametrize("evaluations", [6, 8, 12, 20])
def test_on_the_linear_path_ddim_gains_and_few_steps_of_heun_do_not(evaluations):
    field = fine("linear-path")[0]
    assert error(wb.make("iia-ddim", field=field), "linear-path", evaluations) < 0.4 * error(
        "ddim", "linear-path", evaluations
    )
    gain = error("edm-heun", "linear-path", evaluations // 2) / error(
        wb.make("iia-edm", field=field), "linear-path", evaluations // 2
    )
    assert (gain > 1) == (evaluations > 10)


def test_coefficients_tend_to_those_of_adams_and_bashforth():
    path, solver = wb.make("variance-preserving"), wb.make("iia-ddim")
    missed = []
    for h in (0.04, 0.02, 0.01):
        before, t, end = times(0.5 - h, 0.5, 0.5 + h)
        past, here, there = (level(path, time) for time in (before, t, end))
        step, back = there.rho - here.rho, here.rho - past.rho
        first, second = (weight / there.alpha for weight in solver.weights(path, t, end, before))
        missed.append([float((first / step).abs()), float((second / (step.square() / (2 * back)) - 1).abs())])
    (a, b), (c, d), (e, f) = missed
    assert a > 3 * c > 9 * e  # δ_0 is of second order
    assert b > 1.7 * d > 2.9 * f  # δ_1 of first
    assert e < 1e-3
    assert f < 0.2


def test_coefficients_tend_to_those_of_heun():
    path, solver = wb.make("variance-preserving"), wb.make("iia-edm")
    missed = []
    for h in (0.04, 0.02, 0.01):
        t, end = times(0.5, 0.5 + h)
        here, there = level(path, t), level(path, end)
        step = there.rho - here.rho
        first, second = (weight / there.alpha for weight in solver.weights(path, t, end))
        missed.append([float((first / step).abs()), float((second / (step / 2) - 1).abs())])
    (a, b), (c, d), (e, f) = missed
    assert a > 3 * c > 9 * e
    assert b > 1.7 * d > 2.9 * f
    assert f < 0.1


@pytest.mark.parametrize("samples", [64, 1000])
def test_a_step_misses_less_than_with_its_own_coefficients_also_on_other_paths(samples):
    """What is minimised is lower than at the analytic coefficients, on the paths of the fit and on held-out ones."""
    field = wb.exact_field(TARGET, "variance-preserving")
    solver, path = wb.make("iia-ddim", field=field), field.interpolant
    paths = solver.paths(path) if samples == 64 else wb.make("iia-ddim", field=field, samples=samples).paths(path)
    before, t, end = times(0.3, 0.5, 0.7)
    now, old, there = paths.ask(t), paths.ask(before), level(path, end)
    plain = first_order(now, there)
    fitted = plain + sum_of(solver.weights(path, t, end, before), [now.noise, now.noise - old.noise], plain)
    aim = paths.at(end)
    assert (fitted - aim).square().mean() < 0.2 * (plain - aim).square().mean()

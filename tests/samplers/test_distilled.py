"""Solvers distilled into few steps: nearer to the fine solution, plain without strength, as good on new noise."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.samplers.cases import TARGET, error, fine
from workbench.samplers.exponential import level, moment, span
from workbench.samplers.fitting import Paths, least_squares
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {"distilled-ddim": "ddim", "distilled-dpm-solver-pp-2m": "dpm-solver-pp-2m"}


@pytest.mark.parametrize("name", BASE)
@pytest.mark.parametrize("steps", [5, 8, 12, 20])
def test_few_steps_end_nearer_to_the_fine_solution(name, steps):
    """The paper's claim, on the variance-preserving path; fitted on 64 other starts."""
    solver = wb.make(name, field=fine("variance-preserving")[0])
    assert error(solver, "variance-preserving", steps) < 0.6 * error(BASE[name], "variance-preserving", steps)


@pytest.mark.parametrize("steps", [5, 8, 12, 20])
def test_on_the_linear_path_ddim_gains_and_the_second_order_solver_does_not(steps):
    field = fine("linear-path")[0]
    assert error(wb.make("distilled-ddim", field=field), "linear-path", steps) < 0.5 * error(
        "ddim", "linear-path", steps
    )
    of_second = error(wb.make("distilled-dpm-solver-pp-2m", field=field), "linear-path", steps)
    assert of_second > error("dpm-solver-pp-2m", "linear-path", steps)


def test_a_fit_on_another_density_helps_too():
    """By default it is fitted on eight Gaussians: less than on the field itself, more than not at all."""
    own = error(wb.make("distilled-ddim", field=fine("variance-preserving")[0]), "variance-preserving", 12)
    assert own < error("distilled-ddim", "variance-preserving", 12) < error("ddim", "variance-preserving", 12)


@pytest.mark.parametrize("path", ["linear-path", "variance-preserving", "edm-path"])
@pytest.mark.parametrize("name", BASE)
def test_without_strength_it_is_the_plain_solver(name, path):
    field, start, _ = fine(path)
    found = solve(field, name, x=start, steps=7, hyper={"strength": 0.0})
    torch.testing.assert_close(found, solve(field, BASE[name], x=start, steps=7), rtol=1e-12, atol=1e-12)


def test_the_number_of_a_step_is_the_least_squares_answer_written_out():
    path = wb.make("variance-preserving")
    solver = wb.make("distilled-ddim")
    paths = solver.paths(path)
    before, t, end = (torch.tensor([[time]], dtype=torch.float64) for time in (0.3, 0.5, 0.7))
    state = solver.init(wb.exact_field(TARGET, path), torch.zeros(1, 4, 2, dtype=torch.float64), t, end)
    (lam,) = solver.fitted(paths, t, end, state._replace(t=before))[0].flatten().tolist()
    x, new, now, old = paths.at(t), paths.at(end), paths.ask(t), paths.ask(before)
    here, there = level(path, t), level(path, end)
    assert torch.allclose(now.x, x)
    weight = there.alpha - here.alpha * there.sigma / here.sigma
    plain = there.alpha * now.data + there.sigma * now.noise
    a, b = (weight * (now.data - old.data)).flatten().numpy(), (new - plain).flatten().numpy()
    assert lam == pytest.approx(a @ b / (a @ a), rel=1e-9)
    torch.testing.assert_close(weight, there.alpha * moment(0, span(here, there), "data"))


def test_it_does_as_well_on_new_noise_as_on_that_it_was_fitted_on():
    field = fine("variance-preserving")[0]
    solver = wb.make("distilled-ddim", field=field)
    paths = solver.paths(field.interpolant)
    ends = solve(field, solver, x=paths.points[0], steps=8)
    own = float((ends - paths.points[-1]).square().sum(-1).mean().sqrt())
    assert 0.5 < error(solver, "variance-preserving", 8) / own < 2


@pytest.mark.slow
def test_calibration_paths_are_where_the_flow_is_at_every_time():
    field = wb.exact_field(TARGET, "variance-preserving")
    paths = Paths(field, 16)
    start = paths.points[0]
    for t in (0.1234, 0.5, 0.98765):
        grid = torch.linspace(0, t, 801, dtype=torch.float64)
        aim = solve(field, "rk4", x=start, steps=800, grid=grid)
        found = paths.at(torch.tensor([[t]], dtype=torch.float64)).squeeze(0)
        torch.testing.assert_close(found, aim, rtol=0, atol=1e-6)


def test_least_squares_is_numpy_s_run_by_run_and_0_where_numbers_are_not_finite():
    draw = torch.Generator().manual_seed(0)
    missed, one, two = (torch.randn(3, 5, 2, dtype=torch.float64, generator=draw) for _ in range(3))
    missed[2, 0, 0] = torch.inf
    found = torch.cat(least_squares(missed, [one, two]), -1).squeeze(1)
    for run in range(2):
        a = np.stack([one[run].flatten().numpy(), two[run].flatten().numpy()], -1)
        aim = np.linalg.lstsq(a, missed[run].flatten().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[run].numpy(), aim, rtol=1e-9)
    assert found[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", [*BASE, "iia-ddim", "iia-edm"])
def test_what_it_cannot_be_fitted_on_is_refused(name):
    with pytest.raises(ValueError, match="expected a field with an interpolant to fit"):
        wb.make(name, field=wb.sampling(lambda x, t: -x, "euler").field)
    solver = wb.make(name, field=wb.exact_field(TARGET, "linear-path"))
    with pytest.raises(ValueError, match=r"expected to sample through a field on the path that .* was fitted on"):
        solve(wb.exact_field(TARGET, "variance-preserving"), solver, steps=3)

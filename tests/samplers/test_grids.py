"""Time grids: what their sources say, from end to end, rising, per run; times of one's own that are no grid."""

import numpy as np
import pytest
import torch

import workbench as wb

LIKE = torch.empty(0, dtype=torch.float64)
PATHS = ["linear-path", "variance-preserving", "edm-path", "stochastic-path"]


def times(name, path, steps, **hyper):
    grid = wb.make(name)
    given = {label: torch.tensor(hyper.get(label, h.default), dtype=torch.float64) for label, h in grid.hypers.items()}
    return grid.times(wb.make(path), steps, given, LIKE).numpy()


def snr(path, t):
    return wb.make(path).log_snr(torch.from_numpy(t)).numpy()


def wanted(name, found, path):
    """What the source says of the times between both ends, from the ends alone."""
    first, last, n = found[0], found[-1], len(found) - 1
    u = np.arange(n + 1) / n
    if name == "uniform-grid":
        return first + (last - first) * u
    if name == "quadratic-grid":
        return 1 - (np.sqrt(1 - first) + (np.sqrt(1 - last) - np.sqrt(1 - first)) * u) ** 2
    return None


@pytest.mark.parametrize("name", ["uniform-grid", "quadratic-grid", "log-snr-grid", "edm-grid"])
def test_a_grid_is_what_its_source_says(name):
    path = "variance-preserving"
    found = times(name, path, 10)
    closed = wanted(name, found, path)
    if closed is not None:
        np.testing.assert_allclose(found, closed, atol=1e-12)
    elif name == "log-snr-grid":
        levels = snr(path, found[1:-1])
        np.testing.assert_allclose(np.diff(levels), np.diff(levels).mean(), rtol=1e-6)
    else:
        roots = np.exp(-snr(path, found[1:-1]) / 7)
        np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-6)


def test_the_edm_grid_on_a_path_without_data_weight_has_the_noise_levels_of_karras_et_al():
    """σ_i = (σ_max^(1/ρ) + i / n (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ with 80, 0.002 and ρ = 7."""
    found = times("edm-grid", "edm-path", 18, floor=1e-3)
    levels = wb.make("edm-path").sigma(torch.from_numpy(found)).numpy()
    i = np.arange(19) / 18
    np.testing.assert_allclose(levels, (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [row.name for row in wb.catalogue("grids")])
def test_every_grid_rises_from_one_end_of_the_path_to_the_other(name, path):
    for steps in (1, 2, 7, 40):
        found = times(name, path, steps)
        assert found.shape == (steps + 1,)
        assert (np.diff(found) > 0).all()
        np.testing.assert_allclose([found[0], found[-1]], wb.make(path).ends, atol=1e-12)


def test_a_hyperparameter_of_a_grid_may_differ_by_run():
    routine = wb.sampling("two-modes", "euler", steps=6, samples=5, grid="edm-grid", dtype=torch.float64)
    both = wb.Session(routine, hyper={"rho": [2.0, 7.0]}).step(2)
    for run, rho in enumerate((2.0, 7.0)):
        alone = wb.Session(routine, hyper={"rho": rho}).step(2)
        torch.testing.assert_close(both.state.x[run], alone.state.x[0])
        torch.testing.assert_close(both.state.t[run], alone.state.t[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0.0, 0.5, 0.4, 1.0], "expected times that rise strictly from 0 or later to 1 or earlier"),
        ([0.0, 0.5, 0.5, 1.0], "expected times that rise strictly"),
        ([0.0, 1.2], "expected times that rise strictly"),
        ([0.0, float("nan"), 1.0], "expected times that rise strictly"),
        ([0.3], "expected a time grid of at least two times"),
    ],
)
def test_times_that_are_no_grid_are_refused_in_one_sentence(given, words):
    with pytest.raises(ValueError, match=words):
        wb.sampling("two-modes", "euler", grid=given)


def test_times_of_one_s_own_are_passed_as_they_are():
    session = wb.Session(wb.sampling("two-modes", "euler", grid=[0.0, 0.1, 0.75, 1.0], samples=4))
    passed = [float(session.step().state.t) for _ in range(3)]
    assert passed == pytest.approx([0.1, 0.75, 1.0])
    assert bool(session.routine.done(session.state).all())

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import figures
from workbench.figures.trails import thin


def notes(figure):
    return (figure.layout.title.subtitle.text or "").replace("<br>", " ")


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name and (trace.mode or "lines") == "lines")


def paths_of(figure):
    """The lines themselves, without casings and ends."""
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines" and trace.showlegend]


@pytest.fixture(scope="module")
def rosenbrock():
    return wb.make("rosenbrock")


@pytest.fixture(scope="module")
def runs():
    return wb.rollout(wb.descent("rosenbrock", "adam"), 40, hyper={"lr": [1e-2, 1e-1]})


@pytest.fixture(scope="module")
def leaving():
    """One run that stays, one that leaves the picture, one that diverges."""
    return wb.rollout(wb.descent("quadratic", "sgd"), 150, hyper={"lr": [1e-2, 0.11, 0.5]})


# ------------------------------------------------------------------------------------------------ the field


def test_field_is_the_function_on_the_grid_it_names():
    objective = wb.make("himmelblau")
    heights = figures.field(objective, ((-1, 2), (0, 4)), 5, log=False)
    assert (heights.x[0], heights.x[-1], heights.y[0], heights.y[-1]) == (-1, 2, 0, 4)
    assert heights.z.dtype == np.float32
    for i, y in enumerate(heights.y):
        for j, x in enumerate(heights.x):
            assert heights.z[i, j] == np.float32(objective(torch.tensor([x, y])))
    assert heights.label == "f"


def test_logarithmic_heights_are_what_the_label_says(rosenbrock):
    plain, scaled = (figures.field(rosenbrock, size=9, log=log) for log in (False, None))
    assert scaled.label == "log10(1 + f - min)"
    np.testing.assert_allclose(scaled.z, np.log10(1 + plain.z), rtol=1e-5, atol=1e-7)


def test_without_a_known_minimum_the_label_says_what_stands_in_for_it():
    heights = figures.field(wb.make("monkey-saddle"), size=9, log=True)
    assert heights.label == "log10(1 + f - lowest value shown)"
    assert heights.z.min() == 0


def test_bilinear_heights_meet_the_grid_and_lie_between(rosenbrock):
    heights = figures.field(rosenbrock, size=7)
    xs, ys = np.meshgrid(heights.x, heights.y)
    np.testing.assert_allclose(heights.drawn(xs, ys), heights.z, rtol=1e-6)
    middle = heights.drawn((heights.x[:1] + heights.x[1:2]) / 2, heights.y[:1])
    np.testing.assert_allclose(middle, (heights.z[0, 0] + heights.z[0, 1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("domain", [((0, 1),), ((0, 1), (2, 2)), ((0, np.inf), (0, 1)), ((1, 0), (0, 1))])
def test_domain_that_is_no_plane_is_refused(rosenbrock, domain):
    with pytest.raises(ValueError, match="expected domain to be two pairs"):
        figures.field(rosenbrock, domain)


def test_where_a_function_is_not_finite_the_picture_is_blank_and_says_so():
    objective = wb.descent("log(x) + y", "sgd").objective
    figure = figures.contours(objective, size=20)
    assert np.isnan(figure.data[0].z[:, figure.data[0].x < 0]).all()
    assert np.isfinite(figure.data[0].z[:, figure.data[0].x > 0]).all()
    assert notes(figure) == "blank: not finite (50.0% of the plane)"


@pytest.mark.parametrize("entry", wb.catalogue("surfaces"), ids=lambda entry: entry.name)
def test_every_surface_is_drawn_with_stars_at_its_minima(entry):
    objective = entry.make()
    figure = figures.contours(objective, size=16)
    assert figure.layout.title.text == objective.title
    assert figure.layout.xaxis.title.text == objective.dims[0]
    assert list(figure.layout.yaxis.range) == list(objective.domain[1])
    stars = {(float(x), float(y)) for t in figure.data if t.name == "minimum" for x, y in zip(t.x, t.y, strict=True)}
    assert stars == {tuple(float(v) for v in point[:2]) for point in objective.minima}
    assert np.isfinite(figure.data[0].z).all()


# ------------------------------------------------------------------------------------------------ paths


def test_every_path_is_its_run_in_the_record(runs, rosenbrock):
    figure = figures.paths(runs, rosenbrock)
    assert [line.name for line in paths_of(figure)] == ["lr = 0.01", "lr = 0.1"]
    for run, line in enumerate(paths_of(figure)):
        kept = line.customdata[:, 0].astype(int)
        assert (kept[0], kept[-1]) == (0, 40)
        np.testing.assert_array_equal(np.stack([line.x, line.y], -1), runs["x"].values[run, kept].astype(np.float64))
        np.testing.assert_array_equal(line.customdata[:, 1], runs["loss"].values[run, kept].astype(np.float64))


def test_a_path_is_thinned_only_where_nobody_could_see_it():
    turn = np.linspace(0, 400, 100_000)
    points = np.stack([np.cos(turn), np.sin(turn)], -1)
    kept = thin(points, (2e-3, 2e-3), 2000)
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert len(kept) < 30_000
    still = np.concatenate([np.zeros((500, 2)), np.ones((500, 2))])
    assert list(thin(still, (1e-3, 1e-3))) == [0, 500, 999]
    few = points[:1000:10]
    np.testing.assert_array_equal(thin(few, (1e-3, 1e-3)), np.arange(100))
    assert list(thin(points[:1], (1e-3, 1e-3))) == [0]


def test_runs_that_diverge_or_leave_say_so_in_the_legend(leaving):
    step = int(leaving["diverged_at"][2])
    assert step > 0
    figure = leaving.wb.plot()
    inside = np.abs(leaving["x"].values[1]).max(-1) <= 2
    gone = np.flatnonzero(inside)[-1] + 1
    names = {line.name: line for line in paths_of(figure)}
    assert set(names) == {
        "lr = 0.01",
        f"lr = 0.11: leaves the picture at step {gone}",
        f"lr = 0.5: diverged at step {step}",
    }
    assert names[f"lr = 0.5: diverged at step {step}"].customdata[-1, 0] == step
    assert list(figure.layout.xaxis.range) == [-2, 2]
    ranks = sorted((line.legendrank, line.legendgroup) for line in paths_of(figure))
    assert [label for _, label in ranks] == ["lr = 0.01", "lr = 0.11", "lr = 0.5"]


def test_ends_are_marked_by_a_ring_a_dot_or_a_cross():
    record = wb.rollout(wb.descent("quadratic", "sgd"), 60, hyper={"lr": [1e-2, 1e4]})
    assert int(record["diverged_at"][1]) > 0
    ends = [trace for trace in record.wb.plot().data[2:] if trace.mode == "markers"]
    marks = {trace.legendgroup: list(zip(trace.marker.symbol, trace.text, strict=True)) for trace in ends}
    assert marks["lr = 0.01"] == [("circle-open", "start"), ("circle", "step 60")]
    assert marks["lr = 1e+04"] == [("circle-open", "start")], "its end lies further away than a browser can place"


def test_a_run_that_begins_outside_says_so(rosenbrock):
    record = wb.rollout(wb.descent("rosenbrock", "adam"), 3, start=[[1.9, 2.9], [9.0, 9.0]])
    assert [line.name for line in paths_of(figures.paths(record, rosenbrock))] == [
        "run 1: outside the picture",
        "run 0",
    ]


def test_more_than_two_coordinates_are_projected_and_the_share_outside_is_told():
    objective = wb.make("rosenbrock", dim=4)
    record = wb.rollout(wb.descent(objective, "adam"), 20, hyper={"lr": 0.05})
    moves = np.diff(record["x"].values[0].astype(np.float64), axis=0) ** 2
    figure = figures.paths(record)
    assert f"{moves[:, 2:].sum() / moves.sum():.0%} of the squared step lengths lie outside this plane" in notes(figure)
    assert "plane through x3 = 1, x4 = 1" in notes(figure)


def test_many_runs_share_one_colour_bar_and_their_fates_are_counted():
    record = wb.rollout(wb.descent("quadratic", "sgd"), 200, hyper={"lr": np.geomspace(1e-3, 1, 12)})
    figure = record.wb.plot()
    lost = int((record["diverged_at"] >= 0).sum())
    assert lost > 0
    assert figure.layout.showlegend is False
    assert figure.data[0].showscale is False
    assert figure.data[-1].marker.colorbar.title.text == "lr"
    assert f"{lost} of 12 runs diverged" in notes(figure)


# ------------------------------------------------------------------------------------------------ which objective


def test_plot_draws_the_path_where_there_is_a_plane_and_curves_otherwise(runs):
    assert runs.wb.plot().data[0].type == "contour"
    assert [trace.type for trace in runs.wb.plot("loss").data] == ["scatter", "scatter"]
    deep = wb.rollout(wb.descent(wb.make("rosenbrock", dim=3), "adam"), 3)
    assert deep.wb.plot().layout.yaxis.title.text == "loss"
    assert runs.drop_vars(["x", "loss"]).wb.plot().layout.yaxis.title.text == "grad norm"


@pytest.mark.parametrize("name", ["x**2 + 3*y**2", "rosenbrock", "quadratic"])
def test_objective_is_found_by_the_record_alone_also_from_disk(name, tmp_path):
    record = wb.rollout(wb.descent(name, "sgd"), 3)
    found = figures.objective_of(wb.open(wb.save(record, tmp_path / "run")))
    assert found.recipe() == repr(name)


def test_objective_with_its_settings_is_found(tmp_path):
    record = wb.rollout(wb.descent(wb.make("quadratic", condition=77, angle=5), "sgd"), 3)
    found = figures.objective_of(wb.open(wb.save(record, tmp_path / "run")))
    assert found.settings == {"condition": 77, "angle": 5, "dim": 2}


def test_an_objective_that_does_not_give_the_recorded_losses_is_not_believed(runs):
    assert figures.objective_of(runs.assign_attrs(problem="himmelblau")) is None
    assert figures.objective_of(runs.assign_attrs(problem="quadratic", condition=-3)) is None
    assert figures.objective_of(runs.assign_attrs(problem="expression", text="import os")) is None


def test_a_recipe_is_never_run(runs, monkeypatch, tmp_path):
    trap = tmp_path / "trap"
    foreign = runs.assign_attrs(problem="mine", recipe=f"open({str(trap)!r}, 'w')")
    assert foreign.wb.plot().layout.yaxis.title.text == "loss"
    assert not trap.exists()


def test_ones_own_function_is_drawn_when_it_is_given():
    routine = wb.descent(lambda x: x[0] ** 2 + x[1] ** 4, "sgd")
    record = wb.rollout(routine, 5)
    assert record.wb.plot().layout.yaxis.title.text == "loss"
    assert record.wb.plot(objective=routine.objective).data[0].type == "contour"
    with pytest.raises(ValueError, match=r"expected an objective .* pass objective="):
        figures.paths(record)
    with pytest.raises(ValueError, match="expected an objective of 2 coordinates, got 3"):
        figures.paths(record, wb.make("rosenbrock", dim=3))


def test_a_record_without_positions_is_refused():
    record = wb.rollout(wb.training("linear", "mse", "diabetes", "sgd", batch_size=8), 2)
    with pytest.raises(ValueError, match="expected a record with positions x"):
        figures.paths(record)


# ------------------------------------------------------------------------------------------------ three dimensions


def test_surface_has_the_heights_of_the_field_and_says_what_they_are(rosenbrock):
    figure = figures.surface3d(rosenbrock, size=12)
    heights = figures.field(rosenbrock, size=12)
    np.testing.assert_array_equal(figure.data[0].z, heights.z)
    assert figure.layout.scene.zaxis.title.text == "log10(1 + f - min)"
    assert figure.data[0].colorbar.title.text == "log10(1 + f - min)"


def test_paths_in_three_dimensions_lie_on_or_above_the_surface_and_only_inside_the_domain(leaving):
    objective = figures.objective_of(leaving)
    figure = figures.surface3d(objective, leaving, size=24)
    heights = figures.field(objective, size=24)
    for trace in figure.data[1:]:
        inside = np.isfinite(trace.x)
        assert np.abs(trace.x[inside]).max() <= 2
        assert (trace.z[inside] >= heights.drawn(trace.x[inside], trace.y[inside])).all()
        assert (trace.z[inside] >= heights.height(trace.customdata[inside, 1])).all()
        assert (np.isfinite(trace.z) == inside).all()
    assert named(figure, f"lr = 0.5: diverged at step {int(leaving['diverged_at'][2])}").type == "scatter3d"

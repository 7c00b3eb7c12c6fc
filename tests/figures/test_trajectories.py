import itertools

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from workbench.figures.palette import THEMES
from workbench.figures.trajectories import geometry_curves, segments, state_colours
from workbench.landscapes.geometry import geometry


def ways(runs=3, steps=40):
    s = wb.Key(0).normal((runs, steps, 5), like=torch.empty(0, dtype=torch.float64)) + 0.3
    return geometry(s.cumsum(1), 10 * np.arange(steps))


def segmented(runs=4, steps=30, count=3):
    states = (np.arange(steps) * count // steps + np.arange(runs)[:, None]) % count
    coords = {"run": np.arange(runs), "step": 5 * np.arange(steps), "state": np.arange(count)}
    record = xr.Dataset({"states": (("run", "step"), states)}, coords)
    record["step"].attrs = {"long_name": "steps made", "units": "step"}
    return record


def loss_of(record):
    shape = record["states"].shape
    values = np.geomspace(1, 1e-3, shape[1]) * (1 + np.arange(shape[0])[:, None])
    return xr.DataArray(values, coords=record["states"].coords, name="heldout_loss", attrs={"units": "1"})


def test_every_line_is_its_run_and_measure_and_gaps_stay_gaps():
    record = ways().assign_coords(lr=("run", [0.1, 0.2, 0.3]))
    names = ["distance", "turning_angle", "length"]
    figure = geometry_curves(record, names)
    assert len(figure.data) == 9
    for k, line in enumerate(figure.data):
        np.testing.assert_array_equal(line.x, record["step"].values)
        np.testing.assert_array_equal(line.y, record[names[k // 3]].values[k % 3])
        assert line.yaxis == ["y", "y2", "y3"][k // 3]
        assert line.name == f"lr = {[0.1, 0.2, 0.3][k % 3]}"
        assert line.line.color == THEMES["light"][k % 3]
        assert not line.connectgaps
    assert np.isnan(figure.data[3].y[0])
    assert [line.showlegend for line in figure.data] == [True] * 3 + [False] * 6
    assert figure.layout.yaxis2.title.text == "turning angle [rad]"


def test_panels_stand_one_below_the_other_without_touching():
    layout = geometry_curves(ways()).layout
    domains = [layout[name].domain for name in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert domains[0][1] == 1
    assert domains[-1][0] == pytest.approx(0, abs=1e-9)
    assert all(low > below for (low, _), (_, below) in itertools.pairwise(domains))
    assert layout.xaxis.anchor == "y4"
    assert layout.xaxis.title.text == "steps made"


def test_a_wide_positive_measure_is_logarithmic_and_others_are_not():
    record = ways()
    record["curvature"] = record["curvature"] * 0 + np.geomspace(1e-4, 1, 40)
    layout = geometry_curves(record, ["curvature", "distance"]).layout
    assert (layout.yaxis.type, layout.yaxis2.type) == ("log", "linear")


def test_chosen_and_many_runs():
    assert [line.name for line in geometry_curves(ways(), ["norm"], runs=[2, 0]).data] == ["run 2", "run 0"]
    many = geometry_curves(ways(runs=70), ["norm"])
    assert len(many.data) == 64
    assert "64 of 70 runs shown" in many.layout.title.subtitle.text.replace("<br>", " ")
    assert not many.layout.showlegend
    with pytest.raises(ValueError, match="Did you mean 'norm'"):
        geometry_curves(ways(), ["norms"])
    with pytest.raises(ValueError, match="at least one measure"):
        geometry_curves(ways(), [])


def test_cells_of_the_strip_are_states_in_their_own_colours():
    record = segmented()
    figure = segments(record)
    strip = next(trace for trace in figure.data if trace.type == "heatmap")
    np.testing.assert_array_equal(strip.z, record["states"].values)
    np.testing.assert_array_equal(strip.x, record["step"].values)
    assert strip.text[1][0] == f"run 1, step 0<br>state {record['states'].values[1, 0]}"
    keys = [trace for trace in figure.data if (trace.name or "").startswith("state ")]
    for k, key in enumerate(keys):
        place = (k + 0.5) / 3  # where the value k stands between zmin and zmax
        shown = [colour for at, colour in strip.colorscale if abs(at - place) < 0.5 / 3 + 1e-9]
        assert key.marker.color in shown
        assert key.marker.color == THEMES["light"][k]
    assert (strip.zmin, strip.zmax) == (-0.5, 2.5)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curves_stand_above_and_convergence_is_marked_on_the_strip(theme):
    record = segmented()
    loss = loss_of(record)
    figure = segments(record, loss, times=[50, np.nan, 70, 80], runs=[2, 1, 0], theme=theme)
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]
    assert [line.name for line in lines] == ["run 2", "run 1", "run 0"]
    np.testing.assert_array_equal(lines[0].y, loss.values[2])
    assert {line.yaxis for line in lines} == {"y"}
    mark = next(trace for trace in figure.data if trace.name == "converged")
    assert list(zip(mark.x, mark.y, strict=True)) == [(70, 0), (50, 2)]
    assert mark.yaxis == "y2"
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert figure.layout.yaxis.type == "log"
    assert list(figure.layout.yaxis2.ticktext) == ["2", "1", "0"]
    assert figure.layout.yaxis2.range == (2.5, -0.5)


def test_more_states_than_colours_still_differ():
    assert len(set(state_colours(12))) == 12
    assert state_colours(3, "dark") == list(THEMES["dark"][:3])


def test_what_does_not_fit_is_refused():
    record = segmented()
    with pytest.raises(ValueError, match="of 4 runs"):
        segments(record, loss_of(record).isel(run=slice(2)))
    with pytest.raises(ValueError, match="a time for each of 4 runs"):
        segments(record, times=[1, 2])
    with pytest.raises(ValueError, match="expected runs from 0 to 3"):
        segments(record, runs=[4])


def test_they_are_drawn_without_an_error(page, tmp_path):
    record = segmented()
    for k, figure in enumerate([geometry_curves(ways()), segments(record, loss_of(record), times=[50, 60, 70, 80])]):
        path = tmp_path / f"{k}.html"
        figure.write_html(path, include_plotlyjs="directory")
        page.goto(path.as_uri())
        page.wait_for_selector(".main-svg .xtitle")
        assert page.console_errors == []
        page.screenshot(path=tmp_path / f"{k}.png")

import numpy as np
import pytest

import workbench as wb
from workbench import figures

XS, YS = np.geomspace(1e-3, 1, 4), np.array([0.0, 0.5, 0.9])
VALUES = np.array([[1.0, 0.1, 0.01, 5.0], [0.5, 1e-4, 0.2, 1e30], [1.0, 2.0, np.inf, 3.0]])
STOPS = np.array([[-1, -1, -1, -1], [-1, -1, -1, 17], [-1, -1, -1, -1]])


def drawn(**options):
    return figures.heatmap(VALUES, XS, YS, xname="lr", yname="momentum", diverged=STOPS, **options)


def test_cells_have_their_values_and_those_that_were_lost_have_none():
    cells = drawn().data[0]
    lost = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(cells.customdata, VALUES)
    np.testing.assert_array_equal(np.isnan(cells.z), lost)
    np.testing.assert_allclose(cells.z[~lost], np.log10(VALUES[~lost]))
    np.testing.assert_array_equal(drawn(log=False).data[0].z[~lost], VALUES[~lost])


def test_lost_cells_are_grey_crossed_counted_and_say_why():
    figure = drawn()
    grey, crosses = figure.data[1], figure.data[2]
    np.testing.assert_array_equal(np.isfinite(grey.z), np.isnan(figure.data[0].z))
    assert "<b>diverged at step 17</b>" in grey.text[1][3]
    assert "<b>not finite</b>" in grey.text[2][2]
    assert crosses.name == "diverged (2 of 12)"
    assert set(zip(crosses.x, crosses.y, strict=True)) == {(XS[3], YS[1]), (XS[2], YS[2])}


@pytest.mark.parametrize(("best", "place", "value"), [("lowest", (1, 1), 1e-4), ("highest", (0, 3), 5)])
def test_the_star_is_on_the_best_sound_cell(best, place, value):
    star = drawn(best=best).data[-1]
    assert star.marker.symbol == "star"
    assert (star.x[0], star.y[0]) == (XS[place[1]], YS[place[0]])
    assert star.name.startswith(f"{best}: {value:.4g}<br>at lr = ")


def test_axes_are_logarithmic_where_the_values_are_spaced_so_and_show_whole_cells():
    layout = drawn().layout
    assert (layout.xaxis.type, layout.yaxis.type) == ("log", "linear")
    np.testing.assert_allclose(layout.xaxis.range, [-3.5, 0.5])
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("lr", "momentum")
    forced = drawn(xlog=False, ylog=True).layout
    assert (forced.xaxis.type, forced.yaxis.type) == ("linear", "linear"), "zero has no place on a logarithmic axis"


def test_colours_end_at_the_ceiling_and_the_bar_says_so():
    cells = drawn(ceiling=1.0).data[0]
    assert (cells.zmin, cells.zmax) == (-4, 0)
    assert "capped" in cells.colorbar.title.text
    assert "capped" not in drawn(ceiling=10.0).data[0].colorbar.title.text


def test_nothing_sound_is_a_grey_picture_without_a_star():
    figure = figures.heatmap([[np.nan, 1.0]], [1, 2], [1], xname="a", yname="b", diverged=[[-1, 3]])
    assert [trace.type for trace in figure.data] == ["heatmap", "heatmap", "scatter"]
    assert figure.data[2].name == "diverged (2 of 2)"


def test_shapes_and_orders_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected values of shape"):
        figures.heatmap(VALUES.T, XS, YS, xname="a", yname="b")
    with pytest.raises(ValueError, match="increasing"):
        figures.heatmap(VALUES, XS[::-1], YS, xname="a", yname="b")
    with pytest.raises(ValueError, match="expected best to be one of highest, lowest"):
        drawn(best="nicest")


# ------------------------------------------------------------------------------------------------ from a record


def test_a_sweep_over_two_hyperparameters_is_a_heat_map_of_the_records_last_losses():
    x, y = (part.ravel() for part in np.meshgrid(np.geomspace(1e-3, 1, 5), [0.0, 0.9]))
    record = wb.rollout(wb.descent("quadratic", "momentum"), 60, hyper={"lr": x, "momentum": y}, every=60)
    figure = figures.sweep(record)
    for run in range(10):
        i, j = np.argmin(abs(figure.data[0].y - y[run])), np.argmin(abs(figure.data[0].x - x[run]))
        assert figure.data[0].customdata[i, j] == record["loss"].values[run, -1]
        sound = record["diverged_at"].values[run] < 0 and np.isfinite(record["loss"].values[run, -1])
        assert np.isfinite(figure.data[0].z[i, j]) == sound
    assert figure.layout.title.text == "last loss after 60 steps, momentum on quadratic"


def test_a_sweep_over_one_hyperparameter_is_a_line_with_crosses_for_what_diverged():
    rates = np.geomspace(10, 1e-3, 9)
    record = wb.rollout(wb.descent("quadratic", "sgd"), 400, hyper={"lr": rates}, every=400)
    lost = (record["diverged_at"].values >= 0) | ~np.isfinite(record["loss"].values[:, -1])
    assert 0 < lost.sum() < 9
    figure = figures.sweep(record)
    line, star, crosses = figure.data
    order = np.argsort(rates)
    sound = np.where(lost, np.nan, record["loss"].values[:, -1])[order]
    np.testing.assert_array_equal(line.x, rates[order])
    np.testing.assert_allclose(line.y[np.isfinite(line.y)], sound[np.isfinite(sound)])
    assert star.y[0] == np.nanmin(sound)
    assert crosses.name == f"diverged ({np.isnan(line.y).sum()} of 9)"
    assert all("diverged at step" in text or text == "not finite" for text in crosses.text)
    assert figure.layout.yaxis2.type == "linear"


def test_what_is_no_sweep_is_refused():
    with pytest.raises(ValueError, match="one or two hyperparameters that differ, got loss"):
        figures.sweep(wb.rollout(wb.descent("quadratic", "sgd"), 3))
    x = [0.1, 0.1, 0.2]
    record = wb.rollout(wb.descent("quadratic", "momentum"), 3, hyper={"lr": x, "momentum": [0.1, 0.2, 0.3]})
    with pytest.raises(ValueError, match="expected runs to form a grid over lr and momentum, got 3 runs"):
        figures.sweep(record)
    with pytest.raises(ValueError, match="a variable to be one of"):
        figures.sweep(record, "lost")

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench import figures
from workbench.figures import charts, palette, theme

STEPS = np.arange(6)


def record_of(values, *, stops=None, coords=None, attrs=None, units="1", dims=("run", "step"), **extra):
    """A record as `wb.rollout` makes it, with one variable of these values, (runs, steps, …)."""
    values = np.asarray(values, dtype=np.float64)
    runs, steps = values.shape[:2]
    label = {"long_name": "what is measured", "units": units}
    return xr.Dataset(
        {
            "loss": (dims, values, label),
            "diverged_at": ("run", np.full(runs, -1) if stops is None else stops),
        },
        {
            "run": np.arange(runs),
            "step": ("step", np.arange(steps), {"long_name": "steps made", "units": "step"}),
            **(coords or {}),
        },
        {"method": "adam", **(attrs or {})},
    )


def lines(figure):
    return [trace for trace in figure.data if "lines" in (trace.mode or "") or trace.marker.size == 5]


def crosses(figure):
    return [trace for trace in figure.data if trace.marker.symbol == "x"]


def notes(figure):
    return (figure.layout.title.subtitle.text or "").replace("<br>", " ")


@pytest.fixture(scope="module")
def adam():
    return wb.rollout(wb.descent("rosenbrock", "adam"), 60, hyper={"lr": [1e-3, 1e-2, 1e-1]})


@pytest.fixture(scope="module")
def exploding():
    """Two sound runs, one whose loss overflows, one that diverges."""
    return wb.rollout(wb.descent("quadratic", "sgd"), 300, hyper={"lr": [1e-3, 1e-2, 0.11, 0.3]})


@pytest.mark.parametrize("variable", ["loss", "grad_norm"])
def test_every_line_is_its_run_in_the_record(adam, variable):
    figure = figures.curves(adam, variable)
    assert len(lines(figure)) == adam.sizes["run"]
    for run, line in enumerate(lines(figure)):
        np.testing.assert_array_equal(line.x, adam["step"].values)
        np.testing.assert_array_equal(line.y, adam[variable].values[run].astype(np.float64))


def test_chosen_runs_are_drawn_in_that_order(adam):
    figure = figures.curves(adam, "loss", runs=[2, 0])
    np.testing.assert_array_equal(lines(figure)[0].y, adam["loss"].values[2].astype(np.float64))
    assert [line.name for line in lines(figure)] == ["lr = 0.1", "lr = 0.001"]
    with pytest.raises(ValueError, match="expected runs from 0 to 2, got 3"):
        figures.curves(adam, "loss", runs=[3])


def test_unknown_variable_is_named_beside_those_there_are(adam):
    with pytest.raises(ValueError, match=r"a variable with steps.*grad_norm.*got 'los'.*Did you mean 'loss'"):
        figures.curves(adam, "los")
    with pytest.raises(ValueError, match="got 'diverged_at'"):
        figures.curves(adam, "diverged_at")


# ------------------------------------------------------------------------------------------------ decimation


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(np.nan) | st.just(np.inf), min_size=1, max_size=400),
    st.integers(8, 60),
)
def test_decimation_keeps_both_extremes_and_a_gap_of_every_bucket(values, points):
    y = np.array(values)
    kept = charts.decimate(y, points)
    finite = np.isfinite(y)
    assert len(kept) <= max(points, 2)
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1
    assert (np.diff(kept) > 0).all()
    if len(y) <= points:
        assert len(kept) == len(y)
        return
    width = -(-len(y) // ((points - 2) // (2 if finite.all() else 3)))
    for start in range(0, len(y), width):
        bucket = np.arange(start, min(start + width, len(y)))
        inside = y[np.intersect1d(kept, bucket)]
        known = y[bucket][finite[bucket]]
        if len(known):
            assert known.min() in inside
            assert known.max() in inside
        if len(known) < len(bucket):
            assert not np.isfinite(inside).all()


def test_a_single_peak_survives_where_striding_would_lose_it():
    y = np.zeros(100_000)
    y[54_321] = 1.0
    assert 54_321 in charts.decimate(y, 1000)
    assert y[::100].max() == 0


def test_long_lines_are_reduced_to_the_points_asked_for_and_keep_their_extremes():
    y = np.random.default_rng(0).normal(size=(1, 50_000))
    (line,) = lines(figures.curves(record_of(y), max_points=500))
    assert len(line.y) <= 500
    assert (line.y.min(), line.y.max()) == (y.min(), y.max())
    assert (line.x[0], line.x[-1]) == (0, 49_999)


def test_decimating_to_almost_nothing_is_refused():
    with pytest.raises(ValueError, match="expected points to be at least 8, got 3"):
        charts.decimate(np.zeros(10), 3)


# ------------------------------------------------------------------------------------------------ what is not finite


def test_a_diverged_run_ends_in_a_cross_at_its_last_finite_value(exploding):
    run = 3
    step = int(exploding["diverged_at"][run])
    assert step > 0
    figure = figures.curves(exploding)
    line, cross = lines(figure)[run], next(c for c in crosses(figure) if c.legendgroup == "lr = 0.3")
    values = exploding["loss"].values[run, : step + 1].astype(np.float64)
    last = np.flatnonzero(np.isfinite(values))[-1]
    np.testing.assert_array_equal(line.x, np.arange(step + 1))
    assert (cross.x[0], cross.y[0]) == (last, values[last])
    assert f"diverged at step {step}" in cross.hovertemplate
    assert line.name == f"lr = 0.3: diverged at step {step}"
    assert len(lines(figure)[0].x) == 301, "a sound run is drawn to its end"


def test_a_run_whose_loss_overflows_is_marked_although_its_points_are_finite(exploding):
    assert int(exploding["diverged_at"][2]) == -1
    figure = figures.curves(exploding)
    finite = np.flatnonzero(np.isfinite(exploding["loss"].values[2]))[-1]
    assert lines(figure)[2].name == f"lr = 0.11: not finite from step {finite + 1}"
    assert [c.legendgroup for c in crosses(figure)] == ["lr = 0.11", "lr = 0.3"]


def test_an_explosion_does_not_squeeze_the_sound_runs(exploding):
    figure = figures.curves(exploding)
    low, high = figure.layout.yaxis.range
    sound = np.log10(exploding["loss"].values[:2])
    assert figure.layout.yaxis.type == "log"
    assert low <= sound.min() <= sound.max() <= high < sound.max() + charts.DECADES
    said = [note.hovertext for note in figure.layout.annotations]
    assert len(said) == 2
    assert all("beyond this axis" in text for text in said)


def test_the_axis_is_left_alone_when_every_run_explodes(exploding):
    figure = figures.curves(exploding, runs=[2, 3])
    assert figure.layout.yaxis.range is None
    assert not figure.layout.annotations


def test_a_point_no_browser_could_place_is_hidden_and_told_at_the_edge():
    values = np.array([[1.0, 0.5, 0.0, -0.5], [1.0, 1e10, 1e30, np.nan]])
    figure = figures.curves(record_of(values, stops=[-1, 3]))
    (cross,) = crosses(figure)
    assert cross.visible is False
    assert figure.layout.yaxis.type == "linear"
    assert "last finite value 1e+30, beyond this axis" in figure.layout.annotations[0].hovertext


def test_values_that_are_not_finite_leave_gaps_and_are_counted():
    figure = figures.curves(record_of([[1, 2, np.nan, np.inf, 5, 6]]))
    (line,) = lines(figure)
    assert line.connectgaps is False
    np.testing.assert_array_equal(line.y, [1, 2, np.nan, np.nan, 5, 6])
    assert notes(figure) == "2 values are not finite and left out"


def test_a_first_value_that_nothing_measured_is_no_gap():
    assert notes(figures.curves(record_of([[np.nan, 2, 3]]))) == ""


def test_a_run_without_a_single_finite_value_is_named():
    record = record_of([[1.0, 2.0], [np.nan, np.nan]], coords={"lr": ("run", [0.1, 0.2])})
    assert notes(figures.curves(record)) == "no finite value: lr = 0.2"


# ------------------------------------------------------------------------------------------------ axes


@pytest.mark.parametrize(
    ("values", "log", "kind"),
    [
        ([[1e-3, 1, 10]], "auto", "log"),
        ([[1, 2, 3]], "auto", "linear"),
        ([[0, 1, 1e6]], "auto", "linear"),
        ([[-1, 1, 1e6]], True, "linear"),
        ([[1, 2, 3]], True, "log"),
        ([[1e-3, 1, 10]], False, "linear"),
    ],
)
def test_axis_is_logarithmic_only_where_every_value_is_positive(values, log, kind):
    figure = figures.curves(record_of(values), log=log)
    assert (figure.layout.yaxis.type or "linear") == kind
    assert ("linear axis: some values are zero or negative" in notes(figure)) == (log is True and kind == "linear")


def test_axes_and_title_carry_names_and_units():
    figure = figures.curves(record_of([[1, 2, 3]], units="mm"))
    assert figure.layout.yaxis.title.text == "loss [mm]"
    assert figure.layout.xaxis.title.text == "steps made"
    assert figure.layout.title.text == "what is measured"
    plain = figures.curves(record_of([[1, 2, 3]], units="1"))
    assert plain.layout.yaxis.title.text == "loss"


def test_long_titles_go_on_beneath():
    record = record_of([[1, 2]])
    record["loss"].attrs["long_name"] = "loss of the minibatch, mean per sample, measured by the step that led here"
    figure = figures.curves(record)
    assert figure.layout.title.text == "loss of the minibatch, mean per sample"
    assert notes(figure) == "measured by the step that led here"


# ------------------------------------------------------------------------------------------------ names and colours


def test_runs_are_called_by_method_then_by_hyperparameters_then_by_the_one_method():
    values = np.ones((2, 3))
    named = record_of(values, coords={"method": ("run", ["adam", "sgd"]), "lr": ("run", [0.1, 0.2])})
    assert [line.name for line in lines(figures.curves(named))] == ["adam", "sgd"]
    two = record_of(values, coords={"lr": ("run", [0.1, 0.2]), "momentum": ("run", [0, 0.9])})
    assert [line.name for line in lines(figures.curves(two))] == ["lr = 0.1, momentum = 0", "lr = 0.2, momentum = 0.9"]
    assert [line.name for line in lines(figures.curves(record_of(values)))] == ["run 0", "run 1"]
    assert [line.name for line in lines(figures.curves(record_of(values[:1])))] == ["adam"]


def test_a_method_has_one_colour_whatever_stands_beside_it():
    def colours(*names):
        record = record_of(np.ones((len(names), 3)), coords={"method": ("run", list(names))})
        return {line.name: line.line.color for line in lines(figures.curves(record))}

    six = colours("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw")
    assert len(set(six.values())) == 6
    assert colours("adamw", "sgd").items() <= six.items()
    assert colours("adam") == {"adam": figures.method_colour("adam")} == {"adam": six["adam"]}
    assert lines(figures.curves(record_of(np.ones((1, 3)))))[0].line.color == six["adam"]


def test_up_to_eight_methods_differ_whatever_they_are_called():
    names = [f"method {k}" for k in range(8)]
    assert sorted(palette.method_indices(names)) == list(range(8))
    assert palette.method_indices([*names, "one more"])[8] == palette.method_index("one more")
    assert figures.method_colour("adam", 2, theme="dark") == palette.DARK[2]


def test_many_runs_of_one_hyperparameter_get_a_colour_bar_and_a_word_on_those_that_diverged():
    rates = np.geomspace(1e-4, 1, 12)
    stops = np.where(rates > 0.5, 2, -1)
    figure = figures.curves(record_of(np.ones((12, 4)), coords={"lr": ("run", rates)}, stops=stops))
    bar = figure.data[-1].marker
    assert figure.layout.showlegend is False
    assert bar.colorbar.title.text == "lr"
    assert list(bar.colorbar.ticktext) == [f"10<sup>{k}</sup>" for k in (-4, -3, -2, -1, 0)]
    assert len({line.line.color for line in lines(figure)}) == 12
    assert notes(figure) == "× 1 of 12 runs diverged"


def test_more_runs_than_can_be_told_apart_are_thinned_and_the_figure_says_so():
    figure = figures.curves(record_of(np.ones((1000, 3)), coords={"lr": ("run", np.linspace(0.1, 1, 1000))}))
    assert len(lines(figure)) == 64
    assert "64 of 1,000 runs shown" in notes(figure)


def test_layers_are_lines_of_their_own_and_runs_differ_by_dash():
    values = np.arange(2 * 3 * 2, dtype=float).reshape(2, 3, 2)
    coords = {"layer": ["weight 1", "bias 1"], "lr": ("run", [0.1, 0.2])}
    record = record_of(values, dims=("run", "step", "layer"), coords=coords)
    drawn = lines(figures.curves(record))
    assert [line.name for line in drawn][:2] == ["lr = 0.1 · weight 1", "lr = 0.1 · bias 1"]
    np.testing.assert_array_equal(drawn[3].y, values[1, :, 1])
    assert [line.line.dash for line in drawn] == ["solid", "solid", "dash", "dash"]
    assert drawn[0].line.color == drawn[2].line.color != drawn[1].line.color
    assert [line.name for line in lines(figures.curves(record, runs=[0]))] == ["weight 1", "bias 1"]


def test_a_variable_of_thousands_of_lines_is_refused():
    record = record_of(np.zeros((1, 2, 1000)), dims=("run", "step", "parameter"))
    with pytest.raises(ValueError, match="expected at most 256 lines, got 1000 along 'parameter'"):
        figures.curves(record)


def test_a_training_record_is_drawn_with_its_layers():
    routine = wb.training("mlp", "cross_entropy", "digits", "adam", batch_size=16)
    record = wb.rollout(routine, 4, probes=["norms"])
    drawn = lines(figures.curves(record, "layer_grad_norm"))
    assert [line.name for line in drawn] == ["weight 1", "bias 1", "weight 2", "bias 2"]
    assert record.wb.plot().layout.yaxis.title.text == "loss"


# ------------------------------------------------------------------------------------------------ fan, series, theme


def test_the_fan_has_a_line_a_value_and_the_present_one_on_top_in_ink():
    values, losses = np.array([0.1, 0.2, 0.4]), np.arange(12.0).reshape(3, 4)
    figure = figures.fan(range(4), values, losses, name="lr", current=0.19, diverged=[-1, -1, 2])
    drawn = {line.name: line for line in lines(figure)}
    assert list(drawn) == ["lr = 0.1", "lr = 0.4: diverged at step 2", "lr = 0.2 (now)"]
    np.testing.assert_array_equal(drawn["lr = 0.1"].y, losses[0])
    assert drawn["lr = 0.2 (now)"].line.color == theme.look("light")["ink"]
    assert notes(figure) == "× 1 of 3 runs diverged"


def test_a_series_of_unequal_length_is_refused():
    with pytest.raises(ValueError, match="expected x and y of 'a' to be equally long rows"):
        figures.Series("a", [0, 1], [1.0], "#000000")


def test_a_chart_of_nothing_is_an_empty_figure():
    assert len(figures.chart([], x_label="step", y_label="loss").data) == 0


@pytest.mark.parametrize(("name", "paper"), palette.PAPER.items())
def test_figures_stand_on_the_paper_of_their_theme(adam, name, paper):
    figure = figures.curves(adam, theme=name)
    assert figure.layout.template.layout.paper_bgcolor == paper
    assert {line.line.color for line in lines(figure)} <= set(palette.THEMES[name])


def test_an_unknown_theme_is_named():
    with pytest.raises(ValueError, match=r"expected theme to be one of dark, light; got 'drak'\. Did you mean 'dark'"):
        figures.contours(wb.make("himmelblau"), theme="drak")


def luminance(colour):
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    return np.dot(
        [0.2126, 0.7152, 0.0722], [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    )


@pytest.mark.parametrize(("name", "paper"), [("light", 1.0), ("dark", luminance("rgb(18,18,18)"))])
def test_lines_coloured_by_value_never_vanish_on_the_paper(name, paper):
    for colour in theme.colours_along(np.linspace(0, 1, 33), name):
        bright, dim = max(paper, luminance(colour)), min(paper, luminance(colour))
        assert (bright + 0.05) / (dim + 0.05) > 1.5

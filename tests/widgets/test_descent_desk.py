"""The Descent app without a page: commands, lines of time, links, the fan, the heat map."""

import itertools
import json
import threading
import time

import numpy as np
import pytest
import torch

import workbench as wb
from tests.widgets.desks import done
from widgets.apps.curves import MOST, curves, decimate
from widgets.apps.descent_ahead import HeatMap, around
from widgets.apps.descent_desk import DescentDesk, new_label
from widgets.apps.desk import TURNING_SECONDS
from widgets.player import Paths, Points, encode_frame, encode_scene
from workbench.tree import same_bits


@pytest.fixture
def make(open_desk):
    """`make(**query)`: a desk from a link."""
    return lambda **query: open_desk(DescentDesk, query=query)


def again(make, desk):
    """A desk made from another's link."""
    return make(**desk.query())


# ---- transport


def test_step_back_and_seek_stand_where_they_say(desk):
    done(desk, lambda: desk.step(30), lambda: desk.back(10))
    assert (desk.session.index, desk.session.head) == (20, 30)
    done(desk, lambda: desk.seek(5))
    assert desk.session.index == 5
    done(desk, lambda: desk.seek(10_000))
    assert desk.session.index == 30


def test_play_moves_and_pause_stops(desk):
    moved = threading.Event()
    desk.on("frame", lambda frame: frame.step >= 5 and moved.set())
    done(desk, desk.toggle)
    assert moved.wait(20)
    done(desk, desk.toggle)
    stood = desk.session.index
    assert not desk.session.playing
    desk.wait()
    assert desk.session.index == stood


@pytest.mark.slow
def test_first_rates_move_every_surface_visibly_and_keep_it_in_the_picture(make):
    for row in wb.catalogue("surfaces"):
        desk = make(surface=row.name)
        done(desk, lambda desk=desk: desk.step(150))
        (x0, x1), (y0, y1) = desk.objective.domain
        points = desk.track(desk.session).points.array
        size = np.array([x1 - x0, y1 - y0])[:, None]
        assert desk.session.status == ["ok"] * 3, row.name
        assert (np.ptp(points, axis=0) / size).max(0).min() > 0.02, f"{row.name}: {desk.session.hyper}"
        desk.close()


# ---- turning


def test_many_turns_of_one_slider_become_few_and_the_last_counts(desk):
    hold, go = threading.Event(), threading.Event()
    desk.do(lambda: (hold.set(), go.wait(10)))
    hold.wait(10)
    for k in range(100):
        desk.turn("sgd.lr", (k + 1) / 1e5)
    go.set()
    desk.wait()
    assert desk.session.hyper["sgd.lr"] == 1e-3
    assert len(desk.session.edits) == 1


def test_a_turn_in_the_past_leaves_the_old_future_as_a_line_of_its_own(desk):
    done(desk, lambda: desk.step(20))
    future = desk.session.state
    done(desk, lambda: desk.back(10), lambda: desk.turn("sgd.lr", 1e-4), lambda: desk.step(3))
    assert [line.label for line in desk.lines] == ["A", "B"]
    assert (desk.live, desk.line.born, desk.session.head) == (1, 10, 13)
    done(desk, lambda: desk.switch(0), lambda: desk.seek(20))
    assert same_bits(desk.session.state, future)


def test_a_branch_shares_the_past_and_goes_its_own_way(desk):
    done(desk, lambda: desk.step(10), desk.branch, lambda: desk.turn("adam.lr", 0.01), lambda: desk.step(5))
    a, b = (line.session for line in desk.lines)
    assert (a.index, b.index) == (10, 15)
    dashed = [layer for layer in desk.frame().layers if isinstance(layer, Paths) and layer.dashed]
    assert len(dashed) == 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), 1e9, "fast"])
def test_an_illegal_value_changes_nothing_and_is_said(desk, value):
    done(desk, lambda: desk.step(5), lambda: desk.back(2))
    before = desk.query()
    done(desk, lambda: desk.turn("sgd.lr", value))
    assert desk.query() == before
    assert len(desk.lines) == 1
    assert desk.said[-1][0] == "error"
    assert "lr" in desk.said[-1][1]


@pytest.mark.parametrize(
    "settings",
    [
        {"surface": "no-such-surface"},
        {"surface": "x**2 + import"},
        {"surface": "x1 + x2 + x3**2"},
        {"surface": "scalar-net", "shape": {"dim": 4}},
        {"surface": "quadratic", "shape": {"condition": -3}},
        {"surface": 5},
        {"shape": {"nothing": 1}},
        {"methods": []},
        {"methods": ["sgd"] * 2},
        {"methods": ["no-such-method"]},
        {"methods": ["adam"] + [f"adam{k}" for k in range(2, 9)]},
        {"start": [1.0]},
        {"start": [1.0, float("inf")]},
        {"seed": -1},
    ],
)
def test_bad_settings_leave_everything_as_it_was(desk, settings):
    done(desk, lambda: desk.step(7))
    before, state = desk.query(), desk.session.state
    done(desk, lambda: desk.choose(**settings))
    assert desk.said[-1][0] == "error"
    assert len(desk.said[-1][1].splitlines()) == 1
    assert desk.query() == before
    assert same_bits(desk.session.state, state)
    assert not desk.session.closed


def test_a_wrong_expression_is_told_by_itself_and_nothing_is_lost(desk):
    told = []
    desk.on("expression", told.append)
    before = desk.query()
    done(desk, lambda: desk.choose_text("x**2 + zap(y)"))
    assert "zap" in told[-1]
    assert desk.query() == before
    done(desk, lambda: desk.choose_text("x**2 + 3*y**2"))
    assert told[-1] == ""
    assert desk.settings["surface"] == "x**2 + 3*y**2"


def test_noise_turns_for_every_method_together(make):
    desk = make(surface="noisy-ravine")
    done(desk, lambda: desk.step(3), lambda: desk.turn_surface("noise", 4.0))
    assert {desk.session.hyper[f"{label}.noise"] for label in desk.labels} == {4.0}
    done(desk, lambda: desk.add("adamw"))
    assert desk.session.hyper["adamw.noise"] == 4.0


# ---- methods and start


def test_adding_and_removing_keeps_the_others_their_start_and_their_place(desk):
    done(desk, lambda: desk.click(-1.5, 2.0), lambda: desk.step(20), lambda: desk.turn("sgd.lr", 1e-4))
    done(desk, lambda: desk.step(20), lambda: desk.back(5))
    kept, hyper = desk.session.state.parts, desk.session.hyper
    done(desk, lambda: desk.add("adam"))
    assert desk.labels == ["sgd", "momentum", "adam", "adam2"]
    assert same_bits(desk.session.state.parts[:3], kept)
    assert desk.session.index == 35
    assert hyper.items() <= desk.session.hyper.items()
    assert desk.session.hyper["adam2.lr"] != desk.session.hyper["adam.lr"]
    done(desk, lambda: desk.remove("momentum"))
    assert desk.labels == ["sgd", "adam", "adam2"]
    assert same_bits(desk.session.state.parts[:2], (kept[0], kept[2]))


def test_labels_are_unique_and_say_their_method():
    assert new_label("adam", ["sgd"]) == "adam"
    assert new_label("adam", ["adam", "adam3"]) == "adam2"


def test_at_most_six_methods(desk):
    for _ in range(4):
        desk.add("sgd")
    desk.wait()
    assert len(desk.labels) == 6
    assert "6" in desk.said[-1][1]


def test_a_click_begins_anew_there_with_the_hyperparameters_kept(desk):
    done(desk, lambda: desk.turn("sgd.lr", 5e-4), lambda: desk.step(9), lambda: desk.click(0.123456, -0.5))
    assert desk.session.index == 0
    assert desk.settings["start"] == [0.1235, -0.5]
    assert desk.session.hyper["sgd.lr"] == 5e-4
    assert np.allclose(desk.session.state.parts[0].x[:, 0], [0.1235, -0.5])


def test_condition_keeps_the_rates_and_another_surface_brings_its_own(make):
    desk = make(surface="quadratic")
    rates = desk.session.hyper
    done(desk, lambda: desk.choose(shape={"condition": 300.0}))
    assert desk.objective.condition == 300.0
    assert desk.session.hyper == rates
    done(desk, lambda: desk.choose(surface="himmelblau"))
    assert desk.settings["shape"] == {}
    assert desk.session.hyper != rates


# ---- links, scripts, runs


def test_a_link_opens_the_same_state_to_the_bit(make):
    desk = make(surface="quadratic", shape='{"condition": 40}', methods='["sgd", "adam", "adam2"]')
    done(desk, lambda: desk.click(-1.0, 1.5), lambda: desk.step(15), lambda: desk.turn("adam2.lr", 0.07))
    done(desk, lambda: desk.step(15), lambda: desk.turn("sgd.lr", 3e-3), lambda: desk.step(4), lambda: desk.back(1))
    twin = again(make, desk)
    assert twin.opening_errors == []
    assert twin.session.index == desk.session.index
    assert same_bits(twin.session.state, desk.session.state)
    assert twin.query() == desk.query()


def test_a_link_of_an_expression_and_of_a_branch_opens_the_live_line(make):
    desk = make(surface="x**2 + 3*sin(y)**2")
    done(desk, lambda: desk.step(20), lambda: desk.back(8), lambda: desk.turn("adam.lr", 0.01), lambda: desk.step(6))
    assert len(desk.lines) == 2
    twin = again(make, desk)
    assert len(twin.lines) == 1
    assert same_bits(twin.session.state, desk.session.state)


@pytest.mark.parametrize(
    "query",
    [
        {"surface": "nonsense"},
        {"hyper": '{"sgd.lr": -4}'},
        {"hyper": '{"sgd.zap": 4}'},
        {"hyper": "[1]"},
        {"edits": "???"},
        {"methods": "7"},
        {"start": '["a", 2]'},
        {"shape": "[]"},
    ],
)
def test_a_damaged_link_opens_with_a_sentence(make, query):
    desk = make(**query)
    assert desk.opening_errors
    done(desk, lambda: desk.step(2))
    assert desk.session.index == 2


def test_the_script_makes_the_same_state(desk, tmp_path, monkeypatch):
    done(desk, lambda: desk.click(-1.5, 0.5), lambda: desk.step(12), lambda: desk.turn("adam.lr", 0.03))
    done(desk, lambda: desk.step(12))
    space = {"__name__": "script"}
    exec(compile(desk.script(), "script", "exec"), space)  # noqa: S102 - the script is the claim
    assert same_bits(space["session"].state, desk.session.state)


def test_a_saved_run_opens_again_at_the_same_state(desk):
    done(desk, lambda: desk.step(25), lambda: desk.turn("sgd.lr", 1e-4), lambda: desk.step(5))
    state = desk.session.state
    done(desk, lambda: desk.save("mine"), desk.restart)
    done(desk, lambda: desk.reopen("mine"))
    assert same_bits(desk.session.state, state)
    done(desk, lambda: desk.delete("mine"), lambda: desk.reopen("mine"))
    assert desk.said[-1][0] == "error"


def test_the_exported_page_has_curves_of_every_method(desk):
    done(desk, lambda: desk.step(40))
    text = desk.html()
    assert "sgd" in text
    series = desk.series([0, 20, 40])
    assert set(series) == set(desk.labels)
    assert all(np.isfinite(row).all() and len(row) == 3 for row in series.values())
    assert series["adam"][0] == pytest.approx(24.2, rel=1e-5)
    assert "rosenbrock" in json.dumps(desk.meta()).lower()


# ---- the picture


def test_trails_hold_every_step_and_are_cut_where_the_session_stands(desk):
    done(desk, lambda: desk.step(60))
    x = wb.rollout(wb.descent("rosenbrock", "adam"), 60, hyper={"lr": desk.session.hyper["adam.lr"]})["x"].values[0]
    track = desk.track(desk.session)
    assert np.array_equal(track.points.array[:, :, 2], x[:60])
    done(desk, lambda: desk.back(40))
    trail = next(layer for layer in desk.frame().layers if isinstance(layer, Paths))
    ends = np.stack([trail.x, trail.y], 1)[trail.offsets[1:] - 1]
    assert np.array_equal(ends[2], x[20])


def test_a_diverged_method_is_crossed_and_said_and_when_all_are_lost_what_to_do(desk):
    for label in ("sgd", "momentum"):
        desk.turn(f"{label}.lr", 1.0)
    done(desk, lambda: desk.step(40))
    frame = desk.frame()
    heads = [layer for layer in frame.layers if isinstance(layer, Points)]
    assert [bool(layer.crossed[0]) for layer in heads] == [True, True, False]
    assert "sgd diverged at step" in frame.caption
    done(desk, lambda: desk.remove("adam"))
    assert desk.said[-1][0] == "warning"
    assert "lower lr" in desk.said[-1][1]
    assert "lower lr" in desk.status()


@pytest.mark.slow
def test_every_surface_makes_a_scene_and_a_frame_that_can_be_sent(make):
    for row in wb.catalogue("surfaces"):
        desk = make(surface=row.name)
        assert encode_scene(desk.scene(), 1)
        assert encode_frame(desk.frame(), 2)
        desk.close()


# ---- curves


def test_curves_are_the_recorded_losses_and_gradient_norms(desk):
    done(desk, lambda: desk.step(50))
    record = desk.session.record()
    loss, slope = desk.curve_figures()
    assert [trace["name"] for trace in loss["data"]] == desk.labels
    for i, trace in enumerate(loss["data"]):
        assert np.allclose(trace["y"], record["loss"].values[i], rtol=1e-3, atol=1e-7)
    assert np.allclose(slope["data"][0]["y"], record["grad_norm"].values[0], rtol=1e-3, atol=1e-4)


def test_decimation_keeps_extremes_and_gaps():
    y = np.sin(np.arange(50_000) / 900)
    y[31_234], y[777], y[20_000:20_500] = 40.0, -40.0, np.nan
    steps, kept = decimate(np.arange(50_000), y)
    assert len(kept) <= MOST
    assert (np.nanmax(kept), np.nanmin(kept)) == (40.0, -40.0)
    assert np.isnan(kept).any()
    assert (steps[0], steps[-1]) == (0, 49_999)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [np.nan, np.inf], [1e-300, 1e300], [-1.0, 2.0]])
@pytest.mark.parametrize("log", [True, False])
def test_any_values_make_a_figure_with_finite_ranges(values, log):
    figure = curves([{"name": "a", "steps": range(len(values)), "values": values}], log=log, theme="dark", cursor=1)
    for axis in ("xaxis", "yaxis"):
        low, high = figure["layout"][axis]["range"]
        assert np.isfinite([low, high]).all()
        assert low < high
    assert "uirevision" in figure["layout"]


# ---- looking ahead


@pytest.mark.parametrize("surface", ["rosenbrock", "rastrigin", "noisy-ravine", "x**2 + exp(sin(3*y)) * 2"])
@pytest.mark.parametrize("label", ["momentum", "adam"])
def test_the_middle_of_the_fan_is_the_sessions_own_future_to_the_bit(make, surface, label):
    desk = make(surface=surface)
    done(desk, lambda: desk.step(30), lambda: desk.show_fan(on=True, label=label, name="lr"))
    fan = desk.fan_result
    middle = int(np.flatnonzero(fan.values == desk.session.hyper[f"{label}.lr"])[0])
    done(desk, lambda: desk.step(200))
    i = desk.labels.index(label)
    lived = np.concatenate([desk.track(desk.session).points.array[30:230, :, i], desk.session.state.parts[i].x.T])
    assert fan.points.shape == (201, 2, 33)
    assert np.array_equal(fan.points[:, :, middle], lived)


def test_the_fan_follows_the_slider_and_the_moves(desk):
    assert desk.fan_result is None
    done(desk, lambda: desk.show_fan(on=True, label="adam", name="beta1", count=17))
    first = desk.fan_result
    assert (first.now, first.first) == (0.9, 0)
    done(desk, lambda: desk.turn("adam.beta1", 0.5))
    assert desk.fan_result.now == 0.5
    done(desk, lambda: desk.step(4))
    assert desk.fan_result.first == 4
    assert any(isinstance(layer, Paths) and layer.scale for layer in desk.frame().layers)
    done(desk, lambda: desk.remove("adam"))
    assert desk.fan_result.label != "adam"
    done(desk, lambda: desk.show_fan(on=False))
    assert desk.fan_result is None


def test_the_picture_answers_before_the_fan_and_only_the_newest_value_has_one(desk):
    told, held = [], threading.Event()
    done(desk, lambda: desk.show_fan(on=True, label="adam", name="lr", count=5))
    desk.on("frame", lambda frame: told.append(("frame", frame.number)))
    desk.on("fan", lambda: told.append(("fan", desk.fan_result.now)))
    desk.do(lambda: held.wait(20))
    desk.turn("sgd.lr", 0.001)
    desk.turn("adam.lr", 0.02)
    held.set()
    desk.wait()
    answers = [row for row in told if row in (("frame", 1), ("frame", 2)) or row[0] == "fan"]
    assert [row for row in answers if row[0] == "fan"] == [("fan", 0.02)]
    assert answers.index(("frame", 2)) < answers.index(("fan", 0.02))


def test_while_a_hand_turns_curves_are_drawn_less_often(desk):
    drawn = []
    desk.on("curves", lambda: drawn.append(time.perf_counter()))
    done(desk, desk.toggle)
    end = time.perf_counter() + 2
    for k in itertools.count():
        if time.perf_counter() > end:
            break
        desk.turn("sgd.lr", 0.001 + 1e-5 * k)
        time.sleep(0.05)
    done(desk, desk.toggle)
    gaps = np.diff([at for at in drawn if end - 1.5 < at < end])  # while the hand turned, not as it began or let go
    assert len(gaps) >= 1
    assert gaps.min() >= TURNING_SECONDS - 0.1


def test_fan_values_are_legal_increasing_and_hold_the_present_one():
    for hyper, now in (
        (wb.Hyper(0.1, 0, 10, "log", (1e-5, 1)), 0.0371),
        (wb.Hyper(0.9, 0, 1), 0.97),
        (wb.Hyper(0.0, 0, 1), 0.0),
    ):
        for count in (2, 17, 33, 64):
            found = around(hyper, now, count)
            assert now in found
            assert (np.diff(found) > 0).all()
            assert found.min() >= hyper.low
            assert found.max() <= hyper.high


def test_a_heat_map_cell_is_the_run_with_its_values(desk):
    done(desk, lambda: desk.click(-1.0, 2.0), lambda: desk.turn("adam.beta2", 0.9))
    done(desk, lambda: desk.draw_heat("adam", "lr", "beta1", steps=80, side=8))
    while desk.heat_map.done < 1:
        desk.wait()
    job = desk.heat_map
    assert job.losses.shape == (8, 8)
    for row, column in ((0, 0), (3, 4), (7, 2)):
        hyper = {"lr": job.xs[column], "beta1": job.ys[row], "beta2": 0.9}
        single = wb.rollout(wb.descent("rosenbrock", "adam"), 80, start=[-1.0, 2.0], hyper=hyper, every=80)
        assert job.losses[row, column] == pytest.approx(single["loss"].values[0, -1], rel=1e-4, abs=1e-6)


def test_a_heat_map_says_which_cells_diverged(desk):
    done(desk, lambda: desk.draw_heat("sgd", "lr", "weight_decay", steps=60, side=8))
    while desk.heat_map.done < 1:
        desk.wait()
    lost = desk.heat_map.diverged >= 0
    assert lost.any()
    assert not lost.all()
    assert np.array_equal(np.isnan(desk.heat_map.losses), lost)


def test_a_heat_map_can_be_cancelled_and_lets_other_commands_in_between(desk):
    began = threading.Event()
    desk.on("heat", began.set)
    desk.draw_heat("adam", "lr", "beta1", steps=5000, side=32)
    assert began.wait(20)
    done(desk, lambda: desk.step(3))
    assert desk.session.index == 3
    assert desk.heat_map.done < 1
    done(desk, desk.cancel_heat)
    done(desk)
    stood = desk.heat_map.done
    done(desk)
    assert desk.heat_map.done == stood


def test_a_heat_map_of_what_cannot_be_drawn_is_refused(desk):
    for arguments in (("adam", "lr", "lr"), ("nobody", "lr", "beta1")):
        done(desk, lambda arguments=arguments: desk.draw_heat(*arguments))
        assert desk.said[-1][0] == "error"
    with pytest.raises(ValueError, match="side"):
        HeatMap(desk.session, "adam", "lr", "beta1", steps=10, side=100)


# ---- the end


def test_closing_ends_every_thread_of_the_desk(make):
    before = set(threading.enumerate())
    desk = make()
    done(desk, desk.toggle)
    desk.draw_heat("adam", "lr", "beta1", steps=5000, side=32)
    new = set(threading.enumerate()) - before
    assert len(new) >= 2
    desk.close()
    for thread in new:
        thread.join(20)
        assert not thread.is_alive()


def test_the_drawn_picture_costs_no_gradient_graph(desk):
    done(desk, lambda: desk.step(3))
    assert not desk.session.state.parts[0].x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("values", "words"), [((0.01, 0.055), ["0.01", "0.02", "0.05"]), ((3.1, 4.9), ["4"])])
def test_a_narrow_logarithmic_axis_has_labels(values, words):
    axis = curves([{"name": "a", "steps": [0, 1], "values": values}], log=True)["layout"]["yaxis"]
    assert set(words) <= set(axis["ticktext"])
    assert len(axis["ticktext"]) >= 2
    assert [float(word) for word in axis["ticktext"]] == axis["tickvals"]

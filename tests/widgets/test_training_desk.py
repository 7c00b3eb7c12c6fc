"""The Training app without a page: learning, exploding and coming back, branches, uploads, links, exports."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests.widgets.desks import done, until
from widgets.apps import files, landscape_measures
from widgets.apps.landscape_picture import ways
from widgets.apps.training import BACK, TrainingDesk
from widgets.apps.training_measures import SHARE, Measures, measure
from widgets.apps.training_picture import Picture
from widgets.player import Paths, Points, encode_frame, encode_scene
from workbench.problems.data import from_arrays
from workbench.tree import same_bits


@pytest.fixture
def make(open_desk):
    """`make(query, **options)`: a desk from a link, or of a model or data of one's own."""
    return lambda query=None, **options: open_desk(TrainingDesk, query=query, **options)


def table(rows=60, words=True, seed=0):
    """A CSV whose last column follows from the first."""
    x = np.random.default_rng(seed).normal(size=(rows, 3)).round(4)
    last = [("high" if a > 0 else "low") if words else f"{2 * a + 0.3:.4f}" for a in x[:, 0]]
    lines = [",".join([*map(str, row), y]) for row, y in zip(x.tolist(), last, strict=True)]
    return ("a,b,c,target\n" + "\n".join(lines) + "\n").encode()


def accuracy(desk):
    return measure(desk.session.routine, desk.session.state).heldout_score


# ---- learning


def test_it_opens_on_digits_with_every_hyperparameter_and_its_first_measurement(desk):
    assert desk.data.name == "digits"
    assert set(desk.session.hyper) == {"lr", "beta1", "beta2", "eps", "weight_decay", "batch_size"}
    assert desk.measures.at(desk.session, 0) is not None
    assert "held-out accuracy" in desk.frame().caption


def test_it_learns_digits_while_the_batch_size_is_turned(desk):
    desk.toggle()
    until(lambda: desk.session.index > 40)
    done(desk, lambda: desk.turn("batch_size", 32))
    assert desk.session.playing
    at = desk.session.index
    until(lambda: desk.session.index > at + 60)
    done(desk, desk.toggle)
    assert desk.session.hyper["batch_size"] == 32
    done(desk, lambda: desk.step(150))
    assert accuracy(desk) > 0.9
    steps, rows = desk.measures.arrays(desk.session)
    assert steps[0] == 0
    assert steps[-1] == desk.session.index
    assert rows["weight_norms"].shape == (len(steps), 4)


def test_measurements_are_functions_of_the_state(desk):
    done(desk, lambda: desk.step(7))
    first = desk.measures.at(desk.session, 7)
    done(desk, lambda: desk.step(9), lambda: desk.back(9))
    again = measure(desk.session.routine, desk.session.state)
    assert same_bits([torch.tensor(first.heldout_loss), *map(torch.from_numpy, first[4:])],
                     [torch.tensor(again.heldout_loss), *map(torch.from_numpy, again[4:])])  # fmt: skip


def test_measuring_says_what_it_costs_and_waits_its_turn():
    measures = Measures()
    session = wb.Session(wb.training("linear", "cross_entropy", "digits", "sgd"))
    measures.take(session)
    assert measures.cost > 0
    assert not measures.due()
    assert measures.take(session) is measures.at(session, 0)


def test_measured_losses_equal_those_of_the_probes(desk):
    done(desk, lambda: desk.step(20))
    session, row = desk.session, desk.measures.at(desk.session, 20)
    parts = (("train", row.train_loss, row.train_score), ("heldout", row.heldout_loss, row.heldout_score))
    for part, loss, share in parts:
        probe = session.routine.probes[part].measure(session.routine, session.state)
        assert loss == float(probe[f"{part}_loss"])
        assert share == pytest.approx(float(probe[f"{part}_accuracy"]), abs=1e-6)


# ---- exploding


def explode(desk, rate=10.0):
    """Train a little, turn the rate far up while it plays, and wait until it stops by itself."""
    done(desk, lambda: desk.step(120))
    desk.toggle()
    until(lambda: desk.session.index > 130)
    done(desk, lambda: desk.turn("lr", rate))
    until(lambda: not desk.session.playing)
    return done(desk)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
def test_a_rate_that_is_too_high_stops_the_run_with_a_sentence_that_says_what_to_do(make, optimizer):
    desk = explode(make({"optimizer": optimizer}), 1e3)
    assert "exploded" in desk.advice
    assert "Go back 50 steps" in desk.advice
    assert "exploded" in desk.status()
    frame = desk.frame()
    encode_scene(desk.scene())
    encode_frame(frame)
    assert desk.session.index <= desk.session.edits[-1].step + 25


def test_going_back_and_half_the_rate_train_on_and_both_lines_are_kept(desk):
    explode(desk)
    exploded = desk.session
    stood = exploded.index
    done(desk, desk.retreat)
    assert desk.session.index == stood - BACK
    assert desk.advice == ""
    rate = desk.session.hyper["lr"]
    done(desk, desk.halve)
    assert desk.session.hyper["lr"] == rate / 2
    done(desk, lambda: desk.step(60))
    assert accuracy(desk) > 0.9
    assert [line.label for line in desk.lines] == ["A", "B"]
    old, new = (desk.measures.arrays(line.session)[0] for line in desk.lines)
    assert max(new) == desk.session.index
    assert [k for k in old if k <= stood - BACK] == [k for k in new if k <= stood - BACK]
    assert any(k > stood - BACK for k in old)


def test_half_the_rate_is_refused_where_the_loss_has_exploded(desk):
    explode(desk)
    done(desk, desk.halve)
    assert [line.label for line in desk.lines] == ["A"]
    assert "go back" in desk.said[-1][1]


def test_play_goes_on_regardless_after_an_explosion(desk):
    explode(desk)
    at = desk.session.index
    desk.toggle()
    time.sleep(0.1)
    until(lambda: not desk.session.playing or desk.session.index > at + 100)
    desk.session.pause()
    assert desk.session.index > at + 20  # it may explode anew later, but not where it had


def test_numbers_that_are_no_longer_finite_are_said_and_never_drawn(make):
    desk = make({"optimizer": "sgd"})
    done(desk, lambda: desk.turn("lr", 1e4), lambda: desk.step(200))
    assert desk.session.status != ["ok"]
    assert "no longer finite" in desk.advice
    assert "diverged at step" in desk.status()
    frame = desk.frame()
    drawn = sum(len(layer.x) for layer in frame.layers if isinstance(layer, Points)) - frame.hidden
    assert drawn <= 359
    encode_frame(frame)


# ---- data and models


@pytest.mark.parametrize("data", ["digits", "breast-cancer", "diabetes"])
@pytest.mark.parametrize("model", ["mlp", "linear"])
def test_every_data_set_and_model_train_and_draw(make, data, model):
    desk = make({"data": data, "model": model})
    before = desk.measures.at(desk.session, 0).train_loss
    done(desk, lambda: desk.step(60))
    assert desk.measures.at(desk.session, 60).train_loss < before
    picture, answers = desk.held_out(), desk.answers()
    encode_scene(desk.scene())
    encode_frame(desk.frame())
    assert picture.headline(answers)
    assert picture.table(answers).count("<tr>") <= 61
    assert "<table" in picture.confusion(answers) or data == "diabetes"
    assert (picture.tiles(answers) is not None) == (data == "digits")


def test_choosing_keeps_what_was_turned_where_it_still_is(desk):
    done(desk, lambda: desk.turn("lr", 0.01), lambda: desk.choose(width=16))
    assert desk.session.hyper["lr"] == 0.01
    assert desk.session.state.x.shape[-1] == 64 * 16 + 16 + 160 + 10
    done(desk, lambda: desk.choose(optimizer="sgd"))
    assert desk.session.hyper["lr"] == 0.001


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": "iris"}, "iris"),
        ({"model": "transformer"}, "transformer"),
        ({"optimizer": "adamm"}, "adam"),
        ({"width": 0}, "width"),
        ({"seed": -1}, "seed"),
        ({"data": "file:00:x.csv"}, "upload it again"),
    ],
)
def test_settings_that_are_not_legal_change_nothing_and_say_so(desk, settings, named):
    done(desk, lambda: desk.step(5))
    session = desk.session
    done(desk, lambda: desk.choose(**settings))
    assert desk.session is session
    assert not session.closed
    assert named in desk.said[-1][1]
    done(desk, lambda: desk.step(1))
    assert desk.session.index == 6


# ---- the picture


def test_a_sample_stands_at_the_sum_of_p_times_the_corners():
    data = from_arrays(np.eye(12)[:, :3] + np.arange(12)[:, None] % 3, np.arange(12) % 3)
    picture = Picture(data, 3)
    p = torch.tensor([[0.7, 0.2, 0.1]]).expand(picture.count, 3)
    x, y = picture.places(picture.read(p.log()))
    assert x[0] == pytest.approx(0.7 * 0 + 0.2 * np.sin(2 * np.pi / 3) + 0.1 * np.sin(4 * np.pi / 3))
    assert y[0] == pytest.approx(0.7 * 1 + 0.2 * np.cos(2 * np.pi / 3) + 0.1 * np.cos(4 * np.pi / 3))


def test_huge_and_infinite_outputs_are_read_without_a_warning():
    data = from_arrays(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2)
    picture = Picture(data, 2)
    outputs = torch.tensor([[1e30, -1e30], [float("inf"), 0.0], [float("nan"), 1.0]]).repeat(3, 1)[: picture.count]
    answers = picture.read(outputs)
    assert answers.p[0].tolist() == [1.0, 0.0]
    assert answers.guess[1] == -1
    assert answers.wrong[1:3].all()
    encode_frame(picture.frame(answers, 0, ""))


def test_mistakes_are_counted_named_and_at_most_sixty(desk):
    picture, answers = desk.held_out(), desk.answers()
    images = picture.tiles(answers)
    wrong = int(answers.wrong.sum())
    assert f"{wrong} of 359" in picture.headline(answers)
    assert len(images.tiles) == 60
    order = picture.order(answers)
    assert images.labels[0] == f"{answers.truth[order[0]]} → {answers.guess[order[0]]}"
    assert list(answers.cost[order]) == sorted(answers.cost[order], reverse=True)


def test_no_mistakes_are_said_too():
    data = from_arrays(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2)
    picture = Picture(data, 2)
    outputs = torch.nn.functional.one_hot(data.y_test, 2).float()
    assert picture.headline(picture.read(outputs)).startswith("None")


def test_a_click_picks_the_sample_under_it(desk):
    x, y = desk.held_out().places(desk.answers())
    done(desk, lambda: desk.click(float(x[17]), float(y[17])))
    assert desk.picked is not None
    assert f"sample {desk.picked}: true" in desk.frame().caption
    done(desk, lambda: desk.click(99, 99))
    assert desk.picked is None


# ---- uploads


def test_an_uploaded_table_is_learned_from(desk):
    done(desk, lambda: desk.upload("mine.csv", table(200)))
    assert desk.answered[-1][0] == "success"
    assert desk.data.classes == ("high", "low")
    done(desk, lambda: desk.turn("lr", 0.01), lambda: desk.step(100))
    assert accuracy(desk) > 0.85


def test_uploaded_values_are_fitted_by_squared_error(desk):
    done(desk, lambda: desk.upload("mine.csv", table(200, words=False)), lambda: desk.step(200))
    assert desk.data.classes == ()
    assert accuracy(desk) > 0.9  # R²
    assert "held-out loss" in desk.frame().caption


def test_an_uploaded_npz_is_learned_from(desk):
    file = io.BytesIO()
    np.savez(file, x=np.random.default_rng(0).normal(size=(50, 4)), y=np.arange(50) % 3)
    done(desk, lambda: desk.upload("mine.npz", file.getvalue()))
    assert desk.answered[-1][0] == "success"
    assert len(desk.data.classes) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.csv", b"a,b\n1,2\nx,3\n", "row 3, column 1"),
        ("bad.csv", b"\xff\xfe\x00", "UTF-8"),
        ("bad.npz", b"not a zip", "npz"),
        ("bad.txt", b"1,2\n", ".csv or .npz"),
        ("few.csv", b"a,b\n1,2\n2,3\n", "at least 10 samples"),
    ],
)
def test_a_file_that_cannot_be_read_leaves_the_run_untouched_and_says_why(desk, name, content, said):
    desk.toggle()
    until(lambda: desk.session.index > 5)
    session = desk.session
    done(desk, lambda: desk.upload(name, content))
    assert desk.session is session
    assert session.playing
    assert desk.answered[-1][0] == "error"
    assert said in desk.answered[-1][1]
    done(desk, desk.toggle)


def test_a_link_to_an_uploaded_file_asks_for_it_and_lives_the_run_when_it_comes(desk, make):
    content = table()
    done(desk, lambda: desk.upload("mine.csv", content), lambda: desk.step(20), lambda: desk.turn("lr", 0.02))
    done(desk, lambda: desk.step(10))
    twin = make(desk.query())
    assert twin.data.name == "digits"
    assert "'mine.csv'" in twin.opening_errors[0]
    assert "upload it again" in twin.opening_errors[0]
    assert twin.query() == desk.query()
    done(twin, lambda: twin.upload("mine.csv", content))
    assert same_bits(twin.session.state, desk.session.state)


def test_another_file_of_the_same_name_is_noticed(desk, make):
    done(desk, lambda: desk.upload("mine.csv", table()), lambda: desk.step(20))
    twin = make(desk.query())
    done(twin, lambda: twin.upload("mine.csv", table(seed=1)))
    assert "differs" in twin.said[-1][1]
    assert twin.session.index == 0


# ---- links, runs


def test_a_link_leads_to_the_same_bits(desk, make):
    done(desk, lambda: desk.choose(width=24, depth=2, activation="tanh", seed=3))
    done(desk, lambda: desk.step(30), lambda: desk.turn("lr", 0.02), lambda: desk.turn("batch_size", 17))
    done(desk, lambda: desk.step(40), lambda: desk.turn("lr", 0.001), lambda: desk.step(30), lambda: desk.back(12))
    twin = make(json.loads(json.dumps(desk.query())))
    assert twin.opening_errors == []
    assert twin.session.index == 88
    assert same_bits(twin.session.state, desk.session.state)
    done(desk, lambda: desk.step(5))
    done(twin, lambda: twin.step(5))
    assert same_bits(twin.session.state, desk.session.state)
    assert len(twin.measures.arrays(twin.session)[0]) > 20


def test_a_link_with_nonsense_opens_what_it_can(make):
    desk = make({"data": "digits", "width": "wide", "hyper": '{"lr": -1}', "edits": "!", "step": "3", "seed": "1e99"})
    assert desk.session.routine.data.name == "digits"
    assert desk.opening_errors


def test_a_run_is_saved_and_reopened_where_it_stood(desk):
    done(desk, lambda: desk.step(15), lambda: desk.turn("lr", 0.01), lambda: desk.step(5), lambda: desk.save("mine"))
    state = desk.session.state
    done(desk, lambda: desk.choose(data="diabetes"), lambda: desk.step(3))
    done(desk, lambda: desk.reopen("mine"))
    assert desk.session.index == 20
    assert same_bits(desk.session.state, state)


# ---- what is taken away


def run_script(text, folder):
    path = folder / "run.py"
    path.write_text(text + "\nimport torch\ntorch.save(session.state.x, 'x.pt')\n")
    where = {**os.environ, "PYTHONPATH": str(Path(wb.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, path.name], cwd=folder, env=where, check=True, timeout=120)
    return torch.load(folder / "x.pt")


@pytest.fixture
def two_threads():
    """Before the desk begins its own: a thread keeps the number that it began with."""
    torch.set_num_threads(2)


def test_the_script_makes_the_same_bits(two_threads, desk, tmp_path):
    done(desk, lambda: desk.step(12), lambda: desk.turn("lr", 0.02), lambda: desk.step(8))
    assert same_bits(run_script(desk.script(), tmp_path), desk.session.state.x)


@pytest.mark.slow
def test_the_script_of_an_upload_says_which_file_to_put_beside_it(desk, tmp_path):
    content = table()
    done(desk, lambda: desk.upload("mine.csv", content), lambda: desk.step(8))
    text = desk.script()
    assert "Put the file mine.csv beside this script" in text
    (tmp_path / "mine.csv").write_bytes(content)
    assert same_bits(run_script(text, tmp_path), desk.session.state.x)


def test_the_record_has_losses_and_accuracy_of_both_parts(desk):
    done(desk, lambda: desk.step(30))
    record = desk.record()
    assert {"train_loss", "heldout_loss", "train_accuracy", "heldout_accuracy", "loss"} <= set(record)
    assert record["heldout_loss"].values[0, -1] == np.float32(desk.measures.at(desk.session, 30).heldout_loss)
    assert json.loads(record.attrs["hyper"])["lr"] == 0.001


def test_the_page_that_plays_holds_the_run_with_its_curves(desk):
    done(desk, lambda: desk.step(20))
    page = desk.html()
    assert "held-out loss" in page
    assert "1,438 samples to train on" in page
    series = desk.series([0, 10, 20])
    assert series["held-out loss"][-1] == desk.measures.at(desk.session, 20).heldout_loss
    assert np.isfinite(series["training loss"]).all()
    assert desk.session.index == 20


# ---- your own


class Small(nn.Module):
    """Batch norm and dropout, as somebody might have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x)


def arrays():
    x = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def test_your_own_module_loss_data_and_optimizer_train_and_come_back(make):
    own = {"model": Small(), "loss": nn.CrossEntropyLoss(), "data": arrays(), "optimizer": torch.optim.Adamax}
    desk = make(**own)
    done(desk, lambda: desk.turn("lr", 0.02), lambda: desk.step(60))
    assert accuracy(desk) > 0.7
    state = desk.session.state
    done(desk, lambda: desk.step(20), lambda: desk.back(20))
    assert same_bits(desk.session.state, state)
    twin = make(desk.query(), **{**own, "model": Small()})
    assert same_bits(twin.session.state, state)
    assert "Put your own data and loss and model here" in desk.script()
    desk.html()


def test_your_own_module_plays_while_the_page_asks_for_pictures(make):
    desk = make(model=Small(), loss="cross_entropy", data=arrays())
    desk.toggle()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        desk.frame()
    done(desk, desk.toggle)
    index, state = desk.session.now
    with wb.Session(desk.session.routine) as again:
        assert same_bits(again.step(index).state, state)


def test_a_model_that_does_not_fit_its_data_is_refused_in_words():
    with pytest.raises(ValueError, match="expected a mod"):
        TrainingDesk(model=nn.Linear(7, 3), data=arrays())
    with pytest.raises(ValueError, match="one output a class"):
        TrainingDesk(model=nn.Linear(4, 1), loss=lambda out, y: out.square().mean(), data=arrays())


def test_a_closed_desk_leaves_no_thread(make):
    before = threading.active_count()
    desk = make()
    desk.toggle()
    until(lambda: desk.session.index > 3)
    desk.close()
    until(lambda: threading.active_count() <= before)


# ---- the loss around the run


def test_the_loss_around_the_run_is_drawn_while_somebody_looks(desk):
    done(desk, lambda: desk.step(20))
    assert desk.survey is None
    desk.sliced = True
    done(desk, lambda: desk.set_view(points=13))
    grid, paths = desk.survey.grid, desk.survey.paths
    scene = wb.landscapes.of_training(desk.session.routine, desk.session.state, part="train")
    middle = desk.survey.plane.points(torch.tensor([[float(grid.a[6]), float(grid.b[6])]]))
    assert float(grid.loss[6, 6]) == pytest.approx(float(scene(middle)[0]), rel=1e-5)
    assert paths.loss.values[0, -1] == pytest.approx(float(scene(desk.session.state.x)[0]), rel=1e-5)
    assert 0 < paths.attrs["variance_share"] <= 1
    assert "1,438 training samples" in desk.plane_picture.legend
    with pytest.raises(ValueError, match="expected a plane to be one of"):
        desk.check_settings({**desk.settings, "plane": "flat"})


def test_other_lines_of_time_are_drawn_on_the_same_plane(desk):
    desk.sliced = True
    done(desk, lambda: desk.step(20))
    kept = desk.session.state.x[0]
    done(desk, desk.halve, lambda: desk.step(20))
    trails = [layer for layer in desk.plane_frame().layers if isinstance(layer, Paths)]
    assert [bool(trail.dashed) for trail in trails] == [True, False]
    ends = np.array([[trail.x[-1], trail.y[-1]] for trail in trails])
    plane = desk.survey.plane
    expected = plane.coords(torch.stack([kept, desk.session.state.x[0]]))
    np.testing.assert_allclose(ends, expected, rtol=1e-4, atol=1e-5)
    both = torch.cat(
        [*ways(desk.session, desk.session.now, 120)[1], *ways(desk.others()[0], desk.others()[0].now, 120)[1]]
    )
    torch.testing.assert_close(plane.center, both.mean(0), rtol=1e-4, atol=1e-6)
    track = torch.stack([kept, desk.session.state.x[0]])
    assert float(plane.residual(track).max()) < float(torch.linalg.vector_norm(track[0] - track[1]))
    done(desk, lambda: desk.set_view(plane="ends"))
    assert desk.survey.plane.title == "Plane through the start, line B and line A"


def test_the_curvature_of_the_past_is_measured_when_it_is_asked_for(desk):
    done(desk, lambda: desk.step(30))
    assert len(desk.curvature.arrays(desk.session)[0]) == 0
    done(desk, lambda: desk.do(desk.look_back))
    steps, rows = desk.curvature.arrays(desk.session)
    assert steps[0] == 0
    assert steps[-1] == 30
    assert len(steps) == 25
    with desk.session.branch() as twin:
        scene = wb.landscapes.of_training(twin.routine, twin.seek(int(steps[12])).state)
    assert rows["sharpness"][12, 0] == pytest.approx(float(wb.landscapes.sharpness(scene).values[0]), rel=0.02)
    assert desk.session.index == 30


def test_what_is_not_worked_out_is_not_paid_for(desk):
    desk.toggle()
    until(lambda: desk.session.index > 20)
    done(desk, desk.toggle)
    assert desk.survey is None
    assert desk.background.progress is None
    assert len(desk.curvature.arrays(desk.session)[0]) == 0


def test_the_weights_taken_away_are_those_of_the_step_shown(desk):
    done(desk, lambda: desk.step(7))
    given = []
    done(desk, lambda: desk.take("weights", given.append))
    found = files.read_weights(given[0])
    scene = wb.landscapes.of_training(desk.session.routine)
    assert same_bits(scene.point(found), desk.session.state.x[0])


def test_curves_and_curvature_share_the_time_that_measuring_may_take(desk):
    done(desk, desk.step)
    assert desk.measures.most == SHARE
    desk.curved = True
    done(desk, desk.step)
    assert desk.measures.most + desk.curvature.most == pytest.approx(SHARE)


def test_curvature_that_rounding_hides_is_a_gap(desk, monkeypatch):
    monkeypatch.setattr(landscape_measures, "MOST_PRODUCTS", 3)
    desk.curved = True
    done(desk, lambda: desk.step(5))
    _, rows = desk.curvature.arrays(desk.session)
    assert np.isnan([rows[name][-1, 0] for name in ("sharpness", "turned", "share", "overlap")]).all()
    assert np.isfinite(rows["loss"][-1, 0])

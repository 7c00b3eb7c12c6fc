"""The notebook side without a browser: controls, players, and apps served by the process that runs the tests."""

import gc
import threading
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch

import widgets
import workbench as wb
from widgets.jupyter import host
from widgets.jupyter.apps import Seat
from widgets.jupyter.dials import LOOK_SECONDS, PER_LOOK, SPEEDS
from widgets.player import Frame, Points, Scene
from widgets.player.frames import decode

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "live-widgets.ipynb"


def until(true, seconds=30):
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def step_of(player):
    """The step of the frame that was sent last."""
    return decode(player.frame)[0]["step"] if player.frame else None


def free(make):
    """Whether what `make()` gave goes once nothing refers to it."""
    gone = weakref.ref(make())
    until(lambda: gc.collect() is not None and gone() is None)
    return True


@pytest.fixture
def session():
    methods = {name: wb.descent("rosenbrock", name) for name in ("sgd", "adam")}
    with wb.Session(wb.side_by_side(methods)) as session:
        yield session


@pytest.fixture
def controls(session):
    controls = widgets.controls(session)
    yield controls
    controls.close()


@pytest.fixture
def app(tmp_path):
    app = widgets.Descent(surface="beale", methods=["sgd", "adam"], hyper={"adam.lr": 0.05}, runs=tmp_path)
    yield app
    app.close()


# ---- controls


def test_every_hyperparameter_has_a_control_made_from_its_declaration(controls, session):
    assert set(controls.dials) == set(session.routine.hypers)
    dial = controls.dials["adam.lr"]
    assert type(dial.slider).__name__ == "FloatLogSlider"
    assert dial.slider.tooltip == session.routine.hypers["adam.lr"].doc
    assert type(controls.dials["adam.beta1"].slider).__name__ == "FloatSlider"
    with wb.Session(wb.training("mlp", "cross_entropy", "digits", "adam")) as other:
        made = widgets.controls(other)
        assert type(made.dials["batch_size"].slider).__name__ == "IntSlider"
        made.close()


def test_a_slider_turns_the_session_and_its_box_follows(controls, session):
    dial = controls.dials["adam.lr"]
    dial.slider.value = 0.1
    until(lambda: session.hyper["adam.lr"] == 0.1)
    until(lambda: dial.box.value == "0.1")
    dial.box.value = "0.02"
    until(lambda: session.hyper["adam.lr"] == 0.02)
    until(dial.stands)


def test_what_code_does_to_the_session_shows_and_never_comes_back_as_an_edit(controls, session):
    session.set(**{"sgd.lr": 0.0123})
    session.step(7)
    until(lambda: controls.dials["sgd.lr"].box.value == "0.0123")
    until(lambda: "step 7 of 7" in controls.status.value and controls.time.value == 7)
    session.back(3)
    until(lambda: "step 4 of 7" in controls.status.value and controls.time.value == 4)
    time.sleep(3 * LOOK_SECONDS)
    assert [edit.target for edit in session.edits] == ["sgd.lr"]
    assert session.index == 4


def test_a_browser_that_moves_sliders_to_their_steps_changes_nothing(controls, session):
    before = session.hyper
    for dial in controls.dials.values():
        nearby = 0.4 * dial.slider.step
        dial.slider.value = dial.slider.value * 10**nearby if dial.hyper.scale == "log" else dial.slider.value + nearby
    time.sleep(3 * LOOK_SECONDS)
    assert session.hyper == before
    assert session.edits == ()


def test_an_illegal_value_is_said_beside_its_control_and_changes_nothing(controls, session):
    dial, before = controls.dials["adam.beta1"], session.hyper
    dial.box.value = "7"
    until(lambda: "expected beta1 to be a number from" in dial.error.value)
    dial.box.value = "<b>"
    until(lambda: "expected a number for beta1, got &#x27;&lt;b&gt;&#x27;" in dial.error.value)
    assert session.hyper == before
    dial.box.value = "0.5"
    until(lambda: session.hyper["adam.beta1"] == 0.5 and dial.error.value == "")


def test_transport_plays_pauses_steps_and_seeks(controls, session):
    controls.speed.value = SPEEDS["100 steps/s"]
    controls.play.value = True
    until(lambda: session.playing and session.index > 3)
    until(lambda: controls.play.description == "Pause")
    session.pause()
    until(lambda: not controls.play.value and controls.play.description == "Play")
    at = session.index
    controls.step.click()
    controls.step.click()
    controls.back.click()
    until(lambda: session.index == at + 1)
    until(lambda: controls.time.value == at + 1)
    controls.time.value = 2
    until(lambda: session.index == 2)


def test_at_most_fifteen_messages_a_second_however_fast_the_session_moves(controls, session):
    session.play()
    began, sent = time.monotonic(), controls.sent
    for k in range(150):
        session.set(**{"adam.lr": 1e-3 * (1 + k % 7), "sgd.lr": 1e-5 * (1 + k % 5)})
        time.sleep(0.01)
    session.pause()
    looks = (time.monotonic() - began) / LOOK_SECONDS + 1
    assert controls.sent - sent <= PER_LOOK * looks
    assert PER_LOOK / LOOK_SECONDS <= 15
    until(lambda: controls.dials["adam.lr"].box.value == f"{session.hyper['adam.lr']:.4g}")


def test_a_slow_session_is_asked_only_for_the_newest_of_many_moves(controls, session):
    asked = []
    session.set = lambda **hyper: (time.sleep(0.2), asked.append(hyper))
    for k in range(50):
        controls.dials["adam.lr"].slider.value = 1e-3 * (2 + k)
    until(lambda: asked and asked[-1]["adam.lr"] == pytest.approx(0.051))
    assert len(asked) <= 3


def test_closed_controls_are_collected_and_leave_the_session_as_it_is(session):
    def closed():
        controls = widgets.controls(session)
        controls.close()
        return controls

    assert free(closed)
    session.step()


def test_neither_controls_nor_a_player_keep_a_session_alive():
    session = wb.Session(wb.descent("rosenbrock", "adam"))
    controls, player = widgets.controls(session), widgets.Player(session)
    gone = weakref.ref(session)
    del session
    until(lambda: gc.collect() is not None and gone() is None)
    until(lambda: "Keep it in a variable" in controls.status.value)
    controls.close()
    player.close()


def test_hyperparameters_that_differ_between_runs_are_shown_by_their_range():
    with wb.Session(wb.descent("rosenbrock", "adam"), hyper={"lr": [1e-3, 1e-2]}) as session:
        controls = widgets.controls(session)
        assert controls.dials["lr"].box.value == "0.001 … 0.01"
        controls.dials["lr"].box.value = "0.5"
        until(lambda: session.hyper["lr"] == 0.5)
        controls.close()


# ---- players


def test_a_player_shows_the_surface_and_follows_code_that_moves_the_session(session):
    player = widgets.Player(session)
    assert decode(player.scene)[0]["legend"][1]["name"] == "adam"
    session.step(40)
    until(lambda: step_of(player) == 40)
    header, arrays = decode(player.frame)
    x, offsets = arrays[header["layers"][0]["x"]], arrays[header["layers"][0]["offsets"]]
    assert x[0] == pytest.approx(-1.2)
    assert x[offsets[1] - 1] == pytest.approx(float(session.state.parts[0].x[0, 0]))
    session.back(30)
    until(lambda: step_of(player) == 10)
    player.close()


def test_a_trail_is_the_way_that_was_gone_also_after_the_past_was_changed(session):
    picture = widgets.pictures.picture_of(session)
    session.step(60)
    picture.frame(session)
    session.back(30).set(**{"adam.lr": 0.5})
    session.step(30)
    path = picture.frame(session).layers[0]
    way = [session.seek(step).state.parts[1].x[0, 0].item() for step in range(61)]
    last = path.x[path.offsets[1] :]
    assert set(last.tolist()) <= set(torch.tensor(way).tolist())
    assert last[-1] == pytest.approx(way[-1])


def test_a_player_of_training_shows_the_held_out_samples():
    with wb.Session(wb.training("mlp", "cross_entropy", "digits", "adam")) as session:
        player = widgets.Player(session)
        session.step(3)
        until(lambda: step_of(player) == 3)
        assert "step 3 · held-out accuracy" in decode(player.frame)[0]["caption"]
        player.close()


def test_a_player_draws_what_you_say_and_says_what_your_function_raised(session):
    frames = [lambda s: Frame(s.index, [Points([0.5], [0.5])], "mine"), lambda s: 1 / 0]
    for frame, caption in zip(frames, ["mine", "no picture: ZeroDivisionError"], strict=True):
        player = widgets.Player(session, frame=frame, scene=Scene(title="own"))
        until(lambda player=player, caption=caption: player.frame and caption in decode(player.frame)[0]["caption"])
        assert decode(player.scene)[0]["title"] == "own"
        player.close()


def test_a_session_without_a_usual_picture_says_what_to_give():
    with (
        wb.Session(wb.descent(lambda x: (x**2).sum(0), "sgd", dim=3)) as session,
        pytest.raises(ValueError, match=r"two coordinates.*got a descent in 3 coordinates.*frame="),
    ):
        widgets.Player(session)


def test_keys_on_the_picture_move_the_session(session):
    player = widgets.Player(session)
    for name in ("step", "step", "step", "back"):
        player._on_message(player, {"kind": "action", "view": "v", "name": name}, [])
    until(lambda: session.index == 2)
    player._on_message(player, {"kind": "action", "view": "v", "name": "home"}, [])
    until(lambda: session.index == 0)
    player.close()


def test_a_closed_player_is_collected(session):
    def closed():
        player = widgets.Player(session)
        player.close()
        return player

    assert free(closed)


# ---- apps in frames


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def test_apps_share_one_server_on_loopback_and_each_has_a_secret_path(app):
    other = widgets.Descent()
    assert other.token != app.token or not app.token
    addresses = [app.url, other.url, app.url]
    assert addresses[0] == addresses[2] != addresses[1]
    assert len({address.rsplit("/", 1)[0] for address in addresses}) == 1
    assert addresses[0].startswith("http://127.0.0.1:")
    assert all(len(one.token) >= 43 for one in (app, other))
    other.close()


def test_no_page_of_the_server_tells_of_the_apps_and_a_guess_shows_nothing(app):
    root, token = app.url.rsplit("/", 1)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(root)
    guess = get(f"{root}/{'x' * 43}")
    assert token not in guess
    assert "beale" not in guess.lower()
    assert not app.seats


def test_a_frame_is_the_live_session_and_small_in_the_notebook(app):
    bundle = app._repr_mimebundle_()
    assert app.url in bundle["text/html"]
    assert len(bundle["text/html"]) < 500
    assert app.session.hyper["adam.lr"] == 0.05
    app.session.step(60)
    app.session.back(50)
    assert app.record().sizes["step"] == 11
    assert "beale" in app.script()
    assert "step 10 of 60" in bundle["text/plain"] or "step 10 of 60" in repr(app)


def test_code_that_changes_the_past_leaves_no_trace_of_the_old_future_in_curves_or_paths(app):
    session = app.session
    session.step(60)
    app.desk.track(session)
    session.back(30).set(**{"adam.lr": 0.5})
    session.step(30)
    steps, found = session.trace()
    track = app.desk.track(session)
    assert track.steps.array.tolist() == steps.tolist()
    assert track.points.array[:, 0, 1].tolist() == pytest.approx(found["x"][:, 1].tolist())
    training = widgets.Training("mlp", hyper={"lr": 0.01})
    desk, session = training.desk, training.session
    desk.wait()
    old = desk.measures.take(session.step(20))
    kept = desk.measures.take(session.back(10))
    session.set(lr=0.1).step(10)
    assert desk.measures.at(session, 20) is None
    assert desk.measures.at(session, 10) is kept
    assert desk.measures.take(session).train_loss != old.train_loss
    training.close()


def test_several_frames_show_one_desk_and_closing_one_leaves_it_open(app):
    seats = [Seat(app), Seat(app)]
    heard = [[], []]
    for seat, got in zip(seats, heard, strict=True):
        seat.can_draw = lambda: True
        seat.on("frame", got.append)
    app.session.step(5)
    until(lambda: all(got and got[-1].step == 5 for got in heard))
    seats[0].close()
    until(lambda: not app.desk.closed)
    before = len(heard[0])
    app.session.play(100)
    until(lambda: heard[1][-1].step > 8)
    assert len(heard[0]) == before
    seats[1].close()
    until(lambda: not app.session.playing)
    assert not app.desk.closed


def test_frames_are_drawn_when_any_of_the_pages_has_room(app):
    seats = [Seat(app), Seat(app)]
    seats[0].can_draw, seats[1].can_draw = (lambda: False), (lambda: True)
    assert app.desk.can_draw()
    seats[1].close()
    assert not app.desk.can_draw()
    seats[0].close()


@pytest.mark.slow
def test_a_closed_app_frees_its_desk_and_session_and_says_so():
    app = widgets.Descent()
    url = app.url
    parts = [weakref.ref(part) for part in (app, app.desk, app.session)]
    app.close()
    assert repr(app) == "<Descent: closed>"
    with pytest.raises(ValueError, match="make a new Descent"):
        _ = app.url
    assert "frame" not in app._repr_mimebundle_()
    del app
    until(lambda: gc.collect() is not None and all(part() is None for part in parts))
    assert get(url)


def test_an_app_that_nothing_refers_to_goes_by_itself():
    assert free(widgets.Descent)


def test_an_app_that_was_only_displayed_waits_for_its_frame():
    app = widgets.Descent()
    app._repr_mimebundle_()
    kept = weakref.ref(app)
    del app
    gc.collect()
    assert kept() is not None
    kept().close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"colour": "red"}, "expected a setting to be one of .*surface; got 'colour'"),
        ({"surface": "x +"}, "expected"),
        ({"surface": print}, "expected settings of plain numbers, text and lists"),
        ({"height": 20}, "expected height to be a whole number of CSS pixels from 200"),
    ],
)
def test_settings_that_do_not_exist_or_are_not_legal_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        widgets.Descent(**settings)


def test_your_own_model_and_data_are_what_the_training_app_trains():
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    app = widgets.Training(model, "cross_entropy", (x, (x[:, 0] > 0).long()), hyper={"lr": 0.02})
    app.session.step(30)
    assert app.session.hyper["lr"] == 0.02
    assert app.session.state.x.shape[1] == sum(p.numel() for p in model.parameters())
    app.close()


def test_the_notebook_server_s_proxy_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: object())
    assert host.proxied({"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/"}) == "/user/ada"
    monkeypatch.setattr(host, "_base_url", lambda pid: f"/base{pid}")
    assert host.proxied({"JPY_PARENT_PID": "7"}) == "/base7"
    assert host.proxied({"JPY_PARENT_PID": "7", "VSCODE_PID": "1"}) is None
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    assert host.proxied({}) is None


def test_behind_a_proxy_the_address_is_a_path_of_its_server(app, monkeypatch):
    server = host.server()
    assert app.url == f"http://127.0.0.1:{server.port}/{app.token}"
    monkeypatch.setattr(host, "proxied", lambda: "/user/ada")
    assert app.url == f"/user/ada/proxy/{server.port}/{app.token}"


def test_a_session_moves_on_while_the_main_thread_burns_python(app):
    assert app.url
    app.session.play()
    until(lambda: app.session.index > 0)
    began, first, turns = time.perf_counter(), app.session.index, 0
    while time.perf_counter() - began < 1:
        turns += 1
    steps = app.session.index - first
    app.session.pause()
    assert steps >= 10
    assert turns > 1000
    assert threading.current_thread() is threading.main_thread()


@pytest.mark.jupyter
@pytest.mark.timeout(600)
def test_the_notebook_runs_from_top_to_bottom_without_a_browser(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    options = {"timeout": 300, "store_widget_state": False}  # as JupyterLab saves it unless told otherwise
    client = nbclient.NotebookClient(notebook, **options, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()
    assert len(nbformat.writes(notebook)) < 200_000

"""Sessions that play: turned from other threads, watched, stopped by themselves; and closed, with nothing left."""

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import workbench as wb
from tests.session_cases import ALONE, case, net, rosenbrock, wait_for
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


def test_playing_gives_the_bits_of_stepping():
    session = rosenbrock().play(until=150)
    wait_for(lambda: not session.playing)
    assert session.stopped == "reached step 150"
    assert same_bits(session.state, rosenbrock().step(150).state)
    assert rosenbrock().step(5).play(until=3).pause().index == 5


@pytest.mark.parametrize("name", ["noisy", "net"])
def test_turning_while_it_plays_loses_no_edit_and_replays_to_the_same_bits(name):
    """Two threads turn two hyperparameters, a third goes back and forth, all while it plays."""
    session = wb.Session(case(name).routine, budget=20_000).play()
    lost = []

    def turn(target, low):
        for i in range(25):
            value = low * (1 + i / 100)
            session.set(**{target: value})
            if value not in [edit.value for edit in session.edits if edit.target == target]:
                lost.append((target, value))
            time.sleep(0.001)

    threads = [threading.Thread(target=turn, args=("lr", 2e-3)), threading.Thread(target=turn, args=("beta1", 0.3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.pause()
    assert lost == []
    assert session.hyper["lr"] == 2e-3 * 1.24
    assert session.hyper["beta1"] == 0.3 * 1.24
    assert [edit.step for edit in session.edits] == sorted(edit.step for edit in session.edits)
    end, state = session.index, session.state
    assert same_bits(session.seek(0).seek(end).state, state)
    again = wb.Session(case(name).routine)
    for edit in session.edits:
        again.seek(edit.step).set(**{edit.target: edit.value})
    assert same_bits(again.seek(end).state, state)


def test_many_threads_moving_a_playing_session_leave_it_whole():
    session = rosenbrock(budget=5000).play()

    def wander(seed):
        generator = np.random.default_rng(seed)
        for _ in range(30):
            go = generator.choice(["step", "back", "seek", "trace"])
            session.trace() if go == "trace" else getattr(session, go)(int(generator.integers(0, 60)))

    threads = [threading.Thread(target=wander, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session._waiting == 0
    before = session.index
    wait_for(lambda: session.index > before)
    index, state = session.pause().now
    assert same_bits(state, rosenbrock().step(index).state)


def test_it_stops_by_itself_once_every_run_has_diverged():
    session = wb.Session(wb.descent("rosenbrock", "sgd"), hyper={"lr": 0.5}).play()
    wait_for(lambda: not session.playing)
    assert session.stopped == f"stopped: {session.status[0]}"
    assert "diverged at step" in session.stopped
    assert torch.isfinite(session.state.x).all()
    several = wb.Session(wb.descent("rosenbrock", "sgd"), hyper={"lr": [0.5, 0.02]}).play()
    wait_for(lambda: not several.playing)
    assert several.stopped == f"stopped: every run diverged, the last at step {several.state.diverged.max()}"


def test_it_plays_on_while_one_run_is_sound():
    session = wb.Session(wb.descent("rosenbrock", "sgd"), hyper={"lr": [0.5, 1e-4]}).play(until=200)
    wait_for(lambda: not session.playing)
    assert session.stopped == "reached step 200"
    assert session.status[0].startswith("diverged")
    assert session.status[1] == "ok"


def test_a_step_that_fails_stops_the_play_and_says_why(caplog):
    broken = threading.Event()

    def bowl(x):
        if broken.is_set():
            raise RuntimeError("no such luck")
        return (x * x).sum(0)

    session = wb.Session(wb.descent(bowl, "sgd")).play()
    wait_for(lambda: session.index > 5)
    broken.set()
    wait_for(lambda: not session.playing)
    assert session.stopped == "stopped: RuntimeError: no such luck"
    session.pause()
    broken.clear()
    at = session.index
    session.play(until=at + 10)
    wait_for(lambda: not session.playing)
    assert session.index == at + 10
    assert "no such luck" in caplog.text


def test_listeners_hear_of_every_slice_and_of_the_end_until_they_leave():
    session, heard, names = rosenbrock(), [], set()

    def hear(one):
        heard.append((one.index, one.playing))
        names.add(threading.current_thread().name)

    leave = session.listen(hear)
    session.play(until=400)
    wait_for(lambda: not session.playing)
    session.pause()
    assert heard[-1] == (400, False)
    assert [index for index, _ in heard] == sorted(index for index, _ in heard)
    assert names == {"session"}
    leave()
    leave()
    count = len(heard)
    session.play(until=450)
    wait_for(lambda: not session.playing)
    assert len(heard) == count


def test_a_listener_that_fails_is_logged_and_does_not_stop_the_play(caplog):
    session, heard = rosenbrock(), []
    session.listen(lambda one: 1 / 0)
    session.listen(lambda one: heard.append(one.index))
    with caplog.at_level(logging.ERROR):
        session.play(until=300)
        wait_for(lambda: not session.playing)
        session.pause()
    assert session.index == 300
    assert heard
    assert caplog.text.count("a listener of a session failed") == 1


def test_a_listener_may_pause_and_another_thread_play_on_with_one_thread():
    session = rosenbrock()
    session.listen(lambda one: one.pause() if one.index < 50 else None)
    for _ in range(5):
        session.play(until=300)
        wait_for(lambda: not session.playing)
    session.play(speed=2000)
    session.pause()
    wait_for(lambda: not any(thread.name == "session" for thread in threading.enumerate()))


def test_a_thread_that_was_paused_does_not_play_on_beside_the_next():
    session, inside, released = rosenbrock(), threading.Event(), threading.Event()

    def hold(one):
        if not inside.is_set():
            one.pause()
            inside.set()
            released.wait(30)

    session.listen(hold)
    old = session.play()._thread
    inside.wait(30)
    session.play()
    released.set()
    old.join(30)
    assert not old.is_alive()
    assert session.playing
    session.close()


@pytest.mark.slow
def test_leaving_the_interpreter_while_sessions_play_is_no_crash():
    code = (
        "import time, workbench as wb\n"
        "kept = [wb.Session(wb.descent('rosenbrock', 'adam'), hyper={'lr': [0.01] * n}).play() for n in (1, 1000)]\n"
        "while kept[1].index < 3: time.sleep(0.01)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=ALONE, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_speed_is_never_exceeded():
    session, began = rosenbrock(), time.perf_counter()
    session.play(speed=200)
    time.sleep(0.3)
    session.pause()
    assert 1 <= session.index <= 200 * (time.perf_counter() - began) + 1
    with pytest.raises(ValueError, match="expected speed to be above 0"):
        session.play(speed=0)
    with pytest.raises(ValueError, match="expected until to be a whole number"):
        session.play(until=2.5)


def test_time_lost_while_others_hold_the_session_is_not_made_up_in_a_rush():
    session, began = rosenbrock(), time.perf_counter()
    session.play(speed=100)
    with session._turn():
        time.sleep(0.8)
    time.sleep(0.1)
    session.pause()
    assert session.index <= 100 * (time.perf_counter() - began - 0.5) + 3


# ------------------------------------------------------------------------------------------------- closing


def test_a_closed_session_keeps_its_state_record_and_script_and_refuses_to_move():
    session = rosenbrock().step(20).set(lr=0.1).step(10)
    state, record, script = session.state, session.record(), session.script()
    session.close()
    session.close()
    assert same_bits(session.state, state)
    assert session.script() == script
    assert session.record().drop_attrs().identical(record.drop_attrs())
    for go in (
        session.play,
        session.step,
        session.back,
        session.branch,
        lambda: session.seek(3),
        lambda: session.set(lr=1),
    ):
        with pytest.raises(ValueError, match="expected an open session, got one that was closed"):
            go()
    assert session.index == 30


def test_a_closed_session_lets_go_of_its_listeners_and_of_its_past():
    session, view = rosenbrock().step(50), threading.Event()
    session.listen(lambda one, view=view: None)
    alive = [weakref.ref(view), weakref.ref(session.back(20).state.x), weakref.ref(session.back(20).state.x)]
    session.set(lr=0.5).step(5).close()
    del view
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_a_session_closes_at_the_end_of_its_block():
    with rosenbrock() as session:
        session.play()
    assert session.closed
    assert not session.playing
    assert session._thread is not None
    assert not session._thread.is_alive()


def test_of_50_sessions_opened_played_and_closed_none_stays_alive():
    model, data = net()
    routine = wb.training(model, "cross_entropy", data, "adam", batch_size=8)
    alive = []
    for i in range(50):
        session = wb.Session(routine) if i % 5 == 0 else rosenbrock()
        session.listen(lambda one, twin=session: twin.index)  # a cycle, as apps make them
        session.play()
        session.set(lr=0.01)
        if i % 3 == 0:
            alive.append(weakref.ref(session.branch().play()))
        session.close()
        alive += [weakref.ref(session), weakref.ref(session.state.x)]
    del session
    wait_for(lambda: not any(thread.name == "session" for thread in threading.enumerate()))
    gc.collect()
    assert [ref() for ref in alive if ref() is not None] == []


def test_the_thread_of_a_forgotten_session_ends():
    session = rosenbrock().play()
    while session.index < 3:
        time.sleep(0.001)
    thread, alive = session._thread, weakref.ref(session)
    del session
    thread.join(30)
    assert not thread.is_alive()
    assert alive() is None

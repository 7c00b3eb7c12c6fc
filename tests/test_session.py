"""Sessions: exact rewind against a naive twin that forgets nothing, edits, branches, playing, closing, scripts."""

import functools
import gc
import hashlib
import logging
import os
import runpy
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import workbench as wb
from workbench.optimizers.torch_adapter import TorchOptimizer
from workbench.timeline import RECENT
from workbench.tree import leaves, same_bits

STOCHASTIC = next(row.name for row in wb.catalogue("surfaces") if row.make.stochastic)


@pytest.fixture(autouse=True)
def _one_thread(_fixed_numerics):
    """Steps this small gain nothing from a second thread, and wait for it on a busy machine."""
    torch.set_num_threads(1)


ALONE = {"PYTHONPATH": os.pathsep.join([str(Path(wb.__path__[0]).parent), str(Path(__file__).parent)]), "PATH": ""}
"""The environment of a fresh interpreter that finds the library and this file."""


class Case(NamedTuple):
    """A routine, its first hyperparameters, and edits that may be made."""

    routine: wb.Routine
    first: dict
    edits: list


def net():
    """A net with batch norm and dropout, and 40 samples with words as classes."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)]
    x = torch.randn(40, 5)
    return nn.Sequential(*layers), (x, x[:, :3].argmax(1), x[:10], x[:10, :3].argmax(1))


def surface_case():
    routine = wb.descent("rosenbrock", "momentum")
    first = {"lr": [1e-3, 5e-4, 0.5]}  # the third run diverges
    return Case(routine, first, [{"lr": 2e-3}, {"lr": [1e-4, 1e-3, 0.2]}, {"momentum": 0.5}, {"weight_decay": 0.01}])


def noisy_case():
    edits = [{"lr": 0.1}, {"noise": 3.0}, {"beta1": 0.5, "lr": 0.02}, {"noise": 0.0}]
    return Case(wb.descent(STOCHASTIC, "adam"), {"lr": 0.05}, edits)


def net_case():
    model, data = net()
    routine = wb.training(model, "cross_entropy", data, "adam", batch_size=8)
    return Case(routine, {}, [{"batch_size": 3}, {"batch_size": 32, "lr": 0.01}, {"lr": 0.1}, {"beta1": 0.0}])


def nets_case():
    model, data = net()
    routine = wb.training(model, "cross_entropy", data, "momentum", batch_size=16)
    return Case(routine, {"lr": [0.1, 0.5]}, [{"batch_size": 5}, {"lr": [0.3, 0.01]}, {"momentum": [0.0, 0.9]}])


def together_case():
    parts = {"adam": "adam", "sgd": "sgd", "n.adam": torch.optim.NAdam}
    routine = wb.side_by_side({label: wb.descent(STOCHASTIC, method) for label, method in parts.items()})
    return Case(routine, {"adam.lr": 0.1}, [{"adam.lr": 0.3}, {"sgd.lr": 0.01}, {"n.adam.lr": 0.02, "adam.beta1": 0.5}])


CASES = {name.removesuffix("_case"): make for name, make in list(globals().items()) if name.endswith("_case")}


@functools.cache
def case(name):
    return CASES[name]()


def rosenbrock(**options):
    return wb.Session(wb.descent("rosenbrock", "adam"), **options)


class Twin:
    """The naive session: every state ever seen on its line of time, and every edit, in plain lists."""

    def __init__(self, routine, first, seed=0):
        self.routine, self.first, self.key = routine, first, wb.Key(seed)
        runs = next((len(value) for value in first.values() if isinstance(value, list)), None)
        self.states = [routine.init(self.key.stream("init"), runs=runs)]
        self.edits, self.index, self.others = [], 0, 0

    def hyper(self, k):
        in_force = {name: hyper.default for name, hyper in self.routine.hypers.items()} | self.first
        for step, name, value in self.edits:
            if step <= k:
                in_force[name] = value
        return in_force

    def step(self, n):
        for _ in range(n):
            if self.index == len(self.states) - 1:
                k, state = self.index, self.states[-1]
                with torch.no_grad():
                    ready = self.routine.normalise(self.hyper(k))
                    new, _ = self.routine.step(state, ready, self.routine.draw(self.key.at(k), state, ready))
                self.states.append(new)
            self.index += 1

    def seek(self, target):
        self.step(max(0, target - self.index))
        self.index = target

    def set(self, values):
        changed = {name: value for name, value in values.items() if self.hyper(self.index)[name] != value}
        if changed and self.index < len(self.states) - 1:
            self.others += 1
            self.states = self.states[: self.index + 1]
            self.edits = [edit for edit in self.edits if edit[0] <= self.index]
        gone = {(self.index, name) for name in changed}
        self.edits = [edit for edit in self.edits if edit[:2] not in gone]
        self.edits += [(self.index, name, value) for name, value in changed.items()]

    def branch(self):
        twin = Twin(self.routine, self.first)
        twin.key, twin.index, twin.states = self.key, self.index, self.states[: self.index + 1]
        twin.edits = [edit for edit in self.edits if edit[0] <= self.index]
        return twin


def assert_twins(session, twin):
    assert session.index == twin.index
    assert session.head == len(twin.states) - 1
    assert session.hyper == twin.hyper(twin.index)
    assert sorted(session.edits) == sorted(twin.edits)
    assert len(session.others) == twin.others
    assert same_bits(session.state, twin.states[twin.index])


STEPS = st.integers(0, 40)
MOVES = st.one_of(
    st.tuples(st.just("step"), STEPS),
    st.tuples(st.just("back"), STEPS),
    st.tuples(st.just("seek"), st.integers(0, 120)),
    st.tuples(st.just("set"), st.integers(0, 3)),
    st.tuples(st.just("play"), st.integers(1, 20)),
    st.tuples(st.just("branch"), st.just(0)),
)


def move(pairs, which, name, n, edits):
    """Do the same to one session and to its twin; a branch adds a pair."""
    session, twin = pairs[which % len(pairs)]
    if name == "set":
        session.set(**edits[n % len(edits)])
        twin.set(edits[n % len(edits)])
    elif name == "branch" and len(pairs) < 4:
        pairs.append((session.branch(), twin.branch()))
    elif name == "play":
        session.play(until=session.index + n)
        wait_for(lambda: not session.playing or session.index > twin.index + n // 2)
        session.pause()
        twin.seek(session.index)
    elif name == "back":
        session.back(n)
        twin.seek(max(0, twin.index - n))
    elif name in ("step", "seek"):
        getattr(session, name)(n)
        getattr(twin, name)(n)
    assert_twins(session, twin)


def wait_for(condition, seconds=30):
    """Wait until a condition holds; fail loudly when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@pytest.mark.parametrize("name", CASES)
def test_any_sequence_of_moves_gives_the_bits_of_a_twin_that_forgets_nothing(name):
    """Budgets so small that snapshots thin out; every step of every line is visited again at the end."""

    @given(
        moves=st.lists(st.tuples(st.integers(0, 3), MOVES), min_size=4, max_size=12),
        budget=st.sampled_from([0, 20_000, 100_000]),
        visits=st.lists(st.integers(0, 200), max_size=3),
    )
    @settings(max_examples=20 if name in ("surface", "noisy") else 6, phases=[Phase.explicit, Phase.generate])
    def run(moves, budget, visits):
        routine, first, edits = case(name)
        pairs = [(wb.Session(routine, hyper=first, budget=budget), Twin(routine, first))]
        for which, (what, n) in moves:
            move(pairs, which, what, n, edits)
        for session, twin in pairs:
            for step in [*visits, 0, len(twin.states) - 1]:
                session.seek(step % len(twin.states))
                twin.seek(session.index)
                assert_twins(session, twin)

    run()


@pytest.mark.parametrize("name", CASES)
def test_sessions_of_one_routine_with_different_seeds_do_not_disturb_each_other(name):
    """They share whatever a routine remembers for speed; here they take turns."""
    routine, first, _ = case(name)
    sessions = [wb.Session(routine, hyper=first, seed=seed) for seed in (3, 4)]
    for n in (1, 2, 5, 9):
        for session in sessions:
            session.step(n)
    for session, seed in zip(sessions, (3, 4), strict=True):
        assert same_bits(session.state, wb.Session(routine, hyper=first, seed=seed).step(17).state)
    if name != "surface":
        assert not same_bits(sessions[0].state, sessions[1].state)


@pytest.mark.parametrize("name", CASES)
def test_every_step_of_a_long_run_can_be_reached_again_bit_for_bit(name):
    routine, first, edits = case(name)
    session, twin = wb.Session(routine, hyper=first, budget=100_000), Twin(routine, first)
    for edit in (*edits, *edits):
        session.set(**edit).step(17)
        twin.set(edit)
        twin.step(17)
    assert session._timeline.snapshots.nbytes <= 100_000 or len(session._timeline.snapshots) <= RECENT + 2
    order = np.random.default_rng(0).permutation(len(twin.states))[: 40 if name in ("surface", "noisy") else 6]
    for step in map(int, order):
        session.seek(step)
        twin.seek(step)
        assert_twins(session, twin)


# ------------------------------------------------------------------------------------------------- memory


def test_the_last_16_states_are_kept_whatever_the_budget(monkeypatch):
    session = rosenbrock(budget=0).step(300)
    states = [session.back().state for _ in range(RECENT - 1)]
    session.seek(5).seek(300)
    monkeypatch.setattr(session, "_forward", lambda: pytest.fail("stepped although the state was kept"))
    assert all(same_bits(session.back().state, state) for state in states)


def test_a_line_left_behind_holds_two_states_and_can_be_replayed():
    session = rosenbrock()
    for _ in range(20):
        session.step(50).back(25).set(lr=session.index * 1e-5 + 1e-4)
    assert len(session.others) == 20
    assert all(len(line.snapshots) == 2 for line in session.others)
    lived = [line.head for line in session.others]
    assert lived == [50 + 25 * i for i in range(20)]
    assert all(len(line.trace.arrays()[0]) == line.head for line in session.others)


def test_what_was_given_may_change_afterwards_without_changing_the_past():
    start, rates = torch.tensor([[0.5, 0.5], [1.0, 2.0]]), np.array([0.01, 0.02])
    session, twin = (rosenbrock(start=start.clone(), hyper={"lr": rates.copy()}) for _ in range(2))
    alias = rosenbrock(start=start, hyper={"lr": rates})
    one = torch.tensor([[0.5, 0.5]])
    single = rosenbrock(start=one)
    for given_away in (start, one, rates):
        given_away[:] = 0
    assert same_bits(alias.step(5).state, session.step(5).state)
    assert alias.record().x.equals(twin.step(5).record().x)
    assert single.state.x.tolist() == [[0.5], [0.5]]


# ------------------------------------------------------------------------------------------------- edits and branches


def test_an_edit_acts_on_the_next_step_and_on_none_before():
    changed, plain = rosenbrock().step(4).set(lr=0.5), rosenbrock().step(4)
    assert same_bits(changed.state, plain.state)
    assert not same_bits(changed.step().state, plain.step().state)
    assert changed.edits == ((4, "lr", 0.5),)
    assert changed.back().hyper["lr"] == 0.5
    assert changed.back().hyper["lr"] == plain.hyper["lr"]


def test_editing_in_the_past_keeps_the_old_future():
    session = rosenbrock().step(10).set(lr=0.2).step(10)
    end = session.state
    session.seek(15).set(lr=0.3).step(20)
    (old,) = session.others
    assert old.head == 20
    assert old.edits == [(10, "lr", 0.2)]
    assert same_bits(old.snapshots.nearest(20)[1], end)
    assert session.edits == ((10, "lr", 0.2), (15, "lr", 0.3))
    assert session.head == 35


def test_an_edit_at_a_step_that_has_one_changes_only_what_it_names():
    session = rosenbrock().step(10).set(lr=0.2, beta1=0.5).step(10).seek(10)
    assert session.hyper["beta1"] == 0.5
    session.set(lr=0.3)
    assert session.hyper["lr"] == 0.3
    assert session.hyper["beta1"] == 0.5
    assert {edit.target: edit.value for edit in session.edits} == {"lr": 0.3, "beta1": 0.5}


def test_setting_what_is_in_force_changes_nothing():
    session = rosenbrock(hyper={"lr": 0.1}).step(5).seek(2)
    session.set(lr=0.1, beta1=0.9)
    assert session.edits == ()
    assert session.others == []
    assert session.head == 5


def test_a_branch_shares_the_past_and_goes_its_own_way():
    session = rosenbrock().step(20).set(lr=0.1).step(10)
    twin = session.seek(20).branch()
    assert twin.hyper == session.hyper
    assert twin.head == 20
    assert session.head == 30
    assert len(twin.trace()[0]) == 20
    twin.set(lr=0.5).step(10)
    session.seek(30)
    assert not same_bits(twin.state, session.state)
    assert same_bits(twin.seek(7).state, session.seek(7).state)
    assert [edit.value for edit in session.edits] == [0.1]
    session.close()
    assert twin.seek(13).index == 13


def test_the_trace_of_a_line_holds_each_step_once():
    session = rosenbrock().step(100).back(30).step(50).back(60).set(lr=0.1).step(5)
    steps, arrays = session.trace()
    assert steps.tolist() == list(range(65))
    loss = session.record().loss.values[0]
    assert arrays["loss"][:, 0] == pytest.approx(loss[:-1], rel=1e-6)
    assert rosenbrock().trace()[0].tolist() == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lr": -1.0}, "expected lr to be a number from 0"),
        ({"lr": [0.1, 0.2, 0.3]}, "expected lr to have one value for each of 2 runs"),
        ({"lr": "fast"}, "expected lr"),
        ({"beta1": float("nan")}, "expected beta1"),
        ({"rate": 0.1}, "expected a hyperparameter to be one of .*; got 'rate'"),
        ({"beta1": 0.5, "lr": -1.0}, "expected lr"),
    ],
)
def test_a_wrong_edit_is_refused_by_name_and_changes_nothing(wrong, words):
    session = rosenbrock(hyper={"lr": [0.1, 0.2]}).step(10).seek(5)
    before = session.hyper
    with pytest.raises(ValueError, match=words):
        session.set(**wrong)
    assert session.hyper == before
    assert session.edits == ()
    assert session.others == []
    assert (session.index, session.head) == (5, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hyper": {"rate": 1}}, "'rate'"),
        ({"hyper": {"lr": -1}}, "expected lr"),
        ({"hyper": {"lr": [1, 2], "eps": [1e-8] * 3}}, "same number of runs"),
        ({"start": [1.0, 2.0, 3.0]}, "expected start to have shape"),
        ({"start": [[1.0, 2.0], [3.0]]}, "expected start"),
        ({"start": [float("nan"), 0.0]}, "expected start to be finite"),
        ({"seed": 1.5}, "expected seed to be a whole number"),
        ({"seed": "3"}, "expected seed to be a whole number"),
        ({"seed": []}, "expected seed to be a whole number"),
        ({"probes": ["sharpness?"]}, "expected a probe"),
    ],
)
def test_a_session_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        rosenbrock(**options)


@pytest.mark.parametrize("seed", [3, np.int64(3), torch.tensor(3), [3], (3, 4), range(3), np.array([1, 2]), -1])
def test_whole_numbers_of_any_make_are_seeds(seed):
    session = wb.Session(wb.descent(STOCHASTIC, "adam"), seed=seed).step(2)
    assert session.state.x.shape[1] == (len(seed) if np.ndim(seed) else 1)


@pytest.mark.parametrize("n", [-1, 1.5, "2", True, None])
def test_moves_by_what_is_no_whole_number_are_refused(n):
    session = rosenbrock().step(3)
    for go in (session.step, session.back, session.seek):
        with pytest.raises(ValueError, match=r"expected (n|step) to be a whole number from 0"):
            go(n)
    assert session.index == 3


def test_going_back_beyond_the_start_stops_there():
    assert rosenbrock().step(3).back(10).index == 0


def test_the_worst_seek_is_known_without_playing():
    session = rosenbrock(budget=0).step(200)
    gap = session._timeline.snapshots.widest_gap()
    assert gap > 10
    assert session.worst_seek() == gap * session.seconds_per_step > 0


# ------------------------------------------------------------------------------------------------- playing


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


# ------------------------------------------------------------------------------------------------- records of sessions


@pytest.mark.parametrize("name", CASES)
def test_the_record_of_a_session_is_the_run_it_lived(name):
    routine, first, edits = case(name)
    session = wb.Session(routine, hyper=first).step(6).set(**edits[0]).step(9).set(**edits[1]).step(5)
    record, line = session.record(), session.branch()
    assert record.sizes["step"] == 21
    assert record.wb.attr("edits") == [list(edit) for edit in session.edits]
    for k in (0, 5, 6, 7, 15, 20):
        for label, values in routine.observe(line.seek(k).state).items():
            there, here = record[label].isel(step=k).values, np.moveaxis(values.numpy(), routine.run_axis, 0)
            assert np.allclose(there, here, rtol=0 if label == "x" else 1e-5, atol=0), (label, k)
    assert record.wb.status == session.status
    assert session.record(every=7).step.values.tolist() == [0, 7, 14]


def test_a_record_taken_while_it_plays_is_whole():
    session = wb.Session(case("net").routine, probes=["train", "heldout"]).play()
    wait_for(lambda: session.index > 20)
    record = session.record()
    session.pause()
    alone = wb.Session(case("net").routine, probes=["train", "heldout"]).step(record.attrs["steps"]).record()
    assert record.drop_attrs().identical(alone.drop_attrs())


# ------------------------------------------------------------------------------------------------- scripts


def script_cases(folder):
    """(session, names its script needs) by name."""
    model, data = net()
    table = folder / "flowers.csv"
    table.write_text("a,b,kind\n" + "\n".join(f"{i % 7},{(i * i) % 5},{'xyz'[i % 3]}" for i in range(30)))
    ravine = {name: wb.descent(STOCHASTIC, method) for name, method in (("a b", "adam"), ("n", torch.optim.NAdam))}
    quadratic = wb.make("quadratic", condition=7.5, dim=3)
    starts = torch.tensor([[0.1, 0.7], [1.0, 1 / 3]])
    fixed = TorchOptimizer(torch.optim.LBFGS, history_size=4)
    digits = wb.training("mlp", "cross_entropy", "digits", "adam", batch_size=64)
    wide = wb.training(
        wb.make("mlp", width=9, depth=2, activation="tanh"), "mse", "diabetes", "sgd", dtype=torch.float64
    )
    own = wb.training(model, nn.CrossEntropyLoss(), data, "momentum", batch_size=8)
    held = wb.training("linear", "cross_entropy", wb.make("breast-cancer", holdout=0.5), "adamw")
    bowl = wb.descent(lambda x: (x**2).sum(0), "adam", schedule=lambda k: 1 / (1 + k))
    return {
        "descent": (rosenbrock(), {}),
        "first values": (rosenbrock(hyper={"lr": 1 / 3, "beta1": 0.7}, start=[0.3, 0.1], seed=7), {}),
        "per run": (rosenbrock(hyper={"lr": torch.tensor([0.1, 1 / 3])}, start=starts), {}),
        "seeds": (wb.Session(wb.descent(STOCHASTIC, "adam"), seed=[3, 5]), {}),
        "float64": (
            wb.Session(wb.descent("beale", "rmsprop", dtype=torch.float64), hyper={"lr": np.full(2, 1 / 7)}),
            {},
        ),
        "settings": (wb.Session(wb.descent(quadratic, "nesterov")), {}),
        "expression": (wb.Session(wb.descent("(1-x)**2 + 100*(y-x**2)**2", "adam")), {}),
        "torch class": (wb.Session(wb.descent("rosenbrock", torch.optim.NAdam)), {}),
        "torch class of the catalogue": (wb.Session(wb.descent("himmelblau", "torch.Adagrad")), {}),
        "torch class with arguments": (wb.Session(wb.descent("rosenbrock", fixed)), {}),
        "training": (wb.Session(digits), {}),
        "training in float64": (wb.Session(wide, hyper={"lr": [0.1, 0.01]}), {}),
        "training on a share": (wb.Session(held), {}),
        "training on a file": (wb.Session(wb.training("linear", "cross_entropy", wb.load_data(table), "adam")), {}),
        "training of your own": (wb.Session(own), {"model": model, "data": data, "loss": nn.CrossEntropyLoss()}),
        "side by side": (wb.Session(wb.side_by_side(ravine), hyper={"a b.lr": 0.2}), {}),
        "your own function": (wb.Session(bowl), {"objective": bowl.objective, "schedule": bowl.schedule}),
    }


def live(session):
    """Steps, edits, a step back with an edit in the past, and more steps."""
    lead = next(name for name in session.routine.hypers if name.endswith("lr"))
    session.step(5).set(**{lead: 0.015625}).step(6).back(4)
    session.set(**{lead: 0.1}).step(4)
    if "batch_size" in session.routine.hypers:
        session.set(batch_size=11).step(3)
    return session.set(**{lead: 1 / 3})


def assert_same_run(made, session):
    assert made.index == session.index
    assert made.edits == session.edits
    assert made.hyper == session.hyper
    assert same_bits(made.state, session.state)


def test_the_script_of_a_session_makes_its_last_state_again_bit_for_bit(tmp_path):
    for name, (session, needs) in script_cases(tmp_path).items():
        live(session)
        script = session.script()
        path = tmp_path / "run.py"
        path.write_text(script)
        made = runpy.run_path(str(path), init_globals=needs)["session"]
        try:
            assert_same_run(made, session)
            assert all(word in script.partition("# Put your own ")[2].partition("here")[0] for word in needs)
            assert ("# Put your own" in script) == bool(needs)
        except AssertionError as error:
            raise AssertionError(f"script of {name!r}:\n{script}") from error


def digest(state):
    raw = hashlib.sha256()
    for leaf in leaves(state):
        raw.update(leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return raw.hexdigest()


def test_a_script_runs_by_itself_and_prints_its_record(tmp_path):
    session = live(
        wb.Session(wb.side_by_side({"adam": wb.descent(STOCHASTIC, "adam"), "n": wb.descent(STOCHASTIC, "sgd")}))
    )
    (tmp_path / "run.py").write_text(session.script())
    code = (
        "import runpy, sys; from test_session import digest\n"
        "print(digest(runpy.run_path('run.py', run_name='__main__')['session'].state))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=ALONE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "<xarray.Dataset>" in done.stdout
    assert done.stdout.split()[-1] == digest(session.state)

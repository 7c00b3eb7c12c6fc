"""Sessions: exact rewind against a naive twin that forgets nothing, memory, edits, branches."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.session_cases import CASES, STOCHASTIC, case, rosenbrock, wait_for
from workbench.timeline import RECENT
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
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

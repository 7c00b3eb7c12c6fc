"""Sampling as a routine: time travel, edits on the way, scripts that train again, arrival, records, bad input."""

import functools
import runpy
import time

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.tree import leaves, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


def sampling(solver="heun", **options):
    return wb.sampling("eight-gaussians", solver, **{"steps": 12, "samples": 20, **options})


def train(**options):
    small = wb.make("mlp", width=16, depth=2, activation="silu")
    return wb.flow_training(None, "two-modes", network=small, batch_size=32, **options)


@functools.cache
def trained():
    """A session of two runs that was trained, turned on the way, and taken back a little."""
    session = wb.Session(train(), hyper={"lr": [1e-2, 3e-3]}, seed=5).step(15)
    return session.set(batch_size=50).step(10).set(lr=[5e-3, 1e-3]).step(10).back(3)


# ------------------------------------------------------------------------------------------------- the way itself


def test_samples_go_from_the_source_to_the_data_at_the_times_of_the_grid():
    routine = sampling("euler", steps=4, grid="quadratic-grid", interpolant="variance-preserving", dtype=torch.float64)
    session = wb.Session(routine)
    source = wb.Key(0).stream("init").stream("source")
    assert torch.equal(
        session.state.x[0],
        routine.field.source.sample(source, 20, session.state.x)
        * routine.path.sigma(torch.tensor(0.0, dtype=torch.float64)),
    )
    eps, times = 1e-3, [0.0]
    for i in range(1, 5):
        assert session.state.nfe.item() == i - 1
        session.step()
        times.append(session.state.t.item())
        assert times[-1] == pytest.approx(1 - (1 + (np.sqrt(eps) - 1) * i / 4) ** 2, abs=1e-12)
    assert session.state.nfe.item() == 4


def test_an_evaluation_is_counted_for_every_call_of_the_field_and_every_run():
    for solver, cost in (("euler", 1), ("heun", 2)):
        calls = []
        session = wb.Session(wb.sampling(lambda x, t, calls=calls: calls.append(1) or -x, solver, steps=5), seed=[1, 2])
        calls.clear()  # a field of one's own is tried once before it is stepped
        session.step(5)
        assert len(calls) == 5 * cost
        assert session.state.nfe.tolist() == [[5 * cost], [5 * cost]]


def test_it_stops_by_itself_when_all_have_arrived():
    session = wb.Session(sampling(steps=7)).step(100)
    assert session.index == 7
    assert session.routine.done(session.state).tolist() == [True]
    assert session.state.t.item() == 1
    playing = wb.Session(sampling(steps=7)).play()
    deadline = time.monotonic() + 60
    while playing.playing and time.monotonic() < deadline:
        time.sleep(0.005)
    assert playing.stopped == "arrived at step 7"
    assert same_bits(playing.state, session.state)
    playing.close()


def test_what_has_arrived_stays_though_more_steps_are_made():
    record = wb.rollout(sampling(steps=5), 8)
    assert (record.time.values[0, 5:] == 1).all()
    assert (record.nfe.values[0, 5:] == 10).all()
    assert (record.x.values[0, 6:] == record.x.values[0, 5]).all()
    assert (record.speed.values[0, 6:] == 0).all()


def test_back_seek_and_replay_come_to_the_same_bits():
    session = wb.Session(sampling())
    states = [session.state]
    states += [session.step().state for _ in range(12)]
    for k in (11, 3, 0, 7, 12):
        assert same_bits(session.seek(k).state, states[k])
    assert same_bits(session.back(5).state, states[7])
    assert same_bits(wb.Session(sampling()).step(9).state, states[9])


def test_steps_may_be_turned_on_the_way():
    """From t = 1/4 on a grid of 12 to the next stops of a grid of 30, then to those of one of 4."""
    session = wb.Session(sampling()).step(3).set(steps=30)
    stops = [session.step().state.t.item() for _ in range(3)]
    assert stops == pytest.approx([8 / 30, 9 / 30, 10 / 30], abs=1e-6)
    session.set(steps=4)
    stops = [session.step().state.t.item() for _ in range(3)]
    assert stops == pytest.approx([1 / 2, 3 / 4, 1.0], abs=1e-6)
    assert session.step(5).index == 9
    assert [(edit.step, edit.target, edit.value) for edit in session.edits] == [(3, "steps", 30), (6, "steps", 4)]
    last = session.state
    assert same_bits(session.seek(2).seek(9).state, last)


def test_a_branch_shares_the_past_and_goes_its_own_way():
    session = wb.Session(sampling()).step(6)
    branch = session.branch()
    branch.set(steps=40).step(100)
    assert same_bits(session.step(6).state, wb.Session(sampling()).step(12).state)
    assert branch.index == 6 + 20
    assert same_bits(branch.seek(4).state, session.seek(4).state)
    assert not session.edits


def test_an_edit_in_the_past_keeps_the_old_future():
    session = wb.Session(sampling()).step(12)
    session.seek(6).set(steps=3).step(100)  # from t = 1/2 to 2/3 and 1
    assert session.index == 8
    assert len(session.others) == 1


def test_going_back_from_data_to_source_undoes_the_way_there():
    there = wb.Session(sampling(steps=200, dtype=torch.float64)).step(200).state
    back = wb.Session(sampling(steps=200, dtype=torch.float64, reverse=True), start=there.x).step(500)
    start = wb.Session(sampling(steps=200, dtype=torch.float64)).state
    assert back.index == 200
    assert back.state.t.item() == 0
    assert (back.state.x - start.x).abs().max() < 1e-3
    own = wb.Session(sampling(steps=3, samples=5000, reverse=True))
    assert abs(own.state.x.norm(dim=-1).mean() - 3.01) < 0.02  # it starts at data
    assert own.state.t.item() == 1


def test_runs_share_their_start_unless_the_seed_has_one_for_each():
    together = wb.Session(sampling(), start=None, seed=3)
    assert together.state.x.shape == (1, 20, 2)
    apart = wb.Session(sampling(), seed=[3, 4]).step(2)
    assert apart.state.x.shape == (2, 20, 2)
    assert same_bits(apart.state.x[:1], wb.Session(sampling(), seed=3).step(2).state.x)
    assert not torch.equal(apart.state.x[0], apart.state.x[1])


def test_samples_that_are_drawn_follow_the_source_and_those_that_arrive_the_target():
    """Mean and covariance within 4 standard errors, of 4,000 samples taken in 60 steps of Heun."""
    n = 4000
    session = wb.Session(wb.sampling("two-modes", "heun", steps=60, samples=n, dtype=torch.float64))
    for density in (session.routine.field.source, session.routine.field.target):
        x = session.state.x[0]
        mean, covariance = density.moments()
        products = (x - mean).unsqueeze(-1) * (x - mean).unsqueeze(-2)
        assert ((x.mean(0) - mean).abs() < 4 * x.std(0) / n**0.5).all()
        assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / n**0.5).all()
        session.step(100)


# ------------------------------------------------------------------------------------------------- side by side


def test_solvers_side_by_side_start_at_the_same_samples_and_go_each_its_way():
    parts = {"Euler": sampling("euler"), "Heun": sampling("heun"), "Euler, 24": sampling("euler", steps=24)}
    session = wb.Session(wb.side_by_side(parts), seed=7)
    states = session.state.parts
    assert torch.equal(states[0].x, states[1].x)
    assert torch.equal(states[0].x, states[2].x)
    session.step(12)
    assert [state.nfe.item() for state in session.state.parts] == [12, 24, 12]
    assert [state.t.item() for state in session.state.parts] == pytest.approx([1, 1, 0.5], abs=1e-6)
    session.step(100)
    assert session.index == 24
    for part, state in zip(parts.values(), session.state.parts, strict=True):
        assert same_bits(state.x, wb.Session(part, seed=7).step(24).state.x)
    error = [
        (state.x - wb.Session(sampling(steps=800), seed=7).step(800).state.x).norm() for state in session.state.parts
    ]
    assert error[1] < error[2] < error[0]
    record = session.record()
    assert record.x.dims == ("run", "step", "sample", "dim")
    assert record.method.values.tolist() == list(parts)


# ------------------------------------------------------------------------------------------------- records


def test_a_record_has_runs_steps_samples_and_coordinates():
    record = wb.rollout(sampling(samples=6), 12, start=torch.zeros(3, 6, 2))
    assert record.x.dims == ("run", "step", "sample", "dim")
    assert record.x.shape == (3, 13, 6, 2)
    assert record["dim"].values.tolist() == ["x", "y"]
    for name in ("time", "nfe", "speed"):
        assert record[name].dims == ("run", "step")
        assert record[name].attrs["long_name"]
    assert record.time.values[0] == pytest.approx(np.arange(13) / 12, abs=1e-6)
    assert record.nfe.values[0].tolist() == list(range(0, 25, 2))
    assert np.isnan(record.speed.values[:, 0]).all()
    moved = np.linalg.norm(np.diff(record.x.values[0], axis=0), axis=-1).mean(-1) * 12
    np.testing.assert_allclose(record.speed.values[0, 1:], moved, rtol=1e-4)
    assert record.attrs["method"] == "heun"
    assert record.attrs["problem"] == "eight-gaussians"
    assert record.attrs["interpolant"] == "linear-path"
    high = wb.rollout(wb.sampling("high-dimensional-mixture", steps=2, samples=3), 2)
    assert high["dim"].values.tolist() == [f"x{i + 1}" for i in range(16)]


def test_a_record_survives_being_saved(tmp_path):
    record = wb.rollout(sampling(), 12, seed=[1, 2])
    wb.save(record, tmp_path / "run")
    with wb.open(tmp_path / "run") as again:
        assert again.load().identical(record)


# ------------------------------------------------------------------------------------------------- scripts


def run_script(session, tmp_path, needs=None):
    path = tmp_path / "run.py"
    path.write_text(session.script())
    made = runpy.run_path(str(path), init_globals=needs)["session"]
    assert made.index == session.index
    assert made.edits == session.edits
    assert same_bits(made.state, session.state), session.script()
    return made


EXACT = {
    "plain": lambda: wb.Session(sampling()),
    "of points": lambda: wb.Session(wb.sampling("two-moons", steps=12, samples=9)),
    "your points": lambda: wb.Session(
        wb.sampling(wb.from_points([[0.0, 1.0], [2.0, 1.0], [1.0, -1.0]], scale=0.2), steps=12)
    ),
    "your start": lambda: wb.Session(sampling(), start=wb.Key(3).normal((2, 5, 2), like=torch.zeros(()))),
    "your times": lambda: wb.Session(sampling(grid=[0.1, 0.2, 0.25, 0.5, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0]), seed=9),
    "in reverse": lambda: wb.Session(sampling(reverse=True, dtype=torch.float64), seed=[2, 3]),
    "another path": lambda: wb.Session(sampling(interpolant=wb.make("edm-path", rho=3.0))),
    "side by side": lambda: wb.Session(
        wb.side_by_side({"a": sampling(), "b": sampling("euler")}), hyper={"b.steps": 15}
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_script_of_a_sampling_session_makes_its_last_state_again(case, tmp_path):
    session = EXACT[case]().step(4)
    session.set(**{"b.steps" if case == "side by side" else "steps": 21}).step(3)
    run_script(session, tmp_path)


def test_the_script_of_samples_through_a_trained_field_trains_it_again(tmp_path):
    for run in (0, 1):
        field = wb.trained_field(trained(), run)
        session = wb.Session(wb.sampling(field, "heun", steps=8, samples=30), seed=2).step(3).set(steps=5).step(2)
        made = run_script(session, tmp_path)
        assert same_bits(made.routine.field.params, trained().state.x[run : run + 1])
        assert "wb.flow_training" in session.script()
        assert "# Put your own" not in session.script()
        # and a script made by what the script made is the same one
        assert made.script() == session.script()


def test_a_trained_field_keeps_what_was_learned_when_training_goes_on(tmp_path):
    session = wb.Session(train()).step(5)
    field = wb.trained_field(session)
    before = field.params.clone()
    session.step(5).back(8).set(lr=0.5).step(2)
    assert torch.equal(field.params, before)
    run_script(wb.Session(wb.sampling(field, steps=3, samples=4)).step(2), tmp_path)


def test_several_trained_fields_side_by_side_are_trained_once_each(tmp_path):
    first, second = wb.trained_field(trained()), wb.trained_field(wb.Session(train(), seed=1).step(4))
    parts = {"a": (first, "euler"), "b": (first, "heun"), "c": (second, "heun")}
    routine = wb.side_by_side({label: wb.sampling(f, s, steps=6, samples=8) for label, (f, s) in parts.items()})
    session = wb.Session(routine).step(4)
    run_script(session, tmp_path)
    assert session.script().count("wb.flow_training") == 2


def test_the_script_asks_for_the_classes_that_were_asked_for(tmp_path):
    small = wb.make("mlp", width=8, depth=1, activation="tanh")
    learned = wb.Session(wb.flow_training(None, "digit-images", network=small, batch_size=8)).step(2)
    field = wb.trained_field(learned).given([3, 1, 4, 1])
    session = wb.Session(wb.sampling(field, steps=3, samples=4)).step(3)
    made = run_script(session, tmp_path)
    assert made.routine.field.labels.tolist() == [3, 1, 4, 1]


def test_a_script_asks_for_what_is_only_yours(tmp_path):
    mine = wb.Mixture([[0.0, 1.0], [1.0, -1.0]], 0.3)
    learned = wb.Session(wb.flow_training(None, mine, network=wb.make("mlp", width=8), batch_size=8)).step(3)
    session = wb.Session(wb.sampling(wb.trained_field(learned), steps=3, samples=4)).step(3)
    assert "# Put your own density here" in session.script()
    run_script(session, tmp_path, {"density": mine})
    own = wb.Session(wb.sampling(lambda x, t: -x, steps=3, samples=4)).step(3)
    assert "# Put your own field here" in own.script()
    run_script(own, tmp_path, {"field": lambda x, t: -x})


def test_the_field_of_anything_else_is_refused():
    with pytest.raises(ValueError, match=r"expected a session of wb\.flow_training, got Sampling"):
        wb.trained_field(wb.Session(sampling()))
    with pytest.raises(ValueError, match=r"expected a session of wb\.flow_training, got FlowTraining"):
        wb.trained_field(train())
    with pytest.raises(ValueError, match="expected run to be one of 2 runs, from 0, got 2"):
        wb.trained_field(trained(), 2)
    with pytest.raises(ValueError, match="expected run to be a whole number from 0, got -1"):
        wb.trained_field(trained(), -1)


# ------------------------------------------------------------------------------------------------- bad input

BAD = {
    "no such solver": (lambda: sampling("huen"), "expected a solver to be one of .*; got 'huen'. Did you mean 'heun'."),
    "no such grid": (lambda: sampling(grid="uniform"), "expected a grid to be one of .*"),
    "one time": (lambda: sampling(grid=[0.5]), r"expected a time grid of at least two times, got shape \(1,\)"),
    "falling times": (
        lambda: sampling(grid=[1.0, 0.5, 0.0]),
        r"expected times that rise strictly .*, got \[1.0, 0.5, 0.0\]",
    ),
    "a time twice": (lambda: sampling(grid=[0.0, 0.5, 0.5, 1.0]), r"expected times that rise strictly .*"),
    "beyond 1": (lambda: sampling(grid=[0.0, 1.2]), r"expected times that rise strictly .*, got \[0.0, 1.2\]"),
    "not a time": (lambda: sampling(grid=[0.0, float("nan")]), r"expected times that rise strictly .*"),
    "words": (lambda: sampling(grid=["a", "b"]), "expected times to be numbers, got list"),
    "nothing": (lambda: sampling(grid=None), "expected times to be numbers, got NoneType"),
    "no steps": (lambda: sampling(steps=0), "expected steps to be a whole number from 1 to 10000, got 0"),
    "half a step": (lambda: sampling(steps=1.5), "expected steps to be a whole number from 1 to 10000, got 1.5"),
    "no samples": (lambda: sampling(samples=0), "expected samples to be a whole number from 1, got 0"),
    "flat start": (
        lambda: wb.Session(sampling(), start=[0.0, 1.0]),
        r"expected start of shape \(samples, 2\) or .*, got \(2,\)",
    ),
    "wide start": (
        lambda: wb.Session(sampling(), start=torch.zeros(4, 3)),
        r"expected start of shape \(samples, 2\) or \(runs, samples, 2\), got \(4, 3\)",
    ),
    "nan start": (
        lambda: wb.Session(sampling(), start=[[0.0, float("nan")]]),
        "expected start to be finite, got inf or nan in it",
    ),
    "empty start": (
        lambda: wb.Session(sampling(), start=torch.zeros(0, 2)),
        r"expected start of shape \(samples, 2\) or .*, got \(0, 2\)",
    ),
    "starts and seeds": (
        lambda: wb.Session(sampling(), start=torch.zeros(2, 4, 2), seed=[1, 2, 3]),
        "expected start to have one point for each of 3 runs, got 2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_sampled_is_refused_in_one_sentence(case):
    make, words = BAD[case]
    with pytest.raises(ValueError, match=f"^{words}$") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_bad_edit_on_the_way_changes_nothing():
    session = wb.Session(sampling()).step(3)
    for edit in ({"steps": 0}, {"step": 5}, {"steps": [3, 4]}):
        with pytest.raises(ValueError, match="expected"):
            session.set(**edit)
    assert session.edits == ()
    assert same_bits(session.step(9).state, wb.Session(sampling()).step(12).state)


def test_no_state_is_changed_by_going_on():
    session = wb.Session(sampling()).step(2)
    before = [leaf.clone() for leaf in leaves(session.state)]
    state = session.state
    session.step(5)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))


def test_a_record_says_how_its_trained_field_came_about():
    net = wb.make("mlp", width=8, depth=1)
    learned = wb.Session(wb.flow_training(None, "two-moons", network=net, batch_size=16), hyper={"lr": 0.01}).step(3)
    record = wb.rollout(wb.sampling(wb.trained_field(learned), "heun", steps=2, samples=5), 2)
    known = {"wb": wb, "torch": torch}
    exec(record.attrs["setup"], known)  # noqa: S102 - our own text
    again = wb.rollout(eval(record.attrs["recipe"], known), 2)  # noqa: S307
    np.testing.assert_array_equal(again.x, record.x)

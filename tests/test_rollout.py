"""Rollouts: batched equals looped, one noise for every dtype, runs that diverge disturb nobody, what a record holds."""

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from workbench.descent import value_and_gradient
from workbench.rollout import advance

STOCHASTIC = next(row.name for row in wb.catalogue("surfaces") if row.make.stochastic)
DOUBLE = {"dtype": torch.float64}

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(dtype=torch.float64, **options):
    """A net on 60 samples of three classes."""
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    data = (x, x[:, :3].argmax(1), x[:12], x[:12, :3].argmax(1))
    given = {"model": wb.make("mlp", width=5), "optimizer": "adam", "batch_size": 16, **options}
    return wb.training(given["model"], "cross_entropy", data, given["optimizer"], batch_size=16, dtype=dtype)


def modules():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3))


ROUTINES = {
    "surface": lambda: wb.descent("rosenbrock", "adam", **DOUBLE),
    "stochastic": lambda: wb.descent(STOCHASTIC, "momentum", **DOUBLE),
    "torch class": lambda: wb.descent(STOCHASTIC, torch.optim.NAdam, **DOUBLE),
    "mlp": tiny,
    "linear": lambda: tiny(model="linear", optimizer="nesterov"),
    "module": lambda: tiny(model=modules()),
}


def same(batched, looped, run):
    """Whether one run of a batched record equals the record of that run alone."""
    for name in looped.data_vars:
        a, b = batched[name].isel(run=run).values, looped[name].isel(run=0).values
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)


# ------------------------------------------------------------------------------------------------- batched = looped


@pytest.mark.parametrize("name", ROUTINES)
def test_rates_one_a_run_give_each_run_what_it_has_alone(name):
    routine, rates = ROUTINES[name](), [1e-3, 1e-2, 5e-2]
    batched = wb.rollout(routine, 30, hyper={"lr": rates})
    assert batched.sizes["run"] == 3
    assert batched.lr.values.tolist() == rates
    for run, rate in enumerate(rates):
        same(batched, wb.rollout(routine, 30, hyper={"lr": rate}), run)


@pytest.mark.parametrize("name", ROUTINES)
def test_starts_one_a_run_give_each_run_what_it_has_alone(name):
    routine = ROUTINES[name]()
    x = routine.init(wb.Key(0)).x
    point = x[0] if routine.run_axis == 0 else x[:, 0]
    starts = torch.stack([point, 0.9 * point, point - 0.2])
    batched = wb.rollout(routine, 30, start=starts, hyper={"lr": 0.01})
    for run in range(3):
        same(batched, wb.rollout(routine, 30, start=starts[run], hyper={"lr": 0.01}), run)


@pytest.mark.parametrize("name", ROUTINES)
def test_seeds_one_a_run_give_each_run_what_it_has_alone(name):
    routine, seeds = ROUTINES[name](), (3, 8, 3)
    batched = wb.rollout(routine, 30, seed=seeds, hyper={"lr": 0.01})
    assert batched.wb.attr("seed") == list(seeds)
    for run, seed in enumerate(seeds):
        same(batched, wb.rollout(routine, 30, seed=seed, hyper={"lr": 0.01}), run)
    lead = "x" if "x" in batched else "loss"
    a, b, c = (batched[lead].isel(run=run).values for run in range(3))
    assert np.array_equal(a, c, equal_nan=True)
    if name != "surface":
        assert not np.allclose(a[-1], b[-1])


def test_a_loss_of_your_own_sees_the_targets_of_its_own_run():
    def loss(outputs, targets):
        assert outputs.shape[:-1] == targets.shape
        return nn.functional.cross_entropy(outputs, targets)

    x = torch.randn(60, 4)
    data = (x, x[:, :3].argmax(1), x[:12], x[:12, :3].argmax(1))
    own, known = (
        wb.training(wb.make("mlp", width=5), given, data, "sgd", **DOUBLE) for given in (loss, "cross_entropy")
    )
    for options in ({}, {"seed": [1, 2]}, {"seed": [4]}, {"hyper": {"lr": [0.1, 0.2]}}):
        a, b = (wb.rollout(routine, 10, probes=["train", "heldout"], **options) for routine in (own, known))
        for name in ("loss", "train_loss", "heldout_loss", "heldout_accuracy"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-12, err_msg=name)


def test_runs_share_their_draws_unless_each_has_its_own_seed():
    routine = wb.descent(STOCHASTIC, "sgd")
    shared = wb.rollout(routine, 20, hyper={"lr": [0.01, 0.01]})
    assert np.array_equal(shared.x[0], shared.x[1])
    own = wb.rollout(routine, 20, hyper={"lr": [0.01, 0.01]}, seed=[0, 1])
    assert not np.array_equal(own.x[0], own.x[1])


def test_float32_and_float64_see_the_same_noise_and_the_same_minibatches():
    for make in (lambda **o: wb.descent(STOCHASTIC, "sgd", **o), tiny):
        single, double = make(dtype=torch.float32), make(dtype=torch.float64)
        for k in (0, 1, 7):
            states = [routine.init(wb.Key(2).stream("init")) for routine in (single, double)]
            a, b = (
                routine.draw(wb.Key(2).at(k), state, None)
                for routine, state in zip((single, double), states, strict=True)
            )
            a, b = (noise if isinstance(noise, torch.Tensor) else noise.rows for noise in (a, b))
            assert torch.equal(a.double(), b.to(a.dtype).double())
        assert single.init(wb.Key(0)).x.dtype == torch.float32
        np.testing.assert_allclose(wb.rollout(single, 20).loss, wb.rollout(double, 20).loss, rtol=1e-3)


# ------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("name", ["surface", "stochastic", "torch class", "mlp", "module"])
def test_a_diverging_neighbour_changes_no_bit_of_the_others(name):
    routine = {
        "surface": lambda: wb.descent("rosenbrock", "momentum"),
        "stochastic": lambda: wb.descent(STOCHASTIC, "sgd"),
        "torch class": lambda: wb.descent("rosenbrock", torch.optim.SGD),
        "mlp": lambda: tiny(torch.float32, optimizer="sgd"),
        "module": lambda: tiny(torch.float32, model=modules(), optimizer="sgd"),
    }[name]()
    sound = wb.rollout(routine, 60, hyper={"lr": [1e-3, 1e-3, 5e-4]})
    beside = wb.rollout(routine, 60, hyper={"lr": [1e-3, 1e4, 5e-4]})
    if name not in ("mlp", "module"):
        assert beside.wb.status[1] == f"diverged at step {int(beside.diverged_at[1])}"
        assert int(beside.diverged_at[1]) >= 0
    assert sound.wb.status == ["ok"] * 3
    for run in (0, 2):
        for label in sound.data_vars:
            assert np.array_equal(sound[label][run], beside[label][run], equal_nan=True), label


def test_a_run_that_diverges_keeps_its_last_finite_point_and_says_when():
    record = wb.rollout(wb.descent("rosenbrock", "sgd"), 50, hyper={"lr": [0.5, 1e-4]})
    at = int(record.diverged_at[0])
    x = record.x[0].values
    assert record.diverged_at.values.tolist() == [at, -1]
    assert 0 < at < 50
    assert np.isfinite(record.x).all()
    assert (x[at:] == x[at]).all()
    assert not np.array_equal(x[at - 1], x[at])
    routine = wb.descent("rosenbrock", "sgd")
    state = routine.init(wb.Key(0))
    ready = routine.normalise({"lr": 0.5})
    for k in range(at):
        state, _ = advance(routine, state, ready, wb.Key(0), k)
    _, slope = value_and_gradient(routine.objective, state.x)
    assert torch.isfinite(state.x).all()
    assert not torch.isfinite(state.x - 0.5 * slope).all()


def test_a_net_that_diverges_keeps_its_last_finite_parameters_and_buffers():
    x = torch.randn(40, 4)
    data = (x, x[:, :1] ** 2, x[:8], x[:8, :1])
    bend = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    routine = wb.training(bend, "mse", data, "sgd", batch_size=8)
    session = wb.Session(routine, hyper={"lr": [1e4, 1e-3]}).step(60)
    at = int(session.state.diverged[0])
    assert 0 <= at < 60
    assert session.state.diverged[1] == -1
    stopped = session.seek(at).state
    later = session.seek(60).state
    assert torch.isfinite(later.x).all()
    assert torch.equal(later.x[0], stopped.x[0])
    for name, held in later.buffers.items():
        assert torch.equal(held[0], stopped.buffers[name][0]), name
    assert not torch.equal(later.buffers["1.running_mean"][1], stopped.buffers["1.running_mean"][1])


# ------------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("every", [1, 2, 7, 40])
def test_every_keeps_one_state_in_so_many_and_the_first(every):
    for routine in (wb.descent("rosenbrock", "adam"), tiny()):
        whole, part = wb.rollout(routine, 30), wb.rollout(routine, 30, every=every)
        assert part.step.values.tolist() == list(range(0, 31, every))
        for name in part.data_vars:
            kept = whole[name].isel(step=slice(None, None, every)) if "step" in whole[name].dims else whole[name]
            np.testing.assert_allclose(part[name], kept, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("make", [lambda: wb.descent("rosenbrock", "adam"), tiny])
def test_no_steps_give_the_start_alone(make):
    record = wb.rollout(make(), 0, hyper={"lr": [0.1, 0.2]})
    assert record.sizes["step"] == 1
    assert record.sizes["run"] == 2
    assert record.attrs["steps"] == 0


def test_what_a_step_measured_stands_at_the_step_it_led_to():
    routine = tiny()
    record, state = wb.rollout(routine, 5), routine.init(wb.Key(0).stream("init"))
    assert np.isnan(record.loss[0, 0])
    for k in range(5):
        state, info = advance(routine, state, routine.normalise(), wb.Key(0), k)
        assert record.loss[0, k + 1] == info["loss"].item()


def test_probes_are_taken_at_every_recorded_step():
    routine = tiny()
    twice = wb.Probe("twice", {"twice": wb.Variable((), "twice the norm")}, lambda r, s: {"twice": 2 * s.x.norm(dim=1)})
    record = wb.rollout(
        routine, 6, probes=["train", "heldout", "norms", "weights", twice], every=2, hyper={"lr": [0.1, 1]}
    )
    assert record.train_accuracy.dims == ("run", "step")
    assert record.layer_weight_norm.dims == ("run", "step", "layer")
    assert record.layer.values.tolist() == ["weight 1", "bias 1", "weight 2", "bias 2"]
    assert record.weights.shape == (2, 4, 43)
    np.testing.assert_allclose(record.twice, 2 * record.weight_norm, rtol=1e-6)
    np.testing.assert_allclose((record.layer_weight_norm**2).sum("layer"), record.weight_norm**2, rtol=1e-6)
    with pytest.raises(ValueError, match="expected a probe to be one of heldout, norms, train, weights; got 'tran'"):
        wb.rollout(routine, 1, probes=["tran"])


def test_what_a_rollout_was_given_stands_in_its_attributes():
    record = wb.rollout(wb.descent("rosenbrock", "adam"), 3, seed=5, start=[0.5, 1], hyper={"lr": 0.3})
    assert record.wb.attr("seed") == 5
    assert record.wb.attr("start") == [0.5, 1]
    assert record.wb.attr("hyper")["lr"] == 0.3
    assert record.wb.attr("hyper")["beta1"] == 0.9
    assert record.attrs["steps"] == 3
    assert record.attrs["recipe"] == "wb.descent('rosenbrock', 'adam')"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -1}, "expected steps to be a whole number from 0, got -1"),
        ({"steps": 1.5}, "expected steps"),
        ({"steps": True}, "expected steps"),
        ({"every": 0}, "expected every to be a whole number from 1, got 0"),
        ({"every": 1.5}, "expected every"),
        ({"hyper": {"rate": 1}}, "expected a hyperparameter .*'rate'"),
        ({"hyper": {"lr": -1}}, "expected lr to be a number from 0"),
        (
            {"hyper": {"lr": [0.1, 0.2]}, "start": [[0.0, 0.0]] * 3},
            "expected start to have one point for each of 2 runs",
        ),
        ({"hyper": {"lr": [0.1, 0.2]}, "seed": [1, 2, 3]}, "same number of runs"),
        ({"start": [1.0]}, r"expected start to have shape \(2,\) or \(runs, 2\), got \(1,\)"),
        ({"start": [[[1.0, 2.0]]]}, "expected start to have shape"),
        ({"start": [1.0, float("inf")]}, "expected start to be finite"),
        ({"seed": None}, "expected seed to be a whole number"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        wb.rollout(wb.descent("rosenbrock", "adam"), **{"steps": 3, **options})


def test_a_start_of_a_net_has_to_fit_and_be_finite():
    with pytest.raises(ValueError, match=r"expected start to have shape \(43,\)"):
        wb.rollout(tiny(), 1, start=torch.zeros(42))
    with pytest.raises(ValueError, match="expected start to be finite"):
        wb.rollout(tiny(), 1, start=torch.full((43,), torch.nan))


# ------------------------------------------------------------------------------------------------- looking ahead


@pytest.mark.parametrize("name", ["surface", "stochastic", "mlp"])
def test_the_fan_ahead_holds_the_runs_own_future_and_that_of_other_values(name):
    routine = ROUTINES[name]()
    session = wb.Session(routine, hyper={"lr": 0.01}).step(7)
    final, points = wb.ahead(
        routine, session.state, session.hyper, {"lr": [0.005, 0.01, 0.02]}, 9, key=session.key, first=session.index
    )
    assert points.shape[0] == 10
    own = session.branch().step(9).state
    for run, rate in enumerate((0.005, 0.01, 0.02)):
        other = own if rate == 0.01 else session.branch().set(lr=rate).step(9).state
        torch.testing.assert_close(routine.pick(final, run).x, other.x, rtol=1e-9, atol=1e-12)

"""Latent states: found where they are known, and what they say of runs that learn sparse parity."""

import logging

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import workbench as wb
from workbench.landscapes.detours import alignment, detours, state_changes
from workbench.landscapes.latent import METRICS, WEIGHT_METRICS, segment, weight_metrics
from workbench.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
CHAIN = np.array([[0.9, 0.1, 0.0], [0.05, 0.9, 0.05], [0.0, 0.0, 1.0]])


LIKE = torch.empty(0, dtype=torch.float64)


def uniform(shape, seed=0):
    return wb.Key(seed).stream("u").uniform(np.atleast_1d(shape).tolist(), like=LIKE).numpy()


def normal(shape, seed=0):
    return wb.Key(seed).stream("n").normal(np.atleast_1d(shape).tolist(), like=LIKE).numpy()


def switching(runs=24, steps=60, seed=0, noise=0.7):
    """Runs that switch between three states by a known chain, and the states."""
    states, u = np.zeros((runs, steps), int), uniform((runs, steps), seed)
    for t in range(1, steps):
        states[:, t] = (u[:, t, None] > CHAIN[states[:, t - 1]].cumsum(1)).sum(1)
    return MEAN[states] + noise * normal((runs, steps, 2), seed), states


@pytest.fixture(scope="module")
def switched():
    x, states = switching()
    return x, states, segment(x, states=range(1, 6), restarts=2)


# ------------------------------------------------------------------------------------------------- metrics


def test_every_metric_equals_its_definition_in_numpy():
    space = Space(-1, ((4, 3), (4,), (2, 4), (2,)))
    x = torch.from_numpy(normal((2, 5, 26)))
    made = weight_metrics(x, space, steps=range(0, 50, 10))
    assert list(made) == list(METRICS)
    assert made["step"].values.tolist() == [0, 10, 20, 30, 40]
    row = x[1, 3].numpy()
    weights, biases = [row[:12].reshape(4, 3), row[16:24].reshape(2, 4)], np.concatenate([row[12:16], row[24:]])
    sigmas = [np.sqrt(np.linalg.eigvalsh(w @ w.T if len(w) < w.shape[1] else w.T @ w)) for w in weights]
    l1, l2 = [abs(w).sum() for w in weights], [np.sqrt((w**2).sum()) for w in weights]
    traces = [sum(w[i, i] for i in range(min(w.shape))) for w in weights]
    flat = np.sort(np.concatenate([w.ravel() for w in weights]))
    expected = {
        "l1": np.mean(l1),
        "l2": np.mean(l2),
        "trace": np.mean(traces),
        "spectral": np.mean([s.max() for s in sigmas]),
        "code_sparsity": np.mean([a / b for a, b in zip(l1, l2, strict=True)]),
        "computational_sparsity": np.mean([t / s.max() for t, s in zip(traces, sigmas, strict=True)]),
        "mean_singular": np.mean([s.mean() for s in sigmas]),
        "var_singular": np.mean([s.var(ddof=1) for s in sigmas]),
        "mean_w": flat.mean(),
        "median_w": flat[9],  # of an even count the lower one, as torch.median
        "var_w": flat.var(ddof=1),
        "mean_b": biases.mean(),
        "median_b": np.sort(biases)[2],
        "var_b": biases.var(ddof=1),
    }
    for name, value in expected.items():
        assert float(made[name][1, 3]) == pytest.approx(value, rel=1e-10), name


def test_a_model_without_biases_has_no_metrics_of_them_and_one_without_matrices_none_at_all():
    assert "mean_b" not in weight_metrics(torch.zeros(3, 6) + 1, Space(-1, ((2, 3),)))
    assert float(weight_metrics(torch.ones(3, 3), Space(-1, ((1, 3),)))["var_singular"].max()) == 0
    with pytest.raises(ValueError, match="a weight matrix"):
        weight_metrics(torch.zeros(3, 6), Space(-1, ((6,),)))
    with pytest.raises(ValueError, match="of this space"):
        weight_metrics(torch.zeros(3, 7), Space(-1, ((2, 3),)))


# ------------------------------------------------------------------------------------------------- the model


def test_states_of_synthetic_switching_data_are_recovered(switched):
    x, states, found = switched
    assert found.sizes["state"] == 3
    share = float((found["states"].values == states).mean())
    assert share > 0.97
    assert found["certainty"].values.mean() > 0.97
    z = (MEAN - x.mean((0, 1))) / x.std((0, 1))
    stay = np.array([(states == k).sum() for k in range(3)])
    assert (abs(found["mean"].values - z) < 4 * 0.7 / x.std((0, 1)) / np.sqrt(stay)[:, None]).all()
    leaves = np.array([(states[:, :-1] == k).sum() for k in range(3)])
    bound = 4 * np.sqrt(0.9 * 0.1 / leaves[:2])[:, None]
    assert (abs(found["transition"].values[:2] - CHAIN[:2]) < bound).all()
    assert found["transition"].values[2, 2] > 0.97
    assert found["first"].values[0] > 0.9


def test_likelihood_is_that_of_the_forward_algorithm_and_bic_counts_the_free_parameters(switched):
    x, _, found = switched
    z = (x - x.mean((0, 1))) / x.std((0, 1))
    mean, variance = found["mean"].values, found["variance"].values
    total = 0.0
    for run in z:
        alpha = found["first"].values
        for t, point in enumerate(run):
            alpha = alpha @ found["transition"].values if t else alpha
            alpha = alpha * stats.norm.pdf(point, mean, np.sqrt(variance)).prod(1)
            total += np.log(alpha.sum())
            alpha = alpha / alpha.sum()
    assert float(found["log_likelihood"].sel(count=3)) == pytest.approx(total, rel=1e-9)
    for count in (1, 3, 5):
        free = (count - 1) + count * (count - 1) + 2 * count * 2
        one = found.sel(count=count)
        assert float(one["bic"]) == pytest.approx(-2 * float(one["log_likelihood"]) + free * np.log(24 * 60))
    assert found["bic"].values.argmin() == 2


def test_states_are_numbered_in_the_order_of_time_and_repeat_with_their_key(switched):
    x, _, found = switched
    again = segment(x, states=range(1, 6), restarts=2)
    xr.testing.assert_identical(again, found)
    path = found["states"].values
    when = [np.nonzero(path == k)[1].mean() for k in range(3)]
    assert when == sorted(when)
    backwards = segment(x[:, ::-1], states=[3], restarts=2)
    assert float((backwards["states"].values[:, ::-1] == 2 - path).mean()) > 0.97


def test_each_run_may_be_standardised_by_itself():
    """Runs that differ in level and scale alone have one path each when standardised by themselves."""
    x, states = switching(runs=12)
    keep = np.array([len(set(row)) == 3 for row in states])
    x, states = x[keep], states[keep]
    level = 100 * normal((len(x), 1, 2), seed=5)
    same = segment(x, states=[3], each_run=True)
    moved = segment(7 * x + level, states=[3], each_run=True)
    np.testing.assert_array_equal(same["states"], moved["states"])
    assert float((segment(7 * x + level, states=[3])["states"].values == states).mean()) < 0.9


def test_a_record_gives_its_weight_metrics_or_the_features_asked_for():
    x, _ = switching(runs=5, steps=20)
    steps = ("step", 10 * np.arange(20))
    record = xr.Dataset({n: (("run", "step"), x[..., i]) for i, n in enumerate(["l2", "other"])}, {"step": steps})
    record = record.assign_coords(run=np.arange(5))
    assert segment(record, states=[2])["metric"].values.tolist() == ["l2"]
    both = segment(record, states=[2], features=["other", "l2"])
    assert both["metric"].values.tolist() == ["other", "l2"]
    np.testing.assert_array_equal(both["step"], 10 * np.arange(20))
    with pytest.raises(ValueError, match="Did you mean 'other'"):
        segment(record, features=["othr"])
    with pytest.raises(ValueError, match="weight metrics, or features"):
        segment(record.drop_vars("l2"))


def test_few_different_points_and_constant_metrics_are_no_warning_and_no_error():
    x = np.zeros((4, 10, 2))
    x[:, 5:, 0] = 1
    found = segment(x, states=[1, 2, 4])
    assert found["metric"].values.tolist() == ["metric 0"]
    np.testing.assert_array_equal(state_changes(found).values.sum(0)[5], 4)
    np.testing.assert_allclose(found["transition"].sum("next"), 1)


def test_a_state_entered_at_the_very_last_step_stays_there_and_nobody_shouts(caplog):
    x = 0.01 * normal((3, 12, 1))
    x[:, -1] += 5
    with caplog.at_level(logging.WARNING):
        found = segment(x, states=[2])
        assert not caplog.records
        logging.getLogger("hmmlearn.base").warning("still heard")
    assert len(caplog.records) == 1
    np.testing.assert_array_equal(found["states"], np.repeat([[0] * 11 + [1]], 3, 0))
    np.testing.assert_array_equal(found["transition"][1], [0, 1])


def test_what_does_not_fit_is_refused_with_what_was_expected():
    x, _ = switching(runs=3, steps=10)
    for given, words in [
        (np.where(x > 3, np.nan, x), "not finite"),
        (np.ones((3, 10, 2)), "at least one metric that varies"),
        (x[0], r"\(runs, steps, metrics\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            segment(given)
    with pytest.raises(ValueError, match="from 1 to 30 points"):
        segment(x, states=[31])
    with pytest.raises(ValueError, match="a number of states"):
        segment(x, states=[0])


def test_watch_hears_of_the_fits_and_ends_them():
    heard = []
    segment(switching(runs=3, steps=10)[0], states=[1, 2], watch=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(switching(runs=3, steps=10)[0], states=[1, 2], watch=stop)


# ------------------------------------------------------------------------------------------------- convergence


def path_record(states, count=None):
    states = np.asarray(states)
    coords = {"run": np.arange(len(states)), "step": np.arange(states.shape[1])}
    return xr.Dataset({"states": (("run", "step"), states)}, {**coords, "state": np.arange(count or states.max() + 1)})


def test_changes_at_convergence_are_told_from_changes_anywhere():
    times = np.floor(10 + 80 * uniform(20))
    found = path_record(np.arange(100) >= times[:, None])
    aligned = alignment(found, times)
    assert float(aligned["distance"]) == 0
    assert float(aligned["p_value"]) == 1 / 1000
    expected = abs(times[:, None] - times).mean()
    assert float(aligned["shuffled"].mean()) == pytest.approx(expected, rel=0.05)
    # Where changes have nothing to do with it, a p of at most 5 % comes in 5 % of 80 tries, within four sigma.
    low = 0
    for seed in range(80):
        elsewhere = np.floor(10 + 80 * uniform(20, seed + 1))
        p = alignment(path_record(np.arange(100) >= elsewhere[:, None]), times, key=wb.Key(seed), shuffles=99)
        low += float(p["p_value"]) <= 0.05
    assert abs(low - 4) <= 4 * np.sqrt(80 * 0.05 * 0.95)


def test_a_run_that_never_converged_or_never_changed():
    states = np.zeros((4, 50), int)
    states[0, 10:] = 1
    found = alignment(path_record(states), [12.0, 20.0, np.nan, 30.0], shuffles=9)
    assert found.attrs["runs"] == 3
    assert float(found["distance"]) == pytest.approx((2 + 49 + 49) / 3)
    with pytest.raises(ValueError, match="a time for each of 4 runs"):
        alignment(path_record(states), [1, 2])
    with pytest.raises(ValueError, match="at least two runs that converged"):
        alignment(path_record(states), [1, np.nan, np.nan, np.nan])


def random_paths(runs=30, steps=40, count=3):
    return np.floor(count * uniform((runs, steps)) ** (0.3 + 2 * uniform((runs, 1), 1))).astype(int)


def test_regression_of_two_states_is_simple_regression():
    states = random_paths(count=2)
    times = 50 + 3.0 * (states == 1).sum(1) + 2 * normal(30)
    found = detours(path_record(states), times)
    plain = stats.linregress((states == 1).sum(1), times)
    c, e = found["coefficient"].values, found["standard_error"].values
    assert c[1] - c[0] == pytest.approx(plain.slope)
    np.testing.assert_allclose(e, plain.stderr / 2)
    assert abs(plain.slope - 3) < 4 * plain.stderr


def test_cross_validated_r2_equals_folds_written_out_and_chance_has_none():
    states = random_paths()
    counts = np.stack([(states == k).sum(1) for k in range(3)], 1)
    times = 50 + counts @ [0.0, 5.0, -2.0] + 4 * normal(30)
    found = detours(path_record(states), times, folds=4, key=wb.Key(3))
    order = wb.Key(3).stream("folds").permutation(30).numpy()
    missed = spread = 0.0
    for part in range(4):
        test = order[part::4]
        train = np.setdiff1d(order, test)
        design = np.column_stack([np.ones(30), counts])
        fitted = design @ np.linalg.lstsq(design[train], times[train], rcond=None)[0]
        missed += ((times[test] - fitted[test]) ** 2).sum()
        spread += ((times[test] - times[train].mean()) ** 2).sum()
    assert float(found["r2"]) == pytest.approx(1 - missed / spread)
    assert float(found["r2"]) > 0.8
    assert float(found["p_value"]) == 1 / 200
    c = found["coefficient"].values
    assert c[1] > c[0] > c[2]
    low = [float(detours(path_record(states), normal(30, s), key=wb.Key(s), shuffles=99)["p_value"]) for s in range(80)]
    assert abs((np.array(low) <= 0.05).sum() - 4) <= 4 * np.sqrt(80 * 0.05 * 0.95)
    assert np.mean(found["r2_shuffled"]) < 0


def test_until_counts_no_later_step():
    states = random_paths(steps=40)
    changed = states.copy()
    changed[:, 11:] = 0
    times = 10 + 10 * uniform(30, 2)
    first, second = (detours(path_record(s, 3), times, until=10) for s in (states, changed))
    xr.testing.assert_identical(first, second)
    assert float(first["visits"].sum("state").max()) == 11
    with pytest.raises(ValueError, match="expected 2 folds or more"):
        detours(path_record(states), times, folds=20)


# ------------------------------------------------------------------------------------------------- the paper's claims


@pytest.fixture(scope="module")
def parity():
    """Thirty seeds of an MLP that learns sparse parity, all at once but at its own time each."""
    data = wb.make("sparse-parity", bits=16, relevant=3, samples=1500, holdout=0.33).load()
    routine = wb.training(wb.make("mlp", width=64), "cross_entropy", data, "sgd", batch_size=32)
    probes = ["heldout", WEIGHT_METRICS]
    record = wb.rollout(routine, 500, seed=list(range(30)), hyper={"lr": 0.3}, probes=probes, every=10)
    learnt = record["heldout_accuracy"].values > 0.95
    return record, record["step"].values[learnt.argmax(1)], learnt.any(1)


@pytest.fixture(scope="module")
def parity_states(parity):
    return segment(parity[0], restarts=2)


def test_the_probe_gives_what_the_weights_give():
    routine = wb.training("mlp", "cross_entropy", "digits", "sgd")
    record = wb.rollout(routine, 4, seed=[0, 1], probes=["weights", WEIGHT_METRICS], every=2)
    made = weight_metrics(record["weights"].values, routine.space, record["step"].values)
    for name in METRICS:
        np.testing.assert_allclose(record[name], made[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_bic_chooses_more_than_one_state_and_wants_ever_more(parity, parity_states):
    """As claimed, more than one. But the smooth way of a training has no number of its own: the most tried wins."""
    assert parity[2].all()
    assert parity_states.sizes["state"] == 7
    assert (np.diff(parity_states["bic"].values) < 0).all()


def test_state_changes_stand_nearer_to_their_own_runs_convergence(parity, parity_states):
    found = alignment(parity_states, parity[1])
    assert float(found["p_value"]) < 0.01
    assert float(found["distance"]) < 0.75 * float(found["shuffled"].mean())


def test_visits_predict_when_a_run_converges_better_than_shuffled_ones_even_before_any_did(parity, parity_states):
    times = parity[1]
    whole = detours(parity_states, times)
    assert float(whole["r2"]) > 0.8
    assert float(whole["r2_shuffled"].max()) < float(whole["r2"])
    forecast = detours(parity_states, times, until=int(times.min()) - 10)
    assert float(forecast["r2"]) > 0
    assert float(forecast["p_value"]) < 0.01
    detour = whole["coefficient"] / whole["standard_error"]
    assert float(detour.max()) > 3


@pytest.mark.slow
def test_on_modular_addition_visits_tell_when_a_small_network_groks_and_state_changes_do_not():
    """Sixty seeds that grok. Weight decay moves all weights alike, and states change with it, not at the grokking."""
    data = wb.make("modular-addition", holdout=0.25).load()
    routine = wb.training(wb.make("mlp", width=128), "cross_entropy", data, "adamw", batch_size=len(data.x))
    hyper, probes = {"lr": 3e-3, "weight_decay": 1.0}, ["heldout", WEIGHT_METRICS]
    record = wb.rollout(routine, 1600, seed=list(range(60)), hyper=hyper, probes=probes, every=40)
    learnt = record["heldout_accuracy"].values > 0.5
    times = np.where(learnt.any(1), record["step"].values[learnt.argmax(1)].astype(float), np.nan)
    assert np.isfinite(times).sum() >= 50
    found = segment(record, restarts=2)
    assert found.sizes["state"] > 1
    assert float(alignment(found, times)["p_value"]) > 0.05
    told = detours(found, times, shuffles=999)
    assert float(told["p_value"]) < 0.01
    assert float(told["r2"]) > 0.1

"""Robust averages: of numbers, as sorting gives them; of gradients, what they do to labels that are wrong."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from scipy.stats.mstats import winsorize

import workbench as wb
from workbench.optimizers.robust import ordered, winsorised_mean
from workbench.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_exchanging_neighbours_sorts(count):
    values = torch.randint(5, (count, 400)).double()
    assert torch.equal(torch.stack(ordered(values)), values.sort(0).values)


@pytest.mark.parametrize(("count", "trim"), [(1, 0), (3, 0), (3, 1), (8, 0), (8, 2), (8, 3), (9, 4)])
def test_the_winsorised_mean_is_that_of_scipy(count, trim):
    values = torch.randn(count, 50, dtype=torch.float64)
    wanted = winsorize(values.numpy(), limits=(trim / count + 1e-9, trim / count + 1e-9), axis=0).mean(0)
    np.testing.assert_allclose(winsorised_mean(list(values), trim), wanted, rtol=1e-12, atol=1e-15)


def test_numbers_that_are_none_are_not_hidden():
    values = [torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([1.0, 2.0, torch.inf]), torch.tensor([0.0, 2.0, 2.0])]
    found = winsorised_mean(values, 1)
    assert found.isnan().tolist() == [False, True, False]
    assert found[2] == 3


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_a_step_goes_against_the_median_of_as_many_minibatches(count):
    space, method = Space(axis=-1, shapes=((7,),)), wb.make("median-of-gradients", count=count)
    gradients, x = torch.randn(count, 2, 7, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    asked = []

    def oracle(point, draw=0):
        asked.append(draw)
        return point.sum(-1), gradients[draw]

    hyper = {"lr": torch.tensor(0.1), "weight_decay": torch.tensor(0.2)}
    moved, _, _ = method.step(space, oracle, x, (), hyper, ())
    wanted = torch.from_numpy(np.median(gradients.numpy(), 0))
    torch.testing.assert_close(moved, x - 0.1 * (wanted + 0.2 * x), rtol=1e-6, atol=0)
    assert asked == list(range(count))


def test_nothing_trimmed_is_descent_on_all_minibatches_together():
    data, ends = wb.make("digits").load(), {}
    plain = wb.make("winsorised-gradients", count=4, trim=0)
    for method, batch in ((plain, 8), ("sgd", 32)):
        routine = wb.training("linear", "cross_entropy", data, method, batch_size=batch, dtype=torch.float64)
        ends[batch] = wb.Session(routine, hyper={"lr": 0.1, "weight_decay": 0.01}).step(60).state
    assert ends[8].cursor == ends[32].cursor
    torch.testing.assert_close(ends[8].x, ends[32].x, rtol=1e-9, atol=1e-12)


def test_a_trim_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="expected trim to be less than half of count, 4, got 2"):
        wb.make("winsorised-gradients", count=4, trim=2)
    with pytest.raises(ValueError, match="expected trim to be a whole number from 0 to 1 for 4 values, got 2"):
        winsorised_mean([torch.ones(1)] * 4, 2)


@functools.cache
def half_wrong():
    """Digits with half of the training labels replaced by another class, and which they are."""
    data, key = wb.make("digits").load(), wb.Key(0)
    wrong = key.stream("wrong").uniform((len(data.y),), like=data.x) < 0.5
    others = 1 + (9 * key.stream("which").uniform((len(data.y),), like=data.x)).long()
    return dataclasses.replace(data, y=torch.where(wrong, (data.y + others) % 10, data.y)), wrong


@functools.cache
def accuracies(method, batch, steps=1600):
    """On training labels that are wrong, on those that are right, and on the held-out ones, (3 seeds,) each."""
    data, wrong = half_wrong()
    made = wb.make(method, count=6, trim=2) if method == "winsorised-gradients" else method
    routine = wb.training(wb.make("mlp", width=100), "cross_entropy", data, made, batch_size=batch)
    with wb.Session(routine, hyper={"lr": 0.1}, seed=(0, 1, 2)) as session:
        state = session.step(steps).state
    said = routine.outputs(state, routine.data.x).argmax(-1) == routine.data.y
    held = routine.outputs(state, routine.data.x_test).argmax(-1) == routine.data.y_test
    return [part.double().mean(1) for part in (said[:, wrong], said[:, ~wrong], held)]


BATCH = {"median-of-gradients": 8, "winsorised-gradients": 4}


@pytest.mark.parametrize("method", BATCH)
@pytest.mark.slow
def test_labels_that_are_wrong_are_remembered_less_and_others_learned_better(method):
    """Half of the labels wrong; as many steps, samples a step (24) and the same step size as gradient descent."""
    wrong, right, held = accuracies(method, BATCH[method])
    sgd_wrong, sgd_right, sgd_held = accuracies("sgd", 24)
    assert (wrong < 0.7 * sgd_wrong).all()
    assert (right > sgd_right - 0.02).all()
    assert (held > sgd_held + 0.05).all()

"""Gradients written out by hand: those of the tape, for every activation, depth, loss and number of runs."""

import math

import pytest
import torch

import workbench as wb
from workbench.descent import value_and_gradient
from workbench.problems.losses import EACH, LOSSES, SLOPES, cross_entropy, cross_entropy_slope, per_run
from workbench.problems.networks import ACTIVATIONS, Module
from workbench.training import taped


def case(loss, runs, own_batches, generator):
    """Inputs, targets and first parameters of a small problem, in float64."""
    like = {"generator": generator, "dtype": torch.float64}
    lead = (runs,) if own_batches else ()
    inputs = torch.randn(*lead, 11, 5, **like)
    if loss == "mse":
        return inputs, torch.randn(*lead, 11, 3, **like)
    return inputs, torch.randint(3, (*lead, 11), generator=generator)


@pytest.mark.parametrize("own_batches", [False, True], ids=["one batch", "a batch a run"])
@pytest.mark.parametrize("runs", [1, 4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_by_hand_is_that_of_the_tape(activation, depth, loss, runs, own_batches):
    generator = torch.Generator().manual_seed(0)
    model = wb.make("mlp", width=7, depth=depth, activation=activation).bind(5, 3)
    x = torch.randn(runs, sum(model.space.sizes), generator=generator, dtype=torch.float64)
    inputs, targets = case(loss, runs, own_batches, generator)
    before = x.clone(), inputs.clone(), targets.clone()
    found = model.value_and_gradient(x, inputs, lambda outputs: SLOPES[loss](outputs, targets))
    wanted = value_and_gradient(lambda p: LOSSES[loss](model(p, inputs, {}, training=True)[0], targets), x)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, inputs, targets), strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_slope_is_the_derivative_of_its_loss(loss):
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(2, 11, 3, generator=generator, dtype=torch.float64)
    _, targets = case(loss, 2, False, generator)
    value, slope = SLOPES[loss](outputs, targets)
    wanted, taped = value_and_gradient(lambda out: LOSSES[loss](out, targets), outputs)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, taped, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_the_mean_of_those_of_single_samples(loss):
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(2, 11, 3, generator=generator, dtype=torch.float64)
    _, targets = case(loss, 2, False, generator)
    torch.testing.assert_close(EACH[loss](outputs, targets).mean(1), LOSSES[loss](outputs, targets), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1e4, math.inf, math.nan])
def test_the_slope_of_cross_entropy_holds_where_exponentials_overflow_and_numbers_end(size):
    outputs, classes = torch.randn(2, 6, 4), torch.arange(6) % 4
    outputs[0, 2, 1] = size
    found = cross_entropy_slope(outputs, classes)
    torch.testing.assert_close(found, taped(cross_entropy)(outputs, classes), rtol=1e-6, atol=1e-7, equal_nan=True)
    assert bool(found[1][1].isfinite().all())


@pytest.mark.parametrize("runs", [1, 4])
def test_a_loss_of_ones_own_is_taped_from_the_outputs_on(runs):
    """The loss is taped, the network is not."""
    loss = per_run(lambda outputs, targets: ((outputs[:, 0] - targets[:, 0]).abs() ** 3).mean(), 2)
    model = wb.make("mlp", width=7, depth=2, activation="gelu").bind(5, 3)
    x = torch.randn(runs, sum(model.space.sizes), dtype=torch.float64)
    inputs, targets = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64)
    found = model.value_and_gradient(x, inputs, lambda outputs: taped(loss)(outputs, targets))
    wanted = value_and_gradient(lambda p: loss(model(p, inputs, {}, training=True)[0], targets), x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


def test_only_models_whose_own_call_is_written_out_use_it():
    class Bent(type(wb.make("mlp"))):
        """Computes something else, and says no gradient for it."""

        name = "bent"

        def __call__(self, x, inputs, buffers, *, training, key=None):
            out, held = super().__call__(x, inputs, buffers, training=training, key=key)
            return out.sin(), held

    assert type(wb.make("mlp")).by_hand
    assert type(wb.make("linear")).by_hand
    assert not Bent.by_hand
    assert not Module.by_hand

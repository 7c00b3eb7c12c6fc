"""Routines side by side: each part moves as it would alone, on the same draws."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.tree import same_bits

STOCHASTIC = next(row.name for row in wb.catalogue("surfaces") if row.make.stochastic)

pytestmark = pytest.mark.usefixtures("one_thread")


def surfaces(**options):
    return {name: wb.descent(STOCHASTIC, name, **options) for name in ("adam", "sgd", "torch.Adagrad")}


def nets():
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    data = (x, x[:, :3].argmax(1), x[:12], x[:12, :3].argmax(1))
    return {
        "small": wb.training(wb.make("mlp", width=5), "cross_entropy", data, "adam", batch_size=16),
        "large": wb.training(wb.make("mlp", width=9), "cross_entropy", data, "sgd", batch_size=16),
    }


@pytest.mark.parametrize("make", [surfaces, nets])
def test_each_part_moves_as_it_would_alone(make):
    parts = make()
    first = {name: 0.05 / (1 + i) for i, name in enumerate(parts)}
    whole = wb.Session(wb.side_by_side(parts), hyper={f"{name}.lr": rate for name, rate in first.items()}, seed=4).step(
        9
    )
    last = list(parts)[-1]
    whole.set(**{f"{last}.lr": 0.2}).step(6)
    for i, (name, part) in enumerate(parts.items()):
        alone = wb.Session(part, hyper={"lr": first[name]}, seed=4).step(9)
        alone.set(lr=0.2 if name == last else first[name]).step(6)
        assert same_bits(whole.routine.pick(whole.state, i), alone.state)
        assert whole.routine.pick(whole.state, i) is whole.state.parts[i]


def test_a_record_has_the_parts_along_run_with_their_names():
    record = wb.rollout(wb.side_by_side(surfaces()), 5)
    assert record.method.values.tolist() == ["adam", "sgd", "torch.Adagrad"]
    assert record.x.dims == ("run", "step", "dim")
    for i, part in enumerate(surfaces().values()):
        assert np.array_equal(record.x[i], wb.rollout(part, 5).x[0])


def test_probes_measure_every_part():
    parts = nets()
    record = wb.rollout(wb.side_by_side(parts), 4, probes=["heldout", "norms"])
    for i, part in enumerate(parts.values()):
        alone = wb.rollout(part, 4, probes=["heldout", "norms"])
        np.testing.assert_allclose(record.heldout_loss[i], alone.heldout_loss[0], rtol=1e-6)
        np.testing.assert_allclose(record.layer_grad_norm[i], alone.layer_grad_norm[0], rtol=1e-5)
    with pytest.raises(ValueError, match="expected weights of one shape from every part"):
        wb.rollout(wb.side_by_side(parts), 1, probes=["weights"])


def test_starts_and_seeds_one_a_part_go_to_each():
    together = wb.side_by_side(surfaces())
    starts = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    whole = wb.Session(together, start=starts, seed=[1, 2, 3]).step(5)
    for i, part in enumerate(surfaces().values()):
        alone = wb.Session(part, start=starts[i], seed=i + 1).step(5)
        assert torch.equal(whole.state.parts[i].x, alone.state.x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": [[0.1, 0.2]] * 2}, "expected one run for each of 3 parts, got 2"),
        ({"seed": [1, 2]}, "expected one run for each of 3 parts, got 2"),
        ({"hyper": {"adam.lr": [0.1, 0.2, 0.3]}}, "expected lr to have one value for each of 1 runs"),
        ({"hyper": {"lr": 0.1}}, "expected a hyperparameter .*'lr'"),
        ({"hyper": {"adam.lr": -1.0}}, "expected lr to be a number"),
    ],
)
def test_what_does_not_fit_the_parts_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        wb.Session(wb.side_by_side(surfaces()), **options)


def test_routines_of_different_kinds_do_not_stand_side_by_side():
    with pytest.raises(ValueError, match="at least one routine"):
        wb.side_by_side({})
    with pytest.raises(ValueError, match="'net' of another kind"):
        wb.side_by_side({"a": wb.descent("rosenbrock", "adam"), "net": nets()["small"]})
    with pytest.raises(ValueError, match="'b' of another kind"):
        wb.side_by_side({"a": wb.descent("rosenbrock", "adam"), "b": wb.descent(wb.make("rosenbrock", dim=3), "adam")})


def test_parts_that_diverge_leave_the_others_alone():
    parts = {name: wb.descent("rosenbrock", "sgd") for name in "ab"}
    record = wb.rollout(wb.side_by_side(parts), 40, hyper={"a.lr": 0.5, "b.lr": 1e-4})
    assert record.wb.status[0].startswith("diverged at step")
    assert record.wb.status[1] == "ok"
    assert np.array_equal(record.x[1], wb.rollout(parts["b"], 40, hyper={"lr": 1e-4}).x[0])


def test_parts_run_on_another_device_together():
    moved = wb.side_by_side(surfaces()).to("meta")
    assert {part.device.type for part in moved.parts.values()} == {"meta"}
    assert moved.to("meta") is moved
    assert moved.to() is moved

"""Walks over states: mapping, comparing bit for bit, repeating and picking runs."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from workbench.tree import (
    TENSOR_BYTES,
    PerRun,
    leaves,
    nbytes,
    own,
    pick_run,
    repeat_runs,
    same_bits,
    tensors,
    tree_map,
)


class Pair(NamedTuple):
    a: torch.Tensor
    b: object


def tree():
    inner = {"m": torch.arange(6.0).reshape(2, 3), "n": 7}
    return Pair(torch.tensor([1.0, 2.0, 3.0]), (inner, [torch.zeros(()), None], PerRun([1, 2, 3])))


def test_mapping_keeps_the_structure_and_every_leaf_that_is_no_tensor():
    doubled = tree_map(lambda t: 2 * t, tree())
    assert type(doubled) is Pair
    assert type(doubled.b[2]) is PerRun
    assert doubled.b[0]["n"] == 7
    assert doubled.b[1][1] is None
    assert torch.equal(doubled.b[0]["m"], 2 * tree().b[0]["m"])
    assert torch.equal(tree_map(torch.add, tree(), tree()).a, 2 * tree().a)


def test_leaves_come_in_a_fixed_order_and_bytes_are_counted():
    assert [leaf for leaf in leaves(tree()) if not isinstance(leaf, torch.Tensor)] == [7, None, 1, 2, 3]
    assert [t.numel() for t in tensors(tree())] == [3, 6, 1]
    assert nbytes(tree()) == 4 * (3 + 6 + 1) + 3 * TENSOR_BYTES


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.tensor([1.0]), torch.tensor([[1.0]])),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),
        (torch.tensor([1.0]), 1.0),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ((1, 2), [1, 2]),
        ((1, 2), (1, 2, 3)),
        ({"a": 1}, {"b": 1}),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2))),
        (PerRun([1]), (1,)),
        (((1,), 2), (1, (2,))),
    ],
)
def test_same_bits_sees_every_difference(a, b):
    assert not same_bits(a, b)
    assert not same_bits(b, a)


@pytest.mark.parametrize(
    "a",
    [
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.empty(0, 3),
        torch.tensor(True),
        torch.arange(12.0).reshape(3, 4).T,
        torch.ones(1).as_strided((1, 1), (0, 0)),
        torch.randn(3, dtype=torch.complex64),
        float("nan"),
        None,
        {"x": (1, "two", [torch.ones(2, 2)])},
    ],
)
def test_same_bits_of_a_copy(a):
    assert same_bits(a, tree_map(lambda t: t.clone(memory_format=torch.contiguous_format), a))


@pytest.mark.parametrize("axis", [0, -1])
def test_repeating_one_run_and_picking_any_of_them_gives_it_back(axis):
    one = Pair(torch.randn(5, 1) if axis == -1 else torch.randn(1, 5), (torch.tensor(3), PerRun([{"k": 1}]), 11))
    many = repeat_runs(one, 4, axis)
    assert many.a.shape[axis] == 4
    assert many.b[0].ndim == 0
    assert len(many.b[1]) == 4
    for run in range(4):
        assert same_bits(pick_run(many, run, axis), one)


def test_what_is_owned_cannot_be_changed_by_whoever_gave_it():
    given = {"t": torch.ones(3), "a": np.ones(3), "l": [np.ones(2), 5, "x"], "n": np.float32(2)}
    mine = own(given)
    given["t"].zero_()
    given["a"][:] = 0
    given["l"][0][:] = 0
    assert mine["t"].tolist() == [1, 1, 1]
    assert mine["a"].tolist() == [1, 1, 1]
    assert mine["l"][0].tolist() == [1, 1]
    assert mine["l"][1:] == [5, "x"]
    assert mine["n"] == 2

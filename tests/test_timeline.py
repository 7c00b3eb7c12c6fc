"""What a session remembers: snapshots under a budget, the edit log, what steps measured."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import trace as traces
from workbench.timeline import RECENT, Edit, Snapshots, Timeline
from workbench.trace import BLOCK, Trace
from workbench.tree import nbytes

# ------------------------------------------------------------------------------------------------- snapshots


def state(k, numbers=25):
    return (torch.full((numbers,), float(k)),)  # 100 bytes


EACH = nbytes(state(0))
"""What one of these states counts for."""


def filled(budget, last):
    kept = Snapshots(budget)
    for k in range(last + 1):
        kept.put(k, state(k))
    return kept


def steps_of(snapshots):
    """The kept steps, asked for one by one."""
    return sorted({snapshots.nearest(k)[0] for k in range(5000)})


def test_nothing_is_dropped_within_the_budget():
    kept = filled(EACH * 101, 100)
    assert len(kept) == 101
    assert kept.nbytes == EACH * 101
    assert kept.widest_gap() == 1


@pytest.mark.parametrize("budget", [0, 10 * EACH, 50 * EACH, 200 * EACH])
def test_the_budget_holds_but_for_the_first_and_the_last_16(budget):
    kept = filled(budget, 1000)
    assert kept.nbytes <= max(budget, EACH * (RECENT + 2))
    assert set(range(1000 - RECENT + 1, 1001)) <= set(steps_of(kept))
    assert steps_of(kept)[0] == 0


def test_a_state_that_is_there_already_stays_and_counts_once():
    kept, first = Snapshots(10**6), state(0)
    for k in (0, 1, 0, 1, 1):
        kept.put(k, first if k == 0 else state(k))
    assert len(kept) == 2
    assert kept.nbytes == 2 * EACH
    assert kept.nearest(0)[1] is first


def test_every_step_has_a_snapshot_at_or_before_it_with_its_own_state():
    kept = filled(30 * EACH, 700)
    for k in range(701):
        at, found = kept.nearest(k)
        assert at <= k
        assert found[0][0] == at


def test_gaps_grow_with_age():
    """With room for 100 of 2,000 states no gap is wider than a quarter of its age, and recent ones are narrow."""
    kept = filled(EACH * 100, 2000)
    steps = steps_of(kept)
    for a, b in itertools.pairwise(steps):
        assert b - a <= max(2, (2000 - a) / 4)
    assert kept.widest_gap() == max(np.diff(steps))


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(0, 40 * EACH))
@settings(max_examples=50)
def test_the_16_before_the_present_and_before_the_head_survive_replays(targets, budget):
    kept = filled(budget, 400)
    for target in targets:
        at, _ = kept.nearest(target)
        for k in range(at + 1, target + 1):
            kept.put(k, state(k))
        steps = set(steps_of(kept))
        assert set(range(400 - RECENT + 1, 401)) <= steps
        assert set(range(max(at, target - RECENT + 1), target + 1)) <= steps
        assert kept.nbytes == EACH * len(kept)
        assert kept.nbytes <= max(budget, EACH * (2 * RECENT + 2))


def test_a_part_shares_states_and_counts_its_own_bytes():
    kept = filled(100 * EACH, 50)
    part = kept.upto(20)
    assert steps_of(part) == list(range(21))
    assert part.nbytes == EACH * 21
    assert part.nearest(7)[1] is kept.nearest(7)[1]
    part.put(21, state(0))
    assert kept.nearest(21)[1][0][0] == 21
    assert steps_of(kept.ends()) == [0, 50]


# ------------------------------------------------------------------------------------------------- edits


def test_edits_act_from_their_step_on_until_changed_again():
    line = Timeline(Snapshots(0))
    line.edit(Edit(5, "lr", 1))
    line.edit(Edit(9, "lr", 2))
    line.edit(Edit(7, "eps", 3))
    assert line.in_force(4) == {}
    assert line.in_force(5) == {"lr": 1}
    assert line.in_force(8) == {"lr": 1, "eps": 3}
    assert line.in_force(9) == {"lr": 2, "eps": 3}
    assert [edit.step for edit in line.edits] == [5, 7, 9]


def test_an_edit_of_the_same_step_and_target_takes_the_place_of_the_old_one():
    line = Timeline(Snapshots(0))
    for value in (1, 2):
        line.edit(Edit(5, "lr", value))
    line.edit(Edit(5, "eps", 3))
    assert line.edits == [(5, "lr", 2), (5, "eps", 3)]


def test_the_past_of_a_line_keeps_what_is_in_force_there_and_drops_what_comes_later():
    line = Timeline(filled(10_000, 10), head=10)
    for step in (3, 4, 5):
        line.edit(Edit(step, "lr", step))
    past = line.upto(4)
    assert past.edits == [(3, "lr", 3), (4, "lr", 4)]
    assert past.head == 4
    past.edit(Edit(4, "lr", 0))
    assert line.in_force(4) == {"lr": 4}


# ------------------------------------------------------------------------------------------------- trace


def values(k):
    return {"loss": torch.tensor([float(k), 2.0 * k])}


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_a_trace_gives_back_every_step_once(count):
    trace = Trace()
    for k in range(count):
        trace.put(k, values(k))
        trace.put(k // 2, values(-1))
    steps, arrays = trace.arrays()
    assert steps.dtype == np.int64
    assert steps.tolist() == list(range(count))
    if count:
        assert arrays["loss"].tolist() == [[k, 2.0 * k] for k in range(count)]


@pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 150, 200])
def test_a_branch_of_a_trace_goes_its_own_way(at):
    trace = Trace()
    for k in range(200):
        trace.put(k, values(k))
    part = trace.upto(at)
    part.put(at, values(-7))
    steps, arrays = part.arrays()
    assert steps.tolist() == list(range(at + 1))
    assert arrays["loss"][:, 0].tolist() == [*range(at), -7]
    assert trace.arrays()[1]["loss"][:, 0].tolist() == list(range(200))


@pytest.mark.parametrize("first", [0, 1, 100, 130, 199, 200])
def test_the_last_part_of_a_trace_equals_the_end_of_the_whole(first):
    trace = Trace()
    for k in range(200):
        trace.put(k, values(k))
        if k == 140:
            trace.arrays()
    steps, arrays = trace.since(first)
    assert steps.tolist() == list(range(first, 200))
    if len(steps):
        assert arrays["loss"][:, 0].tolist() == list(range(first, 200))


def test_a_trace_that_outgrows_its_memory_keeps_every_second_step(monkeypatch):
    monkeypatch.setattr(traces, "LIMIT", 4096)
    trace = Trace()
    for k in range(3000):
        trace.put(k, values(k))
    steps, arrays = trace.arrays()
    assert trace.stride > 1
    assert steps.tolist() == list(range(0, 3000, trace.stride))
    assert arrays["loss"][:, 1].tolist() == [2.0 * k for k in steps]
    assert sum(array.nbytes for array in arrays.values()) <= 4096 + 8 * BLOCK
    part = trace.upto(1000)
    part.put(1000, values(1000))
    assert set(np.diff(part.arrays()[0])) == {trace.stride}

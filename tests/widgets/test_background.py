"""What a desk works out beside everything else: pieces as they come, the newest wish wins, cancel is heard at once."""

import threading
import time

import pytest

from tests.widgets.desks import until
from widgets.apps.background import Background


@pytest.fixture
def told():
    return []


@pytest.fixture
def background(told):
    made = Background(lambda *said: told.append(said), lambda: False)
    yield made
    made.close()


def counting(until, gate=None):
    def make(watch):
        for i in range(until):
            watch(i / until)
            if gate is not None:
                gate.wait(10)
            yield i

    return make


def test_pieces_are_handed_over_in_order(background):
    found = []
    background.ask("numbers", counting(5), found.append)
    assert background.wait()
    assert found == [0, 1, 2, 3, 4]
    assert background.progress is None


def test_the_newest_wish_of_a_name_ends_the_one_before(background):
    gate, old, new = threading.Event(), [], []
    background.ask("numbers", counting(1000, gate), old.append)
    until(lambda: background._now is not None)
    background.ask("numbers", counting(3), new.append)
    gate.set()
    assert background.wait()
    assert new == [0, 1, 2]
    assert len(old) < 2


def test_other_names_wait_for_their_turn(background):
    gate, order = threading.Event(), []
    background.ask("a", counting(2, gate), lambda i: order.append(("a", i)))
    until(lambda: background._now == "a")
    background.ask("b", counting(1), lambda i: order.append(("b", i)))
    gate.set()
    assert background.wait()
    assert order == [("a", 0), ("a", 1), ("b", 0)]


def test_cancel_ends_it_at_the_next_look_and_keeps_what_came(background):
    found = []
    background.ask("numbers", counting(10**9), found.append)
    until(lambda: len(found) > 10)
    began = time.perf_counter()
    background.cancel()
    assert background.wait()
    assert time.perf_counter() - began < 1
    background.ask("numbers", counting(2), found.append)
    assert background.wait()
    assert found[-2:] == [0, 1]


def test_trouble_is_told_and_does_not_end_the_thread(background, told):
    def bad(watch):
        yield 1
        raise ValueError("expected better")

    def worse(watch):
        raise RuntimeError("oh")
        yield

    found = []
    background.ask("bad", bad, found.append)
    background.ask("worse", worse, found.append)
    background.ask("numbers", counting(1), found.append)
    assert background.wait()
    assert found == [1, 0]
    assert ("message", "expected better", "error") in told
    assert any(said[0] == "message" and "worse" in said[1] for said in told)


def test_it_rests_while_others_need_the_time():
    slow = Background(lambda *said: None, lambda: True)

    def make(watch):
        for i in range(6):
            watch(i / 6)
            time.sleep(0.02)
        yield

    began = time.perf_counter()
    slow.ask("work", make, lambda piece: None)
    assert slow.wait()
    assert time.perf_counter() - began > 0.2
    slow.close()

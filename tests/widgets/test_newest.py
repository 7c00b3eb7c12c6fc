"""Of what waits under one name the newest is taken, whichever thread comes between."""

import queue
import sys
import threading

import pytest

from widgets.apps.newest import Newest

ROUNDS, PUTS = 300, 20


@pytest.fixture
def _restless():
    """Threads take turns as often as they can, so that every order of their steps comes about."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_restless")
def test_the_last_thing_put_is_taken_and_nothing_is_forgotten():
    newest, told, taken = Newest(), queue.SimpleQueue(), []

    def take():
        while (name := told.get()) is not None:
            taken.append(newest.take(name))

    taker = threading.Thread(target=take)
    taker.start()
    for k in range(ROUNDS * PUTS):
        if newest.put("slider", k):
            told.put("slider")
    told.put(None)
    taker.join(30)
    assert taken == sorted(taken)
    assert taken[-1] == ROUNDS * PUTS - 1


def test_names_wait_apart_and_one_telling_is_enough():
    newest = Newest()
    assert [newest.put("a", 1), newest.put("b", 2), newest.put("a", 3)] == [True, True, False]
    assert newest.names() == ["a", "b"]
    assert [newest.take("a"), newest.take("a"), newest.take("b")] == [3, None, 2]
    assert newest.put("a", 4)

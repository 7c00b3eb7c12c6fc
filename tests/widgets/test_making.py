"""What is made to be taken away: of the run as it stood, beside all else, one at a time; and it can be stopped."""

import io
import re
import threading

import pytest

import workbench as wb
from tests.widgets.desks import done, until
from widgets.apps import making
from widgets.apps.descent_desk import DescentDesk
from widgets.apps.flow import FlowDesk
from widgets.apps.making import Cancelled, Maker
from widgets.apps.sampler import SamplerDesk
from widgets.apps.training import TrainingDesk

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = {
    DescentDesk: {"surface": "himmelblau", "methods": ["adam"]},
    TrainingDesk: {"data": "breast-cancer"},
    FlowDesk: {"target": "two-modes"},
    SamplerDesk: {"target": "two-modes", "samplers": [{"solver": "euler"}]},
}
"""Desks, and settings other than those they open with."""
SMALL = {"width": "24", "depth": "1", "batch": "32"}


@pytest.fixture(params=OTHERS)
def desk(open_desk, request):
    """A desk of each app, eight steps on and turned once where it has a rate."""
    desk = open_desk(request.param, query=SMALL if request.param is FlowDesk else {})
    rate = next((name for name in desk.session.hyper if name.endswith("lr")), "")
    return done(desk, lambda: desk.step(5), lambda: rate and desk.turn(rate, 1e-3), lambda: desk.step(3))


class Gate:
    """Keeps a maker half way until it is opened."""

    def __init__(self, maker, monkeypatch):
        self.reached, self.free, step = threading.Event(), threading.Event(), maker.step

        def held(share):
            if share >= 0.5:
                self.reached.set()
                assert self.free.wait(30)
            step(share)

        monkeypatch.setattr(maker, "step", held)


@pytest.fixture
def gate(desk, monkeypatch):
    gate = Gate(desk.maker, monkeypatch)
    yield gate
    gate.free.set()


def taken(desk, what):
    found = []
    desk.take(what, found.append)
    desk.wait()
    return found[0]


def opened(content):
    return wb.record.xr.load_dataset(io.BytesIO(content), engine="h5netcdf")


def test_a_script_a_record_and_a_page_are_those_of_the_live_run(desk):
    assert taken(desk, "script").decode() == desk.script()
    assert taken(desk, "page").decode() == desk.html()
    assert opened(taken(desk, "record")).equals(desk.record())


def test_a_page_is_of_the_run_as_it_stood_whatever_happens_meanwhile(desk, gate):
    wanted, pages = desk.html(), []
    desk.take("page", pages.append)
    assert gate.reached.wait(30)
    desk.step(2)
    until(lambda: desk.session.index == 10)
    desk.choose(**OTHERS[type(desk)])
    until(lambda: desk.session.index == 0)
    gate.free.set()
    desk.wait()
    assert pages[0].decode() == wanted
    assert desk.session.index == 0


def test_a_record_made_while_it_plays_on_is_the_run_it_lived_until_then(desk):
    found = []
    desk.set_speed(20.0)
    desk.toggle()
    until(lambda: desk.session.index > 10)
    desk.take("record", found.append)
    until(lambda: found)
    record = opened(found[0])
    done(desk, desk.session.pause, lambda: desk.seek(record.sizes["step"] - 1))
    assert record.equals(desk.record())


def test_progress_is_told_and_a_second_wish_is_refused_until_the_first_is_done(desk, gate):
    given = []
    desk.take("record", given.append)
    assert gate.reached.wait(30)
    assert desk.busy
    assert re.search(r"· making the record \d+%", desk.status())
    desk.take("page", given.append)
    desk.save("mine")
    assert [text for kind, text in desk.said if kind == "warning"] == [
        "One thing at a time: wait until the record is ready, or cancel it."
    ] * 2
    gate.free.set()
    desk.wait()
    assert len(given) == 1
    assert not desk.busy
    assert "making" not in desk.status()
    assert not (desk.runs / "mine").exists()
    assert taken(desk, "script")


def test_cancelled_nothing_is_given_and_the_desk_is_as_it_was(desk, gate):
    given, before = [], desk.query()
    desk.take("page", given.append)
    assert gate.reached.wait(30)
    desk.cancel()
    gate.free.set()
    desk.wait()
    assert given == []
    assert desk.said[-1] == ("info", "Cancelled: the page that plays was not made.")
    assert desk.query() == before
    assert taken(desk, "page")


def test_a_run_is_saved_as_it_stood(desk, gate):
    before = desk.query()
    desk.save("as it stood")
    assert gate.reached.wait(30)
    desk.back(5)
    until(lambda: desk.session.index == 3)
    gate.free.set()
    desk.wait()
    assert desk.said[-1] == ("success", "Saved as as it stood.")
    done(desk, lambda: desk.reopen("as it stood"))
    assert desk.query() == before


def test_closing_a_desk_ends_what_it_makes(desk, gate):
    given = []
    desk.take("page", given.append)
    assert gate.reached.wait(30)
    desk.close()
    gate.free.set()
    assert desk.maker.wait(30)
    assert given == []


# ---- the maker alone


class Told(list):
    """What a maker tells, as a list of sentences."""

    def __call__(self, signal, *words):
        if signal == "message":
            self.append(words)


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("expected a, got b"), "expected a, got b"),
        (OSError(28, "No space left on device"), "Could not write the record: No space left on device."),
        (RuntimeError("in depths"), "Something went wrong while the record was made. The log has details."),
    ],
)
def test_what_fails_is_said_in_a_sentence_and_the_next_may_begin(error, words, caplog):
    told = Told()
    maker = Maker(told)
    maker.begin("the record")
    maker.run(lambda: fail(error))
    assert maker.wait(30)
    assert told == [(words, "error")]
    assert ("in depths" in caplog.text) == isinstance(error, RuntimeError)
    maker.begin("the record")
    maker.end()


def test_in_one_process_only_so_many_things_are_made_at_once_and_those_that_wait_can_be_cancelled():
    told, makers, free, running = Told(), [], threading.Event(), []
    for k in range(making.AT_ONCE + 2):
        maker = Maker(told)
        maker.begin(f"thing {k}")
        maker.run(lambda k=k: (running.append(k), free.wait(30)))
        makers.append(maker)
        until(lambda k=k: len(running) >= min(k + 1, making.AT_ONCE))
    assert running == list(range(making.AT_ONCE))
    makers[-1].cancel()
    assert makers[-1].wait(30)
    assert told == [(f"Cancelled: thing {making.AT_ONCE + 1} was not made.", "info")]
    free.set()
    assert all(maker.wait(30) for maker in makers)
    assert sorted(running) == list(range(making.AT_ONCE + 1))


def test_a_step_after_cancelling_raises_and_a_new_beginning_forgets_it():
    maker = Maker(Told())
    maker.begin("it")
    maker.step(0.3)
    assert maker.progress == ("it", 0.3)
    maker.cancel()
    with pytest.raises(Cancelled):
        maker.step(0.4)
    maker.end()
    maker.begin("it")
    maker.step(0.1)
    maker.end()

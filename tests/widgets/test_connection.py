"""A page hears of everything that changes, from the moment its browser has fetched it."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import panel as pn
import pytest
from bokeh.document import Document
from panel.io import document
from panel.reactive import Syncable
from tornado.ioloop import IOLoop

from widgets import connection

# In a process of its own: the client below is cut off, and leaves its websocket open.
VISIT = """
import os, sys, threading, time
import panel as pn
import panel_material_ui as pmui
from bokeh.client import pull_session
from widgets.server import Server, wait_until_up

texts = []

def page():
    texts.append((pmui.Button(label="first"), pn.state.curdoc))
    return texts[-1][0]

server = Server(runs=sys.argv[1], port=0, extra={"text": page})
server.start(threaded=True)
assert wait_until_up(server.url)
visit = pull_session(url=f"{server.url}/text")  # fetches the page and, unlike a browser, never says that it is ready
text, doc = texts[-1]
shown = visit.document.roots[0].data
print(shown.label)
threading.Thread(target=visit._loop_until_closed, daemon=True).start()  # takes in what the server sends
doc.add_next_tick_callback(lambda: text.param.update(label="second"))
end = time.monotonic() + 10
while shown.label == "first" and time.monotonic() < end:
    time.sleep(0.05)
print(shown.label, flush=True)
os._exit(0)
"""


def test_what_changes_before_the_browser_has_drawn_everything_is_not_lost(tmp_path):
    command = [sys.executable, "-c", VISIT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["first", "second"]


class Connection:
    """Takes messages unless busy; writing one takes a moment."""

    def __init__(self):
        self.sent, self.busy = [], False
        block = SimpleNamespace(_value=1)
        self._socket = SimpleNamespace(write_lock=SimpleNamespace(_block=block))
        self.protocol = SimpleNamespace(create=lambda kind, events: events)

    def set_busy(self, busy):
        self._socket.write_lock._block._value = 0 if busy else 1

    def write(self, connection, msg):
        async def written():
            await asyncio.sleep(0.03)

        self.sent.append(msg)
        return [asyncio.ensure_future(written())]


async def send_while_busy(page, connection):
    """One change is being written while another finds the connection busy."""
    document.schedule_write_events(page, [connection], ["first"])
    await asyncio.sleep(0.01)
    connection.set_busy(True)
    document.schedule_write_events(page, [connection], ["second"])
    await asyncio.sleep(0.025)  # the first is written, the second waits for its next try
    connection.set_busy(False)
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("mended", [False, True])
def test_a_change_that_waits_for_the_connection_is_sent_without_another_change(monkeypatch, mended):
    page, connection_ = Document(), Connection()
    monkeypatch.setitem(document.extra_socket_handlers, SimpleNamespace, connection_.write)
    monkeypatch.setattr(document, "_dispatch_msgs", document._dispatch_msgs)
    if mended:
        connection.send_all()
        connection.send_all()
    asyncio.run(send_while_busy(page, connection_))
    # Panel alone loses it: when this fails, it has been mended there, and `send_all` can go.
    assert connection_.sent == ([["first"], ["second"]] if mended else [["first"]])


def test_what_a_person_changes_is_handled_with_the_document_locked(monkeypatch):
    for name in ("_change_coroutine", "_event_coroutine"):
        monkeypatch.setattr(Syncable, name, getattr(Syncable, name))
    connection.lock_changes()
    once = Syncable._change_coroutine
    connection.lock_changes()
    assert Syncable._change_coroutine is once
    assert once.lock
    assert Syncable._event_coroutine.lock


class Locked:
    """A session that is never busy."""

    async def with_document_locked(self, call, *args):
        call(*args)


def visited(loop):
    """A document that a browser looks at; and what holds it."""
    application = SimpleNamespace(io_loop=loop)
    context = SimpleNamespace(server_context=SimpleNamespace(application_context=application), session=Locked())
    page = Document()
    page._session_context = lambda: context
    return page


async def called_while_held(call_later):
    """The documents in force at two calls that another thread wants, while what the page holds is dropped."""
    page, calls = visited(IOLoop.current()), []

    def call():
        calls.append(pn.state.curdoc)

    page.hold("combine")
    thread = threading.Thread(target=lambda: call_later(page, call))
    thread.start()
    thread.join()
    page.callbacks._held_events = []
    page.unhold()
    await asyncio.sleep(0.1)
    return [doc is page for doc in calls]


def test_a_call_wanted_by_another_thread_is_made_though_what_the_page_holds_is_dropped():
    def both(page, call):
        connection.on_loop(page, call)
        connection.on_loop(page, call, after=0.01)

    assert asyncio.run(called_while_held(both)) == [True, True]
    # Bokeh's own way loses it: when this fails, a held callback is no event any more, and `on_loop` can go.
    assert asyncio.run(called_while_held(lambda page, call: page.add_next_tick_callback(call))) == []


def test_a_call_for_a_page_that_has_gone_is_not_made():
    async def call_after_leaving():
        page, calls = visited(IOLoop.current()), []
        connection.on_loop(page, lambda: calls.append("gone"))
        page._session_context = lambda: None
        connection.on_loop(page, lambda: calls.append("gone"))
        await asyncio.sleep(0.05)
        return calls

    assert asyncio.run(call_after_leaving()) == []


def test_calls_keep_no_page():
    """Neither a call that is yet to come, nor a timer that began in one that was made."""

    async def kept():
        page, begun = visited(IOLoop.current()), []
        connection.on_loop(page, lambda: None, after=60)
        connection.on_loop(page, lambda: begun.append(IOLoop.current().call_later(60, print)))
        await asyncio.sleep(0.05)
        page, gone = None, weakref.ref(page)
        await asyncio.sleep(0)
        gc.collect()
        return gone() is not None, len(begun)

    assert asyncio.run(kept()) == (False, 1)

"""What has to be mended between Bokeh and Panel so that a served page loses nothing."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any
from weakref import ref

import panel as pn
from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from bokeh.server.session import ServerSession
from panel.custom import JSComponent
from panel.io import document
from panel.reactive import Syncable


def on_loop(doc: Document, call: Callable[[], None], *, after: float = 0.0) -> None:
    """Has a page's loop make a call, with the document locked, in `after` seconds; nothing for a page that has gone.

    From any thread. Bokeh's `add_next_tick_callback` is not for that: while Panel holds a document's events, a callback
    that another thread adds is one of them, and may be dropped.
    """
    context: Any = doc.session_context
    application = context and context.server_context.application_context
    if not application:
        return
    loop, page = application.io_loop, ref(doc)  # a timer may outlast its page, and must not keep it
    if after:
        loop.add_callback(loop.call_later, after, _make, page, call)  # timers belong to the loop's thread
    else:
        loop.add_callback(_make, page, call)


async def _make(page: Callable[[], Document | None], call: Callable[[], None]) -> None:
    context: Any = getattr(page(), "session_context", None)
    if context is not None and context.session is not None:
        await context.session.with_document_locked(_call, page, call)


def _call(page: Callable[[], Document | None], call: Callable[[], None]) -> None:
    doc = page()
    if doc is not None:
        # Not Panel's `set_curdoc`: what is begun meanwhile would copy it, and keep the document as long as it lasts.
        with patch_curdoc(doc):
            call()


class KeepsNewest(JSComponent):
    """Nothing to see: on a page that has it, no value that the server has replaced returns from the browser."""

    _esm = files(__package__).joinpath("newest.js").read_text(encoding="utf-8")


def mark_pulled() -> None:
    """Counts a page as connected once its browser has fetched it, for pages from now on; again changes nothing.

    Panel (1.9.4) does so at the browser's "document ready", on a busy machine seconds after the picture is there. Until
    then it drops what changes, as if the browser had nothing yet: a theme or an answer would be lost for good.
    """
    original: Any = ServerSession._handle_pull
    if getattr(original, "marks", False):
        return

    async def pull_and_mark(self: ServerSession, *args: Any) -> Any:
        reply = await original(self, *args)
        pn.state._connected[self.document] = True
        return reply

    pull_and_mark.marks = True  # type: ignore[attr-defined]
    ServerSession._handle_pull = pull_and_mark  # type: ignore[method-assign, assignment]


def lock_changes() -> None:
    """Handles what a person changes only while the document is locked, from now on; again changes nothing.

    Panel (1.9.4) calls handlers of sliders that must not wait, and of what is pressed right after any change, without
    the lock. A widget of panel-material-ui that such a handler sets before the browser is ready then raises in Bokeh,
    and what the rest of the handler would have said is lost.
    """
    for name in ("_change_coroutine", "_event_coroutine"):
        handler = getattr(Syncable, name)
        if not hasattr(handler, "lock"):
            setattr(Syncable, name, pn.io.with_lock(handler))


def send_all() -> None:
    """Sends every change that had to wait for the connection, from now on; again changes nothing.

    While the connection is busy, Panel (1.9.4) keeps messages and tries again. Of two such tries the one that ends
    first says that nothing waits any more, and the other then leaves its messages until the page changes next.
    """
    original: Any = document._dispatch_msgs
    if getattr(original, "sends_all", False):
        return

    async def dispatch_all(doc: Document) -> None:
        await original(doc)
        if doc in document._WRITE_MSGS and doc not in document._WRITE_BLOCK:
            document._WRITE_BLOCK[doc] = True
            document._dispatch_write_task(doc, dispatch_all, doc)

    dispatch_all.sends_all = True  # type: ignore[attr-defined]
    document._dispatch_msgs = dispatch_all

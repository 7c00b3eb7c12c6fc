"""Frames on a websocket of the player's own, so that each costs the server one small write.

As a property of the page a frame passes Panel, Bokeh's document and its lock, a patch message and the same again for
its acknowledgement, all while a training thread waits for the interpreter. On a line it is one binary message down and
one number up. Every page that is served has the route <its path>/frames?player=TOKEN&view=NAME beside its own; the
token is the player's, is known to its pages alone and is forgotten with the player. The browser first says the number
of the message it holds, then of each that it has drawn. A page without a line gets its frames as a property.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from bokeh.server import urls
from bokeh.server.views.ws import WSHandler
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from .feed import Feed

MOST_LINES = 32
"""Of one player at a time; a page beyond them gets its frames as a property."""
MOST_UNDER_WAY = 4
"""Frames handed to one line that the network has not taken; one more, and the line is given up."""

_players: WeakValueDictionary[str, Lines] = WeakValueDictionary()


def mount() -> None:
    """Gives every page of servers made from now on its route for lines; calling it again changes nothing."""
    patterns: list[Any] = urls.per_app_patterns
    if not any(pattern[1] is Line for pattern in patterns):
        patterns.insert(0, ("/frames", Line))


class Lines:
    """The lines of one player, by view."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.token = feed, secrets.token_urlsafe(32)
        self._open: dict[str, Line] = {}
        self._other = 0  # number of the latest message that went another way
        _players[self.token] = self

    def carry(self) -> bool:
        """Whether a frame sent now reaches every view, and after everything that went another way."""
        return bool(self._open) and self.feed.drawn_by(self._open, self._other)

    def send(self, frame: bytes) -> None:
        """Sends a frame to every view; from any thread."""
        for line in list(self._open.values()):
            if not line.send(frame):
                self.drop(line.view)

    def passed(self) -> None:
        """The feed's latest message goes another way."""
        self._other = self.feed.counts.sent

    def loop(self) -> Line | None:
        """The newest line whose loop runs, to call things there."""
        return next((line for line in reversed(list(self._open.values())) if line.runs), None)

    def heard(self, line: Line, seq: int) -> None:
        """A line's browser holds message `seq`."""
        if self._open.get(line.view) is not line:
            if len(self._open) >= MOST_LINES and line.view not in self._open:
                return line.end()
            self.drop(line.view)
            self._open[line.view] = line
        self.feed.acknowledge(line.view, seq)

    def drop(self, view: str, line: Line | None = None) -> None:
        """Gives up a view's line (only `line`, where given); what was under way is sent again."""
        known = self._open.get(view)
        if known is not None and (line is None or known is line):
            del self._open[view]
            known.end()
            self.feed.again(view)

    def close(self) -> None:
        """Ends all lines and forgets the token."""
        _players.pop(self.token, None)
        while self._open:
            self._open.popitem()[1].end()


class Line(WebSocketHandler):
    """One browser's websocket to one player; it knows the player by its token alone and keeps nothing alive."""

    max_message_size = 32
    check_origin = WSHandler.check_origin  # the origins from which pages may be opened

    def initialize(self, **_context: Any) -> None:
        self.token, self.view = self.get_query_argument("player", ""), self.get_query_argument("view", "")[:32]
        self._under_way = 0

    def prepare(self) -> None:
        if self.token not in _players or not self.view:
            raise HTTPError(403)

    def open(self, *_args: str, **_kwargs: str) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.set_nodelay(True)

    @property
    def runs(self) -> bool:
        """Whether its loop takes calls."""
        return self._loop.is_running()

    def call(self, call: Callable[..., None], *args: Any) -> None:
        """Calls on its loop: at once if this is its thread, soon otherwise, never if it has stopped."""
        if threading.get_ident() == self._thread:
            return call(*args)
        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(call, *args)

    def send(self, frame: bytes) -> bool:
        """Sends one frame; False if too many wait."""
        if self._under_way < MOST_UNDER_WAY:
            self._under_way += 1
            self.call(self._write, frame)
            return True
        return False

    def end(self) -> None:
        """Closes it; from any thread."""
        self.call(self.close)

    def on_message(self, message: str | bytes) -> None:
        lines = _players.get(self.token)
        if lines is None or not (isinstance(message, str) and message.isascii() and message.isdigit()):
            return self.close()
        lines.heard(self, int(message))

    def on_close(self) -> None:
        lines = _players.get(self.token)
        if lines is not None:
            lines.drop(self.view, self)

    def _write(self, frame: bytes) -> None:
        with contextlib.suppress(WebSocketClosedError):
            self.write_message(frame, binary=True).add_done_callback(self._written)

    def _written(self, done: Any) -> None:
        self._under_way -= 1
        done.exception()  # a line that breaks is closed, which says enough

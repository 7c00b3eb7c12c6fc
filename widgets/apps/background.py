"""What a desk works out beside everything else: piece after piece, shown as they come; the newest wish wins."""

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from widgets.apps.making import Cancelled

REST = 1.0
"""While others need the time: a rest after each piece, in lengths of that piece, so that at most half a core goes."""
LONGEST_REST = 0.25
TELL_SECONDS = 0.2

Watch = Callable[[float], None]
log = logging.getLogger("widgets")
_all: "weakref.WeakSet[Background]" = weakref.WeakSet()


class Background:
    """One thread that works through iterators, one at a time.

    Args:
        tell: as of a desk; called with ("state",) when progress has changed, ("message", text, kind) on trouble.
        busy: whether others need the time just now.

    Attributes:
        progress: what is worked out and how much of it is done, 0 to 1; None when nothing is.
    """

    def __init__(self, tell: Callable[..., None], busy: Callable[[], bool]) -> None:
        self.progress: tuple[str, float] | None = None
        self._tell, self._busy = tell, busy
        self._wishes: dict[str, tuple[Callable[[Watch], Iterator[Any]], Callable[[Any], None]]] = {}
        self._now: str | None = None
        self._stop = self._closed = False
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._last = self._told = 0.0
        _all.add(self)

    def ask(self, what: str, make: Callable[[Watch], Iterator[Any]], take: Callable[[Any], None]) -> None:
        """Work through `make(watch)` and hand each piece to `take`; what was asked under the same name is let go.

        `make` calls watch(share done, 0 to 1) as often as it can stop; what that raises ends it.
        """
        with self._turn:
            if self._closed:
                return
            self._wishes.pop(what, None)
            self._wishes[what] = make, take
            self._stop |= self._now == what
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="background")
                self._thread.start()
            self._turn.notify_all()

    def cancel(self) -> None:
        """Let go of everything asked for; pieces already handed over stay."""
        with self._turn:
            self._wishes.clear()
            self._stop = True

    def wait(self, seconds: float = 30.0) -> bool:
        """Whether nothing is left to work out, within so many seconds."""
        with self._turn:
            return self._turn.wait_for(lambda: not self._wishes and self._now is None, seconds)

    def close(self) -> None:
        """Stop for good."""
        self.cancel()
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def _watch(self, share: float) -> None:
        if self._stop:
            raise Cancelled
        now = time.perf_counter()
        if self._busy() and self._last:
            time.sleep(min(REST * (now - self._last), LONGEST_REST))
        self._last = time.perf_counter()
        if self._now is not None and self._last - self._told >= TELL_SECONDS:
            self._told, self.progress = self._last, (self._now, share)
            self._tell("state")

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._wishes or self._closed)
                if self._closed:
                    return
                self._now = next(iter(self._wishes))
                make, take = self._wishes.pop(self._now)
                self._stop, self._last, self._told = False, 0.0, time.perf_counter()
            self._carry_out(self._now, make, take)
            with self._turn:
                self._now, told, self.progress = None, self.progress is not None, None
                self._turn.notify_all()
            if told and not self._closed:
                self._tell("state")
            del make, take

    def _carry_out(self, what: str, make: Callable[[Watch], Iterator[Any]], take: Callable[[Any], None]) -> None:
        try:
            for piece in make(self._watch):
                self._watch(0.0 if self.progress is None else self.progress[1])
                take(piece)
        except Cancelled:
            pass
        except ValueError as error:
            self._tell("message", str(error), "error")
        except Exception:
            log.exception("working out %s failed", what)
            self._tell("message", f"Something went wrong while working out {what}. The log has details.", "error")


@atexit.register
def _leave() -> None:
    """End what is worked out before the interpreter goes: a thread inside torch would abort the process."""
    for one in list(_all):
        one.close()
        one.wait(5)

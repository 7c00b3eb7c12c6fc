"""What a desk gives to take away or keeps: one thing at a time, on a thread of its own, with progress and cancel."""

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator

TELL_SECONDS = 0.2
"""How often it is told how far the making has come."""
AT_ONCE = 2
"""Things made at the same time in this process, whoever asked; others wait for their turn."""

log = logging.getLogger("widgets")
_room = threading.Semaphore(AT_ONCE)
_makers: "weakref.WeakSet[Maker]" = weakref.WeakSet()


class Cancelled(Exception):
    """Nobody wants any longer what is being made."""


class Maker:
    """Makes one thing at a time.

    Args:
        tell: called with ("state",) when progress has changed, ("message", text, kind) with a sentence for a person.

    Attributes:
        progress: what is being made and how much of it is done, 0 to 1; None when nothing is.
    """

    def __init__(self, tell: Callable[..., None]) -> None:
        self.progress: tuple[str, float] | None = None
        self._tell, self._told, self._stop = tell, 0.0, False
        self._lock, self._idle = threading.Lock(), threading.Event()
        self._idle.set()
        _makers.add(self)

    def begin(self, what: str) -> None:
        """Take the place of what is being made; `run` or `end` must follow.

        Raises:
            ValueError: when something else is being made.
        """
        with self._lock:
            if self.progress is not None:
                raise ValueError(f"One thing at a time: wait until {self.progress[0]} is ready, or cancel it.")
            self.progress, self._stop = (what, 0.0), False
            self._idle.clear()

    def run(self, make: Callable[[], None]) -> None:
        """Make what was begun, on a thread; `make` calls `step` often. How it ends is told in a sentence."""
        threading.Thread(target=self._work, args=(make,), daemon=True, name="making").start()

    def step(self, share: float) -> None:
        """So much is done, 0 to 1.

        Raises:
            Cancelled: when it was cancelled meanwhile.
        """
        if self._stop:
            raise Cancelled
        now = time.perf_counter()
        if now - self._told >= TELL_SECONDS and self.progress is not None:
            self._told, self.progress = now, (self.progress[0], share)
            self._tell("state")

    def cancel(self) -> None:
        """Stop what is being made at its next step."""
        self._stop = True

    def end(self) -> None:
        """Nothing is being made any more."""
        self.progress = None
        self._idle.set()
        self._tell("state")

    def wait(self, seconds: float) -> bool:
        """Whether nothing is being made, within so many seconds."""
        return self._idle.wait(seconds)

    def _work(self, make: Callable[[], None]) -> None:
        what = self.progress[0] if self.progress else ""
        try:
            with self._turn():
                make()
        except Cancelled:
            self._tell("message", f"Cancelled: {what} was not made.", "info")
        except ValueError as error:
            self._tell("message", str(error), "error")
        except OSError as error:
            self._tell("message", f"Could not write {what}: {error.strerror or error}.", "error")
        except Exception:
            log.exception("making %s failed", what)
            self._tell("message", f"Something went wrong while {what} was made. The log has details.", "error")
        finally:
            self.end()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for room in this process, and take it."""
        while not _room.acquire(timeout=TELL_SECONDS):
            self.step(0.0)
        try:
            self.step(0.0)
            yield
        finally:
            _room.release()


@atexit.register
def _leave() -> None:
    """End what is being made before the interpreter goes: a thread inside torch would abort the process."""
    for maker in list(_makers):
        maker.cancel()
        maker.wait(5)

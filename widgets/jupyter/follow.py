"""A thread that looks after a widget: carries out what was asked, and looks at a session that code may drive as well.

A session tells its listeners only while it plays. Looking again and again sees every change, from whatever thread, and
neither keeps the other alive.
"""

import logging
import threading
import weakref
from collections.abc import Callable

log = logging.getLogger("widgets")


class Follower:
    """Calls a bound method again and again on a daemon thread, as long as its object lives.

    Args:
        look: returns the seconds until its next call, or None to end.
        name: the thread's name.
    """

    def __init__(self, look: Callable[[], float | None], name: str) -> None:
        self._woken = threading.Event()
        arguments = (weakref.WeakMethod(look), self._woken)
        self._thread = threading.Thread(target=_follow, args=arguments, daemon=True, name=name)
        self._thread.start()

    def wake(self) -> None:
        """Call now rather than later; from any thread."""
        self._woken.set()

    @property
    def here(self) -> bool:
        """Whether this is the follower's own thread: a change made on it comes from no person."""
        return threading.current_thread() is self._thread

    def join(self, seconds: float = 5.0) -> None:
        """Wait until the thread has ended."""
        self.wake()
        if not self.here:
            self._thread.join(seconds)


def _follow(reference: "weakref.WeakMethod[Callable[[], float | None]]", woken: threading.Event) -> None:
    pause: float | None = 0.0
    while pause is not None:
        woken.wait(pause)
        woken.clear()
        look = reference()
        if look is None:
            return
        try:
            pause = look()
        except Exception:
            log.exception("a widget stopped following its session")
            return
        del look

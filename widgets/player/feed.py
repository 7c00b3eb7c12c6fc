"""When to send what: the mailbox between a worker that makes frames and a browser that draws them. No host, no browser.

The newest scene and frame win; at most `in_flight` messages wait for each view's acknowledgement, and one more when a
frame has another number than the one before: it is the answer to something that a person turned. A view that stays
silent no longer holds the others back, and while nobody answers messages go out at a steady pace, so the last frame
shown always arrives: one every `timeout` seconds where nobody looks, one every `quick` seconds where somebody may (a
kernel that runs a cell hears nothing until the cell ends), longer if answers have been slow to come (a slow network).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass

from .frames import Frame, Scene, encode_frame, encode_scene


@dataclass
class _View:
    acked: int
    since: float  # when it last made progress, or got something to do


@dataclass
class Counts:
    """What went through: `shown` by the worker, `replaced` by a newer frame before they left, `sent`; time-outs."""

    shown: int = 0
    sent: int = 0
    replaced: int = 0
    silent: int = 0


class Feed:
    """The newest-wins mailbox of one player.

    deliver(scene, frame): puts the bytes on their way; either may be None. Never called by two threads at once.
    soon(call): runs `call` where delivering is allowed (the server's loop; at once in a notebook).
    later(seconds, call): the same after a while. Both may lose the call if `resume` follows.
    """

    def __init__(
        self,
        deliver: Callable[[bytes | None, bytes | None], None],
        soon: Callable[[Callable[[], None]], None],
        later: Callable[[float, Callable[[], None]], None],
        *,
        in_flight: int = 2,
        timeout: float = 1.0,
        quick: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver, self._soon, self._later, self._clock = deliver, soon, later, clock
        self._in_flight, self._timeout = in_flight, timeout
        self._quick = self._patience = timeout if quick is None else quick
        self._heard = False
        self._state, self._sending = threading.RLock(), threading.RLock()
        self._scene: Scene | None = None
        self._frame: Frame | None = None
        self._new_scene = self._new_frame = self._answers = False
        self._views: dict[str, _View] = {}
        self._seq, self._sent = 0, deque([(0, float("-inf"))], maxlen=64)  # numbers and times
        self._asked = self._armed = self._closed = False
        self.counts = Counts()

    def show(self, scene: Scene | None = None, frame: Frame | None = None) -> None:
        """Takes a scene, a frame or both, from any thread; never waits for the browser."""
        with self._state:
            if scene is not None:
                self._scene, self._new_scene = scene, True
            if frame is not None:
                self.counts.shown += 1
                self.counts.replaced += self._new_frame
                self._answers |= self._frame is not None and self._frame.number != frame.number
                self._frame, self._new_frame = frame, True
        self._pump_soon()

    @property
    def idle(self) -> bool:
        """True if a frame shown now would leave at once: a worker may skip making it otherwise."""
        with self._state:
            return not self._new_frame and self._room(self._clock())

    @property
    def drawn(self) -> int:
        """Number of the latest message that some view has drawn."""
        with self._state:
            return max((view.acked for view in self._views.values()), default=0)

    def ready(self, view: str, seen: int = 0) -> None:
        """A view has appeared and holds message `seen`; it gets the latest if that is older."""
        with self._state:
            now, self._heard = self._clock(), True
            live = self._live(now)
            self._views = {name: known for name, known in self._views.items() if known in live}
            self._views[view] = _View(self._seq, now)
            if seen < self._seq:
                self._new_scene, self._new_frame = self._scene is not None, self._frame is not None
        self._pump_soon()

    def acknowledge(self, view: str, seq: int) -> None:
        """A view has drawn message `seq`, and with it all before."""
        with self._state:
            now, self._heard = self._clock(), True
            known = self._views.setdefault(view, _View(0, 0.0))
            known.acked, known.since = max(known.acked, min(seq, self._seq)), now
            self._learn(known.acked, now)
        self._pump_soon()

    def gone(self, view: str) -> None:
        """A view was removed."""
        with self._state:
            self._views.pop(view, None)
        self._pump_soon()

    def again(self, view: str) -> None:
        """What was under way to a view may be lost: it gets the latest again, unless it has drawn that."""
        with self._state:
            known = self._views.get(view)
        if known is not None:
            self.ready(view, known.acked)

    def drawn_by(self, views: Container[str], seq: int) -> bool:
        """Whether somebody looks, all of them among `views`, and all have drawn message `seq`."""
        with self._state:
            return bool(self._views) and all(name in views and view.acked >= seq for name, view in self._views.items())

    def flush(self) -> None:
        """Delivers what waits without asking for room, in the calling thread."""
        self._pump(force=True)

    def resume(self) -> None:
        """Asks again for what is due: the calls that `soon` and `later` were given may have gone with their page."""
        with self._state:
            self._asked = self._armed = False
        self._pump_soon()

    def close(self) -> None:
        """Sends nothing more and lets go of the last scene and frame."""
        with self._state:
            self._closed, self._scene, self._frame = True, None, None
            self._new_scene = self._new_frame = False

    def _learn(self, seq: int, now: float) -> None:
        """Patience: twice the time that answers take, within the bounds; forgotten slowly."""
        took = next((now - at for number, at in self._sent if number == seq), 0.0)
        self._patience = min(self._timeout, max(self._quick, 2 * took, 0.9 * self._patience))

    def _pump_soon(self) -> None:
        with self._state:
            if self._asked or not self._waiting():
                return
            if not self._room(self._clock()):
                return self._arm()
            self._asked = True
        try:
            self._soon(self._pump)
        except BaseException:
            self._asked = False
            raise

    def _pump(self, force: bool = False) -> None:
        with self._sending:
            with self._state:
                self._asked = False
                if not self._waiting():
                    return
                if not (force or self._room(self._clock())):
                    return self._arm()
                scene, frame, seq = self._take()
            self._deliver(
                None if scene is None else encode_scene(scene, seq),
                None if frame is None else encode_frame(frame, seq),
            )

    def _take(self) -> tuple[Scene | None, Frame | None, int]:
        now = self._clock()
        for view in self._views.values():
            if view.acked == self._seq:
                view.since = now
        self._seq += 1
        self._sent.append((self._seq, now))
        self.counts.sent += 1
        scene, frame = self._scene if self._new_scene else None, self._frame if self._new_frame else None
        self._new_scene = self._new_frame = self._answers = False
        return scene, frame, self._seq

    def _waiting(self) -> bool:
        return not self._closed and (self._new_scene or self._new_frame)

    def _live(self, now: float) -> list[_View]:
        return [v for v in self._views.values() if v.acked == self._seq or now - v.since < self._patience]

    def _room(self, now: float) -> bool:
        live = self._live(now)
        if live:
            return all(self._seq - view.acked < self._in_flight + self._answers for view in live)
        return now - self._sent[-1][1] >= self._pace()

    def _pace(self) -> float:
        """Seconds between messages that nobody answers; long when every view has said that it is gone or hidden."""
        return self._timeout if self._heard and not self._views else self._patience

    def _arm(self) -> None:
        """Looks again when the next time-out falls due, in case no acknowledgement comes before."""
        if self._armed:
            return
        self._armed, now = True, self._clock()
        behind = [view.since + self._patience for view in self._live(now) if view.acked < self._seq]
        due = min(behind, default=self._sent[-1][1] + self._pace())
        self._later(max(due - now, 0.01), self._wake)

    def _wake(self) -> None:
        with self._state:
            self._armed = False
            now = self._clock()
            self.counts.silent += len(self._views) > len(self._live(now))
        self._pump_soon()

"""What leaves a watched loop while it runs: calls to listeners, and its record on disk."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

from workbench.record import save
from workbench.watching.probes import aside

LIVE_SECONDS = 0.2


def say(words: str) -> None:
    """Warn whoever runs the loop."""
    warnings.warn(f"watching: {words}", RuntimeWarning, stacklevel=2)


class Outlet:
    """Listeners and the record of a `Watch`; each takes at most `share` of the time, halved between them.

    Args:
        flush: seconds between two writings, at the least.
        share: of the loop's time, 0 to 1; None: no bound.
    """

    def __init__(self, run: Any, flush: float, share: float | None) -> None:
        self.run, self.flush, self.share = run, flush, share
        self.listeners: list[Callable[[Any], Any]] = []
        self.writing = self.telling = 0.0
        self.begin()

    def begin(self) -> None:
        """The clock starts."""
        self.flushed = self.told = time.perf_counter()

    def listen(self, callback: Callable[[Any], Any]) -> Callable[[], None]:
        """Add a listener; returns what removes it."""
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback) if callback in self.listeners else None

    def serve(self) -> None:
        """Tell listeners, and write, where it is time and the budget has room."""
        if not self.listeners and self.run.path is None:
            return
        now = time.perf_counter()
        room = math.inf if self.share is None else self.share / 2 * self.run.elapsed
        if self.listeners and now - self.told >= LIVE_SECONDS and self.telling <= room:
            self._tell()
            self.told = time.perf_counter()
            self.telling += self.told - now
        if self.run.path is not None and now - self.flushed >= self.flush and self.writing <= room:
            self._write()

    def _tell(self) -> None:
        for callback in list(self.listeners):
            try:
                with aside(self.run.parameters[0].device):
                    callback(self.run)
            except Exception as error:  # noqa: BLE001 - nothing that only looks may end the loop
                self.listeners.remove(callback)
                say(f"a listener failed at step {self.run.index} and was dropped: {error}")

    def _write(self) -> None:
        began = time.perf_counter()
        try:
            save(self.run.record(), self.run.path)
        except Exception as error:  # noqa: BLE001 - nothing that only looks may end the loop
            say(f"the record was not written at step {self.run.index} ({error}); it is tried again")
        self.flushed = time.perf_counter()
        self.writing += self.flushed - began

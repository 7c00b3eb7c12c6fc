"""What waits under a name, of which only the newest counts: a command for a desk, a call for a page's loop."""

import threading
from typing import Any


class Newest:
    """Things waiting by name. From any thread: what is put is taken, or something newer of its name is."""

    def __init__(self) -> None:
        self._waiting: dict[str, Any] = {}
        self._lock = threading.Lock()

    def put(self, name: str, thing: Any) -> bool:
        """Keep a thing in place of one that waits; whether none did, so that somebody has to be told to take it."""
        with self._lock:
            first = name not in self._waiting
            self._waiting[name] = thing
            return first

    def take(self, name: str) -> Any:
        """The thing that waits, which does so no longer; None when none does."""
        with self._lock:
            return self._waiting.pop(name, None)

    def names(self) -> list[str]:
        """Of everything that waits now."""
        with self._lock:
            return list(self._waiting)

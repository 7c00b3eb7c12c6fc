"""What the browser says, understood once for both hosts: what it has drawn for the feed, clicks, keys for the app."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .feed import Feed

MOST_INK = 500
"""Points of one line drawn by hand."""
ACTIONS = ("play", "back", "step", "home", "end", "tile")


class Events:
    """Mixin of the two players: on_click, on_action, and the messages behind them.

    Needs `feed`, and `clicked` and `action` that can be assigned.
    """

    feed: Feed
    clicked: Any
    action: Any

    def on_click(self, callback: Callable[[float, float], None]) -> Callable[[], None]:
        """Calls callback(x, y), data coordinates, at each click or Enter on the picture. Returns what undoes it."""
        return self._subscribe("click", callback)

    def on_action(self, callback: Callable[[str, int | None], None]) -> Callable[[], None]:
        """Calls callback(name, value) at each key: play, back, step, home, end; and tile with the picture's number."""
        return self._subscribe("action", callback)

    def on_stroke(self, callback: Callable[[list[float], list[float]], None]) -> Callable[[], None]:
        """Calls callback(x, y) with the data coordinates of a line drawn by hand, in scenes with `draw`."""
        return self._subscribe("stroke", callback)

    def _subscribe(self, kind: str, callback: Callable[..., None]) -> Callable[[], None]:
        callbacks = self._callbacks().setdefault(kind, [])
        callbacks.append(callback)
        return lambda: callbacks.remove(callback) if callback in callbacks else None

    def _callbacks(self) -> dict[str, list[Callable[..., None]]]:
        return self.__dict__.setdefault("_player_callbacks", {})

    def _forget(self) -> None:
        self._callbacks().clear()

    def _receive(self, message: Any) -> None:
        """Takes one message of the browser; anything malformed is ignored, since any client can send anything."""
        if not isinstance(message, dict) or self._kept_pace(message):
            return
        if message.get("kind") == "click":
            self._clicked(message.get("x"), message.get("y"))
        elif message.get("kind") == "stroke":
            self._drew(message.get("x"), message.get("y"))
        elif message.get("kind") == "action" and message.get("name") in ACTIONS:
            self._acted(message["name"], message.get("value"))

    def _kept_pace(self, message: dict[str, Any]) -> bool:
        """Hands on what concerns the feed alone; whether that was all."""
        kind, view = message.get("kind"), str(message.get("view", ""))[:32]
        if kind == "drawn":
            self.feed.acknowledge(view, _whole(message.get("seq")))
        elif kind == "ready":
            self.feed.ready(view, _whole(message.get("seen")))
        elif kind == "gone":
            self.feed.gone(view)
        return kind in ("drawn", "ready", "gone")

    def _clicked(self, x: Any, y: Any) -> None:
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in (x, y)):
            return
        self.clicked = {"x": float(x), "y": float(y), "n": _count(self.clicked)}
        for callback in tuple(self._callbacks().get("click", ())):
            callback(float(x), float(y))

    def _drew(self, x: Any, y: Any) -> None:
        if not (isinstance(x, list) and isinstance(y, list) and len(x) == len(y) <= MOST_INK):
            return
        if all(isinstance(v, int | float) and math.isfinite(v) for v in (*x, *y)):
            for callback in tuple(self._callbacks().get("stroke", ())):
                callback([float(v) for v in x], [float(v) for v in y])

    def _acted(self, name: str, value: Any) -> None:
        value = value if isinstance(value, int) else None
        self.action = {"name": name, "value": value, "n": _count(self.action)}
        for callback in tuple(self._callbacks().get("action", ())):
            callback(name, value)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _count(last: dict[str, Any] | None) -> int:
    return (last or {}).get("n", 0) + 1

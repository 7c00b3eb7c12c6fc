"""The player as a Jupyter widget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from .esm import module
from .events import Events
from .feed import Feed
from .frames import Frame, Scene


class NotebookPlayer(Events, anywidget.AnyWidget):
    """The live picture in a notebook; `show` may be called from any thread and never waits.

    Callbacks run on the kernel's message thread, beside a running cell: they should only enqueue, and must not print.
    """

    scene = traitlets.Bytes(b"", help="The latest scene's message (see frames.py). Set by show().").tag(sync=True)
    frame = traitlets.Bytes(b"", help="The latest frame's message. Set by show().").tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], "auto").tag(sync=True)
    tall = traitlets.Int(480, min=180, help="Height in CSS pixels.").tag(sync=True)
    clicked = traitlets.Dict(default_value=None, allow_none=True, help="The latest click, {x, y, n}.")
    action = traitlets.Dict(default_value=None, allow_none=True, help="The latest action, {name, value, n}.")

    _esm = module()

    def __init__(self, **traits: Any) -> None:
        self.feed = Feed(self._deliver, lambda call: call(), self._later, quick=0.1)
        super().__init__(**traits)
        self.on_msg(self._on_message)

    def show(self, scene: Scene | None = None, frame: Frame | None = None) -> None:
        """Shows a scene, a frame or both; the newest wins if the browser is slower. From any thread."""
        self.feed.show(scene, frame)

    def save_png(self, name: str = "picture") -> None:
        """Has the browser save the picture as it is drawn now, as `name`.png."""
        self.send({"kind": "png", "name": name})

    def close(self) -> None:
        """Sends nothing more, forgets the callbacks and removes the widget."""
        self.feed.close()
        self._forget()
        super().close()

    def _deliver(self, scene: bytes | None, frame: bytes | None) -> None:
        if scene is not None:
            self.scene = scene
        if frame is not None:
            self.frame = frame

    @staticmethod
    def _later(seconds: float, call: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, call)
        timer.daemon = True
        timer.start()

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        self._receive(content)

"""The player in a page that Panel serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakMethod, WeakValueDictionary

import param
from bokeh.document import Document
from bokeh.server.views.ws import WSHandler
from panel.custom import JSComponent

from ..connection import on_loop
from .esm import module
from .events import Events
from .feed import Feed
from .frames import Frame, Scene
from .socket import Lines, mount

mount()  # a page has the routes that were known when its server was made

Call = Callable[[], None]


def set_nodelay() -> None:
    """Sets TCP_NODELAY on every Bokeh websocket opened from now on; calling it again changes nothing.

    Without it, small messages wait for the acknowledgement of the ones before: 43 instead of 57 frames of 10,000
    points a second, and 20 ms more from a slider to its picture.
    """
    original = WSHandler.open
    if getattr(original, "sets_nodelay", False):
        return

    def open_without_delay(self: WSHandler) -> Any:
        result = original(self)
        self.set_nodelay(True)
        return result

    open_without_delay.sets_nodelay = True  # type: ignore[attr-defined]
    WSHandler.open = open_without_delay  # type: ignore[method-assign]


class ServedPlayer(Events, JSComponent):
    """The live picture as a Panel component; give it a size, or `sizing_mode="stretch_both"`.

    Frames travel on a websocket of their own where every page that shows the player has one, as a property where not.

    `show` may be called from any thread and never waits; what is shown before there is a page waits for it. Callbacks
    run on the server's loop: they should only enqueue. For served pages; in a notebook, use NotebookPlayer.
    """

    scene = param.Bytes(default=b"", doc="The latest scene's message (see frames.py). Set by show().")
    frame = param.Bytes(default=b"", doc="The latest frame's message. Set by show().")
    line = param.String(default="", constant=True, doc="What opens the websocket for frames; see socket.py.")
    theme: Any = param.Selector(default="auto", objects=["auto", "light", "dark"], doc="auto: as the browser prefers.")
    clicked = param.Dict(default=None, doc="The latest click, {x, y, n}, n counting clicks.")
    action = param.Dict(default=None, doc="The latest action, {name, value, n}; see on_action.")

    _esm = module()
    _rename: ClassVar[dict[str, str | None]] = {"clicked": None, "action": None}  # what the browser need not hear

    def __init__(self, **params: Any) -> None:
        set_nodelay()
        self._docs: WeakValueDictionary[str, Document] = WeakValueDictionary()
        self.feed = Feed(self._deliver, self._soon, self._later)
        self.lines = Lines(self.feed)
        super().__init__(**params, line=self.lines.token)

    def show(self, scene: Scene | None = None, frame: Frame | None = None) -> None:  # type: ignore[override]
        """Shows a scene, a frame or both; the newest wins if the browser is slower. From any thread."""
        self.feed.show(scene, frame)

    def save_png(self, name: str = "picture") -> None:
        """Has the browser save the picture as it is drawn now, as `name`.png. On the server's loop only."""
        self._send_msg({"kind": "png", "name": name})

    def close(self) -> None:
        """Sends nothing more and forgets the callbacks."""
        self.feed.close()
        self.lines.close()
        self._forget()

    def _deliver(self, scene: bytes | None, frame: bytes | None) -> None:
        if frame is not None and scene is None and self.lines.carry():
            with param.parameterized.discard_events(self):
                self.frame = frame  # for pages to come
            return self.lines.send(frame)
        self.lines.passed()
        news = {"scene": scene, "frame": frame}
        self.param.update(**{name: value for name, value in news.items() if value is not None})

    def _soon(self, call: Call) -> None:
        line = self.lines.loop()
        if line is not None:
            return line.call(_weakly(call))
        doc = self._doc()
        if doc is not None:
            on_loop(doc, _weakly(call))

    def _later(self, seconds: float, call: Call) -> None:
        doc = self._doc()
        if doc is not None:
            on_loop(doc, _weakly(call), after=max(0.001, seconds))

    def _doc(self) -> Document | None:
        return next((doc for doc in list(self._docs.values()) if doc.session_context is not None), None)

    def _get_model(self, doc: Document, root: Any = None, parent: Any = None, comm: Any = None) -> Any:
        self.feed.flush()
        model = super()._get_model(doc, root, parent, comm)
        self._docs[(root or model).ref["id"]] = doc
        self.feed.resume()  # a worker may have shown something since
        return model

    def _cleanup(self, root: Any = None) -> None:
        super()._cleanup(root)
        if root is not None and self._docs.pop(root.ref["id"], None) is not None:
            self.feed.resume()  # on another page's loop, if there is one

    def _update_model(self, events: Any, msg: dict[str, Any], root: Any, model: Any, doc: Any, comm: Any) -> None:
        # Panel compares, searches for models and guards against echoes; bytes that only go down need none of that.
        if msg.keys() <= {"scene", "frame"}:
            model.data.update(**msg)
        else:
            super()._update_model(events, msg, root, model, doc, comm)

    @property
    def _linked_properties(self) -> tuple[str, ...]:
        return ()  # the browser sends messages, it sets nothing

    def _server_event(self, doc: Document, event: Any) -> None:
        # Panel marks the whole server busy and idle again for every event: several milliseconds, sixty times a second.
        data = getattr(event, "data", None)
        if not (isinstance(data, dict) and self._kept_pace(data)):
            super()._server_event(doc, event)

    def _kept_pace(self, message: dict[str, Any]) -> bool:
        if message.get("lost"):
            self.lines.drop(str(message.get("view", "")))
        return super()._kept_pace(message)

    def _handle_msg(self, data: Any) -> None:
        self._receive(data)


def _weakly(call: Call) -> Call:
    """Calls a method if its object still lives: a page that is gone may keep callbacks, but not the player."""
    method = WeakMethod(call)

    def run() -> None:
        alive = method()
        if alive is not None:
            alive()

    return run

"""`widgets.Player(session)`: the live picture of a session in a notebook."""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import workbench as wb
from widgets.jupyter.follow import Follower
from widgets.pictures import picture_of
from widgets.player import Frame, NotebookPlayer, Scene

FRAME_SECONDS = 1 / 60
IDLE_SECONDS = 1 / 15
"""How often a session that stands still is looked at: code may move it."""


class Player(NotebookPlayer):
    """The picture of a session; follows it whoever moves it. Keys on the picture play, step and go back.

    The session is not kept alive by its picture: keep it in a variable.

    Args:
        session: what is shown.
        frame: frame(session) -> Frame, what moves; the usual picture of the session when None.
        scene: what stays, a Scene or scene(session) -> Scene; the usual one, or an empty one beside your own frame.
        traits: those of the widget: `tall` (CSS pixels), `theme` ("auto", "light", "dark").

    Raises:
        ValueError: when there is no usual picture of the session and no `frame` is given.
    """

    def __init__(
        self,
        session: wb.Session,
        frame: Callable[[wb.Session], Frame] | None = None,
        scene: Scene | Callable[[wb.Session], Scene] | None = None,
        **traits: Any,
    ) -> None:
        usual = picture_of(session) if frame is None else None
        if scene is None:
            scene = usual.scene() if usual else Scene()
        scene = scene(session) if callable(scene) else scene
        super().__init__(**traits)
        self._session_ref = weakref.ref(session)
        self._frame_of: Callable[[wb.Session], Frame] = frame or usual.frame  # type: ignore[union-attr]
        self._seen: Any = None
        self._asked: list[Callable[[wb.Session], Any]] = []
        self.show(scene=scene)
        self.on_action(self._act)
        self._follower = Follower(self._look, "player of a session")

    @property
    def session(self) -> wb.Session | None:
        """What is shown; None once it is gone."""
        return self._session_ref()

    def refresh(self) -> None:
        """Draw again although the session has not moved: for a `frame` of yours that looks at something else."""
        self._seen = None
        self._follower.wake()

    def close(self) -> None:
        """Follow no more, and remove the widget; the session goes on."""
        if not hasattr(self, "_follower"):  # refused before there was a widget
            return
        self._session_ref = lambda: None  # type: ignore[assignment]
        self._follower.wake()
        super().close()

    def _act(self, name: str, _value: int | None) -> None:
        """A key on the picture, from the kernel's message thread: only enqueues."""
        moves: dict[str, Callable[[wb.Session], Any]] = {
            "play": lambda session: session.pause() if session.playing else session.play(),
            "back": lambda session: session.pause().back(),
            "step": lambda session: session.pause().step(),
            "home": lambda session: session.seek(0),
            "end": lambda session: session.seek(session.head),
        }
        if name in moves:
            self._asked.append(moves[name])
            self._follower.wake()

    def _look(self) -> float | None:
        session = self._session_ref()
        if session is None or session.closed:
            return None
        while self._asked:
            with contextlib.suppress(ValueError):  # closed meanwhile
                self._asked.pop(0)(session)
        index, state = session.now
        stamp = (index, id(state), len(session.others))
        if stamp != self._seen and self.feed.idle:
            self._seen = stamp
            self.show(frame=self._made(session))
            return FRAME_SECONDS
        return FRAME_SECONDS if session.playing or stamp != self._seen else IDLE_SECONDS

    def _made(self, session: wb.Session) -> Frame:
        """The frame; when it cannot be made, one that says why."""
        try:
            made = self._frame_of(session)
            if not isinstance(made, Frame):
                raise TypeError(f"expected frame(session) to return a Frame, got {type(made).__name__}")
        except Exception as error:  # noqa: BLE001 - somebody's own function: the reason is shown in the picture
            return Frame(session.index, caption=f"no picture: {type(error).__name__}: {error}"[:240])
        return made

"""A desk: what an open app does, knowing no host. It holds the session and its branches and says what to show.

Commands from a page are put in a queue and carried out one after the other on the desk's own thread, so that no page
waits; what changed is told to listeners by signal: "frame" (the picture), "curves", "state" (transport, controls),
"message" (text for a person), "settings" (another problem or method).
"""

import atexit
import contextlib
import copy
import dataclasses
import json
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import workbench as wb
from widgets.apps import files, link
from widgets.apps.making import Maker
from widgets.apps.newest import Newest
from widgets.player import Frame, Scene, export_html

FRAME_SECONDS = 1 / 60
CURVE_SECONDS = 1 / 6
TURNING_SECONDS, HAND_SECONDS = 0.5, 0.4
"""Between two drawings of curves while a hand is on a slider, and how long after its last turn it is thought to be."""
TRAVEL_SECONDS = 0.2
"""How long a journey through time may take between two looks at whether it is still wanted."""
MAX_LINES = 6
GIVES: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "script": ("the script", lambda desk: desk.script().encode()),
    "record": ("the record", lambda desk: files.netcdf(desk.record())),
    "page": ("the page that plays", lambda desk: desk.html().encode()),
    "weights": ("the weights", lambda desk: files.weights(desk.weights())),
}
"""What can be taken away of a run: in words, and how a desk makes it."""
SAVED = "the saved run"
QUIET = object()
"""What a command returns when nothing has to be shown again."""
log = logging.getLogger("widgets")
_desks: "weakref.WeakSet[Desk]" = weakref.WeakSet()


@dataclasses.dataclass
class Line:
    """One line of time: a session, its label, and the step at which it left its parent."""

    label: str
    session: wb.Session
    born: int = 0


class Desk:
    """One open app. Subclasses say how a session is built and what is shown of it.

    Args:
        runs: folder of saved runs.
        query: state from a link, as text by name; see `link`.
    """

    name = ""
    title = ""
    frame_seconds = FRAME_SECONDS
    page_frames = 300
    """Of a page that plays, at most."""
    trains = False
    """Whether its live run learns weights that can be taken away."""

    def __init__(self, *, runs: str | Path = "runs", query: Mapping[str, str] | None = None) -> None:
        self.runs = Path(runs)
        self.settings: dict[str, Any] = self.default_settings()
        self.lines: list[Line] = []
        self.live = 0
        self.speed: float | None = None
        self.closed = False
        self.first: dict[str, Any] = {}
        """First values by name that the next `build` may give its session; `_rebuild` sets those it did not take."""
        self.progress: tuple[str, float] | None = None
        """What takes long just now and how much of it is done, 0 to 1; None when nothing does."""
        self._stop = False
        self.maker = Maker(self.tell)
        self.going: Callable[[float], None] = lambda share: None
        """Called by what makes something to take away with the share done, 0 to 1; raises when nobody wants it."""
        self.can_draw: Callable[[], bool] = lambda: True
        self._signals: dict[str, list[Callable]] = {}
        self._last = {"frame": 0.0, "curves": 0.0}
        self._turned = 0.0
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._newest = Newest()
        self._asked: dict[str, Any] = {}
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"desk {self.name}")
        _desks.add(self)
        self._thread.start()
        try:
            self._open(dict(query or {}))
        except BaseException:
            self.close()  # nobody else can close a desk that never was
            raise

    # ---- what subclasses say

    def default_settings(self) -> dict[str, Any]:
        """What is on the desk before anything was chosen; plain values, as a link holds them."""
        raise NotImplementedError

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings, made whole.

        Raises:
            ValueError: one sentence for the person who chose them.
        """
        return settings

    def build(self) -> wb.Session:
        """A new session from the settings."""
        raise NotImplementedError

    def scene(self) -> Scene:
        """What stays in the picture."""
        raise NotImplementedError

    def frame(self, session: wb.Session | None = None) -> Frame:
        """What moves in the picture: of the live session as it is now, or of another (for exports)."""
        raise NotImplementedError

    def tick(self, session: wb.Session) -> None:
        """Further measurements, at most as often as curves are drawn."""

    # ---- what is

    @property
    def line(self) -> Line:
        """The line of time that is live."""
        return self.lines[self.live]

    @property
    def session(self) -> wb.Session:
        """The live session."""
        return self.line.session

    @property
    def hyper(self) -> dict[str, Any]:
        """Hyperparameters of the live session, and over them what has been asked for and is not carried out yet.

        Controls show these: the session alone is a moment behind, and would put a slider back under a moving hand.
        """
        with self._asking:
            return {**self.session.hyper, **self._asked}

    def picture(self) -> Frame:
        """The frame to show now, numbered by the edits it knows of, so that a page can tell when a turn has arrived."""
        edits = len(self.session.edits)
        return dataclasses.replace(self.frame(), number=edits)

    def status(self) -> str:
        """One line for a person: where it stands, and why it stopped."""
        session = self.session
        words = [f"step {session.index:,} of {session.head:,}"]
        if self.progress:
            words.append(f"{self.progress[0]} {self.progress[1]:.0%}")
        if making := self.maker.progress:
            words.append(f"making {making[0]} {making[1]:.0%}")
        return " · ".join([*words, *filter(None, [self.ending()])])

    def ending(self) -> str:
        """Why it stopped, in words; "" when it did not."""
        session = self.session
        bad = [word for word in session.status if word != "ok"]
        if bad:
            return bad[0] if len(bad) == 1 else f"{len(bad)} of {len(session.status)} diverged"
        return session.stopped

    @property
    def busy(self) -> bool:
        """Whether something takes long just now that `cancel` would stop."""
        return self.progress is not None or self.maker.progress is not None

    def on(self, signal: str, callback: Callable) -> Callable[[], None]:
        """Call back when something changed, from the desk's or the session's thread; returns what ends that."""
        listeners = self._signals.setdefault(signal, [])
        listeners.append(callback)
        return lambda: listeners.remove(callback) if callback in listeners else None

    def tell(self, signal: str, *args: Any) -> None:
        """Tell the listeners of a signal."""
        for callback in list(self._signals.get(signal, ())):
            callback(*args)

    # ---- commands: each returns at once

    def do(self, command: Callable[[], Any], *, newest: str = "") -> None:
        """Queue a command; of several waiting with the same `newest` name only the last is carried out.

        Everything is shown again after it, unless it returns `QUIET`.
        """
        if newest:
            if self._newest.put(newest, command):
                self._commands.put(newest)
        else:
            self._commands.put(command)

    def toggle(self) -> None:
        """Play, or pause."""
        self.do(self._toggle)

    def step(self, n: int = 1) -> None:
        """Pause and go n steps on."""
        self.do(lambda: self.session.pause().step(n))

    def back(self, n: int = 1) -> None:
        """Pause and go n steps back."""
        self.do(lambda: self.session.pause().back(n))

    def seek(self, step: int) -> None:
        """Go to a step already lived."""
        self.do(lambda: self.session.seek(min(step, self.session.head)), newest="seek")

    def set_speed(self, speed: float | None) -> None:
        """Steps a second while it plays; None is as fast as it goes."""
        self.speed = speed
        self.do(lambda: self.session.play(speed) if self.session.playing else None)

    def turn(self, name: str, value: Any) -> None:
        """Turn a hyperparameter. In the past this leaves the old future as a line of its own."""
        self._ask({name: value}, newest=f"turn {name}")

    def cancel(self) -> None:
        """Stop what takes long: a journey through time, where it is; something to take away, which is not made."""
        self._stop = True
        self.maker.cancel()

    def branch(self) -> None:
        """Keep this line of time as it is and go on from here along a new one."""
        self.do(self._branch)

    def switch(self, index: int) -> None:
        """Make another line of time the live one."""
        self.do(lambda: self._switch(index))

    def restart(self) -> None:
        """Back to step 0, with every line of time and edit forgotten; settings and hyperparameters stay."""
        self.do(lambda: self._rebuild(keep=True))

    def choose(self, **settings: Any) -> None:
        """Other settings: a new session. Nothing changes when they are not legal."""
        self.do(lambda: self._choose(settings))

    def click(self, x: float, y: float) -> None:
        """A click on the picture, in its coordinates."""

    def take(self, what: str, given: Callable[[bytes], None]) -> None:
        """Make a "script", "record" or "page" of the live run as it stands; `given` gets it on the making thread."""
        words, make = GIVES[what]
        self._make(words, lambda still: given(make(still)))

    def save(self, name: str) -> None:
        """Save the live run, as it stands, under a name."""
        self._make(SAVED, lambda still: still._save(name))

    def reopen(self, name: str) -> None:
        """Open a saved run: settings, edits and place as they were saved."""
        self.do(lambda: self._reopen(name))

    def delete(self, name: str) -> None:
        """Delete a saved run."""
        self.do(lambda: self._delete(name))

    def wait(self, seconds: float = 30.0) -> None:
        """Return when every command given so far has been carried out (for tests and notebooks)."""
        done = threading.Event()
        self.do(done.set)
        if not (done.wait(seconds) and self.maker.wait(seconds)):
            raise TimeoutError(f"expected the desk to be done within {seconds} s")

    def close(self) -> None:
        """Stop everything; for when a page has gone."""
        if not self.closed:
            self.closed = True
            self.maker.cancel()
            for line in self.lines:
                line.session.close()
            self._signals.clear()
            self._commands.put(None)

    # ---- links and files

    def query(self) -> dict[str, str]:
        """This desk as a link holds it: what `query` of a new desk takes to show the same."""
        session = self.session
        state = {"first": session.first, "edits": session.edits, "step": session.index}
        return link.pack(self.settings, self.default_settings(), **state)

    def script(self) -> str:
        """The live run as a Python script."""
        return self.session.script()

    def record(self) -> Any:
        """The live run as a record, in at most about 2,000 frames."""
        return self.session.record(every=max(1, self.session.index // 2000), watch=self.going)

    def weights(self) -> dict[str, Any]:
        """What the live run has learned, tensors by name; of desks that train."""
        raise NotImplementedError

    def html(self) -> str:
        """The live run as one page that plays by itself, in at most `page_frames` frames."""
        session = self.session.branch()
        end, most = session.index, self.page_frames - 1
        steps = sorted({round(i * end / min(most, max(end, 1))) for i in range(min(most, end) + 1)})
        with session:
            frames = [self._frame_at(session, step) for step in steps]
        return export_html(self.scene(), frames, title=self.title, series=self.series(steps), meta=self.meta())

    def _frame_at(self, session: wb.Session, step: int) -> Frame:
        """The frame of a step, for an export; the way there is made in pieces, so that it can be cancelled."""
        while session.index != step:
            self.going(session.index / max(1, self.session.index))
            session.seek(min(step, session.index + 20) if session.index < step else step)
        return self.frame(session)

    def series(self, steps: list[int]) -> dict[str, Any]:
        """Curves under an exported picture: by name, one value (or one a method) for each of these steps."""
        return {}

    def traced(self, name: str, steps: list[int], labels: list[str]) -> dict[str, Any]:
        """What the live session's steps measured, by label of its runs, at these steps; {} before there was one."""
        known, arrays = self.session.trace()
        if not len(known):
            return {}
        at = [min(max(0, step - 1), len(known) - 1) for step in steps]
        return {label: arrays[name][at, i].tolist() for i, label in enumerate(labels)}

    def meta(self) -> dict[str, Any]:
        """What an exported page says of how it came about."""
        session = self.session
        setup = session.routine.setup()
        about = {
            **({"setup": setup} if setup else {}),
            "recipe": session.routine.recipe(),
            "seed": session.seed,
            "hyper": session.first,
            "edits": session.edits,
        }
        return {name: str(value) for name, value in about.items()}

    # ---- inside

    def still(self) -> "Desk":
        """This desk as it stands, with a branch of the live run alone: what others do meanwhile does not reach it."""
        still = copy.copy(self)
        still.lines, still.live, still.going = [Line("A", self.session.branch())], 0, self.maker.step
        return still

    def _make(self, what: str, make: Callable[[Any], None]) -> None:
        """Begin to make something of a still of this desk, unless something else is being made."""
        if self.closed:
            return
        try:
            self.maker.begin(what)
        except ValueError as error:
            self.tell("message", str(error), "warning")
            return
        self.tell("state")
        self.do(lambda: self._make_still(make))

    def _make_still(self, make: Callable[[Any], None]) -> Any:
        try:
            still = self.still()
        except BaseException:
            self.maker.end()
            raise

        def work() -> None:
            with still.session:
                make(still)

        self.maker.run(work)
        return QUIET

    def _save(self, name: str) -> None:
        files.place(self.runs, name)  # a name that will not do is said before the work
        record = self.record()
        record.attrs.update(app=self.name, link=json.dumps(self.query()))
        files.save(self.runs, name, record)
        self.tell("message", f"Saved as {name}.", "success")
        self.tell("runs")

    def _reopen(self, name: str) -> None:
        record = files.load(self.runs, name)
        if record.attrs.get("app") != self.name or "link" not in record.attrs:
            raise ValueError(f"expected a run saved by {self.title}, got {name!r} of another kind; wb.open reads it")
        old = self.lines
        self._open(json.loads(record.attrs["link"]))
        for line in old:
            line.session.close()
        self.live = 0
        self.tell("settings")

    def _delete(self, name: str) -> None:
        files.remove(self.runs, name)
        self.tell("message", f"Deleted {name}.", "info")
        self.tell("runs")

    def _work(self) -> None:
        while True:
            command = self._commands.get()
            if command is None:
                return
            if isinstance(command, str):
                command = self._newest.take(command)
            shown: Any = None
            try:
                shown = command()
            except ValueError as error:
                self.tell("message", str(error), "error")
            except Exception:
                log.exception("a command failed")
                self.tell(
                    "message", "Something went wrong here; the session is as it was. The log has details.", "error"
                )
            if not self.closed and shown is not QUIET:
                self._show()

    def _open(self, query: dict[str, str]) -> None:
        wanted, errors = link.unpack(query, self.default_settings())
        with contextlib.suppress(ValueError):
            self.settings = self.check_settings({**self.settings, **wanted["settings"]})
        try:
            self.settings = self.check_settings({**self.default_settings(), **wanted["settings"]})
            self.first = dict(wanted["first"])
            self.lines = [Line("A", self.build())]
            errors += self._replay(wanted)
        except ValueError as error:
            errors.append(str(error))
            if not self.lines:
                self.settings = self.check_settings(self.default_settings())
                self.lines = [Line("A", self.build())]
        self.session.listen(self._tick)
        self.opening_errors = errors

    def _replay(self, wanted: dict[str, Any]) -> list[str]:
        """Live the past that a link tells of: first values now, edits and the way there in the background."""
        errors, session = [], self.session
        for name, value in wanted["first"].items():
            try:
                session.set(**{name: value})
            except ValueError as error:
                errors.append(str(error))
        if wanted["edits"] or wanted["step"]:
            if threading.current_thread() is self._thread:
                self._relive(session, wanted["edits"], wanted["step"])
            else:
                self.do(lambda: self._relive(session, wanted["edits"], wanted["step"]))
        return errors

    def _relive(self, session: wb.Session, edits: Any, end: int) -> None:
        """Go to step `end`, turning on the way what the edits say; those that are not legal are said and left out."""
        self._stop = False
        for step, name, value in sorted(edits, key=lambda edit: edit[0]):
            self._travel(session, step)
            if session.index != step:
                return
            try:
                session.set(**{name: value})
            except ValueError as error:
                self.tell("message", str(error), "warning")
        self._travel(session, end)

    def _travel(self, session: wb.Session, step: int) -> None:
        """Go to a step in pieces, so that it can be cancelled and a closed desk stops."""
        session.seek(min(step, session.index))
        origin, slowly = session.index, False
        while session.index < step and not (self.closed or self._stop):
            end = time.perf_counter() + TRAVEL_SECONDS
            while session.index < step and time.perf_counter() < end:
                session.seek(min(step, session.index + 20))
            if session.index < step:
                slowly, self.progress = True, ("replaying", (session.index - origin) / (step - origin))
                self.tell("state")
        if slowly:
            self.progress = None

    def _toggle(self) -> None:
        session = self.session
        if session.playing:
            session.pause()
        else:
            session.play(self.speed)

    def _ask(self, values: dict[str, Any], *, newest: str) -> None:
        """Queue a turn of several hyperparameters together."""
        with self._asking:
            self._asked.update(values)
        self.do(lambda: self._answer(values), newest=newest)

    def _answer(self, values: dict[str, Any]) -> Any:
        """Turn, and show the picture first: while it plays, curves and transport follow with the next tick."""
        try:
            self._turn_all(values)
        finally:
            with self._asking:
                for name in [name for name, value in values.items() if self._asked.get(name) is value]:
                    del self._asked[name]
        self._turned = time.perf_counter()
        if not self.session.playing:
            return None
        self.tell("frame", self.picture())
        return QUIET

    def _turn_all(self, values: Mapping[str, Any]) -> None:
        """Turn several together; nothing happens when all stand there already, or one is not legal."""
        session = self.session
        changed = {name: value for name, value in values.items() if session.hyper.get(name) != value}
        if not changed:
            return
        session.routine.normalise({**session.hyper, **changed})  # raises before a line of time is made for nothing
        if session.index < session.head:
            self._branch()
        self.session.set(**changed)

    def _branch(self) -> None:
        if len(self.lines) >= MAX_LINES:
            oldest = next(i for i in range(len(self.lines)) if i != self.live)
            self.lines.pop(oldest).session.close()
            self.live -= oldest < self.live
            self.tell("message", f"At most {MAX_LINES} lines of time are kept: the oldest was let go.", "info")
        was_playing = self.session.playing
        self.session.pause()
        twin = self.session.branch()
        used = {line.label for line in self.lines}
        label = next(letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in used)
        self.lines.append(Line(label, twin, twin.index))
        self.live = len(self.lines) - 1
        twin.listen(self._tick)
        if was_playing:
            twin.play(self.speed)

    def _switch(self, index: int) -> None:
        if 0 <= index < len(self.lines) and index != self.live:
            self.session.pause()
            self.live = index
            self.tell("settings")

    def _choose(self, settings: dict[str, Any]) -> None:
        before = self.settings
        try:
            self.settings = self.check_settings({**before, **settings})
            self._rebuild(keep=False)
        except ValueError:
            self.settings = self.check_settings(before)
            raise

    def _rebuild(self, *, keep: bool) -> None:
        """A new session in place of all lines; hyperparameters that still exist keep their values."""
        old = self.session.hyper
        self.first = dict(old) if keep else {}
        fresh = self.build()  # before anything is closed: settings that fail leave the run as it is
        for line in self.lines:
            line.session.close()
        still = {name: value for name, value in old.items() if keep and name in fresh.routine.hypers}
        self.lines, self.live = [Line("A", fresh)], 0
        fresh.set(**still)
        fresh.listen(self._tick)
        self.tell("settings")

    def _tick(self, session: wb.Session) -> None:
        """From the playing thread, after each slice of work."""
        if session is not self.session or self.closed:
            return
        now = time.perf_counter()
        due = now - self._last["frame"] >= self.frame_seconds and self.can_draw()
        if due or not session.playing:  # the picture a run stops at is always shown
            self._last["frame"] = now
            self.tell("frame", self.picture())
        rest = TURNING_SECONDS if now - self._turned < HAND_SECONDS else CURVE_SECONDS
        if now - self._last["curves"] >= rest or not session.playing:
            self._last["curves"] = now
            self.tick(session)
            self.tell("curves")
            self.tell("state")

    def _show(self) -> None:
        """After a command: everything as it is now."""
        self.tell("frame", self.picture())
        self.tell("state")
        if not self.session.playing:
            self.tick(self.session)
        self.tell("curves")


@atexit.register
def _leave() -> None:
    """End what desks do before the interpreter goes: a thread inside torch would abort the process."""
    for desk in list(_desks):
        desk.close()
        desk._thread.join(5)

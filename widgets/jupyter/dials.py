"""`widgets.controls(session)`: native sliders and transport of a session, to put beside other widgets of a notebook.

What a person does is queued and carried out on the controls' own thread; what the session does, from whatever thread,
is shown by the same thread, in at most 15 messages a second. So nothing waits, and nothing a person did comes back.
"""

import html
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np

import workbench as wb
from widgets.jupyter.follow import Follower
from widgets.scales import from_slider, slider_range, to_slider, words
from workbench import Hyper

LOOK_SECONDS = 2 / 15
PER_LOOK = 2
"""Widgets that are brought up to date at one look: with `LOOK_SECONDS` at most 15 messages a second."""
TOUCHED_SECONDS = 0.5
"""How long a control stays as a person has left it, whatever the session says meanwhile."""
SPEEDS = {"1 step/s": 1.0, "5 steps/s": 5.0, "30 steps/s": 30.0, "100 steps/s": 100.0, "as fast as it goes": 0.0}
GONE = "The session is gone. Keep it in a variable: session = wb.Session(...); widgets.controls(session)."
LABEL = {"description_width": "110px"}


def controls(session: wb.Session) -> "Controls":
    """Sliders made from the session's hyperparameters, and play, back, step, a step slider, speed and status.

    It follows the session when code drives it, too. The session is not kept alive: keep it in a variable.
    """
    return Controls(session)


class Dial:
    """The control of one hyperparameter: `view`, and what it stands for.

    Args:
        name: what the session calls it.
        hyper: its declaration.
        value: present value; one that differs between runs is shown in words and typed over.
        label: what it is called beside the others.
    """

    def __init__(self, name: str, hyper: Hyper, value: Any, label: str) -> None:
        self.name, self.hyper, self.value = name, hyper, value
        unit = f" ({hyper.unit})" if hyper.unit else ""
        self.slider = _slider(hyper, value, f"{label}{unit}")
        self.box = None if hyper.scale == "choice" else ipywidgets.Text(spoken(value), continuous_update=False)
        self.error = ipywidgets.HTML("")
        row = [self.slider]
        if self.box is not None:
            self.box.layout.width = "92px"
            self.box.tooltip = f"Type a value of {name}"
            row.append(self.box)
        self.view = ipywidgets.VBox([ipywidgets.HBox(row), self.error])
        self._held: tuple[Any, float] = (None, 0.0)

    def hold(self, widget: Any) -> None:
        """A person has just touched this one of its widgets."""
        self._held = (widget, time.monotonic())

    def free(self, widget: Any) -> bool:
        """Whether no person has touched it just now."""
        held, since = self._held
        return widget is not held or time.monotonic() - since > TOUCHED_SECONDS

    def slid(self) -> Any:
        """The value where the slider stands."""
        place = self.slider.value
        if self.hyper.scale == "choice":
            return place
        return from_slider(self.hyper, np.log10(place) if self.hyper.scale == "log" else place)

    def typed(self) -> Any:
        """The value in the box.

        Raises:
            ValueError: when it is no legal number.
        """
        text = self.box.value.strip() if self.box is not None else ""
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"expected a number for {self.hyper.name}, got {text[:20]!r}") from None
        return self.hyper.check(number)

    def place(self) -> Any:
        """Where the slider has to stand for the value."""
        return _place(self.hyper, self.value)

    def stands(self) -> bool:
        """Whether the slider stands at the value, as nearly as its steps allow: a browser moves it to the next step."""
        place, wanted = self.slider.value, self.place()
        if self.hyper.scale not in ("linear", "log"):
            return place == wanted
        if self.hyper.scale == "log":
            place, wanted = np.log10(place), np.log10(wanted)
        return abs(place - wanted) <= 0.51 * self.slider.step


def spoken(value: Any) -> str:
    """A value in words; one that differs between runs by its range."""
    if np.ndim(value):
        values = np.asarray(value, dtype=float)
        return f"{values.min():.3g} … {values.max():.3g}"
    return words(value)


def _place(hyper: Hyper, value: Any) -> Any:
    if hyper.scale == "choice":
        return value
    mean = float(np.median(np.asarray(value, dtype=float)))
    place = to_slider(hyper, mean)
    if hyper.scale == "log":
        return 10.0**place
    return round(place) if hyper.scale == "integer" else place


def _slider(hyper: Hyper, value: Any, label: str) -> Any:
    look: dict[str, Any] = {"description": label, "tooltip": hyper.doc, "style": LABEL, "layout": {"width": "340px"}}
    if hyper.scale == "choice":
        return ipywidgets.Dropdown(options=list(hyper.choices), value=value, **look)
    low, high = slider_range(hyper)
    look |= {"min": low, "max": high, "value": _place(hyper, value), "readout": False}
    if hyper.scale == "integer":
        return ipywidgets.IntSlider(**{**look, "min": round(low), "max": round(high)})
    step = (high - low) / 400
    return (
        ipywidgets.FloatLogSlider(base=10, step=step, **look)
        if hyper.scale == "log"
        else ipywidgets.FloatSlider(step=step, **look)
    )


class Controls(ipywidgets.VBox):
    """See `controls`. `dials` has the controls of the hyperparameters by name; `close()` lets go of everything."""

    def __init__(self, session: wb.Session) -> None:
        self._session_ref: Callable[[], wb.Session | None] = weakref.ref(session)
        self._lock = threading.Lock()
        self._asked: dict[str, Callable[[wb.Session], Any]] = {}
        self._presses = 0
        self._sent: dict[str, float] = {}
        self._next_look, self._moved = 0.0, -TOUCHED_SECONDS
        self._words = ""
        self.sent = 0
        """Updates sent to the browser so far."""
        given = session.hyper
        shown = {name: hyper for name, hyper in session.routine.hypers.items() if hyper.kind != "init"}
        self.dials = {name: Dial(name, hyper, given[name], name.rpartition(".")[2]) for name, hyper in shown.items()}
        self._make_transport(session)
        super().__init__([self.buttons, self.time, self.status, *self._groups()])
        self._connect()
        self._follower = Follower(self._look, "controls of a session")

    # ---- what there is

    @property
    def session(self) -> wb.Session | None:
        """What is controlled; None once it is gone."""
        return self._session_ref()

    def _make_transport(self, session: wb.Session) -> None:
        small = {"layout": ipywidgets.Layout(width="84px")}
        self.play = ipywidgets.ToggleButton(session.playing, description="Play", icon="play", **small)
        self.back = ipywidgets.Button(description="Back", icon="step-backward", tooltip="One step back", **small)
        self.step = ipywidgets.Button(description="Step", icon="step-forward", tooltip="One step on", **small)
        self.speed = ipywidgets.Dropdown(options=SPEEDS, value=0.0, layout={"width": "160px"})
        self.speed.tooltip = "Speed while it plays"
        self.buttons = ipywidgets.HBox([self.play, self.back, self.step, self.speed])
        wide = {"layout": ipywidgets.Layout(width="436px"), "style": LABEL}
        self.time = ipywidgets.IntSlider(session.index, 0, max(1, session.head), description="step", **wide)
        self.status = ipywidgets.HTML("")

    def _groups(self) -> list[ipywidgets.Widget]:
        """The dials in a column; under the method's name where there are several."""
        groups: dict[str, list[Any]] = {}
        for name, dial in self.dials.items():
            groups.setdefault(name.rpartition(".")[0], []).append(dial.view)
        self._titles = [ipywidgets.HTML(f"<b>{html.escape(title)}</b>") for title in groups if title]
        columns = [ipywidgets.VBox(views) for views in groups.values()]
        if not self._titles:
            return columns
        rows = zip(self._titles, columns, strict=True)
        return [ipywidgets.VBox([title, column]) for title, column in rows]

    def _connect(self) -> None:
        self.play.observe(self._played, "value")
        self.speed.observe(self._sped, "value")
        self.time.observe(self._sought, "value")
        self.back.on_click(lambda _: self._press(lambda session: session.pause().back()))
        self.step.on_click(lambda _: self._press(lambda session: session.pause().step()))
        for dial in self.dials.values():
            dial.slider.observe(lambda change, dial=dial: self._slid(dial), "value")
            if dial.box is not None:
                dial.box.observe(lambda change, dial=dial: self._typed(dial), "value")

    def close(self) -> None:
        """Follow no more, and remove every widget; the session goes on."""
        if not hasattr(self, "_follower"):
            return super().close()
        self._session_ref = lambda: None
        self._follower.join()
        for widget in _all_of(self):
            widget.unobserve_all()
            ipywidgets.Widget.close(widget)
        self.dials.clear()

    # ---- what a person does: from the kernel's message thread, only enqueues

    def _ask(self, name: str, call: Callable[[wb.Session], Any]) -> None:
        """Have it done on the controls' thread; of several waiting under one name only the last."""
        with self._lock:
            self._asked.pop(name, None)
            self._asked[name] = call
        self._follower.wake()

    def _press(self, call: Callable[[wb.Session], Any]) -> None:
        self._presses += 1
        self._ask(f"press {self._presses}", call)

    def _played(self, change: Any) -> None:
        if not self._follower.here:
            speed = self.speed.value or None
            self._ask("play", lambda session: session.play(speed) if change.new else session.pause())

    def _sped(self, change: Any) -> None:
        if not self._follower.here:
            self._ask("speed", lambda session: session.play(change.new or None) if session.playing else None)

    def _sought(self, change: Any) -> None:
        if not self._follower.here:
            self._moved = time.monotonic()
            self._ask("seek", lambda session: session.seek(min(change.new, session.head)))

    def _slid(self, dial: Dial) -> None:
        if not self._follower.here and not dial.stands():
            dial.hold(dial.slider)
            self._turn(dial, dial.slid())

    def _typed(self, dial: Dial) -> None:
        if self._follower.here:
            return
        dial.hold(dial.box)
        try:
            value = dial.typed()
        except ValueError as error:
            said = str(error)
            self._ask(f"error {dial.name}", lambda session: self._show_error(dial, said))
            return
        self._turn(dial, value)

    def _turn(self, dial: Dial, value: Any) -> None:
        dial.value = value
        self._ask(f"turn {dial.name}", lambda session: self._set(session, dial, value))

    # ---- the controls' thread

    def _set(self, session: wb.Session, dial: Dial, value: Any) -> None:
        try:
            session.set(**{dial.name: value})
        except ValueError as error:
            self._show_error(dial, str(error))
        else:
            self._show_error(dial, "")

    def _show_error(self, dial: Dial, text: str) -> None:
        said = f"<span role='alert' style='color:var(--jp-error-color1,#c62828)'>{html.escape(text)}</span>"
        self._send(dial.error, value=said if text else "")

    def _look(self) -> float | None:
        session = self._session_ref()
        if session is None or session.closed:
            self._say(GONE if session is None else "The session was closed.")
            return None
        self._carry_out(session)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._show(session)
        return max(0.001, self._next_look - time.monotonic())

    def _carry_out(self, session: wb.Session) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    return
                call = self._asked.pop(next(iter(self._asked)))
            try:
                call(session)
            except Exception as error:  # noqa: BLE001 - a step of somebody's own model: what it raises is shown
                self._words = f"{type(error).__name__}: {error}"
            else:
                self._words = ""

    def _show(self, session: wb.Session) -> None:
        """Bring up to date what differs, the longest unsent first, and never more than `PER_LOOK`."""
        differing = [(widget, traits) for widget, traits in self._wanted(session) if _differs(widget, traits)]
        differing.sort(key=lambda row: self._sent.get(row[0].model_id, 0.0))
        for widget, traits in differing[:PER_LOOK]:
            self._send(widget, **traits)

    def _wanted(self, session: wb.Session) -> list[tuple[Any, dict[str, Any]]]:
        """What each widget should show now; what a person is holding is left out."""
        now, playing = time.monotonic(), session.playing
        wanted: list[tuple[Any, dict[str, Any]]] = [(self.status, {"value": self._status(session)})]
        if "play" not in self._asked:
            look = ("Pause", "pause") if playing else ("Play", "play")
            wanted.append((self.play, {"value": playing, "description": look[0], "icon": look[1]}))
        if now - self._moved > TOUCHED_SECONDS and "seek" not in self._asked:
            wanted.append((self.time, self._time_wanted(session)))
        for name, value in session.hyper.items():
            dial = self.dials.get(name)
            if dial is not None and f"turn {name}" not in self._asked:
                wanted += self._wanted_dial(dial, value)
        return wanted

    def _time_wanted(self, session: wb.Session) -> dict[str, Any]:
        """Its end or its place, never both at once: a browser that sets the place first cuts it off at the old end."""
        index, head = session.index, max(1, session.head)
        if head > self.time.max or (not session.playing and self.time.value <= head < self.time.max):
            return {"max": max(10, 2 * head) if session.playing else head}
        return {"value": min(index, self.time.max)}

    @staticmethod
    def _wanted_dial(dial: Dial, value: Any) -> list[tuple[Any, dict[str, Any]]]:
        dial.value = value
        rows: list[tuple[Any, dict[str, Any]]] = []
        if dial.free(dial.slider) and not dial.stands():
            rows.append((dial.slider, {"value": dial.place()}))
        if dial.box is not None and dial.free(dial.box) and not dial.error.value:
            rows.append((dial.box, {"value": spoken(value)}))
        return rows

    def _status(self, session: wb.Session) -> str:
        text = [f"step {session.index:,} of {session.head:,}"]
        bad = [word for word in session.status if word != "ok"]
        if bad:
            text.append(bad[0] if len(bad) == 1 else f"{len(bad)} of {len(session.status)} runs diverged")
        text += [word for word in (session.stopped, self._words) if word and word not in text]
        return f"<span role='status'>{html.escape(' · '.join(text))}</span>"

    def _say(self, text: str) -> None:
        if self.comm is not None:
            self._send(self.status, value=f"<span role='alert'>{html.escape(text)}</span>")

    def _send(self, widget: Any, **traits: Any) -> None:
        """One message for all of them."""
        self._sent[widget.model_id] = time.monotonic()
        self.sent += 1
        with widget.hold_sync():
            for name, value in traits.items():
                setattr(widget, name, value)


def _differs(widget: Any, traits: dict[str, Any]) -> bool:
    return any(getattr(widget, name) != value for name, value in traits.items())


def _all_of(widget: Any) -> list[Any]:
    """A widget and all inside it, with their layouts and styles."""
    found = [widget, widget.layout, *([widget.style] if hasattr(widget, "style") else [])]
    for child in getattr(widget, "children", ()):
        found += _all_of(child)
    return found

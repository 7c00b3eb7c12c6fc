"""The frame every app shares in a page: header, controls at the side, the picture, transport, tabs, export, runs, link.

A shell shows a desk and passes on what a person does; it decides nothing. Whatever the desk says from its threads is
put on the page by the server's loop, newest first, so that a slow page never falls behind.
"""

import contextlib
import functools
import html
import urllib.parse
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from widgets.apps import files
from widgets.apps.desk import GIVES, SAVED, Desk
from widgets.apps.newest import Newest
from widgets.apps.plot import forgive_resizing
from widgets.connection import KeepsNewest, on_loop
from widgets.player import ServedPlayer
from widgets.sliders import Echo

SPEEDS = {"1 step/s": 1.0, "5 steps/s": 5.0, "30 steps/s": 30.0, "100 steps/s": 100.0, "as fast as it goes": 0.0}
MAIN = """
:host { display: grid; grid-template-columns: minmax(0, 1fr) minmax(340px, 34%);
        grid-template-rows: minmax(0, 1fr) auto; grid-template-areas: "picture side" "transport side"; gap: 8px 12px;
        height: calc(100dvh - 84px); width: 100%; }
@media (max-width: 1000px) {
  :host { grid-template-columns: minmax(0, 1fr); grid-template-rows: 62dvh max-content minmax(560px, max-content);
          grid-template-areas: "picture" "transport" "side"; height: auto !important; flex: none !important; } }
"""
STANDS = "The step shown, and the furthest that this line of time has been lived to"
GAP = {"gap": "8px"}
"""Between fields side by side."""
TABS = {"& .MuiTab-root": {"minWidth": 0, "padding": "12px 6px", "textTransform": "none", "fontSize": "0.8125rem"}}
"""Narrow enough for six tabs side by side beside the picture and on a phone."""
TIP = ".MuiTooltip-popper { inset: auto auto calc(100% + 6px) 0 !important; transform: none !important; } "
TIP += ".MuiTooltip-tooltip { margin: 0 !important; white-space: nowrap; } .MuiTooltip-arrow { display: none; }"
"""Explanations above their button: at its right, where they come by themselves, they cover the next one."""
FIELD = {"sizing_mode": "stretch_width", "margin": (4, 0), "size": "small"}


class Later:
    """Puts calls on the loop of a page from any thread; of several waiting under one name only the last is made."""

    def __init__(self) -> None:
        self.doc = pn.state.curdoc
        self._waiting = Newest()

    def __call__(self, name: str, call: Callable[[], None]) -> None:
        first = self._waiting.put(name, call)
        if first and self.doc is not None:
            on_loop(self.doc, functools.partial(self._run, name))

    def _run(self, name: str) -> None:
        call = self._waiting.take(name)
        if call is not None:
            call()


class Shell:
    """A page around a desk. Subclasses give `controls()` for the side and `tabs()` beside the picture."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.later = Later()
        self._quiet, self.echo = False, Echo()
        self.player = ServedPlayer(
            sizing_mode="stretch_both", min_height=240, margin=0, styles={"grid-area": "picture"}
        )
        self.message = pmui.Alert(
            object="", visible=False, closeable=True, margin=(0, 0, 8, 0), sizing_mode="stretch_width"
        )
        self.status = pn.pane.HTML("", margin=(0, 8), sizing_mode="stretch_width")
        self.cancel = pmui.Button(label="Cancel", size="small", variant="outlined", visible=False, margin=(0, 8))
        self.cancel.on_click(lambda event: desk.cancel())
        self.makers: dict[str, Any] = {}
        """Buttons that have something made, by what the desk calls it."""
        desk.can_draw = lambda: self.player.feed.idle
        self.player.on_click(desk.click)
        self.player.on_action(self._acted)
        desk.on("frame", lambda frame: self.player.show(frame=frame))
        desk.on("state", lambda: self.later("state", self._state))
        desk.on("settings", lambda: self.later("settings", self._settings))
        desk.on("message", lambda text, kind: self.later("message", lambda: self.say(text, kind)))

    # ---- what subclasses give

    def controls(self) -> list:
        """What stands at the side."""
        return []

    def tabs(self) -> list[tuple[str, Any]]:
        """(title, view) of what stands beside the picture."""
        return []

    def refresh(self) -> None:
        """Bring the app's own controls up to date with the desk."""

    # ---- the page

    def page(self) -> pmui.Page:
        """The whole page."""
        desk = self.desk
        side = [*self.controls(), pmui.Divider(margin=(8, 0)), *self._exports(), *self._runs()]
        self.page_ = pmui.Page(
            title=desk.title,
            main=[self._main()],
            sidebar=[pn.Column(*side, sizing_mode="stretch_width", margin=(8, 14))],
            sidebar_width=340,
            sidebar_open=_is_wide(),
            header=[_home_link()],
            main_width=None,
            theme_toggle=True,
            busy_indicator=None,
            sx={"& .main-content": {"overflow": "hidden auto !important"}},  # Page forbids scrolling; a phone needs it
        )
        _stop_watching(self.page_)
        self.page_.param.watch(lambda event: self._theme(event.new), "dark_theme")
        self._theme(self.page_.dark_theme)
        if self.later.doc is not None:
            forgive_resizing(self.later.doc)
        self.player.show(scene=desk.scene(), frame=desk.frame())
        for error in desk.opening_errors:
            self.say(error, "warning")
        self._state()
        return self.page_

    def close(self) -> None:
        """Let go of everything, for when the page has gone."""
        self.desk.close()
        self.player.close()

    def say(self, text: str, kind: str = "info") -> None:
        """A sentence to the person, at the top of the page until closed."""
        self.message.param.update(object=html.escape(text), severity=kind, visible=True, closed=False)

    def _main(self) -> Any:
        look = {"sx": TABS, "styles": {"grid-area": "side"}, "sizing_mode": "stretch_both", "margin": 0}
        tabs = pmui.Tabs(*self.tabs(), dynamic=True, **look)
        self.tabs_view = tabs
        grid = pn.Column(self.player, self._transport(), tabs, stylesheets=[MAIN], sizing_mode="stretch_both", margin=0)
        newest = KeepsNewest(width=0, height=0, margin=0)
        return pn.Column(self.message, grid, newest, sizing_mode="stretch_both", margin=(8, 12, 0, 12))

    def _transport(self) -> Any:
        desk = self.desk
        button = functools.partial(pmui.Button, size="small", variant="text", margin=(4, 1), stylesheets=[TIP])
        self.play = button(
            icon="play_arrow", description="Play or pause (space)", variant="contained", label="Play", width=96
        )
        restart = button(icon="replay", description="Back to step 0; forgets branches", label="Restart")
        back = button(icon="skip_previous", description="One step back (←)", label="Back")
        step = button(icon="skip_next", description="One step on (→)", label="Step")
        branch = button(icon="call_split", description="Branch: keep this line, go on along a new one", label="Branch")
        self.play.on_click(lambda event: desk.toggle())
        back.on_click(lambda event: desk.back())
        step.on_click(lambda event: desk.step())
        branch.on_click(lambda event: desk.branch())
        restart.on_click(lambda event: desk.restart())
        self.time = pmui.IntSlider(label="step", start=0, end=1, value=0, show_value=False, **FIELD)
        self.time._priority_changes = ["value"]  # type: ignore[misc]
        self.time.param.watch(self._sought, "value")
        self.time.param.watch(self._released, "value_throttled")
        speed = pmui.Select(
            label="speed", options=SPEEDS, value=self.desk.speed or 0.0, width=180, size="small", margin=(4, 4)
        )
        speed.param.watch(lambda event: desk.set_speed(event.new or None), "value")
        self.line_view = pmui.Select(label="line", options={"A": 0}, value=0, width=84, size="small", margin=(4, 4))
        self.line_view.param.watch(self._switched, "value")
        buttons = pn.FlexBox(
            self.play, back, step, branch, restart, self.line_view, speed, align_items="center", margin=0
        )
        line = pn.Row(self.status, self.cancel, sizing_mode="stretch_width", min_height=34, margin=0)
        return pn.Column(
            self.time, buttons, line, sizing_mode="stretch_width", margin=0, styles={"grid-area": "transport"}
        )

    def _exports(self) -> list:
        """Script, record, picture, page."""
        picture = pmui.Button(label="Picture (.png)", variant="outlined", **FIELD)
        picture.on_click(lambda event: self.player.save_png(self.desk.name))
        return [
            pmui.Typography("Export", variant="subtitle2", margin=(4, 0, 0, 0)),
            self._download("Python script (.py)", "script", ".py"),
            self._download("Record (.nc)", "record", ".nc"),
            picture,
            self._download("Page that plays (.html)", "page", ".html"),
            *([self._download("Weights (.safetensors)", "weights", ".safetensors")] if self.desk.trains else []),
        ]

    def _download(self, label: str, what: str, ending: str) -> Any:
        """A button that has something made beside everything else; the browser saves it once it is ready."""
        name = f"{self.desk.name}{ending}"
        button = pmui.FileDownload(auto=True, filename=name, label=label, variant="outlined", **FIELD)

        def ready(content: bytes) -> None:
            uri = files.data_uri(content)  # on the making thread: encoding takes a while too
            self.later(f"give {what}", lambda: self._give(button, uri))

        button.param.watch(lambda event: self.desk.take(what, ready), "_clicks")
        self.makers[GIVES[what][0]] = button
        return button

    def _give(self, button: Any, uri: str) -> None:
        """The browser saves whatever the button's data changes to; then they are let go of, here and there."""
        button.data = uri
        self.later(f"given {button.filename}", lambda: button.param.update(data=None))

    def _runs(self) -> list:
        """Save to, reopen from and delete from the folder of runs."""
        desk = self.desk
        name = pmui.TextInput(label="Name of the run", value="", placeholder=desk.name, **FIELD)
        save = pmui.Button(label="Save run", variant="outlined", **FIELD)
        self.makers[SAVED] = save
        chosen = pmui.Select(label="Saved runs", options=files.names(desk.runs), **{**FIELD, "margin": (10, 0, 4, 0)})
        look = pmui.Button(label="Open", variant="outlined", **FIELD)
        drop = pmui.Button(label="Delete", variant="outlined", color="error", **FIELD)

        def refresh() -> None:
            chosen.options = files.names(desk.runs)

        save.on_click(lambda event: desk.save(name.value or desk.name))
        look.on_click(lambda event: desk.reopen(chosen.value) if chosen.value else None)
        drop.on_click(lambda event: desk.delete(chosen.value) if chosen.value else None)
        desk.on("runs", lambda: self.later("runs", refresh))
        title = pmui.Typography("Runs", variant="subtitle2", margin=(8, 0, 0, 0))
        return [title, name, save, chosen, pn.Row(look, drop, sizing_mode="stretch_width", margin=0, styles=GAP)]

    # ---- what happens

    def _sought(self, event: Any) -> None:
        """The time slider moves: by a person, or by the echo of what it was told, which is rife while a run plays."""
        if self._quiet:
            return
        if self.desk.session.playing or self.echo.heard(("step", event.new)):
            self.later("state", self._state)
        else:
            self.desk.seek(event.new)

    def _released(self, event: Any) -> None:
        """The time slider was let go, which only a person does."""
        if event.new != self.desk.session.index:
            self.desk.seek(event.new)

    def _switched(self, event: Any) -> None:
        """Another line of time was chosen."""
        if self._quiet:
            return
        if self.echo.heard(("line", event.new)):
            self.later("state", self._state)
        else:
            self.desk.switch(event.new)

    def _acted(self, name: str, value: int | None) -> None:
        """A key on the picture."""
        desk = self.desk
        moves = {"play": desk.toggle, "back": desk.back, "step": desk.step}
        if name in moves:
            moves[name]()
        elif name == "home":
            desk.seek(0)
        elif name == "end":
            desk.seek(desk.session.head)

    def _theme(self, dark: bool) -> None:
        self.dark = dark
        self.player.theme = "dark" if dark else "light"
        self.restyle()

    def restyle(self) -> None:
        """Light or dark has changed: `self.dark`."""

    def _state(self) -> None:
        """Transport, status and link as the desk stands."""
        desk, session = self.desk, self.desk.session
        self._quiet = True
        try:
            icon, label = ("pause", "Pause") if session.playing else ("play_arrow", "Play")
            _change(self.play, icon=icon, label=label)
            if self.time.value != session.index:
                self.echo.tell(("step", session.index))
            self.time.param.update(end=max(1, session.head), value=session.index)
            lines = {line.label: i for i, line in enumerate(desk.lines)}
            if lines != self.line_view.options:
                self.line_view.options = lines
            if self.line_view.value != desk.live:
                self.line_view.value = self.echo.tell(("line", desk.live))[1]
        finally:
            self._quiet = False
        self.status.object = f"<span role='status' title='{STANDS}'>{html.escape(desk.status())}</span>"
        self.cancel.visible = desk.busy
        making = desk.maker.progress and desk.maker.progress[0]
        for what, button in self.makers.items():
            _change(button, disabled=bool(making), loading=making == what)
        self.refresh()
        if not session.playing:
            self._link()

    def _link(self) -> None:
        location = pn.state.location
        if location is not None:
            location.search = "?" + urllib.parse.urlencode(self.desk.query()) if self.desk.query() else ""

    def _settings(self) -> None:
        self.player.show(scene=self.desk.scene())
        self._state()


def _change(view: Any, **values: Any) -> None:
    """Sets what differs: what stays the same would go through all that Panel does for a change."""
    news = {name: value for name, value in values.items() if getattr(view, name) != value}
    if news:
        view.param.update(**news)


def _is_wide() -> bool:
    """Whether the page opens with its controls beside the picture: not on a phone, where they would cover it."""
    agent = str((pn.state.headers or {}).get("User-Agent", ""))
    return "Mobi" not in agent


def _stop_watching(page: Any) -> None:
    """Let a page no longer follow whether the server is busy.

    It would be told twice for every event of every visitor, each time at the cost of a walk over the whole page
    (20 ms on the loop that all pages share), and the server would keep it for ever.
    """
    for _, watcher in list(page._param__private.ref_watchers):
        (watcher.inst or watcher.cls).param.unwatch(watcher)


def _home_link() -> Any:
    return pn.pane.HTML("<a href='./' style='color:#fff'>All apps</a>", margin=(0, 12), align="center")


def serve_page(make: Callable[[dict[str, str]], Shell]) -> Any:
    """A page of one visitor: its desk from the address, and everything let go of when the visitor leaves."""
    arguments = pn.state.session_args or {}
    query = {name: values[0].decode("utf-8", "replace") for name, values in arguments.items() if values}
    shell = make(query)
    page = shell.page()

    def gone(session_context: Any) -> None:
        with contextlib.suppress(RuntimeError):
            shell.close()

    pn.state.on_session_destroyed(gone)
    return page

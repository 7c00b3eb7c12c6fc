"""What pages with plots in tabs share: the tab in front is drawn when it has to be, and how its parts look."""

import functools
import html
import weakref
from collections.abc import Callable
from typing import Any

import panel_material_ui as pmui

from widgets import palette
from widgets.apps.shell import FIELD, Shell
from widgets.sliders import HyperControl
from workbench.problems.data import MAX_BYTES


class DrawingShell(Shell):
    """A shell whose tabs hold plots. Subclasses give `draw_tab(active)`, which draws one of them as the desk stands."""

    def __init__(self, desk: Any) -> None:
        super().__init__(desk)
        self.hyper: dict[str, HyperControl] = {}
        """Controls of the live session's hyperparameters, by name."""

    def draw_tab(self, active: int) -> None:
        """Draw the tab of this number; those without anything to draw are left alone."""
        raise NotImplementedError

    def page(self) -> Any:
        made = super().page()
        self.tabs_view.param.watch(lambda event: self._turned_to(event.new), "active")
        self._draw_twice()
        return made

    def turnable(self, name: str, **look: Any) -> Any:
        """A control that turns a hyperparameter of the live session, and is kept up to date; its view."""
        session, turn = self.desk.session, functools.partial(self.desk.turn, name)
        self.hyper[name] = HyperControl(session.routine.hypers[name], session.hyper[name], turn, **look)
        return self.hyper[name].view

    def upload(self, label: str, accept: str, words: str, take: Callable[[str, bytes], None]) -> tuple[Any, Any]:
        """(A button that takes a file, what comes of it): `take` gets name and content, signal "upload" the answer.

        Args:
            accept: endings of files, with a dot, by commas.
            words: what the file should hold.
        """
        limit = {"max_file_size": MAX_BYTES, "accept": accept}
        file = pmui.FileInput(label=label, variant="outlined", description=words, **limit, **FIELD)
        answer = pmui.Alert(object="", visible=False, margin=(4, 0), sizing_mode="stretch_width")

        def chosen(event: Any) -> None:
            if event.new:
                answer.param.update(object="Reading…", severity="info", visible=True)
                take(str(file.filename), bytes(event.new))
                file.clear()

        def answered(text: str, kind: str) -> None:
            answer.param.update(object=html.escape(text), severity=kind, visible=True)
            self.uploaded()

        file.param.watch(chosen, "value")
        self.desk.on("upload", lambda text, kind: self.later("upload", lambda: answered(text, kind)))
        return file, answer

    def uploaded(self) -> None:
        """A file was taken or refused."""

    def rates_first(self, *left_out: str) -> list:
        """Controls of hyperparameters side by side but those that end in `left_out`; learning rates stand open."""
        names = [name for name in self.desk.session.routine.hypers if not name.endswith(left_out)]
        self.hyper = {}
        views = {name: self.turnable(name, label=name.replace(".", " ")) for name in names}
        rates = [view for name, view in views.items() if name.endswith(".lr")]
        others = [view for name, view in views.items() if not name.endswith(".lr")]
        return [heading("Turn while it trains"), *rates, folded("All hyperparameters", others)]

    def refresh(self) -> None:
        values = self.desk.hyper
        for name, control in self.hyper.items():
            if name in values:
                control.show(values[name])

    def restyle(self) -> None:
        self._draw_twice()

    @property
    def theme(self) -> str:
        """ "light" or "dark"."""
        return "dark" if getattr(self, "dark", False) else "light"

    def _colours(self) -> tuple[str, ...]:
        return palette.DARK if self.theme == "dark" else palette.LIGHT

    def _turned_to(self, active: int) -> None:
        """Another tab is in front."""
        self._draw_twice()

    def _draw_twice(self) -> None:
        """Soon and a little later: a theme, applied when a plot appears or turns dark, overwrites its layout once.

        Not at once: a pane that is not on the page yet would ask for its style sheets on the network.
        """
        self.later("tab", self._draw)
        doc = self.later.doc
        if doc is not None and doc.session_context is not None:
            for delay in (700, 2500):
                doc.add_timeout_callback(_weakly(self._draw), delay)

    def _draw(self) -> None:
        """The tab in front, as the desk stands."""
        if not self.desk.closed and hasattr(self, "tabs_view"):
            self.draw_tab(self.tabs_view.active)


def named(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure with a legend under its title."""
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11}}
    legend["bgcolor"] = "rgba(0,0,0,0)"
    layout = {**figure["layout"], "showlegend": True, "legend": legend, "hovermode": "x unified"}
    layout["margin"] = {**layout["margin"], "t": 52}
    layout["title"] = {**layout["title"], "y": 0.99, "yanchor": "top", "yref": "container"}
    return {**figure, "layout": layout}


def choice(label: str, options: dict[str, Any], value: Any, chosen: Callable[[Any], None]) -> pmui.Select:
    """A menu that tells what was chosen; of one thing there is nothing to choose."""
    select = pmui.Select(label=label, options=options, value=value, disabled=len(options) < 2, **FIELD)
    select.param.watch(lambda event: chosen(event.new), "value")
    return select


def heading(words: str) -> pmui.Typography:
    """What the controls below it are for."""
    return pmui.Typography(words, variant="subtitle2", margin=(8, 0, 0, 0))


def folded(title: str, inside: list) -> pmui.Card:
    """Controls under a heading that opens them."""
    return pmui.Card(*inside, title=title, collapsed=True, sizing_mode="stretch_width", margin=(4, 0))


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """A call of a method that does not keep its object: a page's timers outlive the page that set them first."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    return call

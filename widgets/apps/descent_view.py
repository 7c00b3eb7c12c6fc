"""The page of the Descent app: surface and methods at the side, five tabs beside the picture."""

import functools
import html
import time
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

import workbench as wb
from widgets.apps.descent_desk import MARKS, MOST, DescentDesk, method_name
from widgets.apps.descent_paths import parts_of
from widgets.apps.descent_tabs import AboutTab, CurvesTab, FanTab, HeatTab, SpaceTab
from widgets.apps.shell import FIELD, Shell
from widgets.palette import DARK, LIGHT
from widgets.sliders import HyperControl

OWN = "your own expression"
SIGNS = dict(zip(MARKS, "●■▲◆✚★", strict=True))
REST = 8
"""While it plays, a tab rests so many times as long as it took to draw: figures must not slow the picture."""
CARD = {"& .MuiCardHeader-action .MuiIconButton-root": {"color": "text.secondary"}}
"""The arrow that folds a card, in a colour that is seen in the dark too."""
FIRST = 3
"""Hyperparameters a card shows before "more"."""
ERROR = {"color": "var(--mui-palette-error-main, #c62828)", "overflow-wrap": "anywhere"}


class DescentShell(Shell):
    """A page around a Descent desk."""

    desk: DescentDesk

    def controls(self) -> list:
        surfaces = {row.title: row.name for row in wb.catalogue("surfaces")}
        self.surface = pmui.Select(label="Surface", options={**surfaces, OWN: OWN}, value=self._surface(), **FIELD)
        self.surface.param.watch(self._chose_surface, "value")
        self.text = pmui.TextInput(label="Your own expression of x and y", placeholder="x**2 + 3*sin(y)**2", **FIELD)
        self.text.param.watch(self._typed, "value")
        self.text_error = pn.pane.HTML(
            "", visible=False, styles=ERROR, margin=(0, 0, 4, 0), sizing_mode="stretch_width"
        )
        self.shape = pn.Column(sizing_mode="stretch_width", margin=0)
        self.cards: Any = pn.Column(sizing_mode="stretch_width", margin=0)
        names = {row.title: row.name for row in wb.catalogue("optimizers")}
        label, look = f"Another optimizer (up to {MOST})", {**FIELD, "margin": (10, 0, 4, 0)}
        self.adding = pmui.Select(label=label, options=names, value="adam", **look)
        self.add = pmui.Button(label="Add", size="small", variant="outlined", margin=(12, 0, 4, 8), width=64)
        self.add.on_click(lambda event: self.desk.add(self.adding.value))
        self.hyper: dict[str, HyperControl] = {}
        self.shared: dict[str, HyperControl] = {}
        self._closed_cards: set[str] = set()
        self._fill()
        adding = pn.Row(self.adding, self.add, sizing_mode="stretch_width", margin=0)
        return [self.surface, self.text, self.text_error, self.shape, self.cards, adding]

    def tabs(self) -> list[tuple[str, Any]]:
        self.parts = [make(self) for make in (CurvesTab, FanTab, HeatTab, SpaceTab, AboutTab)]
        return [(part.title, part.view) for part in self.parts]

    def page(self) -> Any:
        page = super().page()
        self.tabs_view.param.watch(lambda event: self._draw_tab(), "active")
        self.desk.on("curves", lambda: self.later("curves", lambda: self._draw_tab(often=True)))
        self.desk.on("fan", lambda: self.later("fan", self._draw_tab))
        self.desk.on("expression", lambda text: self.later("expression", lambda: self.show_error(text)))
        self.desk.on("heat", lambda: self.later("heat", self._draw_tab))
        pn.state.onload(self._draw_tab)  # once the page's theme stands: it restyles figures that are there before
        return page

    def restyle(self) -> None:
        self._paint_cards()
        self._draw_tab()

    def refresh(self) -> None:
        values = self.desk.hyper
        for name, control in self.hyper.items():
            if name in values:
                control.show(values[name])
        for name, control in self.shared.items():
            control.show(values.get(f"{self.desk.labels[0]}.{name}", control.value))

    def colour(self, label: str) -> str:
        """The colour of a method as #RRGGBB."""
        palette = DARK if getattr(self, "dark", False) else LIGHT
        return palette[self.desk.colours[self.desk.labels.index(label)]]

    # ---- surface

    def _surface(self) -> str:
        """What stands in the menu."""
        name = self.desk.settings["surface"]
        return name if name in {row.name for row in wb.catalogue("surfaces")} else OWN

    def _chose_surface(self, event: Any) -> None:
        if self._quiet:
            return
        if event.new == OWN:
            self._typed(None)
        else:
            self.text_error.visible = False
            self.desk.choose(surface=event.new)

    def _typed(self, event: Any) -> None:
        """A formula from the box; what is wrong with it stands right under it, and nothing else changes."""
        text = (self.text.value or "").strip()
        if self._quiet or not text or text == self.desk.settings["surface"]:
            return
        self.desk.choose_text(text)

    def show_error(self, text: str) -> None:
        """What is wrong with the formula, "" when nothing is."""
        self.text_error.param.update(object=f"<span role='alert'>{html.escape(text)}</span>", visible=bool(text))

    # ---- cards

    def _settings(self) -> None:
        self._quiet = True
        try:
            self.surface.value = self._surface()
            if self._surface() == OWN:
                self.text.value = self.desk.settings["surface"]
        finally:
            self._quiet = False
        self._fill()
        super()._settings()
        self._draw_tab()

    def _fill(self) -> None:
        """Sliders of the surface, and a card for each method."""
        desk = self.desk
        if (desk.settings["surface"], tuple(desk.labels)) != getattr(self, "_filled", None):
            self._filled = (desk.settings["surface"], tuple(desk.labels))
            self._fill_shape()
            self.hyper = {}
            self.cards[:] = [self._card(label, part) for label, part in parts_of(desk.session).items()]
            for part in getattr(self, "parts", ()):
                part.refill()
        self._paint_cards()
        self.add.disabled = len(desk.labels) >= MOST

    def _fill_shape(self) -> None:
        """Sliders of what the surface declares: settings begin anew, values act on every method at once."""
        desk, objective = self.desk, self.desk.objective
        rows, self.shared = [], {}
        for name, hyper in objective.hypers.items():
            if hyper.kind == "init" and name != "dim":  # two coordinates are what can be drawn
                rows.append(HyperControl(hyper, objective.settings[name], functools.partial(self._shaped, name)).view)
            elif hyper.kind == "value":
                now = desk.session.hyper[f"{desk.labels[0]}.{name}"]
                self.shared[name] = HyperControl(hyper, now, functools.partial(desk.turn_surface, name))
                rows.append(self.shared[name].view)
        self.shape[:] = rows

    def _shaped(self, name: str, value: Any) -> None:
        self.desk.choose(shape={**self.desk.settings["shape"], name: value})

    def _card(self, label: str, part: Any) -> Any:
        own = [name for name in part.hypers if name not in part.objective.hypers]
        own.sort(key=lambda name: name != "lr")
        views = {name: self._control(label, name, part.hypers[name]) for name in own}
        rows = [views[name] for name in own[:FIRST]]
        if own[FIRST:]:
            rest = [views[name] for name in own[FIRST:]]
            rows.append(
                pmui.Card(*rest, title="more", collapsed=True, sx=CARD, sizing_mode="stretch_width", margin=(4, 0))
            )
        drop = pmui.Button(label=f"Remove {label}", size="small", variant="text", margin=0)
        drop.on_click(lambda event: self.desk.remove(label))
        drop.disabled = len(self.desk.labels) == 1
        rows.append(drop)
        folded = label in self._closed_cards
        card = pmui.Card(*rows, collapsed=folded, sx=CARD, sizing_mode="stretch_width", margin=(4, 0))
        card.param.watch(lambda event: self._folded(label, event.new), "collapsed")
        return card

    def _folded(self, label: str, folded: bool) -> None:
        (self._closed_cards.add if folded else self._closed_cards.discard)(label)

    def _control(self, label: str, name: str, hyper: wb.Hyper) -> Any:
        full = f"{label}.{name}"
        turned: Callable[[Any], None] = functools.partial(self.desk.turn, full)
        control = HyperControl(hyper, self.desk.session.hyper[full], turned, whose=label)
        self.hyper[full] = control
        return control.view

    def _paint_cards(self) -> None:
        """Each card in its method's colour, with its mark and title."""
        if not hasattr(self, "cards"):
            return
        titles = {row.name: row.title for row in wb.catalogue("optimizers")}
        palette = DARK if getattr(self, "dark", False) else LIGHT
        for i, (label, card) in enumerate(zip(self.desk.labels, self.cards, strict=False)):
            name = method_name(label)
            card.title = f"{SIGNS[MARKS[i]]} {titles[name]}" + ("" if label == name else f" ({label})")
            card.styles = {"border-left": f"5px solid {palette[self.desk.colours[i]]}", "border-radius": "4px"}

    # ---- tabs

    def _draw_tab(self, *, often: bool = False) -> None:
        """Bring the tab that is open up to date; those that are not cost nothing."""
        part = self.parts[self.tabs_view.active] if hasattr(self, "tabs_view") else None
        playing, now = self.desk.session.playing, time.perf_counter()
        if part is None or (often and playing and (not part.often or now < self._rest_until)):
            return
        part.draw()
        self._rest_until = now + REST * (time.perf_counter() - now)

    _rest_until = 0.0


def page(query: dict[str, str], runs: Any) -> DescentShell:
    """The app for one visitor, from the link it was opened with."""
    return DescentShell(DescentDesk(runs=runs, query=query))

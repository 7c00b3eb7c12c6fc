"""Hyper declarations as sliders of Panel pages; notebooks have `widgets.jupyter.dials`. Never made by hand.

Not named `controls`: a module of that name would take the place of the function `widgets.controls`.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from widgets.scales import from_slider, slider_range, to_slider, words
from workbench import Hyper

ONE_LINE = {"sizing_mode": "stretch_width", "margin": (2, 0)}


class Echo:
    """Values a widget was lately told, by which a change that no person made is known.

    A widget of panel-material-ui writes its React state back after each drawing. When a newer value has come from the
    server meanwhile, the older one returns as if a person had chosen it; acted on, it would undo what came after.
    """

    SECONDS = 3.0

    def __init__(self) -> None:
        self._told: dict[Any, float] = {}

    def tell(self, value: Any) -> Any:
        """Remember a value the widget is being set to, and give it back."""
        now = time.monotonic()
        self._told = {old: at for old, at in self._told.items() if now - at < self.SECONDS}
        self._told[value] = now
        return value

    def heard(self, value: Any) -> bool:
        """Whether a change to this value is only what the widget was told."""
        return time.monotonic() - self._told.get(value, -self.SECONDS) < self.SECONDS


def shown_as(name: str) -> dict[str, Any]:
    """Style by which a slider shows another name than the one assistive tools read, which is its label."""
    short = {"content": f'{json.dumps(name, ensure_ascii=False)} / ""', "fontSize": "1rem"}  # shown, not read out
    label = {"fontSize": 0, "lineHeight": "1.0625rem", "&::before": short, "& > *": {"fontSize": "1rem"}}
    return {"& .MuiFormLabel-root": label}


class HyperControl:
    """A slider and a box to type into, for one hyperparameter; `view` is what a page shows.

    Args:
        hyper: the declaration.
        value: present value.
        turned: called with the new value; only with legal ones, and not for changes made by `show`.
        label: what it is called; the hyperparameter's name when not given.
        whose: the method it belongs to, for assistive tools where several stand side by side: "adam lr", shown as "lr".
    """

    def __init__(
        self, hyper: Hyper, value: Any, turned: Callable[[Any], None], *, label: str = "", whose: str = ""
    ) -> None:
        self.hyper, self.turned, self._quiet = hyper, turned, False
        self._slider_echo, self._box_echo = Echo(), Echo()
        self.value = value
        self.slider: Any
        self.box: Any = None
        self.view: Any
        name = label or (f"{hyper.name} ({hyper.unit})" if hyper.unit not in ("", hyper.name) else hyper.name)
        if hyper.scale == "choice":
            look = {"sizing_mode": "stretch_width", "margin": (6, 0), "size": "small"}
            self.slider = pmui.Select(label=name, options=list(hyper.choices), value=value, **look)
            self.view = self.slider
        else:
            self._make_slider(name, value, f"{whose} {name}".strip())
        self.slider.param.watch(self._slid, "value")

    def _make_slider(self, name: str, value: float, full: str) -> None:
        low, high = slider_range(self.hyper)
        step = 1 if self.hyper.scale == "integer" else (high - low) / 400
        look = {"show_value": False, "tooltips": False, "size": "small", "description": self.hyper.doc}
        self.slider = pmui.FloatSlider(
            label=full, start=low, end=high, step=step, value=to_slider(self.hyper, value), **look, **ONE_LINE
        )
        self.slider.param.update(value_label=words(value), sx=shown_as(name) if name != full else None)
        self.slider._priority_changes = ["value"]
        box = {"size": "small", "width": 92, "margin": (10, 0, 0, 8)}
        self.box = pmui.TextInput(label="", placeholder=full, value=words(value), **box)  # its name, as it has no label
        self.box.param.watch(self._typed, "value")
        self.error = pn.pane.Str(
            "", visible=False, styles={"color": "var(--mui-palette-error-main, #c62828)"}, margin=0
        )
        row = pn.Row(self.slider, self.box, sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(row, self.error, sizing_mode="stretch_width", margin=0)

    def show(self, value: Any) -> None:
        """Stand at a value that was set elsewhere."""
        if value != self.value:
            self.value = value
            self._set_slider()
            self._set_box()

    def _set_slider(self) -> None:
        self._quiet = True
        try:
            if self.hyper.scale == "choice":
                self.slider.value = self._slider_echo.tell(self.value)
            else:
                self._slider_echo.tell(from_slider(self.hyper, to_slider(self.hyper, self.value)))
                self.slider.value = to_slider(self.hyper, self.value)
        finally:
            self._quiet = False

    def _set_box(self) -> None:
        if self.box is None:
            return
        self._quiet = True
        try:
            self.box.value = self.slider.value_label = self._box_echo.tell(words(self.value))
            self.error.visible = False
        finally:
            self._quiet = False

    def _slid(self, event: Any) -> None:
        if self._quiet:
            return
        value = event.new if self.hyper.scale == "choice" else from_slider(self.hyper, event.new)
        if value == self.value:
            return
        if self._slider_echo.heard(value):
            self._set_slider()
            return
        self.value = value
        self.turned(value)
        self._set_box()

    def _typed(self, event: Any) -> None:
        if self._quiet:
            return
        if self._box_echo.heard(event.new):
            self._set_box()
            return
        try:
            value = self.hyper.check(float(event.new))
        except ValueError as error:
            text = str(error) if str(error).startswith("expected") else f"expected a number, got {event.new[:20]!r}"
            self.error.param.update(object=text, visible=True)
            return
        self.value = value
        self._set_slider()
        self._set_box()
        self.turned(value)

"""Hyper declarations as sliders of Panel pages; notebooks have `widgets.jupyter.dials`. Never made by hand.

Not named `controls`: a module of that name would take the place of the function `widgets.controls`.
"""

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from widgets.scales import from_slider, slider_range, to_slider, words
from workbench import Hyper

ONE_LINE = {"sizing_mode": "stretch_width", "margin": (2, 0)}


class HyperControl:
    """A slider and a box to type into, for one hyperparameter; `view` is what a page shows.

    Args:
        hyper: the declaration.
        value: present value.
        turned: called with the new value; only with legal ones, and not for changes made by `show`.
        label: what it is called; the hyperparameter's name when not given.
    """

    def __init__(self, hyper: Hyper, value: Any, turned: Callable[[Any], None], *, label: str = "") -> None:
        self.hyper, self.turned, self._quiet = hyper, turned, False
        self.value = value
        name = label or (f"{hyper.name} ({hyper.unit})" if hyper.unit else hyper.name)
        if hyper.scale == "choice":
            self.slider = pmui.Select(label=name, options=list(hyper.choices), value=value, size="small", **ONE_LINE)
            self.box = None
            self.view = self.slider
        else:
            self._make_slider(name, value)
        self.slider.param.watch(self._slid, "value")

    def _make_slider(self, name: str, value: float) -> None:
        low, high = slider_range(self.hyper)
        step = 1 if self.hyper.scale == "integer" else (high - low) / 400
        look = {"show_value": False, "tooltips": False, "size": "small", "description": self.hyper.doc}
        self.slider = pmui.FloatSlider(
            label=name, start=low, end=high, step=step, value=to_slider(self.hyper, value), **look, **ONE_LINE
        )
        self.slider._priority_changes = ["value"]
        self.box = pmui.TextInput(
            label="", value=words(value), size="small", width=92, margin=(10, 0, 0, 8)
        )
        self.box.param.watch(self._typed, "value")
        self.error = pn.pane.Str("", visible=False, styles={"color": "var(--mui-palette-error-main, #c62828)"}, margin=0)
        row = pn.Row(self.slider, self.box, sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(row, self.error, sizing_mode="stretch_width", margin=0)

    def show(self, value: Any) -> None:
        """Stand at a value that was set elsewhere."""
        if value == self.value:
            return
        self.value, self._quiet = value, True
        try:
            self.slider.value = value if self.hyper.scale == "choice" else to_slider(self.hyper, value)
            if self.box is not None:
                self.box.value = words(value)
        finally:
            self._quiet = False

    def _slid(self, event: Any) -> None:
        if self._quiet:
            return
        value = event.new if self.hyper.scale == "choice" else from_slider(self.hyper, event.new)
        if value != self.value:
            self._turn(value)

    def _typed(self, event: Any) -> None:
        if self._quiet:
            return
        try:
            value = self.hyper.check(float(event.new))
        except ValueError as error:
            text = str(error) if str(error).startswith("expected") else f"expected a number, got {event.new[:20]!r}"
            self.error.param.update(object=text, visible=True)
            return
        self._turn(value)

    def _turn(self, value: Any) -> None:
        self.value, self._quiet = value, True
        try:
            if self.box is not None:
                self.box.value = words(value)
                self.slider.value = to_slider(self.hyper, value)
                self.error.visible = False
        finally:
            self._quiet = False
        self.turned(value)

"""Panes of figures: Plotly that keeps off a phone's titles, and one without the checks for live figures of our own."""

from types import SimpleNamespace
from typing import Any

import panel as pn
from bokeh.document import Document
from bokeh.models import CustomJS

TOUCH = "@media (hover: none) { .modebar { display: none !important; } }"
"""Plotly's buttons appear under a mouse; without one they would stand over the title all the time."""


FORGIVING = """
const relayout = window.Plotly?.relayout
if (relayout && !relayout.forgives) {
  window.Plotly.relayout = (plot, ...rest) => plot._fullLayout ? relayout(plot, ...rest) : Promise.resolve(plot)
  window.Plotly.relayout.forgives = true
}
"""


def forgive_resizing(doc: Document) -> None:
    """Let the plots of a page be resized when they are gone, which does nothing.

    Panel (1.9.4) resizes a plot a moment after its place has changed; when its tab has been left meanwhile, Plotly has
    let go of it and raises in the browser.
    """
    doc.js_on_event("document_ready", CustomJS(code=FORGIVING))


class Plot(pn.pane.Plotly):
    """A Plotly pane whose buttons stay away where there is no mouse."""

    def __init__(self, object: Any = None, **params: Any) -> None:
        super().__init__(object, stylesheets=[TOUCH], **params)


class LivePlot(Plot):
    """A Plotly pane that takes a dict figure as it is.

    Panel makes a `go.Figure` of it first, which checks every value and adds a template of 7 KB to every message: two
    thirds of the time of an update, on the loop that all pages share.
    """

    def _to_figure(self, obj: Any) -> Any:
        return SimpleNamespace(_layout=obj["layout"], _data=obj["data"]) if isinstance(obj, dict) else obj

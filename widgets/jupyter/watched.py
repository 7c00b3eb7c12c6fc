"""A live picture of a watched loop in a notebook: a Plotly figure that is drawn anew while the loop runs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.watching.run import Watch

SECONDS = 0.5
POINTS = 1000


def watch_view(run: Watch, names: Sequence[str] = ("loss", "gradient_norm"), *, show: Any = None) -> Callable[[], None]:
    """Show curves of a watched loop below the cell, at most twice a second while the loop runs.

    Args:
        run: what `wb.watch` returned; call this before the loop, inside its `with` or before it.
        names: variables of `run.record()`, one curve each; one that is not recorded yet is left out until it is.
        show: takes a figure and returns something whose `update(figure)` replaces it; None: IPython's display.

    Returns:
        A function that draws what there is now; call it after the loop for its last step.
    """
    show = show or _display
    shown = show(_figure(run, names))
    drawn = 0.0

    def draw() -> None:
        nonlocal drawn
        shown.update(_figure(run, names))
        drawn = time.monotonic()

    run.listen(lambda _: draw() if time.monotonic() - drawn >= SECONDS else None)
    return draw


def _display(figure: go.Figure) -> Any:
    from IPython.display import display

    shown = display(figure, display_id=True)
    if shown is None:
        raise RuntimeError("expected a notebook, got a plain Python session: give `show`, or use run.listen")
    return shown


def _figure(run: Watch, names: Sequence[str]) -> go.Figure:
    """One row a name, over steps; long curves are drawn by every n-th of their points."""
    figure = make_subplots(rows=len(names), shared_xaxes=True, vertical_spacing=0.05)
    record = run.record()
    for row, name in enumerate(names, 1):
        figure.update_yaxes(title_text=name.replace("_", " "), row=row)
        if name in record and record[name].dims == ("run", "step"):
            curve = record[name][0].dropna("step")
            curve = curve[:: max(1, -(-curve.sizes["step"] // POINTS))]
            if curve.size:
                figure.add_scatter(x=curve["step"].values, y=curve.values, name=name, row=row, col=1)
    figure.update_xaxes(title_text="step", row=len(names))
    title = f"step {run.index:,}; watching takes {100 * run.share:.0f} % of the time"
    return figure.update_layout(title=title, height=180 * len(names) + 100, showlegend=False)

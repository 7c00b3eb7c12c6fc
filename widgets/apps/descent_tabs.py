"""What stands beside the picture of the Descent app. A tab draws when it is open: `draw()`, on the page's own loop."""

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.descent_ahead import STEPS
from widgets.apps.descent_desk import fan_names, method_name
from widgets.apps.descent_paths import parts_of
from widgets.apps.descent_record import path_record
from widgets.apps.plot import LivePlot, Plot
from widgets.apps.shell import FIELD, GAP
from workbench import figures

if TYPE_CHECKING:
    from widgets.apps.descent_view import DescentShell

PLOT = {"config": {"displaylogo": False, "responsive": True}, "sizing_mode": "stretch_both", "margin": 0}
SIDES = {"8 × 8": 8, "16 × 16": 16, "24 × 24": 24, "32 × 32": 32}
COUNTS = {"17 values": 17, "33 values": 33, "64 values": 64}


class Tab:
    """One tab; `often` ones are drawn while a session plays, up to six times a second."""

    title = ""
    often = False

    def __init__(self, shell: "DescentShell") -> None:
        self.shell, self.desk = shell, shell.desk
        self.view = self.make()

    @property
    def theme(self) -> str:
        """light or dark."""
        return "dark" if getattr(self.shell, "dark", False) else "light"

    def make(self) -> Any:
        """The view, empty."""
        raise NotImplementedError

    def draw(self) -> None:
        """Bring it up to date."""

    def refill(self) -> None:
        """Other methods or another surface: menus anew."""


class CurvesTab(Tab):
    """Loss and gradient norm of every method, one under the other."""

    title, often = "Curves", True

    def make(self) -> Any:
        self.panes = [LivePlot(None, min_height=200, **PLOT) for _ in range(2)]
        return pn.Column(*self.panes, sizing_mode="stretch_both", margin=0)

    def draw(self) -> None:
        for pane, figure in zip(self.panes, self.desk.curve_figures(self.theme), strict=True):
            pane.object = figure


class FanTab(Tab):
    """The next steps under other values of one hyperparameter."""

    title, often = "Fan", True

    def make(self) -> Any:
        words = (
            f"The next {STEPS} steps under other values of one hyperparameter, drawn in the picture from dark (low) "
        )
        words += "to bright (high). It follows the slider, and every step while paused."
        self.on = pmui.Switch(label="Show the fan", value=False, margin=(8, 0))
        self.label = pmui.Select(label="Method", **FIELD)
        self.name = pmui.Select(label="Hyperparameter", **FIELD)
        self.count = pmui.Select(label="Values", options=COUNTS, value=33, **FIELD)
        self.pane = LivePlot(None, min_height=220, **PLOT)
        self._quiet = False
        self._drawn: Any = None
        self.refill()
        self.on.param.watch(lambda event: self._choose(on=event.new), "value")
        self.label.param.watch(lambda event: self._chose_method(), "value")
        self.name.param.watch(lambda event: self._choose(name=event.new), "value")
        self.count.param.watch(lambda event: self._choose(count=event.new), "value")
        menus = pn.Row(self.label, self.name, self.count, sizing_mode="stretch_width", margin=0, styles=GAP)
        return pn.Column(pmui.Typography(words, variant="body2"), self.on, menus, self.pane, sizing_mode="stretch_both")

    def refill(self) -> None:
        choice, self._quiet = self.desk.fan_choice, True
        self.label.param.update(options=self.desk.labels, value=choice["label"])
        names = fan_names(parts_of(self.desk.session)[choice["label"]])
        self.name.param.update(options=names, value=choice["name"] if choice["name"] in names else names[0])
        self._quiet = False

    def _chose_method(self) -> None:
        if not self._quiet:
            names, self._quiet = fan_names(parts_of(self.desk.session)[self.label.value]), True
            keep = self.name.value if self.name.value in names else names[0]
            self.name.param.update(options=names, value=keep)
            self._quiet = False
            self._choose(label=self.label.value, name=keep)

    def _choose(self, **choice: Any) -> None:
        if not self._quiet:
            self.desk.show_fan(**choice)

    def draw(self) -> None:
        made = self.desk.fan_result
        key = (id(made), self.theme)
        if key == self._drawn:
            return
        self._drawn = key
        self.pane.object = None if made is None else self._figure(made)

    def _figure(self, made: Any) -> dict[str, Any]:
        known = self.desk.objective.minimum is not None
        lost = int((made.diverged >= 0).sum())
        title = f"{'loss − minimum' if known else 'loss'} after {STEPS} steps from step {made.first:,}"
        title += f"<br>{lost} of {len(made.values)} diverge" if lost else ""
        gaps, line = self.desk.gap(made.losses), {"name": made.label, "markers": True}
        line |= {"steps": made.values, "values": gaps}
        line["colour"] = self.shell.colour(made.label)
        look = {"x_title": f"{made.name} (now {made.now:.4g})", "x_log": made.log, "cursor": made.now}
        return curves([line], title=title, log=known, theme=self.theme, **look)


class HeatTab(Tab):
    """Final losses over two hyperparameters of one method."""

    title = "Heat map"

    def make(self) -> Any:
        words = "Loss after so many steps from the start, over two hyperparameters; the others as they stand. "
        words += "Click a cell to take its values."
        self.label = pmui.Select(label="Method", **FIELD)
        self.x, self.y = pmui.Select(label="Across", **FIELD), pmui.Select(label="Up", **FIELD)
        self.side = pmui.Select(label="Cells", options=SIDES, value=24, **FIELD)
        self.steps = pmui.IntInput(label="Steps", value=200, start=1, end=5000, step=50, **FIELD)
        self.run = pmui.Button(label="Draw heat map", size="small", variant="contained", margin=(8, 8, 8, 0))
        self.stop = pmui.Button(label="Cancel", size="small", variant="outlined", margin=(8, 0), disabled=True)
        self.bar = pmui.LinearProgress(value=0, visible=False, sizing_mode="stretch_width", variant="determinate")
        self.pane = Plot(None, min_height=360, **PLOT)
        self.label.param.watch(lambda event: self._names(), "value")
        self.run.on_click(lambda event: self._begin())
        self.stop.on_click(lambda event: self.desk.cancel_heat())
        self.pane.param.watch(self._clicked, "click_data")
        self._drawn: Any = None
        self.refill()
        rows = [
            pn.Row(*row, sizing_mode="stretch_width", margin=0, styles=GAP)
            for row in ((self.label, self.x, self.y), (self.side, self.steps))
        ]
        buttons = pn.Row(self.run, self.stop, margin=0)
        return pn.Column(
            pmui.Typography(words, variant="body2"), *rows, buttons, self.bar, self.pane, sizing_mode="stretch_both"
        )

    def refill(self) -> None:
        labels = self.desk.labels
        self.label.param.update(options=labels, value=self.label.value if self.label.value in labels else labels[-1])
        self._names()

    def _names(self) -> None:
        names = fan_names(parts_of(self.desk.session)[self.label.value])
        for menu, first in ((self.x, names[0]), (self.y, names[min(1, len(names) - 1)])):
            menu.param.update(options=names, value=menu.value if menu.value in names else first)

    def _begin(self) -> None:
        steps, side = self.steps.value or 200, self.side.value
        self.desk.draw_heat(self.label.value, self.x.value, self.y.value, steps=steps, side=side)

    def draw(self) -> None:
        job = self.desk.heat_map
        busy = job is not None and job.done < 1 and not job.cancelled
        self.bar.param.update(visible=busy, value=int(100 * job.done) if job else 0)
        self.stop.disabled = not busy
        key = (id(job), job is not None and job.done == 1, self.theme)
        if key != self._drawn:
            self._drawn = key
            self.pane.object = self._figure(job) if job is not None and job.done == 1 else None

    def _figure(self, job: Any) -> Any:
        known = self.desk.objective.minimum is not None
        title = f"{job.label}: loss after {job.steps:,} steps"
        ceiling = float(self.desk.gap(self.desk.start_loss))
        return figures.heatmap(
            self.desk.gap(job.losses),
            job.xs,
            job.ys,
            xname=job.names[0],
            yname=job.names[1],
            xlog=job.logs[0],
            ylog=job.logs[1],
            diverged=job.diverged,
            name="loss − minimum" if known else "loss",
            title=title,
            ceiling=ceiling if ceiling > 0 else None,
            theme=self.theme,
        )

    def _clicked(self, event: Any) -> None:
        job, points = self.desk.heat_map, (event.new or {}).get("points") or []
        if job is None or not points or job.label not in self.desk.labels:
            return
        for name, values, place in zip(job.names, (job.xs, job.ys), ("x", "y"), strict=True):
            near = values[int(np.abs(values - float(points[0][place])).argmin())]
            self.desk.turn(f"{job.label}.{name}", float(near))


class SpaceTab(Tab):
    """The surface in three dimensions, with the paths on it."""

    title = "3-D"

    def make(self) -> Any:
        self.pane = Plot(None, min_height=320, **PLOT)
        self._drawn: Any = None
        return pn.Column(self.pane, sizing_mode="stretch_both", margin=0)

    def draw(self) -> None:
        session = self.desk.session
        key = (id(session), session.index, self.theme)
        if key != self._drawn:
            self._drawn = key
            record = path_record(self.desk)
            self.pane.object = figures.surface3d(self.desk.objective, record, size=72, theme=self.theme)


class AboutTab(Tab):
    """What the surface and the methods are, and where they come from."""

    title = "About"

    def make(self) -> Any:
        self.text = pn.pane.Markdown("", sizing_mode="stretch_width", margin=(0, 8))
        self.refill()
        return pn.Column(self.text, sizing_mode="stretch_both", scroll=True, margin=0)

    def refill(self) -> None:
        objective = self.desk.objective
        found = [f"### {_escaped(objective.title)}", _doc(objective)]
        if objective.minima:
            points = ", ".join(f"({x:.4g}, {y:.4g})" for x, y in objective.minima)
            found.append(f"Minimum {objective.minimum:.6g} at {points}.")
        elif objective.minimum is None:
            found.append("Its minimum is not known, so curves show the loss itself.")
        rows = {row.name: row for row in wb.catalogue("optimizers")}
        for name in dict.fromkeys(method_name(label) for label in self.desk.labels):
            found += [f"### {rows[name].title}", _doc(rows[name].make)]
            if "Source:" not in rows[name].doc:
                found.append(f"Source: {_escaped(rows[name].source)}")
        self.text.object = "\n\n".join(found)


def _doc(thing: Any) -> str:
    return _escaped(inspect.getdoc(thing) or "")


def _escaped(text: str) -> str:
    """Text whose signs Markdown would take for its own."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|" else sign for sign in text)

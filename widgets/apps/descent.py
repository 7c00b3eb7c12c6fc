"""Descent: optimizers side by side on a surface."""

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import torch

import workbench as wb
from widgets.apps.desk import Desk
from widgets.apps.shell import FIELD, Shell
from widgets.controls import HyperControl
from widgets.player import Frame, LegendEntry, Marker, Paths, Points, Scene, thin
from workbench.catalogue import find, find_objective

MOST = 6
MARKS = ("dot", "square", "triangle", "diamond", "plus", "star")


class DescentDesk(Desk):
    """Up to six optimizers from one start on one surface."""

    name = "descent"
    title = "Descent"

    def default_settings(self) -> dict[str, Any]:
        return {"surface": "rosenbrock", "methods": ["sgd", "momentum", "adam"], "start": None, "seed": 0}

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        methods = list(settings["methods"])
        if not 1 <= len(methods) <= MOST:
            raise ValueError(f"expected 1 to {MOST} optimizers, got {len(methods)}")
        for name in methods:
            find("optimizers", "an optimizer", name)
        self.objective = find_objective(settings["surface"])
        if self.objective.dim != 2:
            raise ValueError(f"expected a surface of two coordinates, got {self.objective.dim}")
        return {**settings, "methods": methods}

    def build(self) -> wb.Session:
        parts = {name: wb.descent(self.objective, name) for name in self.settings["methods"]}
        start = self.settings["start"]
        self.trails: dict[int, np.ndarray] = {}
        return wb.Session(wb.side_by_side(parts), seed=self.settings["seed"], start=start)

    def click(self, x: float, y: float) -> None:
        self.do(lambda: self._start(x, y))

    def _start(self, x: float, y: float) -> None:
        hyper = self.session.hyper
        self.settings = {**self.settings, "start": [float(f"{x:.4g}"), float(f"{y:.4g}")]}
        self._rebuild(keep=True)

    def scene(self) -> Scene:
        objective = self.objective
        (x0, x1), (y0, y1) = objective.domain
        n = 128
        xs, ys = np.linspace(x0, x1, n), np.linspace(y0, y1, n)
        grid = torch.tensor(np.stack(np.meshgrid(xs, ys)), dtype=torch.float64)
        z = objective(grid).numpy()
        if objective.log:
            z = np.log10(1e-3 + z - z.min())
        legend = [LegendEntry(name, i, MARKS[i]) for i, name in enumerate(self.session.routine.parts)]
        markers = [Marker(*m, label="minimum") for m in objective.minima]
        return Scene(x=(x0, x1), y=(y0, y1), field=z, field_label="log10 loss" if objective.log else "loss", markers=markers, legend=legend)

    def frame(self, session=None) -> Frame:
        session = session or self.session
        index, state = session.now
        x = torch.cat([part.x for part in state.parts], 1).cpu().numpy()
        layers = [Points(x[0, i : i + 1], x[1, i : i + 1], colour=i, radius=6, marker=MARKS[i]) for i in range(x.shape[1])]
        return Frame(step=index, layers=layers, caption=f"step {index}")


class DescentShell(Shell):
    desk: DescentDesk

    def controls(self):
        surfaces = {row.title: row.name for row in wb.catalogue("surfaces")}
        self.surface = pmui.Select(label="Surface", options=surfaces, value=self.desk.settings["surface"], **FIELD)
        self.surface.param.watch(lambda event: self.desk.choose(surface=event.new, start=None), "value")
        self.cards = pn.Column(sizing_mode="stretch_width", margin=0)
        self._cards()
        return [self.surface, self.cards]

    def _cards(self):
        session = self.desk.session
        self.hyper = {}
        found = []
        for label, part in session.routine.parts.items():
            rows = []
            for name, hyper in part.hypers.items():
                full = f"{label}.{name}"
                control = HyperControl(hyper, session.hyper[full], lambda value, full=full: self.desk.turn(full, value))
                self.hyper[full] = control
                rows.append(control.view)
            found.append(pmui.Card(*rows, title=label, collapsed=False, sizing_mode="stretch_width", margin=(4, 0)))
        self.cards[:] = found

    def refresh(self):
        values = self.desk.session.hyper
        for name, control in self.hyper.items():
            if name in values:
                control.show(values[name])

    def _settings(self):
        self._cards()
        super()._settings()

    def tabs(self):
        return [("Curves", pn.pane.Markdown("soon"))]


def page(query: dict[str, str], runs: Any) -> Shell:
    """The app of one visitor."""
    return DescentShell(DescentDesk(runs=runs, query=query))

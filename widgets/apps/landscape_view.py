"""The page of the Landscape app: what learns, the plane, sliders; curvature, the path, surface, spectrum, between."""

import functools
import html
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.drawing import DrawingShell, choice, folded, heading, named
from widgets.apps.landscape import COLUMN, LABELS, OWN, LandscapeDesk
from widgets.apps.landscape_curves import FEW, along_path, off_plane, sharpness
from widgets.apps.landscape_measures import MEANING, edge, known
from widgets.apps.landscape_ways import MEMORY, STATES, WORTH
from widgets.apps.plot import LivePlot
from widgets.apps.settings import SEED
from widgets.apps.shell import FIELD, TIP
from widgets.apps.slices import FINEST, PARTS, PLANES
from widgets.apps.tables import TABLE, heads, row, upright
from widgets.sliders import HyperControl
from workbench import landscapes
from workbench.figures.landscapes import FLOOR
from workbench.problems.losses import OF_CLASSES
from workbench.problems.networks import MLP

LOSSES = {
    "squared": "Squared error, ½ |outputs − one-hot|²",
    "cross_entropy": "Cross-entropy",
    "mse": "Mean squared error",
}
ABOUT = """
**The picture.** The loss of the first training's network at every point of a plane through its parameters, as colours
and contours. The lines are the ways of the trainings as they fall on that plane; the marks are where they stand.

**What it does not show.** Parameters have thousands of dimensions, a plane has two. The title says how much of the
paths' variance the plane holds, on which samples the loss was taken, and its largest standard error (of the mean over
samples). Under the picture stands how far each training is from the plane, as a share of its distance from the plane's
middle. The tab *Path* puts the true loss beside the loss at the point of the plane below it: where the two part, the
contours around the path do not tell its loss.

**Planes.** *PCA*: the two directions in which the paths of all trainings vary most. *Ends*: through the common start
and where A and B stand. *Sharpest*: the two top eigenvectors of the Hessian at A. *Random*: two normal directions
around A, each filter (row of weights) or layer scaled to the norm that A's has, biases left as they are; or as drawn.
One plane serves all trainings, so they can be compared. It is laid anew when a path leaves it, when a run comes to
rest, and on demand; meanwhile it stays.

**Curvature.** Sharpness is λ₁, the largest eigenvalue of the Hessian of the loss over all training samples. Dashed: the
edge 2/lr above which a step along that direction overshoots and grows. With full batches, sharpness rises to it and
stays. Measuring takes at most a fifth of the time; what it takes stands below the curves. Of the other measurements,
whose rows below say what they are, those that take long come rarely while a run plays.

**Spectrum.** The density of all eigenvalues, by stochastic Lanczos quadrature from a few random vectors, each value
broadened; dotted: one standard error over those vectors to each side.

**Ways.** The loss along ways from A to B where they stand: straight; straight after B's hidden units are put in the
order that matches A's (the same function), by their weights or by what they answer; a curve and a bend trained to low
loss; with one hidden layer, over networks with half of their units. The barrier is the highest excess over the line
between the two ends' losses, on the grid shown.

**Averages.** Along each way: the mean of what is kept of its second half (as stochastic weight averaging does), and an
exponential moving average whose memory is chosen now. Across the trainings: the plain mean, and one in which every
parameter counts by its Fisher information (of squared error, the mean squared gradient of a sample).

**Geometry.** Of the polyline through the states that are kept, at most 120 of each way: a coarser record turns less.
Phases: states of a Gaussian hidden Markov model of fourteen norms and moments of the weights, as many as the Bayesian
criterion takes; it leans to many.
"""


WHOLE = ("autocorrelation", "effective_dimension")
GEOMETRY = {name: words for name, (words, _) in landscapes.MEASURES.items() if name not in WHOLE}
"""Measures of a way that have a value at every step of it, in words."""
ALSO = ("loss", "share", "overlap", "trace", "batch", "noise", "coherence")
"""Measurements that the second plot can show."""


class LandscapeShell(DrawingShell):
    """The page around a `LandscapeDesk`."""

    desk: LandscapeDesk

    def __init__(self, desk: LandscapeDesk) -> None:
        super().__init__(desk)
        plot = {"config": {"displaylogo": False, "responsive": True}, "sizing_mode": "stretch_both", "margin": 0}
        make = functools.partial(LivePlot, **plot)
        self.sharp, self.also = (make(min_height=h) for h in (240, 180))
        options = {words: name for name, (words, _) in MEANING.items() if name in ALSO}
        self.shown = choice("Also", options, "share", lambda value: self._draw())
        self.true, self.off = make(min_height=240), make(min_height=180)
        self.surface, self.density, self.ways = make(min_height=420), make(min_height=320), make(min_height=320)
        self.table, self.barriers, self.cost, self.worth, self.bends = (
            pn.pane.HTML("", stylesheets=[TABLE], sizing_mode="stretch_width", margin=(4, 8)) for _ in range(5)
        )
        self.geometry, self.phases = (make(min_height=h) for h in (240, 180))
        measures = {_short(words): name for name, words in GEOMETRY.items()}
        self.shape_of = choice("Measure", measures, "turning_angle", lambda value: self._draw())
        self._routine: Any = None
        desk.on("curves", lambda: self.later("curves", self._draw))
        desk.on("scene", lambda: self.later("scene", self._laid))

    def _laid(self) -> None:
        if not self.desk.closed:
            self.uploaded()
            self.player.show(scene=self.desk.scene(), frame=self.desk.picture())

    # ---- controls

    def controls(self) -> list:
        """What learns, on which plane it is looked at, and every slider."""
        whole = {"sizing_mode": "stretch_width", "margin": 0}
        self.problem, self.columns, self.view, self.sliders = (pn.Column(**whole) for _ in range(4))
        words = "Weights of this same network, such as Training gives. At most 20 MB; not part of the link."
        label, take = "Add a checkpoint (.safetensors)", self.desk.add_checkpoint
        self.file, self.answer = self.upload(label, ".safetensors", words, take)
        self.forget = pmui.Button(label="Forget checkpoints", variant="text", visible=False, **FIELD)
        self.forget.on_click(lambda event: self.desk.drop_checkpoints())
        self._show_all()
        return [self.problem, self.columns, self.view, self.sliders]

    def _show_all(self) -> None:
        self._show_problem()
        self._show_columns()
        self._show_view()
        self._show_sliders()

    def _setting(self, label: str, name: str, options: dict[str, Any]) -> Any:
        return choice(label, options, self.desk.settings[name], lambda v: self.desk.choose(**{name: v}))

    def _own(self, name: str, options: dict[str, str]) -> dict[str, str]:
        return {"Your own": OWN} if self.desk.settings[name] == OWN else options

    def _show_problem(self) -> None:
        desk = self.desk
        lead = next(iter(desk.parts.values()))
        losses = {words: name for name, words in LOSSES.items() if (name in OF_CLASSES) == bool(lead.data.classes)}
        given = lead.loss_given if isinstance(lead.loss_given, str) else OWN
        loss = choice("Loss", self._own("loss", losses), given, lambda v: desk.choose(loss=v))
        net = [self._init(hyper) for hyper in (*MLP.hypers.values(), SEED)]
        self.problem[:] = [
            self._setting("Data", "data", self._own("data", _titles("datasets"))),
            self._setting("Model", "model", self._own("model", _titles("models"))),
            loss,
            folded("Network and seed", net if desk.settings["model"] == "mlp" else net[-1:]),
        ]

    def _init(self, hyper: wb.Hyper) -> Any:
        desk = self.desk
        chosen = lambda v: desk.do(lambda: desk._choose({hyper.name: v}), newest=f"choose {hyper.name}")  # noqa: E731
        return HyperControl(hyper, desk.settings[hyper.name], chosen).view

    def _show_columns(self) -> None:
        desk, options = self.desk, _titles("optimizers")
        cards = [
            choice(
                f"Optimizer {LABELS[i]}", options, {**COLUMN, **column}["optimizer"],
                functools.partial(self._optimizer, i),
            )
            for i, column in enumerate(desk.columns)
        ]  # fmt: skip
        look = {"size": "small", "variant": "text", "margin": (0, 4)}
        more = pmui.Button(label="Add a training", icon="add", disabled=len(cards) >= len(LABELS), **look)
        less = pmui.Button(label="Remove the last", icon="remove", disabled=len(cards) <= 1, **look)
        more.on_click(lambda event: desk.add_column())
        less.on_click(lambda event: desk.drop_column())
        buttons = pn.Row(more, less, margin=0, sizing_mode="stretch_width")
        self.columns[:] = [heading("Trainings side by side"), *cards, buttons]

    def _optimizer(self, i: int, name: str) -> None:
        self.desk.set_column(i, optimizer=name)

    def _show_view(self) -> None:
        desk, settings = self.desk, self.desk.settings
        words = "Lay the plane through where the trainings are now"
        again = pmui.Button(label="Lay the plane anew", icon="refresh", variant="outlined", description=words, **FIELD)
        again.on_click(lambda event: desk.do(desk.look))
        self.view[:] = [
            heading("The plane"),
            choice("Plane", _flipped(PLANES), settings["plane"], lambda v: desk.set_view(plane=v)),
            choice("Loss over", _flipped(PARTS), settings["part"], lambda v: desk.set_view(part=v)),
            choice("Points a side", {str(n): n for n in FINEST}, settings["points"], lambda v: desk.set_view(points=v)),
            again,
            self.file,
            self.answer,
            self.forget,
        ]

    def uploaded(self) -> None:
        self.forget.visible = bool(self.desk.checkpoints)

    def _show_sliders(self) -> None:
        self._routine = self.desk.session.routine
        self.sliders[:] = self.rates_first()

    def _settings(self) -> None:
        if self.desk.session.routine is not self._routine:
            self._show_all()
        super()._settings()

    # ---- tabs

    def tabs(self) -> list[tuple[str, Any]]:
        fill, scroll = {"sizing_mode": "stretch_both", "margin": 0}, {"overflow": "auto"}
        about = pn.pane.Markdown(ABOUT, sizing_mode="stretch_width", margin=(0, 8))
        spectrum = self._button("Work out the spectrum", "The density of the Hessian's eigenvalues, as it stands now")
        between = self._button("Connect A and B", "The loss along ways between A and B, as they stand now")
        spectrum.on_click(lambda event: self.desk.do(self.desk.show_spectrum))
        between.on_click(lambda event: self.desk.do(self.desk.show_between))
        average = self._button("Average the weights", "Along the ways, and across the trainings where they stand")
        shape = self._button("Measure the ways", "Their geometry so far, and phases of the weights' metrics")
        average.on_click(lambda event: self.desk.do(self.desk.show_averages))
        shape.on_click(lambda event: self.desk.do(self.desk.show_shapes))
        ways = self.shape_of, self.geometry, self.phases, self.bends
        memory = HyperControl(MEMORY, self.desk.settings["memory"], self.desk.set_memory).view
        return [
            ("Curvature", pn.Column(self.sharp, self.shown, self.also, self.table, self.cost, **fill, styles=scroll)),
            ("Path", pn.Column(self.true, self.off, **fill)),
            ("3-D", pn.Column(self.surface, **fill)),
            ("Spectrum", pn.Column(spectrum, self.density, **fill)),
            ("Ways", pn.Column(between, self.barriers, self.ways, **fill, styles=scroll)),
            ("Averages", pn.Column(average, memory, self.worth, **fill, styles=scroll)),
            ("Geometry", pn.Column(shape, *ways, **fill, styles=scroll)),
            ("About", pn.Column(about, **fill, styles=scroll)),
        ]

    @staticmethod
    def _button(label: str, words: str) -> Any:
        look = {"size": "small", "variant": "outlined", "margin": (6, 8), "stylesheets": [TIP]}
        return pmui.Button(label=label, description=words, **look)

    def page(self) -> Any:
        made = super().page()
        self.desk.do(self.desk.look)
        return made

    def draw_tab(self, active: int) -> None:
        draw = (
            self._draw_curvature, self._draw_path, self._draw_surface, self._draw_spectrum, self._draw_between,
            self._draw_averages, self._draw_shapes,
        )  # fmt: skip
        if active < len(draw):
            draw[active]()

    def _curves(self, series: list[dict[str, Any]], title: str, **more: Any) -> dict[str, Any]:
        return named(curves(series, title=title, theme=self.theme, **more))

    def _draw_curvature(self) -> None:
        desk, session = self.desk, self.desk.session
        steps, rows = found = desk.curvature.arrays(session)
        cursor, colours = session.index, self._colours()
        self.sharp.object = sharpness(session, found, list(desk.parts), colours, self.theme)
        name = self.shown.value
        series = [
            {"name": label, **known(steps, rows[name][:, i]), "colour": colours[i], "markers": len(steps) < FEW}
            for i, label in enumerate(desk.parts)
            if rows
        ]
        bounds = (0.0, 1.0) if name in ("share", "overlap", "coherence") else None
        title, log = MEANING[name][0], name == "loss"
        title = title[0].upper() + title[1:]
        self.also.object = self._curves(series, title, cursor=cursor, log=log, bounds=bounds)
        spent = desk.curvature if desk.curvature.cost else desk.resting
        share = 100 * min(1.0, spent.share)
        words = f"measured in {1000 * spent.cost:.0f} ms at each marked step, {share:.0f} % of the time"
        self.cost.object = f"<small>{words}; at most 20 % while it plays</small>"
        self.table.object = self._numbers(steps, rows)

    def _numbers(self, steps: Any, rows: dict[str, Any]) -> str:
        """The last measurement of every training."""
        if not rows:
            return "<p>Press Play: curvature is measured as it goes.</p>"
        desk, columns = self.desk, {}
        for i, (label, colour) in enumerate(zip(desk.parts, self._colours(), strict=False)):
            limit = edge(desk.session, label, steps[-1:])[0]
            title = f"<span style='color:{colour}' title='{html.escape(desk.titles()[i])}'>●&nbsp;{label}</span>"
            columns[title] = {name: _last(rows[name][:, i]) for name in rows} | {"edge": limit}
        return upright(columns, {**MEANING, **self._earlier(steps, rows)}, "–")

    @staticmethod
    def _earlier(steps: Any, rows: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """What was measured last at an earlier step than the rest, with that step beside its name."""
        found = {}
        for name, (words, why) in MEANING.items():
            at = steps[np.isfinite(rows[name]).any(1)] if name in rows else steps[:0]
            if len(at) and at[-1] < steps[-1]:
                found[name] = (f"{words}, step {at[-1]:,}", why)
        return found

    def _draw_path(self) -> None:
        survey = self.desk.survey
        if survey is not None and survey.paths is None:
            return  # until the paths are known anew, what was known stays
        look = survey and survey.paths, list(self.desk.parts), self._colours(), self.theme
        self.true.object, self.off.object = along_path(*look), off_plane(*look)

    def _draw_surface(self) -> None:
        picture = self.desk.plane_picture
        if picture.grid is None:
            return
        heights, label = picture.heights()
        axis = {"color": "#e0e0e0" if self.theme == "dark" else "#303030", "showbackground": False}
        scene = {
            "xaxis": {**axis, "title": {"text": "across"}},
            "yaxis": {**axis, "title": {"text": "up"}},
            "zaxis": {**axis, "title": {"text": f"loss, {label}"}},
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.5, "y": -1.7, "z": 1.0}},
        }
        data = {
            "type": "surface", "x": picture.grid.a.values, "y": picture.grid.b.values, "z": heights,
            "colorscale": "Viridis", "showscale": False,
        }  # fmt: skip
        layout = {
            "scene": scene, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "uirevision": "surface",
            "paper_bgcolor": "rgba(0,0,0,0)", "font": {"color": axis["color"]},
        }  # fmt: skip
        self.surface.object = {"data": [data], "layout": layout}

    def _draw_spectrum(self) -> None:
        colours, series = self._colours(), []
        for i, label in enumerate(self.desk.parts):
            found = self.desk.spectra.get(label)
            if found is not None:
                name = f"{label} at step {found.attrs['step']:,}"
                x, y, error = (found[part].values for part in ("eigenvalue", "density", "density_error"))
                series.append({"name": name, "steps": x, "values": np.maximum(y, FLOOR), "colour": colours[i]})
                for side in (y - error, y + error):
                    thin = {"dash": "dot", "width": 0.8, "opacity": 0.6, "legend": False, "colour": colours[i]}
                    series.append(
                        {"name": f"{label} ± standard error", "steps": x, "values": np.maximum(side, FLOOR), **thin}
                    )
        title = "Density of the Hessian's eigenvalues"
        self.density.object = self._curves(series, title, log=True, x_title="eigenvalue")

    def _draw_between(self) -> None:
        colours, series, lines = self._colours(), [], []
        meaning = {
            "barrier": ("barrier", "Highest excess over the line between the ends' losses, on the grid of t shown."),
            "error": ("± std. error", "Standard error of that excess over the samples."),
        }
        for i, (name, found) in enumerate(self.desk.between.items()):
            series.append(
                {"name": name, "steps": found.t.values, "values": found.loss.values, "colour": colours[(i + 3) % 8]}
            )
            values = [float(found.attrs["barrier"]), float(found.attrs["barrier_error"])]
            lines.append(row(html.escape(name), values, meaning, "–"))
        head = f"<tr><th></th>{heads(meaning)}</tr>"
        self.barriers.object = f"<table class='plain'>{head}{''.join(lines)}</table>" if lines else ""
        self.ways.object = self._curves(series, "Loss on the way from A (t = 0) to B (t = 1)", x_title="t")

    def _draw_averages(self) -> None:
        desk, colours = self.desk, self._colours()
        if not desk.averages:
            self.worth.object = "<p>Averages of what is kept of the ways, placed on the picture once worked out.</p>"
            return
        lines = []
        for one in desk.averages:
            dot = f"<span style='color:{colours[one.training if one.training >= 0 else 7]}'>●</span>"
            values = [one.loss, one.error, one.heldout, one.score]
            lines.append(row(f"{dot}&nbsp;{html.escape(one.name)}", values, WORTH, "–"))
        words = f"At step {desk.averaged_at:,}. Means of weights are no means of functions: units may stand in another "
        words += "order in each training, and what is between two valleys is often high."
        head = f"<caption>{words}</caption><tr><th></th>{heads(WORTH)}</tr>"
        self.worth.object = f"<table class='plain'>{head}{''.join(lines)}</table>"

    def _draw_shapes(self) -> None:
        desk, colours = self.desk, self._colours()
        found, phases = desk.shapes.get("geometry"), desk.shapes.get("phases")
        name = self.shape_of.value
        drawn: dict[str, list[dict[str, Any]]] = {"geometry": [], "phases": []}
        for i, label in enumerate(desk.parts):
            look = {"name": label, "colour": colours[i]}
            if found is not None:
                drawn["geometry"].append({**look, **known(found.step.values, found[name].values[i])})
            if phases is not None:
                drawn["phases"].append({**look, "steps": phases.step.values, "values": phases.states.values[i] + 1})
        self.geometry.object = self._curves(drawn["geometry"], _short(GEOMETRY[name]))
        title = "Phase of the weights' metrics (latent state)"
        self.phases.object = self._curves(drawn["phases"], title, bounds=(0.5, max(STATES) + 0.5))
        self.bends.object = self._directions(found)

    def _directions(self, found: Any) -> str:
        """Numbers of whole ways."""
        if found is None:
            return "<p>Length, turning and curvature of the ways, of what is kept of them.</p>"
        columns = {}
        meaning = {"dimension": ("effective dimension", "Participation ratio of the way's principal variances.")}
        for lag in found.lag.values:
            why = f"Mean cosine of two steps between kept states, {lag} apart: from -1, back and forth, to 1, straight."
            meaning[f"lag {lag}"] = (f"autocorrelation, lag {lag}", why)
        for i, label in enumerate(self.desk.parts):
            lags = {f"lag {lag}": float(v) for lag, v in zip(found.lag.values, found.autocorrelation[i], strict=True)}
            columns[label] = {"dimension": float(found.effective_dimension[i]), **lags}
        return upright(columns, meaning, "–")


def _short(words: str) -> str:
    """What a measure is, without its formula."""
    head = words.split(",")[0].split(":")[0]
    return head[0].upper() + head[1:]


def _titles(family: str) -> dict[str, str]:
    return {entry.title: entry.name for entry in wb.catalogue(family)}


def _flipped(options: dict[str, str]) -> dict[str, str]:
    return {words[0].upper() + words[1:]: name for name, words in options.items()}


def _last(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")

"""The page of the Training app: what is trained, its sliders, curves, mistakes, layers, confusion."""

import html
import time
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.drawing import DrawingShell, choice, heading, named
from widgets.apps.landscape_curves import FEW, along_path, sharpness
from widgets.apps.landscape_measures import known
from widgets.apps.plot import LivePlot
from widgets.apps.settings import SEED
from widgets.apps.slices import PARTS, PLANES
from widgets.apps.tables import TABLE
from widgets.apps.training import BACK, OWN, TrainingDesk, file_name, trained
from widgets.player import Frame, Scene, ServedPlayer
from widgets.sliders import HyperControl
from workbench.problems.networks import MLP

SLOW_SECONDS = 0.5
"""Mistakes and confusion are drawn at most twice a second while a run plays."""
MUTED = {"light": "#8a949e", "dark": "#6f7983"}
ABOUT = """
**The picture.** Every mark is one held-out sample, which the model never trains on. With three classes or more each
class has a corner on the circle and a sample stands at Σ p(class) · corner, p being the softmax of the model's outputs:
sure answers lie in corners, doubt between. With two classes the axis is p of the second class; height means nothing.
Values are drawn as predicted against true. Colour and shape say the true class, × that the model says another. Click a
mark to name it.

**Curves.** The thin line is the loss of each step's minibatch, before that step. Training and held-out loss are means
over all samples of each part, measured at the marked steps with dropout off and batch norm on its running means.
Accuracy is the share classified right; R² = 1 − Σ(y − ŷ)² / Σ(y − mean y)². Dashed and pale: other lines of time, left
futures among them, by their letter.

**Layers.** Euclidean norm of every block of weights, and of the gradient of the loss over *all* training samples (not
of a minibatch) with respect to it.

**Curvature.** Sharpness is λ₁, the largest eigenvalue of the Hessian of the loss over all training samples, measured
while this tab is open in at most a fifth of the time. Dashed: the edge 2 (1 + momentum) / lr above which a step along
that direction grows instead of shrinking; for Adam and AdamW both are those of the Hessian after their scaling. The app
*Landscape* shows the loss around the path, and several trainings on one plane.

**Slice.** The loss on a plane through the parameters, and the way so far as it falls on it; dashed: other lines of
time. The title says how much of the way's variance the plane holds, the words in the picture how far from it the run
stands, as a share of its distance from the start. Where the curves below part, the contours do not tell the run's loss.

**Stopping.** A playing run stops when its minibatch loss is more than 1,000 times the first one, or not finite.
Go back, branch with a lower rate. Nothing is lost: every step can be reached again, to the same bits.

**Data.** Inputs are standardised by their training part (mean 0, standard deviation 1); so are values to predict.
A fifth is held out by a fixed shuffle. Uploaded files stay in this page's memory and go when it is closed; a link to
such a run does not carry the file.
"""


class TrainingShell(DrawingShell):
    """The page around a `TrainingDesk`."""

    desk: TrainingDesk

    def __init__(self, desk: TrainingDesk) -> None:
        super().__init__(desk)
        plot = {"config": {"displaylogo": False, "responsive": True}, "sizing_mode": "stretch_both", "margin": 0}
        self.loss, self.scores = LivePlot(**plot, min_height=220), LivePlot(**plot, min_height=180)
        self.weights, self.gradients = LivePlot(**plot, min_height=200), LivePlot(**plot, min_height=200)
        self.sharp, self.top = LivePlot(**plot, min_height=220), LivePlot(**plot, min_height=180)
        self.spent = pn.pane.HTML("", margin=(0, 8), styles={"opacity": "0.8", "font-size": "12px"})
        self.log = pmui.Switch(label="logarithmic loss", value=True, margin=(0, 8), size="small")
        self.log.param.watch(lambda event: self._draw(), "value")
        self.headline = pn.pane.HTML("", margin=(4, 8), sizing_mode="stretch_width")
        self.tiles = ServedPlayer(sizing_mode="stretch_both", min_height=360, margin=0)
        self.worst = pn.pane.HTML("", stylesheets=[TABLE], sizing_mode="stretch_width", margin=(0, 8))
        self.matrix = pn.pane.HTML("", stylesheets=[TABLE], sizing_mode="stretch_width", margin=8)
        self.cost = pn.pane.HTML("", margin=(0, 8), styles={"opacity": "0.8", "font-size": "12px"})
        self.plane = ServedPlayer(sizing_mode="stretch_both", min_height=300, margin=0)
        self.true = LivePlot(**plot, min_height=170)
        self.seen = pn.pane.HTML("", margin=(0, 8), styles={"opacity": "0.8", "font-size": "12px"})
        self._drawn = 0.0
        self._routine: Any = None
        desk.on("curves", lambda: self.later("curves", self._draw))
        desk.on("scene", lambda: self.later("scene", self._draw_plane))

    # ---- controls

    def controls(self) -> list:
        """Data, model, optimizer and every hyperparameter."""
        self.sliders = pn.Column(sizing_mode="stretch_width", margin=0)
        self.choices = pn.Column(sizing_mode="stretch_width", margin=0)
        words = "CSV: the last column is the target. NPZ: arrays x and y. At most 20 MB."
        self.file, self.answer = self.upload("Upload your own (.csv, .npz)", ".csv,.npz", words, self.desk.upload)
        self._show_choices()
        self._show_sliders()
        return [self.choices, heading("Turn while it trains"), self.sliders]

    def _show_choices(self) -> None:
        """What a session starts from; any change starts a new one."""
        desk = self.desk
        found: list[Any] = []
        found.append(self._select("Data", "data", self._data_options()))
        if desk.own["data"] is None:
            found += [self.file, self.answer]
        found.append(self._select("Model", "model", self._options("models", "model")))
        if desk.settings["model"] == "mlp":
            found += [self._init_control(hyper) for hyper in MLP.hypers.values()]
        found.append(self._select("Optimizer", "optimizer", self._options("optimizers", "optimizer")))
        found.append(self._init_control(SEED))
        self.choices[:] = found

    def _options(self, family: str, name: str) -> dict[str, str]:
        own = self.desk.own[name]
        mine = {f"Your own ({_called(own)})": OWN} if own is not None and not isinstance(own, str) else {}
        if name == "model" and mine:
            return mine
        return {**mine, **{row.title: row.name for row in wb.catalogue(family)}}

    def _data_options(self) -> dict[str, str]:
        if self.desk.own["data"] is not None and not isinstance(self.desk.own["data"], str):
            return {"Your own": OWN}
        return {**self._options("datasets", "data"), **{file_name(key): key for key in self.desk.uploads}}

    def _select(self, label: str, name: str, options: dict[str, str]) -> pmui.Select:
        return choice(label, options, self.desk.settings[name], lambda value: self.desk.choose(**{name: value}))

    def _init_control(self, hyper: wb.Hyper) -> Any:
        desk = self.desk

        def chosen(value: Any) -> None:
            desk.do(lambda: desk._choose({hyper.name: value}), newest=f"choose {hyper.name}")

        return HyperControl(hyper, desk.settings[hyper.name], chosen).view

    def _show_sliders(self) -> None:
        self._routine = self.desk.session.routine
        self.hyper = {}
        self.sliders[:] = [self.turnable(name) for name in self._routine.hypers]

    def refresh(self) -> None:
        super().refresh()
        advice = self.desk.advice
        self.advice.param.update(object=html.escape(advice), visible=bool(advice))

    def _settings(self) -> None:
        if self.desk.session.routine is not self._routine:
            self._show_choices()
            self._show_sliders()
        super()._settings()

    # ---- uploads

    def uploaded(self) -> None:
        self._show_choices()

    # ---- transport

    def _transport(self) -> Any:
        """The shared transport, and the two ways out of an explosion."""
        desk, look = self.desk, {"size": "small", "variant": "outlined", "margin": (4, 2)}
        back = pmui.Button(label=f"Back {BACK}", icon="fast_rewind", description=f"{BACK} steps back", **look)
        words = "Keep this line; a new one with lr / 2"
        half = pmui.Button(label="Branch at half the rate", icon="call_split", description=words, **look)
        back.on_click(lambda event: desk.retreat())
        half.on_click(lambda event: desk.halve())
        column = super()._transport()
        wide = {"margin": (2, 0), "sizing_mode": "stretch_width"}
        self.advice = pmui.Alert(object="", severity="warning", visible=False, **wide)
        column.extend([self.advice, pn.FlexBox(back, half, align_items="center", margin=0)])
        return column

    # ---- tabs

    def tabs(self) -> list[tuple[str, Any]]:
        fill = {"sizing_mode": "stretch_both", "margin": 0}
        about = pn.pane.Markdown(ABOUT, sizing_mode="stretch_width", margin=(0, 8))
        words = pn.pane.HTML(
            "The gradient is that of the loss over all training samples.", margin=(0, 8), styles={"font-size": "12px"}
        )
        scroll = {"overflow": "auto"}
        return [
            ("Curves", pn.Column(self.log, self.loss, self.scores, self.cost, **fill)),
            ("Mistakes", pn.Column(self.headline, self.tiles, self.worst, self.matrix, **fill, styles=scroll)),
            ("Layers", pn.Column(self.weights, self.gradients, words, **fill)),
            ("Curvature", pn.Column(self.sharp, self.top, self.spent, **fill)),
            (
                "Slice",
                pn.Column(
                    pn.Row(*self._views(), margin=(8, 0, 0, 0)), self.plane, self.seen, self.true, **fill, styles=scroll
                ),
            ),
            ("About", pn.Column(about, **fill, styles=scroll)),
        ]

    def _views(self) -> list:
        """Which plane, and the loss over what."""
        planes = {words.replace(" of A", "").replace("around A", "around here"): name for name, words in PLANES.items()}
        settings, narrow = self.desk.settings, {"margin": (4, 4)}
        plane = choice("Plane", planes, settings["plane"], lambda v: self.desk.set_view(plane=v))
        part = choice(
            "Loss over", {v: k for k, v in PARTS.items()}, settings["part"], lambda v: self.desk.set_view(part=v)
        )
        for one in (plane, part):
            one.param.update(**narrow)
        return [plane, part]

    def _turned_to(self, active: int) -> None:
        """Another tab is in front: curvature, and the loss around the run, are worked out while they are looked at."""
        desk = self.desk
        desk.curved, desk.sliced = active == CURVATURE, active == SLICED
        if desk.curved:
            desk.do(desk.look_back, newest="curvature")
        if desk.sliced and not desk.session.playing:
            desk.do(lambda: None, newest="slice")
        super()._turned_to(active)

    def close(self) -> None:
        super().close()
        self.tiles.close()
        self.plane.close()

    def restyle(self) -> None:
        self.tiles.theme = self.plane.theme = self.theme
        super().restyle()

    def draw_tab(self, active: int) -> None:
        draw = (self._draw_curves, self._draw_mistakes, self._draw_layers, self._draw_curvature, self._draw_slice)
        now = time.perf_counter()
        slow = active == MISTAKES and self.desk.session.playing and now - self._drawn < SLOW_SECONDS
        if active < len(draw) and not slow:
            self._drawn = now
            draw[active]()

    def _draw_curves(self) -> None:
        desk = self.desk
        self.cost.object = html.escape(f"Training and held-out curves {desk.costs}.")
        lines = [line for i, line in enumerate(desk.lines) if i != desk.live] + [desk.line]
        losses = [one for line in lines for one in self._losses(line)]
        scores = [one for line in lines for one in self._scores(line)]
        cursor, classes = desk.session.index, bool(desk.data.classes)
        log = self.log.value and not any(np.any(np.less(one["values"], 0)) for one in losses)
        loss = curves(losses, title="Loss, mean per sample", log=log, theme=self.theme, cursor=cursor)
        self.loss.object = named(loss)
        title = "Accuracy, share classified right" if classes else "R², share of the variance explained"
        bounds = None if classes else _r2_bounds(scores)
        self.scores.object = named(curves(scores, title=title, theme=self.theme, cursor=cursor, bounds=bounds))

    def _style(self, line: Any) -> dict[str, Any]:
        return {} if line is self.desk.line else {"dash": "dash", "opacity": 0.55, "width": 1.4}

    def _losses(self, line: Any) -> list[dict[str, Any]]:
        colours, live = self._colours(), line is self.desk.line
        tail = "" if live else f", line {line.label}"
        found = []
        steps, arrays = line.session.trace()
        if live and arrays:
            thin = {"colour": MUTED[self.theme], "width": 1.0, "opacity": 0.75}
            found.append({"name": "minibatch", "steps": steps, "values": arrays["loss"][:, 0], **thin})
        marks, rows = self.desk.measures.arrays(line.session)
        if rows:
            for name, key, colour in (("training", "train_loss", 0), ("held-out", "heldout_loss", 1)):
                look = {"colour": colours[colour], "markers": live and len(marks) < 40, **self._style(line)}
                found.append({"name": name + tail, "steps": marks, "values": rows[key], **look})
        return found

    def _scores(self, line: Any) -> list[dict[str, Any]]:
        colours, live = self._colours(), line is self.desk.line
        tail = "" if live else f", line {line.label}"
        marks, rows = self.desk.measures.arrays(line.session)
        if not rows:
            return []
        return [
            {"name": name + tail, "steps": marks, "values": rows[key], "colour": colours[c]}
            | {"markers": live and len(marks) < 40, **self._style(line)}
            for name, key, c in (("training", "train_score", 0), ("held-out", "heldout_score", 1))
        ]

    def _draw_layers(self) -> None:
        desk = self.desk
        marks, rows = desk.measures.arrays(desk.session)
        colours = self._colours()
        names = trained(desk.session).model.names
        for pane, key, title in (
            (self.weights, "weight_norms", "Norm of each block of weights"),
            (self.gradients, "grad_norms", "Norm of the full training gradient in each block"),
        ):
            series = [
                {"name": name, "steps": marks, "values": rows[key][:, i]}
                | {"colour": colours[i % 8], "dash": DASHES[i // 8 % 3]}
                for i, name in enumerate(names[:24])
                if rows
            ]
            log = key == "grad_norms"
            pane.object = named(curves(series, title=title, log=log, theme=self.theme, cursor=desk.session.index))

    def _draw_mistakes(self) -> None:
        picture, answers, picked = self.desk.held_out(), self.desk.answers(), self.desk.picked
        self.headline.object = f"<span role='status'>{html.escape(picture.headline(answers, picked))}</span>"
        images = picture.tiles(answers, picked)
        self.tiles.visible, self.worst.visible = images is not None, images is None
        if images is not None:
            self.tiles.show(scene=Scene(axes=False), frame=Frame(step=self.desk.session.index, layers=[images]))
        else:
            self.worst.object = picture.table(answers, picked)
        self.matrix.object = picture.confusion(answers)

    def _draw_curvature(self) -> None:
        desk, session = self.desk, self.desk.session
        steps, rows = found = desk.curvature.arrays(session)
        self.sharp.object = sharpness(session, found, [""], self._colours(), self.theme)
        share = {"name": "share", "colour": self._colours()[2], "markers": len(steps) < FEW}
        top = [{**share, **known(steps, rows["share"][:, 0])}] if rows else []
        title = "Share of the gradient in the 10 top eigenvectors"
        self.top.object = named(curves(top, title=title, theme=self.theme, cursor=session.index, bounds=(0.0, 1.0)))
        took = desk.curvature if desk.curvature.cost else desk.resting
        words = f"measured in {1000 * took.cost:.0f} ms, {100 * min(1.0, took.share):.0f} % of the time"
        self.spent.object = f"Curvature {words}; with the curves' measurements at most 20 % while it plays."

    def _draw_slice(self) -> None:
        """The ways on the plane; beside it, the true loss and the loss of the plane below it."""
        desk, survey = self.desk, self.desk.survey
        self.plane.show(frame=desk.plane_frame())
        if survey is None or survey.paths is not None:  # until the path is known anew, what was known stays
            self.true.object = along_path(survey and survey.paths, [""], self._colours(), self.theme)

    def _draw_plane(self) -> None:
        """Another plane, or a finer picture of it."""
        if not self.desk.closed:
            self.plane.show(scene=self.desk.plane_scene(), frame=self.desk.plane_frame())
            self.seen.object = html.escape(self.desk.plane_picture.legend)


DASHES = ("solid", "dash", "dot")
MISTAKES, CURVATURE, SLICED = 1, 3, 4
"""Which tabs show what takes long."""


def _r2_bounds(series: list[dict[str, Any]]) -> tuple[float, float]:
    """The part of R² worth looking at: what exploded leaves the picture below."""
    values = np.concatenate([one["values"] for one in series]) if series else np.zeros(1)
    known = values[np.isfinite(values)]
    return (max(-1.0, float(known.min(initial=0.0))), 1.0)


def _called(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, type) else type(thing).__name__

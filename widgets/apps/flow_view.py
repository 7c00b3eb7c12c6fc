"""The page of the Flow app: source and target, settings side by side, sliders, flow time, measures, loss."""

import html
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.drawing import DrawingShell, choice, folded, heading, named
from widgets.apps.flow import CHOICES, COLUMN, LABELS, OWN, FlowDesk
from widgets.apps.flow_measures import AGAIN, MEANING
from widgets.apps.flow_picture import SHOWN
from widgets.apps.plot import LivePlot
from widgets.apps.settings import SEED
from widgets.apps.shell import FIELD, TIP
from widgets.apps.tables import TABLE, heads, row
from widgets.sliders import HyperControl
from workbench.problems.networks import MLP

WORDS = {
    "coupling": "Coupling",
    "objective": "Objective",
    "interpolant": "Interpolant",
    "times": "Training times",
    "weight": "Loss weight",
    "premetric": "Premetric",
    "optimizer": "Optimizer",
}
NONE = "not finite"
BATCH = wb.Hyper(256, 1, 8192, "integer", (16, 1024), name="batch", unit="pairs", doc="Pairs in a step's gradient.")
ABOUT = """
**The picture.** Every panel is one setting. Grey: samples of the target. Colour: 2,000 particles that start at the same
source samples in every panel and are carried by the velocity that the net has learned so far. Thin lines: the whole way
of 48 of them. Arrows: the velocity at the flow time shown; the longest is as long as the grid is wide.

**Flow time** runs from 0 (source) to 1 (data). While it trains, particles flow on as the net changes beneath them; when
it is paused, they are drawn where the net as it stands takes them, to the error of 24 midpoint steps.

**Side by side.** All settings see the same source samples, the same data and the same times at every step: what differs
is what was chosen.

**Reflow** freezes the flows as they are and trains on the pairs they make: a source sample and where its flow takes
it. Paths of the new flow cross less: so they are straighter; the ends stay.

**Your own target.** Draw it, or upload points: a CSV with two numbers a row, or an NPZ with one array. Points from a
file are centred and scaled, and stay in this page's memory.
"""


class FlowShell(DrawingShell):
    """The page around a `FlowDesk`."""

    desk: FlowDesk

    def __init__(self, desk: FlowDesk) -> None:
        super().__init__(desk)
        plot = {"config": {"displaylogo": False, "responsive": True}, "sizing_mode": "stretch_both", "margin": 0}
        self.loss = LivePlot(**plot, min_height=240)
        self.quality, self.bend = LivePlot(**plot, min_height=200), LivePlot(**plot, min_height=200)
        self.table = pn.pane.HTML("", stylesheets=[TABLE], sizing_mode="stretch_width", margin=(4, 8))
        self._routine: Any = None
        self._drawn: Any = None
        self.player.on_stroke(desk.stroke)
        desk.on("curves", lambda: self.later("curves", self._draw_news))
        desk.on("fields", lambda name: self.later("fields", lambda: self._kept(name)))

    # ---- controls

    def controls(self) -> list:
        """Source and target, the settings side by side, the net, and every slider."""
        whole = {"sizing_mode": "stretch_width", "margin": 0}
        self.ends, self.columns = pn.Column(**whole), pn.Column(**whole)
        self.net, self.sliders = pn.Column(**whole), pn.Column(**whole)
        words = "Two numbers a row. At most 20,000 points."
        self.file, self.answer = self.upload("Upload points (.csv, .npz)", ".csv,.npz", words, self.desk.upload)
        self._show_ends()
        self._show_columns()
        self._show_net()
        self._show_sliders()
        return [self.ends, self.answer, self.columns, self.net, self.sliders]

    def _show_ends(self) -> None:
        desk = self.desk
        densities = wb.catalogue("densities")
        targets = {row.title: row.name for row in densities if row.name != "gaussian"}
        if desk.settings["target"] == OWN:
            targets = {desk.target().title: OWN, **targets}
        sources = {row.title: row.name for row in densities if row.name != "digit-images"}
        source = choice("Source", sources, desk.settings["source"], lambda v: desk.choose(source=v, rounds=[]))
        target = choice("Target", targets, desk.settings["target"], lambda v: desk.choose(target=v, rounds=[]))
        draw = pmui.Button(label="Draw the target", icon="draw", variant="outlined", **FIELD)
        draw.on_click(lambda event: desk.begin_drawing())
        self.ends[:] = [source, target, draw, self.file]

    def _show_columns(self) -> None:
        desk = self.desk
        cards = [self._card(i) for i in range(len(desk.settings["columns"]))]
        look = {"size": "small", "variant": "text", "margin": (0, 4)}
        more = pmui.Button(label="Add a setting", icon="add", disabled=len(cards) >= len(LABELS), **look)
        less = pmui.Button(label="Remove the last", icon="remove", disabled=len(cards) <= 1, **look)
        more.on_click(lambda event: desk.add_column())
        less.on_click(lambda event: desk.drop_column())
        row = pn.Row(more, less, margin=0, sizing_mode="stretch_width")
        self.columns[:] = [heading("Settings side by side"), *cards, row]

    def _card(self, i: int) -> Any:
        column, colour = {**COLUMN, **self.desk.settings["columns"][i]}, self._colours()[i]
        selects = [self._part(i, key, column[key]) for key in ("coupling", "objective", "interpolant")]
        rest = [self._part(i, key, column[key]) for key in ("times", "weight", "premetric", "optimizer")]
        more = folded(f"More of {LABELS[i]}", rest)
        title = pn.pane.HTML(f"<b style='color:{colour}'>● {LABELS[i]}</b>", margin=(4, 0))
        return pn.Column(title, *selects, more, **_WIDE)

    def _part(self, i: int, key: str, value: str) -> Any:
        options = {row.title: row.name for row in wb.catalogue(CHOICES.get(key, "optimizers"))}
        chosen = lambda v: self.desk.set_column(i, **{key: v})  # noqa: E731 - one line beside its one use
        return choice(f"{WORDS[key]} {LABELS[i]}", options, value, chosen)

    def _show_net(self) -> None:
        desk = self.desk
        declared = (*MLP.hypers.values(), BATCH, SEED)
        controls = [HyperControl(h, desk.settings[h.name], self._setter(h.name)).view for h in declared]
        self.net[:] = [folded("Network, batch, seed", controls)]

    def _setter(self, name: str) -> Callable[[Any], None]:
        desk = self.desk
        return lambda value: desk.do(lambda: desk._choose({name: value, "rounds": []}), newest=f"choose {name}")

    def _show_sliders(self) -> None:
        self._routine = self.desk.session.routine
        self.sliders[:] = self.rates_first(".batch_size")

    def refresh(self) -> None:
        super().refresh()
        if self.desk.flowing != self.flow.value:
            self.flow.value = self.desk.flowing

    def _settings(self) -> None:
        if self.desk.session.routine is not self._routine:
            self._show_ends()
            self._show_columns()
            self._show_sliders()
        self.sheet.visible = self.desk.drawing
        super()._settings()

    # ---- under the picture

    def _transport(self) -> Any:
        desk, look = self.desk, {"size": "small", "variant": "outlined", "margin": (4, 2)}
        column = super()._transport()
        self.tau = pmui.FloatSlider(
            label="flow time (0 source, 1 data)", start=0, end=1, step=0.01, value=1.0, show_value=False,
            sizing_mode="stretch_width", margin=(2, 8), size="small",
        )  # fmt: skip
        self.tau._priority_changes = ["value"]  # type: ignore[misc]
        self.tau.param.watch(lambda event: desk.set_tau(event.new), "value")
        self.flow = pmui.Switch(label="let particles flow", value=desk.flowing, margin=(4, 8), size="small")
        self.flow.param.watch(lambda event: desk.set_flowing(event.new), "value")
        shown = pmui.CheckButtonGroup(options=list(SHOWN), value=list(desk.shown), size="small", margin=(4, 4))
        shown.param.watch(lambda event: desk.show_only(event.new), "value")
        words = "Train again on the pairs these flows make: straighter paths, the same ends"
        again = pmui.Button(label="Reflow", icon="straighten", description=words, stylesheets=[TIP], **look)
        again.on_click(lambda event: desk.reflow())
        self.keep = pmui.Button(
            label="Use in Sampler", icon="send", description="Keep these fields for Sampler", stylesheets=[TIP], **look
        )
        self.keep.on_click(lambda event: desk.save_fields(f"flow {desk.settings['target']}"))
        self.link = pn.pane.HTML("", margin=(8, 6))
        self.sheet = self._sheet()
        column.insert(0, self.sheet)
        row = pn.FlexBox(self.flow, shown, again, self.keep, self.link, align_items="center", margin=0)
        column.extend([self.tau, row])
        return column

    def _sheet(self) -> Any:
        desk, look = self.desk, {"size": "small", "margin": (4, 2)}
        done = pmui.Button(label="Train on this drawing", variant="contained", **look)
        undo = pmui.Button(label="Undo line", variant="outlined", **look)
        cancel = pmui.Button(label="Cancel", variant="outlined", **look)
        done.on_click(lambda event: desk.end_drawing(keep=True))
        undo.on_click(lambda event: desk.undo_stroke())
        cancel.on_click(lambda event: desk.end_drawing(keep=False))
        return pn.FlexBox(done, undo, cancel, visible=desk.drawing, margin=0)

    def _kept(self, name: str) -> None:
        self.link.object = f"<a href='./sampler?field={html.escape(name)}' target='_blank'>Open Sampler</a>"

    # ---- tabs

    def tabs(self) -> list[tuple[str, Any]]:
        fill = {"sizing_mode": "stretch_both", "margin": 0}
        about = pn.pane.Markdown(ABOUT, sizing_mode="stretch_width", margin=(0, 8))
        return [
            ("Measures", pn.Column(self.table, self.quality, self.bend, **fill)),
            ("Loss", pn.Column(self.loss, **fill)),
            ("About", pn.Column(about, **fill, styles={"overflow": "auto"})),
        ]

    def draw_tab(self, active: int) -> None:
        if active == 0:
            self._draw_measures()
        elif active == 1:
            self._draw_loss()

    def _draw_news(self) -> None:
        """The tab in front, unless it shows measures and there are no newer ones: most ticks bring none."""
        desk = self.desk
        shown = (self.tabs_view.active, desk.measures.count, desk.session) if hasattr(self, "tabs_view") else None
        if shown is None or shown != self._drawn or shown[0] != 0 or not desk.session.playing:
            self._drawn = shown
            self._draw()

    def _draw_loss(self) -> None:
        session, colours = self.desk.session, self._colours()
        steps, arrays = session.trace()
        series = [
            {"name": label, "steps": steps, "values": arrays["loss"][:, i], "colour": colours[i], "width": 1.0}
            for i, label in enumerate(self.desk.parts)
            if arrays
        ]
        figure = curves(
            series, title="Loss of each step's batch, mean per pair", theme=self.theme, cursor=session.index
        )
        self.loss.object = named(figure)

    def _draw_measures(self) -> None:
        desk, colours = self.desk, self._colours()
        session = desk.session
        self.table.object = self._numbers()
        steps, values = desk.measures.arrays(session)
        for pane, k, title in ((self.quality, 0, "W₂ to the target"), (self.bend, 1, "Curvature of the paths")):
            series = [
                {
                    "name": label,
                    "steps": steps,
                    "values": values[:, i, k],
                    "colour": colours[i],
                    "markers": len(steps) < 40,
                }
                for i, label in enumerate(desk.parts)
                if len(steps)
            ]
            pane.object = named(curves(series, title=title, theme=self.theme, cursor=session.index))

    def _numbers(self) -> str:
        """The measures as a table, each explained by its tooltip."""
        desk = self.desk
        steps, values = desk.measures.arrays(desk.session)
        rows = []
        for words, old in desk.measures.before:
            faint = "opacity:.6"
            rows += [row(f"{words}: {LABELS[i]}", found, MEANING, NONE, faint) for i, found in enumerate(old)]
        if len(steps):
            for i, (title, colour) in enumerate(zip(desk.titles(), self._colours(), strict=False)):
                name = f"<span style='color:{colour}'>●</span> {html.escape(title)}"
                rows.append(row(name, values[-1, i], MEANING, NONE))
        floor = desk.measures.floor(desk.session)
        why = f"W₂ of fresh samples of the target, mean of {AGAIN} sets: what no flow goes below but by luck"
        foot = f"<tr title='{why}' style='opacity:.6'><td>target against itself</td><td>{floor:.3g}</td></tr>"
        at = f"at step {steps[-1]:,}" if len(steps) else "measured when it plays or pauses"
        cost = f"{1000 * desk.measures.cost:.0f} ms a measurement"
        caption = f"<caption>{at}, {cost}. Hover a number for its meaning.</caption>"
        body = "".join(rows) + foot
        head = f"<thead><tr><th></th>{heads(MEANING)}</tr></thead>"
        return f"<table class='plain'>{caption}{head}<tbody>{body}</tbody></table>"


_WIDE: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": 0}

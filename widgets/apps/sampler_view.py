"""The page of the Sampler app: the field, a card for every solver, evaluations one by one, measures, error curves."""

import functools
import html
from typing import Any

import panel as pn
import panel_material_ui as pmui

import workbench as wb
from widgets.apps.curves import curves
from widgets.apps.drawing import DrawingShell, choice, heading, named
from widgets.apps.plot import LivePlot
from widgets.apps.sampler import EXACT, MOST, OWN, SAVED, SHIPPED, SamplerDesk
from widgets.apps.sampler_measures import MEANING
from widgets.apps.sampler_picture import SHOWN, PlanePicture
from widgets.apps.settings import SEED
from widgets.apps.shell import FIELD, TIP
from widgets.apps.tables import TABLE, heads, row
from widgets.sliders import HyperControl

BUDGETS = (4, 8, 16, 32)
KINDS = {"ode": "ODE", "sde": "SDE", "diffusion": "diffusion"}
FIRST = 3
"""Sliders of a card that stand open."""
ABOUT = """
**The picture.** Every panel is one solver. All start from the same noise. Grey: samples of the target. Colour: where
samples are now, and the way of 40 of them. Rings: where the exact solution is at the same time; the line to a ring is
the error. Arrows: the field's velocity at the solver's time.

**Steps and evaluations.** *Step* goes one step of every solver on. *Evaluate* goes to the next point at which the
solvers ask the field: diamonds stand where it was asked, strokes say what it answered. *Back* undoes either.

**Budget.** The buttons give every solver as many steps as that many evaluations allow and start over. Solvers that
choose their own steps keep their tolerance.

**Common random numbers.** Solvers that draw noise follow the same Brownian path, whatever their steps: with more steps
they converge to one another, path by path.

**Error against evaluations** solves from few steps to many and compares the ends with the reference solution.
"""


class SamplerShell(DrawingShell):
    """The page around a `SamplerDesk`."""

    desk: SamplerDesk

    def __init__(self, desk: SamplerDesk) -> None:
        super().__init__(desk)
        plot = {"config": {"displaylogo": False, "responsive": True}, "sizing_mode": "stretch_both", "margin": 0}
        self.table = pn.pane.HTML("", stylesheets=[TABLE], sizing_mode="stretch_width", margin=(4, 8))
        self.error, self.cost = LivePlot(**plot, min_height=240), LivePlot(**plot, min_height=280)
        self._routine: Any = None
        desk.on("curves", lambda: self.later("curves", self._draw))
        desk.on("errors", lambda: self.later("errors", self._draw))

    # ---- controls

    def controls(self) -> list:
        """The field, and a card for every solver."""
        whole = {"sizing_mode": "stretch_width", "margin": 0}
        self.ends, self.cards = pn.Column(**whole), pn.Column(**whole)
        self._show_field()
        self._show_cards()
        return [self.ends, self.cards]

    def _show_field(self) -> None:
        desk, settings = self.desk, self.desk.settings
        fields = {
            "Exact": EXACT,
            "Digits, a trained net": SHIPPED,
            **{f"Trained: {n}": SAVED + n for n in desk.saved()},
        }
        if desk.own is not None:
            fields = {"Your own": OWN, **fields}
        found = [choice("Field", fields, settings["field"], lambda v: desk.choose(field=v))]
        if settings["field"] == EXACT:
            targets = {r.title: r.name for r in wb.catalogue("densities") if r.name not in ("gaussian", "digit-images")}
            paths = {row.title: row.name for row in wb.catalogue("interpolants")}
            found.append(choice("Target", targets, settings["target"], lambda v: desk.choose(target=v)))
            found.append(choice("Interpolant", paths, settings["interpolant"], lambda v: desk.choose(interpolant=v)))
        target = next(iter(desk.parts.values())).field.target
        if target is not None and target.classes:
            asked = {"each class in turn": "all", **{name: name for name in target.classes}}
            found.append(choice("Asked class", asked, settings["asked"], lambda v: desk.choose(asked=v)))
        seed = HyperControl(SEED, settings["seed"], lambda v: desk.do(lambda: desk._choose({"seed": v}), newest="seed"))
        turn = pmui.Switch(label="from data back to noise", value=settings["reverse"], size="small", margin=(4, 4))
        turn.param.watch(lambda event: desk.choose(reverse=event.new), "value")
        self.ends[:] = [*found, seed.view, turn]

    def _show_cards(self) -> None:
        desk = self.desk
        self._routine, self.hyper = desk.session.routine, {}
        cards = [self._card(i, label, part) for i, (label, part) in enumerate(desk.parts.items())]
        options = {f"{row.title} · {KINDS.get(row.kind, row.kind)}": row.name for row in wb.catalogue("solvers")}
        add = pmui.Select(label="Add a solver", options={"": "", **options}, value="", **FIELD)
        add.disabled = len(cards) >= MOST
        add.param.watch(lambda event: desk.add(event.new) if event.new else None, "value")
        self.cards[:] = [heading("Solvers side by side"), *cards, add]

    def _card(self, i: int, label: str, part: Any) -> Any:
        desk = self.desk
        views = [self.turnable(f"{label}.{name}") for name in part.hypers]
        rows, rest = views[:FIRST], views[FIRST:]
        if not part.method.adaptive:
            grids = {row.title: row.name for row in wb.catalogue("grids")}
            grid = choice("Time grid", grids, part.grid.name, functools.partial(desk.set_grid, i))
            rest.append(grid)
        if rest:
            rows.append(pmui.Card(*rest, title="more", collapsed=True, sizing_mode="stretch_width", margin=(4, 0)))
        drop = pmui.Button(label=f"Remove {desk.title_of(label)}", size="small", variant="text", margin=0)
        drop.on_click(lambda event: desk.remove(i))
        drop.disabled = len(desk.parts) == 1
        rows.append(drop)
        colour = self._colours()[i % 7]
        look = {"border-left": f"5px solid {colour}", "border-radius": "4px"}
        return pmui.Card(
            *rows,
            title=desk.title_of(label),
            collapsed=i > 2,
            styles=look,
            sizing_mode="stretch_width",
            margin=(4, 0),
        )

    def _settings(self) -> None:
        if self.desk.session.routine is not self._routine:
            self._show_field()
            self._show_cards()
            plane = isinstance(self.desk.picture_, PlanePicture)
            self.seen.options = list(SHOWN) if plane else ["prediction"]
        super()._settings()

    # ---- under the picture

    def _transport(self) -> Any:
        desk, look = self.desk, {"size": "small", "variant": "outlined", "margin": (4, 2)}
        column = super()._transport()
        words = "Go to the next point at which the solvers ask the field"
        one = pmui.Button(label="Evaluate", icon="functions", description=words, stylesheets=[TIP], **look)
        one.on_click(lambda event: desk.evaluate())
        budgets = []
        for n in BUDGETS:
            words = f"As many steps as {n} evaluations allow, from the start"
            button = pmui.Button(label=f"{n} NFE", description=words, stylesheets=[TIP], **look)
            button.on_click(functools.partial(self._budget, n))
            budgets.append(button)
        plane = isinstance(desk.picture_, PlanePicture)
        options = list(SHOWN) if plane else ["prediction"]
        value = [name for name in desk.shown if name in options]
        self.seen = pmui.CheckButtonGroup(options=options, value=value, size="small", margin=(4, 4))
        self.seen.param.watch(lambda event: desk.show_only(event.new), "value")
        column.append(pn.FlexBox(one, *budgets, self.seen, align_items="center", margin=0))
        return column

    def _budget(self, n: int, event: Any) -> None:
        self.desk.budget(n)

    # ---- tabs

    def tabs(self) -> list[tuple[str, Any]]:
        fill = {"sizing_mode": "stretch_both", "margin": 0}
        about = pn.pane.Markdown(ABOUT, sizing_mode="stretch_width", margin=(0, 8))
        draw = pmui.Button(label="Work it out", icon="timeline", variant="outlined", size="small", margin=(8, 8))
        draw.on_click(lambda event: self.desk.draw_errors())
        self.working = pn.pane.HTML("", margin=(0, 8))
        return [
            ("Measures", pn.Column(self.table, self.error, **fill)),
            ("Error per evaluation", pn.Column(pn.Row(draw, self.working, margin=0), self.cost, **fill)),
            ("About", pn.Column(about, **fill, styles={"overflow": "auto"})),
        ]

    def draw_tab(self, active: int) -> None:
        if active == 0:
            self._draw_measures()
        elif active == 1:
            self._draw_errors()

    def _draw_measures(self) -> None:
        desk, colours = self.desk, self._colours()
        self.table.object = self._numbers()
        steps, values = desk.measures.arrays(desk.session)
        series = [
            {
                "name": self.desk.title_of(label),
                "steps": values[:, i, 0],
                "values": values[:, i, 2],
                "colour": colours[i % 7],
                "markers": True,
            }
            for i, label in enumerate(desk.parts)
            if len(steps) and np_finite(values[:, i, 2])
        ]
        words: dict[str, Any] = {"title": "Error to the reference", "x_title": "evaluations", "log": True}
        self.error.object = named(curves(series, theme=self.theme, **words))

    def _numbers(self) -> str:
        """The measures as a table, each explained by its tooltip."""
        desk = self.desk
        step, rows = desk.measures.newest(desk.session)
        lines = []
        for i, (label, found) in enumerate(zip(desk.parts, rows, strict=False)):
            title = f"<span style='color:{self._colours()[i % 7]}'>●</span> {html.escape(desk.title_of(label))}"
            lines.append(row(title, found, MEANING, "–"))
        caption = (
            f"<caption>at step {step}, {1000 * desk.measures.cost:.0f} ms. Hover a number for its meaning.</caption>"
        )
        head = f"<thead><tr><th></th>{heads(MEANING)}</tr></thead>"
        return f"<table class='plain'>{caption}{head}<tbody>{''.join(lines)}</tbody></table>"

    def _draw_errors(self) -> None:
        job, colours = self.desk.errors.job, self._colours()
        if job is None:
            return
        series = [
            {
                "name": self.desk.title_of(label),
                "steps": [n for n, _ in found],
                "values": [e for _, e in found],
                "markers": True,
            }
            | {"colour": colours[list(self.desk.parts).index(label) % 7]}
            for label, found in job.found.items()
            if found and label in self.desk.parts
        ]
        words: dict[str, Any] = {
            "title": "Error at the end against evaluations",
            "x_title": "evaluations",
            "log": True,
            "x_log": True,
        }
        self.cost.object = named(curves(series, theme=self.theme, **words))
        left = len(job.left)
        self.working.object = "" if not left else f"{job.total - left} of {job.total}"


def np_finite(values: Any) -> bool:
    """Whether any of the values is a number."""
    return bool((values == values).any())

"""Sampler: solvers step the same noise through a field, side by side; one step, one evaluation, forward and back.

What the page shows of it is in `sampler_view`, the picture in `sampler_picture`, measurements in `sampler_measures`.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

import workbench as wb
from widgets.apps.desk import QUIET, Desk
from widgets.apps.files import place
from widgets.apps.sampler_measures import Errors, Measures, Reference
from widgets.apps.sampler_picture import SHOWN, PlanePicture, TilesPicture
from widgets.apps.settings import SEEDS, check_whole
from widgets.player import Frame, Scene
from workbench.catalogue import find
from workbench.flows.fields import ExactField
from workbench.flows.store import shipped
from workbench.samplers.sampling import Sampling
from workbench.samplers.solve import run_to_end

EXACT, SHIPPED, SAVED, OWN = "exact", "shipped", "saved:", "own"
MOST = 6
PICTURES = 60


class SamplerDesk(Desk):
    """One to six solvers on one field.

    Args:
        runs, query: as of every desk.
        field: your own field, or velocity f(x, t); None is chosen by settings.
    """

    name = "sampler"
    title = "Sampler"

    def __init__(self, *, runs: str | Path = "runs", query: Mapping[str, str] | None = None, field: Any = None) -> None:
        self.own = field
        self.measures, self.errors = Measures(), Errors()
        self.shown = list(SHOWN)
        self.stage = 0
        self._stages: tuple[Any, list] | None = None
        super().__init__(runs=runs, query=query)
        self.speed = 5.0

    # ---- settings

    def default_settings(self) -> dict[str, Any]:
        return {
            "field": OWN if self.own is not None else EXACT,
            "target": "eight-gaussians",
            "interpolant": "linear-path",
            "samplers": [{"solver": "euler"}, {"solver": "heun"}, {"solver": "dpm-solver-pp-2m"}],
            "samples": 500,
            "seed": 0,
            "asked": "all",
            "reverse": False,
        }

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        find("densities", "a target", settings["target"])
        find("interpolants", "an interpolant", settings["interpolant"])
        rows = settings["samplers"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= MOST:
            raise ValueError(f"expected 1 to {MOST} samplers, got {rows!r}"[:200])
        settings["samplers"] = [_sampler(row) for row in rows]
        settings["asked"] = str(settings["asked"])
        check_whole(settings, samples=(1, 5000), seed=SEEDS)
        return settings

    def pick_field(self) -> wb.Field:
        """The field that settings name.

        Raises:
            ValueError: when there is none of that name.
        """
        name, settings = self.settings["field"], self.settings
        if name == OWN and self.own is not None:
            from workbench.flows.fields import as_field

            return as_field(self.own)
        if name == EXACT:
            return wb.exact_field(settings["target"], settings["interpolant"])
        if name == SHIPPED:
            return self._conditioned(wb.load_field(shipped("digits.safetensors")))
        if isinstance(name, str) and name.startswith(SAVED):
            return self._conditioned(wb.load_field(place(self.runs, name.removeprefix(SAVED) + ".safetensors")))
        raise ValueError(f"expected a field that is exact, shipped or saved, got {name!r}")

    def _conditioned(self, field: Any) -> wb.Field:
        """A field that knows classes, asked for one of them or for each in turn."""
        classes = field.target.classes
        if not classes:
            return field
        asked, count = self.settings["asked"], self._count(field)
        rows = torch.arange(count) % len(classes)
        if asked != "all":
            if asked not in classes:
                raise ValueError(f"expected a class to be all or one of {', '.join(classes)}, got {asked!r}")
            rows = torch.full((count,), classes.index(asked))
        return field.given(rows)

    def _count(self, field: Any) -> int:
        return PICTURES if field.target is not None and field.target.image else self.settings["samples"]

    def saved(self) -> list[str]:
        """Names of trained fields in the folder of runs."""
        found = sorted(self.runs.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        return [path.stem for path in found]

    def title_of(self, label: str) -> str:
        """What a sampler of the live session is called on the page."""
        return called(label, self.parts[label].method)

    @property
    def parts(self) -> dict[str, Sampling]:
        """The samplings of the live session, by label."""
        return cast("Any", self.session.routine).parts

    def build(self) -> wb.Session:
        field = self.pick_field()
        count, parts = self._count(field), cast("dict[str, Sampling]", {})
        for row in self.settings["samplers"]:
            label = new_label(row["solver"], list(parts))
            more = {"samples": count, "reverse": bool(self.settings["reverse"]), "steps": row.get("steps", 16)}
            parts[label] = wb.sampling(field, row["solver"], grid=row.get("grid", "uniform-grid"), **more)
        routine = wb.side_by_side(parts)
        first = {name: value for name, value in self.first.items() if name in routine.hypers}
        session = wb.Session(routine, seed=self.settings["seed"], hyper=first)
        names = [called(label, part.method) for label, part in parts.items()]
        picture = TilesPicture if field.target is not None and field.target.image else PlanePicture
        if picture is PlanePicture and field.dim != 2:
            session.close()
            raise ValueError(
                f"expected a field in the plane or one of pictures, which can be drawn, got {field.dim} numbers"
            )
        self.picture_ = picture(parts, names, [i % 7 for i in range(len(parts))])
        self.measures.begin(parts)
        self.reference = Reference(field, session.state.parts[0].x[0], next(iter(parts.values())))
        self.stage, self._stages = 0, None
        return session

    # ---- commands

    def add(self, solver: str) -> None:
        """One more solver."""
        self.do(lambda: self._edit_samplers([*self.settings["samplers"], {"solver": solver}]))

    def remove(self, index: int) -> None:
        """One solver less."""
        self.do(lambda: self._edit_samplers([row for i, row in enumerate(self.settings["samplers"]) if i != index]))

    def set_grid(self, index: int, grid: str) -> None:
        """Another time grid for one of the solvers."""
        self.do(lambda: self._set_grid(index, grid))

    def budget(self, evaluations: int) -> None:
        """Steps of every solver so that it makes about so many evaluations, and back to the start."""
        self.do(lambda: self._budget(evaluations))

    def evaluate(self) -> None:
        """Pause and go one evaluation on: to the next point at which the solvers ask the field."""
        self.do(self._evaluate)

    def show_only(self, shown: list[str]) -> None:
        """What is drawn."""
        self.shown = list(shown)
        self.do(lambda: self.tell("settings"), newest="shown")

    def draw_errors(self) -> None:
        """Error against evaluations of every solver, worked out from few steps to many."""
        self.do(self._draw_errors)

    def _edit_samplers(self, rows: list) -> None:
        before = self.settings
        try:
            self.settings = self.check_settings({**before, "samplers": rows})
            self._rebuild(keep=True)
        except ValueError:
            self.settings = before
            raise

    def _set_grid(self, index: int, grid: str) -> None:
        rows = [dict(row) for row in self.settings["samplers"]]
        rows[index]["grid"] = grid
        self._edit_samplers(rows)

    def _budget(self, evaluations: int) -> None:
        parts = {label: part for label, part in self.parts.items() if "steps" in part.hypers}
        turned = {f"{label}.steps": steps_within(part, evaluations) for label, part in parts.items()}
        self.session.pause()
        self._rebuild(keep=True)
        self._turn_all(turned)
        self.tell("settings")

    def _evaluate(self) -> None:
        session = self.session.pause()
        most = max((len(row) for row in self.stages()), default=0)
        self.stage += 1
        if self.stage > most:
            self.stage = 0
            session.step(1)

    def stages(self) -> list[list[tuple]]:
        """Of each solver, (points, velocities) at every evaluation of its next step."""
        stamp = (id(self.session), self.session.index, len(self.session.edits))
        if self._stages is None or self._stages[0] != stamp:
            self._stages = (stamp, [self._record_stages(i) for i in range(len(self.parts))])
        return self._stages[1]

    def _record_stages(self, i: int) -> list[tuple]:
        session = self.session
        part, state = list(self.parts.values())[i], session.state.parts[i]
        done = part.done(state)
        if done is not None and bool(done.all()):
            return []
        label = list(self.parts)[i]
        hyper = part.normalise(
            {n.rpartition(".")[2]: v for n, v in session.hyper.items() if n.rpartition(".")[0] == label}
        )
        recorder, twin = Recorder(part.field), copy.copy(part)
        twin.field = cast(Any, recorder)
        with torch.no_grad():
            twin.step(state, hyper, part.draw(session.key.at(session.index), state, hyper))
        return recorder.seen

    def _turn_all(self, values: Any) -> None:
        super()._turn_all(values)
        self.stage = 0

    # ---- what is shown

    def scene(self) -> Scene:
        return self.picture_.scene(self.shown)

    def frame(self, session: wb.Session | None = None) -> Frame:
        live = session is None or session is self.session
        session = session or self.session
        step, state = session.now
        trails = self._trails(session, step)
        aims = [self._aim(part, own) for part, own in zip(self.parts.values(), state.parts, strict=True)]
        stages = [row[: self.stage] for row in self.stages()] if live and self.stage else ()
        layers = self.picture_.layers(state.parts, trails, aims, stages, self.shown)
        words = [f"step {step}", *([f"evaluation {self.stage} of the next step"] if live and self.stage else [])]
        return Frame(step=step, layers=layers, caption=" · ".join(words))

    def _aim(self, part: Sampling, state: Any) -> Any:
        if part.method.random or "reference" not in self.shown:
            return None
        return self.reference.at(state.t[0])

    def _trails(self, session: wb.Session, step: int) -> list[Any]:
        if "trails" not in self.shown or isinstance(self.picture_, TilesPicture):
            return [()] * len(self.parts)
        past = [state for k, state in session.kept() if k <= step]
        return [torch.stack([state.parts[i].x[0, :64] for state in past]).numpy() for i in range(len(self.parts))]

    def tick(self, session: wb.Session) -> None:
        self.measures.take(session, self.parts, self.reference)

    def step(self, n: int = 1) -> None:
        self.stage = 0
        super().step(n)

    def back(self, n: int = 1) -> None:
        self.do(lambda: self._back(n))

    def _back(self, n: int) -> None:
        """One evaluation back within a step, or whole steps."""
        if self.stage:
            self.stage -= 1
        else:
            self.session.pause().back(n)

    def seek(self, step: int) -> None:
        self.stage = 0
        super().seek(step)

    def status(self) -> str:
        words = super().status()
        return f"{words} · evaluation {self.stage}" if self.stage else words

    def _draw_errors(self) -> Any:
        job = self.errors.begin(self.parts, self.reference, self.session)
        return self._errors_slice(job)

    def _errors_slice(self, job: Any) -> Any:
        more = job.work()
        if job is self.errors.job and not self.closed:
            self.tell("errors")
            if more:
                self.do(lambda: self._errors_slice(job))
        return QUIET

    # ---- to take away

    def series(self, steps: list[int]) -> dict[str, Any]:
        return self.traced("speed", steps, [f"speed {self.title_of(label)}" for label in self.parts])


class Recorder:
    """A field that remembers where it was asked, and what it said, of the first samples."""

    def __init__(self, field: wb.Field) -> None:
        self.field, self.seen = field, cast("list[tuple]", [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)

    def __call__(self, x: Any, t: Any, rows: Any = None) -> Any:
        found = self.field(x, t, rows)
        self.seen.append((x.reshape(-1, x.shape[-1]).clone(), found.velocity.reshape(-1, x.shape[-1]).clone()))
        return found


def new_label(solver: str, labels: list[str]) -> str:
    """A label for one more of that name: euler, then euler2, …"""
    tries = [solver, *(f"{solver}{k}" for k in range(2, MOST + 2))]
    return next(label for label in tries if label not in labels)


def steps_within(part: Sampling, evaluations: int) -> int:
    """The most steps that ask the field at most so many times, at least 1."""
    steps = evaluations
    while steps > 1 and (asked := evaluations_of(part, steps)) > evaluations:
        steps = max(1, min(steps - 1, steps * evaluations // asked))
    while steps < evaluations and evaluations_of(part, steps + 1) <= evaluations:
        steps += 1
    return steps


def evaluations_of(part: Sampling, steps: int) -> int:
    """How often so many steps ask the field, whichever field it is: counted on the simplest."""
    normal = wb.Mixture.normal(2)
    field = ExactField(normal, normal, part.path)
    twin = wb.sampling(field, part.method, grid=part.grid, steps=steps, samples=1, reverse=part.reverse)
    return int(run_to_end(twin).nfe.max())


def called(label: str, solver: Any) -> str:
    """A solver's title, numbered as its label is: Euler, then Euler 2, …"""
    return f"{solver.title} {label.removeprefix(solver.name)}".strip()


def _sampler(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not set(row) <= {"solver", "grid", "steps"} or "solver" not in row:
        raise ValueError(f"expected a sampler as solver, grid and steps, got {row!r}"[:200])
    find("solvers", "a solver", row["solver"])
    find("grids", "a grid", row.get("grid", "uniform-grid"))
    return row


def page(query: Mapping[str, str], runs: str | Path) -> Any:
    """One visitor's page."""
    from widgets.apps.sampler_view import SamplerShell

    query = dict(query)
    name = query.get("field", "")
    if name and name not in (EXACT, SHIPPED, OWN) and not name.startswith(SAVED):
        query["field"] = SAVED + name
    return SamplerShell(SamplerDesk(runs=runs, query=query))

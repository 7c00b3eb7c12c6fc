"""Sampling: a field, a solver and a time grid, bound. Points are (runs, samples, dim); t = 0 is source, 1 is data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.descent import finite
from workbench.flows.fields import Field, Prediction, as_field
from workbench.flows.interpolants import Linear
from workbench.flows.measures import sampling_probes
from workbench.problems.densities import Density
from workbench.routine import RUNNING, Hyper, Key, Routine, Variable, whole
from workbench.samplers.base import Solver
from workbench.samplers.grids import ExplicitGrid, Grid


class SamplingState(NamedTuple):
    """`x`: points (runs, samples, dim). `t`: their times, (runs, 1) in lockstep or (runs, samples). `method`: the
    solver's state. `nfe`: evaluations of the field so far, shaped like t. `k`: steps made, 0-d. `diverged`: per run.
    """

    x: Tensor
    t: Tensor
    method: Any
    nfe: Tensor
    k: Tensor
    diverged: Tensor


class Counted(Field):
    """A field that counts its evaluations."""

    def __init__(self, field: Field) -> None:
        self.field, self.calls = field, 0
        self.dim, self.interpolant, self.source, self.target = field.dim, field.interpolant, field.source, field.target

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> Prediction:
        self.calls += 1
        return self.field(x, t, rows)


class Sampling(Routine):
    """A solver on its way through a field. Made by `wb.sampling`."""

    run_axis = 0
    start_dims = 2
    recorded = ("speed",)

    def __init__(
        self,
        field: Field,
        solver: Solver,
        grid: Grid,
        *,
        steps: int = 20,
        samples: int = 1000,
        reverse: bool = False,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.field, self.method, self.grid = field.to(self.device), solver, grid
        self.path = field.interpolant or Linear()
        if solver.converts and field.interpolant is None:
            raise ValueError(f"expected a field with an interpolant for {solver.title}, got a plain velocity")
        if reverse and not solver.both_ways:
            raise ValueError(f"expected a solver that can go from data to source, got {solver.title}")
        self.samples, self.reverse = whole("samples", samples, 1), reverse
        self.host_sync = solver.host_sync
        doc = "Steps from one end to the other."
        turn = Hyper(steps, 1, 10_000, "integer", (1, 100), kind="shape", unit="steps", doc=doc, name="steps")
        self.steps = turn.check(steps)
        declared = solver.hypers if solver.adaptive else {"steps": turn, **solver.hypers, **grid.hypers}
        self.hypers = {name: hyper for name, hyper in declared.items() if hyper.kind != "init"}
        self.variables = {
            "x": Variable(("sample", "dim"), "position"),
            "time": Variable((), "time, mean over samples: 0 is source, 1 is data"),
            "nfe": Variable((), "evaluations of the field a sample, mean over samples", "evaluations"),
            "speed": Variable((), "distance moved per unit of time in this step, mean over samples"),
        }
        self.probes = sampling_probes(self)
        self._ends: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._times: tuple[tuple, tuple, Any] = ((), (), None)

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> SamplingState:
        x = self._source(key) if start is None else self.tensor(start)
        if x.ndim not in (2, 3) or x.shape[-1] != self.field.dim or not x.numel():
            dim = self.field.dim
            raise ValueError(
                f"expected start of shape (samples, {dim}) or (runs, samples, {dim}), got {tuple(x.shape)}"
            )
        if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
            raise ValueError("expected start to be finite, got inf or nan in it")
        x = x.repeat(runs or 1, 1, 1) if x.ndim == 2 else x.clone()
        first, last = self.ends(x)
        t = first.expand(len(x), x.shape[1] if self.method.adaptive else 1).contiguous()
        k = torch.zeros((), dtype=torch.int32, device=self.device)
        diverged = torch.full((len(x),), RUNNING, dtype=torch.int32, device=self.device)
        field = Counted(self.field)
        method = self.method.init(field, x, t, last)
        nfe = torch.full_like(t, field.calls, dtype=torch.int32)
        return SamplingState(x, t, method, nfe, k, diverged)

    def _source(self, key: Key) -> Tensor:
        """Where samples start: the source at the size it has at the first time, or data when going back."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        at_data = self.reverse and self.field.target is not None
        density: Density = self.field.target if at_data else self.field.source
        keys = [key] if key.runs is None else [Key(seed, key.path, key.step) for seed in key.seed]  # type: ignore[union-attr]
        x = torch.stack([density.sample(own.stream("source"), self.samples, like) for own in keys])
        first = self.ends(x)[0]
        size = self.path.alpha(first) if at_data else self.path.spread(first)
        return (size * x).squeeze(0) if key.runs is None else size * x

    def ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last time, 0-d; the grid's own when it has times of its own."""
        key = like.dtype, like.device
        if key not in self._ends:
            given = self.grid.given.tolist() if isinstance(self.grid, ExplicitGrid) else self.path.ends
            first, last = (torch.tensor(given[i], dtype=like.dtype, device=like.device) for i in (0, -1))
            self._ends[key] = (last, first) if self.reverse else (first, last)
        return self._ends[key]

    def times(self, hyper: Mapping[str, Any], like: Tensor) -> Tensor:
        """All stops on the way, (steps + 1,) or (runs, steps + 1), in the order they are passed."""
        return self._stops(hyper, like)[0]

    def _stops(self, hyper: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(all stops, those after each and at last the last again, from where on each counts as passed, rising)."""
        turned = tuple(hyper[name] for name in self.grid.hypers if name in hyper)
        key = (hyper["steps"], like.dtype, like.device, *map(id, turned))
        known, _, found = self._times
        if known != key:
            times = self.grid.times(self.path, hyper["steps"], hyper, like)
            times, sign = (times.flip(-1), -1) if self.reverse else (times, 1)
            following = torch.cat([times, times[..., -1:]], -1)
            found = times, following, (sign * times - 8 * torch.finfo(like.dtype).eps).contiguous()
            self._times = key, turned, found  # holds what the ids are of
        return found

    def next_time(self, t: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """The stop after t (runs, 1): so that `steps` may change on the way. The end's own at the end."""
        if self.method.adaptive:
            return self.ends(t)[1].expand_as(t)
        _, following, passed = self._stops(hyper, t)
        index = torch.searchsorted(passed, -t if self.reverse else t, right=True)
        return following.expand(len(t), -1).gather(-1, index)

    def draw(self, key: Key, state: SamplingState, hyper: Mapping[str, Any] | None = None) -> Any:
        if not self.method.random:
            return ()
        from workbench.samplers.brownian import Brownian

        ready = hyper or self.normalise()
        brownian = Brownian(key.stream("brownian").at(0), state.x.shape[1:], state.x)
        return self.method.draw(key, brownian, state.x, state.t, self.next_time(state.t, ready))

    def step(self, state: SamplingState, hyper: Mapping[str, Any], noise: Any) -> tuple[SamplingState, dict]:
        field, end = Counted(self.field), self.next_time(state.t, hyper)
        going = (state.diverged == RUNNING).unsqueeze(-1)
        if self.method.adaptive:  # a run that has diverged costs no evaluations
            end = torch.where(going, end, state.t)
        else:
            going = going & ~self._there(state.t)
        turned = {name: h[:, None, None] if isinstance(h, Tensor) and h.ndim else h for name, h in hyper.items()}
        made = self.method.step(field, self.path, state.x, state.t, end, state.method, turned, noise)
        sound = finite(made.x, 1, 2).unsqueeze(-1) & going  # (runs, 1)
        x, t = torch.where(sound.unsqueeze(-1), made.x, state.x), torch.where(sound, made.time, state.t)
        diverged = torch.where(going > sound, state.k, state.diverged.unsqueeze(-1)).squeeze(-1)
        if self.method.adaptive:
            nfe = state.nfe + (field.calls if made.evaluations is None else made.evaluations)
        else:
            nfe = torch.add(state.nfe, going, alpha=field.calls)
        info = {**made.info, "steps": (state.x, x, state.t, t)}
        return SamplingState(x, t, made.state, nfe, state.k + 1, diverged), info

    def _there(self, t: Tensor) -> Tensor:
        last = self.ends(t)[1]
        return t <= last if self.reverse else t >= last

    def done(self, state: SamplingState) -> Tensor:
        """Per run: whether all of its samples have arrived, or it has diverged."""
        return self._there(state.t).all(-1) | (state.diverged != RUNNING)

    def observe(self, state: SamplingState) -> dict[str, Tensor]:
        return {"x": state.x, "time": state.t.mean(-1), "nfe": state.nfe.to(self.dtype).mean(-1)}

    def measure(self, info: dict) -> dict[str, Tensor]:
        before, after, t, end = info["steps"]
        speed = _length(after - before) / (end - t).abs().clamp(min=1e-12)  # 0 where time stands still
        found = {"speed": speed, **{name: value for name, value in info.items() if name != "steps"}}
        return {name: value.mean(-1) if value.ndim == 2 else value for name, value in found.items()}

    def to(self, device: Any = None) -> "Sampling":
        if device is None or torch.device(device) == self.device:
            return self
        more: dict[str, Any] = {"steps": self.steps, "samples": self.samples, "reverse": self.reverse}
        return Sampling(self.field, self.method, self.grid, dtype=self.dtype, device=device, **more)

    def coords(self) -> dict[str, tuple]:
        names = ["x", "y"] if self.field.dim == 2 else [f"x{i + 1}" for i in range(self.field.dim)]
        return {"dim": ("dim", names, {"long_name": "coordinate", "units": "1"})}

    def recipe(self) -> str:
        parts = [self.field.recipe(), self.method.recipe()]
        parts += [] if self.method.adaptive else [f"steps={self.steps}"]
        parts += [f"grid={self.grid.recipe()}", f"samples={self.samples}"]
        parts += ["reverse=True"] if self.reverse else []
        parts += [] if self.dtype == torch.float32 else [f"dtype={self.dtype}"]
        return f"wb.sampling({', '.join(parts)})"

    def setup(self) -> str:
        return self.field.setup()

    def describe(self) -> dict:
        return {**self.field.describe(), "method": self.method.name, "grid": self.grid.name}


def _length(x: Tensor) -> Tensor:
    """Euclidean norm over the last axis. Short rows are summed coordinate by coordinate: a quarter of the time."""
    if x.shape[-1] > 4:
        return torch.linalg.vector_norm(x, dim=-1)
    first, *rest = (part * part for part in x.unbind(-1))
    return sum(rest, first).sqrt()


def sampling(
    field: Any,
    solver: str | Solver = "heun",
    *,
    steps: int = 20,
    grid: str | Grid | Any = "uniform-grid",
    samples: int = 1000,
    reverse: bool = False,
    interpolant: Any = None,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Sampling:
    """A solver stepping samples through a field, as a routine.

    Args:
        field: a `Field`, the name of a density or a `Density` (its exact field), or a velocity f(x, t) with x
            (..., 2) and t (...), t = 0 at the source and 1 at the data.
        solver: a catalogue name ("heun", "dormand-prince", …) or a `Solver`.
        steps: from one end to the other; may be turned on the way. Adaptive solvers choose their own: of a grid they
            keep the ends, and `steps` means nothing to them.
        grid: a catalogue name, a `Grid`, or your own times, rising within [0, 1].
        samples: how many points move together.
        reverse: from data to source instead.
        interpolant: of an exact field made from a density's name; linear when None.

    Raises:
        ValueError: on unknown names, a grid that does not rise, or a solver that the field does not suffice for.
    """
    from workbench.catalogue import find_declared

    found = as_field(field, **({} if interpolant is None else {"interpolant": interpolant}))
    method = find_declared("solvers", "a solver", solver)
    times = find_declared("grids", "a grid", grid) if isinstance(grid, str | Grid | type) else ExplicitGrid(grid)
    more: dict[str, Any] = {"steps": steps, "samples": samples, "reverse": reverse, "dtype": dtype, "device": device}
    return Sampling(found, method, times, **more)

"""Several routines side by side as one: they step together on common random numbers, rewind and branch together.

Each part is one run of the whole: a record has them along `run`, labelled by the coordinate `method`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.routine import Hyper, Key, Probe, Routine, Variable


class TogetherState(NamedTuple):
    """`parts`: the state of each routine, in order. `diverged`: per part, -1 or the step at which it stopped."""

    parts: tuple
    diverged: Tensor


class Together(Routine):
    """Routines side by side. Made by `wb.side_by_side`; a hyperparameter is named "label.name"."""

    def __init__(self, parts: Mapping[str, Routine]) -> None:
        if not parts:
            raise ValueError("expected at least one routine, got none")
        self.parts = dict(parts)
        self.lead = next(iter(self.parts.values()))
        for label, part in self.parts.items():
            if part.run_axis != self.lead.run_axis or not _alike(part, self.lead, part.variables, self.lead.variables):
                raise ValueError(f"expected routines of one kind, got {label!r} of another kind than the first")
        self.device, self.dtype = self.lead.device, self.lead.dtype
        self.run_axis, self.start_dims = self.lead.run_axis, self.lead.start_dims
        self.variables, self.recorded = self.lead.variables, self.lead.recorded
        self.probes = {name: _joined(probe) for name, probe in self.lead.probes.items() if self._shared(probe)}
        self.host_sync = any(part.host_sync for part in self.parts.values())
        self.hypers: Mapping[str, Hyper] = {
            f"{label}.{name}": hyper for label, part in self.parts.items() for name, hyper in part.hypers.items()
        }

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> TogetherState:
        """Every part at `start`, one run each; a start with a leading axis gives each part its own, so do seeds."""
        if runs not in (None, len(self.parts)):
            raise ValueError(f"expected one run for each of {len(self.parts)} parts, got {runs} runs")
        many = start is not None and torch.as_tensor(start).ndim > self.start_dims
        if many and len(start) != len(self.parts):
            raise ValueError(f"expected one start, or one for each of {len(self.parts)} parts, got {len(start)}")
        starts = start if many else [start] * len(self.parts)
        rows = zip(self.parts.values(), self._keys(key), starts, strict=True)
        return _whole([part.init(own, start=s) for part, own, s in rows])

    def _keys(self, key: Key) -> list[Key]:
        """The key of each part: the same for all, or its own when the seed has one a run."""
        seeds = [key.seed] * len(self.parts) if key.runs is None else [(seed,) for seed in key.seed]  # type: ignore[union-attr]
        return [dataclasses.replace(key, seed=seed) for seed in seeds]

    def normalise(self, hyper: Mapping[str, Any] | None = None, *, runs: int | None = None) -> dict[str, Any]:
        """Ready hyperparameters of each part, by label."""
        super().normalise(hyper)
        given = {label: {} for label in self.parts}  # type: dict[str, dict]
        for name, value in (hyper or {}).items():
            label, _, own = name.rpartition(".")
            given[label][own] = value
        return {label: part.normalise(given[label], runs=1) for label, part in self.parts.items()}

    def draw(self, key: Key, state: TogetherState, hyper: Mapping[str, Any] | None = None) -> tuple:
        sub = [hyper[label] if hyper else None for label in self.parts]
        rows = zip(self.parts.values(), self._keys(key), state.parts, sub, strict=True)
        return tuple(part.draw(own, part_state, part_hyper) for part, own, part_state, part_hyper in rows)

    def step(self, state: TogetherState, hyper: Mapping[str, Any], noise: Any) -> tuple[TogetherState, dict]:
        rows = zip(self.parts.items(), state.parts, noise, strict=True)
        made = [part.step(part_state, hyper[label], part_noise) for (label, part), part_state, part_noise in rows]
        return _whole([new for new, _ in made]), {"parts": tuple(info for _, info in made)}

    def done(self, state: TogetherState) -> Tensor | None:
        """Per part, whether it has come to its own end; None when one of them never does."""
        found = [part.done(part_state) for part, part_state in zip(self.parts.values(), state.parts, strict=True)]
        return None if any(done is None for done in found) else torch.cat(found)  # type: ignore[arg-type]

    def observe(self, state: TogetherState) -> dict[str, Tensor]:
        rows = zip(self.parts.values(), state.parts, strict=True)
        return self._join([part.observe(part_state) for part, part_state in rows])

    def measure(self, info: dict) -> dict[str, Tensor]:
        rows = zip(self.parts.values(), info["parts"], strict=True)
        return self._join([part.measure(part_info) for part, part_info in rows])

    def _join(self, frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        for name in frames[0]:
            shapes = {frame[name].shape for frame in frames}
            if len(shapes) > 1:
                raise ValueError(f"expected {name} of one shape from every part, got {sorted(map(tuple, shapes))}")
        return {name: torch.cat([frame[name] for frame in frames], self.run_axis) for name in frames[0]}

    def to(self, device: Any = None) -> "Together":
        moved = {label: part.to(device) for label, part in self.parts.items()}
        same = all(new is old for new, old in zip(moved.values(), self.parts.values(), strict=True))
        return self if same else Together(moved)

    def coords(self) -> dict[str, tuple]:
        return {"method": ("run", list(self.parts), {"long_name": "method", "units": "1"}), **self.lead.coords()}

    def recipe(self) -> str:
        inside = ", ".join(f"{label!r}: {part.recipe()}" for label, part in self.parts.items())
        return f"wb.side_by_side({{{inside}}})"

    def setup(self) -> str:
        """What each part needs, once: parts that need the same, such as a field to be trained first, share it."""
        return "\n".join(dict.fromkeys(filter(None, (part.setup() for part in self.parts.values()))))

    def pick(self, state: TogetherState, run: int) -> Any:
        """The state of one part, as that part's own routine understands it."""
        return state.parts[run]

    def repeat(self, state: TogetherState, runs: int) -> TogetherState:
        raise ValueError("expected a routine of its own to repeat, got several side by side; repeat one of its parts")

    def _shared(self, probe: Probe) -> bool:
        twins = [(part, part.probes.get(probe.name)) for part in self.parts.values()]
        return all(twin and _alike(part, self.lead, twin.variables, probe.variables) for part, twin in twins)

    def describe(self) -> dict:
        return {**self.lead.describe(), "method": ", ".join(self.parts)}


def _alike(a: Routine, b: Routine, of_a: Mapping[str, Variable], of_b: Mapping[str, Variable]) -> bool:
    """Whether variables of two routines have the same names and dims, and the same coordinates along them."""
    if {name: variable.dims for name, variable in of_a.items()} != {name: v.dims for name, v in of_b.items()}:
        return False
    dims = {dim for variable in of_a.values() for dim in variable.dims}
    return all(a.coords().get(dim) == b.coords().get(dim) for dim in dims)


def _joined(probe: Probe) -> Probe:
    """The probe of a part, taken of every part."""

    def measure(routine: Any, state: TogetherState) -> dict[str, Tensor]:
        rows = zip(routine.parts.values(), state.parts, strict=True)
        return routine._join([part.probes[probe.name].measure(part, part_state) for part, part_state in rows])

    return dataclasses.replace(probe, measure=measure)


def _whole(parts: list) -> TogetherState:
    return TogetherState(tuple(parts), torch.cat([part.diverged for part in parts]))


def side_by_side(parts: Mapping[str, Routine]) -> Together:
    """Routines of one kind as one routine: same start, same draws, one clock.

    Args:
        parts: {label: routine}; `session.set(**{"adam.lr": 0.1})` turns the hyperparameter of one of them.

    Raises:
        ValueError: when there is none, or they are not of one kind.
    """
    return Together(parts)

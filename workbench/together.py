"""Several routines side by side as one: they step together on common random numbers, rewind and branch together.

Each part is one run of the whole: a record has them along `run`, labelled by the coordinate `method`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.routine import Hyper, Key, Routine


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
            if part.run_axis != self.lead.run_axis or set(part.variables) != set(self.lead.variables):
                raise ValueError(f"expected routines of one kind, got {label!r} of another kind than the first")
        self.device, self.dtype = self.lead.device, self.lead.dtype
        self.run_axis, self.start_dims = self.lead.run_axis, self.lead.start_dims
        self.variables, self.probes, self.recorded = self.lead.variables, self.lead.probes, self.lead.recorded
        self.host_sync = any(part.host_sync for part in self.parts.values())
        self.hypers: Mapping[str, Hyper] = {
            f"{label}.{name}": hyper for label, part in self.parts.items() for name, hyper in part.hypers.items()
        }

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> TogetherState:
        """Every part at `start`, one run each; a start with a leading axis gives each part its own."""
        many = start is not None and torch.as_tensor(start).ndim > self.start_dims
        if many and len(start) != len(self.parts):
            raise ValueError(f"expected one start, or one for each of {len(self.parts)} parts, got {len(start)}")
        starts = start if many else [start] * len(self.parts)
        return _whole([part.init(key, start=s) for part, s in zip(self.parts.values(), starts, strict=True)])

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
        rows = zip(self.parts.values(), state.parts, sub, strict=True)
        return tuple(part.draw(key, part_state, part_hyper) for part, part_state, part_hyper in rows)

    def step(self, state: TogetherState, hyper: Mapping[str, Any], noise: Any) -> tuple[TogetherState, dict]:
        rows = zip(self.parts.items(), state.parts, noise, strict=True)
        made = [part.step(part_state, hyper[label], part_noise) for (label, part), part_state, part_noise in rows]
        return _whole([new for new, _ in made]), {"parts": tuple(info for _, info in made)}

    def observe(self, state: TogetherState) -> dict[str, Tensor]:
        rows = zip(self.parts.values(), state.parts, strict=True)
        return self._join([part.observe(part_state) for part, part_state in rows])

    def measure(self, info: dict) -> dict[str, Tensor]:
        rows = zip(self.parts.values(), info["parts"], strict=True)
        return self._join([part.measure(part_info) for part, part_info in rows])

    def _join(self, frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
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
        return self.lead.setup()

    def describe(self) -> dict:
        return {**self.lead.describe(), "method": ", ".join(self.parts)}


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

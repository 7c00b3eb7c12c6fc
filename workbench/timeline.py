"""The past of a session: snapshots under a byte budget, and the edits and measurements of one line of time."""

import bisect
import dataclasses
from typing import Any, NamedTuple

from workbench.trace import Trace
from workbench.tree import nbytes

RECENT = 16
"""States always kept for stepping back, whatever the budget."""


LARGE, WIDEST = 16 * 2**10, 25
"""Of states of n times 16 kB one in n is kept beyond the recent ones, at least one in 25."""


class Edit(NamedTuple):
    """A change that acts on the step from `step` to `step` + 1 and all after it, until changed again."""

    step: int
    target: str
    value: Any


class Snapshots:
    """States by step, under a byte budget. Old ones thin out; seeking replays from the nearest one before.

    When the budget is spent a quarter of the old ones go: those whose removal leaves the smallest gap for their age,
    so that gaps grow with age and none grows without need. The first, the last 16 and the 16 before the present stay.
    Of large states one in a few is kept from the start, so that the memory of the others is used again while it is
    still in the processor's cache; a seek replays the few steps between.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._states: dict[int, Any] = {}
        self._steps: list[int] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bytes

    def put(self, step: int, state: Any) -> None:
        """Keep a state; one that is there already stays."""
        if step in self._states:
            return
        bisect.insort(self._steps, step)
        self._states[step] = state
        size = nbytes(state)
        self._bytes += size
        self._leave(step - RECENT, min(size // LARGE, WIDEST))
        if self._bytes > self.budget and len(self._steps) > RECENT + 2:
            self._thin(step)

    def _leave(self, step: int, spacing: int) -> None:
        """Let go of the state that has just left the last 16, unless it is one in `spacing`."""
        if spacing > 1 and step % spacing and step in self._states and step <= self._steps[-1] - RECENT:
            self._bytes -= nbytes(self._states.pop(step))
            del self._steps[bisect.bisect_left(self._steps, step)]

    def nearest(self, step: int) -> tuple[int, Any]:
        """The last kept state at or before `step`, and its step."""
        found = self._steps[bisect.bisect_right(self._steps, step) - 1]
        return found, self._states[found]

    def since(self, step: int) -> list[tuple[int, Any]]:
        """(step, state) of what is kept from `step` on."""
        return [(k, self._states[k]) for k in self._steps[bisect.bisect_left(self._steps, step) :]]

    def upto(self, step: int) -> "Snapshots":
        """The part up to and including `step`; the states themselves are shared."""
        return self._some(self._steps[: bisect.bisect_right(self._steps, step)])

    def ends(self) -> "Snapshots":
        """The first and the last alone: enough to replay what lies between."""
        return self._some(sorted({self._steps[0], self._steps[-1]}))

    def _some(self, steps: list[int]) -> "Snapshots":
        part = Snapshots(self.budget)
        part._steps = steps
        part._states = {k: self._states[k] for k in steps}
        part._bytes = sum(nbytes(state) for state in part._states.values())
        return part

    def widest_gap(self) -> int:
        """The most steps that any seek has to replay."""
        return max((b - a for a, b in zip(self._steps, self._steps[1:], strict=False)), default=0)

    def _thin(self, now: int) -> None:
        steps = self._steps
        last = steps[-1] - RECENT
        old = [i for i in range(1, len(steps) - 1) if steps[i] <= last and not now - RECENT < steps[i] <= now]
        by_cost = sorted(old, key=lambda i: (steps[i + 1] - steps[i - 1]) / (abs(now - steps[i]) + RECENT))
        gone: set[int] = set()
        for i in by_cost:
            if len(gone) * 4 >= len(steps):
                break
            if i - 1 not in gone and i + 1 not in gone:
                gone.add(i)
        for i in gone:
            self._bytes -= nbytes(self._states.pop(steps[i]))
        self._steps = [step for i, step in enumerate(steps) if i not in gone]


@dataclasses.dataclass
class Timeline:
    """One line of time: its edits, how far it has been lived, its snapshots and what its steps measured."""

    snapshots: Snapshots
    edits: list[Edit] = dataclasses.field(default_factory=list)
    head: int = 0
    trace: Trace = dataclasses.field(default_factory=Trace)

    def upto(self, step: int) -> "Timeline":
        """The same past, and what is in force at `step`, with the future after it left open."""
        edits = [edit for edit in self.edits if edit.step <= step]
        return Timeline(self.snapshots.upto(step), edits, step, self.trace.upto(step))

    def shelved(self) -> "Timeline":
        """The same line kept for later with its first and last state alone: what lies between can be replayed."""
        return dataclasses.replace(self, snapshots=self.snapshots.ends())

    def edit(self, edit: Edit) -> None:
        """Add an edit; one of the same step and target takes its place."""
        kept = [old for old in self.edits if (old.step, old.target) != (edit.step, edit.target)]
        self.edits = sorted([*kept, edit], key=lambda old: old.step)

    def in_force(self, step: int) -> dict[str, Any]:
        """What edits say about the step from `step` to `step` + 1."""
        return {edit.target: edit.value for edit in self.edits if edit.step <= step}

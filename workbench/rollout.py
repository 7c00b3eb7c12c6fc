"""Many steps at once: a routine run from start to end, batched over runs, eager or compiled, into a record."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import record
from workbench.routine import Key, Probe, Routine, count_runs, unknown, whole
from workbench.trace import Trace
from workbench.tree import tree_map


def advance(routine: Routine, state: Any, hyper: Mapping[str, Any], key: Key, k: int) -> tuple[Any, dict]:
    """The step from k to k + 1: the one place where drawing and stepping meet, for rollouts and sessions alike."""
    with torch.no_grad():
        return routine.step(state, hyper, routine.draw(key.at(k), state, hyper))


def runs_of(start: Any, hyper: Mapping[str, Any] | None, seed: Any, dims: int = 1) -> int | None:
    """How many runs a start, hyperparameters and a seed ask for together, None when none of them has a run axis."""
    runs = count_runs(hyper, seed)
    try:
        shape = tuple(start.shape) if hasattr(start, "shape") else np.shape(start) if start is not None else ()
    except ValueError:
        raise ValueError(f"expected start to be one point, or one for each run, got {start!r}") from None
    if len(shape) == dims + 1:
        if runs not in (None, shape[0]):
            raise ValueError(f"expected start to have one point for each of {runs} runs, got {shape[0]}")
        return shape[0]
    return runs


def pick_probes(routine: Routine, probes: Iterable[str | Probe]) -> list[Probe]:
    """Probes by name or as they are.

    Raises:
        ValueError: on a name this routine has no probe for.
    """
    found = []
    for probe in probes:
        if isinstance(probe, str) and probe not in routine.probes:
            raise unknown("a probe", probe, routine.probes)
        found.append(routine.probes[probe] if isinstance(probe, str) else probe)
    return found


def as_key(seed: int | Sequence[int]) -> Key:
    """The key of a seed: one whole number that all runs share, or one a run.

    Raises:
        ValueError: on anything else.
    """
    many = not isinstance(seed, int | str) and np.ndim(seed) == 1
    given: Any = seed if many else [seed]
    try:
        numbers = tuple(operator.index(one) for one in given)
    except TypeError:
        numbers = ()
    if not numbers:
        raise ValueError(f"expected seed to be a whole number, or one for each run, got {seed!r}")
    return Key(numbers if many else numbers[0])


def rollout(
    routine: Routine,
    steps: int,
    *,
    seed: int | Sequence[int] = 0,
    start: Any = None,
    hyper: Mapping[str, Any] | None = None,
    probes: Sequence[str | Probe] = (),
    every: int = 1,
    compile: bool = False,
    device: Any = None,
) -> Any:
    """Run a routine and record it.

    Args:
        steps: number of steps, at least 0.
        seed: one whole number (all runs share their draws) or one a run (independent draws).
        start: where runs begin: one point, or one a run with a leading run axis; the problem's own start when None.
        hyper: values by name; a value with a leading run axis batches the rollout over runs.
        probes: further measurements, by name or as `Probe`, taken at every recorded step.
        every: keep one state in so many; the first is always kept.
        compile: run compiled code; the same trajectory to about 1e-5 relative in float32 as long as it is not chaotic.
            Without a C++ compiler it warns once and runs eager.
        device: where to run; the routine's own when None.

    Returns:
        xarray.Dataset with dims run, step and those of the routine's variables; a run that stops being finite keeps its
        last finite point and its step in `diverged_at` (-1 otherwise).

    Raises:
        ValueError: on an unknown or out-of-range hyperparameter, or runs that disagree.
    """
    steps, every = whole("steps", steps), whole("every", every, 1)
    routine, key = routine.to(device), as_key(seed)
    runs = runs_of(start, hyper, key.seed, routine.start_dims)
    state = routine.init(key.stream("init"), start=start, runs=runs)
    ready = routine.normalise(hyper, runs=routine.runs(state))
    found = pick_probes(routine, probes)
    collected = Collector(routine, found, every)
    path = "compiled" if compile and collected.only_points else "eager"
    if path == "compiled":
        final = _compiled(routine, state, ready, key, steps, collected)
    else:
        final = collected.run(state, lambda k: ready, key, 0, steps)
    given = {"seed": key.seed, "hyper": dict(hyper or {}), "start": start, "edits": (), "steps": steps, "mode": path}
    return record.build(routine, collected, final, given)


def _compiled(routine: Routine, state: Any, hyper: dict, key: Key, steps: int, collected: "Collector") -> Any:
    from workbench.compiled import trajectory

    noises = stack_noises([routine.draw(key.at(k), state, hyper) for k in range(steps)])
    final, xs = trajectory(routine, state, hyper, noises, steps)
    collected.points(xs)
    return final


def stack_noises(noises: list[Any]) -> Any:
    """One tree of draws a step, as one tree with a leading step axis; () when nothing is drawn."""
    if not noises or noises[0] == ():
        return ()
    return tree_map(lambda *leaves: torch.stack(leaves), noises[0], *noises[1:])


class Collector:
    """Gathers what is recorded while a routine runs: frames every so many steps, and what each step measured."""

    def __init__(self, routine: Routine, probes: list[Probe], every: int) -> None:
        self.routine, self.probes, self.every = routine, probes, every
        self.steps: list[int] = []
        self.frames: list[dict[str, Tensor]] = []
        self.points_kept: list[Tensor] = []
        self.trace = Trace()

    @property
    def only_points(self) -> bool:
        """Whether points alone are enough to fill the record afterwards, so that compiled code may run."""
        return hasattr(self.routine, "observe_points") and not self.probes

    def run(self, state: Any, hyper_at: Callable[[int], dict], key: Key, first: int, last: int) -> Any:
        """Step from `first` to `last`, keeping frames; returns the final state."""
        self._keep(first, state)
        for k in range(first, last):
            state, info = advance(self.routine, state, hyper_at(k), key, k)
            if self.routine.recorded:
                self.trace.put(k, {name: self.routine.measure(info)[name] for name in self.routine.recorded})
            self._keep(k + 1, state)
        return state

    def points(self, xs: Tensor) -> None:
        """Take a whole stack of points, (steps + 1, …), at once."""
        self.steps = list(range(0, xs.shape[0], self.every))
        self.points_kept = [xs[:: self.every]]

    def _keep(self, k: int, state: Any) -> None:
        if k % self.every:
            return
        self.steps.append(k)
        with torch.no_grad():
            if hasattr(self.routine, "observe_points"):
                self.points_kept.append(state.x.unsqueeze(0))
                frame = {}
            else:
                frame = dict(self.routine.observe(state))
            for probe in self.probes:
                frame.update(probe.measure(self.routine, state))
        if frame:
            self.frames.append(frame)

    def stacked(self) -> dict[str, Tensor]:
        """Every recorded variable with a leading step axis."""
        arrays: dict[str, Tensor] = {}
        if self.points_kept:
            arrays.update(self.routine.observe_path(torch.cat(self.points_kept)))  # type: ignore[attr-defined]
        if self.frames:
            arrays.update({name: torch.stack([frame[name] for frame in self.frames]) for name in self.frames[0]})
        return arrays


def ahead(
    routine: Routine,
    state: Any,
    hyper: Mapping[str, Any],
    turned: Mapping[str, Any],
    steps: int,
    *,
    key: Key,
    first: int,
) -> Any:
    """Where one run would go from here under other hyperparameters: the fan that an app draws.

    Args:
        state: a state of one run, at step `first`.
        hyper: values in force, by name.
        turned: {name: values}, one value a run; several names are turned together, value by value.
        steps: how far to look.
        key: the session's key, so that the fan's middle is the run's own future.

    Returns:
        (final state, points (steps + 1, …)) of as many runs as there are values.
    """
    runs = count_runs(turned, None) or 1
    ready = routine.normalise({**hyper, **turned}, runs=runs)
    state = routine.repeat(state, runs)
    points = [state.x]
    for k in range(first, first + steps):
        state, _ = advance(routine, state, ready, key, k)
        points.append(state.x)
    return state, torch.stack(points)

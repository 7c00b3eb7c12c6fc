"""Looking ahead in the Descent app: first rates worth watching, the fan, the heat map of final losses."""

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import workbench as wb
from widgets.apps.descent_paths import parts_of, values
from workbench.descent import Descent
from workbench.rollout import advance

STEPS = 200
"""Steps that the fan looks ahead."""
TRIALS = tuple(float(f"{lead}e{power}") for power in range(-7, 1) for lead in (1, 2, 5))
TRIAL_STEPS = 150
SLICE_SECONDS = 0.05


def first_rate(routine: Descent, start: Any, seed: int, twin: int = 0) -> float | None:
    """A first `lr` worth watching, None for a method without one: the trial rate that is lowest after 150 steps.

    Of the rates 1, 2, 5 × 10⁻⁷ … 10⁰ those count that neither diverge nor leave the domain from this start, take no
    step over a quarter of it, and at first steps of at most 1.5 % of it on average; when none does, the smallest. The
    second of two alike (`twin` 1) starts at a third, and so on, so that they can be told apart.
    """
    if "lr" not in routine.hypers:
        return None
    key = wb.Key(seed)
    rates = torch.tensor([rate for rate in TRIALS if routine.hypers["lr"].low <= rate <= routine.hypers["lr"].high])
    state = routine.init(key.stream("init"), start=start, runs=1)
    hyper = {name: hyper.default for name, hyper in routine.hypers.items()}
    final, points = wb.ahead(routine, state, hyper, {"lr": rates}, TRIAL_STEPS, key=key, first=0)
    low, high = torch.tensor(routine.objective.domain).T[:, :, None]
    inside = ((points >= low) & (points <= high)).all(1).all(0) & (final.diverged < 0)
    moves = (points[1:] - points[:-1]).abs() / (high - low)
    calm = (moves < 0.25).all(1).all(0) & (moves[:50].mean(0).amax(0) < 0.015)
    loss = torch.where(inside & calm, routine.objective(final.x), torch.inf)
    best = int(loss.argmin()) if bool(torch.isfinite(loss).any()) else 0
    return float(f"{rates[best].item() * 0.3**twin:.1g}")


def around(hyper: wb.Hyper, value: float, count: int) -> NDArray[np.float64]:
    """Increasing values of a hyperparameter around the present one, which is among them to the bit.

    On a log scale a tenth to ten times the value; otherwise a quarter of the slider's range to either side; legal ones
    only, so there may be fewer than `count`.
    """
    low, high = hyper.slider
    place = (np.arange(count) - count // 2) / (count // 2)
    if hyper.scale == "log" and value > 0:
        found = value * 10.0**place
    else:
        found = value + place * (high - low) / 4
    found = np.round(found) if hyper.scale == "integer" else found
    return np.unique(np.append(found[(found >= hyper.low) & (found <= hyper.high)], value))


def across(hyper: wb.Hyper, count: int) -> NDArray[np.float64]:
    """Increasing values over a slider's whole range, rounded to four digits as sliders round."""
    low, high = hyper.slider
    found = np.geomspace(low, high, count) if hyper.scale == "log" else np.linspace(low, high, count)
    digits = [float(round(v)) if hyper.scale == "integer" else float(f"{v:.4g}") for v in found]
    return np.unique(np.clip(digits, hyper.low, hyper.high))


@dataclasses.dataclass(frozen=True, eq=False)
class Fan:
    """Where a method would go from step `first` under other values of one hyperparameter.

    points: (steps + 1, 2, values). losses: f at the end of each. diverged: (values,) -1 or the step.
    """

    label: str
    name: str
    log: bool
    now: float
    first: int
    values: NDArray[np.float64]
    points: NDArray[np.float32]
    losses: NDArray[np.float64]
    diverged: NDArray[np.int32]
    made: float = dataclasses.field(default_factory=time.monotonic)


def fan(session: wb.Session, label: str, name: str, count: int) -> Fan:
    """The fan of one method of a session from where it stands."""
    index, state = session.now
    i = list(parts_of(session)).index(label)
    part, hyper = parts_of(session)[label], own_hypers(session, label)
    declared = part.hypers[name]
    tried = around(declared, float(hyper[name]), count)
    turned = {name: torch.from_numpy(tried)}
    final, points = wb.ahead(part, state.parts[i], hyper, turned, STEPS, key=session.key, first=index)
    ends = values(part.objective, points[-1].numpy())[0]
    return Fan(
        label=label,
        name=name,
        log=declared.scale == "log" and hyper[name] > 0,
        now=float(hyper[name]),
        first=index,
        values=tried,
        points=points.numpy(),
        losses=np.where(final.diverged.numpy() >= 0, np.nan, ends),
        diverged=final.diverged.numpy(),
    )


def own_hypers(session: wb.Session, label: str) -> dict[str, Any]:
    """Hyperparameters in force of one method, by its own names."""
    parts = {name.rpartition(".")[::2]: value for name, value in session.hyper.items()}
    return {own: value for (whose, own), value in ((key, value) for key, value in parts.items()) if whose == label}


class HeatMap:
    """Final losses of one method over two of its hyperparameters, from the start, made a slice of time at a time.

    `losses` (y, x) holds f after `steps` steps once `done` is 1; NaN where a run diverged, `diverged` says when.
    """

    def __init__(self, session: wb.Session, label: str, x: str, y: str, *, steps: int, side: int) -> None:
        if x == y:
            raise ValueError(f"expected two different hyperparameters, got {x} twice")
        if not (2 <= side <= 32 and 1 <= steps <= 5000):
            raise ValueError(f"expected a side from 2 to 32 and 1 to 5000 steps, got {side} and {steps}")
        self.label, self.names, self.steps = label, (x, y), steps
        self.part = parts_of(session)[label]
        self.logs = tuple(self.part.hypers[name].scale == "log" for name in (x, y))
        self.xs, self.ys = (across(self.part.hypers[name], side) for name in (x, y))
        grid_x, grid_y = (torch.from_numpy(part.ravel()) for part in np.meshgrid(self.xs, self.ys))
        runs = grid_x.numel()
        self._hyper = self.part.normalise({**own_hypers(session, label), x: grid_x, y: grid_y}, runs=runs)
        self._key, self._k = session.key, 0
        self._state = self.part.init(self._key.stream("init"), start=session.start, runs=runs)
        self.cancelled = False
        self.losses = self.diverged = np.full((len(self.ys), len(self.xs)), np.nan)

    @property
    def done(self) -> float:
        """How much is done, 0 to 1."""
        return self._k / self.steps

    def work(self, seconds: float = SLICE_SECONDS) -> bool:
        """Go on for a while; whether more is to be done."""
        end = time.perf_counter() + seconds
        while self._k < self.steps and not self.cancelled and time.perf_counter() < end:
            self._state, _ = advance(self.part, self._state, self._hyper, self._key, self._k)
            self._k += 1
        if self._k == self.steps:
            shape = self.losses.shape
            self.diverged = self._state.diverged.numpy().reshape(shape)
            ends = values(self.part.objective, self._state.x.numpy())[0].reshape(shape)
            self.losses = np.where(self.diverged >= 0, np.nan, ends)
        return self._k < self.steps and not self.cancelled

"""A solver whose every step is made by a rule of its own, and the search for a good sequence of rules.

A rule is (form, order, corrected): which prediction is taken for a polynomial in λ, "data" or "noise"; through how many
predictions, 1 to 3; and whether the step is made again once the prediction at its end is there, at no evaluation.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.flows.fields import Field, Prediction
from workbench.samplers.base import Solver, Step
from workbench.samplers.exponential import Level, Past, finite, inside, integral, level, moment, scale, span
from workbench.samplers.fitting import Paths
from workbench.samplers.solve import solve

FORMS, MOST = ("data", "noise"), 3
Rule = tuple[str, int, bool]
RULES: list[Rule] = list(itertools.product(FORMS, range(1, MOST + 1), (False, True)))
FOUND: tuple[Rule, ...] = (
    ("noise", 3, True), ("noise", 3, False), ("noise", 1, True), ("noise", 3, False), ("noise", 1, False),
)  # fmt: skip
"""What `search` finds among 150 for five steps to eight Gaussians on the variance-preserving path."""


class Made(NamedTuple):
    """`k`: steps made, 0-d. `right`: where the last step began, corrected. `x`: where its predictions were made. `t`:
    its time (runs, 1), infinite when there was none. `data`, `noise`: past predictions.
    """

    k: Tensor
    right: Tensor
    x: Tensor
    t: Tensor
    data: Past
    noise: Past


class Unified(Solver):
    """x_t = alpha_t data + s_t noise + r (x̄_s - x_s) + scale Σ_j J_j c_j, form and degree by the rule of the step.

    x̄_s is x_s made again where the rule of the step before says so, r = s_t / s_s for data and alpha_t / alpha_s for
    noise; J_j and scale as in `exponential`, J_1 of a single slope as in "dpm-solver-pp-2m". One rule for all steps is
    a known solver: data of order 1, 2, 3 "ddim", "dpm-solver-pp-2m", "unip-3", corrected "unipc-1", "unipc-2" and
    "unipc-3". The schedule is spread evenly over other numbers of steps.

    Args:
        schedule: a rule a step; what `search` finds, say.

    Raises:
        ValueError: on a rule that does not exist, or none.

    Source: Liu, Ning, Lin, Yang & Wang 2023, arXiv:2312.07243 (the framework's prediction types, Taylor orders and
    correctors; its choices of derivative estimate are left out, and time steps are the grid's).
    """

    name = "unified-solver"
    title = "A rule for every step (USF)"
    kind = "diffusion"
    source = "Liu, Ning, Lin, Yang & Wang 2023, arXiv:2312.07243"
    ledger = "a-unified-sampling-framework-for"
    evidence = "tests/samplers/test_unified.py::test_one_rule_for_all_steps_is_a_known_solver[linear-path-unipc-2]"
    converts = True
    order = 2

    def __init__(self, schedule: Sequence[Rule] = FOUND, **settings: Any) -> None:
        super().__init__(**settings)
        rules = [tuple(rule) for rule in schedule]
        for rule in rules:
            if rule not in RULES:
                raise ValueError(f"expected rules like ('data', 2, True), form, order 1 to 3, corrected; got {rule!r}")
        if not rules:
            raise ValueError("expected a rule for at least one step, got none")
        self.schedule: tuple[Rule, ...] = tuple(rules)  # type: ignore[arg-type]
        self.table = torch.tensor([[FORMS.index(form), order, corrected] for form, order, corrected in self.schedule])

    def init(self, field, x, t, end):
        k, never = torch.zeros((), dtype=torch.int64, device=x.device), torch.full_like(t, torch.inf)
        return Made(k, x, x, never, *(Past.nothing(MOST, x, t) for _ in FORMS))

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there, prediction = level(path, t), level(path, end), field(x, t)
        right = self.corrected(path, here, prediction, x, state, self.rule(state.k - 1, hyper, x))
        form, order, _ = self.rule(state.k, hyper, x)
        pasts = state.data.then(prediction.data, here.lam), state.noise.then(prediction.noise, here.lam)
        base = there.alpha * prediction.data + there.sigma * prediction.noise
        each = zip(FORMS, pasts, strict=True)
        made = [base + stretch(kind, here, there, right - x, past, order) for kind, past in each]
        return Step(torch.where(form == 0, made[0], made[1]), end, Made(state.k + 1, right, x, t, *pasts), {})

    def rule(self, k: Tensor, hyper: Any, like: Tensor) -> Tensor:
        """form, order, corrected of step k, (3, 1) int64."""
        place = (k * len(self.schedule)).div(hyper["steps"], rounding_mode="floor")
        row = place.clamp(0, len(self.schedule) - 1).reshape(1)
        return self.table.to(like.device).index_select(0, row).T

    def corrected(self, path: Any, here: Level, prediction: Prediction, x: Tensor, state: Made, rule: Tensor) -> Tensor:
        """x, or where the step before ends with this prediction among its points."""
        form, order, again = rule
        known = torch.isfinite(state.t)
        last = level(path, torch.where(known, state.t, here.t.squeeze(-1)))
        made, pasts = [], (state.data, state.noise)
        base = here.alpha * state.data.values[0] + here.sigma * state.noise.values[0]
        for kind, past in zip(FORMS, pasts, strict=True):
            (latest, *values), (now, *clock) = past
            among = Past((latest, prediction[kind], *values), (now, here.lam, *clock))
            made.append(base + stretch(kind, last, here, state.right - state.x, among, order + 1))
        good = (again == 1) & known.unsqueeze(-1) & inside(here, last)
        return torch.where(good, torch.where(form == 0, made[0], made[1]), x)

    def recipe(self):
        return self.made_with(**({} if self.schedule == FOUND else {"schedule": repr(self.schedule)}))


def stretch(form: str, here: Level, there: Level, off: Tensor, past: Past, order: Tensor) -> Tensor:
    """What a step of one form through the latest `order` predictions adds to alpha_t data + s_t noise.

    off: how far its start is from where the latest predictions were made.
    """
    h = span(here, there)
    clock = [past.clock[0], *(torch.where(order > j, at, torch.inf) for j, at in enumerate(past.clock[1:], 1))]
    alone = moment(0, h, form) * h / 2
    ratio = there.sigma / here.sigma if form == "data" else there.alpha / here.alpha
    return finite(ratio) * off + scale(there, form) * integral(h, clock, list(past.values), form, alone)


def features(schedule: Sequence[Rule]) -> NDArray[np.float64]:
    """1 and, of each step, which form, which order, whether corrected: 0 or 1 each."""
    rows = [[form == "noise", order == 2, order == 3, again] for form, order, again in schedule]
    return np.array([1.0, *np.ravel(rows)])


def search(
    field: Field, steps: int, *, trials: int = 60, samples: int = 64, seed: int = 0, guided: bool = True
) -> tuple[Rule, ...]:
    """The schedule with the least error at the end, of those tried on calibration paths with equal steps in time.

    A few random schedules first; then, in rounds, those of many mutations of the best that a linear model of the log
    error, fitted to all tried so far, puts first.

    Args:
        field: whose paths are followed finely, and which the schedules are tried on; exact ones in the plane are quick.
        steps: of the sampler.
        trials: schedules that are tried.
        samples: calibration paths.
        seed: of the search.
        guided: False tries random schedules alone, to compare with.

    Over seeds the model's guidance was not told from chance here: 60 and 120 random schedules found as good ones, where
    the paper reports a gain of its predictor.
    Source: Liu, Ning, Lin, Yang & Wang 2023, arXiv:2312.07243 (S³), with ridge regression as its predictor.
    """
    draw, paths = np.random.default_rng(seed), Paths(field, samples)
    tried: dict[tuple[Rule, ...], float] = {}

    def random() -> tuple[Rule, ...]:
        return tuple(RULES[i] for i in draw.integers(len(RULES), size=steps))

    while len(tried) < trials:
        begun = len(tried) >= min(trials, 20)
        for schedule in _promising(tried, draw) if guided and begun else [random()]:
            if schedule not in tried and len(tried) < trials:
                tried[schedule] = _error(paths, schedule)
    return min(tried, key=tried.__getitem__)


def _error(paths: Paths, schedule: tuple[Rule, ...]) -> float:
    found = solve(paths.field, Unified(schedule), x=paths.points[0], steps=len(schedule))
    return float((found - paths.points[-1]).square().sum(-1).mean().sqrt())


def _promising(tried: dict[tuple[Rule, ...], float], draw: np.random.Generator) -> list[tuple[Rule, ...]]:
    """Five mutations of the five best that the model thinks best, and one that it was not asked about."""
    parents = sorted(tried, key=tried.__getitem__)[:5]
    mutants = []
    for _ in range(100):
        child = list(parents[draw.integers(len(parents))])
        for place in draw.integers(len(child), size=draw.integers(1, 3)):
            child[place] = RULES[draw.integers(len(RULES))]
        mutants.append(tuple(child))
    a, b = np.stack([features(one) for one in tried]), np.log(list(tried.values()))
    weights = np.linalg.solve(a.T @ a + 0.1 * np.eye(a.shape[1]), a.T @ b)
    fresh = [one for one in dict.fromkeys(mutants) if one not in tried]
    return [*sorted(fresh, key=lambda one: float(features(one) @ weights))[:5], mutants[0]]

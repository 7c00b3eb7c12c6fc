"""Distilled solvers: one number a step, fitted once, lets coarse steps end where fine ones do."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.flows.fields import Prediction
from workbench.routine import Hyper
from workbench.samplers.base import Step
from workbench.samplers.exponential import Level, first_order, inverse, level, moment, span
from workbench.samplers.fitting import Fitted, Paths, least_squares


class Before(NamedTuple):
    """Of the step before: its time (runs, 1), infinite when there was none; the data it predicted, and what stood in
    for that, of the samples and of the calibration paths.
    """

    t: Tensor
    data: Tensor
    output: Tensor
    of_paths: Tensor


class DistilledDDIM(Fitted):
    """x_t = alpha_t data + s_t noise + alpha_t (1 - e^-h) (O - data), O = data + strength λ (data - data').

    data' is the one predicted a step before. λ, one number a step, is the least-squares answer to where the calibration
    paths are at t, followed finely from where they are at s. strength = 0 is DDIM, and so is the first step.
    Source: Kim, Tang & Yu 2024, arXiv:2309.16421 (D-DDIM), which fits along the student's own path; here along exact
    ones, so that a step's λ does not depend on the steps before. Derived here for any alpha and s.
    """

    name = "distilled-ddim"
    title = "DDIM, distilled"
    source = "Kim, Tang & Yu 2024, arXiv:2309.16421"
    ledger = "distilling-ode-solvers-of-diffusion"
    evidence = "tests/samplers/test_distilled.py::test_few_steps_end_nearer_to_the_fine_solution[8-distilled-ddim]"
    order = 1
    strength: Any = Hyper(1.0, 0.0, 1.0, doc="How much of the fitted change is made: 0 is the plain solver.")

    def init(self, field, x, t, end):
        paths = self.paths(field.interpolant)
        none = torch.zeros_like(x)
        return Before(torch.full_like(t, torch.inf), none, none, torch.zeros_like(paths.at(t), dtype=x.dtype))

    def step(self, field, path, x, t, end, state, hyper, noise):
        prediction = field(x, t)
        lam, of_paths = self.fitted(self.paths(path), t, end, state)
        output = prediction.data + (hyper["strength"] * lam).to(x.dtype) * (prediction.data - state.data)
        levels = level(path, t), level(path, end), _earlier(path, state.t, t)
        new = self.ahead(prediction, output, state.output, *levels)
        return Step(new, end, Before(t, prediction.data, output, of_paths.to(x.dtype)), {})

    def fitted(self, paths: Paths, t: Tensor, end: Tensor, state: Before) -> tuple[Tensor, Tensor]:
        """λ (runs, 1, 1), and what stands in for the data predicted on the calibration paths; float64."""
        t, end, before, path = t.double(), end.double(), state.t.double(), paths.field.interpolant
        old = state.of_paths.double()
        levels = level(path, t), level(path, end), _earlier(path, before, t)
        prediction = paths.ask(t)
        change = prediction.data - paths.ask(torch.where(torch.isfinite(before), before, t)).data
        plain = self.ahead(prediction, prediction.data, old, *levels)
        moved = self.ahead(prediction, prediction.data + change, old, *levels) - plain  # linear in λ
        (lam,) = least_squares(paths.at(end) - plain, [moved])
        lam = torch.where(torch.isfinite(before).unsqueeze(-1), lam, 0)
        return lam, prediction.data + lam * change

    def ahead(
        self, prediction: Prediction, output: Tensor, old: Tensor, here: Level, there: Level, before: Level
    ) -> Tensor:
        """The base solver's step with `output` for the data predicted, `old` a step before: DDIM."""
        return first_order(prediction, there) + _weight(here, there) * (output - prediction.data)


class DistilledDPMSolverPP2M(DistilledDDIM):
    """x_t = alpha_t data + s_t noise + alpha_t (1 - e^-h) (O - data + (h / 2h') (O - O')), O as of "distilled-ddim".

    strength = 0 is "dpm-solver-pp-2m". The fit mends most where that has large errors, on the variance-preserving path;
    on the linear one, where it has small ones, the mended steps add up to a little more.
    Source: Kim, Tang & Yu 2024, arXiv:2309.16421 (D-DPM-Solver); see "distilled-ddim".
    """

    name = "distilled-dpm-solver-pp-2m"
    title = "DPM-Solver++(2M), distilled"
    evidence = (
        "tests/samplers/test_distilled.py::test_few_steps_end_nearer_to_the_fine_solution[8-distilled-dpm-solver-pp-2m]"
    )
    order = 2

    def ahead(self, prediction, output, old, here, there, before):
        ratio = span(here, there) / 2 * inverse(here.lam - before.lam)
        change = output - prediction.data + ratio * (output - old)
        return first_order(prediction, there) + _weight(here, there) * change


def _weight(here: Level, there: Level) -> Tensor:
    """alpha_t (1 - e^-h): what a change of the data predicted counts for in x_t."""
    return there.alpha * moment(0, span(here, there), "data")


def _earlier(path: Any, before: Tensor, t: Tensor) -> Level:
    """The level of the step before; at t itself when there was none."""
    return level(path, torch.where(torch.isfinite(before), before, t))

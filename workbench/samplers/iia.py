"""Improved integration approximation: a solver's own coefficients, fitted anew for every step on a few exact paths.

With u = x / alpha and rho = s / alpha the flow is du / d rho = noise, and a solver's step a sum of weights times what
it knows of noise. The weights are the least-squares answer to where the calibration paths are at the end of the step.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.samplers.base import Step
from workbench.samplers.exponential import first_order, inside, level
from workbench.samplers.fitting import Fitted, least_squares


class Last(NamedTuple):
    """The time of the step before (runs, 1), infinite when there was none, and the noise it predicted."""

    t: Tensor
    noise: Tensor


class IIADDIM(Fitted):
    """u_t = u + (rho_t - rho_s + δ_0) noise + δ_1 (noise - noise'), noise' predicted a step before.

    δ = 0 is DDIM; with more and more steps δ_0 vanishes and δ_1 becomes the weight of the rule of Adams and Bashforth
    of second order. The first step has δ_0 alone; a step from or to where there is no data or no noise is one of DDIM.
    Source: Zhang, Niwa & Kleijn 2023, arXiv:2304.11328 (IIA-DDIM); derived here from its principle, and fitted on exact
    paths instead of the solver's own with fine steps between.
    """

    name = "iia-ddim"
    title = "DDIM, refitted (IIA)"
    source = "Zhang, Niwa & Kleijn 2023, arXiv:2304.11328"
    ledger = "on-accelerating-diffusion-based-sampling-process"
    evidence = "tests/samplers/test_iia.py::test_few_evaluations_end_nearer_to_the_fine_solution[8-ddim]"
    order = 1

    def init(self, field, x, t, end):
        return Last(torch.full_like(t, torch.inf), torch.zeros_like(x))

    def step(self, field, path, x, t, end, state, hyper, noise):
        prediction, there = field(x, t), level(path, end)
        weights = self.weights(path, t, end, state.t)
        change = sum_of(weights, [prediction.noise, prediction.noise - state.noise], x)
        return Step(first_order(prediction, there) + change, end, Last(t, prediction.noise), {})

    def weights(self, path: Any, t: Tensor, end: Tensor, before: Tensor) -> list[Tensor]:
        """alpha_t δ_0 and alpha_t δ_1, (runs, 1, 1), float64."""
        paths, t, end, before = self.paths(path), t.double(), end.double(), before.double()
        here, there, known = level(path, t), level(path, end), torch.isfinite(before)
        prediction = paths.ask(t)
        old = paths.ask(torch.where(known, before, t)).noise
        directions = [prediction.noise, torch.where(known.unsqueeze(-1), prediction.noise - old, 0)]
        found = least_squares(paths.at(end) - first_order(prediction, there), directions)
        return [torch.where(inside(here, there), weight, 0) for weight in found]


class IIAEDM(Fitted):
    """u_t = u + (rho_t - rho_s) (noise + noise') / 2 + δ_0 noise + δ_1 (noise' - noise), noise' at Euler's end point.

    δ = 0 is "edm-heun"; both vanish with more and more steps. Two evaluations a step; a step from or to where there is
    no data or no noise is one of Euler's, with a second evaluation that is not used. On the linear path it gains from
    six steps on.
    Source: Zhang, Niwa & Kleijn 2023, arXiv:2304.11328 (IIA-EDM); see "iia-ddim".
    """

    name = "iia-edm"
    title = "EDM Heun, refitted (IIA)"
    source = "Zhang, Niwa & Kleijn 2023, arXiv:2304.11328"
    ledger = "on-accelerating-diffusion-based-sampling-process"
    evidence = "tests/samplers/test_iia.py::test_few_evaluations_end_nearer_to_the_fine_solution[8-edm]"
    order = 2

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        euler = first_order(prediction, there)
        directions = [prediction.noise, field(euler, end).noise - prediction.noise]
        whole = sum_of(self.weights(path, t, end), directions, x)
        return Step(torch.where(inside(here, there), euler + whole, euler), end, (), {})

    def weights(self, path: Any, t: Tensor, end: Tensor) -> list[Tensor]:
        """alpha_t δ_0, and alpha_t (δ_1 + (rho_t - rho_s) / 2), what Heun's method adds to Euler's included."""
        paths, t, end = self.paths(path), t.double(), end.double()
        here, there = level(path, t), level(path, end)
        prediction = paths.ask(t)
        euler = first_order(prediction, there)
        change = paths.ask(end, euler).noise - prediction.noise
        half = torch.where(inside(here, there), there.alpha * (there.rho - here.rho) / 2, 0)
        first, second = least_squares(paths.at(end) - euler - half * change, [prediction.noise, change])
        return [first, second + half]


def sum_of(weights: list[Tensor], directions: list[Tensor], like: Tensor) -> Tensor:
    """Σ weight · direction in the dtype of the points."""
    first, second = (weight.to(like.dtype) * direction for weight, direction in zip(weights, directions, strict=True))
    return first + second

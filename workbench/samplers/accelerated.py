"""Accelerated DDIM and DDPM: the same steps with one correction each, which needs no training.

Their steps are written for a process that keeps the variance, x = √ā data + √(1 - ā) noise. Any other is one after
division by r = √(alpha² + s²): ā = alpha² / r², and the score is r times the score of x. Below x and s are those of the
divided points, A = ā_s / ā_t of this step from s to t.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from workbench.flows.fields import Prediction
from workbench.samplers.base import Solver, Step
from workbench.samplers.exponential import Level, first_order, inside, level, unit_normal


class AcceleratedDDIM(Solver):
    """x_t = A^-½ (x + (1 - A)/2 s(x) + (1 - A)²/(4 (1 - B)) (s(x) - √B s'(y))), y = √B (x - (1 - B)/2 s(x)).

    y is a step back to the time before, B = ā' / ā_s, and s' the score there: the difference tells how the score
    changes along the path. Two evaluations a step, and of second order where DDIM is of first. The first step, which
    has none before it, is a DDIM step of one evaluation; so is one from or to a point where there is no data or no
    noise.
    With A ≈ 1 - d, √B ≈ 1 - d'/2 the terms of order d² are those of the path expanded: checked by that, and by the
    order that is measured, not against the paper's public code, which has other coefficients.
    Source: Li, Huang, Efimov, Wei, Chi & Chen 2024, arXiv:2403.03852, the deterministic sampler.
    """

    name = "accelerated-ddim"
    title = "Accelerated DDIM"
    kind = "diffusion"
    source = "Li, Huang, Efimov, Wei, Chi & Chen 2024, arXiv:2403.03852"
    ledger = "accelerating-convergence-of-score-based-diffusion"
    evidence = "tests/samplers/test_accelerated.py::test_the_deterministic_sampler_is_of_second_order_and_ddim_of_first"
    converts = True
    order = 2

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        new = first_order(prediction, there)
        if not state:
            return Step(new, end, (t,), {})
        (last,) = state
        before = level(path, last)
        a, b = log_ratio(here, there), log_ratio(before, here)
        point, slope = x / size(here), score(prediction, here)
        y = (b / 2).exp() * (point + torch.expm1(b) / 2 * slope)
        change = slope - (b / 2).exp() * score(field(size(before) * y, last), before)
        far, back = -torch.expm1(a), -torch.expm1(b)
        moved = (-a / 2).exp() * (point + far / 2 * slope + far.square() / (4 * back) * change)
        defined = inside(before, here, there) & (b != 0)
        return Step(torch.where(defined, size(there) * moved, new), end, (t,), {})


class AcceleratedDDPM(Solver):
    """y = x + √((1 - A)/2) z; x_t = A^-½ (y + (1 - A) s(y) + √((1 - A)/2) z').

    Half of the noise before the score is asked for and half after it, with DDPM's one evaluation a step. That gives the
    noise of a step the covariance (1 - A) (1 + (1 - A) ∇s) which the true posterior has. A step from pure noise, or to
    none, is one of DDPM.
    Source: Li, Huang, Efimov, Wei, Chi & Chen 2024, arXiv:2403.03852, the stochastic sampler, as in
    https://github.com/TimofeyEfimov/AcceleratedDiffusionSamplers but for the second noise, which has no A^-½ there and
    is left out of the last step. Here it is inside the bracket, as in the plain DDPM step beside theirs: only so a unit
    normal keeps its variance to the second order of 1 - A.
    """

    name = "accelerated-ddpm"
    title = "Accelerated DDPM"
    kind = "diffusion"
    source = "Li, Huang, Efimov, Wei, Chi & Chen 2024, arXiv:2403.03852"
    ledger = "accelerating-convergence-of-score-based-diffusion"
    evidence = "tests/samplers/test_accelerated.py::test_the_stochastic_sampler_is_nearer_to_the_data_than_ddpm"
    converts, random, both_ways = True, True, False

    def draw(self, key, path, x, t, end):
        middle = t + (end - t) / 2
        return unit_normal(path, t, middle), unit_normal(path, middle, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        a = log_ratio(here, there)
        far = -torch.expm1(a)
        first, second = ((far / 2).clamp(min=0).sqrt() * z for z in noise)
        whole = torch.isfinite(a) & (there.sigma > 0)
        y = torch.where(whole, x / size(here) + first, x / size(here))
        prediction = field(size(here) * y, t)
        moved = (-a / 2).exp() * (y + far * score(prediction, here) + second)
        plain = there.alpha * prediction.data + there.sigma * noise[1]
        return Step(torch.where(whole, size(there) * moved, plain), end, (), {})


def size(at: Level) -> Tensor:
    """r = √(alpha² + s²)."""
    return torch.hypot(at.alpha, at.sigma)


def score(prediction: Prediction, at: Level) -> Tensor:
    """Of the points divided by r."""
    return -size(at) / at.sigma * prediction.noise


def log_ratio(here: Level, there: Level) -> Tensor:
    """log(ā_s / ā_t), accurate for short steps too: ā = 1 / (1 + e^-2λ)."""
    return softplus(-2 * there.lam) - softplus(-2 * here.lam)

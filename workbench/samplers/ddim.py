"""DDIM and its noisy relatives: one evaluation a step, data and noise as predicted and some of the noise drawn anew.

With s the spread of the interpolant and e^-h = alpha_s s_t / (alpha_t s_s), all of them are

    x_t = alpha_t data + √(s_t² - v²) noise + v z,        v = eta s_t √(1 - e^-2h),        z ~ N(0, I)

which keeps the marginal of x_t for every eta.
"""

from typing import Any

import torch

from workbench.routine import Hyper
from workbench.samplers.base import Solver, Step
from workbench.samplers.exponential import Level, first_order, level, unit_normal


class DDIM(Solver):
    """x_t = alpha_t data + s_t noise, both as predicted at s: deterministic, and back from data to source as well.

    Exponential Euler in λ for data and for noise alike, Euler's method for x / alpha in s / alpha.
    Source: Song, Meng & Ermon 2021, arXiv:2010.02502, equation 12 with sigma_t = 0.
    """

    name = "ddim"
    title = "DDIM"
    kind = "diffusion"
    source = "Song, Meng & Ermon 2021, arXiv:2010.02502"
    evidence = "tests/samplers/test_diffusers_parity.py::test_ddim_equals_diffusers[uneven]"
    converts = True
    order = 1

    def step(self, field, path, x, t, end, state, hyper, noise):
        return Step(first_order(field(x, t), level(path, end)), end, (), {})


class NoisyDDIM(Solver):
    """x_t = alpha_t data + √(s_t² - v²) noise + v z with v = eta s_t √(1 - e^-2h): DDIM at eta = 0, DDPM at 1.

    Source: Song, Meng & Ermon 2021, arXiv:2010.02502, equations 12 and 16, for any alpha and s.
    """

    name = "ddim-eta"
    title = "DDIM with noise"
    kind = "diffusion"
    source = "Song, Meng & Ermon 2021, arXiv:2010.02502"
    evidence = "tests/samplers/test_diffusers_parity.py::test_noisy_ddim_equals_diffusers[0.4]"
    converts, random, both_ways = True, True, False
    eta: Any = Hyper(0.5, 0.0, 1.0, doc="How much of the noise is drawn anew: 0 is DDIM, 1 is DDPM.")

    def draw(self, key, path, x, t, end):
        return unit_normal(path, t, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        fresh = hyper["eta"].square() * fresh_share(here, there)
        kept = there.sigma * (1 - fresh).sqrt()
        new = there.alpha * prediction.data + kept * prediction.noise + there.sigma * fresh.sqrt() * noise
        return Step(new, end, (), {})


class DDPM(Solver):
    """x_t = mean of q(x_t | x_s, data) + √variance z: ancestral sampling.

    The mean is alpha_t data + s_t e^-h noise. The variance is that of q(x_t | x_s, data), s_t² (1 - e^-2h), when
    "small", and that of q(x_s | x_t), s_s² (1 - e^-2h), when "large"; none on a step that ends without noise.
    With "small" it is DDIM at eta = 1, and Euler ancestral sampling.
    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, algorithm 2 and equations 6 and 7, for any alpha and s.
    """

    name = "ddpm"
    title = "DDPM"
    kind = "diffusion"
    source = "Ho, Jain & Abbeel 2020, arXiv:2006.11239"
    evidence = "tests/samplers/test_diffusers_parity.py::test_ddpm_equals_diffusers[small]"
    converts, random, both_ways = True, True, False
    variance: Any = Hyper("small", scale="choice", kind="shape", choices=("small", "large"), doc="Of the noise added.")

    def draw(self, key, path, x, t, end):
        return unit_normal(path, t, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        fresh = fresh_share(here, there)
        kept = there.sigma * (1 - fresh).sqrt()
        size = there.sigma if hyper["variance"] == "small" else torch.where(there.sigma > 0, here.sigma, 0)
        return Step(there.alpha * prediction.data + kept * prediction.noise + size * fresh.sqrt() * noise, end, (), {})


def fresh_share(here: Level, there: Level) -> torch.Tensor:
    """1 - e^-2h: the share of the noise's variance that a Markov chain with these marginals draws anew."""
    return -torch.expm1(2 * (here.lam - there.lam)).clamp(max=0)

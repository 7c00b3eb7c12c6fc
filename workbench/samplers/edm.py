"""Heun's method in the noise level, deterministic and with churn.

Points are divided by alpha: u = x / alpha has noise rho = s / alpha, and du / d rho = noise. So it is the method of
Karras et al. for every interpolant, whatever its alpha.
"""

import math
from typing import Any

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.routine import Hyper
from workbench.samplers.base import Evaluate, Solver, Step
from workbench.samplers.exponential import finite, first_order, inside, level, unit_normal

MOST_CHURN = math.sqrt(2) - 1


class EDMHeun(Solver):
    """u' = u + (rho_t - rho_s) noise; u_t = u + (rho_t - rho_s) (noise + noise') / 2, noise' predicted at u' and rho_t.

    On a step from or to a place without data or without noise the second evaluation is made but not used: Euler.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1, for x / alpha.
    """

    name = "edm-heun"
    title = "EDM Heun"
    kind = "diffusion"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/samplers/test_diffusers_parity.py::test_heun_equals_diffusers"
    converts = True
    order = 2

    def step(self, field, path, x, t, end, state, hyper, noise):
        return Step(heun(field, path, x, t, end), end, (), {})


class EDMChurn(Solver):
    """EDM Heun from a little earlier: û = u + √(rhô² - rho²) s_noise z with rhô = (1 + γ) rho, then Heun to rho_t.

    γ = min(s_churn / steps, √2 - 1) while s_min ≤ rho ≤ s_max, otherwise 0. rhô is never beyond the source end.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2, for x / alpha.
    """

    name = "edm-churn"
    title = "EDM with churn"
    kind = "diffusion"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/samplers/test_diffusion.py::test_churn_is_algorithm_2[edm-path-all]"
    converts, random, both_ways = True, True, False
    s_churn: Any = Hyper(40.0, 0.0, 1e4, soft=(0.0, 100.0), doc="Noise added, over all steps; 0 is EDM Heun.")
    s_min: Any = Hyper(0.0, 0.0, 1e4, soft=(0.0, 10.0), doc="No churn below this noise level (s / alpha).")
    s_max: Any = Hyper(1e4, 0.0, 1e4, soft=(0.0, 1e4), doc="No churn above this noise level (s / alpha).")
    s_noise: Any = Hyper(1.0, 0.0, 2.0, soft=(0.9, 1.1), doc="Standard deviation of the added noise.")

    def draw(self, key, path, x, t, end):
        return unit_normal(path, t, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here = level(path, t)
        churned = (here.rho >= hyper["s_min"]) & (here.rho <= hyper["s_max"])
        gamma = torch.where(churned, (hyper["s_churn"] / hyper["steps"]).clamp(max=MOST_CHURN), 0)
        earlier = path.time_of((here.lam - torch.log1p(gamma)).squeeze(-1))
        earlier = torch.where(gamma.squeeze(-1) > 0, earlier, t)
        there = level(path, earlier)
        added = finite(there.rho.square() - here.rho.square()).clamp(min=0).sqrt()
        size = torch.where(gamma > 0, there.alpha / here.alpha, 1)
        x = size * x + there.alpha * added * hyper["s_noise"] * noise
        return Step(heun(field, path, x, earlier, end), end, (), {})


def heun(field: Evaluate, path: Interpolant, x: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """Heun's method for x / alpha in s / alpha from t to end."""
    here, there = level(path, t), level(path, end)
    prediction = field(x, t)
    euler = first_order(prediction, there)
    change = field(euler, end).noise - prediction.noise
    return torch.where(inside(here, there), euler + there.alpha * (there.rho - here.rho) / 2 * change, euler)

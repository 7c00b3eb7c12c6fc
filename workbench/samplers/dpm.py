"""DPM-Solver and DPM-Solver++: exponential integrators in λ = log(alpha / s), for noise and for data predictions.

Everything is `exponential.py`'s step, with another polynomial. A step from or to infinite λ is a DDIM step.
"""

from typing import ClassVar

import torch
from torch import Tensor

from workbench.flows.interpolants import Interpolant
from workbench.samplers.base import Solver, Step
from workbench.samplers.ddim import DDIM, fresh_share
from workbench.samplers.exponential import (
    Level,
    Multistep,
    first_order,
    inverse,
    level,
    moment,
    scale,
    slope_moment,
    span,
    unit_normal,
)


class DPMSolver1(DDIM):
    """x_t = (alpha_t / alpha_s) x - s_t (e^h - 1) noise, which is DDIM; written as that it is finite at alpha_s = 0.

    Source: Lu et al. 2022, arXiv:2206.00927, equation 3.7.
    """

    name = "dpm-solver-1"
    title = "DPM-Solver-1"
    source = "Lu et al. 2022, arXiv:2206.00927"
    evidence = "tests/samplers/test_diffusion.py::test_ddim_is_exponential_euler_in_noise_and_in_data"


# --------------------------------------------------------------------------------------------- within one step


class Singlestep(Solver):
    """Stages at λ_s + r h, each reached from s by the polynomial through what is known so far.

    Attributes:
        form: which prediction is taken for a polynomial, "data" or "noise".
        stages: r of each stage after the first.
    """

    kind = "diffusion"
    converts = True
    form: ClassVar[str] = "noise"
    stages: ClassVar[tuple[float, ...]] = (0.5,)

    def step(self, field, path, x, t, end, state, hyper, noise):
        here = level(path, t)
        h = span(here, level(path, end))
        prediction = field(x, t)
        slope = torch.zeros_like(x)
        for r, at in zip(self.stages, self.times(path, t, end, here, h), strict=True):
            there = level(path, at)
            stage = first_order(prediction, there) + self.change(there, r * h) * slope
            slope = (field(stage, at)[self.form] - prediction[self.form]) * inverse(r * h)
        there = level(path, end)
        weight = self.middle(there, h) if len(self.stages) == 1 else self.change(there, h)
        return Step(first_order(prediction, there) + weight * slope, end, (), {})

    def times(self, path: Interpolant, t: Tensor, end: Tensor, here: Level, h: Tensor) -> tuple[Tensor, ...]:
        """Those of λ_s + r h, one a stage; t + r (end - t) where h is infinite (and 0)."""
        r = torch.tensor(self.stages, dtype=t.dtype, device=t.device)
        h = h.squeeze(-1)
        found = torch.where(h == 0, t + r * (end - t), path.time_of(here.lam.squeeze(-1) + r * h))
        return found.split(1, -1)

    def change(self, to: Level, h: Tensor) -> Tensor:
        """What a slope in λ weighs after h: its exact integral."""
        return scale(to, self.form) * moment(1, h, self.form)

    def middle(self, to: Level, h: Tensor) -> Tensor:
        """The same with the slope's change taken to be that of the middle everywhere."""
        return scale(to, self.form) * moment(0, h, self.form) * h / 2


class DPMSolver2(Singlestep):
    """u = DDIM step to λ_s + h / 2; x_t = (alpha_t / alpha_s) x - s_t (e^h - 1) noise(u).

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1 (r1 = 1/2).
    """

    name = "dpm-solver-2"
    title = "DPM-Solver-2"
    source = "Lu et al. 2022, arXiv:2206.00927"
    evidence = "tests/samplers/test_diffusers_parity.py::test_singlestep_equals_diffusers[dpm-solver-2]"
    order = 2


class DPMSolver3(Singlestep):
    """Stages at h / 3 and 2h / 3, D_i = noise(u_i) - noise(x):

        u_2 = DDIM step to 2h/3 - s_2 2 ((e^{2h/3} - 1) / (2h/3) - 1) D_1
        x_t = DDIM step - s_t (3/2) ((e^h - 1) / h - 1) D_2

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 2 (r1 = 1/3, r2 = 2/3).
    """

    name = "dpm-solver-3"
    title = "DPM-Solver-3"
    source = "Lu et al. 2022, arXiv:2206.00927"
    evidence = "tests/samplers/test_diffusers_parity.py::test_singlestep_equals_diffusers[dpm-solver-3]"
    stages = (1 / 3, 2 / 3)
    order = 3


class DPMSolverPP2S(Singlestep):
    """u = DDIM step to λ_s + h / 2; x_t = (s_t / s_s) x + alpha_t (1 - e^-h) data(u).

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 (r = 1/2).
    """

    name = "dpm-solver-pp-2s"
    title = "DPM-Solver++(2S)"
    source = "Lu et al. 2022, arXiv:2211.01095"
    evidence = "tests/samplers/test_diffusers_parity.py::test_singlestep_equals_diffusers[dpm-solver-pp-2s]"
    form = "data"
    order = 2


class DPMSolverPP3S(Singlestep):
    """DPM-Solver-3 for data predictions: stages at h / 3 and 2h / 3, D_i = data(u_i) - data(x):

        u_2 = DDIM step to 2h/3 + alpha_2 2 ((e^{-2h/3} - 1) / (2h/3) + 1) D_1
        x_t = DDIM step + alpha_t (3/2) ((e^-h - 1) / h + 1) D_2

    Source: Lu et al. 2022, arXiv:2211.01095, and the authors' public code.
    """

    name = "dpm-solver-pp-3s"
    title = "DPM-Solver++(3S)"
    source = "Lu et al. 2022, arXiv:2211.01095"
    evidence = "tests/samplers/test_diffusers_parity.py::test_singlestep_equals_diffusers[dpm-solver-pp-3s]"
    form = "data"
    stages = (1 / 3, 2 / 3)
    order = 3


# --------------------------------------------------------------------------------------------- over several steps


class DPMSolverPP2M(Multistep):
    """x_t = (s_t / s_s) x + alpha_t (1 - e^-h) (data + (h / 2 h') (data - data')), data' from the step before, h' long.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    name = "dpm-solver-pp-2m"
    title = "DPM-Solver++(2M)"
    source = "Lu et al. 2022, arXiv:2211.01095"
    evidence = "tests/samplers/test_diffusers_parity.py::test_multistep_equals_diffusers[dpm-solver-pp-2m]"
    order = 2

    def weights(self, here, there, clock):
        h = span(here, there)
        return [there.alpha * moment(0, h, "data") * h / 2]


class DPMSolverPP3M(Multistep):
    """2M with a second difference: x_t = DDIM step + alpha_t (J_1 c_1 + J_2 c_2 / 2), c from three predictions.

    This is the method of the authors' public code and of diffusers; its second step is one of 2M. Exact integration of
    the quadratic through three predictions is alpha_t (J_1 c_1 + J_2 c_2), twice the last term: with half of it the
    error of a step is of third order, and the method of second order like 2M. "unip-3" has the whole term and is of
    third order.
    Source: Lu et al. 2022, arXiv:2211.01095, multistep third update of https://github.com/LuChengTHU/dpm-solver.
    """

    name = "dpm-solver-pp-3m"
    title = "DPM-Solver++(3M)"
    source = "Lu et al. 2022, arXiv:2211.01095"
    evidence = "tests/samplers/test_diffusers_parity.py::test_multistep_equals_diffusers[dpm-solver-pp-3m]"
    past = 2
    order = 2

    def weights(self, here, there, clock):
        h = span(here, there)
        slope = slope_moment(h, clock, "data", moment(0, h, "data") * h / 2)
        return [there.alpha * slope, there.alpha * moment(2, h, "data") / 2]


class SDEDPMSolverPP2M(Multistep):
    """x_t = (s_t / s_s) e^-h x + alpha_t (1 - e^-2h) (data + (h / 2 h') (data - data')) + s_t √(1 - e^-2h) z.

    DDPM with the slope of 2M.
    Source: Lu et al. 2022, arXiv:2211.01095, SDE-DPM-Solver++(2M).
    """

    name = "sde-dpm-solver-pp-2m"
    title = "SDE-DPM-Solver++(2M)"
    source = "Lu et al. 2022, arXiv:2211.01095"
    evidence = "tests/samplers/test_diffusers_parity.py::test_sde_multistep_equals_diffusers"
    random, both_ways = True, False

    def draw(self, key, path, x, t, end):
        return unit_normal(path, t, end)

    def first(self, prediction, here, there, noise):
        fresh = fresh_share(here, there)
        kept, drawn = (1 - fresh).sqrt() * prediction.noise, fresh.sqrt() * noise
        return there.alpha * prediction.data + there.sigma * (kept + drawn)

    def weights(self, here, there, clock):
        h = span(here, there)
        return [there.alpha * fresh_share(here, there) * h / 2]

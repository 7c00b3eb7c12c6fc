"""PNDM: pseudo numerical methods, Adams–Bashforth in time for the noise inside a DDIM step, with a start of its own.

The first steps evaluate several times, so a step reads on the host how many have been made.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.samplers.base import Step
from workbench.samplers.deis import IPNDM, transfer
from workbench.samplers.exponential import Past, first_order, level

NoiseAt = Callable[[Tensor, Tensor], Tensor]
"""noise_at(time, noise): the noise predicted there, after a DDIM step with a noise."""


class Started(NamedTuple):
    """`past`: earlier predictions. `made`: steps, 0-d."""

    past: Past
    made: Tensor


class PNDM(IPNDM):
    """iPNDM whose first steps take their mean of the noise from evaluations within the step.

    Attributes:
        starts: how many steps do.
    """

    host_sync = True
    starts: ClassVar[int] = 1

    def init(self, field, x, t, end):
        return Started(super().init(field, x, t, end), torch.zeros((), dtype=torch.int32, device=x.device))

    def step(self, field, path, x, t, end, state, hyper, noise):
        if int(state.made) >= self.starts:
            made = super().step(field, path, x, t, end, state.past, hyper, noise)
            return made._replace(state=Started(made.state, state.made + 1))
        here, prediction = level(path, t), field(x, t)

        def moved(to: Tensor, noise: Tensor) -> Tensor:
            """The DDIM step to a time, with another noise."""
            there = level(path, to)
            return first_order(prediction, there) + transfer(here, there) * (noise - prediction.noise)

        def noise_at(to: Tensor, noise: Tensor) -> Tensor:
            """The noise predicted after such a step; the same noise where there is none."""
            return torch.where(level(path, to).sigma > 0, field(moved(to, noise), to).noise, noise)

        new = moved(end, self.mean_noise(noise_at, prediction.noise, t, end))
        return Step(new, end, Started(state.past.then(prediction.noise, here.t), state.made + 1), {})

    def mean_noise(self, noise_at: NoiseAt, first: Tensor, t: Tensor, end: Tensor) -> Tensor:
        """The mean of the noise over the step, by the improved Euler method."""
        return (first + noise_at(end, first)) / 2


class SPNDM(PNDM):
    """DDIM with noise' = (3 noise - noise_before) / 2 on equal steps; the first step by the improved Euler method.

    Source: Liu et al. 2022, arXiv:2202.09778, S-PNDM, as in https://github.com/luping-liu/PNDM.
    """

    name = "s-pndm"
    title = "S-PNDM"
    source = "Liu et al. 2022, arXiv:2202.09778"
    evidence = "tests/samplers/test_diffusion.py::test_s_pndm_is_its_rule_written_out"
    past = 1


class PLMS(PNDM):
    """DDIM with noise' by Adams–Bashforth of fourth order in time; (55, -59, 37, -9) / 24 on equal steps.

    The first step by the improved Euler method (two evaluations), the next two of second and third order.
    Source: Liu et al. 2022, arXiv:2202.09778, with the start of latent diffusion's PLMS, as in diffusers.
    """

    name = "plms"
    title = "PLMS"
    source = "Liu et al. 2022, arXiv:2202.09778"
    evidence = "tests/samplers/test_diffusers_parity.py::test_plms_equals_diffusers"


class FPNDM(PNDM):
    """PLMS whose first three steps are pseudo Runge–Kutta steps of four evaluations: F-PNDM.

    noise' = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6; e_2, e_3 halfway in time and e_4 at the end, each after a DDIM step with
    the one before.
    Source: Liu et al. 2022, arXiv:2202.09778, F-PNDM, as in https://github.com/luping-liu/PNDM.
    """

    name = "pndm"
    title = "PNDM (F-PNDM)"
    source = "Liu et al. 2022, arXiv:2202.09778"
    evidence = "tests/samplers/test_diffusers_parity.py::test_pndm_equals_diffusers"
    starts = 3

    def mean_noise(self, noise_at, first, t, end):
        middle = (t + end) / 2
        second = noise_at(middle, first)
        third = noise_at(middle, second)
        fourth = noise_at(end, third)
        return (first + 2 * second + 2 * third + fourth) / 6

"""UniPC: a multistep predictor for data predictions, and a corrector that costs no evaluation.

The prediction at the end of a step is needed for the next step anyway; the corrector uses it to make the step again.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.routine import Hyper
from workbench.samplers.base import Solver, Step
from workbench.samplers.exponential import Past, finite, first_order, integral, level, moment, span


class Corrigible(NamedTuple):
    """`base`: the part of the last step that needs no slope, alpha_t (1 - e^-h) data + (s_t / s_s) x. `past`."""

    base: Tensor
    past: Past


class UniPC(Solver):
    """UniP: x_t = base + alpha_t Σ_k J_k c_k, the polynomial through `past` data predictions, s the latest.

    UniC: the same with the prediction at t among them, one degree more, once it is there. Where there is one slope
    only, J_1 = h B / 2 with B = h ("bh1") or 1 - e^-h ("bh2"); otherwise B drops out. The last step is not corrected.

    Attributes:
        past: how many predictions the predictor takes, the p of UniPC-p.
        corrects: whether there is a corrector.
    """

    kind = "diffusion"
    converts = True
    past: ClassVar[int] = 2
    corrects: ClassVar[bool] = True
    variant: Any = Hyper("bh2", scale="choice", kind="shape", choices=("bh1", "bh2"), doc="B(h) = h or e^h - 1.")

    def init(self, field, x, t, end):
        return Corrigible(x, Past.nothing(self.past, x, t))

    def step(self, field, path, x, t, end, state, hyper, noise):
        here, there = level(path, t), level(path, end)
        prediction = field(x, t)
        data, (base, past) = prediction.data, state
        right = x
        if self.corrects:
            last, *earlier = past.clock
            clock, values = [last, here.lam, *earlier], [past.values[0], data, *past.values[1:]]
            change = here.alpha * self.change(finite(here.lam - last), clock, values, hyper)
            right = torch.where(torch.isfinite(here.lam - last), base + change, x)
        new = first_order(prediction, there) + finite(there.sigma / here.sigma) * (right - x)
        clock, values = [here.lam, *past.clock[:-1]], [data, *past.values[:-1]]
        change = there.alpha * self.change(span(here, there), clock, values, hyper)
        return Step(new + change, end, Corrigible(new, past.then(data, here.lam)), {})

    def change(self, h: Tensor, clock: list[Tensor], values: list[Tensor], hyper: Any) -> Tensor:
        """Σ_k J_k c_k after h from clock[0] on, of the polynomial through the values."""
        alone = h / 2 * (h if hyper["variant"] == "bh1" else moment(0, h, "data"))
        return integral(h, clock, values, "data", alone)


class UniP3(UniPC):
    """The predictor of UniPC-3 alone: the quadratic through three data predictions, integrated exactly.

    The multistep exponential Adams method of third order; UniP-2 (bh2) is DPM-Solver++(2M).
    Source: Zhao et al. 2023, arXiv:2302.04867, UniP-p.
    """

    name = "unip-3"
    title = "UniP-3"
    source = "Zhao et al. 2023, arXiv:2302.04867"
    evidence = "tests/samplers/test_diffusers_parity.py::test_unipc_equals_diffusers[unip-3-bh2]"
    past, corrects = 3, False
    order = 3


class UniPC1(UniPC):
    """UniPC with p = 1: DDIM, then corrected by one slope.

    Source: Zhao et al. 2023, arXiv:2302.04867, UniPC-p, as in https://github.com/wl-zhao/UniPC.
    """

    name = "unipc-1"
    title = "UniPC-1"
    source = "Zhao et al. 2023, arXiv:2302.04867"
    evidence = "tests/samplers/test_diffusers_parity.py::test_unipc_equals_diffusers[unipc-1-bh2]"
    past = 1
    order = 2


class UniPC2(UniPC):
    """UniPC with p = 2: predicted by one slope, corrected by a quadratic.

    Source: Zhao et al. 2023, arXiv:2302.04867, UniPC-p, as in https://github.com/wl-zhao/UniPC.
    """

    name = "unipc-2"
    title = "UniPC-2"
    source = "Zhao et al. 2023, arXiv:2302.04867"
    evidence = "tests/samplers/test_diffusers_parity.py::test_unipc_equals_diffusers[unipc-2-bh2]"
    past = 2
    order = 3


class UniPC3(UniPC):
    """UniPC with p = 3: predicted by a quadratic, corrected by a cubic.

    Source: Zhao et al. 2023, arXiv:2302.04867, UniPC-p, as in https://github.com/wl-zhao/UniPC.
    """

    name = "unipc-3"
    title = "UniPC-3"
    source = "Zhao et al. 2023, arXiv:2302.04867"
    evidence = "tests/samplers/test_diffusers_parity.py::test_unipc_equals_diffusers[unipc-3-bh2]"
    past = 3
    order = 4

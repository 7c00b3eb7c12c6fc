"""Solvers of SDEs: the generative SDE of an interpolant, with a diffusion that is chosen after training.

    dx = (v + ½ w s) dt + √w dW     from source to data;     dx = (v - ½ w s) dt + √w dW     from data to source

has the marginals of dx = v dt for every w(t) >= 0: what the noise spreads, the score s draws together. The noise is
additive, so Itô and Stratonovich agree. Each scheme is a function of any drift and diffusion, and tested on others too.

With a trained net some w is better than others, and which shows only in what is sampled: with small nets trained on the
checkerboard w = 0.1 g² came 3 to 5 % nearer to the data in sliced W2 than w = 0, and w = g² stayed 25 % or more further
off; with nets trained on two normals, or eight, w = 0 was best.

Source: Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797 (w = 2 eps there); Ma et al. 2024, arXiv:2401.08740.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.flows.fields import Prediction
from workbench.flows.interpolants import Interpolant
from workbench.routine import Hyper
from workbench.samplers.base import Evaluate, Solver, Step, blend, column

Coefficient = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> something shaped like x, or to multiply it; t broadcasts to x without its last axis."""

FORMS = ("sigma", "reverse-sde", "constant", "sine")


def forward_rate(path: Interpolant, t: Tensor) -> Tensor:
    """g²(t) = 2 spread² dλ/dt, of the noising process dx = f x ds + g dW, s = 1 - t, that has the marginals p_t.

    With w = g² the generative SDE is the reverse SDE of Anderson 1982 and Song et al. 2021. Infinite where alpha is 0.
    """
    spread = path.spread(t)
    return 2 * spread * (spread * path.d_alpha(t) / path.alpha(t) - path.d_spread(t))


def form_of(form: str, path: Interpolant, t: Tensor) -> Tensor:
    """One of `FORMS` at times t: spread(t), g²(t), 1 or sin²(πt); 0 where no noise is left, or g² is infinite.

    Source: Ma et al. 2024, arXiv:2401.08740, section 2.4 (their code calls w/2 the diffusion).
    """
    spread = path.spread(t)
    found = {
        "sigma": lambda: spread,
        "reverse-sde": lambda: forward_rate(path, t).clamp(min=0),
        "constant": lambda: torch.ones_like(t),
        "sine": lambda: torch.sin(math.pi * t).square(),
    }[form]()
    return torch.where((spread > 0) & torch.isfinite(found), found, torch.zeros_like(found))


class SDESolver(Solver):
    """A scheme for dx = a(x, t) dt + b(x, t) dW on the generative SDE. Subclasses write `scheme`."""

    kind: ClassVar[str] = "sde"
    random: ClassVar[bool] = True
    converts: ClassVar[bool] = True
    diffusion: Any = Hyper(1.0, 0.0, 1e3, soft=(0.0, 4.0), doc="w is this times its form; 0 makes it the ODE.")
    diffusion_form: Any = Hyper(
        "sigma",
        scale="choice",
        kind="shape",
        choices=FORMS,
        doc="How w goes with time: the noise level, as in the reverse SDE, 1, or sin²(πt).",
    )

    @staticmethod
    def scheme(
        drift: Coefficient, diffusion: Coefficient, x: Tensor, t: Tensor, h: Tensor, dw: Tensor, dz: Tensor
    ) -> Tensor:
        """x at t + h. dw is W's increment over the step, dz the area over its start; h < 0 goes back in time."""
        raise NotImplementedError

    def draw(self, key, path, x, t, end):
        return path.increment(t, end)

    def step(self, field, path, x, t, end, state, hyper, noise):
        drift, diffusion = generative(field, path, hyper, torch.sign(end - t))
        return Step(self.scheme(drift, diffusion, x, t, end - t, *noise), end, (), {})


def generative(
    field: Evaluate, path: Interpolant, hyper: Mapping[str, Any], direction: Tensor
) -> tuple[Coefficient, Coefficient]:
    """Drift v ± ½ w s and diffusion √w; `direction` is 1 towards the data, -1 towards the source."""

    def w(t: Tensor) -> Tensor:
        return hyper["diffusion"] * column(form_of(hyper["diffusion_form"], path, t))

    def drift(x: Tensor, t: Tensor) -> Tensor:
        found, rate = field(x, t), w(t)
        pull = column(direction) / 2 * rate * found.score
        return found.velocity + torch.where(rate > 0, pull, torch.zeros_like(pull))

    return drift, lambda x, t: w(t).sqrt()


class EulerMaruyama(SDESolver):
    """x ← x + a(x, t) h + b(x, t) dW, in the sense of Itô. Strong order 1/2, and 1 when b does not depend on x; weak 1.

    Source: Maruyama 1955, Rend. Circ. Mat. Palermo 4; Kloeden & Platen 1992, section 10.2.
    """

    name = "euler-maruyama"
    title = "Euler–Maruyama"
    source = "Maruyama 1955, Rend. Circ. Mat. Palermo 4, pp. 48-90"
    ledger = "sit"
    evidence = "tests/samplers/test_sde.py::test_strong_order[euler-maruyama/additive]"
    order = 1

    @staticmethod
    def scheme(drift, diffusion, x, t, h, dw, dz):
        return x + column(h) * drift(x, t) + diffusion(x, t) * dw


class StochasticHeun(SDESolver):
    """x̃ = x + a h + b dW; x ← x + (a + ã) h / 2 + (b + b̃) dW / 2, in the sense of Stratonovich.

    Strong order 1 (one noise a coordinate); weak order 1, and 2 when b does not depend on x. Two evaluations a step.
    Source: Rümelin 1982, SIAM J. Numer. Anal. 19, pp. 604-613; Kloeden & Platen 1992, section 15.1 (additive noise).
    """

    name = "stochastic-heun"
    title = "Stochastic Heun"
    source = "Rümelin 1982, SIAM J. Numer. Anal. 19, pp. 604-613"
    evidence = "tests/samplers/test_sde.py::test_strong_order[stochastic-heun/multiplicative]"
    order = 2

    @staticmethod
    def scheme(drift, diffusion, x, t, h, dw, dz):
        a, b = drift(x, t), diffusion(x, t)
        guess = x + column(h) * a + b * dw
        a_end, b_end = drift(guess, t + h), diffusion(guess, t + h)
        return x + column(h) * (0.5 * a + 0.5 * a_end) + (0.5 * b + 0.5 * b_end) * dw


class SRA1(SDESolver):
    """H = x + ¾ a h + (3/2) b̃ dZ/h; x ← x + (a + 2 a(H, t + ¾h)) h/3 + b̃ dW + (b - b̃) dZ/h, with b̃ = b(t + h).

    For noise that does not depend on x: strong order 3/2 (2 when the drift is linear), weak order 2. Two evaluations.
    Source: Rößler 2010, SIAM J. Numer. Anal. 48, pp. 922-952, table 6.1 (SRA1); coefficients as in torchsde.
    """

    name = "sra1"
    title = "SRA1"
    source = "Rößler 2010, SIAM J. Numer. Anal. 48, pp. 922-952"
    evidence = "tests/samplers/test_sde.py::test_strong_order[sra1/nonlinear]"
    order = 2

    @staticmethod
    def scheme(drift, diffusion, x, t, h, dw, dz):
        mean = dz / column(torch.where(h == 0, torch.ones_like(h), h))
        a, b, b_end = drift(x, t), diffusion(x, t), diffusion(x, t + h)
        inner = x + column(h) * (0.75 * a) + 1.5 * b_end * mean
        a_inner = drift(inner, t + 0.75 * h)
        return x + column(h) * (1 / 3 * a + 2 / 3 * a_inner) + b_end * dw + (b - b_end) * mean


class ExponentialEulerMaruyama(SDESolver):
    """x ← alpha D + spread (e^-Q ε + √(1 - e^-2Q) z) at the step's end, Q = ∫ w / (2 spread²) |dt|, z = dW/√|h|.

    Exact for the linear part: data D and noise ε predicted at the step's start are held, nothing else. With w = 0 it is
    DDIM; with w = g² ("reverse-sde") Q is the step in λ, and it is DDPM's ancestral sampler. Any step is stable.
    Source: Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, section 5 (SDE-DPM-Solver++ of order 1, w = g²); for any w
    derived here: d(x/spread) has drift -(w / 2 spread²)(x/spread - (alpha/spread) D) once D is held.
    """

    name = "exponential-euler-maruyama"
    title = "Exponential Euler–Maruyama"
    source = "Lu et al. 2022, arXiv:2211.01095, section 5"
    evidence = "tests/samplers/test_sde.py::test_the_exponential_scheme_is_ddim_or_ddpm_at_the_ends[linear-path]"
    order = 1

    def step(self, field, path, x, t, end, state, hyper, noise):
        return Step(self.move(field(x, t), path, t, end, hyper, noise[0]), end, (), {})

    @staticmethod
    def move(prediction: Prediction, path: Interpolant, t: Tensor, end: Tensor, hyper: Mapping, dw: Tensor) -> Tensor:
        """x at `end`, from the prediction at t and W's increment in between."""
        mean, deviation = transition(prediction, path, t, end, hyper)
        return mean + deviation * dw / column(torch.where(end == t, torch.ones_like(t), (end - t).abs())).sqrt()


def transition(
    prediction: Prediction, path: Interpolant, t: Tensor, end: Tensor, hyper: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x at `end` given x at t, with data and noise held at what is predicted at t."""
    q, alpha, spread = forgotten(path, t, end, hyper), column(path.alpha(end)), column(path.spread(end))
    mean = alpha * prediction.data + spread * torch.exp(-q) * prediction.noise
    return mean, spread * torch.sqrt(-torch.expm1(-2 * q))


NODES = ((0.5 - math.sqrt(0.15), 5 / 18), (0.5, 4 / 9), (0.5 + math.sqrt(0.15), 5 / 18))
"""Gauss–Legendre with three points on [0, 1]."""


def forgotten(path: Interpolant, t: Tensor, end: Tensor, hyper: Mapping[str, Any]) -> Tensor:
    """Q = ∫ w / (2 spread²) |dt|, shaped to multiply points: the step in λ for the reverse SDE, else by quadrature."""
    size, form = hyper["diffusion"], hyper["diffusion_form"]
    if form == "reverse-sde":
        whole = torch.where(t == end, torch.zeros_like(t), (path.log_snr(end) - path.log_snr(t)).abs())
    else:
        times = [(t + node * (end - t), weight) for node, weight in NODES]
        rates = [weight * form_of(form, path, s) / (2 * path.spread(s).square()) for s, weight in times]
        whole = (end - t).abs() * blend([1.0] * len(rates), rates)
    return torch.nan_to_num(size * column(whole), nan=0.0, posinf=math.inf)  # 0 times an infinite step in λ

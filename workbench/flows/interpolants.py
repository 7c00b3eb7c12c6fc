"""Interpolants: how a point goes from the source to the data, and what that makes of velocity, score, noise and data.

    x_t = alpha(t) x1 + sigma(t) x0 + gamma(t) z        t = 0 is the source x0, t = 1 is the data x1, z ~ N(0, I)

Everything here is a function of time alone; `t` is a tensor of any shape, and so is what comes back.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.routine import Declared, Hyper, unknown

KINDS = ("velocity", "data", "noise", "score")
"""What a field may be given by: E[dx_t/dt | x_t], E[x1 | x_t], E[unit noise | x_t], or the gradient of log p_t."""


class Interpolant(Declared):
    """x_t = alpha(t) x1 + sigma(t) x0 + gamma(t) z. Subclasses fill in `alpha`, `sigma` and their derivatives.

    Attributes:
        ends: (first, last), the times between which a solver goes: where coefficients and derivatives are finite.
    """

    family: ClassVar[str] = "interpolants"
    kind: ClassVar[str] = "interpolant"
    ends: tuple[float, float] = (0.0, 1.0)
    latent: ClassVar[bool] = False
    """Whether gamma is not zero, so that a training step draws z too."""

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data; 1 (or about 1) at t = 1."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the source: the standard deviation of the noise, when the source is a unit normal."""
        raise NotImplementedError

    def d_alpha(self, t: Tensor) -> Tensor:
        """The derivative of alpha in t."""
        raise NotImplementedError

    def d_sigma(self, t: Tensor) -> Tensor:
        """The derivative of sigma in t."""
        raise NotImplementedError

    def gamma(self, t: Tensor) -> Tensor:
        """Weight of the latent normal z, 0 at both ends."""
        return torch.zeros_like(t)

    def d_gamma(self, t: Tensor) -> Tensor:
        """The derivative of gamma in t."""
        return torch.zeros_like(t)

    # ---- what follows from these

    def spread(self, t: Tensor) -> Tensor:
        """√(sigma² + gamma²): all the noise there is in x_t when the source is a unit normal."""
        return torch.hypot(self.sigma(t), self.gamma(t)) if self.latent else self.sigma(t)

    def d_spread(self, t: Tensor) -> Tensor:
        """The derivative of `spread` in t."""
        if not self.latent:
            return self.d_sigma(t)
        return (self.sigma(t) * self.d_sigma(t) + self.gamma(t) * self.d_gamma(t)) / self.spread(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = log(alpha / spread), half the logarithm of the signal-to-noise ratio; rises with t."""
        return torch.log(self.alpha(t)) - torch.log(self.spread(t))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time of a log-SNR λ (bisected, to the last bit of the dtype), within `ends`."""
        low = torch.full_like(log_snr, self.ends[0])
        high = torch.full_like(log_snr, self.ends[1])
        for _ in range(24 if log_snr.dtype == torch.float32 else 54):
            middle = (low + high) / 2
            above = self.log_snr(middle) > log_snr
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def at(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """x_t of pairs (..., dim) at times t, one a pair (t has the shape of x0 without its last axis, or none)."""
        t = t.unsqueeze(-1)
        x = self.alpha(t) * x1 + self.sigma(t) * x0
        return x if z is None else x + self.gamma(t) * z

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """dx_t/dt of pairs: what a velocity is trained on."""
        t = t.unsqueeze(-1)
        v = self.d_alpha(t) * x1 + self.d_sigma(t) * x0
        return v if z is None else v + self.d_gamma(t) * z

    def noise(self, x0: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """The unit noise in x_t: x0 itself, or with a latent (sigma x0 + gamma z) / spread."""
        if z is None:
            return x0
        t = t.unsqueeze(-1)
        return (self.sigma(t) * x0 + self.gamma(t) * z) / self.spread(t)

    def target(self, kind: str, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """What a net that predicts `kind` (one of `KINDS`) is trained on, for pairs at times t.

        Raises:
            ValueError: on another kind.
        """
        if kind == "velocity":
            return self.velocity(x0, x1, t, z)
        if kind == "data":
            return x1
        if kind in ("noise", "score"):
            noise = self.noise(x0, t, z)
            return noise if kind == "noise" else -noise / self.spread(t).unsqueeze(-1)
        raise unknown("a kind of prediction", kind, KINDS)


class Linear(Interpolant):
    """alpha = t, sigma = 1 - t: straight lines at constant speed.

    Source: Liu et al. 2023, arXiv:2209.03003, equation 1; Lipman et al. 2023, arXiv:2210.02747 (with sigma_min = 0).
    """

    name = "linear-path"
    title = "Linear"
    source = "Liu, Gong & Liu 2023, arXiv:2209.03003"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[linear-path]"

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t

    def d_alpha(self, t):
        return torch.ones_like(t)

    def d_sigma(self, t):
        return -torch.ones_like(t)


class Trigonometric(Interpolant):
    """alpha = sin(πt/2), sigma = cos(πt/2): keeps the variance of unit-variance data.

    Source: Albergo & Vanden-Eijnden 2023, arXiv:2209.15571; "GVP" in SiT, arXiv:2401.08740.
    """

    name = "trigonometric-path"
    title = "Trigonometric"
    source = "Albergo & Vanden-Eijnden 2023, arXiv:2209.15571"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[trigonometric-path]"

    def alpha(self, t):
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t):
        return torch.sin((1 - t) * (math.pi / 2))  # the cosine, rounded to 0 and not below it at t = 1

    def d_alpha(self, t):
        return (math.pi / 2) * torch.sin((1 - t) * (math.pi / 2))

    def d_sigma(self, t):
        return -(math.pi / 2) * torch.sin(t * (math.pi / 2))


class VariancePreserving(Interpolant):
    """alpha = exp(-s² (beta_max - beta_min) / 4 - s beta_min / 2) with s = 1 - t, sigma = √(1 - alpha²).

    The marginals of dx = -½ β(s) x ds + √β(s) dW, β(s) = beta_min + s (beta_max - beta_min), from data at s = 0.
    Source: Song et al. 2021, arXiv:2011.13456, equations 32 and 33; data end at s = eps, as there.
    """

    name = "variance-preserving"
    title = "Variance preserving"
    source = "Song et al. 2021, arXiv:2011.13456"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[variance-preserving]"
    beta_min: Any = Hyper(0.1, 0.0, 10.0, kind="init", doc="Noise rate at the data end.")
    beta_max: Any = Hyper(20.0, 0.1, 100.0, kind="init", doc="Noise rate at the source end.")
    eps: Any = Hyper(
        1e-3, 1e-6, 0.1, "log", kind="init", doc="Solvers stop this far from the data, where rates are finite."
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        self.ends = (0.0, 1 - self.eps)

    def _log_alpha(self, t):
        s = 1 - t
        return -s * s * ((self.beta_max - self.beta_min) / 4) - s * (self.beta_min / 2)

    def alpha(self, t):
        return torch.exp(self._log_alpha(t))

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t):
        return self.alpha(t) * ((1 - t) * (self.beta_max - self.beta_min) + self.beta_min) / 2

    def d_sigma(self, t):
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)


class SubVariancePreserving(VariancePreserving):
    """alpha as variance preserving, sigma = 1 - alpha²: less noise at every time.

    Source: Song et al. 2021, arXiv:2011.13456, equation 34.
    """

    name = "sub-variance-preserving"
    title = "Sub-variance preserving"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[sub-variance-preserving]"

    def sigma(self, t):
        return -torch.expm1(2 * self._log_alpha(t))

    def d_sigma(self, t):
        return -2 * self.alpha(t) * self.d_alpha(t)


class VarianceExploding(Interpolant):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^(1 - t).

    Source: Song et al. 2021, arXiv:2011.13456, equation 30. At t = 1 a noise of sigma_min is left.
    """

    name = "variance-exploding"
    title = "Variance exploding"
    source = "Song et al. 2021, arXiv:2011.13456"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[variance-exploding]"
    sigma_min: Any = Hyper(0.01, 1e-4, 1.0, "log", kind="init", doc="Noise at the data end, a standard deviation.")
    sigma_max: Any = Hyper(50.0, 1.0, 1000.0, "log", kind="init", doc="Noise at the source end, a standard deviation.")

    def alpha(self, t):
        return torch.ones_like(t)

    def d_alpha(self, t):
        return torch.zeros_like(t)

    def sigma(self, t):
        return self.sigma_min * torch.exp((1 - t) * math.log(self.sigma_max / self.sigma_min))

    def d_sigma(self, t):
        return -math.log(self.sigma_max / self.sigma_min) * self.sigma(t)


class EDM(Interpolant):
    """alpha = 1, sigma = (sigma_max^(1/rho) + t (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    Equal steps of t are the noise levels of Karras et al.
    Source: Karras et al. 2022, arXiv:2206.00364, equation 5. At t = 1 a noise of sigma_min is left.
    """

    name = "edm-path"
    title = "EDM"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[edm-path]"
    sigma_min: Any = Hyper(0.002, 1e-4, 1.0, "log", kind="init", doc="Noise at the data end, a standard deviation.")
    sigma_max: Any = Hyper(80.0, 1.0, 1000.0, "log", kind="init", doc="Noise at the source end, a standard deviation.")
    rho: Any = Hyper(7.0, 1.0, 20.0, kind="init", doc="How much finer the noise levels are near the data.")

    alpha, d_alpha = VarianceExploding.alpha, VarianceExploding.d_alpha

    def _root(self, t):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return high + t * (low - high), low - high

    def sigma(self, t):
        root, _ = self._root(t)
        return root**self.rho

    def d_sigma(self, t):
        root, slope = self._root(t)
        return self.rho * slope * root ** (self.rho - 1)


class Stochastic(Linear):
    """alpha = t, sigma = 1 - t, gamma = √(scale t (1 - t)): straight lines blurred by a latent normal in between.

    The derivative of gamma has poles at both ends: solvers stay eps away from them.
    Source: Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797, table 2.
    """

    name = "stochastic-path"
    title = "Linear with latent noise"
    source = "Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797"
    ledger = "stochastic-interpolants"
    evidence = "tests/flows/test_interpolants.py::test_coefficients_are_those_of_the_source[stochastic-path]"
    latent = True
    scale: Any = Hyper(2.0, 0.01, 10.0, "log", kind="init", doc="gamma² in units of t (1 - t).")
    eps: Any = Hyper(1e-3, 1e-6, 0.1, "log", kind="init", doc="Solvers stay this far from both ends.")

    def __init__(self, **settings):
        super().__init__(**settings)
        self.ends = (self.eps, 1 - self.eps)

    def gamma(self, t):
        return torch.sqrt(self.scale * t * (1 - t))

    def d_gamma(self, t):
        return self.scale * (1 - 2 * t) / (2 * self.gamma(t))

"""Time distributions: at which times a training step looks, t = 0 at the source and 1 at the data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.flows.choices import Times, log_snr_rate, per_time
from workbench.flows.interpolants import Interpolant
from workbench.routine import Hyper


class UniformTimes(Times):
    """t uniform between the ends.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9.
    """

    name = "uniform-times"
    title = "Uniform"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[uniform-times-default]"

    def unit(self, u, hyper):
        return u

    def unit_density(self, s, hyper):
        return torch.ones_like(s)


class LogitNormalTimes(Times):
    """log(t / (1 - t)) ~ N(logit_mean, logit_scale²): more in the middle, where a velocity is hardest to learn.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 19 (there t = 1 is noise: a mean has the other sign here).
    """

    name = "logit-normal-times"
    title = "Logit-normal"
    source = "Esser et al. 2024, arXiv:2403.03206"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[logit-normal-times-default]"
    logit_mean = Hyper(0.0, -10.0, 10.0, soft=(-2.0, 2.0), doc="Mean of log(t / (1 - t)).")
    logit_scale = Hyper(1.0, 0.01, 10.0, "log", (0.2, 3.0), doc="Standard deviation of log(t / (1 - t)).")

    def unit(self, u, hyper):
        return torch.sigmoid(per_time(hyper["logit_mean"]) + per_time(hyper["logit_scale"]) * normal_quantile(u))

    def unit_density(self, s, hyper):
        scale = per_time(hyper["logit_scale"])
        z = (torch.logit(s) - per_time(hyper["logit_mean"])) / scale
        return normal_density(z) / (scale * s * (1 - s))


class UShapedTimes(Times):
    """p(t) ∝ exp(a t) + exp(a (1 - t)) with a = u_steepness: more at both ends, as a reflowed flow needs.

    The paper writes exp(a t) + exp(-a t) for it; its code draws from exp(a t) and turns half of the draws to 1 - t,
    which is this density, symmetric about the middle.
    Source: Lee, Lin & Fanti 2024, arXiv:2405.20320 (a = 4), and t_dist.py of its code.
    """

    name = "u-shaped-times"
    title = "U-shaped"
    source = "Lee, Lin & Fanti 2024, arXiv:2405.20320"
    ledger = "improving-the-training-of-rectified"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[u-shaped-times-default]"
    u_steepness = Hyper(4.0, 0.01, 20.0, "log", (0.5, 10.0), doc="How much more at the ends: a in exp(a t).")

    def unit(self, u, hyper):
        a = per_time(hyper["u_steepness"])
        return 0.5 + torch.asinh((2 * u - 1) * torch.sinh(a / 2)) / a

    def unit_density(self, s, hyper):
        a = per_time(hyper["u_steepness"])
        return a * torch.cosh(a * (s - 0.5)) / (2 * torch.sinh(a / 2))


class ExponentialTimes(Times):
    """p(t) ∝ base^(1 - t): more near the source, where one step of a reflowed flow decides.

    Source: Kim et al. 2025, arXiv:2410.07815 (training dynamics: 10^t, with t = 1 the noise there).
    """

    name = "exponential-times"
    title = "Exponential"
    source = "Kim et al. 2025, arXiv:2410.07815"
    ledger = "simple-reflow"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[exponential-times-default]"
    time_base = Hyper(10.0, 1.01, 1000.0, "log", (1.1, 100.0), doc="How much likelier t = 0 is than t = 1.")

    def unit(self, u, hyper):
        base = per_time(hyper["time_base"])
        return -torch.log1p(u * (1 / base - 1)) / torch.log(base)

    def unit_density(self, s, hyper):
        base = per_time(hyper["time_base"])
        return torch.log(base) * base ** (1 - s) / (base - 1)


class LogSnrTimes(Times):
    """Times by the law of λ(t) = log(alpha / spread), cut to what the interpolant reaches.

    Subclasses write `below`, the distribution function of λ, its inverse `level` and its density `level_density`.
    """

    def below(self, level: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """P(λ ≤ level); levels may be ±inf."""
        raise NotImplementedError

    def level(self, p: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """The inverse of `below`."""
        raise NotImplementedError

    def level_density(self, level: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """The derivative of `below`."""
        raise NotImplementedError

    def place(self, u, path, hyper):
        low, high = self._reached(path, hyper, u)
        return path.time_of(self.level(low + (high - low) * u, hyper))

    def density(self, t, path, hyper):
        low, high = self._reached(path, hyper, t)
        return self.level_density(path.log_snr(t), hyper) * log_snr_rate(path, t) / (high - low)

    def _reached(self, path: Interpolant, hyper: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution function at the interpolant's ends."""
        first, last = path.log_snr(torch.tensor(path.ends, dtype=like.dtype, device=like.device))
        return self.below(first, hyper), self.below(last, hyper)


class LogNormalNoiseTimes(LogSnrTimes):
    """log(spread / alpha) ~ N(noise_mean, noise_std²): noise levels about as large as the data.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 (P_mean = -1.2, P_std = 1.2 for data of deviation 0.5).
    """

    name = "log-normal-noise-times"
    title = "Log-normal noise"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[log-normal-noise-times-default]"
    noise_mean = Hyper(-1.2, -10.0, 10.0, soft=(-4.0, 2.0), doc="Mean of log(spread / alpha).")
    noise_std = Hyper(1.2, 0.01, 10.0, "log", (0.3, 3.0), doc="Standard deviation of log(spread / alpha).")

    def _standard(self, level, hyper):
        return (level + per_time(hyper["noise_mean"])) / per_time(hyper["noise_std"])

    def below(self, level, hyper):
        return torch.special.ndtr(self._standard(level, hyper))

    def level(self, p, hyper):
        return per_time(hyper["noise_std"]) * normal_quantile(p) - per_time(hyper["noise_mean"])

    def level_density(self, level, hyper):
        return normal_density(self._standard(level, hyper)) / per_time(hyper["noise_std"])


class UniformLogSnrTimes(LogSnrTimes):
    """λ uniform between lambda_low and lambda_high: every noise level alike, whatever the interpolant's pace.

    Source: Kingma & Gao 2023, arXiv:2303.00848: a loss weighted by w(λ) depends on the interpolant only
    through its ends, and p(λ) is free to choose (their λ, the whole log-SNR, is twice this one).
    """

    name = "uniform-log-snr-times"
    title = "Uniform log-SNR"
    source = "Kingma & Gao 2023, arXiv:2303.00848"
    ledger = "understanding-diffusion-objectives-as-the"
    evidence = "tests/flows/test_choices.py::test_times_follow_their_density[uniform-log-snr-times-default]"
    lambda_low = Hyper(-5.0, -20.0, -0.1, soft=(-10.0, -0.5), doc="Half the log-SNR where the noisiest looks are.")
    lambda_high = Hyper(5.0, 0.1, 20.0, soft=(0.5, 10.0), doc="Half the log-SNR where the cleanest looks are.")

    def _span(self, hyper):
        return per_time(hyper["lambda_low"]), per_time(hyper["lambda_high"])

    def below(self, level, hyper):
        low, high = self._span(hyper)
        return ((level - low) / (high - low)).clamp(0, 1)

    def level(self, p, hyper):
        low, high = self._span(hyper)
        return low + (high - low) * p

    def level_density(self, level, hyper):
        low, high = self._span(hyper)
        return ((level >= low) & (level <= high)).to(level) / (high - low)


class AdaptiveTimes(LogSnrTimes):
    """λ with a density constant in each of equal cells between -reach and reach, as high as given.

    With heights ∝ w(λ) E|noise_hat - noise|², the loss that was seen in each cell, the estimate of a weighted loss is
    steadier than at uniform times: the adaptive noise schedule. Flat when no heights are given.

    Args:
        heights: one positive number a cell, noisiest first; only their ratios matter.

    Raises:
        ValueError: on heights that are not positive and finite.

    Source: Kingma & Gao 2023, arXiv:2303.00848 (adaptive noise schedule: p(λ) ∝ the weighted loss at λ).
    """

    name = "adaptive-times"
    title = "Where the loss is"
    source = "Kingma & Gao 2023, arXiv:2303.00848"
    ledger = "understanding-diffusion-objectives-as-the"
    evidence = "tests/flows/test_choices.py::test_adaptive_times_look_where_they_are_told"
    reach: Any = Hyper(5.0, 0.1, 20.0, soft=(1.0, 10.0), kind="init", doc="The largest |λ| that is looked at.")

    def __init__(self, heights: Sequence[float] | Tensor | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.heights = torch.as_tensor([1.0] if heights is None else heights, dtype=torch.float64).detach().cpu()
        if self.heights.ndim != 1 or not bool(((self.heights > 0) & self.heights.isfinite()).all()):
            raise ValueError(f"expected a positive height for each cell, got {self.heights.tolist()!r}")

    def _cells(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Of each cell: where it begins, its share, the shares before it; and the width of all."""
        share, width = (self.heights / self.heights.sum()).to(like), 2 * self.reach / len(self.heights)
        begin = width * torch.arange(len(share), dtype=like.dtype, device=like.device) - self.reach
        return begin, share, share.cumsum(0) - share, width

    def below(self, level, hyper):
        begin, share, _, width = self._cells(level)
        return (share * ((level.unsqueeze(-1) - begin) / width).clamp(0, 1)).sum(-1)

    def level(self, p, hyper):
        _, share, before, width = self._cells(p)
        return width * ((p.unsqueeze(-1) - before) / share).clamp(0, 1).sum(-1) - self.reach

    def level_density(self, level, hyper):
        begin, share, _, width = self._cells(level)
        place = level.unsqueeze(-1) - begin
        return (share * ((place >= 0) & (place < width))).sum(-1) / width

    def recipe(self):
        return self.made_with(**({} if len(self.heights) == 1 else {"heights": repr(self.heights.tolist())}))


def normal_quantile(u: Tensor) -> Tensor:
    """Φ⁻¹(u); finite, as u is kept half a rounding away from 0 and 1."""
    edge = torch.finfo(u.dtype).eps / 2
    return torch.special.ndtri(u.clamp(edge, 1 - edge))


def normal_density(z: Tensor) -> Tensor:
    """φ(z)."""
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)

"""Unmasking: how a sequence of masks becomes tokens, and how tokens that were wrong are masked again.

At time t a token is unmasked with probability alpha_t; t = 0 is all masks, t = 1 is data. From t to s > t, with p the
denoiser's probabilities and sigma the probability that an unmasked token is masked again,

    unmasked: kept with 1 - sigma, else masked
    masked:   becomes token v with p(v) (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), else stays

which takes the part that is unmasked from alpha_t to alpha_s for every sigma from 0 to min(1, (1 - alpha_s) / alpha_t).
Source: Wang, Schiff, Sahoo & Kuleshov 2025, arXiv:2503.00307; times run the other way there.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.routine import Declared, Hyper

SOURCE = "Wang, Schiff, Sahoo & Kuleshov 2025, arXiv:2503.00307"
LEDGER = "remasking-discrete-diffusion-models-with"


class Unmasker(Declared):
    """A rule for masking again. Subclasses fill in `sigma`, and `alpha` when tokens do not come at an even rate."""

    family: ClassVar[str] = "unmaskers"
    kind: ClassVar[str] = "masked diffusion"
    remembers: ClassVar[bool] = False
    """Whether it needs to know how sure the denoiser was of each token."""

    def alpha(self, t: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """Probability that a token is unmasked at time t; 0 at t = 0, 1 at t = 1."""
        return t

    def sigma(self, t: Tensor, most: Tensor, sure: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """Probability that an unmasked token is masked again, at most `most`, broadcastable to `sure`.

        Args:
            t: time at the start of the step.
            sure: the denoiser's probability of each token when it was unmasked, infinite where there is a mask.
        """
        raise NotImplementedError


def most_masking(alpha: Tensor, later: Tensor) -> Tensor:
    """min(1, (1 - alpha_s) / alpha_t); 1 where nothing is unmasked yet."""
    return torch.clamp((1 - later) / alpha, max=1.0)  # 1 / 0 is infinite: 1; (1 - 1) / alpha is 0


def unmasking_rate(alpha: Tensor, later: Tensor, sigma: Tensor) -> Tensor:
    """(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), from 0 to 1; 1 where alpha_t is 1 and nothing masked."""
    left = 1 - alpha
    rate = (later - (1 - sigma) * alpha) / torch.where(left > 0, left, torch.ones_like(left))
    return torch.where(left > 0, rate, torch.ones_like(rate)).clamp(0.0, 1.0)


class Ancestral(Unmasker):
    """sigma = 0: a token once unmasked stays. Ancestral sampling of masked diffusion (MDLM).

    With the exact denoiser the law is exact as steps grow: only tokens unmasked in one step do not see each other.
    Source: Sahoo et al. 2024, arXiv:2406.07524, with alpha_t linear in time.
    """

    name = "mdlm"
    title = "Plain unmasking (MDLM)"
    source = "Sahoo et al. 2024, arXiv:2406.07524"
    evidence = "tests/samplers/test_masked.py::test_the_law_of_samples_is_that_of_the_rule_written_out[mdlm]"

    def sigma(self, t, most, sure, hyper):
        return torch.zeros_like(most)


class Capped(Unmasker):
    """sigma = min(eta, most), most = min(1, (1 - alpha_s) / alpha_t). eta = 0 is "mdlm".

    With the exact denoiser and a fixed eta the distance to the law falls as 1 / √steps, with eta = c / steps as
    1 / steps like that of "mdlm": tokens that come in one step do not see each other, and a fixed eta lets many come at
    once. An error of the denoiser is mended as steps grow to a few times 1 / eta; with many more some of it returns.
    Source: Wang, Schiff, Sahoo & Kuleshov 2025, arXiv:2503.00307, "ReMDM-cap", as in the public code.
    """

    name = "remdm-cap"
    title = "Remasking, capped (ReMDM-cap)"
    source = SOURCE
    ledger = LEDGER
    evidence = "tests/samplers/test_masked.py::test_the_law_of_samples_is_that_of_the_rule_written_out[remdm-cap]"
    eta: Any = Hyper(0.02, 0.0, 1.0, "linear", (0.0, 0.2), doc="Most that is masked again in a step.")

    def sigma(self, t, most, sure, hyper):
        return torch.minimum(hyper["eta"], most)


class Rescaled(Unmasker):
    """sigma = eta most, most = min(1, (1 - alpha_s) / alpha_t). eta = 0 is "mdlm".

    Source: Wang, Schiff, Sahoo & Kuleshov 2025, arXiv:2503.00307, "ReMDM-rescale", as in the public code.
    """

    name = "remdm-rescale"
    title = "Remasking, rescaled (ReMDM-rescale)"
    source = SOURCE
    ledger = LEDGER
    evidence = "tests/samplers/test_masked.py::test_the_law_of_samples_is_that_of_the_rule_written_out[remdm-rescale]"
    eta: Any = Hyper(
        0.05, 0.0, 1.0, "linear", (0.0, 0.5), doc="What is masked again, as a part of the most there may be."
    )

    def sigma(self, t, most, sure, hyper):
        return hyper["eta"] * most


class Confidence(Unmasker):
    """sigma_i = most · exp(-psi_i) / Σ exp(-psi_j) over unmasked j; psi_j is the probability that j was unmasked with.

    The less sure a token was, the sooner it is masked again; at most one a step is, on average, and hardly any later
    on: with an imperfect denoiser it takes hundreds of steps to be better than "mdlm", and few are worse. As in the
    public code a masked token comes as in "mdlm", so that on the way there are fewer tokens than alpha_t says.
    Source: Wang, Schiff, Sahoo & Kuleshov 2025, arXiv:2503.00307, "ReMDM-conf", as in the public code.
    """

    name = "remdm-conf"
    title = "Remasking, least sure first (ReMDM-conf)"
    source = SOURCE
    ledger = LEDGER
    evidence = "tests/samplers/test_masked.py::test_confidence_masks_what_was_least_sure_as_often_as_its_rule_says"
    remembers = True

    def sigma(self, t, most, sure, hyper):
        weight = torch.exp(-sure)
        return most * weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)


class Loop(Unmasker):
    """alpha rises to `hold` at time `begin`, stays to `finish`, then rises to 1. In between sigma = min(eta, most).

    So most tokens are there first, then they are mended for a while, then the rest comes. With the exact denoiser
    and a fixed eta a distance to the law stays at any number of steps.
    Source: Wang, Schiff, Sahoo & Kuleshov 2025, arXiv:2503.00307, "ReMDM-loop", as in the public code with
    t_on = 1 - begin, t_off = 1 - finish, alpha_on = hold; here alpha is continuous when a step goes past an end.
    """

    name = "remdm-loop"
    title = "Remasking in a loop (ReMDM-loop)"
    source = SOURCE
    ledger = LEDGER
    evidence = "tests/samplers/test_masked.py::test_the_law_of_samples_is_that_of_the_rule_written_out[remdm-loop]"
    eta: Any = Hyper(0.02, 0.0, 1.0, "linear", (0.0, 0.2), doc="Most that is masked again in a step of the loop.")
    begin: Any = Hyper(0.45, 0.01, 0.5, doc="Time when the loop begins.")
    finish: Any = Hyper(0.95, 0.5, 0.99, doc="Time when the loop ends.")
    hold: Any = Hyper(0.9, 0.1, 0.99, doc="Part of the tokens that is unmasked in the loop.")

    def alpha(self, t, hyper):
        begin, finish, hold = hyper["begin"], hyper["finish"], hyper["hold"]
        after = 1 - (1 - t) * (1 - hold) / (1 - finish)
        return torch.where(t < begin, t * (hold / begin), torch.where(t > finish, after, hold.expand_as(t)))

    def sigma(self, t, most, sure, hyper):
        inside = (t >= hyper["begin"]) & (t < hyper["finish"])
        return torch.where(inside, torch.minimum(hyper["eta"], most), torch.zeros_like(most))

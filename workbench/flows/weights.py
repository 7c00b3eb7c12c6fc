"""Loss weights: what counts more and what less, by the signal-to-noise ratio SNR = (alpha / spread)² of its time.

Most are meant for nets that predict noise ("noise-prediction"); each says for which.
"""

import torch
from torch import Tensor

from workbench.flows.choices import Weight, per_time
from workbench.flows.interpolants import Interpolant
from workbench.routine import Hyper


def snr(path: Interpolant, t: Tensor) -> Tensor:
    """(alpha / spread)²; 0 at a source of pure noise, inf at clean data."""
    return (path.alpha(t) / path.spread(t)).square()


class NoWeight(Weight):
    """1 at every time.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9.
    """

    name = "no-weight"
    title = "None"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[no-weight]"

    def weight(self, path, t, hyper):
        return torch.ones_like(t)


class DebiasedWeight(Weight):
    """1 / √SNR, for nets that predict noise: at noisy times a small error of the noise is a large one of the data.

    SNR is held between 1 / snr_cap and snr_cap: at the very ends the weight would be 0 or infinite. Trainers in
    public hold it below 1000 alone, which is enough for schedules that end before pure noise.
    Source: Yu et al. 2024, arXiv:2310.08442; library/custom_train_functions.py of kohya-ss/sd-scripts.
    """

    name = "debiased-weight"
    title = "Debiased"
    source = "Yu et al. 2024, arXiv:2310.08442"
    ledger = "debias-the-training-of-diffusion"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[debiased-weight]"
    snr_cap = Hyper(1000.0, 1.0, 1e8, "log", (10.0, 1e5), doc="Bound of the SNR from above, and of 1 / SNR.")

    def weight(self, path, t, hyper):
        cap = per_time(hyper["snr_cap"])
        return snr(path, t).clamp(1 / cap, cap).rsqrt()


class MinSnrWeight(Weight):
    """min(SNR, snr_gamma) / SNR, for nets that predict noise: clean times, which are easy, count less.

    Source: Hang et al. 2023, arXiv:2303.09556 (snr_gamma = 5).
    """

    name = "min-snr-weight"
    title = "Min-SNR"
    source = "Hang et al. 2023, arXiv:2303.09556"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[min-snr-weight]"
    snr_gamma = Hyper(5.0, 0.01, 1000.0, "log", (0.5, 50.0), doc="The SNR above which the weight falls.")

    def weight(self, path, t, hyper):
        return (per_time(hyper["snr_gamma"]) / snr(path, t)).clamp(max=1)


class P2Weight(Weight):
    """1 / (p2_k + SNR)^p2_gamma, for nets that predict noise: the clean end, invisible to the eye, counts less.

    Source: Choi et al. 2022, arXiv:2204.00227 (k = 1, gamma 0.5 or 1), as a factor of the plain loss.
    """

    name = "p2-weight"
    title = "P2"
    source = "Choi et al. 2022, arXiv:2204.00227"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[p2-weight]"
    p2_gamma = Hyper(1.0, 0.0, 4.0, soft=(0.0, 2.0), doc="How fast the weight falls with the SNR.")
    p2_k = Hyper(1.0, 0.01, 100.0, "log", (0.1, 10.0), doc="The SNR from which it falls.")

    def weight(self, path, t, hyper):
        return (per_time(hyper["p2_k"]) + snr(path, t)) ** -per_time(hyper["p2_gamma"])


class EDMWeight(Weight):
    """(n² + sigma_data²) / (n sigma_data)² with n = spread / alpha, for nets that predict data.

    A preconditioned net of no knowledge then has the same loss at every noise level. n is held above noise_floor, where
    the weight would be infinite.
    Source: Karras et al. 2022, arXiv:2206.00364, table 1 (loss weighting).
    """

    name = "edm-weight"
    title = "EDM"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[edm-weight]"
    sigma_data = Hyper(0.5, 0.01, 100.0, "log", (0.1, 10.0), doc="Standard deviation of the data, a coordinate.")
    noise_floor = Hyper(0.002, 1e-5, 1.0, "log", (1e-3, 0.1), doc="The lowest noise level that is told apart.")

    def weight(self, path, t, hyper):
        noise = torch.maximum(path.spread(t) / path.alpha(t), per_time(hyper["noise_floor"]))
        return 1 / per_time(hyper["sigma_data"]).square() + 1 / noise.square()


class SigmoidWeight(Weight):
    """sigmoid(weight_bias - log SNR): w(λ) of the weighted ELBO, falling with λ, so that the loss stays an ELBO's.

    Source: Kingma & Gao 2023, arXiv:2303.00848 (weight_bias = 2; their λ is the log-SNR).
    """

    name = "sigmoid-weight"
    title = "Sigmoid"
    source = "Kingma & Gao 2023, arXiv:2303.00848"
    ledger = "understanding-diffusion-objectives-as-the"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[sigmoid-weight]"
    weight_bias = Hyper(2.0, -20.0, 20.0, soft=(-5.0, 5.0), doc="The log-SNR at which the weight is one half.")

    def weight(self, path, t, hyper):
        return torch.sigmoid(per_time(hyper["weight_bias"]) - 2 * path.log_snr(t))


class VelocityWeight(Weight):
    """(spread · dλ/dt)², for nets that predict noise: the loss of the velocity that the noise converts to.

    From v = (alpha'/alpha) x + (spread' - alpha' spread/alpha) noise. It is held at 1e4, for ends where alpha is 0.
    Source: Ma et al. 2024, arXiv:2401.08740, and transport.py of its code (drift_var / sigma_t)².
    """

    name = "velocity-weight"
    title = "As a velocity"
    source = "Ma et al. 2024, arXiv:2401.08740"
    ledger = "sit"
    evidence = "tests/flows/test_choices.py::test_weights_are_those_of_their_source[velocity-weight]"

    def weight(self, path, t, hyper):
        return (path.spread(t) * path.d_alpha(t) / path.alpha(t) - path.d_spread(t)).square().clamp(max=1e4)

"""DEIS and its relatives: Adams–Bashforth for noise predictions after the linear part has been integrated exactly.

All of them integrate x / alpha over rho = s / alpha; they differ in what the noise is taken for a polynomial in.
"""

from workbench.samplers.exponential import Level, Multistep, finite, moment, span


class DEIS2(Multistep):
    """x_t = (alpha_t / alpha_s) x + alpha_t ∫ noise d rho, noise linear in log rho through two predictions.

    Source: Zhang & Chen 2023, arXiv:2204.13902, tAB-DEIS of order 1, with log rho in place of t as in diffusers.
    """

    name = "deis-2"
    title = "DEIS-2"
    source = "Zhang & Chen 2023, arXiv:2204.13902"
    evidence = "tests/samplers/test_diffusers_parity.py::test_deis_equals_diffusers[deis-2]"
    form = "noise"
    order = 2

    def weights(self, here, there, clock):
        h = span(here, there)
        return [-there.sigma * moment(k, h, "noise") for k in range(1, self.past + 1)]


class DEIS3(DEIS2):
    """x_t = (alpha_t / alpha_s) x + alpha_t ∫ noise d rho, noise quadratic in log rho through three predictions.

    Source: Zhang & Chen 2023, arXiv:2204.13902, tAB-DEIS of order 2, with log rho in place of t as in diffusers.
    """

    name = "deis-3"
    title = "DEIS-3"
    evidence = "tests/samplers/test_diffusers_parity.py::test_deis_equals_diffusers[deis-3]"
    past = 2
    order = 3


class LMS(Multistep):
    """x_t = (alpha_t / alpha_s) x + alpha_t ∫ noise d rho, noise cubic in rho through four predictions.

    Source: Zhang & Chen 2023, arXiv:2204.13902, rhoAB-DEIS of order 3; "LMS" in k-diffusion and diffusers.
    """

    name = "lms"
    title = "LMS (Adams–Bashforth in noise level)"
    source = "Zhang & Chen 2023, arXiv:2204.13902"
    evidence = "tests/samplers/test_diffusers_parity.py::test_lms_equals_diffusers"
    form, past, clock = "noise", 3, "rho"
    order = 4

    def weights(self, here, there, clock):
        d = finite(there.rho - here.rho)
        return [there.alpha * d ** (k + 1) / (k + 1) for k in range(1, self.past + 1)]


class IPNDM(Multistep):
    """x_t = transfer(x, noise'): DDIM with noise' = noise + Σ_k c_k (t - s)^k / (k + 1), the mean over the step of the
    cubic in time through four predictions; (55, -59, 37, -9) / 24 on equal steps. The first steps take what there is.

    Source: Zhang & Chen 2023, arXiv:2204.13902, iPNDM; the rule of Liu et al. 2022, arXiv:2202.09778.
    """

    name = "ipndm"
    title = "iPNDM"
    source = "Zhang & Chen 2023, arXiv:2204.13902"
    evidence = "tests/samplers/test_diffusion.py::test_ipndm_is_adams_bashforth_on_equal_steps"
    form, past, clock = "noise", 3, "t"
    order = 2

    def weights(self, here, there, clock):
        h, weight = there.t - here.t, transfer(here, there)
        return [weight * h**k / (k + 1) for k in range(1, self.past + 1)]


def transfer(here: Level, there: Level):
    """What a change of the noise weighs in the DDIM step (alpha_t / alpha_s) (x - s_s noise) + s_t noise."""
    return there.alpha * finite(there.rho - here.rho)

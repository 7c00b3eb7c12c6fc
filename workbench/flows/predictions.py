"""Objectives by what is predicted: blends, noise, data, score, or a velocity and a score at once."""

from typing import Any

from workbench.flows.choices import log_snr_rate
from workbench.flows.interpolants import Interpolant, Linear
from workbench.flows.objectives import Batch, FlowObjective, Question, Setting
from workbench.routine import Hyper


class AlphaDeblending(FlowObjective):
    """E |D(x_α, α) - (x1 - x0)|² with x_α = (1 - α) x0 + α x1: blend two samples, learn what was blended.

    x ← x + (α' - α) D(x, α), the iterative deblending, is then Euler's method. The same as flow matching on the
    linear path, found independently of it, and defined on that path alone.
    Source: Heitz, Belcour & Chambon 2023, arXiv:2305.03486, algorithms 3 and 4.
    """

    name = "alpha-deblending"
    title = "Iterative α-deblending"
    source = "Heitz, Belcour & Chambon 2023, arXiv:2305.03486"
    ledger = "iterative-alpha-de-blending"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_is_the_exact_field[alpha-deblending]"

    def check(self, path):
        straight(self, path)

    def question(self, batch, setting):
        alpha, difference = batch.t, batch.x1 - batch.x0
        blended = (1 - alpha.unsqueeze(-1)) * batch.x0 + alpha.unsqueeze(-1) * batch.x1
        return Question(blended, alpha, setting.weight(alpha), (difference,))


def straight(objective: FlowObjective, path: Interpolant) -> None:
    """Raises ValueError where an objective of straight lines is asked to go along other paths."""
    if type(path) is not Linear:
        raise ValueError(f"expected the linear path for {objective.title}, got {path.name!r}")


class NoisePrediction(FlowObjective):
    """E |ε̂(x_t, t) - ε|² with ε the unit noise in x_t; means something for a source that is a unit normal.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, equation 14 (L_simple), at continuous times.
    """

    name = "noise-prediction"
    title = "Noise prediction"
    source = "Ho, Jain & Abbeel 2020, arXiv:2006.11239"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_is_the_exact_field[noise-prediction]"
    predicts = "noise"


class DataPrediction(FlowObjective):
    """E |x̂(x_t, t) - x1|²: a denoiser; best with the EDM weight.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 2, without preconditioning of the net.
    """

    name = "data-prediction"
    title = "Data prediction"
    source = "Karras et al. 2022, arXiv:2206.00364"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_is_the_exact_field[data-prediction]"
    predicts = "data"


class ScoreMatching(FlowObjective):
    """E s² |ŝcore(x_t, t) - ∇ log p(x_t | x1)|² = E |s ŝcore + ε|²: denoising score matching, s the spread.

    The weight s² makes losses of all noise levels alike (λ(t) ∝ 1 / E|∇ log p|² in the paper).
    Source: Song et al. 2021, arXiv:2011.13456, equation 7; Vincent 2011, Neural Comput. 23.
    """

    name = "denoising-score-matching"
    title = "Denoising score matching"
    source = "Song et al. 2021, arXiv:2011.13456"
    ledger = "score-based-generative-modeling-through-stochastic"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_is_the_exact_field[denoising-score-matching]"
    predicts = "score"

    def question(self, batch, setting):
        path, t = setting.path, batch.t
        x, noise = path.at(batch.x0, batch.x1, t, batch.z), path.noise(batch.x0, t, batch.z)
        return Question(x, t, setting.weight(t), (-noise,), (path.spread(t).unsqueeze(-1),))


class StochasticInterpolant(FlowObjective):
    """E |b(x_t, t) - dx_t/dt|² + E |gamma ŝcore(x_t, t) + z|²: a velocity and a score, between any two densities.

    -gamma times the score is the denoiser E[z | x_t]: with both known a solver may add noise as it likes, whatever the
    source. On a path without a latent z the source's own sample takes its place (sigma for gamma), which is right for
    a unit normal.
    Source: Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797, equations 2.13 (b) and 2.19 (denoiser).
    """

    name = "stochastic-interpolant"
    title = "Stochastic interpolant"
    source = "Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797"
    ledger = "stochastic-interpolants"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_is_the_exact_field[stochastic-interpolant]"
    also = ("score",)

    def question(self, batch, setting):
        path, t = setting.path, batch.t
        x, aim = (part(batch.x0, batch.x1, t, batch.z) for part in (path.at, path.velocity))
        size, noise = (path.sigma(t), batch.x0) if batch.z is None else (path.gamma(t), batch.z)
        return Question(x, t, setting.weight(t), (aim, -noise), (None, size.unsqueeze(-1)))


class WeightedELBO(FlowObjective):
    """E_{t ~ p} [w(λ) (dλ/dt) / p(t) |ε̂(x_t, t) - ε|²] over |λ| ≤ reach: L_w, with the weight chosen as w.

    λ = log(alpha / spread) is half the log-SNR. Whatever interpolant and times are chosen, its value for a given
    denoiser depends on w alone: they only change how noisy the estimate is. Without a weight it is the ELBO, up to a
    constant.
    Source: Kingma & Gao 2023, arXiv:2303.00848, equations for L_w(x) with importance sampling over λ (their λ is 2 λ,
    their ½ is in dλ; their t runs the other way). Derived here for any p(t).
    """

    name = "weighted-elbo"
    title = "Weighted ELBO"
    source = "Kingma & Gao 2023, arXiv:2303.00848"
    ledger = "understanding-diffusion-objectives-as-the"
    evidence = "tests/flows/test_objectives.py::test_the_weighted_elbo_depends_on_the_weight_alone"
    predicts = "noise"
    reach: Any = Hyper(5.0, 0.1, 20.0, soft=(1.0, 10.0), kind="init", doc="The |λ| beyond which nothing counts.")

    def question(self, batch: Batch, setting: Setting) -> Question:
        plain, t = super().question(batch, setting), batch.t
        beyond = setting.path.log_snr(t).abs() > self.reach
        rate = (log_snr_rate(setting.path, t) / setting.density(t)).masked_fill(beyond, 0.0)
        return plain._replace(factor=rate * plain.factor.masked_fill(beyond, 0.0))

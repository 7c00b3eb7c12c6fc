"""Predictor and corrector: a step of the reverse SDE, then Langevin steps towards the marginal where it ends."""

from typing import Any

import torch

from workbench.routine import Hyper
from workbench.samplers.base import Step, column
from workbench.samplers.stochastic import ExponentialEulerMaruyama


class PredictorCorrector(ExponentialEulerMaruyama):
    """A step of the SDE; then, `corrections` times at the step's end, x ← x + ε s + √(2ε) z with ε = 2 (snr ‖z‖/‖s‖)².

    Norms are means over the samples of a run, as in their code. The predictor is `ExponentialEulerMaruyama`, by default
    with w = g²: their ancestral sampling. No correction where no noise is left. 1 + corrections evaluations a step.
    Source: Song et al. 2021, arXiv:2011.13456, algorithms 2 and 4, appendices F and G (alpha = 1, as for VE there).
    """

    name = "predictor-corrector"
    title = "Predictor–corrector"
    source = "Song et al. 2021, arXiv:2011.13456, algorithms 2 and 4"
    ledger = "score-based-generative-modeling-through-stochastic"
    evidence = "tests/samplers/test_correctors.py::test_correcting_beats_predicting_alone_at_equal_evaluations"
    diffusion_form: Any = Hyper(
        "reverse-sde",
        scale="choice",
        kind="shape",
        choices=ExponentialEulerMaruyama.hypers["diffusion_form"].choices,
        doc=ExponentialEulerMaruyama.hypers["diffusion_form"].doc,
    )
    snr: Any = Hyper(0.16, 0.0, 2.0, soft=(0.0, 0.6), doc="Signal-to-noise ratio that sets the corrector's step.")
    corrections: Any = Hyper(
        1, 0, 20, "integer", (0, 5), kind="init", unit="steps", doc="Langevin steps after each step."
    )

    def draw(self, key, path, x, t, end):
        normals = [key.stream(f"corrector {i}").normal(x.shape[1:], like=x, axis=0) for i in range(self.corrections)]
        return *path.increment(t, end), normals

    def step(self, field, path, x, t, end, state, hyper, noise):
        x = self.move(field(x, t), path, t, end, hyper, noise[0])
        some_left = column(path.spread(end) > 0)
        for z in noise[2]:
            score = field(x, end).score
            size = 2 * (hyper["snr"] * mean_norm(z) / mean_norm(score)).square()
            x = torch.where(some_left, x + size * score + (2 * size).sqrt() * z, x)
        return Step(x, end, (), {})


def mean_norm(vectors: torch.Tensor) -> torch.Tensor:
    """Mean over samples of the Euclidean norm, (runs, 1, 1)."""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).mean(-2, keepdim=True)

"""PFGM++: flows from heavy-tailed noise, which in D more dimensions are the lines of an electric field of the data.

Noise of radius R ~ p_r(R) ∝ R^(N-1) / (R² + r²)^((N+D)/2) in all directions alike is, with r = σ √D, the noise σ x0
of a multivariate t distribution with D degrees of freedom. So PFGM++ is a source; paths, objectives and solvers stay as
they are, and hyperparameters of diffusion carry over: D = 1 is PFGM, D to infinity diffusion.
"""

import math
from typing import Any

import torch
from torch import Tensor

from workbench.flows.fields import Field
from workbench.flows.interpolants import Interpolant
from workbench.flows.posteriors import LEAST, MOST_NUMBERS
from workbench.problems.densities import Density, Mixture
from workbench.routine import Hyper, Key


class HeavyTailed(Density):
    """p(x) ∝ (|x|² + D)^(-(N+D)/2) in N coordinates: x = R u, u uniform on the sphere, R = √D √(B / (1 - B)).

    B ~ Beta(N/2, D/2), by its quantile function at uniform numbers. With "data-prediction" on the EDM path, where
    x_t = x1 + σ x0, this is the training objective of PFGM++, E |x̂(x1 + R u, σ) - x1|², and its flow dx/dr =
    (x - x̂) / r is that of the path. Solvers that add noise are not for it: they take the source to be normal.
    Source: Xu et al. 2023, arXiv:2302.04265, section 3.2 and appendix; checked with training/loss.py of its code.
    """

    name = "heavy-tailed-noise"
    title = "Heavy-tailed noise (PFGM++)"
    source = "Xu et al. 2023, arXiv:2302.04265"
    ledger = "pfgm"
    evidence = "tests/flows/test_pfgm.py::test_the_radius_follows_its_law[64-128]"
    dim: Any = Hyper(2, 1, 4096, "integer", (1, 64), kind="init", doc="Number of coordinates, N.")
    extra: Any = Hyper(
        64.0, 0.5, 1e7, "log", (1.0, 4096.0), kind="init", doc="Dimensions added, D: the fewer, the heavier the tails."
    )

    def sample(self, key: Key, n: int, like: Tensor) -> Tensor:
        exact = torch.empty(0, dtype=torch.float64)
        z = key.stream("direction").normal((n, self.dim), like=exact)
        radius = self.radius(key.stream("radius").uniform((n,), like=exact))
        x = z * (radius / z.norm(dim=-1)).unsqueeze(-1)
        return x.to(device=like.device, dtype=like.dtype)

    def radius(self, u: Tensor) -> Tensor:
        """R at uniform numbers u in [0, 1), which falls with u; float64, on the host."""
        from scipy.special import betaincinv

        rest = torch.from_numpy(betaincinv(self.extra / 2, self.dim / 2, u.clamp(min=2**-54).numpy()))  # 1 - B
        return math.sqrt(self.extra) * ((1 - rest) / rest).sqrt()

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) of points (..., dim), of shape (...)."""
        n, d = self.dim, self.extra
        constant = math.lgamma((n + d) / 2) - math.lgamma(d / 2) - n / 2 * math.log(d * math.pi)
        return constant - (n + d) / 2 * torch.log1p(x.square().sum(-1) / d)

    def exact_field(self, target: Density, interpolant: Any, points: int) -> "PoissonField":
        """The field that a perfectly trained net would learn: of the target's own points, or of `points` samples."""
        if not isinstance(target, Mixture) or bool(target.exact.spectrum.any()):
            target = target.as_points(points)
        return PoissonField(self, target, interpolant)


class PoissonField(Field):
    """The exact field from heavy-tailed noise to points y_k: x̂ = Σ w_k y_k, w_k ∝ (|x - alpha y_k|² + D σ²)^(-(N+D)/2).

    Times D σ² = r² that is the electric field, in N + D dimensions, of charges at the points.
    Source: Xu et al. 2023, arXiv:2302.04265, equation 3, and `pfgmv2_target` in training/loss.py of its code.
    """

    target: Mixture

    def __init__(self, source: HeavyTailed, target: Mixture, interpolant: Interpolant) -> None:
        if source.dim != target.dim:
            raise ValueError(f"expected source and target of one dimension, got {source.dim} and {target.dim}")
        if interpolant.latent:
            raise ValueError(f"expected a path without latent noise from heavy-tailed noise, got {interpolant.name!r}")
        self.source, self.target, self.interpolant, self.dim = source, target, interpolant, target.dim

    def known(self, x, t, rows=None):
        path, t = self.interpolant, t.expand(x.shape[:-1]).unsqueeze(-1)
        alpha, sigma = (part(t).clamp(min=math.sqrt(LEAST)) for part in (path.alpha, path.sigma))
        parts = [self._data(*part) for part in self._pieces(x, alpha, sigma)]
        data = torch.cat(parts).reshape(x.shape)
        return {"velocity": path.d_alpha(t) * data + path.d_sigma(t) * (x - alpha * data) / sigma, "data": data}

    def _pieces(self, *values: Tensor) -> Any:
        """Points (n, dim) and what belongs to them, in pieces small enough for all distances at once."""
        rows = max(1, MOST_NUMBERS // len(self.target.exact.means))
        return zip(*(value.reshape(-1, value.shape[-1]).split(rows) for value in values), strict=True)

    def _data(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        y, log_weights = self.target.parts(x)[:2]
        apart = torch.cdist(x / alpha, y, compute_mode="donot_use_mm_for_euclid_dist") * (alpha / sigma)
        power = (self.dim + self.source.extra) / 2
        logits = log_weights - power * torch.log1p(apart.square() / self.source.extra)
        return torch.softmax(logits, -1) @ y

    def recipe(self):
        parts = self.target.recipe(), self.interpolant.recipe(), f"source={self.source.recipe()}"
        return f"wb.exact_field({', '.join(parts)})"

    def setup(self):
        return self.target.setup()

    def describe(self):
        return {"problem": self.target.name, "interpolant": self.interpolant.name, "field": "exact"}

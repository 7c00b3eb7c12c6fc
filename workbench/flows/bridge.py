"""Bridges: from a known start x0 to data that go with it. Points are pairs (x_t, x0): the start stands still beside.

    x_t = t x1 + (1 - t) x0 + gamma z        gamma² = scale t (1 - t)        z ~ N(0, I)

given both ends, and what is sought is a draw of x1 given x0. What a net would learn is E[x1 | x_t, x0].
"""

from typing import Any

import torch
from torch import Tensor

from workbench.flows.fields import Field
from workbench.flows.interpolants import Stochastic
from workbench.problems.densities import Density, Mixture
from workbench.routine import Key


class BrownianBridge(Stochastic):
    """x_t = t x1 + (1 - t) x0 + √(scale t (1 - t)) z from a known start x0, all the way from t = 0 to t = 1.

    Source: Zhou et al. 2024, arXiv:2309.16948, variance exploding; rates that are infinite at the ends are not used.
    """

    name = "brownian-bridge"
    title = "Brownian bridge"
    evidence = ""  # no entry of the catalogue: points of other fields are no pairs, and its rates are infinite

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.ends = (0.0, 1.0)


class Starts(Density):
    """(x0, x0) for the start x0 of pairs (x1, x0): where bridges begin."""

    title = "Starts of pairs"

    def __init__(self, pairs: Mixture) -> None:
        super().__init__()
        self.pairs, self.dim = pairs, pairs.dim

    def sample(self, key: Key, n: int, like: Tensor) -> Tensor:
        start = self.pairs.sample(key, n, like).chunk(2, -1)[1]
        return torch.cat([start, start], -1)


class BridgeField(Field):
    """The exact field of bridges for pairs (x1, x0) of one Gaussian mixture; its points are pairs (x_t, x0).

    Given x0 the data are Σ w_k(x0) N(m_k(x0), S_k), and x_t - (1 - t) x0 is t x1 plus noise of gamma. The second half
    of what it predicts is the start itself, which does not move.

    Args:
        pairs: a mixture of pairs, 2 dim coordinates, with covariances that have an inverse.
        path: the bridge.
    """

    def __init__(self, pairs: Mixture, path: BrownianBridge | None = None) -> None:
        if pairs.dim % 2:
            raise ValueError(f"expected pairs of an even number of coordinates, data and start, got {pairs.dim}")
        self.interpolant, self.dim = path or BrownianBridge(), pairs.dim
        self.source, self.target = Starts(pairs), pairs
        exact, d = pairs.exact, pairs.dim // 2
        covariances = exact.covariances
        self.starts = Mixture(exact.means[:, d:], covariances[:, d:, d:], pairs.weights)
        pull = covariances[:, :d, d:] @ torch.linalg.inv(covariances[:, d:, d:])
        left = covariances[:, :d, :d] - pull @ covariances[:, d:, :d]
        spectrum, basis = torch.linalg.eigh((left + left.mT) / 2)
        self._given = exact.means[:, :d], pull, spectrum, basis

    def known(self, x, t, rows=None):
        now, start = x.chunk(2, -1)
        path, t = self.interpolant, t.unsqueeze(-1)
        data = self.data(now - path.sigma(t) * start, start, path.alpha(t), path.gamma(t))
        noise = (now - path.alpha(t) * data - path.sigma(t) * start) / path.gamma(t)
        velocity = data - start + path.d_gamma(t) * noise
        return {"data": torch.cat([data, start], -1), "velocity": torch.cat([velocity, torch.zeros_like(start)], -1)}

    def data(self, y: Tensor, start: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
        """E[x1 | alpha x1 + gamma z = y, x0 = start], all (..., dim); weights broadcast to that."""
        means, pull, spectrum, basis = (part.to(y) for part in self._given)
        parts, alpha, gamma = self.starts.parts(y), alpha.unsqueeze(-2), gamma.unsqueeze(-2)
        centre = means + torch.einsum("kij,...kj->...ki", pull, start.unsqueeze(-2) - parts.means)
        variance = (alpha.square() * spectrum + gamma.square()).clamp(min=1e-20)
        off = torch.einsum("kji,...kj->...ki", basis, y.unsqueeze(-2) - alpha * centre)
        logits = -(variance.log() + off.square() / variance).sum(-1) / 2
        weights = torch.softmax(logits + self.starts.responsibilities(start).log(), -1)
        move = torch.einsum("kij,...kj->...ki", basis, alpha * spectrum / variance * off)
        return (weights.unsqueeze(-1) * (centre + move)).sum(-2)

    def describe(self) -> dict[str, Any]:
        return {"problem": self.target.name, "interpolant": "Brownian bridge", "field": "exact"}

"""Diffusion in phase space: data are positions, and noise enters their momenta only. Its exact field of mixtures.

Points are (..., 2 dim): dim positions, then as many momenta. With s = 1 - t, from data at s = 0,

    dx = (beta / 2) m / M ds        dm = -(beta / 2) (x + nu m) ds + √(beta M nu) dW        M = 4 / nu²

which is critically damped, and comes to rest at x ~ N(0, I), m ~ N(0, M I). Momenta of data are N(0, kappa M I).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.flows.fields import Field
from workbench.problems.densities import Mixture, Parts


@dataclass(frozen=True)
class CriticallyDamped:
    """The process; rates are constant.

    Args:
        beta: the rate of everything, 1 / time.
        nu: friction; the mass is 4 / nu².
        kappa: variance of the data's momenta, in units of the mass.

    Source: Dockhorn, Vahdat & Kreis 2022, arXiv:2112.07068; Pandey & Mandt 2023, arXiv:2303.01748, with this
    parametrisation (PSLD with gamma = 0).
    """

    beta: float = 8.0
    nu: float = 4.0
    kappa: float = 0.04

    @property
    def mass(self) -> float:
        """M."""
        return 4 / self.nu**2

    def position_speed(self, momentum: Tensor) -> Tensor:
        """dx / dt, towards data: it is known without the score."""
        return -self.beta / (2 * self.mass) * momentum

    def kernel(self, t: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The matrix that takes data (x, m) to the means at time t: exp of the drift's."""
        b = self.beta * (1 - t)
        shrink, turn = torch.exp(-self.nu * b / 4), self.nu * b / 4
        return (
            (shrink * (1 + turn), shrink * b * self.nu**2 / 8),
            (-shrink * b / 2, shrink * (1 - turn)),
        )


class PhaseField(Field):
    """The exact velocity of the probability-flow ODE in phase space, and the score, for a mixture of positions.

        dx/dt = -(beta / 2) m / M        dm/dt = (beta / 2) (x + nu m + M nu ∂ log p / ∂m)

    A component N(μ, C) at rest has covariance diag(C, kappa M I), and E diag(C, kappa M) Eᵀ + R - E R Eᵀ at time t,
    with E the `kernel` and R = diag(1, M): 2 × 2 along each axis of C.
    """

    def __init__(self, positions: Mixture, process: CriticallyDamped | None = None) -> None:
        self.positions, self.process = positions, process or CriticallyDamped()
        self.dim = 2 * positions.dim
        mass, exact = self.process.mass, positions.exact
        rest = torch.zeros_like(exact.means)
        start = torch.tensor([1.0] * positions.dim + [mass] * positions.dim, dtype=torch.float64).diag()
        self.source = Mixture(torch.zeros(1, self.dim), start.unsqueeze(0))
        still = torch.eye(positions.dim, dtype=torch.float64) * (self.process.kappa * mass)
        blocks = torch.stack([torch.block_diag(c, still) for c in exact.covariances])
        self.target = Mixture(torch.cat([exact.means, rest], -1), blocks, positions.weights)

    def known(self, x, t, rows=None):
        score, process = self.score(x, t), self.process
        position, momentum = x.chunk(2, -1)
        pull = process.mass * process.nu * score.chunk(2, -1)[1]
        force = process.beta / 2 * (position + process.nu * momentum + pull)
        return {"velocity": torch.cat([process.position_speed(momentum), force], -1), "score": score}

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """∇ log p_t at points (..., 2 dim) and times that broadcast to them without the last axis."""
        parts, mass = self.positions.parts(x), self.process.mass
        (xx, xm), (mx, mm) = self.process.kernel(t[..., None, None])
        more, warm = parts.spectrum - 1, (self.process.kappa - 1) * mass
        a, b, c = 1 + xx**2 * more + xm**2 * warm, xx * mx * more + xm * mm * warm, mass + mx**2 * more + mm**2 * warm
        position, momentum = x.unsqueeze(-2).chunk(2, -1)
        p, q = along(parts, position - xx * parts.means), along(parts, momentum - mx * parts.means)
        det = a * c - b * b
        u, v = (c * p - b * q) / det, (a * q - b * p) / det
        logits = parts.log_weights - (det.log() + p * u + q * v).sum(-1) / 2
        weights = torch.softmax(logits, -1).unsqueeze(-1)
        return -torch.cat([(weights * back(parts, y)).sum(-2) for y in (u, v)], -1)

    def describe(self) -> dict[str, Any]:
        return {"problem": self.positions.name, "interpolant": "critically damped Langevin", "field": "exact"}


def along(parts: Parts, x: Tensor) -> Tensor:
    """Points (..., K, dim) along the axes of each component."""
    return x if parts.basis is None else torch.einsum("kji,...kj->...ki", parts.basis, x)


def back(parts: Parts, y: Tensor) -> Tensor:
    """And from there back."""
    return y if parts.basis is None else torch.einsum("kij,...kj->...ki", parts.basis, y)

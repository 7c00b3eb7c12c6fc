"""Posteriors: what is known of the source and the data at a point between two Gaussian mixtures, in closed form."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.problems.densities import LOG_2PI, Mixture, Parts


class Posterior(NamedTuple):
    """E[x0 | x], E[x1 | x], E[z | x], ∇ log p(x), shaped like x, and log p(x); None what is not asked for."""

    source: Tensor
    target: Tensor
    latent: Any
    score: Tensor
    log_density: Any


MOST_NUMBERS = 2**24
"""Numbers of one temporary; more points are taken in pieces."""
LEAST = 1e-12
"""The smallest variance of a pair of components; without it, points would divide by 0 at the last time."""
SHORT, FEW = 4, 64
"""Points of so few coordinates, and weights of fewer components, lie in memory coordinate by coordinate and component
by component, each with all points: rows this short are slow to walk along."""


def joint_posterior(
    source: Mixture, target: Mixture, x: Tensor, sigma: Tensor, alpha: Tensor, gamma: Tensor | None = None
) -> Posterior:
    """What is known of x0, x1 and z given x = sigma x0 + alpha x1 + gamma z, for x0, x1 of two mixtures, z normal.

    Where none of these has any spread, as at the last time of points, they count as normals of standard deviation 1e-6:
    x1 is the nearest point, and of x0 nothing is known.

    Args:
        x: (..., dim).
        sigma, alpha, gamma: of any shape that broadcasts to x without its last axis; no z when gamma is None.
    """
    return Pairs.of(source, target, x).posterior(x, sigma, alpha, gamma)


class Pairs(NamedTuple):
    """Every component of the source with every one of the target: K pairs. See `Parts`.

    One row stands for all K where they are the same: of a source that is one component, and of the variances when all
    components are isotropic and of one size.

    Attributes:
        centred: the source is one component around 0.
        columns: of the source and of the target, their means coordinate by coordinate, laid out to meet the points.
        lifted: of the target, (dim + 1, K): its means and a row of ones.
    """

    log_weights: Tensor
    source: Parts
    target: Parts
    centred: bool
    columns: tuple[tuple[Tensor, ...], ...]
    lifted: Tensor

    @classmethod
    def of(cls, source: Mixture, target: Mixture, like: Tensor) -> "Pairs":
        """All pairs; the target's component changes fastest."""
        isotropic = source.exact.basis is None and target.exact.basis is None
        first, second = (_merged(each, like) if isotropic else each.parts(like) for each in (source, target))
        n, m = len(first.means), len(second.means)
        if n > 1:
            j = torch.arange(n, device=like.device).repeat_interleave(m)
            first = Parts(*(p if p is None or len(p) < n else p[j] for p in first))  # type: ignore[arg-type]
            copies = [p if p is None or len(p) < m else p.repeat(n, *[1] * (p.ndim - 1)) for p in second]
            second = Parts(*copies)  # type: ignore[arg-type]
        centred = n == 1 and not bool(source.exact.means.any())
        axis = 2 if n * m < FEW else 1
        columns = tuple(part.means.T.unsqueeze(axis).contiguous().unbind() for part in (first, second))
        lifted = torch.nn.functional.pad(second.means, (0, 1), value=1.0).T
        return cls(first.log_weights + second.log_weights, first, second, centred, columns, lifted)

    def posterior(
        self, x: Tensor, sigma: Tensor, alpha: Tensor, gamma: Tensor | None = None, *, density: bool = True
    ) -> Posterior:
        """As `joint_posterior`. density: whether log p(x) is wanted too."""
        flat, shape = x.reshape(-1, x.shape[-1]), x.shape
        given = (sigma, alpha) if gamma is None else (sigma, alpha, gamma)
        weights = [w.reshape(1) if w.numel() == 1 else w.expand(shape[:-1]).reshape(-1) for w in given]
        isotropic = self.source.basis is None and self.target.basis is None
        method = _by_distance if isotropic else _by_eigenbasis if self.source.basis is None else _by_cholesky
        lean = isotropic and (weights[0].numel() == 1 or shape[-1] <= SHORT)
        rows = max(1, MOST_NUMBERS // (self.log_weights.numel() * (1 if lean else shape[-1])))
        if len(flat) > rows:
            cut = [w.split(rows) if w.numel() > 1 else [w] * -(-len(flat) // rows) for w in weights]
            pieces = [method(self, part, ws, density) for part, *ws in zip(flat.split(rows), *cut, strict=True)]
            found = [None if column[0] is None else torch.cat(column) for column in zip(*pieces, strict=True)]
        else:
            found = list(method(self, flat, weights, density))
        if x.ndim != 2:
            found = [p if p is None else p.reshape(shape if p.ndim > 1 else shape[:-1]) for p in found]
        return Posterior(*found)  # type: ignore[arg-type]

    def sums(self, q: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Σ_k q_k times the source's means (None when centred) and the target's, (dim, n), and Σ_k q_k, (n,); q (K, n).

        By products of matrices: unlike a sum over rows, they give a point the same bits whatever others there are.
        """
        wide = len(self.lifted) > SHORT + 1
        found = (q.T @ self.lifted.T).T if wide else self.lifted @ q
        total, means = found[-1], self.source.means.T
        if self.centred:
            return None, found[:-1], total
        return means * total if means.shape[-1] == 1 else means @ q, found[:-1], total

    def squares(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """|x - a source_k - b target_k|², (K, n), of x (dim, n), a and b (n,) or (1,). The square is never expanded,
        which would cancel.
        """
        if len(x) > SHORT:
            return self._squares_of_rows(x.T, a.unsqueeze(-1), b.unsqueeze(-1)).T
        few, total = len(self.log_weights) < FEW, None
        centres = [(b, self.columns[1])] if self.centred else [(a, self.columns[0]), (b, self.columns[1])]
        for i, part in enumerate(x.unbind() if few else x.unsqueeze(-1).unbind()):
            for w, means in centres:
                part = torch.addcmul(part, w if few else w.unsqueeze(-1), means[i], value=-1)
            total = part * part if total is None else torch.addcmul(total, part, part)
        return total if few else total.T  # type: ignore[union-attr,return-value]

    def _squares_of_rows(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The same for points of many coordinates, (n, K) of x (n, dim), a and b (n or 1, 1)."""
        if len(b) > 1:
            return (
                (x[:, None] - a.unsqueeze(-1) * self.source.means - b.unsqueeze(-1) * self.target.means)
                .square()
                .sum(-1)
            )
        centres = a * self.source.means + b * self.target.means
        return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _merged(mixture: Mixture, like: Tensor) -> Parts:
    """Parts of an isotropic mixture, with one variance when all are the same (looked up on the host, in float64)."""
    parts, exact = mixture.parts(like), mixture.exact.spectrum
    return parts._replace(spectrum=parts.spectrum[:1]) if bool((exact == exact[0]).all()) else parts


def _by_distance(pairs: Pairs, x: Tensor, weights: list[Tensor], density: bool) -> Posterior:
    """All components isotropic: distances and a few products of matrices, whatever the number of points.

    Points are columns here, (dim, n), and what there is of each pair is a row.
    """
    a, b, *c = weights
    x = x.T.contiguous() if x.shape[-1] <= SHORT else x.T
    s2, l2 = pairs.source.spectrum, pairs.target.spectrum  # (K or 1, 1)
    variance = b * b * l2 + a * a * s2  # (K or 1, n or 1)
    variance = (variance + c[0] * c[0] if c else variance).clamp(min=LEAST)
    logits = torch.addcdiv(pairs.log_weights.unsqueeze(-1), pairs.squares(x, a, b), variance, value=-0.5)
    one_size = len(variance) == 1  # then its logarithm makes no difference between pairs
    if density or not one_size:
        logits = logits - variance.log() * (len(x) / 2)
    p = _weights(logits)
    of_source, of_target, total = pairs.sums(p)

    def pull(source: Tensor | None, target: Tensor, weight: Tensor) -> Tensor:
        """Σ_k q_k (centre_k - x) / Σ_k p_k, from the sums of q."""
        inward = b * target if source is None else torch.addcmul(b * target, a, source)
        return torch.addcmul(inward, weight, x, value=-1) / total

    score = pull(of_source, of_target, total) / variance if one_size else pull(*pairs.sums(p / variance))
    by_size = [v * score if len(v) == 1 else pull(*pairs.sums(p * (v / variance))) for v in (s2, l2)]
    source = by_size[0] * -a if of_source is None else torch.addcmul(of_source / total, by_size[0], a, value=-1)
    target = torch.addcmul(of_target / total, by_size[1], b, value=-1)
    latent = (score * -c[0]).T if c else None
    log_density = torch.logsumexp(logits, 0) - LOG_2PI * len(x) / 2 if density else None
    return Posterior(source.T, target.T, latent, score.T, log_density)


def _weights(logits: Tensor) -> Tensor:
    """Over the first axis of (K, n): softmax, or as good, that times something. Less than e⁻⁸⁰ of the largest is 0:
    subnormal numbers are slow.
    """
    shifted = torch.threshold(logits - logits.amax(0), -80.0, -math.inf)
    return shifted.exp() if len(logits) < FEW else torch.softmax(shifted.T, -1).T


def _by_eigenbasis(pairs: Pairs, x: Tensor, weights: list[Tensor], density: bool) -> Posterior:
    """The source's components isotropic: everything is diagonal in the target's eigenbases."""
    basis, lam = pairs.target.basis, pairs.target.spectrum
    a, b, *c = (w[:, None, None] for w in weights)
    variance = sum((w * w for w in c), b * b * lam + a * a * pairs.source.spectrum).clamp(min=LEAST)  # (n or 1, K, dim)
    turned = torch.einsum("kji,nkj->nki", basis, x[:, None] - a * pairs.source.means - b * pairs.target.means)
    y = turned / variance
    logits = pairs.log_weights - (variance.log() + turned * y).sum(-1) / 2

    def lift(v: Tensor) -> Tensor:
        return torch.einsum("kij,nkj->nki", basis, v)

    lifted = lift(y)
    return _weighted(pairs, logits, (lifted, pairs.source.spectrum * lifted, lift(lam * y)), (a, b, *c), density)


def _by_cholesky(pairs: Pairs, x: Tensor, weights: list[Tensor], density: bool) -> Posterior:
    """Components of any covariance: a factor a pair and time."""
    a, b, *c = (w[:, None, None] for w in weights)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    of_source, of_target = pairs.source.covariances, pairs.target.covariances
    squares = [w.unsqueeze(-1).square() for w in (a, b, *c)]
    covariance = sum(w * matrix for w, matrix in zip(squares, (of_source, of_target, eye), strict=False)) + LEAST * eye
    factor = torch.linalg.cholesky(covariance).expand(len(x), *of_target.shape)
    residual = x[:, None] - a * pairs.source.means - b * pairs.target.means
    y = torch.cholesky_solve(residual.unsqueeze(-1), factor)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    logits = pairs.log_weights - half_log_det - (residual * y.squeeze(-1)).sum(-1) / 2
    pulled = y.squeeze(-1), (of_source @ y).squeeze(-1), (of_target @ y).squeeze(-1)
    return _weighted(pairs, logits, pulled, (a, b, *c), density)


def _weighted(
    pairs: Pairs, logits: Tensor, pulled: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor, ...], density: bool
) -> Posterior:
    """Means over the pairs; `pulled` is V⁻¹ r, and the source's and the target's covariances times it, (n, K, dim)."""
    (y, of_source, of_target), (a, b, *c) = pulled, weights
    p = _weights(logits.T).T
    p = (p / p.sum(-1, keepdim=True)).unsqueeze(-1)
    from_source = (p * (pairs.source.means + a * of_source)).sum(1)
    from_target = (p * (pairs.target.means + b * of_target)).sum(1)
    score = -(p * y).sum(1)
    latent = -c[0][:, 0] * score if c else None
    log_density = torch.logsumexp(logits, -1) - LOG_2PI * y.shape[-1] / 2 if density else None
    return Posterior(from_source, from_target, latent, score, log_density)

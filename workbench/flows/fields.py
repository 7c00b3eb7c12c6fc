"""Fields: what a solver goes through. One evaluation of a field at (x, t) gives velocity, data, noise and score alike.

A field maps points (..., dim) and times (one a point, or any shape that broadcasts to that) to a `Prediction`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.flows.interpolants import KINDS, Interpolant
from workbench.problems.densities import LOG_2PI, Density, Gaussian, Mixture, Parts
from workbench.routine import unknown


class Prediction:
    """One evaluation of a field: what is known of it, and what the interpolant makes of that.

    With x = alpha x1 + s u, u the unit noise and s the interpolant's spread, velocity, data and noise follow from each
    other by solving two linear equations, and the score is -noise / s. Noise and score mean something only when the
    source is a unit normal.

    Args:
        interpolant: None of a field that is nothing but a velocity.
        x, t: where it was evaluated.
        known: one or more of `KINDS`, as given by the field.
    """

    def __init__(self, interpolant: Interpolant | None, x: Tensor, t: Tensor, known: Mapping[str, Tensor]) -> None:
        self.interpolant, self.x, self.t, self.known = interpolant, x, t, dict(known)

    def __getitem__(self, kind: str) -> Tensor:
        """What is asked for, one of `KINDS`.

        Raises:
            ValueError: when the field has no interpolant to convert by, or on another kind.
        """
        if kind not in self.known:
            if kind not in KINDS:
                raise unknown("a kind of prediction", kind, KINDS)
            self.known[kind] = self._convert(kind)
        return self.known[kind]

    @property
    def velocity(self) -> Tensor:
        """E[dx_t/dt | x_t = x]."""
        return self["velocity"]

    @property
    def data(self) -> Tensor:
        """E[x1 | x_t = x]: where the field thinks this ends."""
        return self["data"]

    @property
    def noise(self) -> Tensor:
        """E[unit noise | x_t = x] = -spread · score."""
        return self["noise"]

    @property
    def score(self) -> Tensor:
        """∇ log p_t(x)."""
        return self["score"]

    def _convert(self, kind: str) -> Tensor:
        if self.interpolant is None:
            given = ", ".join(self.known)
            raise ValueError(f"expected a field with an interpolant to tell its {kind}, got one that is only {given}")
        path, t = self.interpolant, self.t.unsqueeze(-1)
        if kind == "score":
            return -self.noise / path.spread(t)
        alpha, spread = path.alpha(t), path.spread(t)
        if "score" in self.known and "noise" not in self.known:
            self.known["noise"] = -spread * self.known["score"]
            return self[kind]
        if "data" in self.known and "noise" in self.known:
            return path.d_alpha(t) * self.data + path.d_spread(t) * self.noise
        if "velocity" in self.known:
            d_alpha, d_spread = path.d_alpha(t), path.d_spread(t)
            determinant = alpha * d_spread - spread * d_alpha
            if kind == "data":
                return (d_spread * self.x - spread * self.velocity) / determinant
            return (alpha * self.velocity - d_alpha * self.x) / determinant
        if "data" in self.known:
            self.known["noise"] = (self.x - alpha * self.data) / spread
        else:
            self.known["data"] = (self.x - spread * self.noise) / alpha
        return self[kind]


class Field:
    """What a solver goes through: `field(x, t)` is one evaluation. Subclasses fill in `known`.

    Attributes:
        dim: number of coordinates.
        interpolant: what its predictions are converted by; None for a velocity of no known origin.
        source: where samples start, a density.
        target: where they should end, a density; None when unknown.
    """

    dim: int = 2
    interpolant: Any = None
    source: Any = None
    target: Any = None

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> Prediction:
        """One evaluation at points x (..., dim) and times t; `rows` says which samples these are, when not all.

        Raises:
            ValueError: when what it gives has another shape than x.
        """
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        return Prediction(self.interpolant, x, t, self.known(x, t, rows))

    def known(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> dict[str, Tensor]:
        """One or more of `KINDS`, each of the shape of x."""
        raise NotImplementedError

    def to(self, device: Any) -> "Field":
        """The same field with its tensors on another device."""
        return self

    def recipe(self) -> str:
        """A Python expression that makes it again, for exported scripts."""
        return "field"

    def setup(self) -> str:
        """Python lines that an exported script needs before the recipe."""
        return ""

    def describe(self) -> dict[str, Any]:
        """Names of what it is made of, for provenance."""
        return {}


class ExactField(Field):
    """The exact field between two Gaussian mixtures (or point sets) under an interpolant, at every time.

    Each pair of components moves as a Gaussian N(sigma μ_j + alpha m_k, sigma² S_j + alpha² C_k + gamma² I); the field
    is the mean of theirs weighted by how probable each pair is at x. With points in place of the target's components
    this is the field that a perfectly trained net on exactly these points would learn.
    """

    def __init__(self, source: Mixture, target: Mixture, interpolant: Interpolant) -> None:
        if source.dim != target.dim:
            raise ValueError(f"expected source and target of one dimension, got {source.dim} and {target.dim}")
        self.source, self.target, self.interpolant, self.dim = source, target, interpolant, target.dim
        self._pairs: dict[tuple, Pairs] = {}

    def pairs(self, like: Tensor) -> "Pairs":
        """The pairs of components in the dtype and on the device of `like`; kept."""
        key = like.dtype, like.device
        if key not in self._pairs:
            self._pairs[key] = Pairs.of(self.source, self.target, like)
        return self._pairs[key]

    def known(self, x, t, rows=None):
        path = self.interpolant
        means = self._posterior(x, t, density=False)
        t = t.unsqueeze(-1)
        velocity = path.d_alpha(t) * means.target + path.d_sigma(t) * means.source
        if path.latent:
            velocity = velocity + path.d_gamma(t) * means.latent
        return {"velocity": velocity, "data": means.target, "score": means.score}

    def _posterior(self, x: Tensor, t: Tensor, *, density: bool) -> "Posterior":
        path = self.interpolant
        gamma = path.gamma(t) if path.latent else None
        return self.pairs(x).posterior(x, path.sigma(t), path.alpha(t), gamma, density=density)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), the marginal's, of the shape of x without its last axis."""
        return self._posterior(x, t, density=True).log_density

    def recipe(self):
        inside = f"{self.target.recipe()}, {self.interpolant.recipe()}"
        source = "" if isinstance(self.source, Gaussian) else f", source={self.source.recipe()}"
        return f"wb.exact_field({inside}{source})"

    def setup(self):
        return self.target.setup()

    def describe(self):
        return {"problem": self.target.name, "interpolant": self.interpolant.name, "field": "exact"}


class FunctionField(Field):
    """Somebody's own velocity f(x, t): x (..., dim), t of the shape of x without its last axis; returns (..., dim)."""

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        dim: int = 2,
        *,
        kind: str = "velocity",
        interpolant: Interpolant | None = None,
        source: Density | None = None,
        target: Density | None = None,
    ) -> None:
        if kind not in KINDS:
            raise unknown("a kind of prediction", kind, KINDS)
        if kind != "velocity" and interpolant is None:
            raise ValueError(f"expected an interpolant with a field that predicts {kind}, got none")
        self.function, self.dim, self.kind, self.interpolant = function, dim, kind, interpolant
        self.source, self.target = source or Mixture.normal(dim), target

    def tried(self) -> "FunctionField":
        """The field itself, asked once at two points halfway.

        Raises:
            ValueError: when it does not answer with finite numbers of the shape of its points.
        """
        x, t = torch.full((2, self.dim), 0.25), torch.tensor(0.5)
        try:
            found = self(x, t)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"expected a field f(x, t) that takes x {tuple(x.shape)}, got: {error}") from error
        if not all(bool(torch.isfinite(value).all()) for value in found.known.values()):
            raise ValueError("expected the field to be finite at x = (0.25, …), t = 0.5, got inf or nan")
        return self

    def known(self, x, t, rows=None):
        value = self.function(x, t.expand(x.shape[:-1]))
        if not isinstance(value, Tensor) or value.shape != x.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"expected the field to return shape {tuple(x.shape)}, as its points have, got {got}")
        return {self.kind: value.to(x)}

    def describe(self):
        return {"problem": getattr(self.function, "__name__", "function"), "field": "function"}


class Posterior(NamedTuple):
    """E[x0 | x], E[x1 | x], E[z | x], ∇ log p(x), shaped like x, and log p(x); None what is not asked for."""

    source: Tensor
    target: Tensor
    latent: Any
    score: Tensor
    log_density: Any


MOST_NUMBERS = 2**24
"""Numbers of one temporary; more points are taken in pieces."""
SHORT, FEW = 4, 64
"""Points of so few coordinates, and weights of fewer components, lie in memory coordinate by coordinate and component
by component, each with all points: rows this short are slow to walk along."""
LEAST = 1e-12
"""The smallest variance of a pair of components; without it, points would divide by 0 at the last time."""


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
    components are isotropic and of one size. `centred`: the source is one component around 0.
    """

    log_weights: Tensor
    source: Parts
    target: Parts
    centred: bool

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
        return cls(first.log_weights + second.log_weights, first, second, centred)

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
        shaped = [p if p is None else p.reshape(shape if p.ndim > 1 else shape[:-1]) for p in found]
        return Posterior(*shaped)  # type: ignore[arg-type]


def _merged(mixture: Mixture, like: Tensor) -> Parts:
    """Parts of an isotropic mixture, with one variance when all are the same (looked up on the host, in float64)."""
    parts, exact = mixture.parts(like), mixture.exact.spectrum
    return parts._replace(spectrum=parts.spectrum[:1]) if bool((exact == exact[0]).all()) else parts


def _by_distance(pairs: Pairs, x: Tensor, weights: list[Tensor], density: bool) -> Posterior:
    """All components isotropic: distances and a few products of matrices, whatever the number of points."""
    (_, source, target, centred), (a, b, *c) = pairs, (w.unsqueeze(-1) for w in weights)
    x = x.T.contiguous().T if x.shape[-1] <= SHORT else x
    s2, l2 = source.spectrum[:, 0], target.spectrum[:, 0]  # (K or 1,)
    variance = sum((w * w for w in c), b * b * l2 + a * a * s2).clamp(min=LEAST)  # (n or 1, K or 1)
    centres = [(b, target.means)] if centred else [(b, target.means), (a, source.means)]
    logits = torch.addcdiv(pairs.log_weights, _squared_distances(x, centres), variance, value=-0.5)
    one_size = variance.shape[-1] == 1  # then its logarithm makes no difference between pairs
    if density or not one_size:
        logits = logits - variance.log() * (x.shape[-1] / 2)
    p = _weights(logits)
    sums = [_sums(p, means) for _, means in centres]
    mean_target, mean_source = sums[0][0] / sums[0][1], None if centred else sums[1][0] / sums[0][1]

    def pull(q: Tensor) -> Tensor:
        """Σ_k q_k (centre_k - x) / Σ_k p_k."""
        parts = [(w, *_sums(q, means)) for w, means in centres]
        return (sum(w * moved for w, moved, _ in parts) - parts[0][2] * x) / sums[0][1]

    if one_size:
        inward: Any = b * mean_target if mean_source is None else b * mean_target + a * mean_source
        score = (inward - x) / variance
    else:
        score = pull(p / variance)
    moved = [w * (v * score if len(v) == 1 else pull(p * (v / variance))) for w, v in ((b, l2), (a, s2))]
    of_source = -moved[1] if mean_source is None else mean_source - moved[1]
    latent = -c[0] * score if c else None
    log_density = torch.logsumexp(logits, -1) - LOG_2PI * x.shape[-1] / 2 if density else None
    return Posterior(of_source, mean_target - moved[0], latent, score, log_density)


def _weights(logits: Tensor) -> Tensor:
    """Over the last axis of (n, K): softmax, or as good, that times something. Less than e⁻⁸⁰ of the largest is 0:
    subnormal numbers are slow.
    """
    shifted = torch.threshold(logits - logits.amax(-1, keepdim=True), -80.0, -math.inf)
    return shifted.exp() if logits.shape[-1] < FEW else torch.softmax(shifted, -1)


def _sums(weights: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_k weights_k means_k (n, dim), of one row of means for all k too, and Σ_k weights_k (n, 1).

    By a product of matrices: unlike a sum over columns, it gives a point the same bits whatever others there are.
    """
    if len(means) < weights.shape[-1]:
        total = _sums(weights, means.new_zeros(weights.shape[-1], 0))[1]
        return (means.T * total.T).T, total
    lifted = torch.nn.functional.pad(means, (0, 1), value=1.0)
    found = (lifted.T @ weights.T).T if means.shape[-1] <= SHORT else weights @ lifted
    return found[:, :-1], found[:, -1:]


def _squared_distances(x: Tensor, centres: list[tuple[Tensor, Tensor]]) -> Tensor:
    """|x - Σ w means_k|², (n, K), over pairs of weights (n or 1, 1) and means (K or 1, dim). The square is never
    expanded, which would cancel.
    """
    if x.shape[-1] <= SHORT:
        return _squares_by_coordinate(x, centres)
    if centres[0][0].numel() == 1:
        place: Any = sum(w * means for w, means in centres)
        return torch.cdist(x, place, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (x[:, None] - sum(w.unsqueeze(-1) * means for w, means in centres)).square().sum(-1)


def _squares_by_coordinate(x: Tensor, centres: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The same, a coordinate at a time."""
    few, total = len(centres[0][1]) < FEW, None
    points, components = (1, 2) if few else (2, 1)
    turned = [(w.T if few else w, means.T.unsqueeze(components).unbind()) for w, means in reversed(centres)]
    for i, part in enumerate(x.T.unsqueeze(points).unbind()):
        for w, means in turned:
            part = torch.addcmul(part, w, means[i], value=-1)
        total = part * part if total is None else torch.addcmul(total, part, part)
    return total.T if few else total  # type: ignore[union-attr,return-value]


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
    p = _weights(logits)
    p = (p / p.sum(-1, keepdim=True)).unsqueeze(-1)
    from_source = (p * (pairs.source.means + a * of_source)).sum(1)
    from_target = (p * (pairs.target.means + b * of_target)).sum(1)
    score = -(p * y).sum(1)
    latent = -c[0][:, 0] * score if c else None
    log_density = torch.logsumexp(logits, -1) - LOG_2PI * y.shape[-1] / 2 if density else None
    return Posterior(from_source, from_target, latent, score, log_density)


def exact_field(
    target: str | Density,
    interpolant: str | Interpolant = "linear-path",
    *,
    source: str | Density | None = None,
    points: int = 2000,
) -> ExactField:
    """The exact field from a source to a target density under an interpolant.

    Args:
        target: a Gaussian mixture of the catalogue ("eight-gaussians") or your own. Of a density that can only be
            sampled, the field of `points` samples of it: what a perfectly trained net on exactly these would learn.
        interpolant: a catalogue name or an `Interpolant`.
        source: another mixture; the unit normal when None.

    Raises:
        ValueError: on unknown names, or a source that is not a mixture.
    """
    from workbench.catalogue import find_declared

    aim = find_declared("densities", "a density", target)
    start = Mixture.normal(aim.dim) if source is None else find_declared("densities", "a density", source)
    if not isinstance(start, Mixture):
        raise ValueError(f"expected a Gaussian mixture as the source of an exact field, got {start.name!r}")
    mixture = aim if isinstance(aim, Mixture) else aim.as_points(points)
    return ExactField(start, mixture, find_declared("interpolants", "an interpolant", interpolant))


def as_field(field: Any, **options: Any) -> Field:
    """A field from itself, a density or its name (the exact one), or a callable velocity f(x, t).

    Raises:
        ValueError: on anything else, or options that do not fit.
    """
    from workbench.catalogue import find_declared

    if isinstance(field, Field):
        if options:
            raise ValueError(f"expected no {', '.join(options)} besides a field, which has its own, got one")
        return field
    if isinstance(field, str | Density):
        return exact_field(field, **options)
    if callable(field):
        if "interpolant" in options:
            options["interpolant"] = find_declared("interpolants", "an interpolant", options["interpolant"])
        return FunctionField(field, **options).tried()
    raise ValueError(f"expected a field, a density's name or a function f(x, t), got {type(field).__name__}")

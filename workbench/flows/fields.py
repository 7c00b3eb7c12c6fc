"""Fields: what a solver goes through. One evaluation of a field at (x, t) gives velocity, data, noise and score alike.

A field maps points (..., dim) and times (one a point, or any shape that broadcasts to that) to a `Prediction`.
"""

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

    def known(self, x, t, rows=None):
        path = self.interpolant
        weights = path.sigma(t), path.alpha(t), path.gamma(t)
        means = joint_posterior(self.source, self.target, x, *weights)
        t = t.unsqueeze(-1)
        found = {"data": means.target, "score": means.score}
        found["velocity"] = path.d_alpha(t) * means.target + path.d_sigma(t) * means.source
        if path.latent:
            found["velocity"] = found["velocity"] + path.d_gamma(t) * means.latent
        found["noise"] = -path.spread(t) * means.score
        return found

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), the marginal's, of the shape of x without its last axis."""
        path = self.interpolant
        return joint_posterior(self.source, self.target, x, path.sigma(t), path.alpha(t), path.gamma(t)).log_density

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
    """E[x0 | x], E[x1 | x], E[z | x], ∇ log p(x), all shaped like x, and log p(x)."""

    source: Tensor
    target: Tensor
    latent: Tensor
    score: Tensor
    log_density: Tensor


MOST_NUMBERS = 2**24
"""Numbers of one temporary; more points are taken in pieces."""
FEW = 4
"""Up to so many coordinates, distances are summed coordinate by coordinate."""
LEAST = 1e-12
"""The smallest variance of a pair of components; without it, points would divide by 0 at the last time."""


def joint_posterior(
    source: Mixture, target: Mixture, x: Tensor, sigma: Tensor, alpha: Tensor, gamma: Tensor
) -> Posterior:
    """What is known of x0, x1 and z given x = sigma x0 + alpha x1 + gamma z, for x0, x1 of two mixtures, z normal.

    Where none of these has any spread, as at the last time of points, they count as normals of standard deviation 1e-6:
    x1 is the nearest point, and of x0 nothing is known.

    Args:
        x: (..., dim).
        sigma, alpha, gamma: of any shape that broadcasts to x without its last axis.
    """
    flat, shape = x.reshape(-1, x.shape[-1]), x.shape
    weights = [w.reshape(1) if w.numel() == 1 else w.expand(shape[:-1]).reshape(-1) for w in (sigma, alpha, gamma)]
    pairs = Pairs.of(source.parts(x), target.parts(x))
    method = _by_distance if pairs.isotropic else _by_eigenbasis if pairs.round_source else _by_cholesky
    lean = pairs.isotropic and (weights[0].numel() == 1 or shape[-1] <= FEW)
    rows = max(1, MOST_NUMBERS // (pairs.log_weights.numel() * (1 if lean else shape[-1])))
    if len(flat) > rows:
        cut = [w.split(rows) if w.numel() > 1 else [w] * -(-len(flat) // rows) for w in weights]
        pieces = [method(pairs, part, *ws) for part, *ws in zip(flat.split(rows), *cut, strict=True)]
        found = Posterior(*(torch.cat(column) for column in zip(*pieces, strict=True)))
    else:
        found = method(pairs, flat, *weights)
    return Posterior(*(part.reshape(shape if part.ndim > 1 else shape[:-1]) for part in found))


class Pairs(NamedTuple):
    """Every component of the source with every one of the target: K pairs. See `Parts`."""

    log_weights: Tensor
    source: Parts
    target: Parts

    @classmethod
    def of(cls, source: Parts, target: Parts) -> "Pairs":
        """All pairs; the target's component changes fastest."""
        n, m = len(source.means), len(target.means)
        if n > 1:
            j = torch.arange(n, device=source.means.device).repeat_interleave(m)
            source = Parts(*(None if p is None else p[j] for p in source))  # type: ignore[arg-type]
            target = Parts(*(None if p is None else p.repeat(n, *[1] * (p.ndim - 1)) for p in target))  # type: ignore[arg-type]
        return cls(source.log_weights + target.log_weights, source, target)

    @property
    def round_source(self) -> bool:
        """Whether the source's components are isotropic."""
        return self.source.basis is None

    @property
    def isotropic(self) -> bool:
        """Whether all components are."""
        return self.source.basis is None and self.target.basis is None


def _by_distance(pairs: Pairs, x: Tensor, sigma: Tensor, alpha: Tensor, gamma: Tensor) -> Posterior:
    """All components isotropic: distances and two products of matrices, whatever the number of points."""
    dim = x.shape[-1]
    s2, l2 = pairs.source.spectrum[:, 0], pairs.target.spectrum[:, 0]
    a, b, c = (w.unsqueeze(-1) for w in (sigma, alpha, gamma))
    variance = (b * b * l2 + a * a * s2 + c * c).clamp(min=LEAST)  # (n or 1, K)
    squares = _squared_distances(x, a, pairs.source.means, b, pairs.target.means)
    logits = pairs.log_weights - squares / (2 * variance) - variance.log() * (dim / 2)
    log_density = torch.logsumexp(logits, -1)
    p = torch.softmax(logits, -1)
    q = p / variance

    def pull(weights: Tensor) -> Tensor:
        """Σ_k weights_k (centre_k - x)."""
        inward = a * (weights @ _rows(pairs.source.means, weights)) + b * (weights @ pairs.target.means)
        return inward - weights.sum(-1, keepdim=True) * x

    score = pull(q)
    from_source = p @ _rows(pairs.source.means, p) - a * pull(q * s2)
    from_target = p @ pairs.target.means - b * pull(q * l2)
    return Posterior(from_source, from_target, -c * score, score, log_density - LOG_2PI * dim / 2)


def _rows(means: Tensor, weights: Tensor) -> Tensor:
    """Means with a row for each column of the weights."""
    return means.expand(weights.shape[-1], -1)


def _squared_distances(x: Tensor, a: Tensor, source: Tensor, b: Tensor, target: Tensor) -> Tensor:
    """|x - a source_k - b target_k|², (n, K), without the cancellation of expanding the square."""
    if x.shape[-1] <= FEW:
        parts = [(x[:, i, None] - a * source[:, i] - b * target[:, i]).square() for i in range(x.shape[-1])]
        return sum(parts[1:], parts[0])
    if a.numel() == 1:
        return torch.cdist(x, a * source + b * target, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (x[:, None] - a.unsqueeze(-1) * source - b.unsqueeze(-1) * target).square().sum(-1)


def _by_eigenbasis(pairs: Pairs, x: Tensor, sigma: Tensor, alpha: Tensor, gamma: Tensor) -> Posterior:
    """The source's components isotropic: everything is diagonal in the target's eigenbases."""
    basis, lam = pairs.target.basis, pairs.target.spectrum
    a, b, c = (w[:, None, None] for w in (sigma, alpha, gamma))
    variance = (b * b * lam + a * a * pairs.source.spectrum + c * c).clamp(min=LEAST)  # (n or 1, K, dim)
    turned = torch.einsum("kji,nkj->nki", basis, x[:, None] - a * pairs.source.means - b * pairs.target.means)
    y = turned / variance
    logits = pairs.log_weights - (variance.log() + turned * y).sum(-1) / 2

    def lift(v: Tensor) -> Tensor:
        return torch.einsum("kij,nkj->nki", basis, v)

    pulled = lift(y), pairs.source.spectrum.unsqueeze(0) * lift(y), lift(lam * y)
    return _weighted(pairs, x, logits, pulled, a, b, c)


def _by_cholesky(pairs: Pairs, x: Tensor, sigma: Tensor, alpha: Tensor, gamma: Tensor) -> Posterior:
    """Components of any covariance: a factor a pair and time."""
    a, b, c = (w[:, None, None] for w in (sigma, alpha, gamma))
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    of_source, of_target = pairs.source.covariances, pairs.target.covariances
    squares = (w.unsqueeze(-1).square() for w in (a, b, c))
    covariance = sum(w * matrix for w, matrix in zip(squares, (of_source, of_target, eye), strict=True)) + LEAST * eye
    factor = torch.linalg.cholesky(covariance).expand(len(x), *of_target.shape)
    residual = x[:, None] - a * pairs.source.means - b * pairs.target.means
    y = torch.cholesky_solve(residual.unsqueeze(-1), factor)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    logits = pairs.log_weights - half_log_det - (residual * y.squeeze(-1)).sum(-1) / 2
    pulled = y.squeeze(-1), (of_source @ y).squeeze(-1), (of_target @ y).squeeze(-1)
    return _weighted(pairs, x, logits, pulled, a, b, c)


def _weighted(
    pairs: Pairs, x: Tensor, logits: Tensor, pulled: tuple[Tensor, Tensor, Tensor], a: Tensor, b: Tensor, c: Tensor
) -> Posterior:
    """Means over the pairs; `pulled` is V⁻¹ r, and the source's and the target's covariances times it, (n, K, dim)."""
    y, of_source, of_target = pulled
    log_density = torch.logsumexp(logits, -1)
    p = torch.softmax(logits, -1).unsqueeze(-1)
    from_source = (p * (pairs.source.means + a * of_source)).sum(1)
    from_target = (p * (pairs.target.means + b * of_target)).sum(1)
    score = -(p * y).sum(1)
    return Posterior(from_source, from_target, -c[:, 0] * score, score, log_density - LOG_2PI * x.shape[-1] / 2)


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

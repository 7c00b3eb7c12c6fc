"""Fields: what a solver goes through. One evaluation of a field at (x, t) gives velocity, data, noise and score alike.

A field maps points (..., dim) and times (one a point, or any shape that broadcasts to that) to a `Prediction`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.flows.interpolants import KINDS, Interpolant
from workbench.flows.posteriors import Pairs, Posterior
from workbench.problems.densities import Density, Gaussian, Mixture
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

    def pairs(self, like: Tensor) -> Pairs:
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

    def _posterior(self, x: Tensor, t: Tensor, *, density: bool) -> Posterior:
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


def exact_field(
    target: str | Density,
    interpolant: str | Interpolant = "linear-path",
    *,
    source: str | Density | None = None,
    points: int = 2000,
) -> Any:
    """The exact field from a source to a target density under an interpolant.

    Args:
        target: a Gaussian mixture of the catalogue ("eight-gaussians") or your own. Of a density that can only be
            sampled, the field of `points` samples of it: what a perfectly trained net on exactly these would learn.
        interpolant: a catalogue name or an `Interpolant`.
        source: another mixture, or heavy-tailed noise; the unit normal when None.

    Returns:
        An `ExactField`; a `pfgm.PoissonField` from heavy-tailed noise.

    Raises:
        ValueError: on unknown names, or a source of another kind.
    """
    from workbench.catalogue import find_declared

    aim = find_declared("densities", "a density", target)
    start = Mixture.normal(aim.dim) if source is None else find_declared("densities", "a density", source)
    path = find_declared("interpolants", "an interpolant", interpolant)
    if not isinstance(start, Mixture):
        return start.exact_field(aim, path, points)
    return ExactField(start, aim if isinstance(aim, Mixture) else aim.as_points(points), path)


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

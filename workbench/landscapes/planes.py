"""Planes and lines through a landscape, and what of a path they hold."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.landscapes.landscape import Landscape
from workbench.routine import Key, unknown

NORMALISATIONS = ("filter", "layer", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """The points center + Σ coordᵢ axisᵢ: a line when there is one axis, a plane when there are two.

    Args:
        center: (parameters,).
        axes: (1 or 2, parameters), independent; they need be neither of length 1 nor at right angles.
        labels: what the axes are, in words.
        kind: how it was laid: "random", "paths", "through", "eigen".
        title: what it is, in words.
        facts: numbers about it, by name.
    """

    center: Tensor
    axes: Tensor
    labels: tuple[str, ...]
    kind: str
    title: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        gram = (self.axes.double() @ self.axes.double().T).cpu()
        lengths = gram.diagonal().sqrt()
        if not bool(torch.isfinite(gram).all()) or bool((lengths == 0).any()):
            raise ValueError("expected axes of a length above 0, got one that is 0 or not finite: its points coincide")
        if float(torch.linalg.det(gram / lengths.outer(lengths))) < 1e-10:
            raise ValueError("expected axes in different directions, got parallel ones: the points lie on one line")

    def points(self, coords: Tensor) -> Tensor:
        """Parameters (n, parameters) at coordinates (n, axes)."""
        return torch.addmm(self.center, coords.to(self.center), self.axes)

    def coords(self, points: Tensor) -> Tensor:
        """Coordinates (…, axes) of the points of the plane nearest to points (…, parameters)."""
        away = (points - self.center).double()
        axes = self.axes.double()
        return torch.linalg.solve(axes @ axes.T, (away @ axes.T).unsqueeze(-1)).squeeze(-1).to(self.center)

    def residual(self, points: Tensor) -> Tensor:
        """Euclidean distance (…) of points (…, parameters) from the plane."""
        away = (points - self.center).double()
        return torch.linalg.vector_norm(away - self.coords(points).double() @ self.axes.double(), dim=-1).to(
            self.center
        )

    def share(self, points: Tensor) -> float:
        """Share of the variance of points (…, parameters) about their mean that lies along the plane, 0 to 1."""
        flat = points.flatten(0, -2).double()
        away = flat - flat.mean(0)
        basis = torch.linalg.qr(self.axes.double().T).Q
        whole = float(away.square().sum())
        return float((away @ basis).square().sum()) / whole if whole else math.nan

    def turned_like(self, other: "Plane") -> "Plane":
        """The same plane, its axes pointing the way that another's do: a picture laid anew does not flip."""
        if other.axes.shape != self.axes.shape:
            return self
        signs = torch.where((self.axes * other.axes).sum(1, keepdim=True) < 0, -1.0, 1.0)
        return dataclasses.replace(self, axes=self.axes * signs)


def random_plane(
    landscape: Landscape, center: Any = None, *, normalise: str = "filter", key: Key | None = None, dims: int = 2
) -> Plane:
    """A plane along random normal directions around a point (the landscape's start).

    "filter": every filter (row along the first axis of a weight block) is scaled to the norm of the center's own
    filter, blocks of one axis (biases) are 0: coordinate 1 moves every filter by its own size, so that pictures of
    networks of different scales can be compared. "layer": every block is scaled to the center's block, blocks of one
    axis are 0. "none": as drawn, scaled to the length of the center as a whole.

    Source: Li et al. 2018, arXiv:1712.09913, section 4; blocks of one axis are left out there too.

    Args:
        key: the directions' randomness; a fixed one when None.
        dims: 2, or 1 for a line.
    """
    if normalise not in NORMALISATIONS:
        raise unknown("a normalisation", normalise, NORMALISATIONS)
    origin, key = landscape.point(center), key or Key(0)
    draws = [key.stream(f"direction {i + 1}").normal((landscape.dim,), like=origin) for i in range(dims)]
    axes = torch.stack([_normalised(landscape, draw, origin, normalise) for draw in draws])
    words = {"filter": "normalised by filter", "layer": "normalised by layer", "none": "as drawn"}[normalise]
    labels = tuple(f"random direction {i + 1}, {words}" for i in range(dims))
    return Plane(origin, axes, labels, "random", f"Random {'plane' if dims == 2 else 'line'}, {words}")


def _normalised(landscape: Landscape, draw: Tensor, origin: Tensor, normalise: str) -> Tensor:
    if normalise == "none" or all(len(shape) < 2 for shape in landscape.space.shapes):
        return draw * (torch.linalg.vector_norm(origin) / torch.linalg.vector_norm(draw))
    parts = []
    blocks = zip(landscape.space.blocks(draw), landscape.space.blocks(origin), strict=True)
    for d, w in blocks:
        if d.ndim < 2:
            parts.append(torch.zeros_like(d))
            continue
        rows, own = (d.flatten(1), w.flatten(1)) if normalise == "filter" else (d.reshape(1, -1), w.reshape(1, -1))
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)
        parts.append(rows * (torch.linalg.vector_norm(own, dim=1, keepdim=True) / lengths))
    return torch.cat([part.flatten() for part in parts])


def pca_plane(points: Tensor) -> Plane:
    """The plane through the mean of paths, along the two directions in which they vary most (principal components).

    Of all planes it leaves the least squared distance. The axes have length 1.

    Args:
        points: (steps, parameters), or (runs, steps, parameters): one plane for all runs.

    Raises:
        ValueError: when the points lie on one line, or on one point.
    """
    flat = points.flatten(0, -2)
    mean = flat.double().mean(0)
    away = flat.double() - mean
    # Of n points in many dimensions the n × n products say all, at a fraction of the cost.
    values, vectors = torch.linalg.eigh(away @ away.T)
    values, vectors = values.flip(0)[:2], vectors.flip(1)[:, :2]
    whole = float(away.square().sum())
    if len(flat) < 3 or not whole or float(values[1]) < 1e-12 * whole:
        raise ValueError("expected paths that bend, of at least 3 points not on one line, to lay a plane through them")
    axes = (vectors.T @ away) / values.clamp_min(1e-300).sqrt().unsqueeze(1)
    shares = (values / whole).tolist()
    labels = tuple(
        f"principal direction {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares)
    )
    facts = {"variance_shares": shares}
    return Plane(mean.to(points), axes.to(points), labels, "paths", "Best plane of the paths", facts)


def plane_through(a: Tensor, b: Tensor, c: Tensor, labels: Sequence[str] = ("a", "b", "c")) -> Plane:
    """The plane through three points: `a` is its middle, the first axis points to `b`; both axes have length 1.

    Raises:
        ValueError: when the three lie on one line.
    """
    first, second = (b - a).double(), (c - a).double()
    u = first / torch.linalg.vector_norm(first)
    rest = second - (second @ u) * u
    reach, height = torch.linalg.vector_norm(second), torch.linalg.vector_norm(rest)
    if not bool(torch.isfinite(u).all()) or not float(height) > 1e-6 * float(reach):
        raise ValueError("expected three points that span a plane, got three on one line: choose another third one")
    axes = torch.stack([u, rest / height]).to(a)
    words = (f"from {labels[0]} towards {labels[1]}", f"at right angles, towards {labels[2]}")
    return Plane(a, axes, words, "through", f"Plane through {labels[0]}, {labels[1]} and {labels[2]}")


def line_through(a: Tensor, b: Tensor, labels: Sequence[str] = ("a", "b")) -> Plane:
    """The line on which coordinate 0 is `a` and coordinate 1 is `b`."""
    return Plane(a, (b - a).unsqueeze(0), (f"from {labels[0]} (0) to {labels[1]} (1)",), "through", "Line")


def eigen_plane(center: Tensor, vectors: Tensor, values: Tensor) -> Plane:
    """The plane along eigenvectors (2, parameters) of the Hessian, whose eigenvalues (2,) the labels name."""
    labels = tuple(f"eigenvector {i + 1} (λ = {float(value):.3g})" for i, value in enumerate(values[:2]))
    return Plane(center, vectors[:2].to(center), labels, "eigen", "Plane of the sharpest directions")


Span = tuple[float, float]


def fit_span(plane: Plane, points: Tensor, margin: float = 0.15) -> tuple[Span, ...]:
    """(low, high) along each axis that hold points (…, parameters), and at each end a margin, a share of the width."""
    at = plane.coords(points.flatten(0, -2)).double()
    low, high = at.amin(0), at.amax(0)
    width = high - low
    width = torch.where(width > 0, width, width.max())
    width = torch.where(width > 0, width, torch.ones_like(width))
    middle, half = (low + high) / 2, (0.5 + margin) * width
    return tuple((float(m - h), float(m + h)) for m, h in zip(middle, half, strict=True))

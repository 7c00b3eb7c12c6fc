"""Eigenvalues of operators by Lanczos: the top pairs, restarted and warm-started, and tridiagonal forms for spectra."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.landscapes.operators import Operator
from workbench.routine import Key


class Eigenpairs(NamedTuple):
    """values (k,) falling, vectors (k, parameters) of length 1, residuals (k,) = |A v - λ v|; `products` used."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int

    def known(self, tolerance: float) -> Tensor:
        """(k,) whether each value is known to a relative `tolerance`; those near 0, beside the largest's thousandth."""
        return settled(self.values, self.residuals, tolerance)


def settled(values: Tensor, residuals: Tensor, tolerance: float) -> Tensor:
    """Whether residuals are small beside their values, or beside a thousandth of the largest."""
    return residuals <= tolerance * values.abs().clamp_min(1e-3 * values.abs().max())


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
    key: Key | None = None,
    most: int = 2000,
    largest: str = "value",
) -> Eigenpairs:
    """The k largest eigenvalues and their vectors, by thick-restart Lanczos with full reorthogonalisation.

    A Krylov space is built up to a few times k, its best Ritz vectors are kept, and so on until every residual is at
    most tolerance λ: a value's error is at most its residual (some eigenvalue is as near as that). The space begins
    with a random vector, or with the sum of `start`, eigenvectors of a matrix near this one, and a little of a random
    one, which finds a direction that has overtaken them. Of an eigenvalue that occurs several times exactly, fewer may
    be found.

    Source: Wu & Simon 2000, SIAM J. Matrix Anal. Appl. 22(2) (thick restart); Parlett 1980, chapter 11 (residuals).

    Args:
        start: (j, parameters) vectors to begin from; random when None.
        tolerance: largest relative error of the values.
        most: products after which it ends in any case; `residuals` then say how far it came.
        largest: by "value" or by "magnitude".

    Raises:
        ValueError: on k below 1 or above the dimension, or a product that is not finite.
    """
    n = operator.dim
    if not 1 <= k <= n:
        raise ValueError(f"expected k from 1 to {n:,}, the number of parameters, got {k}")
    if largest not in ("value", "magnitude"):
        raise ValueError(f"expected largest to be 'value' or 'magnitude', got {largest!r}")
    key = key or Key(0).stream("lanczos")
    space = _Space(operator, min(n, max(2 * k + 10, 20)))
    following = key.normal((n,), like=operator.like)
    if start is not None:
        known = start.reshape(-1, n).to(following).sum(0)
        following = known + MIXED * torch.linalg.vector_norm(known) / torch.linalg.vector_norm(following) * following
    least = min(n, SCOUTS + k // 2)
    tries = 0
    while True:
        if not space.add(following):  # an invariant subspace: go on in a new direction
            tries += 1
            space.add(key.at(tries).normal((n,), like=operator.like))
        following = space.images[space.count - 1]
        full = space.count == len(space.images)
        if not full and (space.count < max(least, k) or (space.used - least) % max(1, k // 3)):
            continue
        values, vectors, rests, _ = space.ritz(min(k, space.count), largest)
        residuals = torch.linalg.vector_norm(rests, dim=1)
        sound = bool(settled(values, residuals, tolerance).all())
        if space.count == n or (sound and space.count >= k) or space.used >= most:
            return Eigenpairs(values, vectors, residuals, space.used)
        if full:
            space.restart(min(space.count - 1, k + 5), largest)
            following = rests[int(residuals.argmax())]


SCOUTS, MIXED = 4, 0.01
"""Products before residuals are believed; the random part beside vectors given beforehand."""


class _Space:
    """An orthonormal basis (count, n) and its images under the operator."""

    def __init__(self, operator: Operator, width: int) -> None:
        self.operator, self.count, self.used = operator, 0, 0
        self.basis = operator.like.new_zeros((width, operator.dim))
        self.images = operator.like.new_zeros((width, operator.dim))

    def add(self, vector: Tensor) -> bool:
        """Take in the part of a vector outside the space; False when there is none, or no room."""
        if self.count == len(self.basis):
            return False
        fresh = _orthogonal(vector, self.basis[: self.count])
        if fresh is None:
            return False
        self.basis[self.count], self.images[self.count] = fresh, _product(self.operator, fresh)
        self.count, self.used = self.count + 1, self.used + 1
        return True

    def ritz(self, k: int, largest: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(values, vectors v, rests A v - λ v (k, n), coefficients (count, k)) of the best k pairs."""
        basis, images = self.basis[: self.count], self.images[: self.count]
        projected = (basis @ images.T).double()
        values, coefficients = torch.linalg.eigh((projected + projected.T) / 2)
        order = (values if largest == "value" else values.abs()).argsort(descending=True)[:k]
        values, coefficients = values[order].to(basis), coefficients[:, order].to(basis)
        vectors = coefficients.T @ basis
        return values, vectors, coefficients.T @ images - values.unsqueeze(1) * vectors, coefficients

    def restart(self, keep: int, largest: str) -> None:
        """Only the best Ritz vectors stay."""
        _, vectors, _, coefficients = self.ritz(keep, largest)
        self.basis[:keep], self.images[:keep], self.count = vectors, coefficients.T @ self.images[: self.count], keep


def _product(operator: Operator, vector: Tensor) -> Tensor:
    found = operator(vector)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"expected finite products, got inf or nan from the {operator.title}: the point has diverged")
    return found


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor | None:
    """The part of a vector outside a basis, of length 1, orthogonalised twice; None when there is none."""
    whole = torch.linalg.vector_norm(vector)
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    length = torch.linalg.vector_norm(vector)
    if not float(length) > 1e2 * torch.finfo(vector.dtype).eps * float(whole):
        return None
    vector = vector / length
    vector = vector - (basis @ vector) @ basis
    return vector / torch.linalg.vector_norm(vector)


def tridiagonal(operator: Operator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(alpha (steps,), beta (steps - 1,)) of Lanczos from a vector, fully reorthogonalised, in float64.

    Fewer when the space that the vector spans is smaller.
    """
    basis = [start / torch.linalg.vector_norm(start)]
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(steps, operator.dim)):
        image = _product(operator, basis[-1])
        alphas.append(float(image.double() @ basis[-1].double()))
        known = torch.stack(basis)
        for _ in range(2):
            image = image - (known @ image) @ known
        length = float(torch.linalg.vector_norm(image))
        if length <= 1e2 * torch.finfo(start.dtype).eps * max(map(abs, alphas), default=1.0) or len(alphas) == steps:
            break
        betas.append(length)
        basis.append(image / length)
    betas = betas[: len(alphas) - 1]
    return torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64)

"""Eigenvalues of operators by Lanczos: the top pairs, restarted and warm-started, and tridiagonal forms for spectra."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.landscapes.operators import Operator
from workbench.routine import Key


class Eigenpairs(NamedTuple):
    """values (k,) in falling order, vectors (k, parameters) of length 1, residuals (k,) = |A v - λ v|; `products` used."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int


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

    A Krylov space is built up to a few times k, its best k Ritz vectors are kept, and so on until every residual is at
    most √tolerance |λ₁|: for a symmetric matrix the error of a value is about the residual's square over the gap.
    `start`, eigenvectors of a matrix near this one, is what the space begins with.

    Source: Wu & Simon 2000, SIAM J. Matrix Anal. Appl. 22(2) (thick restart); residual bound: Parlett 1980, ch. 11.

    Args:
        start: (j, parameters) vectors to begin from; random when None.
        tolerance: relative error of the values, about.
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
    width, used = min(n, max(2 * k + 10, 20)), 0
    key = key or Key(0).stream("lanczos")
    basis = operator.like.new_zeros((width + 1, n))
    images = operator.like.new_zeros((width, n))
    count, found = 0, None
    fresh = list(_given(start, operator)) or [key.normal((n,), like=operator.like)]
    attempt = 0
    while True:
        while count < width and fresh:
            vector = _orthogonal(fresh.pop(0), basis[:count])
            if vector is None:
                continue
            basis[count] = vector
            images[count] = _product(operator, vector)
            used += 1
            count += 1
            if not fresh:
                fresh = [images[count - 1]]
        values, vectors, residuals, coefficients = _ritz(basis[:count], images[:count], min(k, count), largest)
        scale = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)
        found = Eigenpairs(values, vectors, residuals, used)
        sound = count >= k and bool((residuals <= tolerance**0.5 * scale).all())
        if count == n or (sound and used > k) or used >= most:
            return found
        if count < width:  # an invariant subspace: go on in a new direction
            attempt += 1
            fresh = [key.at(attempt).normal((n,), like=operator.like)]
            continue
        keep = min(count - 1, k + 5)
        _, kept, _, coefficients = _ritz(basis[:count], images[:count], keep, largest)
        rest = coefficients.T @ images[:count]
        worst = rest - (kept * rest).sum(1, keepdim=True) * kept
        basis[:keep], images[:keep], count = kept, rest, keep
        order = worst[: min(k, keep)].norm(dim=1).argsort(descending=True)
        fresh = [worst[int(order[0])]]


def _given(start: Tensor | None, operator: Operator) -> Tensor:
    if start is None:
        return operator.like.new_empty((0, operator.dim))
    return start.reshape(-1, operator.dim).to(operator.like)


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


def _ritz(basis: Tensor, images: Tensor, k: int, largest: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, vectors, residuals, coefficients (count, k)) of the best k pairs within a basis (count, n)."""
    projected = (basis @ images.T).double()
    values, coefficients = torch.linalg.eigh((projected + projected.T) / 2)
    order = (values if largest == "value" else values.abs()).argsort(descending=True)[:k]
    values, coefficients = values[order].to(basis), coefficients[:, order].to(basis)
    vectors = coefficients.T @ basis
    residuals = torch.linalg.vector_norm(coefficients.T @ images - values.unsqueeze(1) * vectors, dim=1)
    return values, vectors, residuals, coefficients


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

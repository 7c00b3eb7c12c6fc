"""Subspaces that curvature singles out: how much of a vector lies in one, and how far two are the same."""

from collections.abc import Sequence

import torch
from torch import Tensor


def share(vector: Tensor, basis: Tensor) -> Tensor:
    """|P v|² / |v|², 0 to 1: the part of a vector (…, parameters) in the span of k orthonormal rows (k, parameters).

    Of a random subspace it is k / parameters on average (`random_share`).
    Source: Gur-Ari et al. 2018, arXiv:1812.04754 (f_top).
    """
    return (vector @ basis.mT).square().sum(-1) / vector.square().sum(-1)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """(1/k) Σᵢ |P uᵢ|², 0 to 1, of k rows u of `second` on the span of `first`, both orthonormal (k, parameters).

    1 when the spans are one; k / parameters on average for random ones. Symmetric in the two when they have equal k.
    Source: Gur-Ari et al. 2018, arXiv:1812.04754; Schneider et al. 2024, arXiv:2401.06604, equation 5.
    """
    return (first @ second.T).square().sum() / len(second)


def random_share(k: int, dim: int) -> float:
    """k / parameters: what `share` and `overlap` are on average for a random subspace."""
    return k / dim


def layer_alignment(x: Tensor, basis: Tensor, sizes: Sequence[int]) -> Tensor:
    """|P θ| / |θ| of every block of parameters θ, in the span of the basis restricted to that block: (blocks,).

    The basis (k, parameters) is that of the top eigenvectors of the block's own Hessian or second moment when it is
    zero elsewhere; otherwise its rows are cut to the block and orthonormalised there.
    Source: Ben Arous et al. 2023, arXiv:2310.03010 (alignment with outlier eigenspaces, layer by layer).
    """
    found = []
    for theta, rows in zip(x.split(list(sizes)), basis.split(list(sizes), dim=1), strict=True):
        own = torch.linalg.qr(rows.T).Q.T if len(rows) <= rows.shape[1] else torch.eye(rows.shape[1]).to(x)
        found.append(share(theta, own).sqrt())
    return torch.stack(found)

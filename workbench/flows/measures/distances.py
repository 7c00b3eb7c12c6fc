"""Distances between two sets of samples, (n, dim) and (m, dim), and the weights that samples give to modes."""

import math
from typing import Any

import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.routine import Key

EXACT = 2_000
"""Most points of each set between which transport is solved exactly."""
PAIRS = 4_000
"""Most points of each set of which all pairs are taken."""


def w2(a: Tensor, b: Tensor) -> Estimate:
    """W₂ = min over couplings π of (Σ π_ij |a_i - b_j|²)^½ between two sets of equally likely points, in their units.

    It is exact between the sets. Of the densities they are from it is an estimate that is too large on average: between
    two sets from one density it is not 0.

    Raises:
        ValueError: on more than 2,000 points, or sets of different dimensions.

    Source: Kantorovich 1942; in one coordinate by sorting, else by linear programming (scipy; POT for sets of different
    sizes).
    """
    a, b = _two(a, b)
    if max(len(a), len(b)) > EXACT:
        most = max(len(a), len(b))
        raise ValueError(f"expected at most {EXACT:,} points in each set, got {most:,}; take some, or use sliced_w2")
    if a.shape[1] == 1:
        return Estimate(_sorted_cost(a.T, b.T)[0].sqrt(), None, "exact between the samples, by sorting")
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    if len(a) == len(b):
        from scipy.optimize import linear_sum_assignment

        total = cost[linear_sum_assignment(cost)].mean()
    else:
        import ot

        total = ot.emd2([], [], cost, numItermax=10_000_000)
    return Estimate(torch.tensor(math.sqrt(total), dtype=torch.float64), None, "exact between the samples")


def sliced_w2(a: Tensor, b: Tensor, *, directions: int = 512, key: Key | None = None) -> Estimate:
    """SW₂ = (E_θ W₂²(θᵀa, θᵀb))^½ over uniform unit vectors θ: at most W₂ / √dim, in units of the points.

    A mean over fixed draws of θ with two control variates whose means are known: (θᵀ(m_a - m_b))² and θᵀ(C_a + C_b)θ,
    of the sets' means and covariances. The first is the lower bound on W₂² of the normals nearest to the projections,
    both together are the upper bound. Their weights are by least squares.

    Args:
        directions: how many θ.
        key: of the θ.

    Returns:
        The standard error is of the directions alone: the sets are taken as they are.

    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51; Nguyen & Ho 2024, arXiv:2305.00402, whose two estimators have
    one of the bounds each (checked against the authors' public code); both at once contain either.
    """
    a, b = _two(a, b)
    dim = a.shape[1]
    if dim == 1:
        return Estimate(_sorted_cost(a.T, b.T)[0].sqrt(), None, "exact between the samples, by sorting")
    theta = (key or Key(0).stream("directions")).normal((directions, dim), like=a)
    theta = theta / theta.norm(dim=1, keepdim=True)
    costs = _sorted_cost(theta @ a.T, theta @ b.T)
    shift = a.mean(0) - b.mean(0)
    spread = torch.cov(a.T, correction=0) + torch.cov(b.T, correction=0)
    known = torch.stack([(theta @ shift).square(), ((theta @ spread) * theta).sum(1)], 1)
    means = torch.stack([shift.square().sum(), spread.trace()]) / dim
    square, error = _intercept(known - means, costs)
    words = f"{directions} directions with control variates (Nguyen & Ho 2024)"
    root = square.clamp(min=0).sqrt()
    return Estimate(root, error / (2 * root).clamp(min=torch.finfo(a.dtype).tiny), words)


def _sorted_cost(a: Tensor, b: Tensor) -> Tensor:
    """W₂² between rows of numbers, (k, n) and (k, m): the integral of the squared difference of their quantiles."""
    a, b = a.sort(1).values, b.sort(1).values
    n, m = a.shape[1], b.shape[1]
    if n == m:
        return (a - b).square().mean(1)
    edges = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # of steps, in units of 1 / nm
    widths = torch.diff(edges, prepend=edges.new_zeros(1)).to(a) / (n * m)
    return ((a[:, (edges - 1) // m] - b[:, (edges - 1) // n]).square() * widths).sum(1)


def _intercept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of y = c + x β by least squares: c, and its standard error. Columns of x that tell nothing are left out."""
    design = torch.cat([torch.ones_like(x[:, :1]), x / x.abs().amax(0).clamp(min=1e-300)], 1)
    inverse = torch.linalg.pinv(design, rtol=1e-10)
    residual = y - design @ (inverse @ y)
    freedom = len(y) - int(torch.linalg.matrix_rank(design, rtol=1e-10))
    variance = residual.square().sum() / freedom * inverse[0].square().sum()
    return (inverse @ y)[0], variance.sqrt()


def energy_distance(a: Tensor, b: Tensor) -> Estimate:
    """2 E|A - B| - E|A - A'| - E|B - B'|, in units of the points: 0 exactly when the densities are the same.

    Over all pairs of different points, so that it is right on average, and may come out below 0. With more than 4,000
    points in a set the first 4,000 are taken.

    Source: Székely & Rizzo 2013, J. Stat. Plan. Inference 143; standard error: `_two_samples`.
    """
    a, b = _two(a, b)
    return _two_samples(a[:PAIRS], b[:PAIRS], lambda d: -d, "energy distance")


def mmd(a: Tensor, b: Tensor, *, bandwidth: float | None = None) -> Estimate:
    """MMD² = E k(A, A') + E k(B, B') - 2 E k(A, B) with the normal kernel k = exp(-|x - y|² / 2h²): from 0 to 2.

    Over all pairs of different points, so that it is right on average, and may come out below 0. With more than 4,000
    points in a set the first 4,000 are taken.

    Args:
        bandwidth: h, in units of the points; the median distance between the points of both sets when None.

    Source: Gretton et al. 2012, JMLR 13, lemma 6 (unbiased) and section 8 (median); standard error: `_two_samples`.
    """
    a, b = (part[:PAIRS] for part in _two(a, b))
    if bandwidth is None:
        some = torch.cat([a[: PAIRS // 4], b[: PAIRS // 4]])
        bandwidth = float(torch.pdist(some).median())
    if not bandwidth > 0:
        raise ValueError(f"expected a bandwidth above 0, got {bandwidth:g}; are all points the same?")
    words = f"MMD² with a normal kernel of bandwidth {bandwidth:.3g}"
    return _two_samples(a, b, lambda d: torch.exp(-d.square() / (2 * bandwidth**2)), words)


def _two_samples(a: Tensor, b: Tensor, kernel: Any, words: str) -> Estimate:
    """E k(A, A') + E k(B, B') - 2 E k(A, B) by U-statistics, and its standard error.

    The variance by Hoeffding's decomposition: with h(a) = 2 (E k(a, A') - E k(a, B)) and kernels centred in both
    arguments, Var h(A) / n + Var h(B) / m + 2 σ²_aa / n(n - 1) + 2 σ²_bb / m(m - 1) + 4 σ²_ab / nm. Where the densities
    are the same the first two are 0, but not their estimates: there the error is up to half again too large on average.

    Source: Hoeffding 1948, Ann. Math. Stat. 19; derived here for two samples.
    """
    n, m = len(a), len(b)
    if min(n, m) < 4:
        raise ValueError(f"expected at least 4 points in each set, got {min(n, m)}")
    within_a, within_b, between = (kernel(_distances(x, y)) for x, y in ((a, a), (b, b), (a, b)))
    rows_a, s_aa = _within(within_a)
    rows_b, s_bb = _within(within_b)
    value = rows_a.mean() + rows_b.mean() - 2 * between.mean()
    cross = between - between.mean(1, keepdim=True) - between.mean(0) + between.mean()
    s_ab = cross.square().sum() / ((n - 1) * (m - 1))
    of_a = 4 * ((rows_a - between.mean(1)).var() - s_aa / (n - 1) - s_ab / m).clamp(min=0)
    of_b = 4 * ((rows_b - between.mean(0)).var() - s_bb / (m - 1) - s_ab / n).clamp(min=0)
    variance = of_a / n + of_b / m + 2 * s_aa / (n * (n - 1)) + 2 * s_bb / (m * (m - 1)) + 4 * s_ab / (n * m)
    return Estimate(value, variance.sqrt(), f"{words}, unbiased, over all pairs of {n:,} and {m:,} points")


def _within(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Of a kernel between the points of one set: each point's mean over the others, (n,), and σ².

    σ² is the variance of the kernel less its means in either argument, without bias by the centring of Székely & Rizzo
    2014, Ann. Stat. 42.
    """
    n = len(kernel)
    kernel = kernel.fill_diagonal_(0)
    rows = kernel.sum(1)
    shared = rows.sum() / ((n - 1) * (n - 2))
    centred = (kernel - (rows.unsqueeze(1) + rows) / (n - 2) + shared).fill_diagonal_(0)
    return rows / (n - 1), centred.square().sum() / (n * (n - 3))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def mode_weights(x: Tensor, mixture: Any) -> Estimate:
    """The share of samples (n, dim) that each component of a mixture accounts for, (components,), summing to 1.

    A sample counts for each component by how probable that one is at it, so that samples of the mixture itself give its
    weights on average, whether or not components overlap. Where they do not, this is counting samples, and the standard
    error is the binomial one, (w (1 - w) / (n - 1))^½.

    Raises:
        ValueError: on points, which have no density.
    """
    return mean_of(mixture.responsibilities(x).T, "mean over samples of the components' posteriors")


def _two(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64 on the host.

    Raises:
        ValueError: when they are not two sets of points of one dimension.
    """
    sets = [torch.as_tensor(part).detach().to("cpu", torch.float64) for part in (a, b)]
    if any(part.ndim != 2 or not len(part) for part in sets) or sets[0].shape[1] != sets[1].shape[1]:
        shapes = [tuple(part.shape) for part in sets]
        raise ValueError(f"expected samples of shapes (n, dim) and (m, dim), got {shapes[0]} and {shapes[1]}")
    return sets[0], sets[1]

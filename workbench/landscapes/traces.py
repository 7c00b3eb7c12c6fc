"""The trace of an operator from a few products: Hutchinson's estimator and Hutch++, each with its standard error."""

import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.landscapes.operators import Operator
from workbench.landscapes.progress import Watch, within
from workbench.routine import Key


def hutchinson(operator: Operator, probes: int = 16, *, key: Key | None = None, watch: Watch | None = None) -> Estimate:
    """tr A ≈ mean of zᵀ A z over random signs z; its variance is 2 Σ_{i≠j} A_ij² / probes.

    Source: Hutchinson 1990, Commun. Stat. Simul. Comput. 19(2).
    """
    values = _forms(operator, _signs(operator, probes, key), within(watch))
    return mean_of(values, f"mean of zᵀAz over {probes} random sign vectors")


def hutch_plus_plus(
    operator: Operator, products: int = 48, *, key: Key | None = None, watch: Watch | None = None
) -> Estimate:
    """tr A = tr(Qᵀ A Q) + the trace outside Q, where Q spans A S for random signs S: the large part is exact.

    A third of the products makes Q, a third takes its trace, a third probes the rest; the error is that of the rest,
    over whose probes it is estimated. Source: Meyer et al. 2021, arXiv:2010.09649, algorithm 1.
    """
    third = products // 3
    if third < 2:
        raise ValueError(f"expected at least 6 products, got {products}")
    signs = _signs(operator, 2 * third, key)
    sketch = _images(operator, signs[:third], within(watch, 0.0, 1 / 3))
    q = torch.linalg.qr(sketch.double().T).Q.T.to(operator.like)
    inside = _forms(operator, q, within(watch, 1 / 3, 2 / 3)).sum()
    rest = signs[third:] - (signs[third:] @ q.T) @ q
    found = mean_of(_forms(operator, rest, within(watch, 2 / 3)), f"Hutch++ with {3 * third} products")
    return found._replace(value=found.value + inside)


def _signs(operator: Operator, count: int, key: Key | None) -> Tensor:
    drawn = (key or Key(0).stream("trace")).uniform((count, operator.dim), like=operator.like)
    return torch.where(drawn < 0.5, -1.0, 1.0).to(operator.like)


def _images(operator: Operator, vectors: Tensor, watch: Watch) -> Tensor:
    """A v of every row."""
    found = []
    for i, v in enumerate(vectors):
        watch(i / len(vectors))
        found.append(operator(v))
    return torch.stack(found)


def _forms(operator: Operator, vectors: Tensor, watch: Watch) -> Tensor:
    """vᵀ A v of every row."""
    return (vectors * _images(operator, vectors, watch)).sum(1)

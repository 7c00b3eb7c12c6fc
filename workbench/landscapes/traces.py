"""The trace of an operator from a few products: Hutchinson's estimator and Hutch++, each with its standard error."""

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.landscapes.operators import Operator
from workbench.routine import Key

Watch = Callable[[float], None]


def hutchinson(operator: Operator, probes: int = 16, *, key: Key | None = None, watch: Watch | None = None) -> Estimate:
    """tr A ≈ mean of zᵀ A z over random signs z; its variance is 2 Σ_{i≠j} A_ij² / probes.

    Source: Hutchinson 1990, Commun. Stat. Simul. Comput. 19(2).
    """
    signs = _signs(operator, probes, key)
    values = torch.stack([_watched(watch, i / probes, lambda z=z: z @ operator(z)) for i, z in enumerate(signs)])
    return mean_of(values, f"mean of zᵀAz over {probes} random sign vectors")


def hutch_plus_plus(
    operator: Operator, products: int = 48, *, key: Key | None = None, watch: Watch | None = None
) -> Estimate:
    """tr A = tr(Qᵀ A Q) + tr of A outside Q, Q spanning A S for random signs S: the large part exactly, the rest probed.

    A third of the products makes Q, a third takes its trace, a third probes the rest; the error is that of the rest,
    over whose probes it is estimated. Source: Meyer et al. 2021, arXiv:2010.09649, algorithm 1.
    """
    third = products // 3
    if third < 2:
        raise ValueError(f"expected at least 6 products, got {products}")
    signs = _signs(operator, 2 * third, key)
    sketch = torch.stack([_watched(watch, i / products, lambda z=z: operator(z)) for i, z in enumerate(signs[:third])])
    q = torch.linalg.qr(sketch.double().T).Q.T.to(operator.like)
    images = [_watched(watch, (third + i) / products, lambda u=u: operator(u)) for i, u in enumerate(q)]
    inside = (q * torch.stack(images)).sum()
    rest = signs[third:] - (signs[third:] @ q.T) @ q
    values = [_watched(watch, (2 * third + i) / products, lambda z=z: z @ operator(z)) for i, z in enumerate(rest)]
    found = mean_of(torch.stack(values), f"Hutch++ with {3 * third} products")
    return found._replace(value=found.value + inside)


def _signs(operator: Operator, count: int, key: Key | None) -> Tensor:
    drawn = (key or Key(0).stream("trace")).uniform((count, operator.dim), like=operator.like)
    return torch.where(drawn < 0.5, -1.0, 1.0).to(operator.like)


def _watched(watch: Watch | None, share: float, product: Callable[[], Tensor]) -> Tensor:
    if watch is not None:
        watch(share)
    return product()

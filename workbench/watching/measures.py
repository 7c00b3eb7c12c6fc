"""What is measured of a watched loop besides its loss, and when: as often as its share of the time lets it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.watching.series import Series


class Measure:
    """One thing to measure. It is due when its time so far, with one more, stays below `share` of the loop's.

    Args:
        every: not more often than every so many steps.
        share: of the loop's time, 0 to 1; None: always due.
    """

    def __init__(self, name: str, every: int, share: float | None, probe: Callable | None = None) -> None:
        self.name, self.every, self.share, self.probe = name, every, share, probe
        self.last, self.spent, self.times = 0, 0.0, 0

    def due(self, step: int, elapsed: float) -> bool:
        """Whether to measure at this step. The first time, which prepares what is needed, does not count."""
        if self.times == 0 or self.share is None:
            return not self.times or step - self.last >= self.every
        cost = self.spent / max(self.times - 1, 1)
        return step - self.last >= self.every and self.spent + cost <= self.share * elapsed

    def taken(self, step: int) -> None:
        """It was measured at this step."""
        self.spent = self.spent if self.times else 0.0
        self.last, self.times = step, self.times + 1

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what is inside as this measure's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - began


class Norms:
    """Euclidean norm of each layer's gradient, weights and update, (3, layers) at a step."""

    def __init__(self, parameters: Sequence[Tensor], room: float) -> None:
        self.parameters, self.series = list(parameters), Series(room)
        self._old: list[Tensor] = []
        self._slopes: Tensor | None = None

    def before(self, scale: Tensor | None, *, gradients: bool) -> None:
        """Keep the weights, and the gradients' norms, of before the step; `scale` is what a `GradScaler` multiplied."""
        if not self._old:
            self._old = [torch.empty_like(p) for p in self.parameters]
        torch._foreach_copy_(self._old, self.parameters)
        if gradients:
            self.gradients(scale)

    def gradients(self, scale: Tensor | None = None) -> None:
        """Norms of the gradients as they are; a layer without one has none: 0."""
        slopes = [_dense(p.grad) for p in self.parameters if p.grad is not None]
        found = iter(_norms(slopes))
        parts = [next(found) if p.grad is not None else p.new_zeros(()) for p in self.parameters]
        self._slopes = torch.stack(_alike(parts)) / (1 if scale is None else scale)

    def after(self, step: int) -> None:
        """Keep the norms of this step: (gradient before it, weights after it, weights' change)."""
        if not self._old or self._slopes is None or not self.series.wants(step):
            return
        changes = torch._foreach_sub([p.detach() for p in self.parameters], self._old)
        both = torch.stack(_alike(_norms([*self.parameters, *changes]))).view(2, -1)
        self.series.add(step, torch.cat([self._slopes.to(both).unsqueeze(0), both]))
        self._slopes = None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps (n,), norms (n, 3, layers))."""
        steps, values = self.series.arrays()
        return steps, values if len(steps) else np.zeros((0, 3, len(self.parameters)))


def _dense(slope: Tensor) -> Tensor:
    return slope.coalesce().values() if slope.is_sparse else slope


def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
    return list(torch._foreach_norm([t.float() for t in tensors] if half else list(tensors))) if tensors else []


def _alike(parts: Sequence[Any]) -> list[Tensor]:
    dtype, device = max((p.dtype for p in parts), key=lambda d: torch.finfo(d).bits), parts[0].device
    return [p.to(device, dtype) for p in parts]

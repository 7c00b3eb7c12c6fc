"""Series of what was measured at some steps: tensors stay where they are until somebody looks, and room is bounded."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

PENDING = 256
"""So many tensors wait at most, before they are brought to the host together."""


class Series:
    """Values at some steps, all of one shape. Where `room` (bytes) is full, every second one goes: strides double.

    Then the values kept are those at multiples of `stride`: with room for m of them at least m/2 are kept, spread
    evenly over all steps.
    """

    def __init__(self, room: float | None = None) -> None:
        self.room, self.stride, self.last = room, 1, -1
        self._steps: list[int] = []
        self._values: list[np.ndarray] = []
        self._pending: list[Any] = []

    def __len__(self) -> int:
        return len(self._steps)

    def wants(self, step: int) -> bool:
        """Whether a value of this step would be kept."""
        return step % self.stride == 0

    def add(self, step: int, value: Any) -> None:
        """One value: a number, an array, a tensor that nobody will change, or a list of one-number tensors to average.

        A second value at one step takes the place of the first.
        """
        if step == self.last:
            self._drain()
            if self._steps and self._steps[-1] == step:
                self._steps.pop()
                self._values.pop()
        self.last = step
        self._steps.append(step)
        self._pending.append(value)
        if len(self._pending) >= PENDING:
            self._drain()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps (n,), values (n, …))."""
        self._drain()
        return np.asarray(self._steps, np.int64), np.stack(self._values) if self._values else np.zeros(0)

    def ragged(self) -> tuple[list[int], list[np.ndarray]]:
        """(steps, values), whose shapes may differ."""
        self._drain()
        return self._steps, self._values

    def on(self, steps: int) -> np.ndarray:
        """Values at steps 1, …, `steps`, (steps, …): NaN where nothing was measured."""
        at, values = self.arrays()
        found = np.full((steps, *values.shape[1:]), np.nan, np.result_type(values, np.float32))
        known = (at >= 1) & (at <= steps)
        found[at[known] - 1] = values[known]
        return found

    def _drain(self) -> None:
        tensors = [t for value in self._pending for t in (value if isinstance(value, list) else [value])]
        alike = {(t.dtype, t.device, t.shape) if isinstance(t, Tensor) else None for t in tensors}
        if len(alike) == 1 and None not in alike:
            arrays = iter(_host(torch.stack(tensors)))
        else:
            arrays = iter([_host(t) if isinstance(t, Tensor) else np.asarray(t, np.float64) for t in tensors])
        for value in self._pending:
            parts = [next(arrays) for _ in value] if isinstance(value, list) else [next(arrays)]
            self._values.append(parts[0] if len(parts) == 1 else np.mean(parts, axis=0))
        self._pending = []
        while self.room and len(self._values) > 4 and len(self._values) * self._values[-1].nbytes > self.room:
            self.stride *= 2
            kept = [i for i, step in enumerate(self._steps) if step % self.stride == 0]
            self._steps, self._values = [self._steps[i] for i in kept], [self._values[i].copy() for i in kept]


def _host(tensor: Tensor) -> np.ndarray:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return (tensor.float() if half else tensor).detach().cpu().numpy()

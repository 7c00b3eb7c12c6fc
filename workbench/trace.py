"""What every step measured, kept small: scalars per run, gathered in blocks so that no step waits for the device."""

import bisect

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
LIMIT = 64 * 2**20


class Trace:
    """Scalars per run for steps 0, 1, 2, …, written in order; what is already there is not written again.

    Values of step k are those measured by the step from k to k + 1. When they outgrow 64 MB every second one is
    dropped; `stride` says how many steps lie between two.
    """

    def __init__(self) -> None:
        self.stride = 1
        self._steps: list[int] = []
        self._blocks: list[dict[str, np.ndarray]] = []
        self._pending: list[dict[str, Tensor]] = []
        self._bytes = 0

    def put(self, k: int, values: dict[str, Tensor]) -> None:
        """Add the values of step k, shape (runs,) each; ignored when k is already there or between two strides."""
        if (self._steps and k <= self._steps[-1]) or k % self.stride or not values:
            return
        self._steps.append(k)
        self._pending.append(values)
        if len(self._pending) >= BLOCK:
            self._flush()

    def arrays(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(steps, {name: (steps, runs)})."""
        self._flush()
        steps = np.asarray(self._steps, dtype=np.int64)
        if not self._blocks:
            return steps, {}
        if len(self._blocks) > 1:
            self._blocks = [{name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}]
        return steps, self._blocks[0]

    def since(self, k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The part of `arrays` measured by steps from k on, at the cost of that part alone."""
        self._flush()
        first = bisect.bisect_left(self._steps, k)
        missing = len(self._steps) - first
        blocks: list[dict[str, np.ndarray]] = []
        for block in reversed(self._blocks):
            if missing <= 0:
                break
            blocks.insert(0, {name: array[max(0, len(array) - missing) :] for name, array in block.items()})
            missing -= len(next(iter(block.values())))
        names = blocks[0] if blocks else ()
        return np.asarray(self._steps[first:], dtype=np.int64), {
            name: np.concatenate([b[name] for b in blocks]) for name in names
        }

    def upto(self, k: int) -> "Trace":
        """The part measured by steps before k, for a branch made at k."""
        steps, arrays = self.arrays()
        kept = int(np.searchsorted(steps, k))
        part = Trace()
        part.stride, part._steps = self.stride, self._steps[:kept]
        part._blocks = [{name: array[:kept] for name, array in arrays.items()}] if kept else []
        part._bytes = sum(array.nbytes for block in part._blocks for array in block.values())
        return part

    def _flush(self) -> None:
        if not self._pending:
            return
        names = self._pending[0]
        block = {name: torch.stack([row[name] for row in self._pending]).cpu().numpy() for name in names}
        self._pending = []
        self._blocks.append(block)
        self._bytes += sum(array.nbytes for array in block.values())
        if self._bytes > LIMIT:
            self._thin()

    def _thin(self) -> None:
        steps, arrays = self.arrays()
        self.stride *= 2
        kept = steps % self.stride == 0
        self._steps = steps[kept].tolist()
        self._blocks = [{name: array[kept] for name, array in arrays.items()}]
        self._bytes //= 2

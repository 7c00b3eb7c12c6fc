"""Several nets trained at once: their parameters stand one behind the other in one flat vector a run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.flows.training import FlowNet
from workbench.problems.networks import Model
from workbench.routine import Key
from workbench.space import Space


class Nets(FlowNet):
    """Nets of one kind of model, each with inputs and outputs of its own; asked by name, the first when none is given.

    Args:
        parts: of each net by name, how many numbers it is given beside point, time and class, and how many it answers.
    """

    def __init__(self, model: Model, dim: int, classes: int, parts: Mapping[str, tuple[int, int]]) -> None:
        self.dim, self.classes, self.unbound = dim, classes, model
        bound = {name: model.bind(dim + 1 + classes + more, outputs) for name, (more, outputs) in parts.items()}
        self.model: Any = Joined(bound)
        self.space, self.first = self.model.space, next(iter(parts))

    def __call__(
        self,
        params: Tensor,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        part: str = "",
        given: Tensor | None = None,
    ) -> Tensor:
        """The answer (runs, n, outputs) of one of the nets, at points, times and classes as for `FlowNet`.

        Args:
            given: what it is given besides, (n, more) or (runs, n, more).
        """
        name, rows = part or self.first, self.rows(x, t, labels)
        if given is not None:
            shape = torch.broadcast_shapes(rows.shape[:-1], given.shape[:-1])
            rows = torch.cat([rows.expand(*shape, -1), given.expand(*shape, -1)], -1)
        return self.model.parts[name](params[..., self.model.places[name]], rows, {}, training=False)[0]


class Joined(Model):
    """Several models as one: a flat vector of the parameters of all."""

    name = "joined"

    def __init__(self, parts: Mapping[str, Model]) -> None:
        super().__init__()
        self.parts, self.places, first = parts, {}, 0
        for name, model in parts.items():
            count = sum(math.prod(shape) for shape in model.space.shapes)
            self.places[name], first = slice(first, first + count), first + count
        self.space = Space(-1, tuple(shape for model in parts.values() for shape in model.space.shapes))
        self.names = tuple(f"{name} {label}" for name, model in parts.items() for label in model.names)

    def init(self, key: Key, like: Tensor) -> Tensor:
        """The first model starts as it would alone."""
        keys = [key if i == 0 else key.stream(name) for i, name in enumerate(self.parts)]
        return torch.cat([model.init(own, like) for own, model in zip(keys, self.parts.values(), strict=True)], -1)

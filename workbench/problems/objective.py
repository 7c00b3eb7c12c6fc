"""What a surface is: a pure function of a few coordinates, with the facts that mathematics gives about it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.routine import Declared


class Objective(Declared):
    """A function to minimise. Subclasses write `__call__` over points with the coordinate first.

    `f(x)` maps (dim, ...) to (...): every trailing axis is another point. Elementwise arithmetic on `x[0]`, `x[1]`, …
    gives that by itself.

    Attributes:
        dim: number of coordinates.
        domain: ((low, high), …), one pair a coordinate: where it is drawn and starts are clamped to nothing.
        minima: known minimisers, a list of points; empty when there is none.
        minimum: the value at the minima, None when unknown or unbounded below.
        start: a start worth watching, one number a coordinate.
        log: whether colours and curves are best read on a logarithmic scale of f - minimum.
        dims: names of the coordinates.
    """

    family: ClassVar[str] = "surfaces"
    kind: ClassVar[str] = "objective"
    dim: int = 2
    domain: tuple[tuple[float, float], ...] = ((-2.0, 2.0), (-2.0, 2.0))
    minima: tuple[tuple[float, ...], ...] = ()
    minimum: float | None = None
    start: tuple[float, ...] = (1.0, 1.0)
    log: bool = False
    stochastic: ClassVar[bool] = False

    def __call__(self, x: Tensor) -> Tensor:
        """f at points x, (dim, ...) to (...)."""
        raise NotImplementedError

    def sample(self, x: Tensor, hyper: Mapping[str, Tensor], draw: Any) -> Tensor:
        """One random evaluation whose mean is f; f itself when the objective is not stochastic."""
        return self(x)

    def draw(self, key: Any, x: Tensor) -> Any:
        """The randomness of one sample, () when there is none."""
        return ()

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the coordinates: x and y in two dimensions."""
        return ("x", "y") if self.dim == 2 else tuple(f"x{i + 1}" for i in range(self.dim))

    def to(self, device: Any) -> "Objective":
        """The same objective with its tensors on another device."""
        return self


class Function(Objective):
    """Somebody's own callable f(x): `x` has shape (dim,) or (dim, points), the answer () or (points,).

    A function that only understands one point at a time is mapped over the points.
    """

    name = "function"
    title = "Your own function"

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        dim: int = 2,
        domain: tuple[tuple[float, float], ...] | None = None,
        start: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.function, self.dim = function, dim
        self.title = getattr(function, "__name__", "function")
        self.domain = domain or ((-2.0, 2.0),) * dim
        self.start = start or (1.0,) * dim
        self._mapped = not _takes_many(function, dim)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._mapped or x.ndim == 1:
            return self.function(x)
        flat = torch.func.vmap(self.function, in_dims=1)(x.flatten(1))
        return flat.reshape(x.shape[1:])

    def recipe(self) -> str:
        return "objective"


def _takes_many(function: Callable, dim: int) -> bool:
    """Whether a callable maps (dim, points) to (points,) and agrees with one point at a time.

    Raises:
        ValueError: when it does not give one number for one point.
    """
    points = torch.linspace(-0.7, 0.9, dim * 3, dtype=torch.float64).reshape(dim, 3)
    alone = [function(points[:, i]) for i in range(3)]
    if not all(isinstance(value, Tensor) and value.numel() == 1 for value in alone):
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in alone[:1]]
        raise ValueError(f"expected f(x) to return one number (a tensor) for x of shape ({dim},), got {shapes[0]}")
    try:
        together = function(points)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    singles = torch.stack([value.reshape(()) for value in alone])
    return together.shape == (3,) and torch.allclose(together, singles, equal_nan=True)

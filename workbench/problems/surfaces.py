"""Surfaces to descend, I: bowls, valleys and saddles. Those with several basins stand in `basins.py`.

Every class states its formula, its domain, its minima and a start worth watching. Adding one is one class.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.problems.objective import Objective
from workbench.routine import Hyper, Key

TEST = "tests/problems/test_surfaces.py::test_"
TWIN = TEST + "formula_equals_the_one_written_out_by_hand"


def coordinates(high: int = 1000, soft: int = 20, doc: str = "Number of coordinates.") -> Any:
    """The number of coordinates `dim`, fixed when the surface is made."""
    return Hyper(2, 2, high, "integer", (2, soft), kind="init", doc=doc)


def condition(default: float) -> Any:
    """The condition number of a quadratic, fixed when the surface is made."""
    return Hyper(default, 1.0, 1e6, "log", (1.0, 1e4), kind="init", doc="Largest over smallest curvature.")


def angle(default: float) -> Any:
    """The rotation of a quadratic, fixed when the surface is made."""
    doc = "Direction of the flattest axis, from the first axis towards the second."
    return Hyper(default, -180.0, 180.0, unit="°", kind="init", doc=doc)


class Surface(Objective):
    """An objective whose stationary points are known.

    Attributes:
        local_minima: minimisers that are not global, as far as they are listed.
        saddles: saddle points, as far as they are listed.
        kink: whether it has no gradient at its minima; the code gives zero there.
    """

    local_minima: tuple[tuple[float, ...], ...] = ()
    saddles: tuple[tuple[float, ...], ...] = ()
    kink: ClassVar[bool] = False


class ManyDimensional(Surface):
    """A surface of any number of coordinates that treats them alike, with one minimiser on the diagonal.

    Attributes:
        side: (low, high) of the domain along every coordinate.
        bottom: every coordinate of the minimiser.
        pattern: the start, repeated over the coordinates.
    """

    dim = coordinates()
    side: ClassVar[tuple[float, float]]
    bottom: ClassVar[float]
    pattern: ClassVar[tuple[float, ...]]
    minimum = 0.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.domain = (self.side,) * self.dim
        self.minima = ((self.bottom,) * self.dim,)
        self.start = tuple(itertools.islice(itertools.cycle(self.pattern), self.dim))


class Quadratic(Surface):
    """f(x) = ½ xᵀ H x; the eigenvalues of H run geometrically from 1 to `condition`; one minimum, 0 at 0.

    The flattest direction (eigenvalue 1) is the first axis turned by `angle` degrees towards the second, the steepest
    (eigenvalue `condition`) is the second axis turned likewise. Gradient descent converges for lr < 2 / condition.

    Source: Boyd & Vandenberghe 2004, Convex Optimization, 9.3.2.
    """

    name = "quadratic"
    title = "Quadratic bowl"
    source = "Boyd & Vandenberghe 2004, Convex Optimization, 9.3.2"
    evidence = TWIN + "[quadratic]"
    condition = condition(20.0)
    angle = angle(30.0)
    dim = coordinates()
    minimum = 0.0
    log = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.domain = ((-2.0, 2.0),) * self.dim
        self.minima = ((0.0,) * self.dim,)
        self.start = (-1.6, 0.6) + (1.0,) * (self.dim - 2)
        turn = math.radians(self.angle)
        self._cos, self._sin = math.cos(turn), math.sin(turn)

    def __call__(self, x: Tensor) -> Tensor:
        along = self._cos * x[0] + self._sin * x[1]
        across = self._cos * x[1] - self._sin * x[0]
        plane = 0.5 * (along * along + self.condition * across * across)
        if self.dim == 2:
            return plane
        order = torch.arange(1, self.dim - 1, device=x.device, dtype=x.dtype) / (self.dim - 1)
        curvature = (self.condition**order).reshape(-1, *[1] * (x.ndim - 1))
        return plane + 0.5 * (curvature * x[2:] ** 2).sum(0)


class NoisyRavine(Quadratic):
    """f(x) = ½ xᵀ H x as in the quadratic bowl, seen through noise: ∇ of a sample is Hx + noise ξ, ξ ~ N(0, I).

    A sample is f(x) + noise ξ·x, so its mean is f, and `noise` is the standard deviation of every component of its
    gradient, the same at every point. One minimum, 0 at 0, around which a constant step size never comes to rest.

    Source: Zhang et al. 2019, arXiv:1907.04164 (noisy quadratic model; here the noise is the same in all directions).
    """

    name = "noisy-ravine"
    title = "Ravine with gradient noise"
    source = "Zhang et al. 2019, arXiv:1907.04164"
    evidence = TEST + "gradient_noise_has_the_stated_mean_and_size"
    stochastic = True
    condition = condition(50.0)
    angle = angle(0.0)
    noise = Hyper(1.0, 0.0, soft=(0.0, 10.0), doc="Standard deviation of each component of the gradient.")

    def sample(self, x: Tensor, hyper: Mapping[str, Tensor], draw: Tensor) -> Tensor:
        xi = draw.reshape(self.dim, *[1] * (x.ndim - 1)) if draw.ndim == 1 else draw
        return self(x) + hyper["noise"] * (xi * x).sum(0)

    def draw(self, key: Key, x: Tensor) -> Tensor:
        return key.stream("gradient-noise").normal((self.dim,), like=x)


class Rosenbrock(ManyDimensional):
    """f(x) = Σᵢ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)², i < dim; minimum 0 at (1, …, 1), at the end of a curved valley.

    The only minimum in 2 and 3 dimensions; in 4 to 30 there is a second, local one with x₁ < 0, in 4
    at (-0.78, 0.61, 0.38, 0.15).

    Source: Rosenbrock 1960, The Computer Journal 3(3); Shang & Qiu 2006, Evolutionary Computation 14(1).
    """

    name = "rosenbrock"
    title = "Rosenbrock valley"
    source = "Rosenbrock 1960, The Computer Journal 3(3)"
    evidence = TWIN + "[rosenbrock]"
    side = (-2.0, 2.0)
    bottom = 1.0
    pattern = (-1.2, 1.0)
    log = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.domain = (self.side, (-1.0, 3.0), *[self.side] * (self.dim - 2))

    def __call__(self, x: Tensor) -> Tensor:
        if self.dim == 2:
            return 100 * (x[1] - x[0] * x[0]) ** 2 + (1 - x[0]) ** 2
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(0)


class Beale(Surface):
    """f(x, y) = (1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)² on [-4.5, 4.5]²; one minimum, 0 at (3, ½).

    Flat around its saddle (0, 1) and walled at the corners, where the gradient exceeds 10⁵.

    Source: Beale 1958; Moré, Garbow & Hillstrom 1981, ACM Trans. Math. Software 7(1), problem 5.
    """

    name = "beale"
    title = "Beale plateau"
    source = "Moré, Garbow & Hillstrom 1981, ACM Trans. Math. Software 7(1), problem 5"
    evidence = TWIN + "[beale]"
    domain = ((-4.5, 4.5), (-4.5, 4.5))
    minima = ((3.0, 0.5),)
    minimum = 0.0
    saddles = ((0.0, 1.0),)
    start = (1.0, 1.5)
    log = True

    def __call__(self, point: Tensor) -> Tensor:
        x, y = point[0], point[1]
        return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


class MonkeySaddle(Surface):
    """f(x, y) = x³ - 3xy² on [-2, 2]²; no minimum: it falls without bound in three valleys.

    At (0, 0) the gradient and the Hessian vanish: descent along y = 0 from x > 0 stops there, anything beside it falls.

    Source: Hilbert & Cohn-Vossen 1932, Anschauliche Geometrie.
    """

    name = "monkey-saddle"
    title = "Monkey saddle"
    source = "Hilbert & Cohn-Vossen 1932, Anschauliche Geometrie"
    evidence = TWIN + "[monkey-saddle]"
    saddles = ((0.0, 0.0),)
    start = (1.5, 0.001)

    def __call__(self, point: Tensor) -> Tensor:
        x, y = point[0], point[1]
        return x * (x * x - 3 * y * y)


class ScalarNet(ManyDimensional):
    """f(w) = ½ (w₁ w₂ ⋯ wₙ - 1)²: a linear net of `dim` layers of width one, fitted to one example.

    Minimum 0 on the whole set w₁ ⋯ wₙ = 1, of which `minima` names the balanced point (1, …, 1). There the largest
    curvature is Σᵢ 1/wᵢ², smallest (n) at the balanced points: step size decides where on the set descent can rest.

    Source: Kreisler, Nacson, Soudry & Carmon 2023, arXiv:2305.13064.
    """

    name = "scalar-net"
    title = "Scalar deep net"
    source = "Kreisler, Nacson, Soudry & Carmon 2023, arXiv:2305.13064"
    evidence = TWIN + "[scalar-net]"
    dim = coordinates(high=10, soft=10, doc="Depth: layers, one weight each.")
    side = (-3.0, 3.0)
    bottom = 1.0
    pattern = (2.4, -0.3)
    log = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.saddles = ((0.0,) * self.dim,)

    def __call__(self, w: Tensor) -> Tensor:
        # Not torch.prod: its derivative counts the zeros on the host, which waits for the device.
        product = w[0]
        for i in range(1, self.dim):
            product = product * w[i]
        return 0.5 * (product - 1) ** 2

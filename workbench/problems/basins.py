"""Surfaces to descend, II: several basins, from two to thousands."""

import math
from typing import Any

import torch
from torch import Tensor

from workbench.problems.surfaces import TWIN, ManyDimensional, Surface

SURVEY = "Jamil & Yang 2013, arXiv:1308.4008"


class Himmelblau(Surface):
    """f(x, y) = (x² + y - 11)² + (x + y² - 7)² on [-5, 5]²; four minima, all 0, around a hill at (-0.27, -0.92).

    Source: Himmelblau 1972, Applied Nonlinear Programming.
    """

    name = "himmelblau"
    title = "Himmelblau"
    source = "Himmelblau 1972, Applied Nonlinear Programming"
    evidence = TWIN + "[himmelblau]"
    domain = ((-5.0, 5.0), (-5.0, 5.0))
    minima = (
        (3.0, 2.0),
        (-2.805118086952745, 3.131312518250573),
        (-3.779310253377747, -3.2831859912861696),
        (3.5844283403304917, -1.8481265269644036),
    )
    minimum = 0.0
    saddles = (
        (-3.0730257507643897, -0.08135304428796751),
        (0.08667750455539636, 2.884254701174776),
        (3.385154183607021, 0.07385187983774928),
        (-0.12796134673068008, -1.9537149802445763),
    )
    start = (-0.3, -0.8)
    log = True

    def __call__(self, point: Tensor) -> Tensor:
        x, y = point[0], point[1]
        return (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2


class GoldsteinPrice(Surface):
    """f(x, y) = (1 + (x + y + 1)² (19 - 14x + 3x² - 14y + 6xy + 3y²))
    · (30 + (2x - 3y)² (18 - 32x + 12x² + 48y - 36xy + 27y²)) on [-2, 2]²; minimum 3 at (0, -1).

    Three more minima, of 30, 84 and 840; the values span six orders of magnitude.

    Source: Goldstein & Price 1971, Mathematics of Computation 25(115).
    """

    name = "goldstein-price"
    title = "Goldstein–Price"
    source = "Goldstein & Price 1971, Mathematics of Computation 25(115)"
    evidence = TWIN + "[goldstein-price]"
    minima = ((0.0, -1.0),)
    minimum = 3.0
    local_minima = ((-0.6, -0.4), (1.8, 0.2), (1.2, 0.8))
    start = (-1.5, 1.5)
    log = True

    def __call__(self, point: Tensor) -> Tensor:
        x, y = point[0], point[1]
        inner = 19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2
        outer = 18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2
        return (1 + (x + y + 1) ** 2 * inner) * (30 + (2 * x - 3 * y) ** 2 * outer)


def _camel(sign: int) -> tuple[tuple[float, float], ...]:
    """The stationary points of the camel off the origin: x⁴ - 4.2 x² + 3.5 = 0 and y = -x/2."""
    x = math.sqrt(2.1 + sign * math.sqrt(0.91))
    return ((x, -x / 2), (-x, x / 2))


class ThreeHumpCamel(Surface):
    """f(x, y) = 2x² - 1.05x⁴ + x⁶/6 + xy + y² on [-2, 2]²; minimum 0 at (0, 0), two more of 0.2986 on either side.

    Source: Jamil & Yang 2013, arXiv:1308.4008.
    """

    name = "three-hump-camel"
    title = "Three-hump camel"
    source = SURVEY
    evidence = TWIN + "[three-hump-camel]"
    minima = ((0.0, 0.0),)
    minimum = 0.0
    local_minima = _camel(+1)
    saddles = _camel(-1)
    start = (-1.7, -1.7)
    log = True

    def __call__(self, point: Tensor) -> Tensor:
        x, y = point[0], point[1]
        square = x * x
        return square * (2 + square * (square / 6 - 1.05)) + x * y + y * y


class StyblinskiTang(ManyDimensional):
    """f(x) = ½ Σᵢ xᵢ⁴ - 16xᵢ² + 5xᵢ on [-5, 5]ⁿ; 2ⁿ minima, the lowest -39.166166 n at (-2.903534, …).

    Source: Styblinski & Tang 1990, Neural Networks 3(4).
    """

    name = "styblinski-tang"
    title = "Styblinski–Tang"
    source = "Styblinski & Tang 1990, Neural Networks 3(4)"
    evidence = TWIN + "[styblinski-tang]"
    side = (-5.0, 5.0)
    bottom = -2.903534027771177
    pattern = (0.5, 4.5)
    log = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.minimum = -39.16616570377141 * self.dim

    def __call__(self, x: Tensor) -> Tensor:
        square = x * x
        return 0.5 * (square * (square - 16) + 5 * x).sum(0)


class Rastrigin(ManyDimensional):
    """f(x) = Σᵢ xᵢ² + 10 (1 - cos 2πxᵢ) on [-5.12, 5.12]ⁿ; minimum 0 at 0, a local minimum near every whole point.

    Written as xᵢ² + 20 sin² πxᵢ, which is equal and keeps its digits near the minimum in float32.

    Source: Rastrigin 1974 (2-D); Mühlenbein, Schomisch & Born 1991, Parallel Computing 17 (n-D).
    """

    name = "rastrigin"
    title = "Rastrigin"
    source = "Mühlenbein, Schomisch & Born 1991, Parallel Computing 17"
    evidence = TWIN + "[rastrigin]"
    side = (-5.12, 5.12)
    bottom = 0.0
    pattern = (3.4, -2.3)

    def __call__(self, x: Tensor) -> Tensor:
        return (x * x + 20 * torch.sin(math.pi * x) ** 2).sum(0)


class Ackley(ManyDimensional):
    """f(x) = 20 (1 - exp(-0.2 √(Σᵢ xᵢ²/n))) + e - exp(Σᵢ cos(2πxᵢ)/n) on [-5, 5]ⁿ; minimum 0 at 0, a cone in ripples.

    Not differentiable at its minimum, where every direction climbs with slope 4/√n; the code gives the gradient zero
    there, which is a subgradient. Written with expm1, which is equal and keeps its digits near the minimum in float32.
    The survey's domain is ±32; the middle of it shows the ripples.

    Source: Ackley 1987, A Connectionist Machine for Genetic Hillclimbing (2-D); survey: Jamil & Yang 2013.
    """

    name = "ackley"
    title = "Ackley"
    source = SURVEY
    evidence = TWIN + "[ackley]"
    kink = True
    side = (-5.0, 5.0)
    bottom = 0.0
    pattern = (3.5, -2.6)

    def __call__(self, x: Tensor) -> Tensor:
        square = (x * x).mean(0)
        away = square > 0
        # The inner `where` keeps the infinite slope of the root at zero out of the derivative.
        radius = torch.where(away, torch.where(away, square, 1.0).sqrt(), 0.0)
        ripple = (torch.sin(math.pi * x) ** 2).mean(0)
        return -20 * torch.expm1(-0.2 * radius) - math.e * torch.expm1(-2 * ripple)


class Levy(ManyDimensional):
    """f(x) = sin² πw₁ + Σᵢ (wᵢ - 1)² (1 + 10 sin²(πwᵢ + 1)) + (wₙ - 1)² (1 + sin² 2πwₙ), i < n, w = 1 + (x - 1)/4.

    On [-10, 10]ⁿ; minimum 0 at (1, …, 1), behind parallel valleys.

    Source: Surjanovic & Bingham 2013, Virtual Library of Simulation Experiments, after Levy & Montalvo 1985.
    """

    name = "levy"
    title = "Levy"
    source = "Surjanovic & Bingham 2013, Virtual Library of Simulation Experiments"
    evidence = TWIN + "[levy]"
    side = (-10.0, 10.0)
    bottom = 1.0
    pattern = (-6.0, 6.0)
    log = True

    def __call__(self, x: Tensor) -> Tensor:
        u = (x - 1) / 4
        valleys = (u[:-1] ** 2 * (1 + 10 * torch.sin(math.pi * u[:-1] + 1) ** 2)).sum(0)
        last = u[-1] ** 2 * (1 + torch.sin(2 * math.pi * u[-1]) ** 2)
        return torch.sin(math.pi * u[0]) ** 2 + valleys + last


class MullerBrown(Surface):
    """f(x, y) = Σₖ Aₖ exp(aₖ (x - xₖ)² + bₖ (x - xₖ)(y - yₖ) + cₖ (y - yₖ)²), k = 1 … 4: a molecule's energy.

    Drawn on [-1.5, 1.2] × [-0.2, 2]. Three minima, -146.6995, -108.1667 and -80.7678, joined by two saddles at -40.6648
    and -72.2489; the line between two minima is not the easy way.

    Source: Müller & Brown 1979, Theoretica Chimica Acta 53, 75–93.
    """

    name = "muller-brown"
    title = "Müller–Brown"
    source = "Müller & Brown 1979, Theoretica Chimica Acta 53, 75–93"
    evidence = TWIN + "[muller-brown]"
    domain = ((-1.5, 1.2), (-0.2, 2.0))
    minima = ((-0.5582236346330243, 1.4417258418046686),)
    minimum = -146.69951720995402
    local_minima = ((0.6234994049308765, 0.028037758528685664), (-0.050010822998206056, 0.4666941048719721))
    saddles = ((-0.8220015587327321, 0.6243128028148713), (0.212486582000662, 0.2929883251073678))
    start = (-0.8, 0.6)
    log = True
    terms = (  # A, a, b, c, x, y
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    )

    def __call__(self, point: Tensor) -> Tensor:
        total = torch.zeros_like(point[0])
        for height, a, b, c, x0, y0 in self.terms:
            x, y = point[0] - x0, point[1] - y0
            total = total + height * torch.exp(a * x * x + b * x * y + c * y * y)
        return total

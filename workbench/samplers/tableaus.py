"""Runge–Kutta coefficients as data that check themselves: row sums, and the conditions for the order they claim."""

import dataclasses
import functools
import itertools
import math

Tree = tuple
"""A rooted tree: the tuple of the trees that hang from its root."""


@dataclasses.dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge–Kutta method: k_i = v(x + h Σ_j a_ij k_j, t + c_i h); x ← x + h Σ b_i k_i.

    Args:
        a: rows below the diagonal, the first stage's (which is empty) left out.
        b: weights of the result.
        c: times of the stages.
        order: the order of b; its conditions are checked.
        low: weights b̂ of a second result, of a lower order: h Σ (b_i - b̂_i) k_i estimates the error of that one. It
            may have one weight more than b: of the slope at the new point. () when there is none.
        low_order: the order of b̂.

    Raises:
        ValueError: when a row of a does not sum to its c, b does not sum to 1, or an order is not what it should be.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int = 1
    low: tuple[float, ...] = ()
    low_order: int = 0

    def __post_init__(self) -> None:
        for row, c in zip(self.a, self.c[1:], strict=True):
            if abs(sum(row) - c) > 1e-12:
                raise ValueError(f"expected a row of a that sums to c = {c}, got {row}")
        if abs(sum(self.b) - 1) > 1e-12 or len(self.b) != len(self.c) or self.c[0] != 0:
            raise ValueError(f"expected b to sum to 1 over {len(self.c)} stages, got {self.b}")
        if (found := order_of(self.a, self.b, self.order)) < self.order:
            raise ValueError(f"expected weights b of order {self.order}, got order {found}")
        if self.low and (found := order_of((*self.a, self.b), self.low, self.low_order)) < self.low_order:
            raise ValueError(f"expected weights low of order {self.low_order}, got order {found}")

    @property
    def error(self) -> tuple[float, ...]:
        """b - b̂, a weight for each stage and one for the slope at the new point."""
        return tuple(b - low for b, low in itertools.zip_longest(self.b, self.low, fillvalue=0.0))


def order_of(a: tuple[tuple[float, ...], ...], b: tuple[float, ...], most: int) -> int:
    """The order of the weights b on the stages of a, as far as `most`: the last p whose conditions hold for every tree.

    Source: Butcher 1963, J. Austral. Math. Soc. 3; Hairer, Nørsett & Wanner 1993, Solving ODEs I, theorem II.2.13.
    """
    for p in range(1, most + 1):
        for tree in trees(p):
            if abs(elementary_weight(a, b, tree) - 1 / density(tree)) > 1e-12:
                return p - 1
    return most


def elementary_weight(a: tuple[tuple[float, ...], ...], b: tuple[float, ...], tree: Tree) -> float:
    """Σ_i b_i Φ_i(tree), with Φ_i(tree) = Π over its branches of Σ_j a_ij Φ_j(branch)."""
    rows = ((), *a)[: len(b)]

    @functools.cache
    def at(i: int, tree: Tree) -> float:
        return math.prod(sum(w * at(j, branch) for j, w in enumerate(rows[i])) for branch in tree)

    return sum(w * at(i, tree) for i, w in enumerate(b))


def size(tree: Tree) -> int:
    """Number of its nodes: the order whose condition it is."""
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    """γ(tree): its size times the densities of its branches."""
    return size(tree) * math.prod(map(density, tree))


@functools.cache
def trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees of so many nodes: 1, 1, 2, 4, 9, 20, …"""
    return tuple(sorted({tuple(sorted(forest)) for forest in _forests(nodes - 1)}))


def _forests(nodes: int) -> list[Tree]:
    """Every way to share out so many nodes among trees, in any order."""
    if nodes == 0:
        return [()]
    return [(tree, *rest) for n in range(1, nodes + 1) for tree in trees(n) for rest in _forests(nodes - n)]

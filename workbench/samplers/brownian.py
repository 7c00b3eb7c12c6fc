"""Brownian paths: increments and areas over any interval of [0, 1], a pure function of key and interval.

A path is a tree of halved intervals. Over [a, a + h] all that is known of W is its increment and its area; the value
and the area up to the middle then need two normals more, Z ~ N(0, h/16) and N ~ N(0, h/12), which add to W(t) and to
I(t) = ∫_0^t W

    (3r² - 2r) Z + 3s r(1 - r) N        and        h/2 (s (r³ - r²) Z + (3r²/2 - r³) N)

where r rises from 0 at the ends to 1 in the middle, and s is 1 in the left half, -1 in the right. Both vanish at the
ends, so a time needs the normals of the intervals that hold it and no others; each interval has a key of its own.
"""

import functools
import math

import torch
from torch import Tensor

from workbench.routine import Key

DEPTH = 14
"""Times in different intervals of length 2^-DEPTH have the exact joint law; two in the same one move too smoothly."""
FINEST_W, FINEST_I = 2.0**36, 2.0**46
"""W and I are whole multiples of the inverse, so that float64 does not round their sums and differences."""
MOST_BYTES = 2**25
"""Of normals kept for one path."""


class Brownian:
    """A Brownian path on [0, 1] for every sample and coordinate; one for every run too when the key has runs.

    Increments are exact sums. In float64 dW(a, c) = dW(a, b) + dW(b, c) and, at multiples of 2^-14,
    dZ(a, c) = dZ(a, b) + dZ(b, c) + (c - b) dW(a, b), bit for bit. Other dtypes are these numbers, rounded once.

    Args:
        key: of the path: the same key is the same path, for every solver and every step size.
        shape: (samples, dim).
        like: tells dtype and device of the increments.

    Source: Foster, Oberhauser & Lyons 2020, arXiv:1906.09308 (value and area at the middle of an interval); a key for
    every node of the tree after Li et al. 2020, arXiv:2001.01328, section 4.
    """

    def __init__(self, key: Key, shape: tuple[int, ...], like: Tensor) -> None:
        self.key, self.shape, self.like = key, tuple(shape), like

    def increment(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
        """dW = W(t1) - W(t0) and dZ = ∫ (W(s) - W(t0)) ds from t0 to t1, each (runs or 1, samples, dim).

        With h = t1 - t0, which may be negative: Var dW = |h|, Var dZ = |h|³/3, Cov(dW, dZ) = h|h|/2.

        Args:
            t0, t1: (runs, 1) or (runs, samples), within [0, 1]. Different times are looked up one after another.

        Raises:
            ValueError: on a time outside [0, 1].
        """
        if self.like.device.type == "meta":
            shape = max(self.key.runs or 1, t0.shape[0], t1.shape[0]), *self.shape
            return self.like.new_empty(shape), self.like.new_empty(shape)
        w0, i0, start = self._at(t0)
        w1, i1, end = self._at(t1)
        return (w1 - w0).to(self.like), (i1 - i0 - (end - start) * w0).to(self.like)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W(t) and I(t), (runs or 1, samples, dim), and t itself to multiply them; float64 on the host."""
        exact = t.detach().to("cpu", torch.float64)
        times, which = torch.unique(exact, return_inverse=True)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(f"expected times from 0 to 1, got {times.min().item():g} to {times.max().item():g}")
        path = paths(self.key, self.shape)
        if len(times) == 1:
            return (*path.at(times.item()), exact[:1, :1, None])
        w, i = (torch.zeros(max(self.key.runs or 1, len(t)), *self.shape, dtype=torch.float64) for _ in range(2))
        for index, time in enumerate(times.tolist()):
            here = (which == index).unsqueeze(-1)
            value, area = path.at(time)
            w, i = torch.where(here, value, w), torch.where(here, area, i)
        return w, i, exact.unsqueeze(-1)


class Path:
    """W(t) and I(t) of one path. Keeps normals that were drawn while there is room: it saves time, no value changes."""

    def __init__(self, key: Key, shape: tuple[int, ...]) -> None:
        self.key, self.shape = key, shape
        size = 8 * (key.runs or 1) * math.prod(shape)
        self.normals = functools.lru_cache(maxsize=max(2 * DEPTH, MOST_BYTES // max(1, size)))(self._normals)
        self.at = functools.lru_cache(maxsize=4)(self._at)

    def _normals(self, node: int) -> Tensor:
        """(2, runs or 1, samples, dim), drawn in float32: in a fourth of the time of float64, and precise enough."""
        key, shape = self.key.at(node), (2, *self.shape)
        if key.runs is None:
            return torch.randn(shape, generator=key.generator(), dtype=torch.float32).unsqueeze(1)
        generators = [key.generator(run) for run in range(key.runs)]
        return torch.stack([torch.randn(shape, generator=one, dtype=torch.float32) for one in generators], 1)

    def _at(self, t: float) -> tuple[Tensor, Tensor]:
        w, i = (torch.zeros(self.key.runs or 1, *self.shape, dtype=torch.float64) for _ in range(2))
        for node, (w1, w2, i1, i2) in weights(t).items():
            first, second = self.normals(node).double().unbind()
            w.add_(first, alpha=w1).add_(second, alpha=w2)
            i.add_(first, alpha=i1).add_(second, alpha=i2)
        return w.mul_(FINEST_W).round_().div_(FINEST_W), i.mul_(FINEST_I).round_().div_(FINEST_I)


paths = functools.lru_cache(maxsize=4)(Path)
Weights = tuple[float, float, float, float]


def weights(t: float) -> dict[int, Weights]:
    """What the two normals of each node add at time t: the first and the second to W, the first and the second to I.

    Node 0 is the whole of [0, 1], its increment and area; node 2^level + k halves [k, k + 1] 2^-level.
    """
    found = {0: (t, t * (1 - t) * math.sqrt(3), t * t / 2, t * t * (3 - 2 * t) / math.sqrt(12))}
    for level in range(DEPTH + 1):
        h = 0.5**level
        k = math.floor(t / h)
        u = t / h - k
        if u == 0:  # an end of this interval and of all inside it
            break
        found[2**level + k] = inside(u, h) if level == DEPTH else halved(u, h)
    return found


def halved(u: float, h: float) -> Weights:
    """At the fraction u of an interval of length h whose middle gets its value and area; see the top of this file."""
    r, s = (2 * u, 1) if u <= 0.5 else (2 - 2 * u, -1)
    z, n = math.sqrt(h / 16), math.sqrt(h / 12)
    return (3 * r - 2) * r * z, 3 * s * r * (1 - r) * n, s * h / 2 * (r - 1) * r**2 * z, h / 2 * (1.5 - r) * r**2 * n


def inside(u: float, h: float) -> Weights:
    """At the fraction u of an interval of the last level: (W, I) have the law they have given its increment and area.

    With p = u(1 - u): Var W = h p(1 - 3p), Cov(W, I) = h² p²(1 - 2u)/2, Var I = h³ p³/3.
    """
    p = u * (1 - u)
    deviation = math.sqrt(h * p * (1 - 3 * p))
    return deviation, 0.0, (h * p) ** 2 * (1 - 2 * u) / (2 * deviation), math.sqrt((h * p) ** 3 / (12 * (1 - 3 * p)))

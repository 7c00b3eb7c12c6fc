"""Paths between two points of a landscape: straight, curved and trained, and how high the loss stands along them.

A path is φ(t) = Σ_j B_j(t) c_j, t from 0 to 1: its control points c_j, weighted by a basis that sums to 1.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from workbench.flows.measures.estimate import Estimate
from workbench.landscapes.gradients import minibatch_gradient
from workbench.landscapes.landscape import Landscape
from workbench.landscapes.progress import Watch, within
from workbench.routine import Key, whole

CHUNK = 8
"""Points of a path whose losses are computed at once."""


def bernstein(ts: Tensor, count: int) -> Tensor:
    """B_j(t) = C(n, j) t^j (1 - t)^(n - j), n = count - 1: the basis of Bézier curves, (ts, count)."""
    n = count - 1
    return torch.stack([math.comb(n, j) * ts**j * (1 - ts) ** (n - j) for j in range(count)], -1)


def hats(ts: Tensor, count: int) -> Tensor:
    """B_j(t) = max(0, 1 - |t n - j|), n = count - 1: the basis of polygonal chains, (ts, count)."""
    return (1 - (ts[:, None] * (count - 1) - torch.arange(count, device=ts.device)).abs()).clamp(min=0)


BASES = {"bezier": bernstein, "polygon": hats}


@dataclasses.dataclass(frozen=True)
class Path:
    """A path of parameters. φ(0) is its first control point, φ(1) its last.

    Attributes:
        controls: (controls, parameters), at least two.
        kind: "polygon": straight from control to control, each piece an equal share of t; or "bezier".
    """

    controls: Tensor
    kind: str = "polygon"

    def __post_init__(self) -> None:
        if self.controls.ndim != 2 or len(self.controls) < 2 or self.kind not in BASES:
            shape = tuple(self.controls.shape)
            raise ValueError(f"expected 'polygon' or 'bezier' of two controls or more, got {self.kind!r} of {shape}")

    def basis(self, ts: Tensor) -> Tensor:
        """B_j(t), (ts, controls)."""
        return BASES[self.kind](ts, len(self.controls))

    def points(self, ts: Tensor | Sequence[float]) -> Tensor:
        """φ at each t, (ts, parameters)."""
        ts = torch.as_tensor(ts, dtype=self.controls.dtype, device=self.controls.device)
        return self.basis(ts) @ self.controls

    def point(self, t: float) -> Tensor:
        """φ(t), (parameters,)."""
        return self.points([t])[0]


def line(a: Tensor, b: Tensor) -> Path:
    """The straight segment (1 - t) a + t b."""
    return Path(torch.stack([a, b]))


def bezier(
    landscape: Landscape,
    a: Tensor,
    b: Tensor,
    *,
    steps: int = 500,
    lr: float = 0.01,
    draws: int = 4,
    batch_size: int = 128,
    seed: int = 0,
    watch: Watch | None = None,
) -> Path:
    """A quadratic Bézier curve (1 - t)² a + 2 t (1 - t) θ + t² b whose bend θ is trained: argmin_θ E_t L(φ(t)).

    t is uniform on [0, 1]. Started straight, at θ = (a + b) / 2; trained by Adam.

    Args:
        a, b: points, (parameters,).
        steps: minibatches to train on; 0 leaves it straight.
        lr: Adam's step size.
        draws: values of t a step, one in each of so many equal parts of [0, 1] (unbiased, and of less variance).
        batch_size: samples a step; all of them when there are fewer.
        seed: of t and of the minibatches.
        watch: told the share of steps done, after each; what it raises ends the work.

    Source: Garipov et al. 2018, arXiv:1802.10026, eq. 2 and section 3.2. They train with momentum, one t a minibatch.
    """
    started = line(landscape.point(a), landscape.point(b)).points([0, 0.5, 1])
    return _trained(landscape, Path(started, "bezier"), steps, lr, draws, batch_size, seed, watch)


def polygon(
    landscape: Landscape,
    a: Tensor,
    b: Tensor,
    *,
    bends: int = 1,
    steps: int = 500,
    lr: float = 0.01,
    draws: int = 4,
    batch_size: int = 128,
    seed: int = 0,
    watch: Watch | None = None,
) -> Path:
    """A polygonal chain from a to b whose bends are trained: argmin E_t L(φ(t)), t uniform on [0, 1].

    Args and source as in `bezier`; `bends` (at least 1) start at equal distances on the straight segment.
    """
    ts = torch.linspace(0, 1, whole("bends", bends, 1) + 2)
    started = line(landscape.point(a), landscape.point(b)).points(ts)
    return _trained(landscape, Path(started), steps, lr, draws, batch_size, seed, watch)


def _trained(
    landscape: Landscape,
    path: Path,
    steps: int,
    lr: float,
    draws: int,
    batch_size: int,
    seed: int,
    watch: Watch | None,
) -> Path:
    """The path with its inner controls trained: the gradient of c_j is the mean over t of B_j(t) ∇L(φ(t))."""
    draws, size = whole("draws", draws, 1), whole("batch_size", batch_size, 1)
    inner = path.controls[1:-1].clone()
    optimizer = torch.optim.Adam([inner], lr=lr)
    parts, watch = torch.arange(draws, dtype=inner.dtype, device=inner.device), within(watch)
    for k in range(whole("steps", steps)):
        key = Key(seed).at(k)
        ts = (parts + key.stream("t").uniform((draws,), like=inner)) / draws
        weights = path.basis(ts)
        x = weights @ torch.cat([path.controls[:1], inner, path.controls[-1:]])
        inner.grad = weights[:, 1:-1].T @ minibatch_gradient(landscape, x, key.stream("rows"), size) / draws
        optimizer.step()
        watch((k + 1) / steps)
    return Path(torch.cat([path.controls[:1], inner, path.controls[-1:]]), path.kind)


def along(landscape: Landscape, path: Path, points: int = 51, *, watch: Watch | None = None) -> xr.Dataset:
    """The loss along a path, at equal steps of t. Untrained state (batch-norm means) is the landscape's all the way.

    Args:
        points: values of t, at least 2.
        watch: told the share done (0 to 1); what it raises ends the work.

    Returns:
        Dataset with dim `t`: `loss`; `loss_error`, its standard error over the samples (0 where the loss is no mean
        over samples); `distance`, the length of the path so far, as a chain through the points. Attributes: barrier and
        its standard error as in `barrier`, the t it stands at, and how all this was made.
    """
    ts, losses = _losses(landscape, path, points, watch)
    height, at = _barrier(ts, losses)
    xs = path.points(ts)
    steps = torch.linalg.vector_norm(xs.diff(dim=0), dim=1)
    distance = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    count = losses.shape[1]
    error = losses.std(1) / count**0.5 if count > 1 else torch.zeros_like(ts)
    columns: dict[str, tuple[Tensor, str]] = {
        "loss": (losses.mean(1), landscape.title or "loss"),
        "loss_error": (error, "standard error of the loss over the samples"),
        "distance": (distance, "length of the path up to t, Euclidean, in parameters"),
    }
    found = {
        name: ("t", values.detach().cpu().numpy(), {"long_name": words, "units": "1"})
        for name, (values, words) in columns.items()
    }
    t = ("t", ts.cpu().numpy(), {"long_name": "position on the path, from 0 to 1", "units": "1"})
    made = {"loss": landscape.title, "path": path.kind, "controls": len(path.controls), "points": len(ts)}
    sure = 0.0 if height.standard_error is None else height.standard_error.item()
    tall = {"barrier": height.value.item(), "barrier_error": sure, "barrier_at": at, "estimator": height.estimator}
    return xr.Dataset(found, {"t": t}, {**made, **tall})


def barrier(landscape: Landscape, path: Path, points: int = 51, *, watch: Watch | None = None) -> Estimate:
    """max_t L(φ(t)) - ((1 - t) L(a) + t L(b)): how high the loss rises above the straight line between its ends.

    The maximum over equal steps of t, ends included: never below 0, and never above that over all t. The standard error
    is that of a mean over samples, of the differences at the t of the maximum, as if that t had been fixed: it leaves
    out that t was picked (which raises the value by chance where several heights are within its error). None where the
    loss is no mean over samples.

    Source: Frankle et al. 2020, arXiv:1912.05671, and with the line between the ends Entezari et al. 2022,
    arXiv:2110.06296.
    """
    return _barrier(*_losses(landscape, path, points, watch))[0]


def _losses(landscape: Landscape, path: Path, points: int, watch: Watch | None) -> tuple[Tensor, Tensor]:
    """(t, the loss of each sample at φ(t)), (points,) and (points, samples), or (points, 1) without samples."""
    measure: Any = landscape.each if landscape.samples else lambda x: landscape(x).unsqueeze(1)
    ts = torch.linspace(0, 1, whole("points", points, 2), dtype=path.controls.dtype, device=path.controls.device)
    found, done, watch = [], 0, within(watch)
    with torch.no_grad():
        for chunk in ts.split(CHUNK):
            found.append(measure(path.points(chunk)))
            done += len(chunk)
            watch(done / len(ts))
    return ts, torch.cat(found)


def _barrier(ts: Tensor, losses: Tensor) -> tuple[Estimate, float]:
    excess = losses - torch.lerp(losses[:1], losses[-1:], ts[:, None])
    top = int(excess.mean(1).argmax())
    count = losses.shape[1]
    error = excess[top].std() / count**0.5 if count > 1 else None
    words = f"maximum over {len(ts)} equal steps of t, at t = {ts[top].item():.3g}"
    return Estimate(excess[top].mean(), error, words), ts[top].item()

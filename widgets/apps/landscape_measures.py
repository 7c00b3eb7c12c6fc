"""What Landscape and Training measure of curvature along a run, under a time budget, and where its edge is."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workbench as wb
from widgets.apps.training_measures import SHARE, Measures
from workbench import landscapes

TOP = 10
"""Eigenvectors of the Hessian that the gradient's share is taken of."""
RARELY = 12
"""While a run plays, the top subspace is measured at one in so many measurements: it takes several times as long."""
TOLERANCE = 1e-2
MOST_PRODUCTS = 160
"""Hessian products after which a search for eigenvalues is given up: some three times what one takes."""
PRODUCTS, BATCHES = 24, 8
"""Hessian products that the trace takes, and minibatches that batch sharpness is a mean over."""
MOST_NUMBERS = 2**26
"""Numbers in the gradients of single samples formed at one measurement: of larger models, fewer samples are read."""


class Row(NamedTuple):
    """Every training at one step; see `MEANING`. NaN where it was not measured."""

    loss: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    turned: NDArray[np.float64]
    share: NDArray[np.float64]
    overlap: NDArray[np.float64]
    trace: NDArray[np.float64]
    batch: NDArray[np.float64]
    noise: NDArray[np.float64]
    coherence: NDArray[np.float64]


MEANING = {
    "loss": ("loss", "Mean loss over all training samples, as in use (dropout off, batch norm on its running means)."),
    "sharpness": (
        "sharpness",
        "λ₁, the largest eigenvalue of the Hessian of that loss, by Lanczos from the last one's eigenvector, to 1 %.",
    ),
    "edge": (
        "edge",
        "Sharpness above which a step in that direction grows instead of shrinking: 2 (1 + momentum) / lr; for Adam "
        "and AdamW (2 + 2 beta1) / ((1 − beta1) lr), of the sharpness after their scaling.",
    ),
    "turned": ("scaled sharpness", "λ₁ of D^(−1/2) H D^(−1/2), D = √v̂ + eps: what Adam's own steps see."),
    "share": (
        "gradient in top 10",
        "|P g|² / |g|²: the share of the gradient in the span of the Hessian's 10 top eigenvectors; a random span of "
        "10 holds 10 / parameters.",
    ),
    "overlap": (
        "overlap",
        "Mean of |P u|² over the 10 top eigenvectors u of the measurement before: 1 when their span has stayed.",
    ),
    "trace": (
        "trace",
        "Sum of all eigenvalues of the Hessian, by Hutch++ with 24 products; it carries a sampling error.",
    ),
    "batch": (
        "batch sharpness",
        "Mean of gᵀHg / |g|² over 8 minibatches of the size in force, g and H those of the minibatch.",
    ),
    "noise": (
        "noise scale",
        "tr Σ / |G|² in samples, G and Σ the mean and covariance of one sample's gradient: minibatches much smaller "
        "than this are mostly noise. Negative where the gradient is not told from 0.",
    ),
    "coherence": (
        "coherence",
        "|mean gradient|² over the mean |gradient of one sample|²: from 0, they cancel, to 1, all are the same.",
    ),
}


class Curvature(Measures):
    """Rows by line of time and step, and what they cost; eigenvectors are searched for from the last ones found.

    Attributes:
        watch: called before every product with a Hessian; what it raises ends the measurement.
        always: whether every measurement is a thorough one, with the top subspace and what else takes long.
    """

    def __init__(self, share: float = SHARE) -> None:
        super().__init__(self._row, share)
        self.watch: Callable[[float], None] = lambda share: None
        self.always = False
        self.begin()

    def begin(self) -> None:
        """A new session: nothing is known of its eigenvectors."""
        self._warm: dict[str, Tensor] = {}
        self._count, self._thorough = 0, False
        self._eps: list[Any] = []
        self._batch: list[Any] = []

    def at_rest(self) -> "Curvature":
        """What measures thoroughly, on another thread, into the same rows."""
        other = copy.copy(self)
        other._measure, other.always = other._row, True
        other.begin()
        return other

    def take(self, session: wb.Session, *, into: wb.Session | None = None) -> Row:
        """Measure where a session stands."""
        self._count += 1
        self._thorough = self.always or self._count % RARELY == 0
        before = [f"{label}." for label in getattr(session.routine, "parts", ())] or [""]
        self._eps = [session.hyper.get(f"{label}eps") for label in before]
        self._batch = [session.hyper.get(f"{label}batch_size") for label in before]
        return cast(Row, super().take(session, into=into))

    def _row(self, routine: Any, state: Any) -> Row:
        parts = list(zip(parts_of(routine), parts_of(state), strict=True))
        return Row(*np.array([self._one(i, own, at) for i, (own, at) in enumerate(parts)]).T)

    def _one(self, i: int, routine: Any, state: Any) -> list[float]:
        scene = landscapes.of_training(routine, state)
        loss, gradient = scene.gradient(scene.start[None])
        if not bool(torch.isfinite(gradient).all()):
            return [float("nan")] * len(Row._fields)
        operator, warm = watched(landscapes.hessian(scene), self.watch), self._warm
        share = overlap = float("nan")
        rest = [float("nan")] * 4
        if self._thorough:
            rest = thorough(scene, operator, self._batch[i], self.watch)
            before = warm.get(f"top {i}")
            found = top(operator, min(TOP, scene.dim), before)
            if found.known(TOLERANCE).all():
                share = float(landscapes.share(gradient[0], found.vectors))
                overlap = float(landscapes.overlap(before, found.vectors)) if before is not None else overlap
                warm[f"top {i}"] = found.vectors
        else:
            found = top(operator, 1, warm.get(f"one {i}"))
        warm[f"one {i}"] = found.vectors[:1]
        turned = self._turned(i, operator, state, warm)
        return [float(loss), first(found), turned, share, overlap, *rest]

    def _turned(self, i: int, operator: Any, state: Any, warm: dict[str, Tensor]) -> float:
        """Sharpness after an adaptive method's scaling; NaN for the others, and before their first step."""
        diagonal = scaling(state, self._eps[i])
        if diagonal is None:
            return float("nan")
        found = top(landscapes.preconditioned(operator, diagonal), 1, warm.get(f"turned {i}"))
        warm[f"turned {i}"] = found.vectors
        return first(found)


def top(operator: Any, k: int, start: Tensor | None) -> Any:
    """The k top eigenpairs, to 1 % or as far as the products allowed go."""
    return landscapes.top_eigenpairs(operator, k, start=start, tolerance=TOLERANCE, most=MOST_PRODUCTS)


def first(found: Any) -> float:
    """The largest eigenvalue; NaN where it is not known to 1 %: of a loss near 0 rounding hides it."""
    return float(found.values[0]) if bool(found.known(TOLERANCE)[0]) else float("nan")


def watched(operator: landscapes.Operator, watch: Callable[[float], None]) -> landscapes.Operator:
    """The same operator, which calls `watch` before every product."""

    def product(vectors: Tensor) -> Tensor:
        watch(0.0)
        return operator(vectors)

    return landscapes.Operator(product, operator.like, operator.title)


def thorough(scene: Any, operator: Any, batch: Any, watch: Callable[[float], None]) -> list[float]:
    """Trace, batch sharpness, noise scale and coherence where a training stands; NaN where a loss has no samples."""
    trace = float(landscapes.hutch_plus_plus(operator, PRODUCTS).value)
    if scene.samples < 3:
        return [trace] + [float("nan")] * 3
    size = min(int(batch or scene.samples), scene.samples)
    sharp = landscapes.batch_sharpness(scene, batch_size=size, batches=BATCHES if size < scene.samples else 1)
    some = None if scene.dim * scene.samples <= MOST_NUMBERS else max(3, min(scene.samples, MOST_NUMBERS // scene.dim))
    found = landscapes.gradient_statistics(scene, scene.start[None], samples=some, watch=watch)
    return [trace, float(sharp.value), float(found.noise_scale[0]), float(found.coherence[0])]


def parts_of(whole: Any) -> list[Any]:
    """The trainings of a routine side by side, or their states; one alone as a list of it."""
    parts = getattr(whole, "parts", None)
    if parts is None:
        return [whole]
    return list(parts.values()) if isinstance(parts, dict) else list(parts)


def scaling(state: Any, eps: float | None) -> Tensor | None:
    """√v̂ + eps of Adam and AdamW, (parameters,); None for other methods and at step 0."""
    v, p2 = getattr(state.method, "v", None), getattr(state.method, "p2", None)
    if v is None or p2 is None or int(state.k) == 0:
        return None
    return ((v / (1 - p2)).sqrt() + eps)[0].detach()


def edge(session: wb.Session, label: str, steps: NDArray[Any]) -> NDArray[np.float64]:
    """The sharpness at which a training's steps turn from shrinking to growing, at each of these steps; NaN unknown.

    Args:
        label: of a training side by side with others; "" where there is one alone.
    """
    routine: Any = session.routine
    part, before = (routine.parts[label], f"{label}.") if label else (routine, "")
    if part.method.name not in ("sgd", "momentum", "adam", "adamw"):
        return np.full(len(steps), np.nan)
    names = [name for name in ("lr", "momentum", "dampening", "beta1") if name in part.hypers]
    values = {name: in_force(session, before + name, steps) for name in names}
    rate = values.pop("lr") * (1 - values.pop("dampening", 0.0))  # all gradients but the first are damped
    return np.asarray(landscapes.edge(rate, **values))


def in_force(session: wb.Session, name: str, steps: NDArray[Any]) -> NDArray[np.float64]:
    """The value of a hyperparameter at each of these steps, as the edit log says."""
    first = session.first.get(name, session.routine.hypers[name].default)
    found = np.full(len(steps), float(first))
    for edit in sorted((edit for edit in session.edits if edit.target == name), key=lambda edit: edit.step):
        found[steps >= edit.step] = float(edit.value)
    return found


def known(steps: NDArray[Any], values: NDArray[Any]) -> dict[str, Any]:
    """Steps and values without those that were not measured."""
    known = np.isfinite(values)
    return {"steps": steps[known], "values": values[known]}

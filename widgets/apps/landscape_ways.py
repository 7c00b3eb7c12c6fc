"""What Landscape works out of the ways of its trainings: averages of their weights, their geometry, paths between."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from widgets.apps.background import Watch
from widgets.apps.landscape_picture import CHECKPOINT, FISHER, HALF, MEAN, MOVING, Track
from widgets.apps.training_measures import score
from workbench import Hyper, landscapes
from workbench.problems.losses import OF_CLASSES
from workbench.problems.networks import MLP

MEMORY = Hyper(
    50.0, 1, 1e6, "log", (1, 5000), kind="init", name="memory", unit="steps",
    doc="Of the exponential moving average, chosen afterwards: the mean age of what is averaged is memory − 1 steps.",
)  # fmt: skip
MATCHINGS = {
    "weights": landscapes.weight_matching,
    "activations": landscapes.activation_matching,
    "the loss half-way": landscapes.straight_through_matching,
}
"""By what units are matched: a function that gives their orders."""
STATES = range(1, 7)
"""Numbers of latent states that are tried."""
LEAST = 12
"""Kept states of a way from which phases are looked for."""


class Average(NamedTuple):
    """A point made of others: its name, whose it is (-1: of all together), its marker in the picture, what it is worth.

    `loss` and its standard error are over the samples in view; `heldout` and `score` over all held-out samples.
    """

    name: str
    training: int
    marker: str
    point: Tensor
    loss: float = float("nan")
    error: float = float("nan")
    heldout: float = float("nan")
    score: float = float("nan")


WORTH = {
    "loss": ("loss", "Mean loss over the samples in view."),
    "error": ("± std. error", "Standard error of that mean over the samples."),
    "heldout": ("held-out loss", "Mean loss over all held-out samples."),
    "score": ("held-out score", "Share of held-out samples classified right; of values, R²."),
}


def points_made(
    scene: Any, track: Track, labels: Sequence[str], memory: float, further: Sequence[tuple[str, Tensor]], watch: Watch
) -> list[Average]:
    """Where every training stands, averages along its way, averages of all that stand, and checkpoints."""
    half = len(track.steps) // 2
    steps, found = track.steps.tolist(), []
    for i, label in enumerate(labels):
        way = track.points[i]
        found += [
            Average(f"{label} as it stands", i, "", way[-1]),
            Average(
                f"{label}: mean of {len(way) - half} kept from step {steps[half]:,}",
                i,
                HALF,
                landscapes.swa(way[half:]),
            ),
            Average(f"{label}: moving average of {memory:,.3g}", i, MOVING, landscapes.ema(way, memory, steps)),
        ]
    if len(labels) > 1:
        ends = track.points[:, -1]
        fishers = torch.stack([information(scene, end, watch) for end in ends])
        found += [
            Average(f"mean of {', '.join(labels)}", -1, MEAN, landscapes.swa(ends)),
            Average(f"Fisher-weighted {', '.join(labels)}", -1, FISHER, landscapes.fisher_average(ends, fishers)),
        ]
    return found + [Average(f"checkpoint {name}", -1, CHECKPOINT, point) for name, point in further]


def information(scene: Any, x: Tensor, watch: Watch) -> Tensor:
    """The Fisher diagonal at a point; for other losses than cross-entropy the mean squared gradient of a sample."""
    labels = "model" if scene.loss_given == OF_CLASSES[0] else "data"
    return landscapes.fisher(scene, x, labels=labels, watch=lambda share: watch(0.0)).value


def worth(scene: Any, heldout: Any, data: Any, made: list[Average], watch: Watch) -> Iterator[list[Average]]:
    """The same with what they are worth, known one after another."""
    for i, one in enumerate(made):
        watch(i / len(made))
        at = one.point.unsqueeze(0)
        loss, error = landscapes.losses(scene, at)
        other, _ = landscapes.losses(heldout, at)
        with torch.no_grad():
            right = score(data, heldout.outputs(at)[0], heldout.targets)
        made[i] = one._replace(loss=float(loss), error=float(error), heldout=float(other), score=right)
        yield list(made)


def shapes(scene: Any, track: Track, watch: Watch) -> Iterator[tuple[str, Any]]:
    """("geometry", its record), then, of ways long enough, ("phases", latent states of their weights' metrics)."""
    steps = track.steps.tolist()
    yield "geometry", landscapes.geometry(track.points, steps, watch=landscapes.within(watch, 0.0, 0.2))
    if len(steps) >= LEAST:
        metrics = landscapes.weight_metrics(track.points, scene.space, steps)
        part = landscapes.within(watch, 0.2, 1.0)
        yield "phases", landscapes.segment(metrics, states=STATES, restarts=2, watch=part)


def between(scene: Any, a: Tensor, b: Tensor, watch: Watch) -> Iterator[tuple[str, Any]]:
    """(what it is, path) from a to b: straight, with units matched where they can be, trained, and by dropout."""
    matchings = MATCHINGS if isinstance(scene.model, MLP) else {}
    parts = len(matchings) + 2
    *some, first, second = (landscapes.within(watch, i / parts, (i + 1) / parts) for i in range(parts))
    yield "straight line", landscapes.line(a, b)
    for (words, match), part in zip(matchings.items(), some, strict=True):
        moved = landscapes.permute(scene, b, match(scene, a, b, watch=part))
        yield f"straight after matching units by {words}", landscapes.line(a, moved)
    yield "trained curve (quadratic Bézier)", landscapes.bezier(scene, a, b, steps=150, watch=first)
    yield "trained bend (polygon)", landscapes.polygon(scene, a, b, steps=150, watch=second)
    if isinstance(scene.model, MLP) and scene.model.depth == 1:
        yield "over halves of the units (dropout)", landscapes.dropout_path(scene, a, b)


def marks(made: Sequence[Average]) -> list[tuple[str, int, Tensor]]:
    """(marker, palette index, point) of what the picture shows beside the ways."""
    return [(one.marker, one.training if one.training >= 0 else 7, one.point) for one in made if one.marker]

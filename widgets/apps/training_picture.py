"""The picture of the Training app: where a model puts each held-out sample, which it gets wrong, and the worst of them.

Classes have corners on a circle, and a sample stands at Σ p(class) · corner, so a sure and right answer lies in its own
corner. Two classes share one axis, p of the second class. Values are drawn as predicted against true.
"""

import dataclasses
import html
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from widgets.player import Frame, Images, LegendEntry, Marker, Paths, Points, Scene
from workbench import Data, Key

MOST = 2000
"""Held-out samples drawn; of more, the first ones, and the caption says so."""
TILES = 60
SHAPES = ("dot", "square", "triangle", "diamond", "plus", "star", "ring")
"""Marks of the classes: colour is the class modulo 8, shape modulo 7, so 56 classes differ. A cross means wrong."""
EDGE, ROOM = 1.34, 0.16
"""How far the picture reaches beyond the circle, and further below for the caption."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of the drawn samples.

    Args:
        p: probabilities (samples, classes) from a softmax of the outputs, or None for values; NaN where not finite.
        guess: the class of the highest output, or the predicted value.
        truth: the true class or value.
        cost: -log p(true class), or the squared error; inf where the outputs are not finite.
    """

    p: NDArray[np.float64] | None
    guess: NDArray[Any]
    truth: NDArray[Any]
    cost: NDArray[np.float64]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which are classified wrong (none where the answer is a value)."""
        return self.guess != self.truth if self.p is not None else np.zeros(len(self.truth), dtype=bool)


class Picture:
    """Scenes and frames of the held-out part of one data set.

    Args:
        data: where the samples are from; its tensors stand where the model is.
        outputs: numbers the model answers with for one sample.

    Raises:
        ValueError: when that many answers cannot be read as classes or as one value.
    """

    def __init__(self, data: Data, outputs: int) -> None:
        self.data, self.classes = data, data.classes
        if self.classes and outputs != len(self.classes):
            raise ValueError(f"expected a model with one output a class ({len(self.classes)}), got {outputs} outputs")
        self.count, self.total = min(len(data.y_test), MOST), len(data.y_test)
        self.x = data.x_test[: self.count]
        self.truth = data.y_test[: self.count].cpu().numpy().reshape(self.count, -1)[:, 0]
        u = Key(0).stream("jitter").uniform((self.count,), like=torch.empty(0, dtype=torch.float64))
        self.jitter = u.numpy()
        turn = 2 * np.pi * np.arange(len(self.classes)) / max(1, len(self.classes))
        self.corners = np.stack([np.sin(turn), np.cos(turn)], 1)

    @property
    def kind(self) -> str:
        """ "corners" for three classes and more, "axis" for two, "values" for numbers."""
        return "values" if not self.classes else "axis" if len(self.classes) == 2 else "corners"

    def read(self, outputs: torch.Tensor) -> Answers:
        """The answers in the model's outputs (samples, …), of at least the drawn samples."""
        raw = outputs[: self.count].detach().cpu().double().numpy().reshape(self.count, -1)
        if not self.classes:
            with np.errstate(all="ignore"):
                cost = np.square(raw[:, 0] - self.truth)
            return Answers(None, raw[:, 0], self.truth, np.where(np.isfinite(cost), cost, np.inf))
        with np.errstate(all="ignore"):
            logp = raw - raw.max(1, keepdims=True)
            logp = logp - np.log(np.exp(logp).sum(1, keepdims=True))
        cost = -logp[np.arange(self.count), self.truth]
        guess = np.where(np.isfinite(raw).all(1), raw.argmax(1), -1)
        return Answers(np.exp(logp), guess, self.truth, np.where(np.isfinite(cost), cost, np.inf))

    # ---- what stays

    def scene(self) -> Scene:
        """Corners, axis or diagonal, with the rule in words."""
        if self.kind == "corners":
            return self._corner_scene()
        return self._axis_scene() if self.kind == "axis" else self._value_scene()

    def _corner_scene(self) -> Scene:
        named = len(self.classes) <= 24
        marks = [
            Marker(1.2 * x, 1.2 * y, self.classes[c][:20] if named else "", SHAPES[c % 7], c % 8)
            for c, (x, y) in enumerate(self.corners.tolist())
        ]
        ring = np.concatenate([self.corners, self.corners[:1]])
        return Scene(
            x=(-EDGE, EDGE), y=(-EDGE - ROOM, EDGE), equal=True, markers=marks, title=self._title(),
            contours=Paths(ring[:, 0], ring[:, 1]), legend=[LegendEntry("wrong", 7, "cross")],
            x_label="place = Σ p(class) · corner; colour: true class", y_label="",
        )  # fmt: skip

    def _axis_scene(self) -> Scene:
        first, second = (name[:30] for name in self.classes)
        legend = [LegendEntry(f"truly {name[:40]}", c, SHAPES[c]) for c, name in enumerate(self.classes)]
        return Scene(
            x=(-0.04, 1.04), y=(-0.15, 1.05), title=self._title(), legend=[*legend, LegendEntry("wrong", 7, "cross")],
            contours=Paths([0.5, 0.5], [-0.15, 1.05]), y_label="spread at random, means nothing",
            x_label=f"p({second}): left of ½ the model says {first}, right of it {second}",
        )  # fmt: skip

    def _value_scene(self) -> Scene:
        low, high = float(self.truth.min()), float(self.truth.max())
        room = 0.15 * (high - low) or 1.0
        ends = (low - room, high + room)
        unit = f" ({self.data.unit})" if self.data.unit else ""
        line = Paths(ends, ends)
        return Scene(
            x=ends, y=ends, equal=True, title=self._title(), contours=line,
            x_label=f"true value{unit}; on the line the prediction is right", y_label=f"predicted{unit}",
        )  # fmt: skip

    def _title(self) -> str:
        return f"{self.count:,} of {self.total:,} held-out samples" if self.count < self.total else "Held-out samples"

    # ---- what moves

    def places(self, answers: Answers) -> tuple[NDArray[Any], NDArray[Any]]:
        """(x, y) of every drawn sample."""
        if answers.p is None:
            return answers.truth, answers.guess
        if self.kind == "axis":
            return answers.p[:, 1], self.jitter
        with np.errstate(all="ignore"):
            x, y = (answers.p @ self.corners).T
        return x, y

    def frame(self, answers: Answers, step: int, caption: str, picked: int | None = None) -> Frame:
        """Every sample at its place, one layer a class; the picked one in a ring."""
        x, y = self.places(answers)
        look = {"radius": 4.5 if self.count <= 600 else 3.0, "opacity": 0.85}
        layers = []
        if answers.p is None:
            layers.append(Points(x, y, colour=0, **look))
        for c in range(len(self.classes)):
            mine = self.truth == c
            if mine.any():
                style = {"colour": c % 8, "marker": SHAPES[c % 7], "crossed": answers.wrong[mine]}
                layers.append(Points(x[mine], y[mine], **style, **look))
        chosen = [] if picked is None else [picked]
        layers.append(Points(x[chosen], y[chosen], colour=7, radius=9, marker="ring"))
        return Frame(step=step, layers=layers, caption=caption)

    def nearest(self, answers: Answers, x: float, y: float) -> int | None:
        """The sample nearest to a place of the picture, if one is within a twentieth of its side."""
        xs, ys = self.places(answers)
        scene = self.scene()
        with np.errstate(all="ignore"):
            apart = np.hypot((xs - x) / (scene.x[1] - scene.x[0]), (ys - y) / (scene.y[1] - scene.y[0]))
        if not np.isfinite(apart).any():
            return None
        found = int(np.nanargmin(apart))
        return found if apart[found] < 0.05 else None

    # ---- in words

    def name(self, c: Any) -> str:
        """A class by its number as a person reads it; a value as it is."""
        if not self.classes:
            return f"{c:.3g}"
        return self.classes[int(c)] if c >= 0 else "not finite"

    def describe(self, answers: Answers, i: int) -> str:
        """One sample in words."""
        true, guess = self.name(answers.truth[i]), self.name(answers.guess[i])
        sure = "" if answers.p is None else f", p({true[:20]}) = {answers.p[i, answers.truth[i]]:.3f}"
        return f"sample {i}: true {true[:30]}, predicted {guess[:30]}{sure}"

    # ---- mistakes

    def order(self, answers: Answers, picked: int | None = None) -> list[int]:
        """Samples to show, at most 60: the picked one, then those classified wrong (or all values), worst first."""
        pool = np.flatnonzero(answers.wrong) if self.classes else np.arange(self.count)
        worst = pool[np.argsort(-answers.cost[pool], kind="stable")].tolist()
        first = [] if picked is None else [picked]
        return (first + [i for i in worst if i != picked])[:TILES]

    def headline(self, answers: Answers, picked: int | None = None) -> str:
        """How many are wrong, and how many of them are shown."""
        if not self.classes:
            return f"The {min(TILES, self.count)} worst of {self.count:,} held-out samples, by squared error"
        wrong = int(answers.wrong.sum())
        if not wrong:
            return f"None: all {self.count:,} held-out samples are classified right"
        shown = f", the worst {TILES} shown" if wrong > TILES else ", worst first"
        return f"{wrong:,} of {self.count:,} held-out samples classified wrong{shown} (true → predicted)"

    def tiles(self, answers: Answers, picked: int | None = None) -> Images | None:
        """The mistakes as pictures, "true → predicted" under each; None when the data are no pictures."""
        if self.data.pixels is None:
            return None
        rows = self.order(answers, picked)
        grey = np.clip(np.rint(255 * self.data.pixels[rows]), 0, 255).astype(np.uint8)
        pairs = [(self.name(answers.truth[i])[:8], self.name(answers.guess[i])[:8]) for i in rows]
        colours = np.array([self.truth[i] % 8 for i in rows], dtype=np.int64)
        size = self.data.pixels.shape[1:]
        return Images(grey.reshape(-1, *size), [f"{a} → {b}" for a, b in pairs], colour=colours)

    def table(self, answers: Answers, picked: int | None = None) -> str:
        """The worst samples as an HTML table."""
        what = ("true", "predicted", "p(true class)") if self.classes else ("true", "predicted", "squared error")
        rows = []
        for i in self.order(answers, picked):
            number = math.exp(-answers.cost[i]) if self.classes else answers.cost[i]
            cells = (i, self.name(answers.truth[i]), self.name(answers.guess[i]), f"{number:.3g}")
            rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
        heads = "".join(f"<th>{head}</th>" for head in ("held-out sample", *what))
        return f"<table class='plain'><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def confusion(self, answers: Answers) -> str:
        """How often each true class (row) is called what (column), as an HTML table shaded by the row's share."""
        k = len(self.classes)
        if not 2 <= k <= 20:
            return "<p>A confusion table is for 2 to 20 classes; these data have none or more.</p>"
        counts = np.zeros((k, k), dtype=int)
        known = answers.guess >= 0
        np.add.at(counts, (self.truth[known], answers.guess[known]), 1)
        share = counts / np.maximum(1, counts.sum(1, keepdims=True))
        names = [html.escape(name[:12]) for name in self.classes]
        body = "".join(
            f"<tr><th>{names[i]}</th>" + "".join(_cell(counts[i, j], share[i, j], i == j) for j in range(k)) + "</tr>"
            for i in range(k)
        )
        left = f"; {int((~known).sum())} with outputs that are not finite left out" if not known.all() else ""
        head = "".join(f"<th>{name}</th>" for name in names)
        caption = f"<caption>rows: true class, columns: predicted, held-out samples{left}</caption>"
        head = f"<thead><tr><th></th>{head}</tr></thead>"
        return f"<table class='plain grid'>{caption}{head}<tbody>{body}</tbody></table>"


def _cell(count: int, share: float, right: bool) -> str:
    """One cell: right answers in blue, wrong ones in vermilion, as strong as their share of the row."""
    colour = "0,114,178" if right else "213,94,0"
    strength = 0.0 if not count else 0.12 + 0.5 * share
    return f"<td style='background:rgba({colour},{strength:.2f})'>{count or ''}</td>"

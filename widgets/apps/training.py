"""Training: a network learns from real data or your own, while you turn what you like; rewind, branch, compare.

What the page shows of it is in `training_view`, the picture in `training_picture`, measurements in `training_measures`.
"""

import functools
import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

import workbench as wb
from widgets.apps.desk import FRAME_SECONDS
from widgets.apps.settings import SEEDS, check_whole
from widgets.apps.slices import VIEW, SlicingDesk
from widgets.apps.training_measures import SHARE, Measures
from widgets.apps.training_picture import Answers, Picture
from widgets.player import Frame, Scene, export_html
from workbench.catalogue import find
from workbench.problems.data import Dataset, as_data, read
from workbench.problems.networks import MLP
from workbench.training import Training

OWN = "own"
BACK = 50
"""Steps that the way out of an explosion goes back."""
WAY_OUT = f"Go back {BACK} steps, then branch with half the rate"
EXPLODED = 1000.0
"""A minibatch loss of this many times the first one (or of 1, if that is more) stops a playing run."""
REPLAYED = 100_000
"""Most steps that opening a link makes."""
FRAMES = 240
"""Most frames of an exported page."""
RECORD_SECONDS = 8.0
FILES = 4
"""Uploaded files a desk holds; the oldest goes first."""


@functools.lru_cache(maxsize=8)
def load(name: str) -> wb.Data:
    """A data set of the catalogue, read once."""
    return cast(Dataset, find("datasets", "a data set", name).make()).load()


class TrainingDesk(SlicingDesk):
    """One model learning.

    Args:
        runs, query: as of every desk.
        model: your own `nn.Module` (its present weights are the start) or anything `wb.training` takes; None is chosen
            by settings.
        loss: "cross_entropy", "mse" or loss(outputs, targets) -> one number; None goes by the data.
        data: your own `Data` or tuple of arrays (x, y) or (x, y, x_test, y_test), or a catalogue name; None is chosen.
        optimizer: a catalogue name, an `Optimizer`, or a `torch.optim.Optimizer` subclass; None is chosen.

    Raises:
        ValueError: when model, loss and data do not go together.
    """

    name = "training"
    title = "Training"
    trains = True

    def __init__(
        self,
        *,
        runs: str | Path = "runs",
        query: Mapping[str, str] | None = None,
        model: Any = None,
        loss: Any = None,
        data: Any = None,
        optimizer: Any = None,
    ) -> None:
        if isinstance(data, tuple | list):
            data = as_data(*data)
        self.own = {"model": model, "loss": loss, "data": data, "optimizer": optimizer}
        self.uploads: dict[str, wb.Data] = {}
        self.awaited: dict[str, str] | None = None
        self.measures = Measures()
        self.curved = self.sliced = False
        """Whether curvature is measured, or the loss around the run drawn: while somebody looks at it."""
        self.picked: int | None = None
        self.trouble = ""
        self._kept: dict[str, Any] = {}
        self._pictures: WeakKeyDictionary[Any, Picture] = WeakKeyDictionary()
        self._watching, self._frame_cost = True, 0.0
        super().__init__(runs=runs, query=query)
        self.do(lambda: None)

    # ---- settings

    def default_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"data": "digits", "model": "mlp", "optimizer": "adam", "seed": 0, **VIEW}
        settings |= {name: hyper.default for name, hyper in MLP.hypers.items()}
        for name in ("model", "data", "optimizer"):
            if self.own[name] is not None:
                settings[name] = self.own[name] if isinstance(self.own[name], str) else OWN
        return settings

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        self._check_data(settings["data"])
        for name, family, what in (("model", "models", "a model"), ("optimizer", "optimizers", "an optimizer")):
            if settings[name] != OWN or self.own[name] is None:
                find(family, what, settings[name])
        for name, hyper in MLP.hypers.items():
            settings[name] = hyper.check(settings[name])
        check_whole(settings, seed=SEEDS)
        self.check_view(settings)
        return settings

    def _check_data(self, name: Any) -> None:
        if isinstance(name, str) and name.startswith("file:"):
            if name not in self.uploads:
                raise ValueError(
                    f"expected the file {file_name(name)!r}, which this run used and a link does not carry; "
                    "upload it again under Data to see the run"
                )
        elif name != OWN or self.own["data"] is None:
            find("datasets", "a data set", name)

    @property
    def data(self) -> wb.Data:
        """The data of the live session."""
        return trained(self.session).data

    def _pick_data(self) -> wb.Data:
        name = self.settings["data"]
        if name in self.uploads:
            return self.uploads[name]
        return self.own["data"] if name == OWN else load(name)

    def _pick_model(self) -> Any:
        if self.settings["model"] == OWN:
            return self.own["model"]
        row = find("models", "a model", self.settings["model"])
        return row.make(**{h["name"]: self.settings[h["name"]] for h in row.hyper if h["kind"] == "init"})

    def build(self) -> wb.Session:
        data, optimizer = self._pick_data(), self.settings["optimizer"]
        loss = self.own["loss"] or ("cross_entropy" if getattr(data, "classes", ()) else "mse")
        routine = wb.training(self._pick_model(), loss, data, self.own["optimizer"] if optimizer == OWN else optimizer)
        first = {name: v for name, v in {**self._kept, **self.first}.items() if _turned(routine, name, v)}
        session = wb.Session(routine, seed=self.settings["seed"], hyper=first, probes=("train", "heldout"))
        self._pictures[routine] = Picture(routine.data, _try(session))
        self.picked, self.trouble, self._watching = None, "", True
        self.begin_slices([""], [self.title_of(optimizer)], session)
        return session

    @staticmethod
    def title_of(optimizer: str) -> str:
        """What an optimizer is called."""
        return next((row.title for row in wb.catalogue("optimizers") if row.name == optimizer), "Your own optimizer")

    def _choose(self, settings: dict[str, Any]) -> None:
        """Other settings; what was turned stays turned where it still exists."""
        same = settings.get("optimizer", self.settings["optimizer"]) == self.settings["optimizer"]
        hyper = self.session.hyper
        self._kept = {name: value for name, value in hyper.items() if same or name == "batch_size"}
        try:
            super()._choose(settings)
        finally:
            self._kept = {}

    # ---- uploads

    def upload(self, name: str, content: bytes) -> None:
        """Learn from a CSV or NPZ file; a file that cannot be read changes nothing and is told by signal "upload"."""
        self.do(lambda: self._upload(name, content))

    def _upload(self, name: str, content: bytes) -> None:
        name = Path(name.replace("\\", "/")).name[:80]
        try:
            data = read(name, content)
            key = f"file:{hashlib.blake2b(content, digest_size=4).hexdigest()}:{name}"
            self.uploads[key] = data
            self._use(key)
        except ValueError as error:
            self.tell("upload", f"{name}: {error}", "error")
            return
        while len(self.uploads) > FILES:
            del self.uploads[next(old for old in self.uploads if old != self.settings["data"])]
        what = f"{len(data.classes)} classes" if data.classes else "values"
        words = f"{name}: {len(data.x):,} samples to train on, {len(data.x_test):,} held out, "
        self.tell("upload", f"{words}{data.x.shape[1]:,} inputs, {what}.", "success")

    def _use(self, key: str) -> None:
        """Start on an uploaded file; or, when a link waits for it, live the link's run."""
        awaited, self.awaited = self.awaited, None
        if awaited is not None and awaited["data"] == key:
            self._reload(awaited)
            return
        try:
            self._choose({"data": key})
        except ValueError:
            self.awaited = awaited
            del self.uploads[key]
            raise
        if awaited is not None and file_name(awaited["data"]) == file_name(key):
            self.tell("message", "This file differs from the one the link's run used: this is a new run.", "warning")

    # ---- links

    def _open(self, query: dict[str, str]) -> None:
        data = query.get("data", "")
        self.awaited = dict(query) if data.startswith("file:") and data not in self.uploads else None
        super()._open(query)

    def _reload(self, query: dict[str, str]) -> None:
        """Another link in place of what is on the desk."""
        old = self.lines
        self._open(query)
        for line in old:
            line.session.close()
        self.live = 0
        for error in self.opening_errors:
            self.tell("message", error, "warning")
        self.tell("settings")

    def _reopen(self, name: str) -> None:
        super()._reopen(name)
        for error in self.opening_errors:
            self.tell("message", error, "warning")

    def _relive(self, session: wb.Session, edits: Any, end: int) -> None:
        """Live a link's run, to a cap, and measure it here and there."""
        if end > REPLAYED:
            words = f"The link's run has {end:,} steps; opening a link makes at most {REPLAYED:,}."
            self.tell("message", words, "warning")
        kept = [edit for edit in edits if edit[0] <= REPLAYED]
        super()._relive(session, kept, min(end, REPLAYED))
        self.fill(session)

    def fill(self, session: wb.Session, marks: int = 60) -> None:
        """Measure the past of a session at evenly spaced steps, as if it had been watched."""
        with session.branch() as twin:
            for step in np.unique(np.linspace(0, session.index, marks).astype(int)):
                if self.closed or self._stop:
                    return
                self.measures.take(twin.seek(int(step)), into=session)

    # ---- commands

    def _toggle(self) -> None:
        self._watching, self.trouble = not self._exploded_here(), ""
        super()._toggle()

    def retreat(self) -> None:
        """Pause and go 50 steps back."""
        self.back(BACK)

    def halve(self) -> None:
        """Branch here and go on with half the rate."""
        self.do(self._halve)

    def _halve(self) -> None:
        session = self.session
        if "lr" not in session.hyper:
            raise ValueError(f"expected an optimizer with a rate lr to halve, got {self.settings['optimizer']!r}")
        if session.status != ["ok"]:
            raise ValueError(f"expected a sound state to branch from, got one that {session.status[0]}: go back first")
        if self._exploded_here():
            raise ValueError(f"expected a sound state to branch from, got an exploded loss: go back {BACK} steps first")
        self._branch()
        self.session.set(lr=session.hyper["lr"] / 2)

    def _branch(self) -> None:
        parent = self.session
        super()._branch()
        self.measures.share_past(parent, self.session)
        self.trouble = ""

    def click(self, x: float, y: float) -> None:
        """Pick the sample at a place of the picture; elsewhere, none."""
        self.do(lambda: self._pick(x, y))

    def _pick(self, x: float, y: float) -> None:
        found = self.held_out().nearest(self.answers(), x, y)
        self.picked = None if found == self.picked else found

    # ---- what is shown

    def held_out(self, session: wb.Session | None = None) -> Picture:
        """How the held-out samples of a session are drawn."""
        return self._pictures[(session or self.session).routine]

    def answers(self, session: wb.Session | None = None) -> Answers:
        """What the model of a session says of the drawn samples now."""
        session = session or self.session
        picture = self.held_out(session)
        return picture.read(trained(session).outputs(session.state, picture.x)[0])

    def scene(self) -> Scene:
        return self.held_out().scene()

    def frame(self, session: wb.Session | None = None) -> Frame:
        began = time.perf_counter()
        session = session or self.session
        step, state = session.now
        picture = self.held_out(session)
        outputs = trained(session).outputs(state, picture.x)
        answers = picture.read(outputs[0])
        words = [f"step {step:,}", *self._caption(session, picture, outputs, answers)]
        picked = self.picked if session is self.session else None
        if picked is not None:
            words.append(picture.describe(answers, picked))
        made = picture.frame(answers, step, " · ".join(words)[:240], picked)
        self._frame_cost = 0.8 * self._frame_cost + 0.2 * (time.perf_counter() - began)
        self.frame_seconds = max(FRAME_SECONDS, self._frame_cost / SHARE)
        return made

    @staticmethod
    def _caption(session: wb.Session, picture: Picture, outputs: Any, answers: Answers) -> list[str]:
        """Score and loss of the drawn samples in words."""
        targets = trained(session).data.y_test[: picture.count]
        loss = float(trained(session).loss(outputs, targets))
        some = f" of the {picture.count:,} drawn" if picture.count < picture.total else ""
        words = [f"held-out loss {loss:.3g}{some}" if math.isfinite(loss) else "held-out loss not finite"]
        if picture.classes:
            words.insert(0, f"held-out accuracy {100 * (1 - answers.wrong.mean()):.1f} %{some}")
        return words

    def ending(self) -> str:
        return "the loss exploded here" if self.trouble else super().ending()

    @property
    def advice(self) -> str:
        """What to do when a run has stopped by itself; "" otherwise."""
        if self.trouble or self.session.status == ["ok"]:
            return self.trouble
        return f"The numbers are no longer finite here ({self.session.status[0]}). {WAY_OUT}."

    @property
    def costs(self) -> str:
        """What measuring costs, in words."""
        spent = self.measures
        share = 100 * min(1.0, spent.share)
        return f"measured in {1000 * spent.cost:.1f} ms at each marked step, {share:.0f} % of the time"

    def tick(self, session: wb.Session) -> None:
        self.measures.most = self.curvature.most = SHARE / 2 if self.curved else SHARE  # together at most SHARE
        if not session.playing or self.measures.due():
            self.measures.take(session)
        if self.curved:
            self.measure_curvature(session)
        if self.sliced:
            self.slice_if_due(session)

    # ---- explosions

    def _tick(self, session: wb.Session) -> None:
        if session is self.session and not self.closed:
            self._watch(session)
        super()._tick(session)

    def _limit(self, session: wb.Session) -> float:
        _, arrays = session.trace()
        first = abs(float(arrays["loss"][0, 0])) if arrays and len(arrays["loss"]) else 1.0
        return EXPLODED * max(1.0, first) if math.isfinite(first) else EXPLODED

    @staticmethod
    def _loss_at(session: wb.Session) -> float:
        """Size of the minibatch loss of the last step made; infinite when it is not a number."""
        loss = session.last_info.get("loss")
        size = 0.0 if loss is None else abs(float(loss))
        return size if math.isfinite(size) else math.inf

    def _watch(self, session: wb.Session) -> None:
        """Stop a run whose loss has exploded, at the first step where it had."""
        size = self._loss_at(session)
        if size <= 1.0 or size <= self._limit(session):
            self._watching = True
            return
        if not self._watching:
            return
        self._watching = False
        session.pause()
        steps, arrays = session.trace()
        losses, limit = np.abs(arrays["loss"][:, 0]), self._limit(session)
        here = np.searchsorted(steps, session.index)
        sound = np.flatnonzero(losses[:here] <= limit)
        at = int(sound[-1]) + 1 if len(sound) else 0
        step, loss = int(steps[min(at, len(steps) - 1)]), float(arrays["loss"][min(at, len(steps) - 1), 0])
        session.seek(step)
        value = f"{loss:.3g}" if math.isfinite(loss) else "not finite"
        self.trouble = (
            f"Stopped: the minibatch loss exploded, it is {value} at step {step:,}, above {limit:.3g} "
            f"({EXPLODED:,.0f} times the first). {WAY_OUT}; Play goes on regardless."
        )

    def _show(self) -> None:
        if self.trouble and not self._exploded_here():
            self.trouble = ""
        super()._show()

    def _exploded_here(self) -> bool:
        """Whether the live session still stands where its loss exploded."""
        session = self.session
        steps, arrays = session.trace()
        at = int(np.searchsorted(steps, session.index))
        return bool(arrays) and at < len(steps) and not abs(arrays["loss"][at, 0]) <= self._limit(session)

    # ---- to take away

    def still(self) -> "TrainingDesk":
        still = cast(TrainingDesk, super().still())
        still.measures = self.measures.beside(self.session, still.session)
        return still

    def script(self) -> str:
        text = super().script()
        name = self.settings["data"]
        if not name.startswith("file:"):
            return text
        note = f"# Put the file {file_name(name)} beside this script: its samples are not in here."
        return text.replace("import workbench as wb\n", f"import workbench as wb\n\n{note}\n", 1)

    def record(self) -> Any:
        """The live run as a record: as many steps measured as fit into about eight seconds, at most 2,000."""
        session = self.session
        replay = session.index * max(session.seconds_per_step, 1e-4)
        room = (RECORD_SECONDS - replay) / max(self.measures.cost, 1e-4)
        every = max(1, math.ceil(session.index / min(2000, max(20, room))))
        if replay + session.index / every * self.measures.cost > 1:
            self.tell("message", f"Making the record: one step in {every:,} is measured.", "info")
        return session.record(every=every, watch=self.going)

    def weights(self) -> dict[str, Any]:
        """The blocks of weights by name, as a checkpoint."""
        routine = trained(self.session)
        blocks = routine.space.blocks(self.session.state.x[0])
        return dict(zip(routine.model.names, blocks, strict=True))

    def html(self) -> str:
        live = self.session
        end = live.index
        count = min(FRAMES - 1, end)
        steps = sorted({round(i * end / max(1, count)) for i in range(count + 1)})
        frames = []
        with live.branch() as twin:
            for step in steps:
                frames.append(self._frame_at(twin, step))
                self.measures.take(twin, into=live)
        return export_html(self.scene(), frames, title=self.title, series=self.series(steps), meta=self.meta())

    def series(self, steps: list[int]) -> dict[str, Any]:
        """Losses at these steps; a step that was not measured is a gap."""
        found = [self.measures.at(self.session, step) for step in steps]
        words = {"training loss": "train_loss", "held-out loss": "heldout_loss"}
        return {label: [getattr(row, name) if row else float("nan") for row in found] for label, name in words.items()}

    def meta(self) -> dict[str, Any]:
        session, data = self.session, self.data
        row = self.measures.take(session)
        score = f"held-out {'accuracy' if data.classes else 'R²'}"
        about = {
            "data": f"{data.name}: {len(data.x):,} samples to train on, {len(data.x_test):,} held out",
            "steps": session.index,
            "held-out loss at the end": f"{row.heldout_loss:.4g}",
            f"{score} at the end": f"{row.heldout_score:.4g}",
            "picture": "each mark is a held-out sample; losses below are over all training and all held-out samples",
        }
        return {**super().meta(), **{name: str(value) for name, value in about.items()}}

    def query(self) -> dict[str, str]:
        found = super().query()
        return {**self.awaited} if self.awaited is not None and not self.session.index else found


def trained(session: wb.Session) -> Training:
    """What a session of this app runs."""
    return cast(Training, session.routine)


def file_name(key: str) -> str:
    """The name of an uploaded file, out of what settings call it."""
    return key.split(":", 2)[-1]


def _turned(routine: Any, name: str, value: Any) -> bool:
    """Whether a value is legal there and not the default."""
    hyper = routine.hypers.get(name)
    try:
        return hyper is not None and hyper.check(value) != hyper.default
    except ValueError:
        return False


def _try(session: wb.Session) -> int:
    """Numbers the model answers with for one sample, found by asking it.

    Raises:
        ValueError: when model, loss and data do not go together.
    """
    routine = trained(session)
    inputs, targets = routine.data.x_test[:2], routine.data.y_test[:2]
    try:
        outputs = routine.outputs(session.state, inputs)
        routine.loss(outputs, targets)
    except (RuntimeError, TypeError, IndexError) as error:
        shapes = f"{tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
        raise ValueError(f"expected a model and a loss for inputs of shape {shapes}, got: {error}") from error
    return outputs[0].reshape(len(inputs), -1).shape[1]


def page(query: Mapping[str, str], runs: str | Path) -> Any:
    """One visitor's page."""
    from widgets.apps.training_view import TrainingShell

    return TrainingShell(TrainingDesk(runs=runs, query=query))

"""Watching a training loop that is not ours: any module, any `torch.optim.Optimizer`, the loop unchanged.

    with wb.watch(model, optimizer, loss=criterion, data=(x, y), probes=["sharpness"], path="run.zarr") as run:
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()
    run.record()

The loop computes the same bits as without: watching only reads, and probes work on a copy of the model.
"""

import contextlib
import copy
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from workbench.landscapes.landscape import ModelLandscape, landscape
from workbench.record import save
from workbench.routine import unknown
from workbench.watching.measures import Measure, Norms
from workbench.watching.probes import PROBES, Probe, aside
from workbench.watching.series import Series
from workbench.watching.written import refuse_foreign, written

LIVE_SECONDS = 0.2
FIXED, WRITING = 0.25, 0.25
"""Shares of the budget left for the hooks themselves and for writing; the rest is divided between the measures."""
POINTS_ROOM = 64 << 20


class Watch:
    """A watched loop; made by `watch`, and used as a context. Nothing is hooked outside of it.

    Attributes:
        index: optimizer steps made so far.
        share: which part of the time went into watching, 0 to 1, so far.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, given: dict[str, Any]) -> None:
        self.model, self.optimizer, self.given = model, optimizer, given
        self.loss, self.path, self.budget = given["loss"], given["path"], given["budget"]
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [p for _, p in model.named_parameters()]
        self.trained = [p.requires_grad for p in self.parameters]
        self.index, self.series = 0, {name: Series() for name in ("loss", "lr")}
        self.norms, self.points = Norms(self.parameters, given["room"] / 4), Series(given["room"])
        self._measures = self._planned(given["probes"])
        self._losses: list[Tensor] = []
        self._logged: dict[str, Any] = {}
        self._rates: tuple = ()
        self._listeners: dict[Callable[[Watch], Any], float] = {}
        self._hooks: list[Any] = []
        self._held: ModelLandscape | None = None
        self._busy = False
        self._due: list[Measure] = []
        self._began = self._flushed = self._told = time.perf_counter()
        self._spent = self._elapsed = self._writing = self._telling = 0.0

    def _planned(self, probes: dict[str, Probe]) -> list[Measure]:
        part = None if self.budget is None else self.budget * (1 - FIXED - WRITING * (self.path is not None))
        few = part if part is None else part / (2 if probes else 1)
        each = part if part is None else part / (2 * max(len(probes), 1))
        every = self.given["every"]
        plans = [Measure("norms", every, None if few is None else few * 0.7)]
        plans.append(Measure("points", every, None if few is None else few * 0.3))
        return plans + [Measure(name, every, each, probe) for name, probe in probes.items()]

    def __deepcopy__(self, memo: Any) -> "Watch":
        return self  # a model is copied with its hooks, among which may be this one's

    # ---- the context

    def __enter__(self) -> "Watch":
        if self._hooks:
            raise RuntimeError("expected one `with` at a time, got a loop that is being watched already")
        self._began = self._flushed = self._told = time.perf_counter() - self._elapsed
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]
        if isinstance(self.loss, nn.Module):
            self._hooks.append(self.loss.register_forward_hook(self._heard))
        if self.index == 0:
            self.points.add(0, self.point())
        return self

    def __exit__(self, kind: Any, error: Any, where: Any) -> None:
        try:
            self.stop()
        except Exception as failure:  # noqa: BLE001 - the loop's own exception is the one to be seen
            if error is None:
                raise
            self._say(f"the record was not written ({failure}); `wb.save(run.record(), path)` writes it elsewhere")

    def stop(self) -> None:
        """End watching, and write the record where there is a path; the loop goes on unwatched."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._elapsed = time.perf_counter() - self._began
        if self.path is not None:
            save(self.record(), self.path)

    # ---- what the loop calls

    def _heard(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The loss module was called: by training when its result has a gradient, else by an evaluation."""
        if self._busy or module is not self.loss or not isinstance(output, Tensor) or not output.requires_grad:
            return
        self._losses.append(output.detach().mean() if output.ndim else output.detach().clone())

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> Any:
        with self._counted():
            now = time.perf_counter() - self._began
            self._due = [measure for measure in self._measures if measure.due(self.index + 1, now)]
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            norms = self._due[0] if self._due and self._due[0].name == "norms" else None
            if norms is not None:
                with self._guarded(norms):
                    self.norms.before(getattr(optimizer, "grad_scale", None), gradients=not callable(closure))
        if not callable(closure):
            return None
        own = self._closure(closure, norms)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": own}
        return (args[0], own, *args[2:]), kwargs

    def _closure(self, closure: Callable, norms: Measure | None) -> Callable:
        """The closure, whose first result is the loss before the step, as are its gradients."""
        calls = 0

        def own(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            value = closure(*args, **kwargs)
            calls += 1
            if calls == 1:
                with self._counted():
                    if norms is not None:
                        with self._guarded(norms):
                            self.norms.gradients()
                    if isinstance(value, Tensor | float):
                        first = value.detach().clone() if isinstance(value, Tensor) else value
                        self._logged.setdefault("loss", first)
            return value

        return own

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        with self._counted():
            self.index = step = self.index + 1
            if self._losses:
                self.series["loss"].add(step, self._losses)
                self._losses = []
            for name, value in self._logged.items():
                self.series.setdefault(name, Series()).add(step, value)
            self._logged = {}
            rates = tuple(_rate(group.get("lr", math.nan)) for group in optimizer.param_groups)
            if any(isinstance(rate, Tensor) for rate in rates) or rates != self._rates:
                self._rates = rates
                self.series["lr"].add(step, np.asarray(rates) if not _tensors(rates) else torch.stack(_stacked(rates)))
            for measure in self._due:
                with self._guarded(measure):
                    self._take(measure, step)
            self._outside()

    @contextlib.contextmanager
    def _guarded(self, measure: Measure) -> Iterator[None]:
        """Measuring, timed; what fails is said once and dropped, and the loop goes on."""
        try:
            with measure.timed():
                yield
        except Exception as error:  # noqa: BLE001 - nothing that only looks may end the loop
            self._measures = [other for other in self._measures if other is not measure]
            self._say(f"{measure.name!r} failed at step {self.index} and was dropped: {error}")

    def _take(self, measure: Measure, step: int) -> None:
        measure.last, measure.times = step, measure.times + 1
        if measure.name == "norms" and measure.probe is None:
            self.norms.after(step)
        elif measure.probe is None:
            if self.points.wants(step):
                self.points.add(step, self.point())
        else:
            self._probe(measure, step)

    def _probe(self, measure: Measure, step: int) -> None:
        """Run a probe beside the loop."""
        assert measure.probe is not None
        with aside(self.parameters[0].device):
            here = self.landscape()
            for name, value in measure.probe(here, here.start.unsqueeze(0)).items():
                kept = value.detach().clone() if isinstance(value, Tensor) else value
                self.series.setdefault(name, Series()).add(step, kept)

    def _outside(self) -> None:
        """Tell listeners and write, where it is time and the budget has room."""
        now = time.perf_counter()
        elapsed = now - self._began
        room = math.inf if self.budget is None else self.budget * WRITING * elapsed
        if self._listeners and now - self._told >= LIVE_SECONDS and self._telling <= room:
            self._told = now
            for callback in list(self._listeners):
                try:
                    with aside(self.parameters[0].device):
                        callback(self)
                except Exception as error:  # noqa: BLE001 - nothing that only looks may end the loop
                    self._listeners.pop(callback, None)
                    self._say(f"a listener failed at step {self.index} and was dropped: {error}")
            self._telling += time.perf_counter() - now
        if self.path is not None and now - self._flushed >= self.given["flush"] and self._writing <= room:
            self._elapsed = elapsed
            with self._writes():
                save(self.record(), self.path)

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - nothing that only looks may end the loop
            self._say(f"the record was not written at step {self.index} ({error}); it is tried again")
        self._flushed = time.perf_counter()
        self._writing += self._flushed - began

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Time that goes into watching; losses computed meanwhile are not the loop's."""
        began, self._busy = time.perf_counter(), True
        try:
            with torch.no_grad():
                yield
        finally:
            self._busy = False
            self._spent += time.perf_counter() - began

    def _say(self, words: str) -> None:
        warnings.warn(f"watching: {words}", RuntimeWarning, stacklevel=3)

    # ---- for the one who watches

    @property
    def share(self) -> float:
        """Which part of the time since the start went into watching, 0 to 1."""
        elapsed = time.perf_counter() - self._began if self._hooks else self._elapsed
        return self._spent / elapsed if elapsed else 0.0

    def log(self, **values: Any) -> None:
        """Record numbers of your own, such as `loss=value`: read later, so that a GPU does not wait.

        They count for the last step made, or for the coming one when the last has a value of that name already; so it
        may be called before or after `optimizer.step()`, once a step.
        """
        with self._counted():
            for name, value in values.items():
                value = value.detach().clone() if isinstance(value, Tensor) else float(value)
                series = self.series.setdefault(name, Series())
                if self.index and series.last < self.index:
                    series.add(self.index, value)
                else:
                    self._logged[name] = value

    def listen(self, callback: Callable[["Watch"], Any]) -> Callable[[], None]:
        """Call `callback(run)` from the loop, five times a second at most; returns what ends it."""
        self._listeners[callback] = 0.0
        return lambda: self._listeners.pop(callback, None) and None

    def point(self) -> Tensor:
        """The present weights that are trained, (parameters,): a copy."""
        parts = [p for p, trained in zip(self.parameters, self.trained, strict=True) if trained]
        return torch.cat([p.detach().reshape(-1) for p in parts])

    def trajectory(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps (n,), points (n, parameters)) that were kept, the start among them."""
        return self.points.arrays()

    def record(self) -> xr.Dataset:
        """What was measured so far; dims run, step, group, measured, layer, kept, parameter."""
        return written(self)

    def landscape(self) -> ModelLandscape:
        """The loss over `data` as a landscape that starts at the present weights, with the present buffers.

        Raises:
            ValueError: without `loss` or `data`, or when they do not go together.
        """
        if self.loss is None or self.given["data"] is None:
            raise ValueError("expected loss= and data= where the loop is watched, got none; curvature needs both")
        if self._held is None:
            self._held = self._copied()
        present = dict(self.model.named_buffers())
        buffers = {name: present[name].detach().clone().unsqueeze(0) for name in self._held.buffers}
        return dataclasses.replace(self._held, start=self.point(), buffers=buffers)

    def _copied(self) -> ModelLandscape:
        twin, first = copy.deepcopy(self.model).eval(), self.parameters[self.trained.index(True)]
        for p, trained in zip(twin.parameters(), self.trained, strict=True):
            p.requires_grad_(trained)
        data = self.given["data"]
        if isinstance(data, tuple) and len(data) == 2:
            data = (*data, data[0][:1], data[1][:1])
        made = landscape(twin, copy.copy(_named(self.loss)), data, dtype=first.dtype, device=first.device)
        assert isinstance(made, ModelLandscape)
        return made


def _rate(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, Tensor) else float(rate)


def _tensors(rates: Sequence[Any]) -> bool:
    return any(isinstance(rate, Tensor) for rate in rates)


def _stacked(rates: Sequence[Any]) -> list[Tensor]:
    like = next(rate for rate in rates if isinstance(rate, Tensor))
    return [torch.as_tensor(rate, dtype=like.dtype, device=like.device).reshape(()) for rate in rates]


def _named(loss: Any) -> Any:
    """Plain loss modules by the name that landscapes know; they have single samples without a second look."""
    plain = isinstance(loss, nn.CrossEntropyLoss | nn.MSELoss) and loss.reduction == "mean"
    if plain and isinstance(loss, nn.CrossEntropyLoss):
        plain = loss.weight is None and loss.label_smoothing == 0 and loss.ignore_index == -100
    if plain or loss in (F.cross_entropy, F.mse_loss):
        return "mse" if isinstance(loss, nn.MSELoss) or loss is F.mse_loss else "cross_entropy"
    return loss


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: str | nn.Module | Callable | None = None,
    data: Any = None,
    probes: Sequence[str | Probe] = (),
    path: str | os.PathLike | None = None,
    every: int = 1,
    budget: float | None = 0.2,
    flush: float = 5.0,
    room: float = POINTS_ROOM,
) -> Watch:
    """Watch your own training loop: losses, rates, norms, the path of the weights, and probes, at a bounded cost.

    Recorded at every step: the loss and the learning rate of each group. Norms of gradient, weights and update, the
    weights themselves and probes are taken as often as the budget lets them: what costs much comes seldom. Nothing is
    brought to the host until it is looked at or written.

    Args:
        model: any module. Its parameters are those it has when the watch is made; later ones are not seen.
        optimizer: any `torch.optim.Optimizer`; closures, several groups, groups added later and `GradScaler` are fine.
        loss: the loss module that the loop calls: what it returned between two steps, averaged, is the step's loss.
            Or loss(outputs, targets) or a name, for probes only; then record it by `run.log(loss=value)`. A closure's
            first value is recorded anyhow.
        data: the samples that probes look at, (x, y), or as `wb.training` takes it. Few are quick.
        probes: names ("loss", "sharpness", "trace"; norms are always taken) or functions
            probe(landscape, x) -> {name: number}, where x is the present weights, (1, parameters).
        path: where the record is written: whole and atomically, every `flush` seconds and at the end. After the
            process is killed it opens with everything up to the last time. Each time costs what the whole record
            costs, so as the record grows this comes seldom: writing takes at most a quarter of the budget.
        every: take nothing but loss and rates more often than every so many steps.
        budget: the share of the time that all this may take, 0 to 1; None: no bound, everything every `every` steps.
            Times are the host's: on a GPU, of launching.
        flush: seconds.
        room: bytes for weights kept. When they are full every second point goes, so the path stays evenly spaced.

    Raises:
        ValueError: on an unknown probe, a share or a cadence out of range, a model with nothing to train, or a path
            that holds something else than a record.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"expected a model with parameters to train, got {type(model).__name__} with none")
    if budget is not None and not 0 < budget <= 1:
        raise ValueError(f"expected budget, a share of the time above 0 and up to 1, or None, got {budget}")
    if every < 1 or flush <= 0 or room <= 0:
        raise ValueError(f"expected every, flush and room above zero, got {every}, {flush}, {room}")
    wanted: dict[str, Probe] = {}
    for probe in probes:
        if isinstance(probe, str) and probe not in ("norms", *PROBES):
            raise unknown("a probe", probe, ("norms", *PROBES))
        if probe != "norms":
            name = probe if isinstance(probe, str) else getattr(probe, "__name__", type(probe).__name__)
            wanted[name] = PROBES[probe] if isinstance(probe, str) else probe
    if wanted and (loss is None or data is None):
        raise ValueError(f"expected loss= and data= for the probes {', '.join(wanted)}, got one of them missing")
    if path is not None:
        refuse_foreign(path)
    given = {"loss": loss, "data": data, "probes": wanted, "path": path, "every": every}
    return Watch(model, optimizer, {**given, "budget": budget, "flush": flush, "room": room})

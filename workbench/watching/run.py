"""A watched training loop: hooks on its optimizer and its loss, which only read."""

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from workbench.landscapes.landscape import ModelLandscape, landscape
from workbench.record import save
from workbench.watching.measures import Measure, Norms
from workbench.watching.outlet import Outlet, say
from workbench.watching.probes import Probe, aside
from workbench.watching.series import Series
from workbench.watching.written import written

FIXED, OUTLETS = 0.35, 0.25
"""Shares of the budget left for the hooks themselves and what they slow down unseen, and for writing and
listeners; the measures divide the rest."""


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
        self._hooks: list[Any] = []
        self._held: ModelLandscape | None = None
        self._busy = False
        self._due: list[Measure] = []
        self._began = time.perf_counter()
        self._spent = self._elapsed = 0.0
        self.outlet = Outlet(self, given["flush"], None if self.budget is None else self.budget * OUTLETS)

    def _planned(self, probes: dict[str, Probe]) -> list[Measure]:
        part = None if self.budget is None else self.budget * (1 - FIXED - OUTLETS)
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
        self._began = time.perf_counter() - self._elapsed
        self.outlet.begin()
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
        except Exception as failure:  # the loop's own exception is the one to be seen
            if error is None:
                raise
            say(f"the record was not written ({failure}); `wb.save(run.record(), path)` writes it elsewhere")

    def stop(self) -> None:
        """End watching, and write the record where there is a path; the loop goes on unwatched."""
        if not self._hooks:
            return
        self._elapsed = self.elapsed
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.path is not None:
            save(self.record(), self.path)

    # ---- what the loop calls

    def _heard(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The loss module was called: by training when its result has a gradient, else by an evaluation."""
        if self._busy or module is not self.loss or not isinstance(output, Tensor) or not output.requires_grad:
            return
        began = time.perf_counter()  # not `_counted`, which takes longer than what is counted here
        self._losses.append(output.detach().mean() if output.ndim else output.detach().clone())
        self._spent += time.perf_counter() - began

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> Any:
        with self._counted():
            now = self.elapsed
            full = self.budget is not None and self._spent > self.budget * now and self.index > 0
            self._due = [] if full else [one for one in self._measures if one.due(self.index + 1, now)]
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
                measure.taken(step)
            self.outlet.serve()

    @contextlib.contextmanager
    def _guarded(self, measure: Measure) -> Iterator[None]:
        """Measuring, timed; what fails is said once and dropped, and the loop goes on."""
        try:
            with measure.timed():
                yield
        except Exception as error:  # noqa: BLE001 - nothing that only looks may end the loop
            self._measures = [other for other in self._measures if other is not measure]
            say(f"{measure.name!r} failed at step {self.index} and was dropped: {error}")

    def _take(self, measure: Measure, step: int) -> None:
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

    # ---- for the one who watches

    @property
    def elapsed(self) -> float:
        """Seconds watched."""
        return time.perf_counter() - self._began if self._hooks else self._elapsed

    @property
    def share(self) -> float:
        """Which part of the time since the start went into watching, 0 to 1."""
        return self._spent / self.elapsed if self.elapsed else 0.0

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
        return self.outlet.listen(callback)

    def point(self) -> Tensor:
        """The present weights that are trained, (parameters,): a copy."""
        parts = [p for p, trained in zip(self.parameters, self.trained, strict=True) if trained]
        return torch.cat([p.detach().reshape(-1) for p in parts])

    def trajectory(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps (n,), points (n, parameters)) that were kept, the start among them."""
        steps, points = self.points.arrays()
        return steps, points if len(steps) else self.point().cpu().numpy()[None][:0]

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

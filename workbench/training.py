"""Training: a model, a loss, data and an optimizer, bound. Parameters are (runs, parameters), one flat vector a run."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.descent import guard, value_and_gradient
from workbench.optimizers.base import Optimizer
from workbench.problems.data import Data, Dataset, as_data
from workbench.problems.losses import LOSSES, OF_CLASSES, SLOPES, Loss, Slope, per_run
from workbench.problems.networks import Model, Module
from workbench.routine import RUNNING, Hyper, Key, Probe, Routine, Variable, unknown


class TrainingState(NamedTuple):
    """`x`: parameters (runs, parameters). `method`: the optimizer's state. `k`: steps made, 0-d. `diverged`: per run.

    `buffers`: what the model keeps untrained. `cursor`: samples drawn so far (a plain number: only the host needs it).
    """

    x: Tensor
    method: Any
    k: Tensor
    diverged: Tensor
    buffers: dict[str, Tensor]
    cursor: int


class Batch(NamedTuple):
    """The randomness of a step: sample numbers of each draw, (draws, batch), and the key of the model's own noise."""

    rows: Tensor
    key: Key


class Training(Routine):
    """An optimizer on a model's loss over minibatches. Made by `wb.training`."""

    run_axis = 0
    recorded = ("loss",)

    def __init__(
        self,
        model: Model,
        loss: str | Callable,
        data: Data,
        optimizer: Optimizer,
        *,
        batch_size: int = 128,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        if isinstance(loss, str) and loss not in LOSSES:
            raise unknown("a loss", loss, LOSSES)
        if loss in OF_CLASSES and not data.classes:
            raise ValueError(f"expected data with classes for {loss}, got values in {data.name!r}; use 'mse'")
        if loss == "mse" and data.classes:
            raise ValueError(f"expected data with values for mse, got classes in {data.name!r}; use 'cross_entropy'")
        if loss == "mse" and data.y.ndim == 1:
            data = dataclasses.replace(data, y=data.y.unsqueeze(-1), y_test=data.y_test.unsqueeze(-1))
        self.loss, self.loss_given = LOSSES[loss] if isinstance(loss, str) else per_run(loss, data.y.ndim), loss
        self.slope = SLOPES[loss] if isinstance(loss, str) else taped(self.loss)
        self.model, self.unbound = model.bind(math.prod(data.x.shape[1:]), data.outputs), model
        self.data = self.model.takes(data.to(self.device, dtype), dtype)
        self.method, self.batch_size = optimizer, batch_size
        self.space, self.samples = self.model.space, len(data.x)
        self.host_sync = optimizer.host_sync
        doc = "Samples in each step's gradient."
        high = float(self.samples)
        batch = Hyper(
            min(batch_size, self.samples), 1, high, "integer", kind="shape", unit="samples", doc=doc, name="batch_size"
        )
        self.hypers = {**optimizer.hypers, "batch_size": batch}
        batch.check(batch_size if batch_size != 128 else batch.default)
        self.variables = {
            "loss": Variable((), "loss of the minibatch, mean per sample"),
            "weight_norm": Variable((), "Euclidean norm of all parameters"),
        }
        self.probes = {probe.name: probe for probe in (self._fit("train"), self._fit("heldout"), NORMS, WEIGHTS)}
        self._order: tuple[Key, Tensor] | None = None

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> TrainingState:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        x = self.model.init(key, like) if start is None else self.tensor(start).detach()
        count = sum(torch.Size(shape).numel() for shape in self.space.shapes)
        if x.ndim not in (1, 2) or x.shape[-1] != count:
            raise ValueError(f"expected start to have shape ({count},) or (runs, {count}), got {tuple(x.shape)}")
        if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
            raise ValueError("expected start to be finite, got inf or nan in it")
        x = x.repeat(runs or 1, 1) if x.ndim == 1 else x.clone()
        k = torch.zeros((), dtype=torch.int32, device=self.device)
        diverged = torch.full((x.shape[0],), RUNNING, dtype=torch.int32, device=self.device)
        held = {name: b.to(x if b.is_floating_point() else x.device) for name, b in self.model.buffers(len(x)).items()}
        return TrainingState(x, self.method.init(self.space, x), k, diverged, held, 0)

    def draw(self, key: Key, state: TrainingState, hyper: Mapping[str, Any] | None = None) -> Batch:
        size = (hyper or {}).get("batch_size", self.hypers["batch_size"].default)
        rows = self._rows(key, state.cursor, size * self.method.draws)
        return Batch(rows.unflatten(-1, (self.method.draws, size)).movedim(-2, 0).to(self.device), key)

    def _rows(self, key: Key, cursor: int, count: int) -> Tensor:
        """`count` sample numbers from the cursor on: each epoch is a keyed permutation of all samples."""
        parts = []
        while count:
            epoch, at = divmod(cursor, self.samples)
            parts.append(self._permutation(key.stream("batches").at(epoch))[..., at : at + count])
            cursor, count = cursor + parts[-1].shape[-1], count - parts[-1].shape[-1]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _permutation(self, key: Key) -> Tensor:
        """The order of an epoch; the last one is remembered, which changes nothing but the time it takes."""
        known = self._order
        if known is None or known[0] != key:
            known = self._order = (key, key.permutation(self.samples))
        return known[1]

    def step(self, state: TrainingState, hyper: Mapping[str, Any], noise: Batch) -> tuple[TrainingState, dict]:
        held = state.buffers
        seen: dict[str, Any] = {}

        def oracle(x: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
            nonlocal held
            loss, gradient, fresh = self._gradient(x, noise.rows[draw], state.buffers, noise.key)
            if not seen:
                held = fresh
                seen.update(loss=loss, gradient=gradient)
            return loss, gradient

        turned = {name: self.space.per_run(h) if isinstance(h, Tensor) else h for name, h in hyper.items()}
        x, method, info = self.method.step(self.space, oracle, state.x, state.method, turned, noise)
        x, diverged = guard(state.x, x, state.diverged, state.k, 1)
        held = {name: _keep(diverged != RUNNING, old, held[name]) for name, old in state.buffers.items()}
        cursor = state.cursor + noise.rows.shape[0] * noise.rows.shape[-1]
        return TrainingState(x, method, state.k + 1, diverged, held, cursor), {**seen, **info}

    def _gradient(self, x: Tensor, rows: Tensor, buffers: dict[str, Tensor], key: Key) -> tuple[Tensor, Tensor, dict]:
        """(loss per run, gradient, new buffers) on some samples: as the model has written it out, or by the tape."""
        inputs, targets = self.data.x[rows], self.data.y[rows]
        if self.model.by_hand:
            return *self.model.value_and_gradient(x, inputs, lambda outputs: self.slope(outputs, targets)), buffers
        fresh = buffers

        def total(p: Tensor) -> Tensor:
            nonlocal fresh
            outputs, fresh = self.model(p, inputs, buffers, training=True, key=key)
            return self.loss(outputs, targets)

        loss, gradient = value_and_gradient(total, x)
        return loss, gradient, {name: b.detach() for name, b in fresh.items()}

    def observe(self, state: TrainingState) -> dict[str, Tensor]:
        return {"weight_norm": self.space.norm(state.x).squeeze(-1)}

    def measure(self, info: dict) -> dict[str, Tensor]:
        return {"loss": info["loss"]}

    def outputs(self, state: TrainingState, inputs: Tensor) -> Tensor:
        """The model's answers (runs, samples, outputs), as when in use (dropout off, running means of batch norm)."""
        with torch.no_grad():
            return self.model(state.x, inputs, state.buffers, training=False)[0]

    def _fit(self, part: str) -> Probe:
        """The probe of one part of the data: its loss and, for classes, its accuracy."""
        words = "training samples" if part == "train" else "held-out samples"
        variables = {f"{part}_loss": Variable((), f"loss over all {words}, mean per sample")}
        if self.data.classes:
            variables[f"{part}_accuracy"] = Variable((), f"share of {words} classified right")

        def measure(routine: Any, state: Any) -> dict[str, Tensor]:
            x, y = (routine.data.x, routine.data.y) if part == "train" else (routine.data.x_test, routine.data.y_test)
            outputs = routine.outputs(state, x)
            found = {f"{part}_loss": routine.loss(outputs, y)}
            if routine.data.classes:
                found[f"{part}_accuracy"] = (outputs.argmax(-1) == y).to(routine.dtype).mean(-1)
            return found

        return Probe(part, variables, measure, f"Loss and accuracy over all {words}.")

    def to(self, device: Any = None) -> "Training":
        if device is None or torch.device(device) == self.device:
            return self
        made: dict[str, Any] = {"batch_size": self.hypers["batch_size"].default, "dtype": self.dtype, "device": device}
        return Training(self.unbound, self.loss_given, self.data, self.method, **made)

    def coords(self) -> dict[str, tuple]:
        return {"layer": ("layer", list(self.model.names), {"long_name": "block of parameters", "units": "1"})}

    def recipe(self) -> str:
        model = "model" if isinstance(self.model, Module) else self.unbound.recipe()
        loss = repr(self.loss_given) if isinstance(self.loss_given, str) else "loss"
        parts = [model, loss, self.data.recipe or "data", self.method.recipe()]
        extras = [f"batch_size={self.hypers['batch_size'].default}"]
        extras += [] if self.dtype == torch.float32 else [f"dtype={self.dtype}"]
        return f"wb.training({', '.join([*parts, *extras])})"

    def describe(self) -> dict:
        problem = f"{self.model.title} on {self.data.name}"
        return {"problem": problem, "method": self.method.name, **self.unbound.settings}


def taped(loss: Loss) -> Slope:
    """The slope of any loss, by the tape."""
    return lambda outputs, targets: value_and_gradient(lambda out: loss(out, targets), outputs)


def _keep(stopped: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The old values of the runs that have stopped, the new ones of the others; runs on the first axis."""
    return torch.where(stopped.reshape(-1, *[1] * (old.ndim - 1)), old, new)


def _norms(routine: Any, state: TrainingState) -> dict[str, Tensor]:
    """Norm of each block of parameters, and of the gradient of the loss over all training samples."""

    def total(x: Tensor) -> Tensor:
        outputs, _ = routine.model(x, routine.data.x, state.buffers, training=False)
        return routine.loss(outputs, routine.data.y)

    _, gradient = value_and_gradient(total, state.x)
    norms = [
        torch.stack([block.reshape(len(block), -1).norm(dim=1) for block in routine.space.blocks(flat)], -1)
        for flat in (state.x, gradient)
    ]
    return {"layer_weight_norm": norms[0], "layer_grad_norm": norms[1]}


NORMS = Probe(
    "norms",
    {
        "layer_weight_norm": Variable(("layer",), "Euclidean norm of a block of parameters"),
        "layer_grad_norm": Variable(("layer",), "Euclidean norm of the full training gradient in a block"),
    },
    _norms,
    "Weight and gradient norm of every layer; the gradient is of the loss over all training samples.",
)

WEIGHTS = Probe(
    "weights",
    {"weights": Variable(("parameter",), "parameters, block after block")},
    lambda routine, state: {"weights": state.x},
    "All parameters.",
)


def training(
    model: str | Model | nn.Module,
    loss: str | Callable[[Tensor, Tensor], Tensor],
    data: str | Data | Dataset | tuple,
    optimizer: str | Optimizer | type,
    *,
    batch_size: int = 128,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Training:
    """An optimizer on a model's loss over minibatches, as a routine.

    Args:
        model: a catalogue name ("mlp", "linear"), a `Model`, or your own `nn.Module` (its weights are the start).
        loss: "cross_entropy", "squared" (½ |outputs - one-hot|²), "mse" (of values), or a callable
            loss(outputs, targets) -> one number, the mean over the batch.
        data: a catalogue name ("digits"), a `Dataset` of it, a `Data`, or a tuple (x, y) or (x, y, x_test, y_test)
            of arrays.
        optimizer: a catalogue name, an `Optimizer`, or a subclass of `torch.optim.Optimizer`.
        batch_size: samples a step; may be turned while it trains.

    Raises:
        ValueError: on unknown names, data that are not finite, or a loss that does not fit the data.
    """
    from workbench.catalogue import find, find_optimizer

    samples: Any = find("datasets", "a data set", data).make() if isinstance(data, str) else data
    if isinstance(samples, Dataset):
        samples = samples.load()
    elif isinstance(samples, tuple | list):
        samples = as_data(*samples)
    made: Any = find("models", "a model", model).make() if isinstance(model, str) else model
    if isinstance(made, nn.Module):
        made = Module(made)
    if not isinstance(samples, Data) or not isinstance(made, Model):
        got = f"{type(made).__name__} and {type(samples).__name__}"
        raise ValueError(f"expected a model (a name or an nn.Module) and data (a name or a tuple of arrays), got {got}")
    method = find_optimizer(optimizer)
    return Training(made, loss, samples, method, batch_size=batch_size, dtype=dtype, device=device)

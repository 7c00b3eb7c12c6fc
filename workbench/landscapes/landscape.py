"""A landscape: a loss as a function of all parameters, and what it is made of. Points are (runs, parameters).

Everything else in this package is a plain function of a landscape and of points in it.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.descent import value_and_gradient
from workbench.problems.losses import EACH, per_run
from workbench.problems.networks import MLP, Model
from workbench.routine import Key
from workbench.space import Space
from workbench.training import Training

BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)


class Landscape:
    """L(x): one number for every vector of parameters, twice differentiable where the loss is.

    Attributes:
        space: the blocks (layers) that the parameters are made of; `space.blocks(x)` gives them.
        names: a name for each block.
        start: one point of it, (parameters,): where a model stood when the landscape was made.
        samples: how many samples L is the mean over; 0 when it is not a mean over samples.
        title: what L is, in words: "mean cross-entropy of digits, 1,438 training samples".
    """

    space: Space
    names: tuple[str, ...]
    start: Tensor
    samples: int = 0
    title: str = ""

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return self.start.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        """L of each point: (runs, parameters) to (runs,). Differentiable."""
        raise NotImplementedError

    def each(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The loss of each sample (or of samples number `rows`), (runs, samples): L is their mean. Differentiable."""
        raise ValueError(f"expected a loss that is a mean over samples, got {self.title}: it has no single samples")

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(L (runs,), ∇L (runs, parameters)) at points (runs, parameters)."""
        return value_and_gradient(self, x)

    def point(self, x: Any = None) -> Tensor:
        """A point as one row of parameters, (parameters,): of a vector, a module or its `state_dict`; None: the start.

        Raises:
            ValueError: when it has other parameters than this landscape.
        """
        if x is None:
            return self.start
        if isinstance(x, nn.Module):
            x = {name: p for name, p in x.named_parameters() if p.requires_grad}
        if isinstance(x, dict):
            x = self._joined(x)
        x = torch.as_tensor(x).detach().to(self.start)
        if x.shape != self.start.shape:
            raise ValueError(
                f"expected a checkpoint of the same architecture, {self.dim:,} parameters in one row, "
                f"got shape {tuple(x.shape)}; both must come from one model class with the same sizes"
            )
        return x

    def _joined(self, parts: dict[str, Tensor]) -> Tensor:
        shapes = dict(zip(self.names, self.space.shapes, strict=True))
        for name, shape in shapes.items():
            if name not in parts or tuple(parts[name].shape) != tuple(shape):
                found = tuple(parts[name].shape) if name in parts else "none of that name"
                raise ValueError(
                    f"expected a checkpoint of the same architecture: {name!r} of shape {tuple(shape)}, got {found}; "
                    "both must come from one model class with the same sizes"
                )
        return torch.cat([parts[name].detach().flatten() for name in shapes])


class FunctionLandscape(Landscape):
    """Any function of a vector as a landscape; made by `landscape`."""

    def __init__(self, function: Callable[[Tensor], Tensor], start: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
        self.function, self.start = per_run(lambda x, _: function(x), 0), start.detach()
        self.space = Space(-1, tuple(map(tuple, shapes)) or (tuple(start.shape),))
        self.names = tuple(f"block {i + 1}" for i in range(len(self.space.shapes)))
        self.title = getattr(function, "__name__", "a function").strip("<>")
        if sum(self.space.sizes) != self.dim:
            raise ValueError(f"expected shapes of {self.dim:,} parameters in all, got {sum(self.space.sizes):,}")

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, x.new_zeros(()))


@dataclasses.dataclass
class ModelLandscape(Landscape):
    """The mean loss of a model over samples, as in use: dropout off, batch norm with its running means."""

    model: Model
    loss: Callable[[Tensor, Tensor], Tensor]
    loss_given: Any
    inputs: Tensor
    targets: Tensor
    start: Tensor
    buffers: dict[str, Tensor]
    """Untrained state of the model, one row (1, …) each: shared by all points."""
    title: str = ""

    def __post_init__(self) -> None:
        self.space, self.names, self.samples = self.model.space, self.model.names, len(self.inputs)

    def outputs(self, x: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The model's answers (runs, samples, outputs) at points (runs, parameters), on the samples or other inputs."""
        held = {name: b.expand(len(x), *b.shape[1:]) for name, b in self.buffers.items()}
        return self.model(x, self.inputs if inputs is None else inputs, held, training=False)[0]

    def __call__(self, x: Tensor) -> Tensor:
        return self.loss(self.outputs(x), self.targets)

    def each(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        inputs, targets = (self.inputs, self.targets) if rows is None else (self.inputs[rows], self.targets[rows])
        if isinstance(self.model, MLP) and not torch.is_grad_enabled() and x.ndim == 2 and inputs.ndim == 2:
            return self.sample_losses(self.model.answers(x, inputs).transpose(1, 2), targets)
        return self.sample_losses(self.outputs(x, inputs), targets)

    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (runs, samples), from outputs (runs, samples, …) and targets (samples, …)."""
        if isinstance(self.loss_given, str):
            return EACH[self.loss_given](outputs, targets)
        one = torch.func.vmap(lambda out, aim: self.loss(out[None, None], aim[None])[0], in_dims=(0, 0))
        return torch.func.vmap(one, in_dims=(0, None))(outputs, targets)

    def on(self, rows: Tensor | Sequence[int]) -> "ModelLandscape":
        """The landscape over some of its samples, by number."""
        chosen = torch.as_tensor(rows, device=self.inputs.device)
        title = f"{self.title}, {len(chosen):,} of them"
        return dataclasses.replace(self, inputs=self.inputs[chosen], targets=self.targets[chosen], title=title)


def landscape(
    model: Any,
    loss: str | Callable | None = None,
    data: Any = None,
    *,
    part: str = "train",
    start: Any = None,
    shapes: Sequence[tuple[int, ...]] = (),
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Landscape:
    """A loss as a landscape over all parameters.

    Args:
        model: a catalogue name ("mlp"), a `Model`, your own `nn.Module` (where it stands is the start), a `Training`
            routine (then `loss` and `data` are its own), or a function f(x) -> one number of a vector (then give
            `start`, and `shapes` of the blocks it is made of if there are any).
        loss: as `wb.training` takes it: "cross_entropy", "squared", "mse", or loss(outputs, targets) -> the mean over
            the batch.
        data: as `wb.training` takes it: a catalogue name or arrays (x, y).
        part: which samples L is the mean over: "train", "heldout" or "all".
        start: a point of it, (parameters,).
        dtype, device: those of the points; a `Training` keeps its own.

    Raises:
        ValueError: when model, loss and data do not go together, or batch norm is in training mode: then the loss of
            one sample would depend on the others.
    """
    if isinstance(model, nn.Module):
        _refuse_batch_norm(model)
        model = copy.deepcopy(model).to(dtype)
    if not isinstance(model, Training | nn.Module | Model | str) and callable(model):
        if start is None:
            raise ValueError("expected start, a vector of parameters, beside a function: it says how many there are")
        return FunctionLandscape(model, torch.as_tensor(start).to(device=device, dtype=dtype), shapes)
    if not isinstance(model, Training):
        from workbench.training import training

        if loss is None or data is None:
            raise ValueError("expected a model, a loss and data, got a model alone")
        model = training(model, loss, data, "sgd", dtype=dtype, device=device)
    return of_training(model, None, part=part, start=start)


def of_training(
    routine: Training, state: Any = None, *, run: int = 0, part: str = "train", start: Any = None
) -> ModelLandscape:
    """The landscape that a training moves in, with the untrained state (batch norm's means) that a run has at `state`.

    Args:
        routine: a training made by `wb.training`.
        state: its state; None is its first one, of seed 0.
        run: which run's buffers, and whose parameters are the start.
        part: "train", "heldout" or "all".
        start: another start than the run's parameters.
    """
    data = routine.data
    parts = {"train": (data.x, data.y), "heldout": (data.x_test, data.y_test)}
    parts["all"] = (torch.cat([data.x, data.x_test]), torch.cat([data.y, data.y_test]))
    if part not in parts:
        raise ValueError(f"expected part to be one of {', '.join(parts)}, got {part!r}")
    state = routine.init(Key(0).stream("init")) if state is None else state
    inputs, targets = parts[part]
    words = {"train": "training samples", "heldout": "held-out samples", "all": "samples, held-out ones among them"}
    loss = (
        routine.loss_given if isinstance(routine.loss_given, str) else getattr(routine.loss_given, "__name__", "loss")
    )
    title = f"mean {loss.replace('_', '-')} of {data.name}, {len(inputs):,} {words[part]}"
    buffers = {name: b[run : run + 1] for name, b in state.buffers.items()}
    args = (routine.model, routine.loss, routine.loss_given, inputs, targets, state.x[run].detach(), buffers)
    made = ModelLandscape(*args, title=title)
    return made if start is None else dataclasses.replace(made, start=made.point(start))


def _refuse_batch_norm(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, BATCH_NORM) and part.training:
            raise ValueError(
                f"expected batch norm in evaluation mode, got {name or type(part).__name__!r} in training mode, where "
                "the loss of one sample depends on the others; call model.eval() first, which fixes its running means"
            )

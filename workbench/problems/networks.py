"""Models to train: networks as pure functions of one flat vector of parameters a run, (runs, parameters)."""

import copy
import dataclasses
import itertools
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.problems.data import Data
from workbench.routine import Declared, Hyper, Key
from workbench.space import Space
from workbench.tree import same_bits

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}

OVER_Z = ("relu", "tanh", "sigmoid")
"""Activations that may be written over z, because their derivative is a function of h = activation(z)."""

_aten = torch.ops.aten
INTO: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda z, out: torch.clamp(z, min=0, out=out),
    "tanh": lambda z, out: torch.tanh(z, out=out),
    "gelu": lambda z, out: _aten.gelu.out(z, out=out),
    "silu": lambda z, out: _aten.silu.out(z, out=out),
    "sigmoid": lambda z, out: torch.sigmoid(z, out=out),
}
"""activation(z), written into `out`."""
BACKWARD: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda d, z, h: _aten.threshold_backward.grad_input(d, h, 0, grad_input=d),
    "tanh": lambda d, z, h: _aten.tanh_backward.grad_input(d, h, grad_input=d),
    "gelu": lambda d, z, h: _aten.gelu_backward.grad_input(d, z, grad_input=d),
    "silu": lambda d, z, h: _aten.silu_backward.grad_input(d, z, grad_input=d),
    "sigmoid": lambda d, z, h: _aten.sigmoid_backward.grad_input(d, h, grad_input=d),
}
"""d · activation'(z), written over d: the functions that the tape calls too."""


class Model(Declared):
    """A network. `bind(inputs, outputs)` fixes its sizes; then `init` and `__call__` work on (runs, parameters)."""

    family: ClassVar[str] = "models"
    kind: ClassVar[str] = "model"
    names: tuple[str, ...] = ()
    space: Space = Space(axis=-1)
    by_hand: ClassVar[bool] = False
    """Whether the class that says what the model computes also says its gradient."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        said = next(base for base in cls.__mro__ if "__call__" in vars(base))
        cls.by_hand = "value_and_gradient" in vars(said)

    def bind(self, inputs: int, outputs: int) -> "Model":
        """The same model with its sizes fixed."""
        raise NotImplementedError

    def takes(self, data: Data, dtype: torch.dtype) -> Data:
        """The data as this model wants them: here, each input one row of numbers."""
        rows = {name: getattr(data, name).flatten(1).to(dtype) for name in ("x", "x_test")}
        return dataclasses.replace(data, **rows)

    def init(self, key: Key, like: Tensor) -> Tensor:
        """First parameters, (parameters,) or (runs, parameters) when the key has a seed a run."""
        raise NotImplementedError

    def buffers(self, runs: int) -> dict[str, Tensor]:
        """State that is not trained (running means of batch norm), one row a run; {} when there is none."""
        return {}

    def __call__(
        self, x: Tensor, inputs: Tensor, buffers: Mapping[str, Tensor], *, training: bool, key: Key | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(outputs (runs, batch, outputs), new buffers) of parameters x (runs, parameters) on a batch of inputs."""
        raise NotImplementedError

    def value_and_gradient(
        self, x: Tensor, inputs: Tensor, slope: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """(loss (runs,), its gradient (runs, parameters)), where slope(outputs) gives the loss and its derivative.

        For a model without buffers and noise, whose chain rule is quicker written out than taped.
        """
        raise NotImplementedError


class MLP(Model):
    """h ← activation(W h + b), `depth` times with `width` units, then W h + b.

    Weights and biases start uniform in ±1/√(inputs of the layer), as torch.nn.Linear does.
    """

    name = "mlp"
    title = "Multilayer perceptron"
    source = "Rumelhart, Hinton & Williams 1986, Nature 323"
    evidence = "tests/problems/test_networks.py::test_equals_the_same_module_in_torch_nn[mlp]"
    width: Any = Hyper(120, 1, 2048, "integer", (4, 256), kind="init", unit="units", doc="Units in each hidden layer.")
    depth: Any = Hyper(1, 0, 16, "integer", (1, 6), kind="init", unit="layers", doc="Hidden layers.")
    activation: Any = Hyper("relu", scale="choice", choices=tuple(ACTIVATIONS), kind="init", doc="Between the layers.")

    def bind(self, inputs: int, outputs: int) -> "MLP":
        bound = type(self)(**self.settings)
        sizes = [inputs, *[self.width] * self.depth, outputs]
        shapes: list[tuple[int, ...]] = []
        for a, b in itertools.pairwise(sizes):
            shapes += [(b, a), (b,)]
        bound.space = Space(-1, tuple(shapes))
        bound.names = tuple(f"{part} {i + 1}" for i in range(len(sizes) - 1) for part in ("weight", "bias"))
        return bound

    def init(self, key: Key, like: Tensor) -> Tensor:
        parts = []
        for i in range(0, len(self.space.shapes), 2):
            bound = 1 / math.sqrt(self.space.shapes[i][1])
            count = sum(math.prod(shape) for shape in self.space.shapes[i : i + 2])
            parts.append((2 * key.stream(f"layer {i // 2}").uniform((count,), like=like, axis=0) - 1) * bound)
        return torch.cat(parts, -1)

    def __call__(self, x, inputs, buffers, *, training, key=None):
        squash = ACTIVATIONS[self.activation]
        if x.shape[0] == 1 and inputs.ndim == 2:
            blocks, h = self.space.blocks(x.view(-1)), inputs
            for i in range(0, len(blocks), 2):
                h = F.linear(squash(h) if i else h, blocks[i], blocks[i + 1])
            return h.unsqueeze(0), {}
        blocks = self.space.blocks(x)
        h = inputs.transpose(-1, -2)
        for i in range(0, len(blocks), 2):
            h = linear(squash(h) if i else h, blocks[i], blocks[i + 1])
        return h.transpose(1, 2), {}

    def answers(self, x: Tensor, inputs: Tensor, first: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The outputs (runs, outputs, samples) of many points on the same inputs, without gradients: for slices.

        The first layer is one product for all points, or a combination (mix (runs, k), parts (k, width, samples)) of
        what was made beforehand; what lies between is written where the last call's was (`room`), the outputs too:
        they hold until the next call.
        """
        squash, blocks, runs = INTO[self.activation], self.space.blocks(x), len(x)
        h = inputs.mT
        for i in range(0, len(blocks), 2):
            weight, bias = blocks[i], blocks[i + 1].unsqueeze(-1)
            z = room(f"answer {i}", (runs, weight.shape[1], h.shape[-1]), x)
            if i:
                torch.baddbmm(bias, weight, squash(h, h), out=z)
            elif first is not None:
                torch.mm(first[0], first[1].flatten(1), out=z.view(runs, -1))
            else:
                torch.mm(weight.reshape(-1, weight.shape[-1]), h, out=z.view(-1, z.shape[-1]))
                z += bias
            h = z
        return h

    def first_layer(self, x: Tensor, inputs: Tensor) -> Tensor:
        """W x + b of the first layer (runs, width, samples) at points (runs, parameters): affine in the parameters."""
        weight, bias = self.space.blocks(x)[:2]
        return torch.matmul(weight, inputs.mT).add_(bias.unsqueeze(-1))

    def value_and_gradient(self, x, inputs, slope):
        """By the chain rule, from the last layer to the first: ∂W = d hᵀ, ∂b = Σ d, then d ← activation'(z) · Wᵀd.

        Features before the batch, as in `linear`. What lies between is written where the last call's was (`room`).
        """
        squash, back, over = INTO[self.activation], BACKWARD[self.activation], self.activation in OVER_Z
        gradient = torch.empty_like(x, requires_grad=False)
        blocks, into = self.space.blocks(x.detach()), self.space.blocks(gradient)
        hs: list[Tensor] = [inputs.mT.expand(len(x), -1, -1)]
        zs: list[Tensor] = []
        for i in range(0, len(blocks) - 2, 2):
            shape = len(x), self.width, hs[0].shape[-1]
            z = torch.bmm(blocks[i], hs[-1], out=room(f"z {i}", shape, x)).add_(blocks[i + 1].unsqueeze(-1))
            hs.append(squash(z, z if over else room(f"h {i}", shape, x)))
            zs.append(z)
        loss, d = slope(torch.bmm(blocks[-2], hs[-1]).add_(blocks[-1].unsqueeze(-1)).mT)
        d = d.mT
        for i in reversed(range(0, len(blocks), 2)):
            h = hs.pop()
            torch.bmm(d, h.mT, out=into[i])
            torch.sum(d, -1, out=into[i + 1])
            if i:
                d = back(torch.bmm(blocks[i].mT, d, out=room(f"d {i}", h.shape, x)), zs.pop(), h)
        return loss, gradient


_rooms = threading.local()


def room(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for what a calculation needs on its way, used again by the next one of this thread that asks by this name.

    A processor's first touch of fresh memory takes longer than the arithmetic (measured, a gradient of an MLP 3 x 128
    on a batch of 512, two threads: 1.4 ms with fresh memory, 0.7 ms without). Elsewhere PyTorch keeps memory by itself.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    kept = vars(_rooms)
    found = kept.get(name)
    if found is None or found.shape != shape or found.dtype != like.dtype:
        found = kept[name] = torch.empty(shape, dtype=like.dtype)
    return found


def linear(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W h + b of each run: h (in, batch) shared or (runs, in, batch), weight (runs, out, in) to (runs, out, batch).

    Features before the batch: every product then reads its operands in the order they lie in memory (measured, 64 nets
    of 9,010 parameters, batch 128, gradient: 5.8 ms against 9.0 ms with the batch first, one thread).
    """
    if h.ndim == 2:
        h = h.expand(weight.shape[0], *h.shape)
    return torch.baddbmm(bias.unsqueeze(-1), weight, h)


class Linear(MLP):
    """W x + b: logistic regression under cross-entropy, linear regression under squared error."""

    name = "linear"
    title = "Logistic or linear regression"
    source = "Legendre 1805 (least squares); Cox 1958, J. R. Stat. Soc. B 20(2) (logistic)"
    evidence = "tests/problems/test_networks.py::test_equals_the_same_module_in_torch_nn[linear]"
    width = depth = None
    activation: Any = None

    def bind(self, inputs: int, outputs: int) -> "Linear":
        bound = type(self)()
        bound.space = Space(-1, ((outputs, inputs), (outputs,)))
        bound.names = ("weight", "bias")
        bound.activation = "relu"
        return bound


class KeyedDropout(TorchFunctionMode):
    """While active, every `F.dropout` draws its mask from a key: the n-th call of a step from stream "dropout n"."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout:
            return func(*args, **kwargs)
        given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
        x, p = given["input"], given.get("p", 0.5)
        if not 0 < p < 1 or not given.get("training", True):
            return func(*args, **kwargs)
        self.calls += 1
        u = self.key.stream(f"dropout {self.calls}").uniform(tuple(x.shape), like=torch.empty(0, dtype=x.dtype))
        return x * (u.to(x.device) >= p) / (1 - p)


class Module(Model):
    """Somebody's own `nn.Module`, made a pure function; batch-norm statistics travel in the state, dropout is keyed.

    The first parameters are the module's own. The module itself is never changed: a copy of it works, one call at a
    time, because a call puts its parameters into it.
    """

    name = "module"
    title = "Your own module"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self._turn = copy.deepcopy(module), threading.Lock()
        self.title = type(module).__name__
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"expected a module with parameters to train, got {self.title} with none")
        self.frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
        self.first_buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        self.names = tuple(self.parameters)
        self.space = Space(-1, tuple(tuple(p.shape) for p in self.parameters.values()))

    def bind(self, inputs: int, outputs: int) -> "Module":
        return self

    def init(self, key: Key, like: Tensor) -> Tensor:
        flat = torch.cat([p.flatten() for p in self.parameters.values()]).to(like)
        return flat if key.runs is None else flat.expand(key.runs, -1)

    def buffers(self, runs: int) -> dict[str, Tensor]:
        return {name: b.expand(runs, *b.shape).clone() for name, b in self.first_buffers.items()}

    def __call__(self, x, inputs, buffers, *, training, key=None):
        key, runs = key or Key(0), len(x)
        with self._turn:
            self.module.train(training)
            if runs > 1 and key.runs is None:
                with KeyedDropout(key):
                    return torch.func.vmap(self._one, (0, 0, None), randomness="same")(x, dict(buffers), inputs)
            outs, fresh = [], []
            for run in range(runs):
                own = key if key.runs is None else dataclasses.replace(key, seed=key.seed[run])
                with KeyedDropout(own):
                    held = {name: b[run] for name, b in buffers.items()}
                    out, held = self._one(x[run], held, inputs if key.runs is None else inputs[run])
                outs.append(out)
                fresh.append(held)
        return torch.stack(outs), {name: torch.stack([held[name] for held in fresh]) for name in buffers}

    def _one(self, flat: Tensor, held: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and new buffers of one run."""
        blocks = dict(zip(self.names, self.space.blocks(flat), strict=True))
        frozen = {name: p.to(flat if p.is_floating_point() else flat.device) for name, p in self.frozen.items()}
        values = {**blocks, **frozen, **{name: b.clone() for name, b in held.items()}}
        out = torch.func.functional_call(self.module, values, (inputs,))
        if not isinstance(out, Tensor):
            raise ValueError(f"expected {self.title} to return one tensor, got {type(out).__name__}")
        return out, {name: values[name] for name in held}

    def takes(self, data: Data, dtype: torch.dtype) -> Data:
        """The data as they are, tried on the module once: whether it takes them, and answers twice alike.

        Raises:
            ValueError: when it does not take them.
        """
        like = torch.empty(0, dtype=dtype, device=data.x.device)
        if like.device.type != "meta":
            x = self.init(Key(0), like).unsqueeze(0)
            held = {name: b.to(like if b.is_floating_point() else like.device) for name, b in self.buffers(1).items()}
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._try(*[lambda: self(x, data.x[:8], held, training=True)[0]] * 2)
        return data

    def _try(self, *calls: Callable[[], Tensor]) -> None:
        try:
            first, second = (call() for call in calls)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"expected a module that takes the data, but {self.title} says: {error}") from error
        if not same_bits(first, second):
            warnings.warn(
                f"{self.title} gives two answers to the same inputs: it draws random numbers that are not dropout or "
                "keeps something outside its parameters and buffers, so replaying will not repeat the run",
                stacklevel=5,
            )

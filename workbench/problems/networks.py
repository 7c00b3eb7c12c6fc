"""Models to train: networks as pure functions of one flat vector of parameters a run, (runs, parameters)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.routine import Declared, Hyper, Key
from workbench.space import Space

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


class Model(Declared):
    """A network. `bind(inputs, outputs)` fixes its sizes; then `init` and `__call__` work on (runs, parameters)."""

    family: ClassVar[str] = "models"
    kind: ClassVar[str] = "model"
    names: tuple[str, ...] = ()
    space: Space = Space(axis=-1)

    def bind(self, inputs: int, outputs: int) -> "Model":
        """The same model with its sizes fixed."""
        raise NotImplementedError

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


class MLP(Model):
    """h ← activation(W h + b), `depth` times with `width` units, then W h + b.

    Weights and biases start uniform in ±1/√(inputs of the layer), as torch.nn.Linear does.
    """

    name = "mlp"
    title = "Multilayer perceptron"
    source = "Rumelhart, Hinton & Williams 1986, Nature 323"
    evidence = "tests/problems/test_networks.py::test_equals_the_same_module_in_torch_nn[mlp]"
    width = Hyper(120, 1, 2048, "integer", (4, 256), kind="init", unit="units", doc="Units in each hidden layer.")
    depth = Hyper(1, 0, 16, "integer", (1, 6), kind="init", unit="layers", doc="Hidden layers.")
    activation = Hyper("relu", scale="choice", choices=tuple(ACTIVATIONS), kind="init", doc="Between the layers.")

    def bind(self, inputs: int, outputs: int) -> "MLP":
        bound = type(self)(**self.settings)
        sizes = [inputs, *[self.width] * self.depth, outputs]
        shapes: list[tuple[int, ...]] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
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
        blocks = self.space.blocks(x)
        squash = ACTIVATIONS[self.activation]
        layers = list(zip(blocks[::2], blocks[1::2], strict=True))
        if x.shape[0] == 1 and inputs.ndim == 2:
            h = inputs
            for i, (weight, bias) in enumerate(layers):
                h = F.linear(squash(h) if i else h, weight[0], bias[0])
            return h.unsqueeze(0), {}
        h = inputs
        for i, (weight, bias) in enumerate(layers):
            h = linear(squash(h) if i else h, weight, bias)
        return h, {}


def linear(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W h + b of each run: h (batch, in) shared by the runs or (runs, batch, in), weight (runs, out, in), bias (runs, out)."""
    if h.ndim == 2:
        runs, out, _ = weight.shape
        flat = torch.addmm(bias.flatten(), h, weight.flatten(0, 1).T)
        return flat.unflatten(-1, (runs, out)).movedim(1, 0)
    return torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2))


class Linear(MLP):
    """W x + b: logistic regression under cross-entropy, linear regression under squared error."""

    name = "linear"
    title = "Logistic or linear regression"
    source = "Legendre 1805 (least squares); Cox 1958, J. R. Stat. Soc. B 20(2) (logistic)"
    evidence = "tests/problems/test_networks.py::test_equals_the_same_module_in_torch_nn[linear]"
    width = depth = activation = None

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
        if not given.get("training", True) or p == 0:
            return x
        self.calls += 1
        u = self.key.stream(f"dropout {self.calls}").uniform(tuple(x.shape), like=torch.empty(0, dtype=x.dtype))
        return x * (u.to(x.device) >= p) / (1 - p)


class Module(Model):
    """Somebody's own `nn.Module`, made a pure function; batch-norm statistics travel in the state, dropout is keyed.

    The first parameters are the module's own. The module itself is never changed.
    """

    name = "module"
    title = "Your own module"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.title = type(module).__name__
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"expected a module with parameters to train, got {self.title} with none")
        self.frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
        self.names = tuple(self.parameters)
        self.space = Space(-1, tuple(tuple(p.shape) for p in self.parameters.values()))
        self._lonely = False

    def bind(self, inputs: int, outputs: int) -> "Module":
        return self

    def init(self, key: Key, like: Tensor) -> Tensor:
        flat = torch.cat([p.flatten() for p in self.parameters.values()]).to(like)
        return flat if key.runs is None else flat.expand(key.runs, -1)

    def buffers(self, runs: int) -> dict[str, Tensor]:
        return {name: b.detach().expand(runs, *b.shape).clone() for name, b in self.module.named_buffers()}

    def __call__(self, x, inputs, buffers, *, training, key=None):
        def one(flat: Tensor, held: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            blocks = self.space.blocks(flat.unsqueeze(0))
            held = {name: b.clone() for name, b in held.items()}
            values = {**dict(zip(self.names, (b[0] for b in blocks), strict=True)), **self.frozen, **held}
            return torch.func.functional_call(self.module, values, (inputs,)), held

        was = self.module.training
        self.module.train(training)
        try:
            with KeyedDropout(key or Key(0)):
                if x.shape[0] == 1:
                    out, held = one(x[0], {name: b[0] for name, b in buffers.items()})
                    return out.unsqueeze(0), {name: b.unsqueeze(0) for name, b in held.items()}
                return torch.func.vmap(one, randomness="same")(x, dict(buffers))
        finally:
            self.module.train(was)

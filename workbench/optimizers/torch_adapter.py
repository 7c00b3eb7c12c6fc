"""Any `torch.optim.Optimizer` class as an optimizer: its hyperparameters by introspection, its state made immutable.

A torch optimizer owns parameters and changes them and its buffers in place. Here a step builds the optimizer anew from
a stored copy of its attributes, lets it move fresh parameters, and stores its attributes again: nothing outside is
changed, nothing is shared between threads. One run at a time, because its `lr` is one number.
"""

import copy
import dataclasses
import functools
import inspect
import re
import sys
import typing
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.optimizers.base import Optimizer, Oracle
from workbench.optimizers.classical import decay, learning_rate
from workbench.routine import Hyper
from workbench.space import Space
from workbench.tree import PerRun, same_bits, tensors

# ------------------------------------------------------------------------------- hyperparameters by introspection

LEFT_ALONE = frozenset({"foreach", "fused", "capturable", "differentiable", "maximize", "max_eval", "history_size"})
"""Arguments never offered: how the arithmetic is done, its sign, and what sizes L-BFGS's scratch space once for all.
Give one as a keyword to set it: `TorchOptimizer(torch.optim.LBFGS, history_size=10)`."""

PARTS = {"etas": ("etaminus", "etaplus"), "step_sizes": ("step_size_min", "step_size_max"), "eps": ("eps1", "eps2")}
"""Names of a tuple's numbers, as torch's own functions call them; else `betas` gives beta1, beta2, …"""

WORDS = {
    "line_search_fn": ("none", "strong_wolfe"),
    "adjust_lr_fn": ("none", "original", "match_rms_adamw"),
}
"""What a text argument may be where its annotation does not say; "none" stands for None."""

_BELOW_ONE = 0.999999  # the classes refuse 1 itself, in float32 too
_memory = Hyper(0.9, 0.0, _BELOW_ONE, soft=(0.0, 0.9999), doc="Memory of a running mean.")
_eps = Hyper(1e-8, 0.0, 1.0, "log", (1e-12, 1e-1), doc="Keeps a denominator away from zero.")
_tolerance = Hyper(1e-7, 0.0, 1.0, "log", (1e-12, 1e-2), doc="Stops the iterations of a step.")
_size = Hyper(1.0, 0.0, 1e6, "log", (1e-8, 1e3))

RANGES = {
    "lr": learning_rate(1e-3),
    "weight_decay": dataclasses.replace(decay(), doc=""),  # the class says whether it is decoupled
    "beta1": dataclasses.replace(_memory, doc="Memory of the running mean of gradients."),
    "beta2": dataclasses.replace(_memory, soft=(0.5, 0.9999), doc="Memory of the running mean of squared gradients."),
    "beta": _memory,
    "rho": _memory,
    "momentum": Hyper(0.9, 0.0, 1.0, soft=(0.0, 0.999), doc="Share of the velocity kept each step."),
    "alpha": Hyper(0.99, 0.0, 1.0, soft=(0.0, 0.9999)),
    "dampening": Hyper(0.0, 0.0, 1.0, doc="Share of the new gradient left out of the velocity."),
    "eps": _eps,
    "lr_decay": Hyper(0.0, 0.0, 1.0, soft=(0.0, 0.1)),
    "momentum_decay": Hyper(4e-3, 0.0, 1.0, soft=(0.0, 0.1)),
    "initial_accumulator_value": Hyper(0.0, 0.0, 1e6, soft=(0.0, 1.0), doc="Acts on the first step only."),
    "lambd": Hyper(1e-4, 0.0, 1.0, "log", (1e-8, 1e-1)),
    "t0": Hyper(1e6, 0.0, 1e12, "log", (1.0, 1e8)),
    "etaminus": Hyper(0.5, 1e-6, _BELOW_ONE, soft=(0.05, 0.95), doc="Shrinks a step size when its sign turns."),
    "etaplus": Hyper(1.2, 1.000001, 100.0, soft=(1.01, 3.0), doc="Grows a step size while its sign stays."),
    "step_size_min": dataclasses.replace(_size, doc="Smallest step size."),
    "step_size_max": dataclasses.replace(_size, doc="Largest step size."),
    "beta2_decay": Hyper(-0.8, -10.0, 0.0, soft=(-2.0, 0.0)),
    "d": Hyper(1.0, 1.0, 1e6, "log", (1.0, 1e2)),
    "tolerance_grad": _tolerance,
    "tolerance_change": _tolerance,
}
"""The range of a number by its name, else by its name without digits: `beta3` is a `beta`."""


class Signature(NamedTuple):
    """`hypers`: what is offered. `layout`: argument → hyper name, or for a tuple a hyper name or constant a place."""

    hypers: dict[str, Hyper]
    layout: dict[str, Any]


def read_signature(torch_class: type, fixed: Mapping[str, Any], inherited: bool = True) -> Signature:
    """The hyperparameters of a `torch.optim.Optimizer` class, found in the signature of its constructor.

    Numbers with a default become values; whole numbers, bools and words become choices of code ("shape"); what is in
    `fixed` or `LEFT_ALONE` is not offered. `lr` needs no default: it is 1e-3 then. `inherited`: look behind **kwargs.

    Raises:
        ValueError: when another argument has no default and `fixed` does not give it.
    """
    signature = Signature({}, {})
    for name, argument in _constructor(torch_class, inherited).items():
        if name in fixed or name in LEFT_ALONE:
            continue
        default = argument.default
        if name == "lr" and not isinstance(default, int | float):
            default = 1e-3
        if default is inspect.Parameter.empty:
            raise ValueError(
                f"expected every argument of {torch_class.__name__} but its parameters and lr to have a default; "
                f"{name} has none: give it, TorchOptimizer({torch_class.__name__}, {name}=…)"
            )
        _read_argument(signature, torch_class, name, default, argument.annotation)
    return signature


def _constructor(torch_class: type, inherited: bool) -> dict[str, inspect.Parameter]:
    """The arguments after `params`, those that **kwargs hands on to a base class included."""
    found: dict[str, inspect.Parameter] = {}
    for base in torch_class.__mro__[: torch_class.__mro__.index(torch.optim.Optimizer)]:
        if "__init__" not in vars(base):
            continue
        arguments = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        for argument in arguments[2:]:
            if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
                found.setdefault(argument.name, argument)
        if not inherited or all(argument.kind != argument.VAR_KEYWORD for argument in arguments):
            break
    return found


def _read_argument(signature: Signature, torch_class: type, name: str, default: Any, annotation: Any) -> None:
    doc = _describe(torch_class, name)
    words = (False, True) if isinstance(default, bool) else _words(name, annotation)
    chosen = "none" if default is None else default
    if chosen in words:
        hyper = Hyper(chosen, scale="choice", kind="shape", choices=words, doc=doc, name=name)
    elif isinstance(default, int | float):
        hyper = _number(name, default, _is_whole(name, default, annotation), doc)
    elif isinstance(default, tuple | list) and any(isinstance(part, int | float) for part in default):
        counted = tuple(f"{name.removesuffix('s')}{i + 1}" for i in range(len(default)))
        names = PARTS[name] if name in PARTS and len(default) == 2 else counted
        numbers = [(part, isinstance(value, int | float), value) for part, value in zip(names, default, strict=True)]
        signature.layout[name] = tuple(part if offered else value for part, offered, value in numbers)
        found = {part: _number(part, value, False, doc) for part, offered, value in numbers if offered}
        signature.hypers.update(found)
        return
    else:
        return
    signature.hypers[name], signature.layout[name] = hyper, name


def _words(name: str, annotation: Any) -> tuple:
    return WORDS.get(name) or (typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ())


def _is_whole(name: str, default: float, annotation: Any) -> bool:
    """Whether a number counts something: `weight_decay: float = 0` does not, nor does an unannotated `lr=1`."""
    if annotation is inspect.Parameter.empty:
        return isinstance(default, int) and name.rstrip("0123456789") not in RANGES
    return annotation is int or annotation == "int"


def _number(name: str, default: float, whole: bool, doc: str) -> Hyper:
    if whole:
        least = min(default, 1)
        soft = (least, max(10, 4 * default))
        return Hyper(int(default), least, 2**31, "integer", soft, kind="shape", doc=doc, name=name)
    default = float(default)
    known = RANGES.get(name) or RANGES.get(name.rstrip("0123456789"))
    if known is None or not known.low <= default <= known.high:
        known = _around(default)
    low, high = known.slider
    soft = (min(low, default), max(high, default))
    return dataclasses.replace(known, default=default, soft=soft, doc=known.doc or doc, name=name)


def _around(default: float) -> Hyper:
    """A number nobody has told us about: legal nearly everywhere, the slider around its default."""
    if default > 0:
        return Hyper(default, -1e12, 1e12, "log", (default / 100, default * 100))
    return Hyper(default, -1e12, 1e12, soft=(2 * default, -2 * default) if default else (0.0, 1.0))


def _describe(torch_class: type, name: str) -> str:
    """The first sentence that the class's docstring says of an argument, "" when it says none."""
    text = inspect.getdoc(torch_class) or ""
    found = re.search(rf"^    {re.escape(name)} *(?:\(.*?\))?: (.*(?:\n {{8,}}\S.*)*)", text, re.MULTILINE)
    if not found:
        return ""
    sentence = re.split(r"\(default|\. |\.$| from the paper|`", " ".join(found[1].split()))[0].strip(" ,;:.")
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


# -------------------------------------------------------------------------------------- attributes as a stored tree


class _Slot(int):
    """Stands for parameter number i wherever a stored state holds the parameter itself."""

    def __reduce__(self) -> Any:
        return _slot, (int(self),)  # copies stay the one object that `_walk` looks for


@functools.cache
def _slot(i: int) -> _Slot:
    return _Slot(i)


_PLAIN = frozenset({type(None), bool, int, float, str})


def _walk(value: Any, memo: dict[int, Any], leaf: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a tree of attributes. `memo` maps id(old) → new, and is `copy.deepcopy`'s for what is no tree."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        made: Any = leaf(value)
    elif kind is dict or (kind is defaultdict and value.default_factory is dict):
        made = {memo.get(id(key), key): _walk(item, memo, leaf) for key, item in value.items()}
    elif kind is list or kind is tuple:
        made = kind(_walk(item, memo, leaf) for item in value)
    else:
        return copy.deepcopy(value, memo)
    memo[id(value)] = made
    return made


def _fresh(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _pack(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> dict[str, Any]:
    """An optimizer's attributes as a tree that holds no parameter: its tensors are taken over, not copied."""
    attributes = {name: value for name, value in vars(optimizer).items() if not name.startswith("_optimizer_")}
    return _walk(attributes, {id(p): _slot(i) for i, p in enumerate(params)}, lambda tensor: tensor)


def _unpack(
    torch_class: type[torch.optim.Optimizer], packed: dict[str, Any], params: list[Tensor]
) -> torch.optim.Optimizer:
    """A new optimizer of these parameters with a copy of the stored attributes; its constructor is not run."""
    attributes = _walk(packed, {id(_slot(i)): p for i, p in enumerate(params)}, _fresh)
    attributes["state"] = defaultdict(dict, attributes["state"])
    optimizer = object.__new__(torch_class)
    torch.optim.Optimizer.__setstate__(optimizer, attributes)
    return optimizer


class RunState(NamedTuple):
    """`arguments`: the hyperparameters of the last step, as the class takes them. `attributes`: what `_pack` gives."""

    arguments: dict[str, Any]
    attributes: dict[str, Any]


# ------------------------------------------------------------------------------------------------- the adapter


class TorchOptimizer(Optimizer):
    """A `torch.optim.Optimizer` subclass, built in or your own, equal step for step to a plain PyTorch loop.

    `wb.descent("rosenbrock", torch.optim.NAdam)` makes one by itself. For the menu, declare a subclass with a name, a
    `torch_class`, a source and its evidence.

    Each block of the space is a parameter of its own (layers of a network; a surface's point is one vector). A method
    that wants a closure gets one, which evaluates the same minibatch at the parameters as they stand; the batch is
    evaluated for each run's closure then. Hyperparameters written in float32 reach the class as the shortest decimal
    that rounds to them: 1e-3 is the Python number 0.001.

    Turning a hyperparameter sets it in every parameter group; what a class changes in its own groups stays changed. A
    buffer that a turned hyperparameter calls for (`momentum` of RMSprop raised from 0) starts at zero.

    Args:
        torch_class: the class; a subclass's own when not given.
        fixed: constructor arguments fixed for good and not offered, such as `history_size=10`.

    Raises:
        ValueError: when it is no such class or cannot be built from its defaults.
    """

    host_sync = True
    torch_class: ClassVar[type[torch.optim.Optimizer] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.torch_class is not None:
            cls.hypers = read_signature(cls.torch_class, {}).hypers

    def __init__(self, torch_class: type[torch.optim.Optimizer] | None = None, **fixed: Any) -> None:
        found = torch_class or self.torch_class
        if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
            raise ValueError(f"expected a subclass of torch.optim.Optimizer, got {found!r}")
        self.wrapped: type[torch.optim.Optimizer] = found
        self.settings = fixed
        self._takes_closure = len(inspect.signature(found.step).parameters) > 1
        if torch_class is not None:
            vars(self).update(name=f"torch.{found.__name__}", title=found.__name__, source=_source(found))
        try:
            self._offer(inherited=True)
        except ValueError:  # a class that hands **kwargs on, and one of the names besides
            self._offer(inherited=False)

    def _offer(self, inherited: bool) -> None:
        """Reads the hyperparameters and builds one from the defaults, so that what is wrong is said at once."""
        self.hypers, self.layout = read_signature(self.wrapped, self.settings, inherited)
        built = self._build([torch.zeros(2, 2, requires_grad=True)], self._defaults())
        if any(hooks for name, hooks in vars(built).items() if name.startswith("_optimizer_")):
            raise ValueError(f"expected {self.wrapped.__name__} to register no step hooks on itself, it does")

    def _defaults(self) -> dict[str, Any]:
        return self._arguments({name: hyper.default for name, hyper in self.hypers.items()})

    def _build(self, params: list[Tensor], arguments: dict[str, Any]) -> torch.optim.Optimizer:
        try:
            return self.wrapped(params, **arguments, **self.settings)
        except (ValueError, TypeError) as error:
            shapes = ", ".join(str(tuple(p.shape)) for p in params)
            raise ValueError(
                f"expected parameters and hyperparameters that {self.wrapped.__name__} accepts; "
                f"for shapes {shapes} it says: {error}"
            ) from error

    def init(self, space: Space, x: Tensor) -> PerRun:
        """No state yet: each run's optimizer is built on its first step, at its start, with its hyperparameters.

        Raises:
            ValueError: when the class refuses parameters of these shapes (matrix methods refuse vectors).
        """
        self._build(_parameters(space, x.select(space.run_axis, 0)), self._defaults())
        return PerRun([None] * x.shape[space.run_axis])

    def step(
        self, space: Space, oracle: Oracle, x: Tensor, state: Any, hyper: Mapping[str, Any], noise: Any
    ) -> tuple[Tensor, PerRun, dict]:
        """One step of the class for every run, one run after the other."""
        at_x = oracle(x)
        runs = x.shape[space.run_axis]
        values = {name: _spread(hyper[name], runs) for name in self.hypers}
        moved: list[tuple[Tensor, Any]] = []
        for run in range(runs):
            look = _Look(space, oracle, x, run, at_x)
            arguments = self._arguments({name: value[run] for name, value in values.items()})
            moved.append(self._advance(look, state[run], arguments))
            if run == 0 and state[run] is None:
                self._warn_unless_repeatable(moved[0], self._advance(look, None, arguments))
        return torch.stack([point for point, _ in moved], space.run_axis), PerRun(new for _, new in moved), {}

    def _warn_unless_repeatable(self, *twice: tuple[Tensor, Any]) -> None:
        if not same_bits(*[(point, *tensors(new)) for point, new in twice]):
            warnings.warn(
                f"{self.wrapped.__name__} gives two answers from one state: it draws random numbers or keeps "
                "something outside itself, so going back and replaying will not repeat the run",
                stacklevel=3,
            )

    def _arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters of one run as the class takes them: pairs joined, "none" turned into None."""
        known = {name: None if value == "none" and name in WORDS else value for name, value in values.items()}
        return {
            argument: tuple(known.get(part, part) for part in parts) if isinstance(parts, tuple) else known[parts]
            for argument, parts in self.layout.items()
        }

    def _advance(self, look: "_Look", state: RunState | None, arguments: dict[str, Any]) -> tuple[Tensor, Any]:
        """The next point and state of one run; no point (NaN) where the class divides by zero or decomposes NaN."""
        missing: list[str] = []
        while True:
            params = look.parameters()
            optimizer = self._restore(params, state, arguments, missing)
            try:
                closure: Any = [look.closure(params)] if self._takes_closure else []
                with torch.enable_grad():
                    optimizer.step(*closure)
                break
            except (ArithmeticError, torch.linalg.LinAlgError):
                return torch.full_like(look.start, torch.nan), state  # this run has diverged, the others go on
            except KeyError as error:
                # A hyperparameter turned in mid-run asks for a buffer that its optimizer never made.
                name = error.args[0]
                if state is None or not isinstance(name, str) or name in missing:
                    raise
                missing.append(name)
        return _flat(params), RunState(arguments, _pack(optimizer, params))

    def _restore(
        self, params: list[Tensor], state: RunState | None, arguments: dict[str, Any], missing: list[str]
    ) -> torch.optim.Optimizer:
        if state is None:
            return self._build(params, arguments)
        optimizer = _unpack(self.wrapped, state.attributes, params)
        turned = {name: value for name, value in arguments.items() if value != state.arguments[name]}
        for name, value in turned.items():
            for group in optimizer.param_groups:
                if name in group:
                    group[name] = value
            if name in vars(optimizer):
                setattr(optimizer, name, value)
        for name in missing:
            for p in params:
                optimizer.state[p].setdefault(name, torch.zeros_like(p, requires_grad=False))
        return optimizer

    def recipe(self) -> str:
        """A Python expression that makes it again, given `setup()` and `import torch`."""
        if self.torch_class is not None:
            return super().recipe() if not self.settings else f"wb.make({self.name!r}, {_keywords(self.settings)})"
        path = _path(self.wrapped) or self.wrapped.__name__
        return f"TorchOptimizer({path}, {_keywords(self.settings)})" if self.settings else path

    def setup(self) -> str:
        """Python lines that an exported script needs before `recipe()`, besides `import torch`; "" when none."""
        if self.torch_class is not None:
            return ""
        lines = [f"from {TorchOptimizer.__module__} import TorchOptimizer"] if self.settings else []
        path = _path(self.wrapped)
        if path is None:
            lines.append(f"# Define the class {self.wrapped.__name__} here: it is in no module that can be imported.")
        elif not path.startswith("torch.optim."):
            lines.append(f"import {self.wrapped.__module__}")
        return "\n".join(lines)


class _Look:
    """What one run's optimizer sees of a step: its parameters with their gradients, and a closure.

    `at_x` is the oracle's (loss, gradient) at x, every run's.
    """

    def __init__(self, space: Space, oracle: Oracle, x: Tensor, run: int, at_x: tuple[Tensor, Tensor]) -> None:
        self.space, self.oracle, self.x, self.run = space, oracle, x, run
        self.start = x.select(space.run_axis, run)
        self.loss, self.gradient = self._mine(at_x)

    def _mine(self, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        loss, gradient = seen
        return loss[self.run], gradient.select(self.space.run_axis, self.run)

    def parameters(self) -> list[Tensor]:
        params = _parameters(self.space, self.start)
        self._hand(params, self.gradient)
        return params

    def _hand(self, params: list[Tensor], gradient: Tensor) -> None:
        for p, part in zip(params, self.space.blocks(_fresh(gradient)), strict=True):
            p.grad = part

    def closure(self, params: list[Tensor]) -> Callable[[], Tensor]:
        """Sets the gradients and gives the loss at the parameters as they stand; free where the step started."""

        def evaluate() -> Tensor:
            loss, gradient = self.loss, self.gradient
            here = _flat(params)
            if not torch.equal(here, self.start):
                x = self.x.clone()
                x.select(self.space.run_axis, self.run).copy_(here)
                loss, gradient = self._mine(self.oracle(x))
            self._hand(params, gradient)
            return loss

        return evaluate


def _parameters(space: Space, point: Tensor) -> list[Tensor]:
    """One leaf tensor a block of the point of one run."""
    return [block.requires_grad_() for block in map(_fresh, space.blocks(point))]


def _flat(params: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params])


def _spread(value: Any, runs: int) -> list[Any]:
    """A hyperparameter as plain Python values, one a run."""
    if not isinstance(value, Tensor):
        return [value] * runs
    numbers = value.detach().flatten().tolist()
    if value.dtype == torch.float32:
        numbers = [float(str(np.float32(number))) for number in numbers]
    return numbers * runs if len(numbers) == 1 else numbers


def _path(torch_class: type) -> str | None:
    """Where a class can be imported from, None when it cannot."""
    if getattr(torch.optim, torch_class.__name__, None) is torch_class:
        return f"torch.optim.{torch_class.__name__}"
    found: Any = sys.modules.get(torch_class.__module__)
    for part in torch_class.__qualname__.split("."):
        found = getattr(found, part, None)
    importable = found is torch_class and torch_class.__module__ != "__main__"
    return f"{torch_class.__module__}.{torch_class.__qualname__}" if importable else None


def _source(torch_class: type) -> str:
    path = _path(torch_class) or torch_class.__qualname__
    if path.startswith("torch.optim."):
        return f"{path}, https://docs.pytorch.org/docs/stable/generated/{path}.html"
    first = (inspect.getdoc(torch_class) or "").split("\n")[0]
    return f"{path}: {first}" if first and torch_class.__doc__ else path


def _keywords(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


# --------------------------------------------------------------------------------- torch.optim classes in the menu

_EVIDENCE = "tests/optimizers/test_torch_adapter.py::test_equals_the_plain_torch_loop_bit_for_bit[{}]"


class Adagrad(TorchOptimizer):
    """s ← s + g²;  x ← x - lr / (1 + (t - 1) lr_decay) g / (√s + eps);  g includes weight_decay x."""

    name = "torch.Adagrad"
    title = "Adagrad (torch)"
    torch_class = torch.optim.Adagrad
    source = "Duchi, Hazan & Singer 2011, JMLR 12:2121; torch.optim.Adagrad"
    evidence = _EVIDENCE.format(name)


class Adadelta(TorchOptimizer):
    """v ← rho v + (1 - rho) g²;  Δ = √(u + eps) / √(v + eps) g;  u ← rho u + (1 - rho) Δ²;  x ← x - lr Δ."""

    name = "torch.Adadelta"
    title = "Adadelta (torch)"
    torch_class = torch.optim.Adadelta
    source = "Zeiler 2012, arXiv:1212.5701; torch.optim.Adadelta"
    evidence = _EVIDENCE.format(name)


class Adamax(TorchOptimizer):
    """m ← beta1 m + (1 - beta1) g;  u ← max(beta2 u, |g| + eps);  x ← x - lr m / ((1 - beta1ᵗ) u)."""

    name = "torch.Adamax"
    title = "Adamax (torch)"
    torch_class = torch.optim.Adamax
    source = "Kingma & Ba 2015, arXiv:1412.6980, section 7.1; torch.optim.Adamax"
    evidence = _EVIDENCE.format(name)


class NAdam(TorchOptimizer):
    """Adam with a Nesterov look-ahead: the mean that moves x mixes m̂ with the present g, by a schedule of beta1."""

    name = "torch.NAdam"
    title = "NAdam (torch)"
    torch_class = torch.optim.NAdam
    source = "Dozat 2016, Incorporating Nesterov momentum into Adam, ICLR workshop; torch.optim.NAdam"
    evidence = _EVIDENCE.format(name)


class RAdam(TorchOptimizer):
    """Adam whose step is momentum's until the second moment's variance is tractable, and rectified from then on."""

    name = "torch.RAdam"
    title = "RAdam (torch)"
    torch_class = torch.optim.RAdam
    source = "Liu et al. 2020, arXiv:1908.03265; torch.optim.RAdam"
    evidence = _EVIDENCE.format(name)


class ASGD(TorchOptimizer):
    """x ← (1 - lambd η) x - η g with η = lr / (1 + lambd lr t)^alpha; it averages from step t0 on, beside x.

    What moves is x; the average stays in the state, as in torch.optim.
    """

    name = "torch.ASGD"
    title = "Averaged gradient descent (torch)"
    torch_class = torch.optim.ASGD
    source = "Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4):838; torch.optim.ASGD"
    evidence = _EVIDENCE.format(name)


class Rprop(TorchOptimizer):
    """A step size a coordinate, grown by etaplus while the gradient keeps its sign, shrunk by etaminus when not."""

    name = "torch.Rprop"
    title = "Rprop (torch)"
    torch_class = torch.optim.Rprop
    source = "Riedmiller & Braun 1993, IEEE ICNN; torch.optim.Rprop"
    evidence = _EVIDENCE.format(name)


class Adafactor(TorchOptimizer):
    """Second moments of a matrix kept as one mean a row and one a column; steps relative to the size of x, clipped."""

    name = "torch.Adafactor"
    title = "Adafactor (torch)"
    torch_class = torch.optim.Adafactor
    source = "Shazeer & Stern 2018, arXiv:1804.04235; torch.optim.Adafactor (its lr and eps1 differ from the paper's)"
    evidence = _EVIDENCE.format(name)


class LBFGS(TorchOptimizer):
    """Quasi-Newton steps from the last differences of points and gradients; up to `max_iter` of them are a step."""

    name = "torch.LBFGS"
    title = "L-BFGS (torch)"
    torch_class = torch.optim.LBFGS
    source = "Liu & Nocedal 1989, Math. Program. 45:503; torch.optim.LBFGS"
    evidence = _EVIDENCE.format(name)

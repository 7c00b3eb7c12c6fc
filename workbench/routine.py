"""The contract: everything that moves is a routine, a pure stepper over immutable state.

    state       = routine.init(key)
    noise       = routine.draw(key, state)             # everything random about the next step
    state, info = routine.step(state, hyper, noise)    # never mutates
    frame       = routine.observe(state)               # named arrays, for views and records

A step is pure and its randomness is a function of (seed, stream, step): rewind, branching, replay and batching follow.
"""

import dataclasses
import difflib
import hashlib
import math
import numbers
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from workbench.tree import pick_run, repeat_runs


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist: says what exists, and what was probably meant."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"expected {what} to be one of {', '.join(names) or '(none)'}; got {name!r}.{hint}")


def whole(name: str, value: Any, low: int = 0) -> int:
    """A whole number from `low`, as an int.

    Raises:
        ValueError: on anything else, naming it.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = int(value) if isinstance(value, float) and value.is_integer() else low - 1
    if isinstance(value, bool) or number < low:
        raise ValueError(f"expected {name} to be a whole number from {low}, got {value!r}")
    return number


# --------------------------------------------------------------------------------------------- hyperparameters


@dataclasses.dataclass(frozen=True)
class Hyper:
    """One declared hyperparameter: written as a class attribute of a method or a problem, whose name it takes.

    Args:
        default: value used when none is given.
        low, high: the legal range, both ends included; a value outside raises `ValueError`.
        scale: "linear", "log", "integer" or "choice": how a slider walks the range.
        soft: the range a slider offers, inside (low, high); the legal range when not given.
        kind: "value" (a tensor; turning it never recompiles; may differ per run), "shape" (a whole number or a
            choice that changes array sizes or code; the same for all runs) or "init" (fixed when the run starts).
        unit: physical or counting unit, "" when it has none.
        doc: one line.
        choices: the legal values when scale is "choice".
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    scale: str = "linear"
    soft: tuple[float, float] | None = None
    kind: str = "value"
    unit: str = ""
    doc: str = ""
    choices: tuple = ()
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            object.__setattr__(self, "name", name)

    @property
    def slider(self) -> tuple[float, float]:
        """The range a slider offers."""
        return self.soft or (self.low, self.high)

    def check(self, value: Any) -> Any:
        """The value, if legal: a float, int, bool or choice, or for kind "value" a tensor with one value per run.

        Raises:
            ValueError: naming the hyperparameter, what was expected and what came.
        """
        if self.scale == "choice":
            if not isinstance(value, Hashable) or isinstance(value, Tensor) or value not in self.choices:
                raise unknown(self.name, value, map(str, self.choices))
            return value
        if self.kind == "value" and isinstance(value, Tensor | np.ndarray | Sequence) and not isinstance(value, str):
            return self._check_runs(value)
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not self._legal(value):
            raise ValueError(f"expected {self.name} to be {self._range()}, got {value!r}")
        number = float(value)
        if self.scale == "integer" and not number.is_integer():
            raise ValueError(f"expected {self.name} to be {self._range()}, got {value!r}")
        return int(value) if self.scale == "integer" else number  # type: ignore[call-overload]

    def _legal(self, value: Any) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high

    def _check_runs(self, value: Any) -> Tensor | float:
        try:
            value = value.copy() if isinstance(value, np.ndarray) else value
            tensor = torch.as_tensor(value, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError):
            words = f"{self._range()}, or one for each run"
            raise ValueError(f"expected {self.name} to be {words}, got {value!r}") from None
        if tensor.ndim == 0:
            return self.check(tensor.item())
        if tensor.ndim != 1 or tensor.numel() == 0:
            raise ValueError(f"expected {self.name} to be one number or one per run, got shape {tuple(tensor.shape)}")
        legal = (tensor >= self.low) & (tensor <= self.high) & torch.isfinite(tensor)
        if self.scale == "integer":
            legal &= tensor == tensor.round()
        if tensor.device.type != "meta" and not bool(legal.all()):
            raise ValueError(f"expected {self.name} to be {self._range()}, got {tensor[~legal][0].item()!r} in one run")
        return tensor

    def _range(self) -> str:
        kind = "a whole number" if self.scale == "integer" else "a number"
        return f"{kind} from {self.low:g} to {self.high:g}"

    def describe(self) -> dict:
        """The declaration as plain values, for menus and `workbench list --json`."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row["slider"] = list(self.slider)
        del row["soft"]
        return {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Declared:
    """A problem or a method: its name, hyperparameters, source and evidence stand together in one class body.

    Class attributes:
        name: its name in the catalogue (the class's own name in lower case, with dashes, when not given).
        title: as menus show it.
        family, kind: where it stands in the catalogue.
        source: the paper or book.
        ledger: the row of the ledger it offers, "" when none.
        evidence: pytest node id of the test that would fail if it were not what its source says.
    """

    name: ClassVar[str] = ""
    title: str = ""
    family: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    source: ClassVar[str] = ""
    ledger: ClassVar[str] = ""
    evidence: ClassVar[str] = ""
    host_sync: ClassVar[bool] = False
    hypers: Mapping[str, Hyper] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found = {
            name: value
            for base in reversed(cls.__mro__)
            for name, value in vars(base).items()
            if isinstance(value, Hyper)
        }
        cls.hypers = {name: hyper for name, hyper in found.items() if getattr(cls, name, None) is hyper}

    def __init__(self, **settings: Any) -> None:
        declared = {name: hyper for name, hyper in self.hypers.items() if hyper.kind == "init"}
        for name in settings:
            if name not in declared:
                raise unknown(f"a setting of {self.name}", name, declared)
        self.settings = {name: hyper.check(settings.get(name, hyper.default)) for name, hyper in declared.items()}
        for name, value in self.settings.items():
            setattr(self, name, value)

    def recipe(self) -> str:
        """A Python expression that makes the same thing again, for exported scripts."""
        return self.made_with()

    def made_with(self, **arguments: str) -> str:
        """`recipe` with arguments that are no settings, as expressions by name."""
        changed = {name: repr(value) for name, value in self.settings.items() if value != self.hypers[name].default}
        given = [f"{name}={expression}" for name, expression in (arguments | changed).items()]
        return f"wb.make({', '.join([repr(self.name), *given])})" if given else repr(self.name)


# --------------------------------------------------------------------------------------------- randomness

_MASK = 0xFFFFFFFF


def _mix(word: int) -> int:
    """A bijection of 32-bit words that scatters neighbours (the finaliser of MurmurHash3)."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & _MASK
    word ^= word >> 13
    word = word * 0xC2B2AE35 & _MASK
    return word ^ word >> 16


@dataclasses.dataclass(frozen=True)
class Key:
    """Seed × stream × step → random numbers; the same key always gives the same bits, on every device and dtype.

    `Key(0).stream("noise").at(k)`. A seed may be a tuple, one a run: then runs draw independently; otherwise they
    share their draws, so that a comparison between runs is fair. Draws are made in float64 on the host and cast.
    Within a stream no two steps share a generator seed (a bijection of the step; 2^32 steps).
    """

    seed: int | tuple[int, ...] = 0
    path: str = ""
    step: int = 0

    def stream(self, name: str) -> "Key":
        """The key of a named purpose: draws of one stream never shift those of another."""
        return Key(self.seed, f"{self.path}/{name}", self.step)

    def at(self, step: int) -> "Key":
        """The key of one step."""
        return Key(self.seed, self.path, step)

    @property
    def runs(self) -> int | None:
        """Number of runs that draw independently, None when all share."""
        return len(self.seed) if isinstance(self.seed, tuple) else None

    def generator(self, run: int | None = None) -> torch.Generator:
        """A fresh host generator for this key (and run, when the seed has one per run)."""
        seed = self.seed if run is None else self.seed[run]  # type: ignore[index]
        words = hashlib.blake2b(f"{seed}|{self.path}".encode(), digest_size=8).digest()
        base, salt = int.from_bytes(words[:4], "little"), int.from_bytes(words[4:], "little")
        return torch.Generator().manual_seed(_mix(base + self.step & _MASK) ^ salt)

    def normal(self, shape: Sequence[int], *, like: Tensor, axis: int = -1) -> Tensor:
        """Standard normals of `shape`, in the dtype and on the device of `like`; `axis` is where runs are stacked."""
        return self._draw(
            lambda generator: torch.randn(tuple(shape), generator=generator, dtype=torch.float64), like, axis
        )

    def uniform(self, shape: Sequence[int], *, like: Tensor, axis: int = -1) -> Tensor:
        """Uniform numbers in [0, 1) of `shape`, in the dtype and on the device of `like`."""
        below = 1 - torch.finfo(like.dtype).eps / 2  # rounding to fewer digits must not reach 1

        def draw(generator: torch.Generator) -> Tensor:
            return torch.rand(tuple(shape), generator=generator, dtype=torch.float64).clamp_(max=below)

        return self._draw(draw, like, axis)

    def permutation(self, n: int) -> Tensor:
        """The numbers 0 to n - 1 in random order, (n,) or (runs, n), int64 on the host."""
        return self._each(lambda generator: torch.randperm(n, generator=generator), 0)

    def _draw(self, draw: Any, like: Tensor, axis: int) -> Tensor:
        return self._each(draw, axis).to(device=like.device, dtype=like.dtype)

    def _each(self, draw: Any, axis: int) -> Tensor:
        if self.runs is None:
            return draw(self.generator())
        return torch.stack([draw(self.generator(run)) for run in range(self.runs)], axis)


# --------------------------------------------------------------------------------------------- the routine

RUNNING = -1
"""Value of a state's `diverged` while a run is sound; otherwise the step at which it stopped being finite."""


def status(diverged: int) -> str:
    """The status of one run in words."""
    return "ok" if diverged < 0 else f"diverged at step {diverged}"


@dataclasses.dataclass(frozen=True)
class Variable:
    """How one observed array is labelled: its dims (run and step are added by the record), unit and long name."""

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"


@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement of a state that a record or an app may ask for.

    Args:
        name: what it is asked for by.
        variables: label of each array it gives.
        measure: measure(routine, state) -> {name: tensor}, runs on the routine's run axis.
        doc: one line.
    """

    name: str
    variables: Mapping[str, Variable]
    measure: Callable[["Routine", Any], dict[str, Tensor]]
    doc: str = ""


class Routine:
    """Problem and method, bound. Subclasses fill in the methods below; `device` and `dtype` are those of the state.

    Attributes:
        hypers: what may be turned, by name.
        variables: labels of the arrays that `observe` and `measure` give.
        recorded: names from `measure` that a record keeps (what `observe` cannot see afterwards).
        run_axis: where runs stand in every tensor of a state that has more than none.
        start_dims: number of axes of one run's start.
    """

    hypers: Mapping[str, Hyper] = {}
    variables: Mapping[str, Variable] = {}
    probes: Mapping[str, Probe] = {}
    recorded: tuple[str, ...] = ()
    run_axis: int = -1
    start_dims: int = 1
    host_sync: bool = False
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> Any:
        """The first state of `runs` runs (1 when None), all at `start` or each at its own."""
        raise NotImplementedError

    def draw(self, key: Key, state: Any, hyper: Mapping[str, Any] | None = None) -> Any:
        """Everything random about the next step; outside compiled code. `key` is the key of this step."""
        return ()

    def step(self, state: Any, hyper: Mapping[str, Any], noise: Any) -> tuple[Any, dict]:
        """The next state, and what the step measured for free."""
        raise NotImplementedError

    def observe(self, state: Any) -> dict[str, Tensor]:
        """Named arrays of a state, for views and records; `variables` has their dims."""
        raise NotImplementedError

    def measure(self, info: dict) -> dict[str, Tensor]:
        """The scalars per run worth keeping of a step's info; each has shape (runs,)."""
        return {}

    def runs(self, state: Any) -> int:
        """Number of runs of a state."""
        return state.diverged.shape[0]

    def done(self, state: Any) -> Tensor | None:
        """Per run, whether nothing more will happen; None when a routine never ends by itself."""
        return None

    def to(self, device: Any = None) -> "Routine":
        """The same routine with its tensors on another device."""
        raise NotImplementedError

    def coords(self) -> dict[str, tuple]:
        """Coordinates of the variables' own dims, as xarray takes them."""
        return {}

    def recipe(self) -> str:
        """A Python expression that makes this routine again, for exported scripts."""
        raise NotImplementedError

    def setup(self) -> str:
        """Python lines an exported script needs before the recipe, besides `import torch`; "" when none."""
        method: Any = getattr(self, "method", None)
        return method.setup() if hasattr(method, "setup") else ""

    def describe(self) -> dict:
        """Names of what was bound, for provenance: problem, method."""
        return {}

    # ---- shared by all routines

    def normalise(self, hyper: Mapping[str, Any] | None = None, *, runs: int | None = None) -> dict[str, Any]:
        """Hyperparameters ready for `step`: every declared name, values as tensors on the device, checked once.

        Raises:
            ValueError: on a name that is not declared, a value out of range, or a number of runs that disagrees.
        """
        given = dict(hyper or {})
        for name in given:
            if name not in self.hypers:
                raise unknown("a hyperparameter", name, self.hypers)
        ready: dict[str, Any] = {}
        for name, declared in self.hypers.items():
            value = declared.check(given.get(name, declared.default))
            ready[name] = self.tensor(value) if declared.kind == "value" else value
            if isinstance(value, Tensor) and runs is not None and value.shape != (runs,):
                raise ValueError(f"expected {name} to have one value for each of {runs} runs, got {tuple(value.shape)}")
        return ready

    def tensor(self, value: Any) -> Tensor:
        """A copy of the value in this routine's dtype and on its device."""
        return torch.as_tensor(value, dtype=self.dtype, device=self.device).detach().clone()

    def repeat(self, state: Any, runs: int) -> Any:
        """A state of one run, copied to `runs` runs."""
        return repeat_runs(state, runs, self.run_axis)

    def pick(self, state: Any, run: int) -> Any:
        """One run of a state, as a state of one run."""
        return pick_run(state, run, self.run_axis)


def _ndim(value: Any) -> int:
    """Number of axes; -1 of a ragged list, which a check further on refuses by name."""
    try:
        return np.ndim(value)
    except ValueError:
        return -1


def count_runs(hyper: Mapping[str, Any] | None, seed: Any) -> int | None:
    """The number of runs that hyperparameters and seeds ask for, None when they ask for none.

    Raises:
        ValueError: when two of them disagree.
    """
    sizes = {}
    for name, value in (hyper or {}).items():
        if isinstance(value, Tensor | np.ndarray | list | tuple) and _ndim(value) == 1:
            sizes[name] = len(value)
    if isinstance(seed, tuple | list | np.ndarray):
        sizes["seed"] = len(seed)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected the same number of runs everywhere, got {sizes}")
    return next(iter(sizes.values()), None)

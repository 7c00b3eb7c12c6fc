"""The fast path of compiled rollouts: one C++ loop over time, for steps that are arithmetic on a few numbers a run.

A step is traced once into elementary tensor operations. Its tensors are then written out number by number, so that
straight-line arithmetic of one run is left: the compiler vectorises it over runs, and points are stored as they are
made. The number of runs, the number of steps and the hyperparameters (one number, or one a run) are arguments: none
of them ever compiles anything again.

Sums, products and quotients are those of eager code, in its order and without fused multiply-adds of our own; roots
and transcendental functions may differ from it in the last digits.
"""

import _ctypes
import ctypes
import itertools
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

RUNS = 10_007
"""The number of runs a step is traced with: a prime no other axis has, by which the axis of runs is known."""

MOST_NUMBERS, MOST_STATEMENTS = 256, 4_000
"""Numbers a run in one tensor, and operations a step, beyond which straight-line code is no good idea."""

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "bool",
}


class NotElementwise(Exception):
    """A step that is not straight-line arithmetic on a few numbers a run; the message says what it met."""


# ------------------------------------------------------------------------------------------ operations, as C++

MAXIMUM, MINIMUM = ("{{0}} != {{0}} || {{0}} {} {{1}} ? {{0}} : {{1}}".format(sign) for sign in "><")  # NaN wins

ARITHMETIC = {
    "neg": "-{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "maximum": MAXIMUM,
    "minimum": MINIMUM,
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "clamp_max": "{0} > {1} ? {1} : {0}",
    "sign": "({0} > 0) - ({0} < 0)",
    "relu": "{0} <= 0 ? 0 : {0}",
}
ROOTS = {
    "abs": "fabs{f}({0})",
    "sqrt": "sqrt{f}({0})",
    "rsqrt": "1 / sqrt{f}({0})",
    "reciprocal": "1 / {0}",
    "sigmoid": "1 / (1 + exp{f}(-{0}))",
}
LOGIC = {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "!{0}"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
FUNCTIONS = {name: name for name in "floor ceil trunc exp exp2 expm1 log log2 log10 log1p pow erf erfc".split()}
FUNCTIONS |= {name: name for name in "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh".split()}
FUNCTIONS["round"] = "nearbyint"
POWERS = {
    2: "{0} * {0}",
    3: "{0} * {0} * {0}",
    0.5: ROOTS["sqrt"],
    -0.5: ROOTS["rsqrt"],
    -1: ROOTS["reciprocal"],
    -2: "1 / ({0} * {0})",
}
FOLDS = {"sum": "{0} + {1}", "prod": "{0} * {1}", "any": "{0} | {1}", "all": "{0} & {1}"}
FOLDS |= {"amax": MAXIMUM, "amin": MINIMUM, "cumsum": FOLDS["sum"], "cumprod": FOLDS["prod"]}

VECTOR_FORMS = {
    (2, 22): "sin cos exp log pow".split(),
    (2, 35): "tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh expm1 exp2 log1p log2 log10 erf erfc".split(),
}
"""Functions of which glibc on x86-64 has vector forms, by the version that brought them."""


class Numbers(NamedTuple):
    """A traced tensor, number by number. `array`: C++ names, Python numbers where known, None where runs would mix;
    the axis of runs has length 1. `dtype`: of the tensor.
    """

    array: np.ndarray
    dtype: torch.dtype


def own_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape that one run has of a traced tensor."""
    own = tuple(1 if n == RUNS else int(n) for n in tensor.shape)
    if max(own, default=1) > RUNS or math.prod(own) > MOST_NUMBERS or tensor.dtype not in C_TYPES:
        raise NotElementwise(f"a tensor of shape {tuple(tensor.shape)} and type {tensor.dtype}")
    return own


def each(function: Callable, *arrays: Any) -> np.ndarray:
    """The function of every number, operands broadcast."""
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), object)


class Writer:
    """Turns operations on numbers into C++ statements; what is written twice is computed once."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.dtypes: dict[str, torch.dtype] = {}
        self._known: dict[tuple[torch.dtype, str], str] = {}

    def operand(self, term: Any, dtype: torch.dtype) -> str:
        """A name or a known number, as an operand of the given type."""
        if term is None:
            raise NotElementwise("an operation that mixes runs")
        if isinstance(term, str):
            return term if self.dtypes[term] == dtype else f"({C_TYPES[dtype]})({term})"
        if dtype == torch.bool:
            return "true" if term else "false"
        if not dtype.is_floating_point:
            return f"({int(term)})"
        rounded = torch.tensor(term, dtype=dtype).item()
        if not math.isfinite(rounded):
            return "NAN" if math.isnan(rounded) else "INFINITY" if rounded > 0 else "(-INFINITY)"
        return f"({rounded!r}{'f' if dtype == torch.float32 else ''})"

    def write(self, template: str, dtype: torch.dtype, *operands: str) -> str:
        """The name of the value of an expression."""
        expression = template.format(*operands, f="f" if dtype == torch.float32 else "")
        name = self._known.get((dtype, expression))
        if name is None:
            name = self._known[dtype, expression] = f"v{len(self.statements)}"
            self.dtypes[name] = dtype
            self.statements.append(f"const {C_TYPES[dtype]} {name} = {expression};")
            if len(self.statements) > MOST_STATEMENTS:
                raise NotElementwise(f"more than {MOST_STATEMENTS} operations a step")
        return name

    def join(self, template: str, dtype: torch.dtype, *terms: Any) -> str:
        """The same of terms that are first brought to the type of the value."""
        return self.write(template, dtype, *(self.operand(term, dtype) for term in terms))

    def cast(self, array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """The numbers in another type."""

        def one(term: Any) -> Any:
            if isinstance(term, str):
                return term if self.dtypes[term] == dtype else self.join("{0}", dtype, term)
            return term if term is None else torch.tensor(term).to(dtype).item()

        return each(one, array)


def expression(name: str, operands: Sequence[Any], dtype: torch.dtype) -> tuple[str, torch.dtype]:
    """(C++ of an operation that acts number by number, the type its operands are brought to).

    Args:
        operands: what torch would promote: empty tensors, and plain numbers.
        dtype: of the result.
    """
    count = len(operands)
    if name in COMPARISONS:
        return f"{{0}} {COMPARISONS[name]} {{1}}", torch.result_type(*operands)
    if name in ("add", "sub") and count == 3:
        return f"{{0}} {'+' if name == 'add' else '-'} {{2}} * {{1}}", dtype
    if name in ARITHMETIC:
        return ARITHMETIC[name], dtype
    if dtype.is_floating_point and name in ROOTS:
        return ROOTS[name], dtype
    if dtype.is_floating_point and name in FUNCTIONS:
        return f"{FUNCTIONS[name]}{{f}}({', '.join(f'{{{i}}}' for i in range(count))})", dtype
    kind, _, word = name.partition("_")
    if word in LOGIC and (kind == "logical" or (kind == "bitwise" and dtype == torch.bool)):
        return LOGIC[word], torch.bool
    raise NotElementwise(f"the operation {name} on {dtype}")


# ------------------------------------------------------------------------------------------- reading a trace


def _span(a: np.ndarray, dim: int, start: int | None, end: int | None, step: int) -> tuple:
    return (slice(None),) * (dim % a.ndim) + (slice(start, end, step),)


def _slice(a: np.ndarray, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> np.ndarray:
    return a[_span(a, dim, start, end, step)]


def _slice_scatter(
    a: np.ndarray, part: np.ndarray, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> np.ndarray:
    new = a.copy()
    new[_span(a, dim, start, end, step)] = part
    return new


def _select_scatter(a: np.ndarray, part: np.ndarray, dim: int, index: int) -> np.ndarray:
    new = a.copy()
    np.moveaxis(new, dim, 0)[index] = part
    return new


VIEWS: dict[str, Callable[..., np.ndarray]] = {
    "clone": lambda a, **_: a,
    "alias": lambda a: a,
    "detach": lambda a: a,
    "lift_fresh_copy": lambda a: a,
    "unsqueeze": np.expand_dims,
    "squeeze": lambda a, dim=None: np.squeeze(a, None if dim is None else tuple(np.atleast_1d(dim))),
    "permute": np.transpose,
    "t": np.transpose,
    "transpose": np.swapaxes,
    "flip": np.flip,
    "cat": np.concatenate,
    "stack": np.stack,
    "select": lambda a, dim, index: np.moveaxis(a, dim, 0)[index],
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
}
"""What only moves numbers about. Whatever loses the axis of runs on the way is marked as mixing them."""

SHAPED = {"view", "_unsafe_view", "reshape", "expand"}
ALONG = {"flip": 1, "cumsum": 1, "cumprod": 1, "slice_scatter": 2, "select_scatter": 2}
"""Operations that keep the axis of runs even if they act along it; the place of the argument that says along which."""


class Reader:
    """Walks a trace from its inputs to its outputs, operation by operation."""

    def __init__(self, traced: fx.GraphModule, writer: Writer) -> None:
        self.traced, self.writer = traced, writer
        self.values: dict[fx.Node, Numbers] = {}

    def read(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, number by number, given names for the inputs."""
        given = iter(inputs)
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return [self.writer.cast(self.values[n].array, self.values[n].dtype) for n in node.args[0]]
            array = next(given) if node.op == "placeholder" else None
            if isinstance(node.meta.get("val"), Tensor) and node.users:
                shape = own_shape(node.meta["val"])
                array = self._array(node, shape) if array is None else array
                if array.shape != shape:
                    raise NotElementwise(f"{node.target} with shapes that mix runs")
                self.values[node] = Numbers(array, node.meta["val"].dtype)
        raise AssertionError("a trace without an output")

    def _array(self, node: fx.Node, shape: tuple[int, ...]) -> np.ndarray:
        if node.op == "get_attr":
            return _numbers(getattr(self.traced, str(node.target)))
        name = node.target.__name__.partition(".")[0]  # type: ignore[union-attr]
        tensors = [source.meta["val"] for source in node.all_input_nodes]
        if not tensors or name.endswith("_like") or name.startswith(("new_", "empty")):
            return _made(node, name)
        if any(RUNS in tensor.shape for tensor in tensors) and RUNS not in node.meta["val"].shape:
            return np.full(shape, None, object)
        try:
            return np.asarray(self._call(node, name, shape), object)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise NotElementwise(f"{name}: {error}") from error

    def _call(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype, first = node.meta["val"].dtype, node.all_input_nodes[0].meta["val"]
        along = [node.args[ALONG[name]]] if name in ALONG and len(node.args) > ALONG[name] else []
        if any(first.shape[dim] == RUNS for dim in np.ravel(along)) or (name == "flip" and not along):
            raise NotElementwise(f"{name} along the runs")
        if name in SHAPED:
            source = self.values[node.all_input_nodes[0]].array
            return np.broadcast_to(source, shape) if name == "expand" else source.reshape(shape)
        if name in VIEWS:
            return VIEWS[name](*map(self._array_of, node.args), **{k: self._array_of(v) for k, v in node.kwargs.items()})
        if name == "_to_copy":
            return self.writer.cast(self._array_of(node.args[0]), dtype)
        if name.startswith("cum"):
            return self._scan(name, dtype, self._array_of(node.args[0]), *node.args[1:])
        if name in FOLDS or name == "mean":
            return self._fold(name, dtype, self._array_of(node.args[0]), *node.args[1:], shape=shape)
        if name == "clamp":
            return self._clamp(dtype, *map(self._array_of, node.args), **node.kwargs)
        if name == "pow" and isinstance(node.args[1], int | float) and dtype.is_floating_point:
            return self._power(dtype, self._array_of(node.args[0]), node.args[1])
        return self._elementwise(node, name, dtype)

    def _array_of(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value].array
        return [self._array_of(part) for part in value] if isinstance(value, list | tuple) else value

    def _elementwise(self, node: fx.Node, name: str, dtype: torch.dtype) -> np.ndarray:
        args = [*node.args, *(v for v in node.kwargs.values() if v is not None and v != 1)]
        arrays = [np.asarray(self._array_of(a), object) for a in args]
        kinds = [self.values[a].dtype if isinstance(a, fx.Node) else None for a in args]
        if name == "where":
            return each(lambda *terms: self._choose(dtype, *terms), *arrays)
        operands = [a if k is None else torch.empty((1,) * n.ndim, dtype=k) for a, k, n in zip(args, kinds, arrays, strict=True)]
        template, kind = expression(name, operands, dtype)

        def one(*terms: Any) -> Any:
            if any(isinstance(term, str) or term is None for term in terms):
                return self.writer.write(template, dtype, *(self.writer.operand(term, kind) for term in terms))
            known = [t if k is None else torch.tensor(t, dtype=k) for t, k in zip(terms, kinds, strict=True)]
            return node.target(*known).item()  # type: ignore[operator]

        return each(one, *arrays)

    def _choose(self, dtype: torch.dtype, condition: Any, yes: Any, no: Any) -> Any:
        if isinstance(condition, bool):
            return yes if condition else no
        terms = [self.writer.operand(condition, torch.bool), *(self.writer.operand(t, dtype) for t in (yes, no))]
        return self.writer.write("{0} ? {1} : {2}", dtype, *terms)

    def _power(self, dtype: torch.dtype, base: np.ndarray, exponent: float) -> np.ndarray:
        """base ** number: products and roots where eager code takes them."""
        if exponent in (0, 1):
            return base if exponent else np.full(base.shape, 1, object)
        if exponent in POWERS:
            return each(lambda term: self.writer.join(POWERS[exponent], dtype, term), base)
        return each(lambda term: self.writer.join("pow{f}({0}, {1})", dtype, term, exponent), base)

    def _clamp(self, dtype: torch.dtype, array: np.ndarray, min: Any = None, max: Any = None) -> np.ndarray:  # noqa: A002
        for name, bound in (("clamp_min", min), ("clamp_max", max)):
            if bound is not None:
                array = each(lambda *terms, name=name: self.writer.join(ARITHMETIC[name], dtype, *terms), array, bound)
        return array

    def _fold(
        self, name: str, dtype: torch.dtype, array: np.ndarray, dims: Any = None, *_: Any, shape: tuple[int, ...]
    ) -> np.ndarray:
        """A reduction over coordinates, from first to last."""
        dims = range(array.ndim) if dims is None or dims == [] else np.atleast_1d(dims) % array.ndim
        count = math.prod(array.shape[dim] for dim in dims)
        for dim in dims:
            rows = np.moveaxis(array, dim, 0)
            total = self.writer.cast(rows[0], dtype)
            for row in rows[1:]:
                total = each(lambda *terms: self.writer.join(FOLDS.get(name, FOLDS["sum"]), dtype, *terms), total, row)
            array = np.expand_dims(total, dim)
        if name == "mean":
            array = each(lambda term: self.writer.join("{0} / {1}", dtype, term, count), array)
        return array.reshape(shape)

    def _scan(self, name: str, dtype: torch.dtype, array: np.ndarray, dim: int) -> np.ndarray:
        """A running sum or product over coordinates."""
        step = lambda a, b: each(lambda *terms: self.writer.join(FOLDS[name], dtype, *terms), a, b)  # noqa: E731
        return np.stack(list(itertools.accumulate(np.moveaxis(array, dim, 0), step)), dim)


def _made(node: fx.Node, name: str) -> np.ndarray:
    """The numbers of a tensor made from nothing, or from the shape of another."""
    if "empty" in name or "rand" in name:
        raise NotElementwise(f"the operation {name}")
    args = [torch.empty(a.meta["val"].shape, dtype=a.meta["val"].dtype) if isinstance(a, fx.Node) else a for a in node.args]
    return _numbers(node.target(*args, **node.kwargs))  # type: ignore[operator]


def _numbers(constant: Tensor) -> np.ndarray:
    """A constant tensor as known numbers; it has to be the same for every run."""
    for axis in [axis for axis, n in enumerate(constant.shape) if n == RUNS]:
        one = constant.narrow(axis, 0, 1)
        if not torch.equal(one.expand_as(constant), constant):
            raise NotElementwise("a constant that differs from run to run")
        constant = one
    own_shape(constant)
    return np.array(constant.tolist(), object)


# --------------------------------------------------------------------------------------------------- the loop

SOURCE = """\
#include <math.h>
#include <pthread.h>
#include <stdint.h>

{vector_forms}
typedef struct {{
    int64_t runs, steps, block, next;
    const void* const* in;
    const int64_t* stride;
    void* const* out;
    {point}* points;
}} Job;

static void advance(const Job* job, int64_t first, int64_t n) {{
    const int64_t R = job->runs;
{declarations}
    for (int64_t i = 0; i < n; ++i) {{
        const int64_t r = first + i;
{loads}
    }}
    for (int64_t t = 0; t < job->steps; ++t) {{
        {point}* __restrict x = job->points + t * {dim} * R + first;
{noise}
        #pragma omp simd
        for (int64_t i = 0; i < n; ++i) {{
{body}
        }}
    }}
    for (int64_t i = 0; i < n; ++i) {{
        const int64_t r = first + i;
{stores}
    }}
}}

static void* work(void* argument) {{
    Job* job = (Job*)argument;
    for (;;) {{
        const int64_t first = __atomic_fetch_add(&job->next, job->block, __ATOMIC_RELAXED);
        if (first >= job->runs) return 0;
        const int64_t last = first + job->block < job->runs ? first + job->block : job->runs;
        for (int64_t r = first; r < last; r += {lanes}) advance(job, r, last - r < {lanes} ? last - r : {lanes});
    }}
}}

extern "C" void loop(int64_t runs, int64_t steps, int64_t block, int64_t threads, const void* const* in,
                     const int64_t* stride, void* const* out, {point}* points) {{
    Job job = {{runs, steps, block, 0, in, stride, out, points}};
    pthread_t helpers[64];
    int64_t started = 0;
    while (started + 1 < threads && started < 64 && !pthread_create(&helpers[started], 0, work, &job)) ++started;
    work(&job);
    while (started) pthread_join(helpers[--started], 0);
}}
"""

LANES, BLOCK = 64, 512
"""Runs advanced together through time (their state stays in the first-level cache), and runs a thread takes at once."""

THREAD_WORTH = 2**26
"""Operations below which a further thread costs more than it saves."""

FLAGS = "-O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd -fPIC -shared -pthread -w -x c++".split()


class Input(NamedTuple):
    """A tensor that a step takes. `role`: "state", "hyper" or "noise". `shape`: of one run. `per_run`: has a run axis."""

    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    per_run: bool

    @property
    def size(self) -> int:
        """Numbers a run."""
        return math.prod(self.shape)

    def example(self) -> Tensor:
        """What a step is traced with; a hyperparameter as one a run, which one number is a case of."""
        return torch.zeros((*self.shape, RUNS) if self.per_run else self.shape, dtype=self.dtype)

    def names(self, j: int) -> np.ndarray:
        """Its numbers, as input j."""
        shape = (*self.shape, 1) if self.per_run else self.shape
        return np.array([f"a{j}_{e}" for e in range(self.size)], object).reshape(shape)

    def address(self, e: int) -> str:
        """Where number e stands in memory, relative to the tensor's own start; `r` is the run."""
        if self.role == "hyper":
            return f"r * job->stride[{{j}}]"
        return f"{e} * R + r" if self.per_run else f"{e}"


def traced(step: Callable, inputs: Sequence[Input]) -> fx.GraphModule:
    """The step as elementary operations.

    Raises:
        NotElementwise: when it cannot be traced: it reads values, draws random numbers, or mixes shapes.
    """
    try:
        with torch.no_grad():
            table = dict(torch.export.default_decompositions())
            made = make_fx(step, table, tracing_mode="fake", _allow_non_fake_inputs=True)(*(i.example() for i in inputs))
    except Exception as error:  # noqa: BLE001 - whatever a step does that cannot be traced, other code can run it
        raise NotElementwise(f"tracing failed: {error}") from error
    changed = [n.target for n in made.graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False)]
    if changed:
        raise NotElementwise(f"{changed[0]}, which changes a tensor in place")
    made.graph.eliminate_dead_code()
    return made


def source(step: Callable, inputs: Sequence[Input], points: int) -> str:
    """The C++ of a loop over a step.

    Args:
        step: (*tensors) -> new state tensors, in the order of the inputs whose role is "state".
        points: which of them is kept at every step.
    """
    writer = Writer()
    names = [given.names(j) for j, given in enumerate(inputs)]
    for given, array in zip(inputs, names, strict=True):
        writer.dtypes.update(dict.fromkeys(array.flat, given.dtype))
    states = [j for j, given in enumerate(inputs) if given.role == "state"]
    outputs = Reader(traced(step, inputs), writer).read(names)
    for j, new in zip(states, outputs, strict=True):
        if new.shape != names[j].shape or any(_kind(writer, term) not in (None, inputs[j].dtype) for term in new.flat):
            raise NotElementwise(f"a state that changes shape or type, {names[j].shape} to {new.shape}")
    parts: dict[str, list[str]] = {"declarations": [], "loads": [], "noise": [], "body": [], "stores": []}
    for j, given in enumerate(inputs):
        _declare(parts, j, given, names[j])
    parts["body"] += writer.statements
    for j, new in zip(states, outputs, strict=True):
        for e, (old, term) in enumerate(zip(names[j].flat, new.flat, strict=True)):
            value = writer.operand(term, inputs[j].dtype)
            parts["body"] += [f"s{j}_{e}[i] = {value};"] if value != old else []
            parts["body"] += [f"x[{e} * R + i] = {value};"] if j == points else []
    indented = {name: "\n".join(f"        {line}" for line in lines) for name, lines in parts.items()}
    x = inputs[points]
    return SOURCE.format(point=C_TYPES[x.dtype], dim=x.size, lanes=LANES, vector_forms=_vector_forms(), **indented)


def _kind(writer: Writer, term: Any) -> torch.dtype | None:
    return writer.dtypes[term] if isinstance(term, str) else None


def _declare(parts: dict[str, list[str]], j: int, given: Input, names: np.ndarray) -> None:
    kind = C_TYPES[given.dtype]
    pointer = f"const {kind}* const in{j} = (const {kind}*)job->in[{j}];"
    if given.role == "noise":
        width = f"{given.size} * R" if given.per_run else f"{given.size}"
        parts["noise"].append(f"const {kind}* const in{j} = (const {kind}*)job->in[{j}] + t * {width};")
        where = "{} * R + first + i" if given.per_run else "{}"
        parts["body"] += [f"const {kind} {name} = in{j}[{where.format(e)}];" for e, name in enumerate(names.flat)]
        return
    parts["declarations"].append(pointer)
    for e, name in enumerate(names.flat):
        parts["declarations"].append(f"{kind} s{j}_{e}[{LANES}];")
        parts["loads"].append(f"s{j}_{e}[i] = in{j}[{given.address(e).format(j=j)}];")
        parts["body"].append(f"const {kind} {name} = s{j}_{e}[i];")
    if given.role == "state":
        parts["declarations"].append(f"{kind}* const out{j} = ({kind}*)job->out[{j}];")
        only = "" if given.per_run else "if (r == 0) "
        parts["stores"] += [f"{only}out{j}[{given.address(e)}] = s{j}_{e}[i];" for e in range(given.size)]


def _vector_forms() -> str:
    """Declarations that let the compiler use the C library's vector functions, where there are any."""
    library, version = platform.libc_ver()
    if library != "glibc" or platform.machine() != "x86_64":
        return ""
    here = tuple(int(part) for part in version.split("."))
    names = [name for since, names in VECTOR_FORMS.items() if here >= since for name in names]
    lines = ["#ifdef VECTOR_FORMS", 'extern "C" {']
    for name, kind, suffix in itertools.product(names, ("double", "float"), ("",)):
        suffix = "f" if kind == "float" else ""
        arguments = f"{kind}, {kind}" if name in ("pow", "atan2") else kind
        lines += ["#pragma omp declare simd notinbranch", f"{kind} {name}{suffix}({arguments}) noexcept;"]
    return "\n".join([*lines, "}", "#endif", ""])


# ------------------------------------------------------------------------------------------------- building it


def compiler() -> list[str] | None:
    """The command of the C++ compiler, from the environment variable CXX or by its usual names; None when there is none."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given if shutil.which(given[0]) else None
    return next(([name] for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


def build(text: str) -> ctypes.CDLL:
    """The library of a source text, loaded; with the machine's own instructions and vector functions where they work.

    Raises:
        OSError: when the compiler refuses; its first words are in the message.
    """
    command, said = compiler(), ""
    if command is None:
        raise OSError("no C++ compiler")
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        written, library = Path(folder, "loop.cpp"), Path(folder, "loop.so")
        written.write_text(text)
        for extra in (["-march=native", "-DVECTOR_FORMS"], ["-march=native"], []):
            libraries = ["-lmvec", "-lm"] if "-DVECTOR_FORMS" in extra else ["-lm"]
            line = [*command, *FLAGS, *extra, str(written), "-o", str(library), "-x", "none", *libraries]
            done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode == 0:
                try:
                    return ctypes.CDLL(str(library))
                except OSError as error:
                    said = str(error)
            else:
                said = done.stderr
    raise OSError(f"{' '.join(command)} could not compile a loop: {said[:500]}")


class Loop:
    """A compiled loop over the steps of a routine."""

    def __init__(self, step: Callable, inputs: Sequence[Input], points: int) -> None:
        self.inputs, self.points = tuple(inputs), points
        self.text = source(step, inputs, points)
        self._operations = self.text.count("const")
        self._library = build(self.text)
        self._library.loop.restype = None
        self._library.loop.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 4
        if hasattr(_ctypes, "dlclose"):
            weakref.finalize(self, _ctypes.dlclose, self._library._handle)

    def __call__(self, tensors: Sequence[Tensor], runs: int, points: Tensor, threads: int) -> list[Tensor]:
        """Run it: fills `points` (steps, …) and gives the last state's tensors. Changes none of its inputs."""
        held = [tensor.detach().contiguous() for tensor in tensors]
        new = [torch.empty_like(t) for t, given in zip(held, self.inputs, strict=True) if given.role == "state"]
        sources = (ctypes.c_void_p * len(held))(*(t.data_ptr() for t in held))
        strides = (ctypes.c_int64 * len(held))(*(t.ndim for t in held))
        targets = (ctypes.c_void_p * len(new))(*(t.data_ptr() for t in new))
        steps = points.shape[0]
        busy = min(threads, -(-runs // BLOCK), 1 + runs * steps * self._operations // THREAD_WORTH)
        self._library.loop(runs, steps, BLOCK, busy, sources, strides, targets, points.data_ptr())
        return new

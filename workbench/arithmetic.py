"""A step of a routine written out as C++ arithmetic on single numbers.

A step is traced once into elementary tensor operations, with a number of runs by which the axis of runs is known
wherever it goes. Every tensor then stands for the few numbers that one run has of it, and every operation for C++
statements about numbers; indexing, stacking and reshaping cost nothing, constants are folded, and what is computed
twice is written once. A step that mixes runs, reads values or has too many numbers is refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

RUNS = 10_007
"""The number of runs a step is traced with: a prime that no other axis has."""

MOST_NUMBERS, MOST_STATEMENTS = 256, 4_000
"""Numbers a run in one tensor, and statements a step, beyond which straight-line code is no good idea."""

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "bool",
}


class NotArithmetic(Exception):
    """A step that is not arithmetic on a few numbers a run; the message says what it met."""


# ------------------------------------------------------------------------------- operations: torch's name → C++

MAXIMUM = "{0} != {0} || {0} > {1} ? {0} : {1}"  # NaN wins
MINIMUM = "{0} != {0} || {0} < {1} ? {0} : {1}"

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
OF_REALS = {
    "abs": "fabs{f}({0})",
    "sqrt": "sqrt{f}({0})",
    "rsqrt": "1 / sqrt{f}({0})",
    "reciprocal": "1 / {0}",
    "sigmoid": "1 / (1 + v_exp{f}(-{0}))",
    "floor": "floor{f}({0})",
    "ceil": "ceil{f}({0})",
    "trunc": "trunc{f}({0})",
    "round": "nearbyint{f}({0})",
}
FUNCTIONS = {
    **dict.fromkeys(("exp", "log", "sin", "cos", "exp2", "expm1", "log2", "log10", "log1p", "erf", "erfc"), 1),
    **dict.fromkeys(("tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"), 1),
    **dict.fromkeys(("pow", "atan2", "hypot"), 2),
}
"""Functions of the C library, which may have vector forms there: how many arguments each has. C++ calls them v_…"""

OF_REALS |= {name: f"v_{name}{{f}}({', '.join(('{0}', '{1}')[:count])})" for name, count in FUNCTIONS.items()}
LOGIC = {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "!{0}"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
POWERS = {
    2: "{0} * {0}",
    3: "{0} * {0} * {0}",
    0.5: OF_REALS["sqrt"],
    -0.5: OF_REALS["rsqrt"],
    -1: OF_REALS["reciprocal"],
    -2: "1 / ({0} * {0})",
}
"""Exponents for which eager code multiplies or takes roots."""

FOLDS = {"sum": "{0} + {1}", "prod": "{0} * {1}", "any": "{0} | {1}", "all": "{0} & {1}"}
FOLDS |= {"amax": MAXIMUM, "amin": MINIMUM, "mean": FOLDS["sum"]}
SCANS = {"cumsum": FOLDS["sum"], "cumprod": FOLDS["prod"]}


def expression(name: str, operands: Sequence[Any], dtype: torch.dtype) -> tuple[str, torch.dtype]:
    """(C++ of an operation that acts number by number, the type its operands are brought to).

    Args:
        operands: as torch would promote them: tensors and plain numbers.
        dtype: of the result.
    """
    kind, _, word = name.partition("_")
    if name in COMPARISONS:
        return f"{{0}} {COMPARISONS[name]} {{1}}", torch.result_type(*operands)
    if name == "isnan":
        return "{0} != {0}", operands[0].dtype
    if name in ("add", "sub") and len(operands) == 3:
        return f"{ARITHMETIC[name][:-3]}{{2}} * {{1}}", dtype
    if name in ARITHMETIC:
        return ARITHMETIC[name], dtype
    if name in OF_REALS and dtype.is_floating_point:
        return OF_REALS[name], dtype
    if word in LOGIC and (kind == "logical" or (kind == "bitwise" and dtype == torch.bool)):
        return LOGIC[word], torch.bool
    raise NotArithmetic(f"the operation {name} on {dtype}")


# --------------------------------------------------------------------------------------------- writing numbers


class Numbers(NamedTuple):
    """A traced tensor, number by number. `array`: C++ names, Python numbers where known, None where runs would mix;
    the axis of runs has length 1. `dtype`: of the tensor.
    """

    array: np.ndarray
    dtype: torch.dtype


def own_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape that one run has of a traced tensor."""
    own = tuple(1 if n == RUNS else int(n) for n in tensor.shape)
    pairs = tensor.shape.count(RUNS) > 1 or max(own, default=1) > RUNS
    if pairs or math.prod(own) > MOST_NUMBERS or tensor.dtype not in C_TYPES:
        raise NotArithmetic(f"a tensor of shape {tuple(tensor.shape)} and type {tensor.dtype}")
    return own


def each(function: Callable, *arrays: Any) -> np.ndarray:
    """The function of every number, operands broadcast."""
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), object)


class Writer:
    """Writes statements; what is written twice is computed once."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.dtypes: dict[str, torch.dtype] = {}
        self._known: dict[tuple[torch.dtype, str], str] = {}

    def operand(self, term: Any, dtype: torch.dtype) -> str:
        """A name or a known number, as an operand of the given type."""
        if term is None:
            raise NotArithmetic("an operation that mixes runs")
        if isinstance(term, str):
            return term if self.dtypes[term] == dtype else f"({C_TYPES[dtype]})({term})"
        if not dtype.is_floating_point:
            return f"({int(term)})"
        rounded = torch.tensor(term, dtype=dtype).item()
        if not math.isfinite(rounded):
            return "NAN" if math.isnan(rounded) else "INFINITY" if rounded > 0 else "(-INFINITY)"
        return f"({rounded!r}{_f(dtype)})"

    def write(self, template: str, dtype: torch.dtype, *operands: str) -> str:
        """The name of the value of an expression."""
        text = template.format(*operands, f=_f(dtype))
        name = self._known.get((dtype, text))
        if name is None:
            name = self._known[dtype, text] = f"v{len(self.statements)}"
            self.dtypes[name] = dtype
            self.statements.append(f"const {C_TYPES[dtype]} {name} = {text};")
            if len(self.statements) > MOST_STATEMENTS:
                raise NotArithmetic(f"more than {MOST_STATEMENTS} operations a step")
        return name

    def join(self, template: str, dtype: torch.dtype, *terms: Any) -> str:
        """The same, of terms that are first brought to the type of the value."""
        return self.write(template, dtype, *(self.operand(term, dtype) for term in terms))

    def choose(self, dtype: torch.dtype, condition: Any, yes: Any, no: Any) -> Any:
        """condition ? yes : no."""
        if isinstance(condition, bool):
            return yes if condition else no
        return self.write(
            "{0} ? {1} : {2}", dtype, self.operand(condition, torch.bool), *(self.operand(t, dtype) for t in (yes, no))
        )

    def cast(self, array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """The numbers in another type."""

        def one(term: Any) -> Any:
            if isinstance(term, str):
                return term if self.dtypes[term] == dtype else self.join("{0}", dtype, term)
            return term if term is None else torch.tensor(term).to(dtype).item()

        return each(one, array)

    def power(self, dtype: torch.dtype, base: np.ndarray, exponent: float) -> np.ndarray:
        """base ** exponent for a known exponent."""
        if exponent in (0, 1):
            return self.cast(base, dtype) if exponent else np.full(base.shape, 1, object)
        if exponent in POWERS:
            return each(lambda term: self.join(POWERS[exponent], dtype, term), base)
        return each(lambda term: self.join(OF_REALS["pow"], dtype, term, exponent), base)

    def clamp(self, dtype: torch.dtype, array: np.ndarray, low: Any, high: Any) -> np.ndarray:
        """Numbers brought between bounds, either of which may be None."""
        for name, bound in (("clamp_min", low), ("clamp_max", high)):
            if bound is not None:
                array = each(lambda *terms, name=name: self.join(ARITHMETIC[name], dtype, *terms), array, bound)
        return array

    def fold(self, name: str, dtype: torch.dtype, array: np.ndarray, dims: Any) -> np.ndarray:
        """A reduction over coordinates, from first to last; keeps their axes with length 1."""
        dims = range(array.ndim) if dims is None or dims == [] else np.atleast_1d(dims) % array.ndim
        count = math.prod(array.shape[dim] for dim in dims)
        for dim in dims:
            rows = np.moveaxis(array, dim, 0)
            total = self.cast(rows[0], dtype)
            for row in rows[1:]:
                total = each(lambda *terms: self.join(FOLDS[name], dtype, *terms), total, row)
            array = np.expand_dims(total, dim)
        if name == "mean":
            array = each(lambda term: self.join("{0} / {1}", dtype, term, count), array)
        return array

    def scan(self, name: str, dtype: torch.dtype, array: np.ndarray, dim: int) -> np.ndarray:
        """A running sum or product over coordinates."""

        first, *others = np.moveaxis(array, dim, 0)
        rows = [self.cast(first, dtype)]
        for row in others:
            rows.append(each(lambda *terms: self.join(SCANS[name], dtype, *terms), rows[-1], row))
        return np.stack(rows, dim)

    def product(self, dtype: torch.dtype, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """A product of matrices, or vectors, or stacks of matrices."""
        a, b = np.atleast_2d(a), b[:, None] if b.ndim == 1 else b
        parts = each(lambda *terms: self.join("{0} * {1}", dtype, *terms), a[..., None], b[..., None, :, :])
        return self.fold("sum", dtype, parts, -2)


def _f(dtype: torch.dtype) -> str:
    return "f" if dtype == torch.float32 else ""


# ---------------------------------------------------------------------------------------------- reading a trace


def _slice(a: np.ndarray, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> np.ndarray:
    return np.moveaxis(np.moveaxis(a, dim, 0)[start:end:step], 0, dim)


def _slice_scatter(
    a: np.ndarray, part: np.ndarray, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> np.ndarray:
    new = a.copy()
    np.moveaxis(new, dim, 0)[start:end:step] = np.moveaxis(part, dim, 0)
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
"""What only moves numbers about."""

SHAPED = {"view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand"}

PRODUCTS = {"dot", "mv", "mm", "bmm"}

ALONG = {"flip": 1, "cumsum": 1, "cumprod": 1, "slice_scatter": 2, "select_scatter": 2}
"""Operations that keep the axis of runs even when they act along it; where the argument stands that says along which.
Whatever loses the axis of runs mixes them, which is seen by that.
"""


class Reader:
    """Walks a trace from its inputs to its outputs, operation by operation."""

    def __init__(self, traced: fx.GraphModule, writer: Writer) -> None:
        self.traced, self.writer = traced, writer
        self.values: dict[fx.Node, Numbers] = {}

    def read(self, inputs: Sequence[np.ndarray]) -> list[Numbers]:
        """The outputs, given names for the numbers of the inputs."""
        given = iter(inputs)
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return [self.values[n] for n in node.args[0]]
            array = next(given) if node.op == "placeholder" else None
            if node.users and isinstance(node.meta.get("val"), Tensor):
                shape = own_shape(node.meta["val"])
                array = self._array(node, shape) if array is None else array
                if array.shape != shape:
                    raise NotArithmetic(f"{node.target} with shapes that mix runs")
                self.values[node] = Numbers(array, node.meta["val"].dtype)
        raise AssertionError("a trace without an output")

    def _array(self, node: fx.Node, shape: tuple[int, ...]) -> np.ndarray:
        if node.op == "get_attr":
            return _known(getattr(self.traced, str(node.target)))
        name = _name(node)
        sources = [source.meta["val"] for source in node.all_input_nodes]
        if not all(isinstance(source, Tensor) for source in sources):
            raise NotArithmetic(f"{name} of something that is no tensor")
        if not sources or name.endswith("_like") or name.startswith("new_"):
            return _made(node, name)
        if any(RUNS in source.shape for source in sources) and RUNS not in node.meta["val"].shape:
            return np.full(shape, None, object)
        along = [-1] if name in PRODUCTS else _along(node, name) if name in ALONG else []
        if any(sources[0].shape[dim] == RUNS for dim in along):
            raise NotArithmetic(f"{name} along the runs")
        try:
            args = [self._read(value) for value in node.args]
            options = {key: self._read(value) for key, value in node.kwargs.items()}
            return np.asarray(self._call(node, name, shape, args, options), object)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise NotArithmetic(f"{name}: {error}") from error

    def _read(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value].array
        return [self._read(part) for part in value] if isinstance(value, list | tuple) else value

    def _call(self, node: fx.Node, name: str, shape: tuple[int, ...], args: list, options: dict) -> np.ndarray:
        write, dtype = self.writer, node.meta["val"].dtype
        if name in SHAPED and node.all_input_nodes[0].meta["val"].dtype == dtype:
            return np.broadcast_to(args[0], shape) if name == "expand" else args[0].reshape(shape)
        if name in VIEWS:
            return VIEWS[name](*args, **options)
        if name == "_to_copy":
            return write.cast(args[0], dtype)
        if name in FOLDS:
            return write.fold(name, dtype, args[0], args[1] if len(args) > 1 else None).reshape(shape)
        if name in SCANS:
            return write.scan(name, dtype, args[0], args[1])
        if name in PRODUCTS:
            return write.product(dtype, args[0], args[1]).reshape(shape)
        if name == "where":
            return each(lambda *terms: write.choose(dtype, *terms), *args)
        if name == "clamp":
            low, high = (*args[1:], None, None)[:2]
            return write.clamp(dtype, args[0], options.get("min", low), options.get("max", high))
        if name == "pow" and isinstance(args[1], int | float) and dtype.is_floating_point:
            return write.power(dtype, args[0], args[1])
        return self._elementwise(node, name, dtype)

    def _elementwise(self, node: fx.Node, name: str, dtype: torch.dtype) -> np.ndarray:
        options = {key: value for key, value in node.kwargs.items() if value is not None}
        given = [*node.args, *([options.pop("alpha")] if "alpha" in options else [])]
        arrays = [np.asarray(self._read(value), object) for value in given]
        kinds = [self.values[value].dtype if isinstance(value, fx.Node) else None for value in given]
        like = [value.meta["val"] if isinstance(value, fx.Node) else value for value in given]
        template, kind = expression(name, like, dtype)
        if options or f"{{{len(given)}}}" in template or f"{{{len(given) - 1}}}" not in template:
            raise NotArithmetic(f"{node.target} with {[*given[1:], *options.values()]}")

        def one(*terms: Any) -> Any:
            if any(isinstance(term, str) or term is None for term in terms):
                return self.writer.write(template, dtype, *(self.writer.operand(term, kind) for term in terms))
            known = [t if k is None else torch.tensor(t, dtype=k) for t, k in zip(terms, kinds, strict=True)]
            return node.target(*known[:2], **node.kwargs).item()  # type: ignore[operator]

        return each(one, *arrays)


def _name(node: fx.Node) -> str:
    """An operation's name without its overload, and without the mark of one that acts in place."""
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0].removesuffix("_")


def _along(node: fx.Node, name: str) -> list[int]:
    where = node.args[ALONG[name]] if len(node.args) > ALONG[name] else 0
    return [int(dim) for dim in (where if isinstance(where, list | tuple) else [where])]  # type: ignore[arg-type]


def _made(node: fx.Node, name: str) -> np.ndarray:
    """The numbers of a tensor made from nothing, or from the shape of another."""
    if "empty" in name or "rand" in name:
        raise NotArithmetic(f"the operation {name}")
    vals = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]
    args = [torch.zeros(v.shape, dtype=v.dtype) if isinstance(v, Tensor) else v for v in vals]
    return _known(node.target(*args, **node.kwargs))  # type: ignore[operator]


def _known(constant: Tensor) -> np.ndarray:
    """A constant tensor, number by number; it has to be the same for every run."""
    for axis in [axis for axis, n in enumerate(constant.shape) if n == RUNS]:
        one = constant.narrow(axis, 0, 1)
        if not torch.equal(one.expand_as(constant), constant):
            raise NotArithmetic("a constant that differs from run to run")
        constant = one
    own_shape(constant)
    return np.array(constant.tolist(), object)


def _elementary() -> dict:
    """How to write operations in terms of simpler ones; stacking is simple enough."""
    aten = torch.ops.aten
    more = [aten.linalg_vector_norm, aten.logsumexp, aten._softmax, aten._log_softmax]
    more += [aten.softplus, aten.gelu, aten.silu]
    table = {**torch.export.default_decompositions(), **get_decompositions(more)}
    table.pop(aten.stack.default, None)
    return table


def trace(step: Callable, examples: Sequence[Tensor]) -> fx.GraphModule:
    """A step (*tensors) -> tensors as elementary operations.

    Raises:
        NotArithmetic: when it reads values, changes tensors in place, or fails with `RUNS` runs.
    """
    try:
        with torch.no_grad():
            made = make_fx(step, _elementary(), tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    except Exception as error:
        raise NotArithmetic(f"tracing failed: {error}") from error
    for node in made.graph.nodes:
        mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if mutable and _name(node) not in SHAPED:  # vmap squeezes its own tensors in place
            raise NotArithmetic(f"{node.target}, which changes a tensor in place")
    made.graph.eliminate_dead_code()
    return made

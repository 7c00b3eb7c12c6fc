"""The fast path of compiled rollouts: one C++ loop over time, for steps that are arithmetic on a few coordinates.

A step is traced once into elementary tensor operations. Its tensors are then written out coordinate by coordinate, so
that what is left is straight-line arithmetic on numbers of one run; the loop over runs is vectorised by the compiler,
and points are stored as they are made. Nothing about it depends on the number of runs, on the number of steps or on
the values of hyperparameters: those, and whether a hyperparameter is one number or one a run, are arguments.

Additions, products, quotients and roots are those of the eager step, in its order and without fused
multiply-adds; transcendental functions differ in the last digits.
"""

import ctypes
import math
import operator
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

RUNS = 10_007
"""The number of runs a step is traced with: a prime that no other axis has, so that the axis of runs is known by it."""

MOST_NUMBERS, MOST_STATEMENTS = 256, 4_000
"""Numbers per run and per step's arithmetic beyond which straight-line code stops being a good idea."""

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "bool",
}


class NotElementwise(Exception):
    """A step that is no straight-line arithmetic on a few numbers a run; the message says what it met."""


# ------------------------------------------------------------------------------------------ operations, as C++

ARITHMETIC = {
    "neg": "-{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "reciprocal": "1 / {0}",
    "sqrt": "SQRT({0})",
    "rsqrt": "1 / SQRT({0})",
    "abs": "ABS({0})",
    "sign": "({0} > 0) - ({0} < 0)",
    "relu": "{0} <= 0 ? 0 : {0}",
    "minimum": "{0} != {0} || {0} < {1} ? {0} : {1}",
    "maximum": "{0} != {0} || {0} > {1} ? {0} : {1}",
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "clamp_max": "{0} > {1} ? {1} : {0}",
    "sigmoid": "1 / (1 + EXP(-{0}))",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "logical_xor": "{0} ^ {1}",
    "logical_not": "!{0}",
    "bitwise_not": "!{0}",
}
"""Result and operands have one type: that of the result."""

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

FUNCTIONS = (
    "exp expm1 exp2 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh erf erfc floor ceil trunc atan2 pow"
).split()

VECTORISED = {2.22: ["exp", "log", "sin", "cos", "pow"], 2.35: "expm1 exp2 log1p log2 log10 tan tanh erf atan2".split()}
"""Functions of which the C library has vector forms, by the version that brought them."""

FOLDS = {"sum": "{0} + {1}", "prod": "{0} * {1}", "any": "{0} | {1}", "all": "{0} & {1}"}
FOLDS.update(amax=ARITHMETIC["maximum"], amin=ARITHMETIC["minimum"], cumsum=FOLDS["sum"], cumprod=FOLDS["prod"])


class Numbers(NamedTuple):
    """A tensor of the trace, number by number. `array`: C++ names, or Python numbers where they are known; the axis of
    runs has length 1. `dtype`: of the tensor.
    """

    array: np.ndarray
    dtype: torch.dtype


def own_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that one run has of a traced tensor."""
    own = tuple(1 if n == RUNS else int(n) for n in shape)
    if any(n >= RUNS for n in own):
        raise NotElementwise(f"a tensor of shape {tuple(shape)} that mixes the runs with something else")
    if math.prod(own) > MOST_NUMBERS:
        raise NotElementwise(f"{math.prod(own)} numbers a run")
    return own


class Writer:
    """Turns the operations of a trace into C++ statements, each written once however often it is used."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.known: dict[tuple[str, str], str] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    # ---- single numbers

    def number(self, term: Any, dtype: torch.dtype) -> str:
        """A name or a Python number as a C++ operand of the given type."""
        if isinstance(term, str):
            return term if self.dtypes[term] == dtype else f"({C_TYPES[dtype]})({term})"
        if term is None:
            raise NotElementwise("a sum over runs that something depends on")
        if dtype == torch.bool:
            return "true" if term else "false"
        if not dtype.is_floating_point:
            return f"INT64_C({int(term)})"
        if math.isnan(term) or math.isinf(term):
            return "NAN" if math.isnan(term) else f"({'-' if term < 0 else ''}INFINITY)"
        # the tensor's precision first: 0.1 in float32 is not 0.1
        return f"({float(torch.tensor(term, dtype=dtype))!r}{'f' if dtype == torch.float32 else ''})"

    def statement(self, template: str, dtype: torch.dtype, operands: Sequence[str]) -> str:
        """The name of the value of an expression."""
        expression = template.format(*operands)
        key = (C_TYPES[dtype], expression)
        if key not in self.known:
            if len(self.statements) >= MOST_STATEMENTS:
                raise NotElementwise(f"more than {MOST_STATEMENTS} operations a step")
            name = self.known[key] = f"v{len(self.statements)}"
            self.dtypes[name] = dtype
            self.statements.append(f"const {C_TYPES[dtype]} {name} = {expression};")
        return self.known[key]

    # ---- tensors

    def elementwise(self, node: fx.Node, name: str, args: Sequence[Any]) -> np.ndarray:
        """An operation that acts number by number, its operands broadcast."""
        template, operand, dtype = self._template(name, args, dtype_of(node))
        arrays = [a.array if isinstance(a, Numbers) else np.array(a, object) for a in args]
        types = [torch.bool if name == "where" and i == 0 else operand for i in range(len(args))]

        def one(*terms: Any) -> Any:
            if not any(isinstance(term, str) or term is None for term in terms):
                known = [torch.tensor(t, dtype=a.dtype) if isinstance(a, Numbers) else t for t, a in zip(terms, args)]
                return node.target(*known).item()
            if name == "where" and isinstance(terms[0], bool):
                return terms[1] if terms[0] else terms[2]
            return self.statement(template, dtype, [self.number(t, kind) for t, kind in zip(terms, types, strict=True)])

        return np.frompyfunc(one, len(arrays), 1)(*arrays)

    def _template(self, name: str, args: Sequence[Any], dtype: torch.dtype) -> tuple[str, torch.dtype, torch.dtype]:
        """(expression, type of its operands, type of its value)."""
        if name in COMPARISONS:
            kinds = [torch.empty(0, dtype=a.dtype) if isinstance(a, Numbers) else a for a in args]
            return f"{{0}} {COMPARISONS[name]} {{1}}", torch.result_type(*kinds), dtype
        if name == "where":
            return "{0} ? {1} : {2}", dtype, dtype
        if name.startswith(("logical", "bitwise")) and dtype != torch.bool:
            raise NotElementwise(f"{name} of whole numbers")
        if name in ARITHMETIC and (dtype.is_floating_point or name not in ("sqrt", "rsqrt", "reciprocal", "sigmoid")):
            return _typed(ARITHMETIC[name], dtype), dtype, dtype
        if name in FUNCTIONS and dtype.is_floating_point:
            places = ", ".join(f"{{{i}}}" for i in range(len(args)))
            return f"{name}{_suffix(dtype)}({places})", dtype, dtype
        raise NotElementwise(f"the operation {name} on {dtype}")

    def power(self, node: fx.Node, base: Numbers, exponent: float) -> np.ndarray:
        """base ** number, as eager code computes it: products and roots where those are exact."""
        product = {2: "{0} * {0}", 3: "{0} * {0} * {0}", 0.5: "SQRT({0})", -0.5: "1 / SQRT({0})", -1: "1 / {0}"}
        product[-2] = "1 / ({0} * {0})"
        dtype = dtype_of(node)
        if exponent == 0 or exponent == 1:
            return base.array if exponent == 1 else np.full(base.array.shape, 1, object)
        if exponent not in product or not dtype.is_floating_point:
            return self.elementwise(node, "pow", [base, exponent])
        template = _typed(product[exponent], dtype)
        return self._each(lambda term: self.statement(template, dtype, [self.number(term, dtype)]), base.array)

    def fold(self, node: fx.Node, name: str, value: Numbers, dims: Sequence[int], keepdim: bool) -> np.ndarray:
        """A reduction over coordinates, from first to last."""
        dtype, shape = dtype_of(node), node.args[0].meta["val"].shape  # type: ignore[union-attr]
        array = value.array
        if any(shape[dim] == RUNS for dim in dims):
            return np.full(own_shape(node.meta["val"].shape), None, object)
        template = _typed(FOLDS[name], dtype)
        for dim in sorted((dim % array.ndim for dim in dims), reverse=True):
            rows = list(np.moveaxis(array, dim, 0))
            array = self._each(lambda term: self._cast(term, dtype), rows[0])
            for row in rows[1:]:
                array = self._each(lambda *terms: self._join(template, dtype, terms), array, row)
            array = np.expand_dims(array, dim) if keepdim else array
        return array

    def scan(self, node: fx.Node, name: str, value: Numbers, dim: int) -> np.ndarray:
        """A running sum or product over a coordinate axis."""
        if node.args[0].meta["val"].shape[dim] == RUNS:  # type: ignore[union-attr]
            raise NotElementwise(f"{name} over runs")
        dtype = dtype_of(node)
        rows = list(np.moveaxis(value.array, dim, 0))
        for i in range(1, len(rows)):
            rows[i] = self._each(lambda *terms: self._join(FOLDS[name], dtype, terms), rows[i - 1], rows[i])
        return np.stack(rows, dim)

    def _join(self, template: str, dtype: torch.dtype, terms: Sequence[Any]) -> str:
        return self.statement(template, dtype, [self.number(term, dtype) for term in terms])

    def _cast(self, term: Any, dtype: torch.dtype) -> Any:
        if not isinstance(term, str):
            return term if term is None else torch.tensor(term).to(dtype).item()
        return term if self.dtypes[term] == dtype else self.statement("{0}", dtype, [self.number(term, dtype)])

    def cast(self, value: Numbers, dtype: torch.dtype) -> np.ndarray:
        """The numbers in another type."""
        return self._each(lambda term: self._cast(term, dtype), value.array)

    @staticmethod
    def _each(function: Callable, *arrays: Any) -> np.ndarray:
        return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), object)


def _suffix(dtype: torch.dtype) -> str:
    return "f" if dtype == torch.float32 else ""


def _typed(template: str, dtype: torch.dtype) -> str:
    for word, function in {"SQRT": "sqrt", "ABS": "fabs", "EXP": "exp"}.items():
        template = template.replace(word, f"{function}{_suffix(dtype)}")
    return template


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of a traced tensor, if C++ has it."""
    dtype = node.meta["val"].dtype
    if dtype not in C_TYPES:
        raise NotElementwise(f"a tensor of {dtype}")
    return dtype


# ------------------------------------------------------------------------------------------- reading a trace


def _select(a: np.ndarray, dim: int, index: int) -> np.ndarray:
    return np.take(a, index, dim) if a.ndim > 1 else np.array(a[index], object)


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
    "view": lambda a, shape: a.reshape(shape),
    "_unsafe_view": lambda a, shape: a.reshape(shape),
    "reshape": lambda a, shape: a.reshape(shape),
    "expand": lambda a, shape: np.broadcast_to(a, [-1 if n == -1 else n for n in shape]),
    "unsqueeze": np.expand_dims,
    "squeeze": lambda a, dim=None: np.squeeze(a, None if dim is None else tuple(np.atleast_1d(dim))),
    "permute": np.transpose,
    "t": np.transpose,
    "transpose": np.swapaxes,
    "flip": np.flip,
    "cat": lambda parts, dim=0: np.concatenate(parts, dim),
    "stack": lambda parts, dim=0: np.stack(parts, dim),
    "select": _select,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
}
"""What only moves numbers about."""

COPIES = {"clone", "alias", "detach", "lift_fresh_copy", "contiguous"}


def _is_runs(node: fx.Node, dim: Any) -> bool:
    return isinstance(dim, int) and node.meta["val"].shape[dim] == RUNS


class Reader:
    """Walks a trace from its inputs to its outputs."""

    def __init__(self, traced: fx.GraphModule, writer: Writer) -> None:
        self.traced, self.writer = traced, writer
        self.values: dict[fx.Node, Numbers] = {}

    def read(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, number by number, given names for the inputs."""
        given = iter(inputs)
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return [self.writer.cast(self.values[n], dtype_of(n)) for n in node.args[0]]
            if node.op == "placeholder":
                array = next(given)
            elif node.op == "get_attr":
                array = _constant(getattr(self.traced, node.target))
            else:
                array = self._call(node)
            if node.users and isinstance(node.meta["val"], Tensor):
                own = own_shape(node.meta["val"].shape)
                array = np.asarray(array, object)
                if array.shape != own:
                    raise NotElementwise(f"{node.target} with shapes that mix the runs with something else")
                self.values[node] = Numbers(array, dtype_of(node))
        raise AssertionError("a trace without an output")

    def _call(self, node: fx.Node) -> np.ndarray:
        name = node.target.__name__.split(".")[0] if hasattr(node.target, "__name__") else str(node.target)
        args = [self._argument(a) for a in node.args]
        options = {key: self._argument(value) for key, value in node.kwargs.items()}
        if name in COPIES:
            return args[0].array
        if name in VIEWS:
            return self._view(node, name, args, options)
        if name in FOLDS or name == "mean":
            return self._reduce(node, name, args, options)
        if name == "pow" and not isinstance(args[1], Numbers):
            return self.writer.power(node, args[0], args[1])
        if name == "_to_copy":
            return self.writer.cast(args[0], dtype_of(node))
        if name == "clamp":
            return self._clamp(node, *args, **options)
        if options.get("alpha", 1) != 1:
            raise NotElementwise(f"{name} with a factor")
        if not any(isinstance(a, Numbers) for a in args) or name.endswith("_like") or name.startswith("new_"):
            return _made(node, name, args)
        return self.writer.elementwise(node, name, args)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        return [self._argument(part) for part in value] if isinstance(value, list | tuple) else value

    def _view(self, node: fx.Node, name: str, args: list, options: dict) -> np.ndarray:
        source = node.all_input_nodes[0]
        by_number = name in ("select", "slice", "flip", "slice_scatter", "select_scatter")
        dims = args[1] if name == "flip" else [args[1 if name in ("select", "slice") else 2]] if by_number and len(args) > 1 else []
        if any(_is_runs(source, dim) for dim in dims) and not _everything(node, name, args):
            raise NotElementwise(f"{name} along the runs")
        if name in ("cat", "stack") and len(args[0]) > 1 and RUNS in node.meta["val"].shape:
            dim = (args[1:] or [options.get("dim", 0)])[0]
            if name == "cat" and _is_runs(source, dim):
                raise NotElementwise("cat along the runs")
        plain = [[part.array for part in a] if name in ("cat", "stack") and i == 0 else a for i, a in enumerate(args)]
        plain = [a.array if isinstance(a, Numbers) else a for a in plain]
        if name in ("view", "_unsafe_view", "reshape", "expand"):
            plain[1] = own_shape(node.meta["val"].shape)
        try:
            return VIEWS[name](*plain, **options)
        except (ValueError, IndexError, TypeError) as error:
            raise NotElementwise(f"{name}: {error}") from None

    def _reduce(self, node: fx.Node, name: str, args: list, options: dict) -> np.ndarray:
        value, dims = args[0], args[1] if len(args) > 1 else None
        if name.startswith("cum"):
            return self.writer.scan(node, name, value, dims)
        dims = range(value.array.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        keepdim = args[2] if len(args) > 2 else options.get("keepdim", False)
        if name != "mean":
            return self.writer.fold(node, name, value, dims, keepdim)
        total = self.writer.fold(node, "sum", value, dims, keepdim)
        count = math.prod(value.array.shape[dim] for dim in dims)
        divided = operator.truediv if count == 0 else None
        if divided is not None or any(term is None for term in total.flat):
            return np.full(total.shape, None, object)
        dtype = dtype_of(node)
        return self.writer._each(lambda term: self.writer._join("{0} / {1}", dtype, [term, count]), total)

    def _clamp(self, node: fx.Node, value: Numbers, low: Any = None, high: Any = None, **bounds: Any) -> np.ndarray:
        for name, bound in (("clamp_min", bounds.get("min", low)), ("clamp_max", bounds.get("max", high))):
            if bound is not None:
                template, kind, dtype = self.writer._template(name, [value, bound], dtype_of(node))
                del kind
                array = self.writer._each(
                    lambda t, template=template, dtype=dtype, bound=bound: self.writer._join(template, dtype, [t, bound]),
                    value.array,
                )
                value = Numbers(array, dtype)
        return value.array

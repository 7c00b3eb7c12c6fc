"""Your own surface, typed as text: `parse("(1-x)**2 + 100*(y-x**2)**2")`.

The text is read into a syntax tree, every node is checked against a list of what is allowed, and what remains becomes a
flat program of tensor operations. Nothing typed is ever run as Python: no `eval`, no names but those listed here.
"""

import ast
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from workbench.problems.objective import Objective

LENGTH, NODES, DEPTH, POWER = 500, 200, 50, 1000
"""The most characters, nodes of the tree and open brackets of an expression, and its largest constant exponent."""

CONSTANTS = {"pi": math.pi, "e": math.e}
PAIR = {"x": 0, "y": 1}
NUMBERED = {f"x{i + 1}": i for i in range(9)}
ALLOWED = "numbers, x and y (or x1 to x9), pi, e, + - * / **, brackets and functions"


class Operation(NamedTuple):
    """One thing an expression may do: to tensors, and to constants before any tensor is seen (in floats)."""

    tensor: Callable[..., Any]
    number: Callable[..., float]


def _tensors(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Two operands of which one may be a plain number, as tensors."""
    a = a if isinstance(a, Tensor) else b.new_full((), a)
    return a, b if isinstance(b, Tensor) else a.new_full((), b)


def _minimum(a: Any, b: Any) -> Tensor:
    return torch.minimum(*_tensors(a, b))


def _maximum(a: Any, b: Any) -> Tensor:
    return torch.maximum(*_tensors(a, b))


OPERATORS: dict[type[ast.AST], Operation] = {
    ast.Add: Operation(operator.add, operator.add),
    ast.Sub: Operation(operator.sub, operator.sub),
    ast.Mult: Operation(operator.mul, operator.mul),
    ast.Div: Operation(operator.truediv, operator.truediv),
    ast.Pow: Operation(operator.pow, math.pow),
    ast.UAdd: Operation(operator.pos, operator.pos),
    ast.USub: Operation(operator.neg, operator.neg),
}
SINGLE = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "sqrt")
FUNCTIONS = {name: (1, Operation(getattr(torch, name), getattr(math, name))) for name in SINGLE} | {
    "abs": (1, Operation(torch.abs, abs)),
    "min": (2, Operation(_minimum, min)),
    "max": (2, Operation(_maximum, max)),
}


class Instruction(NamedTuple):
    """One step of a program: pushes a `coordinate`, or the constant `value`, or `apply` of the last `arity`."""

    apply: Callable[..., Any] | None = None
    arity: int = 0
    coordinate: int | None = None
    value: float = 0.0


# ---------------------------------------------------------------------------------------------- from text to tree


def _fail(expected: str, got: object) -> NoReturn:
    raise ValueError(f"expected {expected}, got {got}")


def _check_text(text: str) -> None:
    """Refuse what no expression holds before Python's parser sees it, which also keeps that parser's work small."""
    if len(text) > LENGTH:
        _fail(f"at most {LENGTH} characters", f"{len(text)} that begin {_short(text)!r}")
    depth = 0
    for place, character in enumerate(text, 1):
        if not re.fullmatch(r"[A-Za-z0-9_.,()+*/^ -]", character):
            _fail(ALLOWED, f"{_spell(character)} at character {place}")
        depth += (character == "(") - (character == ")")
        if depth > DEPTH:
            _fail(f"at most {DEPTH} open brackets", f"more at character {place}")
    if glued := re.search(r"(?<![\w.])((?>[\d.][\d_.]*(?:[eE][+-]?\d+)?))([A-Za-z_]\w*)", text):
        product = _short(f"{glued[1]}*{glued[2]}")
        _fail("an operator between a number and a name", f"{_short(glued[0])!r} (write {product})")
    if "^" in text:
        _fail("powers written with **", "^")


def _spell(character: str) -> str:
    name = unicodedata.name(character, "")
    return ascii(character) if character.isascii() or not name else f"{character!a} ({name})"


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        problem = _problem(text, error)
    except (ValueError, MemoryError, RecursionError):
        problem = f"{_short(text)!r}, nested too deeply or with too long a number"
    _fail(ALLOWED, problem)


def _problem(text: str, error: SyntaxError) -> str:
    """Where a text stops making sense, in words."""
    if not error.offset:
        return f"{_short(text)!r}, which ends too early" if text else "an empty text"
    detail = "" if error.msg == "invalid syntax" else f": {error.msg}"
    return f"{_short(text[error.offset - 1 :])!r} at character {error.offset}{detail}"


def _short(piece: str) -> str:
    return piece if len(piece) <= 40 else piece[:39] + "…"


# -------------------------------------------------------------------------------------------- from tree to program


def _compile(tree: ast.expr, text: str) -> tuple[Instruction, ...]:
    """The program of an expression: constants folded, in the order in which a stack machine runs it."""
    stack: list[float | tuple[Instruction, ...]] = []
    for node in _postorder(tree, text):
        piece = _short(ast.get_source_segment(text, node) or text)
        if isinstance(node, ast.Constant):
            stack.append(_number(node.value, piece))
        elif isinstance(node, ast.Name):
            stack.append(_name(node.id))
        else:
            arity, operation = _operation(node, piece)
            parts = [stack.pop() for _ in range(arity)][::-1]
            stack.append(_combine(operation, parts, piece, isinstance(getattr(node, "op", None), ast.Pow)))
    program = stack.pop()
    if isinstance(program, float):
        _fail("an expression in x and y (or x1 to x9)", f"the constant {_short(text)!r}")
    return program


def _postorder(root: ast.expr, text: str) -> list[ast.expr]:
    """The nodes that compute, operands before what uses them; no recursion, so no text can overflow the stack."""
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if len(found) > NODES:
            _fail(f"at most {NODES} numbers, names and operations", f"more in {_short(text)!r}")
        if isinstance(node, ast.BinOp):
            waiting += [node.left, node.right]
        elif isinstance(node, ast.UnaryOp):
            waiting.append(node.operand)
        elif isinstance(node, ast.Call):
            waiting += node.args
    return found[::-1]


def _operation(node: ast.expr, piece: str) -> tuple[int, Operation]:
    """How many operands a node takes and what it does to them.

    Raises:
        ValueError: when it is not on the list, naming the piece of text.
    """
    if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in OPERATORS:
        return (2 if isinstance(node, ast.BinOp) else 1), OPERATORS[type(node.op)]
    if not isinstance(node, ast.Call) or isinstance(node.func, ast.Attribute):
        _fail(ALLOWED, repr(piece))
    if not isinstance(node.func, ast.Name) or node.func.id in {**PAIR, **NUMBERED, **CONSTANTS}:
        _fail("an operator before the bracket", f"{piece!r} (products are written with *)")
    if node.func.id not in FUNCTIONS:
        _fail(f"a function out of {', '.join(sorted(FUNCTIONS))}", repr(_short(node.func.id)))
    arity, operation = FUNCTIONS[node.func.id]
    if node.keywords or len(node.args) != arity:
        _fail(f"{node.func.id} of {arity} argument{'s' * (arity > 1)}", repr(piece))
    return arity, operation


def _number(value: object, piece: str) -> float:
    if type(value) not in (int, float):
        _fail(ALLOWED, repr(piece))
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    return _finite(number, piece)


def _finite(number: float, piece: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"expected finite constants, but {piece} is not a finite number")
    return number


def _name(name: str) -> float | tuple[Instruction, ...]:
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name in FUNCTIONS:
        _fail(f"brackets after {name}", f"{name!r} alone")
    index = PAIR.get(name, NUMBERED.get(name))
    if index is None:
        _fail(ALLOWED, f"the name {_short(name)!r}")
    return (Instruction(coordinate=index),)


def _combine(operation: Operation, parts: list, piece: str, power: bool) -> float | tuple[Instruction, ...]:
    """An operation on constants is done now, in floats; on anything else it joins the program."""
    if power and isinstance(parts[1], float) and abs(parts[1]) > POWER and not isinstance(parts[0], float):
        _fail(f"an exponent from -{POWER} to {POWER}", repr(piece))
    if all(isinstance(part, float) for part in parts):
        try:
            return _finite(float(operation.number(*parts)), piece)
        except (OverflowError, ZeroDivisionError, ValueError):
            _finite(math.inf, piece)
    operands = [(Instruction(value=part),) if isinstance(part, float) else part for part in parts]
    return (*(step for operand in operands for step in operand), Instruction(operation.tensor, len(parts)))


# ------------------------------------------------------------------------------------------------ the objective


class Expression(Objective):
    """A surface written as text in x and y, or in x1 to x9: as many coordinates as the highest number, at least two.

    May hold numbers, pi, e, + - * / **, brackets and the functions in `FUNCTIONS`. A coordinate that the text does not
    name has gradient zero.

    Args:
        text: the formula.
        domain: where it is drawn, one (low, high) a coordinate; (-2, 2) each when not given.
        start: where descending begins; when not given, (1, 1, …) in a domain of (-2, 2), or a point nearby where the
            formula is finite.

    Raises:
        ValueError: in one line, on anything else: names the piece of text and says what is allowed.
    """

    name = "expression"
    title = "Your own formula"

    def __init__(
        self,
        text: str,
        *,
        domain: Sequence[tuple[float, float]] | None = None,
        start: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(text, str):
            _fail("a formula as text", type(text).__name__)
        self.text = self.title = text.strip()
        self.settings = {"text": self.text}
        _check_text(self.text)
        tree = _tree(self.text)
        self.program = _compile(tree, self.text)
        self._names = _coordinates(tree)
        self.dim = len(self._names)
        self._given = {key: value for key, value in (("domain", domain), ("start", start)) if value is not None}
        self.domain = _check_domain(domain, self.dim)
        self.start = self._first(start)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the coordinates, as the text has them."""
        return self._names

    def __call__(self, x: Tensor) -> Tensor:
        stack: list[Any] = []
        for step in self.program:
            if step.apply is not None:
                operands = stack[-step.arity :]
                del stack[-step.arity :]
                stack.append(step.apply(*operands))
            else:
                stack.append(step.value if step.coordinate is None else x[step.coordinate])
        return stack[0]

    def recipe(self) -> str:
        if not self._given:
            return repr(self.text)
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._given)
        return f"wb.problems.expression.parse({self.text!r}, {given})"

    def _first(self, start: Sequence[float] | None) -> tuple[float, ...]:
        """The start: as given, or as near to the usual one as the formula is finite.

        Raises:
            ValueError: when the formula is finite nowhere in the domain, or the start is not a point.
        """
        points = _scatter(self.domain).requires_grad_()
        with torch.enable_grad():
            values = self(points)
            (slopes,) = torch.autograd.grad(values.sum(), points)
        points, finite = points.detach(), torch.isfinite(values) & torch.isfinite(slopes).all(0)
        if not bool(finite.any()):
            sides = zip(self.dims, self.domain, strict=True)
            where = ", ".join(f"{low:g} ≤ {name} ≤ {high:g}" for name, (low, high) in sides)
            _fail(f"a finite value and slope somewhere in {where}", f"none from {_short(self.text)!r}")
        if start is not None:
            return _point(start, self.dim, "start")
        distance = (points - points[:, :1]).norm(dim=0).where(finite, math.inf)
        return tuple(points[:, int(distance.argmin())].tolist())


def parse(text: str, **where: Any) -> Expression:
    """The surface that a text describes; see `Expression`."""
    return Expression(text, **where)


def _coordinates(tree: ast.expr) -> tuple[str, ...]:
    """Names of the coordinates of a checked expression, in order.

    Raises:
        ValueError: when x or y stand beside x1 to x9.
    """
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    pair, numbered = sorted(used & PAIR.keys()), sorted(used & NUMBERED.keys())
    if pair and numbered:
        _fail("either x and y or x1 to x9", f"{pair[0]} and {numbered[0]} together")
    if pair:
        return tuple(PAIR)
    return tuple(NUMBERED)[: max(2, NUMBERED[numbered[-1]] + 1)]


def _check_domain(domain: Any, dim: int) -> tuple[tuple[float, float], ...]:
    if domain is None:
        return ((-2.0, 2.0),) * dim
    sides = list(domain)
    if len(sides) != dim:
        _fail(f"domain to be {dim} pairs (low, high)", repr(domain))
    pairs = [_point(side, 2, "each side of domain") for side in sides]
    if not all(low < high for low, high in pairs):
        _fail("domain to be pairs with low < high", repr(domain))
    return tuple((low, high) for low, high in pairs)


def _point(values: Any, dim: int, what: str) -> tuple[float, ...]:
    try:
        point = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        point = ()
    if len(point) != dim or not all(map(math.isfinite, point)):
        _fail(f"{what} to be {dim} finite numbers", repr(values))
    return point


def _scatter(domain: Sequence[tuple[float, float]]) -> Tensor:
    """Points that fill a domain evenly, (dim, 1025): the usual start first, then a Kronecker sequence."""
    low, high = torch.tensor(domain, dtype=torch.float64).T
    slopes = torch.tensor((2, 3, 5, 7, 11, 13, 17, 19, 23)[: len(domain)], dtype=torch.float64).sqrt()
    spread = (torch.arange(1, 1025, dtype=torch.float64) * slopes[:, None]) % 1
    unit = torch.cat([torch.full((len(domain), 1), 0.75, dtype=torch.float64), spread], 1)
    return low[:, None] + (high - low)[:, None] * unit

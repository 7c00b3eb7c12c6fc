import ast
import functools
import math
import operator
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from workbench.catalogue import find_objective, make
from workbench.problems.expression import DEPTH, FUNCTIONS, LENGTH, NODES, Expression, parse

f64 = functools.partial(torch.tensor, dtype=torch.float64)
POINTS = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (2, 50)))


def attempt(text):
    """The surface, or the reason why there is none."""
    try:
        return parse(text)
    except ValueError as error:
        return str(error)


def slope(objective, x):
    return torch.func.grad(lambda p: objective(p).sum())(x)


# ------------------------------------------------------------------------------------------- what a text means

FORMULAS = {
    "(1-x)**2 + 100*(y-x**2)**2": lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
    "x*y": lambda x, y: x * y,
    "sin(x)*exp(-y**2) + cos(pi*x)": lambda x, y: torch.sin(x) * torch.exp(-(y**2)) + torch.cos(math.pi * x),
    "max(x, 0) + min(y, x) + max(1, y)": lambda x, y: x.clamp(min=0) + torch.minimum(x, y) + y.clamp(min=1),
    "abs(x) - sqrt(2)*tanh(y/e)": lambda x, y: x.abs() - math.sqrt(2) * torch.tanh(y / math.e),
    "atan(x) + sinh(y) - cosh(x) + log(3 + y) - tan(x/4)": lambda x, y: (
        torch.atan(x) + torch.sinh(y) - torch.cosh(x) + torch.log(3 + y) - torch.tan(x / 4)
    ),
    "asin(x/3) * acos(y/3) + sqrt(x + 2.5)": lambda x, y: torch.asin(x / 3) * torch.acos(y / 3) + torch.sqrt(x + 2.5),
    "2**x - x**-2 + .5*y + 1e-1*x + 1_000": lambda x, y: 2**x - x**-2 + 0.5 * y + 0.1 * x + 1000,
}


@pytest.mark.parametrize("text", FORMULAS)
def test_equals_the_function_written_by_hand(text):
    torch.testing.assert_close(parse(text)(POINTS), FORMULAS[text](*POINTS), rtol=1e-13, atol=1e-13)


def test_every_function_is_tried_in_the_formulas_above():
    assert not [name for name in FUNCTIONS if not any(f"{name}(" in text for text in FORMULAS)]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("-x**2", lambda x, y: -(x**2)),
        ("2*x**2", lambda x, y: 2 * (x**2)),
        ("x - y - 1", lambda x, y: (x - y) - 1),
        ("x / y / 2", lambda x, y: (x / y) / 2),
        ("x - (y - 1)", lambda x, y: x - (y - 1)),
        ("x**2**3", lambda x, y: x**8),
        ("(x**2)**3", lambda x, y: x**6),
        ("x + y*2", lambda x, y: x + (y * 2)),
        ("-x*-y", lambda x, y: x * y),
        ("+x--y", lambda x, y: x + y),
        ("2**-x", lambda x, y: 0.5**x),
    ],
)
def test_operators_bind_as_in_mathematics(text, same):
    torch.testing.assert_close(parse(text)(POINTS), same(*POINTS), rtol=1e-12, atol=1e-12)


LEAVES = st.sampled_from("xy").map(lambda name: ast.Name(name, ast.Load())) | st.sampled_from(
    (0, 1, 2, 3, 0.5, 1.25)
).map(ast.Constant)
BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
CALLS = {"sin": np.sin, "cos": np.cos, "tanh": np.tanh, "atan": np.arctan, "abs": np.abs}
PAIRS = {"min": np.minimum, "max": np.maximum}


def grown(inner):
    def call(names, *arguments):
        return st.builds(lambda name, *a: ast.Call(ast.Name(name, ast.Load()), [*a], []), names, *arguments)

    return st.one_of(
        st.builds(lambda a, op, b: ast.BinOp(a, op(), b), inner, st.sampled_from([*BINARY]), inner),
        st.builds(lambda a, k: ast.BinOp(a, ast.Pow(), ast.Constant(k)), inner, st.sampled_from((2, 3))),
        st.builds(lambda op, a: ast.UnaryOp(op(), a), st.sampled_from((ast.USub, ast.UAdd)), inner),
        call(st.sampled_from([*CALLS]), inner),
        call(st.sampled_from([*PAIRS]), inner, inner),
    )


TREES = st.recursive(LEAVES, grown, max_leaves=12)


def value(node, x, y):
    """What a tree means, by the shortest road: an oracle for the parser."""
    match node:
        case ast.Name(name):
            return {"x": x, "y": y}[name]
        case ast.Constant(number):
            return np.float64(number)
        case ast.BinOp(left, ast.Pow(), ast.Constant(power)):
            return value(left, x, y) ** power
        case ast.BinOp(left, op, right):
            return BINARY[type(op)](value(left, x, y), value(right, x, y))
        case ast.UnaryOp(op, operand):
            return value(operand, x, y) * (-1 if isinstance(op, ast.USub) else 1)
        case ast.Call(ast.Name(name), arguments):
            return {**CALLS, **PAIRS}[name](*(value(argument, x, y) for argument in arguments))


@settings(max_examples=300)
@given(TREES)
def test_any_expression_means_what_its_tree_says(tree):
    objective = attempt(ast.unparse(tree))
    if isinstance(objective, str):
        refused = ("not a finite number", "at most", "expression in x and y", "a finite value")
        assert any(reason in objective for reason in refused), objective
        return
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(value(tree, *POINTS.numpy()), 50)
    found = objective(POINTS).numpy()
    ordinary = np.isfinite(expected) & (np.abs(expected) < 1e12)
    np.testing.assert_allclose(found[ordinary], expected[ordinary], rtol=1e-8, atol=1e-8)


# --------------------------------------------------------------------------------------------- what is refused

REFUSED = {
    "__import__('os').system('x')": r"got \"'\" at character 12",
    "__import__(x)": r"a function out of abs, .* got '__import__'",
    "x.__class__": r"got 'x.__class__'",
    "x.__class__()": r"got 'x.__class__\(\)'",
    "(lambda: 1)()": r"got ':' at character 8",
    "[x for x in ()]": r"got '\[' at character 1",
    "(x for x in y)": r"got '\(x for x in y\)'",
    "{x: y}": r"got '{' at character 1",
    "x[0]": r"got '\[' at character 2",
    "x if y else 1": r"got 'x if y else 1'",
    "x < y": r"got '<' at character 3",
    "x == y": r"got '=' at character 3",
    "x is y": r"got 'x is y'",
    "x and y": r"got 'x and y'",
    "not x": r"got 'not x'",
    "~x": r"got '~' at character 1",
    "(x:=1)": r"got ':' at character 3",
    "f'{x}'": r"got \"'\" at character 2",
    "'x'*9999999999": r"got \"'\" at character 1",
    "x@y": r"got '@' at character 2",
    "x//y": r"got 'x//y'",
    "x%2": r"got '%' at character 2",
    "x^2": r"expected powers written with \*\*, got \^",
    "x, y": r"got 'x, y'",
    "sin(*x)": r"got '\*x'",
    "sin(x=1)": r"got '=' at character 6",
    "sin(x, y)": r"expected sin of 1 argument, got 'sin\(x, y\)'",
    "min(x)": r"expected min of 2 arguments, got 'min\(x\)'",
    "sin": r"expected brackets after sin, got 'sin' alone",
    "print(x)": r"a function out of .* got 'print'",
    "eval(x)": r"a function out of .* got 'eval'",
    "x(y)": r"an operator before the bracket, got 'x\(y\)'",
    "2(x)": r"an operator before the bracket, got '2\(x\)'",
    "2x": r"an operator between a number and a name, got '2x' \(write 2\*x\)",
    "1j*x": r"an operator between a number and a name, got '1j'",
    "0x10*x": r"an operator between a number and a name, got '0x10'",
    "True*x": r"got 'True'",
    "None": r"got 'None'",
    "...": r"got '...'",
    "await x": r"got 'await x'",
    "(yield x)": r"got 'yield x'",
    "z + x": r"got the name 'z'",
    "x10": r"got the name 'x10'",
    "x0": r"got the name 'x0'",
    "x + x1": r"expected either x and y or x1 to x9, got x and x1 together",
    "x +": r"got 'x \+', which ends too early",
    "(x": r"got '\(x' at character 1: '\(' was never closed",
    "x y": r"got 'y' at character 3",
    "import os": r"got 'import os' at character 1",
    "": "got an empty text",
    " \n": "got an empty text",
    "3 + pi": r"expected an expression in x and y \(or x1 to x9\), got the constant '3 \+ pi'",
    "9**9**9": r"9\*\*9\*\*9 is not a finite number",
    "x + 9**9**9": r"9\*\*9\*\*9 is not a finite number",
    "9**9**9**9**9**9**9*x": "is not a finite number",
    "1/0 + x": r"1/0 is not a finite number",
    "(-8)**(1/3) * x": r"\(-8\)\*\*\(1/3\) is not a finite number",
    "log(0) + x": r"log\(0\) is not a finite number",
    "exp(1000) + x": r"exp\(1000\) is not a finite number",
    "1e999*x": r"1e999 is not a finite number",
    "9" * 400 + "*x": r"9{39}… is not a finite number",
    "x**(10**10)": r"expected an exponent from -1000 to 1000, got 'x\*\*\(10\*\*10\)'",
    "x**-9999": r"expected an exponent from -1000 to 1000",
    "log(-1 - x**2)": r"a finite value and slope somewhere in -2 ≤ x ≤ 2, -2 ≤ y ≤ 2, got none",
    "(" * 51 + "x" + ")" * 51: r"at most 50 open brackets, got more at character 51",
    "(" * 400: r"at most 50 open brackets",
    "-" * 400 + "x": r"at most 200 numbers, names and operations",
    "a" * 400: r"got the name 'a{39}…'",
    "2" + "a" * 400: r"got '2a{38}…' \(write 2\*a{37}…\)",
    "a" * 400 + "(x)": r"got 'a{39}…'",
    "x" * 501: r"at most 500 characters, got 501",
    "x+" * 10**6 + "x": r"at most 500 characters, got 2000001",
    "х + 1": r"got '\\u0445' \(CYRILLIC SMALL LETTER HA\) at character 1",
    "ｘ + 1": r"\(FULLWIDTH LATIN SMALL LETTER X\) at character 1",
    "x²": r"\(SUPERSCRIPT TWO\) at character 2",
    "π*x": r"\(GREEK SMALL LETTER PI\) at character 1",
    "x\0": r"got '\\x00' at character 2",
    "x\\\n+1": r"got '\\\\' at character 2",
    "x\n+ y": r"got '\\n' at character 2",
    "x # y": r"got '#' at character 3",
    "x\u202e+1": r"\(RIGHT-TO-LEFT OVERRIDE\) at character 2",
    "x\ud800": r"got '\\ud800' at character 2",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:40]))
def test_anything_else_is_refused_in_one_line_that_names_the_piece(text):
    with pytest.raises(ValueError, match=REFUSED[text]) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize("thing", [None, 3, b"x", ["x"]])
def test_only_text_is_parsed(thing):
    with pytest.raises(ValueError, match=f"expected a formula as text, got {type(thing).__name__}"):
        parse(thing)


def quiet_or_refused(text):
    objective = attempt(text)
    if isinstance(objective, str):
        assert objective.startswith("expected ")
        assert "\n" not in objective
        assert len(objective) < 250
    else:
        assert objective(torch.ones(objective.dim, 3)).shape == (3,)


KEYWORDS = ["lambda", "if", "else", "for", "in", "not", "await", "yield", "or", "and", "is"]
OTHERS = ["__import__", "eval", "pi", "**", "//", "x1", "x9", "1e9", "9**9", ":=", "[", "'", "\\"]
PIECES = [*"xy019.,()+-*/^ _e", *KEYWORDS, *OTHERS, *(f"{name}(" for name in FUNCTIONS)]


@settings(max_examples=500, deadline=5000)
@given(st.text())
def test_no_text_does_anything_but_parse_or_be_refused(text):
    quiet_or_refused(text)


@settings(max_examples=1000, deadline=5000)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_no_mixture_of_pieces_does_anything_but_parse_or_be_refused(text):
    quiet_or_refused(text)


@settings(max_examples=200, deadline=5000)
@given(st.sampled_from(PIECES), st.integers(1, 500), st.text("x()*-+.,", max_size=4), st.text("x()*-+.,", max_size=4))
def test_no_repetition_hangs_or_overflows(piece, times, before, after):
    quiet_or_refused(before + piece * times + after)


WATCHED = """
import sys
from workbench.problems.expression import parse
texts = {texts!r}
def attempt():
    for text in texts:
        try:
            parse(text)
        except ValueError:
            pass
attempt()  # whatever is imported on first use is imported now
seen = set()
sys.addaudithook(lambda event, args: seen.add(event))
attempt()
print(sorted(seen))
"""


def test_parsing_executes_imports_and_opens_nothing():
    texts = [text for text in (*REFUSED, *FORMULAS) if len(text) < 1000]
    run = subprocess.run(
        [sys.executable, "-c", WATCHED.format(texts=texts)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    # The one event is that of reading a text into a tree; running what was read would add "exec".
    assert ast.literal_eval(run.stdout) == ["compile"]


def test_the_limits_are_where_they_are_said_to_be():
    terms = (NODES + 1) // 2
    assert parse("+".join("x" * terms))(f64([1, 1])).item() == terms
    assert parse("(" * DEPTH + "x" + ")" * DEPTH)(f64([3, 1])).item() == 3
    assert parse("x" + " " * (LENGTH - 3) + "+1")
    with pytest.raises(ValueError, match="at most 200"):
        parse("+".join("x" * (terms + 1)))
    with pytest.raises(ValueError, match="at most 500"):
        parse("x" + " " * (LENGTH - 2) + "+1")


# ------------------------------------------------------------------------------------------- as an objective


@pytest.mark.parametrize(("text", "expected"), [("x**2", [4, 0]), ("3*y", [0, 3]), ("0*x + 2", [0, 0])])
def test_a_coordinate_not_named_has_gradient_zero(text, expected):
    x = f64([2, 5])
    assert slope(parse(text), x).tolist() == expected
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(parse(text)(leaf), leaf)[0].tolist() == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x", ("x", "y")),
        ("y", ("x", "y")),
        ("x1", ("x1", "x2")),
        ("x3 + x1", ("x1", "x2", "x3")),
        ("x9", tuple(f"x{i}" for i in range(1, 10))),
    ],
)
def test_coordinates_are_those_of_the_text(text, names):
    objective = parse(text)
    assert objective.dims == names
    assert objective.dim == len(objective.start) == len(objective.domain) == len(names)


def test_numbered_coordinates_mean_the_surface_they_spell():
    points = torch.from_numpy(np.random.default_rng(1).uniform(-2, 2, (3, 20)))
    found = parse("100*(x2-x1**2)**2 + (1-x1)**2 + 100*(x3-x2**2)**2 + (1-x2)**2")(points)
    torch.testing.assert_close(found, make("rosenbrock", dim=3)(points))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", FORMULAS)
def test_many_points_keep_shape_and_dtype(text, dtype):
    objective, points = parse(text), POINTS[:, :12].to(dtype)
    together = objective(points.reshape(2, 3, 4))
    assert together.dtype == dtype
    alone = torch.stack([objective(points[:, i]) for i in range(12)]).reshape(3, 4)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", FORMULAS)
def test_needs_nothing_from_the_host(text):
    points = torch.empty(2, 7, device="meta", requires_grad=True)
    loss = parse(text)(points)
    (found,) = torch.autograd.grad(loss.sum(), points)
    assert (loss.device.type, found.device.type, found.shape) == ("meta", "meta", (2, 7))


@pytest.mark.parametrize("text", [*FORMULAS, "+".join("x" * 100)], ids=lambda text: text[:30])
def test_compiles_without_a_graph_break(text):
    objective = parse(text)

    def value_and_slope(x):
        found, values = torch.func.grad(lambda p: ((v := objective(p)).sum(), v), has_aux=True)(x)
        return values, found

    torch.compiler.reset()
    compiled = torch.compile(value_and_slope, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(POINTS), value_and_slope(POINTS), rtol=1e-12, atol=1e-12)


def test_says_what_it_is():
    objective = parse("  x**2 + y ")
    assert isinstance(objective, Expression)
    assert (objective.name, objective.title) == ("expression", "x**2 + y")
    assert objective.settings == {"text": "x**2 + y"}
    assert objective.start == (1, 1)
    assert isinstance(find_objective("x**2 + 3*y**2"), Expression)


def test_recipe_makes_the_same_again():
    plain = parse("x**2 + y")
    assert ast.literal_eval(plain.recipe()) == "x**2 + y"
    moved = parse("x**2 + y", domain=((-1, 3), (0, 2)), start=(0.5, 1))
    tree = ast.parse(moved.recipe(), mode="eval").body
    again = parse(
        *map(ast.literal_eval, tree.args), **{word.arg: ast.literal_eval(word.value) for word in tree.keywords}
    )
    assert ast.unparse(tree.func) == "wb.problems.expression.parse"
    assert (again.text, again.domain, again.start) == (moved.text, moved.domain, moved.start)


def test_start_is_where_the_formula_and_its_slope_are_finite():
    for text in ("log(-x) + sqrt(y + 1)", "sqrt(x - 1)"):
        start = f64(parse(text).start)
        assert parse(text)(start).isfinite()
        assert slope(parse(text), start).isfinite().all()
    assert parse("x", domain=((10, 20), (-8, 0))).start == (17.5, -2)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"domain": ((0, 1),)}, r"expected domain to be 2 pairs"),
        ({"domain": ((0, 1), (1, 0))}, r"expected domain to be pairs with low < high"),
        ({"domain": ((0, 1), (0, math.inf))}, r"expected each side of domain to be 2 finite numbers"),
        ({"domain": ((0, 1), "ab")}, r"expected each side of domain to be 2 finite numbers, got 'ab'"),
        ({"start": (1,)}, r"expected start to be 2 finite numbers, got \(1,\)"),
        ({"start": (1, math.nan)}, r"expected start to be 2 finite numbers"),
    ],
)
def test_domain_and_start_are_checked(where, message):
    with pytest.raises(ValueError, match=message):
        parse("x*y", **where)

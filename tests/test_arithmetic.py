"""A step written out as C++ arithmetic: every operation against torch, and everything that has to be refused."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench import arithmetic
from workbench.arithmetic import RUNS, NotArithmetic, Reader, Writer, trace
from workbench.native import Input, Loop, source

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan]

UNARY = (
    *("neg", "abs", "sqrt", "rsqrt", "reciprocal", "sign", "relu", "sigmoid", "round", "floor", "ceil", "trunc"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc", "sin", "cos", "tan", "asin", "acos"),
    *("atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "isfinite", "isnan", "square"),
)
BINARY = ("add", "sub", "rsub", "mul", "div", "pow", "atan2", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge")

FORMULAS = {
    "powers": lambda x: sum(x**n for n in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 1.5, 7)),
    "two to the x": lambda x: 2.0**x,
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=1.0) + x.clamp(max=0.0),
    "where": lambda x: torch.where(x > 0, x, -3.0 * x),
    "logic": lambda x: ((x > 0) & (x < 1) | ~(x > -1) ^ (x == 0)).to(x.dtype) + torch.logical_not(x).to(x.dtype),
    "factors": lambda x: torch.add(x, x * x, alpha=0.1) - torch.sub(x, 2.0, alpha=3),
    "mixed types": lambda x: x + torch.arange(3)[:, None] + (x > 0) + torch.tensor(2),
    "whole numbers": lambda x: ((x > 0).to(torch.int32) + 1) / 2 + x,
    "lerp": lambda x: torch.lerp(x, x * x, 0.3) + torch.lerp(x, x * x, x.abs().clamp(0, 1)),
    "indexing": lambda x: x[0] * x[1:] + x[-1] * x[:-1],
    "stacking": lambda x: torch.cat([x[:1], torch.stack([x[2], x[1]])]).flip(0),
    "reshaping": lambda x: x.T.unsqueeze(1).transpose(0, 2).squeeze().view(3, 1, -1).expand(3, 2, -1).sum(1),
    "sums": lambda x: x.sum(0) + x.mean(0) + x.prod(0) + x.amax(0) + x.amin(0) + x.norm(dim=0) + x * 0,
    "any, all": lambda x: (x > 0).any(0).to(x.dtype) + (x > 0).all(0).to(x.dtype) + x * 0,
    "running": lambda x: x.cumsum(0) + x.cumprod(0),
    "products": lambda x: MATRIX @ x + torch.vmap(lambda p: p @ MATRIX @ p, in_dims=1)(x),
    "constants": lambda x: x * torch.tensor([[1.0], [2.0], [3.0]]) + torch.linspace(0, 1, 3)[:, None],
    "gradient": torch.func.grad(lambda p: (p.prod(0) * p[1:].sin() + p[0] ** 3).sum()),
    "exponentials": lambda x: x.logsumexp(0) + x.softmax(0) + x.log_softmax(0),
    "activations": lambda x: sum(f(x) for f in (F.softplus, F.gelu, F.silu, F.relu)) + torch.hypot(x, x[0]),
}


MATRIX = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, -1.0, 1.0]], dtype=torch.float64)


def run_once(step, x):
    """The step of x in C++."""
    loop = Loop(lambda x: [step(x)], [Input("state", tuple(x.shape[:-1]), x.dtype, True)], 0)
    (new,) = loop([x], x.shape[-1], torch.empty(1, *x.shape, dtype=x.dtype), 1)
    return new


def close(ours, torchs):
    """Equal within a few units in the last place, infinities and NaN included."""
    loose = 100 * torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, torchs, rtol=loose, atol=loose, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.slow
def test_operations_of_one_number_are_those_of_torch(dtype):
    generator = torch.Generator().manual_seed(0)
    row = torch.cat([torch.tensor(SPECIAL), torch.randn(70, generator=generator)]).to(dtype)
    x = row.repeat(len(UNARY), 1)

    def step(x):
        return torch.stack([getattr(torch, name)(x[i]).to(x.dtype) for i, name in enumerate(UNARY)])

    ours, torchs = run_once(step, x), step(x)
    for i, name in enumerate(UNARY):
        try:
            close(ours[i], torchs[i])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_operations_of_two_numbers_are_those_of_torch(dtype):
    pairs = torch.cartesian_prod(torch.tensor(SPECIAL), torch.tensor(SPECIAL)).T.to(dtype)
    x = torch.cat([pairs, torch.zeros(len(BINARY) - 2, pairs.shape[1], dtype=dtype)])

    def step(x):
        return torch.stack([getattr(torch, name)(x[0], x[1]).to(x.dtype) for name in BINARY])

    ours, torchs = run_once(step, x), step(x)
    for i, name in enumerate(BINARY):
        try:
            close(ours[i], torchs[i])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_those_of_torch(name):
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def step(x):
        return torch.broadcast_to(FORMULAS[name](x), x.shape[-2:] if name != "indexing" else (2, x.shape[-1])).clone()

    if name == "indexing":  # gives two numbers a run, where a state has three
        close(run_once(lambda x: torch.cat([step(x), x[:1]]), x)[:2], step(x))
    else:
        close(run_once(step, x), step(x))


def test_sums_and_products_are_rounded_as_in_eager_code():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))

    def step(x):
        return x * x * 3.1 + x / 7 - 0.1 * (x[0] * x[1] - x[2])

    assert torch.equal(run_once(step, x), step(x))


REFUSED = {
    "mean over runs": lambda x: x - x.mean(-1, keepdim=True),
    "one run for all": lambda x: x * x[:, :1],
    "some runs": lambda x: torch.cat([x[:, :5], x[:, 5:]], -1),
    "runs reversed": lambda x: x.flip(-1),
    "runs shifted": lambda x: x.roll(1, -1),
    "sum along runs": lambda x: x.cumsum(-1),
    "softmax over runs": lambda x: x.softmax(-1),
    "runs sorted": lambda x: x.sort(-1).values,
    "product over runs": lambda x: (x @ x.T) @ x,
    "product of runs": lambda x: x + (x.T @ x).sum(0),
    "pairs of runs": lambda x: x + (x[0, :, None] - x[0]).sum(0),
    "runs flattened": lambda x: x.reshape(-1).reshape(x.shape) * x.reshape(-1)[0],
    "runs numbered": lambda x: x + torch.arange(x.shape[1]),
    "one run written": lambda x: torch.select_scatter(x, torch.zeros(3), 1, 0),
    "a value read": lambda x: x if x[0, 0] > 0 else -x,
    "a value taken": lambda x: x * x[0, 0].item(),
    "written in place": lambda x: x.clone().mul_(2),
    "bits read as another type": lambda x: x + x.view(torch.int32),
    "rounded quotients": lambda x: torch.div(x, 3.0, rounding_mode="floor"),
    "rounded to digits": lambda x: x.round(decimals=2),
    "random": lambda x: x + torch.rand(3, 1),
    "uninitialised": lambda x: x + torch.empty(3, 1),
    "another shape": lambda x: x[:2],
    "another type": lambda x: x.to(torch.float64),
    "half precision": lambda x: x.half().float(),
    "too many numbers": lambda x: x + x[:1].expand(300, -1).sum(0),
    "too many operations": lambda x: functools.reduce(lambda y, n: y * x + n, range(20), x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_arithmetic_of_one_run_is_refused(name, monkeypatch):
    monkeypatch.setattr(arithmetic, "MOST_STATEMENTS", 100)
    with pytest.raises(NotArithmetic):
        source(lambda x: [REFUSED[name](x)], [Input("state", (3,), torch.float32, True)], 0)


def test_a_sum_over_runs_that_nothing_depends_on_is_no_obstacle():
    x = torch.randn(3, 9)
    assert torch.equal(run_once(lambda x: x + torch.full_like(x.sum(), 2.0), x), x + 2)


def test_known_numbers_are_computed_beforehand_and_equal_expressions_once():
    writer = Writer()
    writer.dtypes["a"] = torch.float64
    traced = trace(lambda x: [(x * x) + (x * x) * torch.tensor(3.0).cos()], [torch.zeros(RUNS, dtype=torch.float64)])
    Reader(traced, writer).read([np.array(["a"], object)])
    assert len(writer.statements) == 3
    assert not any("cos" in line for line in writer.statements)

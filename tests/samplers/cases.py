"""What several tests of samplers start from: three modes, normal points, numbers in double precision."""

import functools

import torch

import workbench as wb
from workbench.problems.densities import Mixture
from workbench.samplers.solve import solve

TARGET = Mixture([[1.5, 0.0], [-1.0, 0.8], [0.0, -1.2]], [0.5, 0.4, 0.6], [1, 2, 1.5])


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def normal(n=16, seed=0, dim=2):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@functools.cache
def fine(path, n=400, seed=3):
    """(field, starts, where the flow takes them)."""
    field = wb.exact_field(TARGET, path)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start = field.interpolant.spread(torch.tensor(field.interpolant.ends[0])) * noise
    return field, start, solve(field, "rk4", x=start, steps=1000)


def error(solver, path, steps, hyper=None):
    """Root mean square distance to where the flow takes the same starts."""
    field, start, aim = fine(path)
    return float((solve(field, solver, x=start, steps=steps, hyper=hyper) - aim).square().sum(-1).mean().sqrt())

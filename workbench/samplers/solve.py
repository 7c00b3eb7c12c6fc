"""Where samples end: a sampling routine run to its end without keeping what lies between."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.flows.fields import Field
from workbench.rollout import advance, as_key, runs_of
from workbench.routine import RUNNING, status
from workbench.samplers.base import Solver
from workbench.samplers.grids import Grid
from workbench.samplers.sampling import Sampling, SamplingState, sampling


def run_to_end(
    routine: Sampling, *, start: Any = None, seed: Any = 0, hyper: Mapping[str, Any] | None = None
) -> SamplingState:
    """The last state of a sampling routine; arguments as for `wb.Session`, and the same bits as it comes to.

    Raises:
        ArithmeticError: when a run stops being finite on the way, or does not arrive.
    """
    key = as_key(seed)
    state = routine.init(key.stream("init"), start=start, runs=runs_of(start, hyper, key.seed, routine.start_dims))
    ready = routine.normalise(hyper, runs=routine.runs(state))
    most = None if routine.method.adaptive else routine.times(ready, state.t).shape[-1] - 1
    k = 0
    while k != most if most is not None else not bool(routine.done(state).all()):
        state, _ = advance(routine, state, ready, key, k)
        k += 1
    if bool((state.diverged != RUNNING).any()):
        worst = status(int(state.diverged.max()))
        raise ArithmeticError(f"expected a solution that stays finite, got one that {worst}; take more steps")
    return state


def solve(
    field: Field | Any,
    solver: str | Solver = "rk4",
    *,
    x: Any = None,
    steps: int = 100,
    grid: str | Grid | Any = "uniform-grid",
    reverse: bool = False,
    samples: int = 1000,
    seed: Any = 0,
    hyper: Mapping[str, Any] | None = None,
) -> Tensor:
    """Where a solver takes samples, from the source to the data (from the data to the source when `reverse`).

    Args:
        field, solver, steps, grid, reverse: as for `wb.sampling`.
        x: where they start, (samples, dim) or (runs, samples, dim); drawn from the source when None. Its dtype and
            device are those of the solution.
        samples: how many are drawn when x is None.
        seed: of the draws.
        hyper: hyperparameters by name; a value with a leading run axis gives several runs.

    Returns:
        (samples, dim), or (runs, samples, dim) when x, a hyperparameter or the seed has a run axis.

    Raises:
        ValueError: on what `wb.sampling` refuses.
        ArithmeticError: when a run stops being finite on the way.
    """
    like = torch.as_tensor(x) if x is not None else torch.empty(0)
    like = like if like.is_floating_point() else like.float()
    more: dict[str, Any] = {"steps": steps, "grid": grid, "reverse": reverse, "samples": samples}
    routine = sampling(field, solver, **more, dtype=like.dtype, device=like.device)
    state = run_to_end(routine, start=x, seed=seed, hyper=hyper)
    many = runs_of(x, hyper, as_key(seed).seed, routine.start_dims) is not None
    return state.x if many else state.x.squeeze(0)

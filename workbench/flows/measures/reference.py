"""Fine solutions to compare with: where the flow really goes, and how far a solver's step or run is from there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.routine import Key

FEWEST, MOST = 4, 256
"""Steps that a fine solution takes from one time asked for to the next: doubled from one to, at most, the other.

Exact fields of mixtures in the plane take 128 from source to data in single precision; those of points, which turn ever
faster towards the data, may not come to an end.
"""


class Reference(NamedTuple):
    """A fine solution. times: (n,). points: (n, runs, samples, dim). error: how far off it may be, (n,), a distance."""

    times: Tensor
    points: Tensor
    error: Tensor


def classical_step(field: Any, x: Tensor, t: Tensor, end: Tensor, slope: Tensor | None = None) -> Tensor:
    """One step of the classical Runge–Kutta method; times broadcast to points without their last axis.

    Source: Kutta 1901, Z. Math. Phys. 46.
    """
    h, middle = (end - t).unsqueeze(-1), (t + end) / 2
    k1 = field(x, t).velocity if slope is None else slope
    k2 = field(x + h / 2 * k1, middle).velocity
    k3 = field(x + h / 2 * k2, middle).velocity
    k4 = field(x + h * k3, end).velocity
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def equal_steps(field: Any, x: Tensor, t: Tensor, end: Tensor, steps: int) -> Tensor:
    """The flow from x at t to `end`, by equal steps of the classical method."""
    stops = [t + (end - t) * (i / steps) for i in range(steps)]
    for a, b in zip(stops, [*stops[1:], end], strict=True):
        x = classical_step(field, x, a, b)
    return x


def solve_to(field: Any, x: Tensor, t: Tensor, end: Tensor, *, tolerance: float | None = None) -> tuple[Tensor, Tensor]:
    """Where the flow takes x (..., dim) from t to `end`, and how far off that may be.

    Equal steps of the classical method, twice as many until they change no point by more than 15 tolerances; a
    fifteenth of the change estimates the error of the finer one.

    Args:
        t, end: times that broadcast to x without its last axis.
        tolerance: a distance; 1e-5 in single and 1e-7 in double precision, times the size of the points, when None.

    Returns:
        (points, error 0-d): the largest error estimated, above the tolerance where 256 steps do not suffice. It can be
        trusted as far as these steps resolve what the field does.

    Source: Hairer, Nørsett & Wanner 1993, Solving ODEs I, II.4 (step doubling).
    """
    if tolerance is None:
        tolerance = (1e-5 if x.dtype == torch.float32 else 1e-7) * max(1.0, float(x.abs().max()))
    steps = FEWEST
    coarse, error = equal_steps(field, x, t, end, steps), torch.full((), torch.inf, dtype=x.dtype, device=x.device)
    while steps < MOST and not float(error) <= tolerance:
        steps *= 2
        fine = equal_steps(field, x, t, end, steps)
        error = (fine - coarse).norm(dim=-1).max() / 15
        coarse = fine
    return coarse, error


def reference(
    routine: Any, state: Any, times: Sequence[float] | Tensor, *, tolerance: float | None = None
) -> Reference:
    """The fine solution of a sampling routine from a state on, at times in the order they are passed.

    Args:
        routine, state: of `wb.sampling`; all samples at one time, as at the start.
        times: between the state's time and the routine's last; the state's own may be the first.
        tolerance: as for `solve_to`, from each time to the next.

    Returns:
        `Reference`; its error adds up what each stretch may be off, so that the flow's own stretching is left out.
    """
    stops = torch.as_tensor(times, dtype=state.x.dtype, device=state.x.device)
    x, t = state.x, state.t
    points, errors = [], [torch.zeros_like(stops[0])]
    for stop in stops:
        end = stop.expand(t.shape)
        x, error = (
            (x, torch.zeros_like(stop))
            if torch.equal(t, end)
            else solve_to(routine.field, x, t, end, tolerance=tolerance)
        )
        t = end
        points.append(x)
        errors.append(errors[-1] + error)
    return Reference(stops, torch.stack(points), torch.stack(errors[1:]))


def distance_to_reference(routine: Any, start: Any, state: Any, *, tolerance: float | None = None) -> Estimate:
    """E |x - x*|, one a run: x* is where the flow takes the samples of the state `start` until the times of `state`."""
    exact, _ = solve_to(routine.field, start.x, start.t.expand(state.t.shape), state.t, tolerance=tolerance)
    return mean_of((state.x - exact).norm(dim=-1), "mean over samples, against a fine Runge–Kutta solution")


def local_error(
    routine: Any, state: Any, hyper: Mapping[str, Any] | None = None, *, tolerance: float | None = None
) -> Estimate:
    """The local error of the next step: E |x' - x*| with x* where the flow itself takes the same points, one a run.

    Args:
        hyper: values by name, as for a session; defaults when None.

    Raises:
        ValueError: of a solver that draws noise: its step has no one point to go to.

    Source: Hairer, Nørsett & Wanner 1993, Solving ODEs I, II.3.
    """
    if routine.method.random:
        raise ValueError(f"expected a solver of an ODE, whose steps have an error, got {routine.method.title}")
    ready = routine.normalise(hyper, runs=routine.runs(state))
    with torch.no_grad():
        new, _ = routine.step(state, ready, routine.draw(Key(0), state, ready))
        return distance_to_reference(routine, state, new, tolerance=tolerance)

"""Descent: an objective and an optimizer, bound. Points are (dim, runs)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.optimizers.base import Optimizer
from workbench.problems.objective import Function, Objective
from workbench.routine import RUNNING, Key, Routine, Variable
from workbench.space import Space


class DescentState(NamedTuple):
    """`x`: points. `method`: the optimizer's state. `k`: steps made, 0-d. `diverged`: -1 a run, or where it stopped."""

    x: Tensor
    method: Any
    k: Tensor
    diverged: Tensor


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x) per run, ∇f(x)) where runs do not mix: by the tape, or by a function transform inside compiled code."""
    if torch.compiler.is_compiling():

        def total(points: Tensor) -> tuple[Tensor, Tensor]:
            loss = function(points)
            return loss.sum(), loss

        gradient, loss = torch.func.grad(total, has_aux=True)(x)
        return loss.detach(), gradient
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        loss = function(leaf)
        if not loss.requires_grad:
            return loss.detach(), torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    return loss.detach(), gradient


def finite(x: Tensor, *axes: int) -> Tensor:
    """Whether all numbers along some axes are finite: two kernels, where isfinite takes five."""
    return (x - x).sum(axes) == 0


def guard(old: Tensor, new: Tensor, diverged: Tensor, k: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Points that stay put once a run has stopped being finite, and the step at which that happened per run.

    A run diverges at step k when its point at step k + 1 is not finite: it keeps the point of step k from then on, and
    disturbs no other run.
    """
    live = diverged == RUNNING
    sound = finite(new, axis) & live
    return torch.where(sound.unsqueeze(axis), new, old), torch.where(live > sound, k, diverged)


class Descent(Routine):
    """An optimizer on a surface. Made by `wb.descent`."""

    run_axis = -1

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        *,
        gradient: str = "exact",
        schedule: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        if gradient != "exact":
            raise ValueError(f"expected gradient to be 'exact' (the one estimator there is so far), got {gradient!r}")
        if schedule is not None and "lr" not in optimizer.hypers:
            raise ValueError(f"expected an optimizer with a hyperparameter lr to schedule, got {optimizer.name!r}")
        self.device, self.dtype = torch.device(device), dtype
        self.objective, self.method = objective.to(self.device), optimizer
        self.gradient, self.schedule = gradient, schedule
        self.space = Space(axis=0)
        self.host_sync = optimizer.host_sync
        turned = {name: hyper for name, hyper in objective.hypers.items() if hyper.kind == "value"}
        self.hypers = {**turned, **optimizer.hypers}
        self.variables = {
            "x": Variable(("dim",), "position"),
            "loss": Variable((), f"loss f(x) of {objective.title}"),
            "grad_norm": Variable((), "Euclidean norm of the gradient of f"),
        }

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> DescentState:
        x = self._points(self.objective.start if start is None else start, runs)
        k = torch.zeros((), dtype=torch.int32, device=self.device)
        diverged = torch.full((x.shape[1],), RUNNING, dtype=torch.int32, device=self.device)
        return DescentState(x, self.method.init(self.space, x), k, diverged)

    def _points(self, start: Any, runs: int | None) -> Tensor:
        x = self.tensor(start).detach()
        dim = self.objective.dim
        if x.ndim not in (1, 2) or x.shape[-1] != dim:
            raise ValueError(f"expected start to have shape ({dim},) or (runs, {dim}), got {tuple(x.shape)}")
        if x.ndim == 2 and runs not in (None, 1, x.shape[0]):
            raise ValueError(f"expected start to have one point for each of {runs} runs, got {x.shape[0]}")
        if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
            raise ValueError(f"expected start to be finite, got {x.tolist()}")
        if x.ndim == 2:
            return x.T.contiguous()
        return x[:, None].repeat(1, runs or 1)

    def draw(self, key: Key, state: DescentState, hyper: Mapping[str, Any] | None = None) -> Any:
        return self.objective.draw(key, state.x)

    def step(self, state: DescentState, hyper: Mapping[str, Tensor], noise: Any) -> tuple[DescentState, dict]:
        seen: dict[str, Tensor] = {}

        def oracle(x: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
            loss, gradient = value_and_gradient(lambda p: self.objective.sample(p, hyper, noise), x)
            seen.setdefault("loss", loss)
            seen.setdefault("gradient", gradient)
            return loss, gradient

        turned = hyper if self.schedule is None else {**hyper, "lr": hyper["lr"] * self.schedule(state.k)}
        moved, method, info = self.method.step(self.space, oracle, state.x, state.method, turned, noise)
        x, diverged = guard(state.x, moved, state.diverged, state.k, 0)
        return DescentState(x, method, state.k + 1, diverged), {**seen, **info}

    def observe(self, state: DescentState) -> dict[str, Tensor]:
        return self.observe_points(state.x)

    def observe_points(self, x: Tensor) -> dict[str, Tensor]:
        """What is recorded at points (dim, ...): position, loss and gradient norm, without the sampling noise."""
        loss, gradient = value_and_gradient(self.objective, x)
        return {"x": x, "loss": loss, "grad_norm": torch.linalg.vector_norm(gradient, dim=0)}

    def observe_path(self, xs: Tensor) -> dict[str, Tensor]:
        """The same for a stack of points (steps, dim, runs), a block of steps at a time to bound memory."""
        block = max(1, 2**22 // max(1, xs[0].numel()))
        parts = [self.observe_points(part.movedim(0, 1)) for part in xs.split(block)]
        frame = {name: torch.cat([part[name] for part in parts], 0) for name in ("loss", "grad_norm")}
        return {"x": xs, **frame}

    def measure(self, info: dict) -> dict[str, Tensor]:
        return {"loss": info["loss"], "grad_norm": torch.linalg.vector_norm(info["gradient"], dim=0)}

    def to(self, device: Any = None) -> "Descent":
        if device is None or torch.device(device) == self.device:
            return self
        made = {"gradient": self.gradient, "schedule": self.schedule, "dtype": self.dtype, "device": device}
        return Descent(self.objective, self.method, **made)

    def coords(self) -> dict[str, tuple]:
        return {"dim": ("dim", list(self.objective.dims), {"long_name": "coordinate", "units": "1"})}

    def recipe(self) -> str:
        extras = [] if self.dtype == torch.float32 else [f"dtype={self.dtype}"]
        if self.schedule is not None:
            extras.append("schedule=schedule")
        return f"wb.descent({', '.join([self.objective.recipe(), self.method.recipe(), *extras])})"

    def describe(self) -> dict:
        return {"problem": self.objective.name, "method": self.method.name, **self.objective.settings}


def descent(
    objective: str | Callable | Objective,
    optimizer: str | Optimizer | type,
    *,
    gradient: str = "exact",
    schedule: Callable[[Tensor], Tensor] | None = None,
    dim: int | None = None,
    domain: Sequence[tuple[float, float]] | None = None,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Descent:
    """An optimizer on a surface, as a routine.

    Args:
        objective: a catalogue name ("rosenbrock"), an expression ("x**2 + 3*y**2"), a callable f(x) with x of shape
            (dim, ...), or an `Objective`.
        optimizer: a catalogue name ("adam"), an `Optimizer`, or a subclass of `torch.optim.Optimizer`.
        gradient: "exact": the derivative of the objective (of its sample, when the objective is a random one).
        schedule: a function of the step k (0-d tensor, from 0) whose value multiplies `lr`.
        dim: number of coordinates of a callable (2 when not given).
        domain: where a callable is drawn, one (low, high) a coordinate.
        dtype, device: those of the points.

    Raises:
        ValueError: on an unknown name, with the names that exist; on a callable that does not give one number a point.
    """
    from workbench.catalogue import find_objective, find_optimizer

    if callable(objective) and not isinstance(objective, Objective) and not inspect.isclass(objective):
        objective = Function(objective, dim=dim or 2, domain=tuple(domain) if domain else None)
    return Descent(
        find_objective(objective),
        find_optimizer(optimizer),
        gradient=gradient,
        schedule=schedule,
        dtype=dtype,
        device=device,
    )

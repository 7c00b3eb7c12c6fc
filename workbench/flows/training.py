"""Flow training: a source, a target, a coupling, an interpolant, an objective, a network and an optimizer, bound.

Parameters are (runs, parameters), one flat vector a run, as in `workbench.training`.
"""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.descent import guard, value_and_gradient
from workbench.flows.choices import Premetric, Times, Weight
from workbench.flows.couplings import Coupling
from workbench.flows.fields import Field
from workbench.flows.interpolants import Interpolant
from workbench.flows.measures import flow_probes
from workbench.flows.objectives import Batch, FlowObjective, Setting
from workbench.optimizers.base import Optimizer
from workbench.problems.densities import Density, Mixture
from workbench.problems.networks import Model
from workbench.routine import RUNNING, Hyper, Key, Routine, Variable
from workbench.tree import tree_map


class FlowState(NamedTuple):
    """`x`: parameters (runs, parameters). `method`: the optimizer's state. `objective`: the objective's own state.
    `k`: steps made, 0-d. `diverged`: per run.
    """

    x: Tensor
    method: Any
    objective: Any
    k: Tensor
    diverged: Tensor


class FlowNet:
    """A model as a function of points, times and classes: the row (x, t, one-hot class) goes in, (dim) comes out.

    An objective that asks for several predictions gets them side by side: (heads · dim).
    """

    def __init__(self, model: Model, dim: int, classes: int, heads: int = 1) -> None:
        self.dim, self.classes = dim, classes
        self.model = model.bind(dim + 1 + classes, heads * dim)
        self.unbound, self.space = model, self.model.space

    def __call__(self, params: Tensor, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predictions (runs, n, dim) at points (n, dim) or (runs, n, dim), times and classes (n,) or (runs, n)."""
        rows = self.rows(x, t, labels)
        return self.model(params, rows, {}, training=False)[0]

    def rows(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """What goes in: (..., n, dim + 1 + classes)."""
        parts = [x, t.expand(x.shape[:-1]).unsqueeze(-1)]
        if self.classes:
            none = torch.zeros(*x.shape[:-1], self.classes, dtype=x.dtype, device=x.device)
            parts.append(none if labels is None else none + torch.nn.functional.one_hot(labels, self.classes))
        return torch.cat(parts, -1)


class NetField(Field):
    """The field of a trained network: `params` (1, parameters), one run's.

    Args:
        kind: what it predicts, one of `interpolants.KINDS`, or a tuple of them, side by side.
        labels: the class asked for of each sample (n,), of a network that knows classes.
        origin: Python lines that train it again and end with an expression for it, for exported scripts.

    Attributes:
        path: the interpolant it was trained on, where `interpolant` is another.
        objective: what makes net and field again, for files; None where the net's model and `kind` are enough.
    """

    objective: Any = None

    def __init__(
        self,
        net: FlowNet,
        params: Tensor,
        kind: str | tuple[str, ...],
        interpolant: Interpolant,
        source: Density,
        target: Density,
        *,
        labels: Tensor | None = None,
        origin: str = "",
    ) -> None:
        self.net, self.params, self.kind, self.interpolant = net, params, kind, interpolant
        self.source, self.target, self.dim, self.path = source, target, net.dim, interpolant
        self.labels, self.origin = labels, origin

    def asked(self, x: Tensor, t: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points (n, dim), times and classes (n,) to ask the net at."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1]).reshape(-1)
        labels = self.labels if self.labels is None or rows is None else self.labels[rows]
        if labels is not None:
            labels = labels.expand(x.shape[:-1]).reshape(-1)
        return x.reshape(-1, self.dim), times, labels

    def known(self, x, t, rows=None):
        kinds = (self.kind,) if isinstance(self.kind, str) else self.kind
        heads = self.net(self.params, *self.asked(x, t, rows)).squeeze(0).chunk(len(kinds), -1)
        return {kind: head.reshape(x.shape) for kind, head in zip(kinds, heads, strict=True)}

    def given(self, labels: Any) -> "NetField":
        """The same field with a class asked for of each sample."""
        made = copy.copy(self)
        made.labels = torch.as_tensor(labels)
        return made

    def to(self, device):
        moved = copy.copy(self)
        moved.params = self.params.to(device)
        moved.labels = None if self.labels is None else self.labels.to(device)
        return moved

    def recipe(self):
        return self._name() + ("" if self.labels is None else f".given({self.labels.tolist()!r})")

    def setup(self):
        lines, _, expression = self.origin.rpartition("\n")
        return f"{lines}\n{self._name()} = {expression}" if self.origin else ""

    def _name(self) -> str:
        """What scripts call it: its own name when they can train it, so that several of them do not mix."""
        return "field_" + hashlib.blake2b(self.origin.encode(), digest_size=3).hexdigest() if self.origin else "field"

    def describe(self):
        return {"problem": self.target.name, "interpolant": self.interpolant.name, "field": self.net.unbound.title}


class FlowTraining(Routine):
    """An optimizer on a flow objective. Made by `wb.flow_training`."""

    run_axis = 0
    recorded = ("loss",)

    def __init__(
        self,
        source: Density,
        target: Density,
        objective: FlowObjective,
        *,
        coupling: Coupling,
        interpolant: Interpolant,
        network: Model,
        optimizer: Optimizer,
        times: Times,
        weight: Weight,
        premetric: Premetric,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        if source.dim != target.dim:
            raise ValueError(f"expected source and target of one dimension, got {source.dim} and {target.dim}")
        self.device, self.dtype = torch.device(device), dtype
        objective.check(interpolant)
        self.given, self.source = source, coupling.base(source, target)
        self.target, self.objective = target, objective
        self.coupling, self.path, self.method = coupling, interpolant, optimizer
        self.choices = (times, weight, premetric)
        self.net = objective.network(network, target.dim, len(target.classes))
        self.space, self.host_sync = self.net.space, optimizer.host_sync
        doc = "Pairs in each step's gradient."
        batch = Hyper(
            batch_size, 1, 65_536, "integer", (16, 1024), kind="shape", unit="pairs", doc=doc, name="batch_size"
        )
        batch.check(batch_size)
        parts = (*self.choices, coupling, objective, optimizer)
        turned = {name: h for part in parts for name, h in part.hypers.items() if h.kind != "init"}
        self.hypers = {**turned, **optimizer.hypers, "batch_size": batch}
        self.variables = {
            "loss": Variable((), "loss of the batch, mean per pair"),
            "weight_norm": Variable((), "Euclidean norm of all parameters"),
        }
        self.probes = flow_probes(self)

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> FlowState:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        x = self.net.model.init(key, like) if start is None else self.tensor(start)
        count = sum(torch.Size(shape).numel() for shape in self.space.shapes)
        if x.ndim not in (1, 2) or x.shape[-1] != count:
            raise ValueError(f"expected start to have shape ({count},) or (runs, {count}), got {tuple(x.shape)}")
        if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
            raise ValueError("expected start to be finite, got inf or nan in it")
        x = x.repeat(runs or 1, 1) if x.ndim == 1 else x.clone()
        k = torch.zeros((), dtype=torch.int32, device=self.device)
        diverged = torch.full((x.shape[0],), RUNNING, dtype=torch.int32, device=self.device)
        return FlowState(x, self.method.init(self.space, x), self.objective.init(x), k, diverged)

    def draw(self, key: Key, state: FlowState, hyper: Mapping[str, Any] | None = None) -> tuple[Batch, ...]:
        ready = hyper or self.normalise()
        return tuple(self._batch(key.stream(f"draw {j}") if j else key, ready) for j in range(self.method.draws))

    def _batch(self, key: Key, hyper: Mapping[str, Any]) -> Batch:
        """One batch for all runs, or, where each run has a seed of its own, one a run on a leading axis."""
        if key.runs is not None:
            each = [self._batch(*_of_run(key, hyper, run)) for run in range(key.runs)]
            return tree_map(lambda *leaves: torch.stack(leaves), *each)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        n = hyper["batch_size"]
        x0, x1, labels = self.coupling.draw(key, self.source, self.target, n, hyper, like)
        t = self.choices[0].sample(key.stream("time"), n, self.path, hyper, like)
        z = key.stream("latent").normal(x1.shape, like=like) if self.path.latent else None
        batch = Batch(x0, x1, t, z, labels)
        return batch._replace(more=self.objective.draw(key.stream("objective"), batch))

    def step(self, state: FlowState, hyper: Mapping[str, Any], noise: tuple[Batch, ...]) -> tuple[FlowState, dict]:
        seen: dict[str, Any] = {}

        def oracle(x: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
            loss, gradient = self.gradient(x, state.objective, noise[draw], hyper)
            seen.setdefault("loss", loss)
            return loss, gradient

        turned = {name: self.space.per_run(h) if isinstance(h, Tensor) else h for name, h in hyper.items()}
        x, method, info = self.method.step(self.space, oracle, state.x, state.method, turned, noise)
        x, diverged = guard(state.x, x, state.diverged, state.k, 1)
        own = self.objective.update(state.objective, x, turned)
        return FlowState(x, method, own, state.k + 1, diverged), {**seen, **info}

    def gradient(self, x: Tensor, own: Any, batch: Batch, hyper: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(loss per run, its gradient): as the model has written it out where the net is asked once, or by the tape."""
        if not (self.net.model.by_hand and self.objective.asks_once):
            return value_and_gradient(lambda p: self.loss(p, own, batch, hyper), x)
        setting = self.setting(hyper)
        asked = self.objective.question(batch, setting)
        rows = self.net.rows(asked.x, asked.t, batch.labels)
        return self.net.model.value_and_gradient(x, rows, lambda answer: asked.loss_and_slope(answer, setting))

    def loss(self, x: Tensor, own: Any, batch: Batch, hyper: Mapping[str, Any]) -> Tensor:
        """The objective's loss per run at parameters x (runs, parameters)."""

        def net_of(params: Tensor) -> Any:
            return lambda points, t, **more: self.net(params, points, t, batch.labels, **more)

        old = net_of(own[0].detach()) if own else None
        return self.objective.loss(net_of(x), old, batch, self.setting(hyper))

    def setting(self, hyper: Mapping[str, Any]) -> Setting:
        """What was chosen, at these values."""
        times, weight, premetric = self.choices
        return Setting(
            self.path,
            lambda t: weight.weight(self.path, t, hyper),
            lambda r: premetric.size(r, hyper),
            hyper,
            lambda t: times.density(t, self.path, hyper),
            lambda r: premetric.slope(r, hyper),
        )

    def field(self, state: FlowState, run: int = 0, *, origin: str = "") -> NetField:
        """The field that a run has learned so far."""
        made = self.objective.field(self.net, state.x[run : run + 1].detach(), self.path, self.source, self.target)
        made.origin = origin
        return made

    def observe(self, state: FlowState) -> dict[str, Tensor]:
        return {"weight_norm": self.space.norm(state.x).squeeze(-1)}

    def measure(self, info: dict) -> dict[str, Tensor]:
        return {"loss": info["loss"]}

    def to(self, device: Any = None) -> "FlowTraining":
        if device is None or torch.device(device) == self.device:
            return self
        return FlowTraining(self.given, self.target, self.objective, **{**self._made(), "device": device})

    def _made(self) -> dict[str, Any]:
        times, weight, premetric = self.choices
        made = {"coupling": self.coupling, "interpolant": self.path, "network": self.net.unbound}
        made |= {"optimizer": self.method, "times": times, "weight": weight, "premetric": premetric}
        return {**made, "batch_size": self.hypers["batch_size"].default, "dtype": self.dtype, "device": self.device}

    def recipe(self) -> str:
        made = self._made()
        parts = [self.given.recipe(), self.target.recipe(), self.objective.recipe()]
        names = ("coupling", "interpolant", "network", "optimizer", "times", "weight", "premetric")
        parts += [*(f"{name}={made[name].recipe()}" for name in names), f"batch_size={made['batch_size']}"]
        parts += [] if self.dtype == torch.float32 else [f"dtype={self.dtype}"]
        return f"wb.flow_training({', '.join(parts)})"

    def setup(self) -> str:
        parts = (self.given, self.target, self.objective, self.coupling, self.method)
        lines = [part.setup() for part in parts if hasattr(part, "setup")]
        return "\n".join(line for line in lines if line)

    def describe(self) -> dict:
        about = {"problem": f"{self.source.name} to {self.target.name}", "objective": self.objective.name}
        return {**about, "coupling": self.coupling.name, "interpolant": self.path.name, "method": self.method.name}


def _of_run(key: Key, hyper: Mapping[str, Any], run: int) -> tuple[Key, dict[str, Any]]:
    """The key and the hyperparameters of one run, of a key with a seed a run."""
    own = {name: h[run] if isinstance(h, Tensor) and h.ndim else h for name, h in hyper.items()}
    return Key(key.seed[run], key.path, key.step), own  # type: ignore[index]


def flow_training(
    source: str | Density | None = None,
    target: str | Density = "eight-gaussians",
    objective: str | FlowObjective = "flow-matching",
    *,
    coupling: str | Coupling = "independent",
    interpolant: str | Interpolant = "linear-path",
    network: str | Model | None = None,
    optimizer: Any = "adam",
    times: str | Times = "uniform-times",
    weight: str | Weight = "no-weight",
    premetric: str | Premetric = "squared",
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> FlowTraining:
    """Train a network to carry a source to a target, as a routine.

    Args:
        source, target: names of densities or densities; the source is the unit normal when None.
        objective: what is learned ("flow-matching", …).
        coupling: which source sample goes with which data sample.
        interpolant: how a point goes from one to the other.
        network: a model of the catalogue or your own; an MLP of 3 × 128 (SiLU) when None. It is given rows of point,
            time and one-hot class.
        optimizer: as for `wb.training`.
        times, weight, premetric: when a step looks, what counts, and how much.

    Raises:
        ValueError: on unknown names, or source and target of different dimensions.
    """
    from workbench.catalogue import find_declared, find_optimizer, make

    aim = find_declared("densities", "a density", target)
    start = Mixture.normal(aim.dim) if source is None else find_declared("densities", "a density", source)
    model = make("mlp", width=128, depth=3, activation="silu") if network is None else network
    return FlowTraining(
        start,
        aim,
        find_declared("flow objectives", "a flow objective", objective),
        coupling=find_declared("couplings", "a coupling", coupling),
        interpolant=find_declared("interpolants", "an interpolant", interpolant),
        network=find_declared("models", "a model", model),
        optimizer=find_optimizer(optimizer),
        times=find_declared("time distributions", "a time distribution", times),
        weight=find_declared("loss weights", "a loss weight", weight),
        premetric=find_declared("premetrics", "a premetric", premetric),
        batch_size=batch_size,
        dtype=dtype,
        device=device,
    )

"""Reflow: pairs whose x1 is where a flow takes x0; and the distillation of such pairs into one step."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.flows.couplings import Coupling
from workbench.flows.fields import ExactField, Field
from workbench.flows.interpolants import Interpolant, Linear
from workbench.flows.objectives import FlowObjective, Question
from workbench.flows.predictions import straight
from workbench.problems.densities import Density, Mixture
from workbench.routine import Hyper, Key

Pairs = tuple[Tensor, Tensor, Tensor | None]


class Reflow(Coupling):
    """Pairs (x0, ODE(x0)) of a flow: its paths do not cross, so that straight lines between them hardly do.

    A flow trained on them (2-rectified, 3-rectified, …) is straighter and never dearer in any convex transport cost.
    A share `forward` of the pairs starts from data and goes back to the source instead, (ODE⁻¹(x1), x1).

    Args:
        field: the flow, such as `wb.trained_field(session)`; the exact field on the linear path when None (of 64
            samples of a target that is no mixture).
        solver: that takes x0 to x1, a name or a `Solver` without noise.

    Source: Liu, Gong & Liu 2023, arXiv:2209.03003, section 2 and algorithm 1.
    """

    name = "reflow"
    title = "Reflow"
    source = "Liu, Gong & Liu 2023, arXiv:2209.03003"
    ledger = "flow-straight-and-fast"
    evidence = "tests/flows/test_couplings.py::test_reflow_pairs_are_ends_of_one_path[linear-path]"
    path: ClassVar[type[Interpolant]] = Linear
    steps: Any = Hyper(20, 1, 1000, "integer", (1, 100), kind="init", unit="steps", doc="From source to data.")
    pool: Any = Hyper(
        4096, 0, 10**6, "integer", kind="init", unit="pairs", doc="Computed once and drawn from; 0: anew at each step."
    )
    forward: Any = Hyper(0.0, 0.0, 1.0, kind="init", doc="Share of the pairs that start from data.")

    def __init__(self, field: Field | None = None, solver: Any = "heun", **settings: Any) -> None:
        from workbench.catalogue import find_declared

        super().__init__(**settings)
        self.field, self.solver = field, find_declared("solvers", "a solver", solver)
        if self.solver.random:
            raise ValueError(f"expected a solver without noise for reflow, got {self.solver.title}")
        self._pools: dict[tuple, Pairs] = {}

    def draw(self, key, source, target, n, hyper, like):
        if not self.pool:
            pairs = self.pairs(key, source, target, n)
        else:
            place = source, target
            if place not in self._pools:
                self._pools[place] = self.pairs(Key(0).stream("reflow pool"), source, target, self.pool)
            u = key.stream("pairs").uniform((n,), like=torch.empty(0, dtype=torch.float64))
            rows = (u * self.pool).long()
            x0, x1, labels = self._pools[place]
            pairs = x0[rows], x1[rows], None if labels is None else labels[rows]
        x0, x1, labels = pairs
        return x0.to(like), x1.to(like), None if labels is None else labels.to(like.device)

    def pairs(self, key: Key, source: Density, target: Density, n: int) -> Pairs:
        """n new pairs, on the host: those that start from data come last."""
        field = self.field or self.exact(source, target)
        like = getattr(field, "params", torch.empty(0, dtype=torch.float64))
        x0 = source.sample(key.stream("source"), n, like)
        x1, labels = target.sample_labelled(key.stream("target"), n, like)
        if labels is not None and hasattr(field, "given"):
            field = field.given(labels)
        else:
            labels = None
        turn = n - round(self.forward * n)
        x1[:turn] = self.carry(_some(field, slice(turn)), x0[:turn])
        x0[turn:] = self.carry(_some(field, slice(turn, n)), x1[turn:], reverse=True)
        return x0, x1, labels

    def exact(self, source: Density, target: Density) -> Field:
        """The flow when none was given: exact on the path, of 64 samples of a target that is no mixture."""
        if not isinstance(source, Mixture):
            name = source.title or "a source"
            raise ValueError(f"expected a field for {self.name} from {name} that is no mixture, got none")
        return ExactField(source, target if isinstance(target, Mixture) else target.as_points(64), self.path())

    def carry(self, field: Field, x: Tensor, *, reverse: bool = False) -> Tensor:
        """Where the flow takes source samples (n, dim), or from where it brings data."""
        from workbench.samplers.grids import Uniform
        from workbench.samplers.sampling import Sampling

        if not len(x):
            return x
        path = field.interpolant or Linear()
        first, last = torch.tensor(path.ends, dtype=x.dtype)
        begin, end = (path.alpha(last), path.spread(first)) if reverse else (path.spread(first), 1.0)
        routine = Sampling(
            field, self.solver, Uniform(), steps=self.steps, samples=len(x), reverse=reverse, dtype=x.dtype
        )
        state, ready = routine.init(Key(0), start=begin * x), routine.normalise()
        with torch.no_grad():
            while not bool(routine.done(state).all()):
                state, _ = routine.step(state, ready, ())
        return state.x.squeeze(0) / end

    def recipe(self):
        if self.field is None and self.solver.name == "heun":
            return super().recipe()
        given = {} if self.field is None else {"field": self.field.recipe()}
        return self.made_with(**given, solver=self.solver.recipe())

    def setup(self):
        return "" if self.field is None else self.field.setup()


class MixedReflow(Reflow):
    """Reflow whose pairs start half from the source and half from data: (x0, ODE(x0)) and (ODE⁻¹(x1), x1).

    Pairs that start from the source end in samples of the first flow, with its faults; those that start from data end
    in data. The paper's seven changes to reflow further include "normalised", "exponential-times" and the solver used;
    its high-pass filter and dropout are for pictures, and are not here.
    Source: Kim et al. 2025, arXiv:2410.07815 (learning: forward pairs), the share of one half chosen here.
    """

    name = "mixed-reflow"
    title = "Reflow from both ends"
    source = "Kim et al. 2025, arXiv:2410.07815"
    ledger = "simple-reflow"
    evidence = "tests/flows/test_couplings.py::test_mixed_pairs_start_at_either_end"
    forward: Any = Hyper(0.5, 0.0, 1.0, kind="init", doc="Share of the pairs that start from data.")


def _some(field: Any, rows: slice) -> Field:
    """The field of some of the samples, where it was asked for a class of each."""
    labels = getattr(field, "labels", None)
    return field if labels is None else field.given(labels[rows])


class OneStepDistillation(FlowObjective):
    """E |v(x_t, t) - (x1 - x0)|² at t = 0, 1/stops, …, (stops - 1)/stops alone: a step of Euler's method for each.

    With reflow pairs and stops = 1 one step x0 + v(x0, 0) goes where the whole flow went; between the stops the net
    learns nothing.
    Source: Liu et al. 2024, arXiv:2309.06380, equation 7 (with the L2 loss); Liu, Gong & Liu 2023, arXiv:2209.03003,
    section 2.2 ("distillation"), which has stops > 1 as well.
    """

    name = "one-step-distillation"
    title = "Distillation into one step"
    source = "Liu et al. 2024, arXiv:2309.06380"
    ledger = "instaflow"
    evidence = "tests/flows/test_objectives.py::test_the_best_answer_of_distillation_is_where_pairs_end"
    stops: Any = Hyper(1, 1, 64, "integer", (1, 8), kind="init", unit="steps", doc="Steps it is to be sampled in.")

    def check(self, path):
        straight(self, path)

    def question(self, batch, setting):
        t = (batch.t * self.stops).floor().clamp(max=self.stops - 1) / self.stops
        return Question(setting.path.at(batch.x0, batch.x1, t), t, setting.weight(t), (batch.x1 - batch.x0,))

"""Piecewise reflow: in each window of time a flow is made straight, so that one step of Euler's method crosses it."""

from typing import Any

import torch
from torch import Tensor

from workbench.flows.fields import Field, exact_field
from workbench.flows.interpolants import Interpolant, Linear
from workbench.flows.measures.reference import equal_steps
from workbench.flows.objectives import FlowObjective, Question
from workbench.routine import Hyper


class PiecewiseReflow(FlowObjective):
    """E |v(z_t, t) - (z_e - z_s) / (e - s)|² at z_t on the chord from z_s to z_e, [s, e] the window of time t is in.

    z_s = alpha(s) x1 + sigma(s) x0 of a pair, and z_e is where the teacher's flow takes it by the window's end: the
    whole path is never followed. Windows are equal parts of the time between the path's ends. Draw with Euler's method
    on `grid`, one step a window.

    Args:
        field: the teacher, such as `wb.trained_field(session)`; the exact field from the unit normal to eight Gaussians
            on the linear path when None.

    Raises:
        ValueError: on training along another path than the teacher's, or in another dimension.

    Source: Yan et al. 2024, arXiv:2405.07510 (piecewise rectified flow). The windows are derived here for any path
    (the teacher goes by the classical Runge–Kutta method), and not checked against the public code.
    """

    name = "perflow"
    title = "Piecewise reflow"
    source = "Yan et al. 2024, arXiv:2405.07510"
    ledger = "perflow"
    evidence = "tests/flows/test_perflow.py::test_a_question_lies_on_the_chord_of_its_window[linear-path-4]"
    windows: Any = Hyper(4, 1, 64, "integer", (1, 16), kind="init", unit="windows", doc="Steps it is to be sampled in.")
    steps: Any = Hyper(
        16, 1, 1024, "integer", (4, 64), kind="init", unit="steps", doc="Of the teacher over the whole path."
    )

    def __init__(self, field: Field | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.flow = field or exact_field("eight-gaussians", "linear-path")
        self.given, self.teacher = field, self.flow.interpolant or Linear()

    @property
    def grid(self) -> Tensor:
        """The windows' ends, (windows + 1,) from the path's first time to its last."""
        first, last = self.teacher.ends
        return torch.linspace(first, last, self.windows + 1, dtype=torch.float64)

    @property
    def each(self) -> int:
        """Steps of the teacher for one pair: what the whole path takes, divided by the number of windows."""
        return max(1, round(self.steps / self.windows))

    def check(self, path: Interpolant) -> None:
        if path.recipe() != self.teacher.recipe():
            raise ValueError(f"expected the teacher's path, {self.teacher.recipe()}, got {path.recipe()}")

    def draw(self, key, batch):
        if batch.x1.shape[-1] != self.flow.dim:
            raise ValueError(
                f"expected a teacher of dimension {batch.x1.shape[-1]} for {self.name}, got {self.flow.dim}"
            )
        stops = self.grid.to(batch.t)
        window = torch.searchsorted(stops, batch.t.contiguous(), right=True).clamp(1, len(stops) - 1)
        start, end = stops[window - 1], stops[window]
        with torch.no_grad():
            begin = self.teacher.at(batch.x0, batch.x1, start, batch.z)
            return start, end, begin, equal_steps(self._of(batch.labels), begin, start, end, self.each)

    def _of(self, labels: Tensor | None) -> Field:
        """The teacher, asked for the classes of a batch where it knows classes."""
        return self.flow if labels is None or not hasattr(self.flow, "given") else self.flow.given(labels)

    def question(self, batch, setting):
        start, end, begin, arrival = batch.more
        slope = (arrival - begin) / (end - start).unsqueeze(-1)
        x = begin + (batch.t - start).unsqueeze(-1) * slope
        return Question(x, batch.t, setting.weight(batch.t), (slope,))

    def recipe(self):
        return self.made_with(**({} if self.given is None else {"field": self.given.recipe()}))

    def setup(self) -> str:
        """Python lines that an exported script needs before the recipe."""
        return "" if self.given is None else self.given.setup()

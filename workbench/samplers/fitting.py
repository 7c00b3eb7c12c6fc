"""What fitted solvers share: paths of a field followed finely once, and least squares between them and a solver's step.

A solver's coefficients are fitted for each step, from the time it starts at to the time it ends at, on the exact paths
of a few calibration samples, and used for all others. The fit is a function of the times alone: the same bits at every
replay, whatever happens to grid and steps on the way. Its evaluations are made on a field of its own, before a run and,
a few at each step, on the calibration samples alone; they are not counted as the run's.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.flows.fields import Field, Prediction, exact_field
from workbench.flows.interpolants import Interpolant
from workbench.flows.measures.reference import classical_step
from workbench.routine import Key, whole
from workbench.samplers.base import Solver

FINE = 256
"""Steps of the classical Runge–Kutta method that a calibration path is followed by."""


class Paths:
    """The paths of some source samples through a field, at every time: positions by cubic interpolation.

    Args:
        field: its interpolant says between which times.
        samples: how many paths.
    """

    def __init__(self, field: Field, samples: int) -> None:
        self.field, (self.first, self.last) = field, field.interpolant.ends
        like = torch.empty(0, dtype=torch.float64)
        times = torch.linspace(self.first, self.last, FINE + 1, dtype=torch.float64)
        x = field.interpolant.spread(times[0]) * field.source.sample(Key(0).stream("calibration"), samples, like)
        points, slopes = [x], []
        with torch.no_grad():
            for t, end in itertools.pairwise(times):
                slopes.append(field(x, t).velocity)
                x = classical_step(field, x, t, end, slopes[-1])
                points.append(x)
            slopes.append(field(x, times[-1]).velocity)
        self.points, self.slopes = torch.stack(points), torch.stack(slopes) * (self.last - self.first) / FINE

    def at(self, t: Tensor) -> Tensor:
        """Positions (runs, samples, dim) at times (runs, 1), float64."""
        place = (t.squeeze(-1).double() - self.first) / (self.last - self.first) * FINE
        i = place.floor().clamp(0, FINE - 1)
        u, i = (place - i)[:, None, None], i.long()
        points, slopes = self.points.to(t.device), self.slopes.to(t.device)
        near, far, out, back = points[i], points[i + 1], slopes[i], slopes[i + 1]
        bent = (1 - u) * (out - (far - near)) + u * ((far - near) - back)
        return (1 - u) * near + u * far + u * (1 - u) * bent

    def ask(self, t: Tensor, x: Tensor | None = None) -> Prediction:
        """What the field predicts at times (runs, 1), on the paths or elsewhere."""
        return self.field(self.at(t) if x is None else x, t.double())


class Fitted(Solver):
    """A solver with coefficients fitted on calibration paths.

    Args:
        field: whose paths it is fitted on; the exact field to eight Gaussians on the sampling's own path when None.
        samples: how many paths.

    Raises:
        ValueError: on a field without an interpolant, or on another path than the one sampled through.
    """

    kind = "diffusion"
    converts = True

    def __init__(self, field: Field | None = None, *, samples: int = 64, **settings: Any) -> None:
        super().__init__(**settings)
        if field is not None and field.interpolant is None:
            raise ValueError(f"expected a field with an interpolant to fit {self.title} on, got a plain velocity")
        self.field, self.samples = field, whole("samples", samples, 2)
        self._paths: dict[str, Paths] = {}

    def paths(self, path: Interpolant) -> Paths:
        """Calibration paths on an interpolant; followed once."""
        key = path.recipe()
        if self.field is not None and key != self.field.interpolant.recipe():
            raise ValueError(
                f"expected to sample through a field on the path that {self.title} was fitted on, "
                f"{self.field.interpolant.recipe()}, got {key}"
            )
        if key not in self._paths:
            self._paths[key] = Paths(self.field or exact_field("eight-gaussians", path), self.samples)
        return self._paths[key]

    def recipe(self):
        given = {} if self.field is None else {"field": self.field.recipe()}
        return self.made_with(**given, **({"samples": repr(self.samples)} if self.samples != 64 else {}))


def least_squares(missed: Tensor, directions: Sequence[Tensor]) -> list[Tensor]:
    """The weights w_k, one a run, with the least E |missed - Σ w_k direction_k|²; (runs, 1, 1) each.

    By the normal equations, with 1e-12 of their diagonal added; 0 for a run that has numbers which are not finite.
    """
    a = torch.stack([direction.flatten(1) for direction in directions], -1)  # (runs, n dim, K)
    good = torch.isfinite(a).all(1).all(1) & torch.isfinite(missed).flatten(1).all(1)
    a = torch.where(good[:, None, None], a, 0)
    b = torch.where(good[:, None], missed.flatten(1), 0).unsqueeze(-1)
    square = a.mT @ a
    ridge = square.diagonal(dim1=-2, dim2=-1) * 1e-12 + torch.finfo(a.dtype).tiny
    found = torch.linalg.solve(square + torch.diag_embed(ridge), a.mT @ b)
    return [found[:, k : k + 1] for k in range(len(directions))]

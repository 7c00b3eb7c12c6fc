"""Editing by SDE: carry data back to noise, record the noise that would bring it forth again, change it, let it go.

What comes back from a changed latent is drawn to the density of the data, where an ODE would carry the change through.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.flows.fields import Field
from workbench.routine import Key
from workbench.samplers.base import Solver, Step, column
from workbench.samplers.stochastic import transition

REVERSE = {"diffusion": 1.0, "diffusion_form": "reverse-sde"}


class Recording(NamedTuple):
    """times (n + 1,), rising; latent (samples, dim) at the first of them; noises (n, samples, dim), one a step."""

    times: Tensor
    latent: Tensor
    noises: Tensor


def record_noises(field: Field, data: Tensor, times: Sequence[float] | Tensor, key: Key | None = None) -> Recording:
    """Data carried back through the noising process, and the noises with which `CycleSDE` returns to it exactly.

    x_t = (alpha_t / alpha_s) x_s + √(spread_t² - (alpha_t / alpha_s)² spread_s²) n for times t < s, n ~ N(0, I), and
    z = (x_s - mean) / deviation of the reverse SDE's step from x_t. One evaluation a step.

    Args:
        field: with an interpolant and a unit normal source.
        data: (samples, dim), taken to be at the last time.
        times: rising, those that the solver will stop at; at the last one some noise must be left.
        key: of n; Key(0) when None.

    Raises:
        ValueError: when the field has no interpolant, times do not rise, or no noise is left at the last one.

    Source: Nie et al. 2024, arXiv:2311.01410, equations 6 to 8 (Cycle-SDE); Wu & De la Torre 2022, arXiv:2210.05559.
    """
    path, key, x = field.interpolant, key or Key(0), data
    if path is None:
        raise ValueError("expected a field with an interpolant to record noises by, got a plain velocity")
    stops = torch.as_tensor(times, dtype=data.dtype, device=data.device)
    if stops.ndim != 1 or len(stops) < 2 or not bool((stops.diff() > 0).all()):
        raise ValueError(f"expected at least two times that rise, got {stops.tolist()}")
    if not float(path.spread(stops[-1])) > 0:
        raise ValueError(f"expected noise to be left at the last time, got {float(stops[-1]):g} where there is none")
    noises = []
    for k in reversed(range(len(stops) - 1)):
        t, s = stops[k : k + 1], stops[k + 1 : k + 2]
        ratio = path.alpha(t) / path.alpha(s)
        more = torch.sqrt(path.spread(t).square() - (ratio * path.spread(s)).square())
        earlier = ratio * x + more * key.at(k).stream("noising").normal(data.shape, like=data)
        mean, deviation = transition(field(earlier, t), path, t, s, REVERSE)
        noises.append((x - mean) / deviation)
        x = earlier
    return Recording(stops, x, torch.stack(noises[::-1]))


class CycleSDE(Solver):
    """x ← mean + deviation · z, the reverse SDE's step (`transition` with w = g²), with z as recorded.

    From the recording's own latent it returns to the data recorded, to rounding; from a changed one it goes where the
    same noise leads. Without a recording, and between other times than the recording's, z is drawn.
    Source: Nie et al. 2024, arXiv:2311.01410, equations 6 to 8 (Cycle-SDE), as in their public code.
    """

    name = "cycle-sde"
    title = "Cycle-SDE"
    source = "Nie et al. 2024, arXiv:2311.01410"
    ledger = "the-blessing-of-randomness"
    evidence = "tests/samplers/test_editing.py::test_what_is_recorded_and_not_edited_comes_back[torch.float64]"
    kind, random, converts, both_ways, order = "sde", True, True, False, 1

    def __init__(self, recording: Recording | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.recording = recording

    def init(self, field, x, t, end):
        if self.recording is not None and self.recording.latent.shape != x.shape[1:]:
            got, made = tuple(x.shape[1:]), tuple(self.recording.latent.shape)
            raise ValueError(f"expected points of shape {made}, as recorded, got {got}")
        return ()

    def draw(self, key, path, x, t, end):
        size = column(torch.where(end == t, torch.ones_like(t), (end - t).abs())).sqrt()
        fresh = path.increment(t, end)[0] / size
        return fresh if self.recording is None else self._recorded(x, t, end, fresh)

    def _recorded(self, x: Tensor, t: Tensor, end: Tensor, fresh: Tensor) -> Tensor:
        """The noises of the steps that were recorded, (runs, samples, dim); fresh ones for others."""
        times, noises = self.recording.times.to(t), self.recording.noises.to(x)  # type: ignore[union-attr]
        close = 1e-6 * (times[-1] - times[0])
        ours = ((times[:-1] - t).abs() <= close) & ((times[1:] - end).abs() <= close)  # (runs, n)
        found = torch.einsum("rn,nsd->rsd", ours.to(x), noises)
        return torch.where(ours.any(-1)[:, None, None], found, fresh)

    def step(self, field, path, x, t, end, state, hyper, noise):
        mean, deviation = transition(field(x, t), path, t, end, REVERSE)
        return Step(mean + deviation * noise, end, (), {})

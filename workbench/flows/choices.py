"""What a training objective combines: when to look (times), what counts (weights), how much (premetrics).

Here is what each of the three is; the ones there are stand in times.py, weights.py and premetrics.py.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from workbench.descent import value_and_gradient
from workbench.flows.interpolants import Interpolant
from workbench.routine import Declared, Key


class Times(Declared):
    """A distribution of training times within the interpolant's ends. Subclasses write `unit` and `unit_density`."""

    family: ClassVar[str] = "time distributions"
    kind: ClassVar[str] = "distribution"

    def sample(self, key: Key, n: int, path: Interpolant, hyper: Mapping[str, Any], like: Tensor) -> Tensor:
        """n times between path.ends: (n,), or (runs, n) when a hyperparameter has one value a run."""
        return self.place(key.uniform((n,), like=like), path, hyper)

    def place(self, u: Tensor, path: Interpolant, hyper: Mapping[str, Any]) -> Tensor:
        """The quantile function: times of u (n,), uniform in [0, 1)."""
        first, last = path.ends
        return first + (last - first) * self.unit(u, hyper)

    def density(self, t: Tensor, path: Interpolant, hyper: Mapping[str, Any]) -> Tensor:
        """p(t), which integrates to 1 between path.ends."""
        first, last = path.ends
        return self.unit_density((t - first) / (last - first), hyper) / (last - first)

    def unit(self, u: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """The quantile function of a distribution on [0, 1], at uniform u."""
        raise NotImplementedError

    def unit_density(self, s: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """Its density at s in [0, 1]."""
        raise NotImplementedError


class Weight(Declared):
    """A weight of each sample's loss by its time. Subclasses write `weight`."""

    family: ClassVar[str] = "loss weights"
    kind: ClassVar[str] = "weight"

    def weight(self, path: Interpolant, t: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """One number a time: t (batch,) or (runs, batch) to the same, or to (runs, batch) where runs differ."""
        raise NotImplementedError


class Premetric(Declared):
    """How large a residual is. Subclasses write `size`, and may write its `slope`."""

    family: ClassVar[str] = "premetrics"
    kind: ClassVar[str] = "premetric"

    def size(self, residual: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """One number a sample, (..., samples) of residuals (..., samples, dim)."""
        raise NotImplementedError

    def slope(self, residual: Tensor, hyper: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The size and its derivative in the residual, shaped like it; here by the tape, which takes longer."""
        return value_and_gradient(lambda r: self.size(r, hyper), residual)


def per_time(value: Tensor) -> Tensor:
    """A hyperparameter, 0-d or (runs,), shaped to multiply what has one number a time: (batch,) or (runs, batch)."""
    return value if value.ndim == 0 else value.unsqueeze(-1)


def log_snr_rate(path: Interpolant, t: Tensor) -> Tensor:
    """dλ/dt = alpha' / alpha - spread' / spread, with λ = log(alpha / spread): how fast half the log-SNR rises."""
    return path.d_alpha(t) / path.alpha(t) - path.d_spread(t) / path.spread(t)

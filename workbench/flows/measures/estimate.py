"""What a measure gives: a number, how sure it is, and what was computed."""

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A measured value.

    value: 0-d, or one a run, a sample or a component, as the measure says.
    standard_error: shaped like value: the standard deviation that the value has over fresh draws of what was random, as
        far as these tell it; None when nothing was random.
    estimator: what was computed, in words.
    """

    value: Tensor
    standard_error: Tensor | None
    estimator: str


def mean_of(values: Tensor, estimator: str) -> Estimate:
    """The mean over the last axis, of independent samples, and its standard error."""
    n = values.shape[-1]
    error = values.std(-1) / n**0.5 if n > 1 else None
    return Estimate(values.mean(-1), error, estimator)

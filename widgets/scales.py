"""How a hyperparameter stands on a slider: places, values and words, for whatever draws the slider. No host."""

import math
from typing import Any

from workbench import Hyper


def slider_range(hyper: Hyper) -> tuple[float, float]:
    """Both ends of the slider's own scale: logarithms to base 10 on a log scale."""
    low, high = hyper.slider
    return (math.log10(low), math.log10(high)) if hyper.scale == "log" else (low, high)


def to_slider(hyper: Hyper, value: float) -> float:
    """Where on its slider a value stands: its logarithm to base 10 on a log scale; outside values stand at the end."""
    low, high = slider_range(hyper)
    if hyper.scale == "log":
        return min(max(math.log10(value), low), high) if value > 0 else low
    return min(max(value, low), high)


def from_slider(hyper: Hyper, place: float) -> float:
    """The value at a place of the slider, rounded to four digits so that links and scripts stay short."""
    if hyper.scale == "integer":
        return round(place)
    value = 10**place if hyper.scale == "log" else place
    return float(f"{min(max(value, hyper.low), hyper.high):.4g}")


def words(value: Any) -> str:
    """A value as a person reads and types it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Settings that several apps have and their checks: seeds, whole numbers in a range, what stands side by side."""

from collections.abc import Mapping
from typing import Any

from workbench import Hyper
from workbench.catalogue import find
from workbench.routine import unknown

SEEDS = (0, 2**31 - 1)
SEED = Hyper(0, *SEEDS, "integer", (0, 99), kind="init", name="seed", doc="First weights, minibatches.")


def check_whole(settings: Mapping[str, Any], **bounds: tuple[int, int]) -> None:
    """Refuse settings that are no whole numbers from low to high, (low, high) by name."""
    for name, (low, high) in bounds.items():
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected {name} to be a whole number from {low} to {high}, got {value!r}")


def check_column(
    given: Any, what: str, usual: Mapping[str, str], families: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """One of several things side by side, without what is as usual.

    Args:
        given: its parts by name, as a link holds them.
        what: "a part of …", for errors.
        usual: every part there is, and what it is when nothing was chosen.
        families: of the catalogue, by part, and what an error calls a choice of it.

    Raises:
        ValueError: on a part or a choice that does not exist.
    """
    if not isinstance(given, dict):
        raise ValueError(f"expected settings by name, got {given!r}"[:200])
    for key, value in given.items():
        if key not in usual:
            raise unknown(what, key, usual)
        find(*families[key], value)
    return {key: value for key, value in given.items() if value != usual[key]}

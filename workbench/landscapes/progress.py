"""How far something is: work calls `watch(share done, 0 to 1)`; what that raises ends the work."""

from collections.abc import Callable

Watch = Callable[[float], None]


def within(watch: Watch | None, begin: float = 0.0, end: float = 1.0) -> Watch:
    """The watch of a part of the work, which takes its share of the whole from `begin` to `end`; of nobody, nothing."""
    if watch is None:
        return lambda share: None
    return lambda share: watch(begin + (end - begin) * share)

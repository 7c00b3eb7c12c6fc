"""Everything a person touches: controls, the player, the apps, and the server that shows them.

In a notebook `widgets.Descent()`, `widgets.Training(model, loss, data)`, `widgets.Landscape(model, loss, data)`,
`widgets.Flow(points)` and `widgets.Sampler(field)` open an app in a frame;
`widgets.controls(session)` and `widgets.Player(session)` are native widgets to compose with.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Descent": "widgets.jupyter",
    "Training": "widgets.jupyter",
    "Landscape": "widgets.jupyter",
    "Flow": "widgets.jupyter",
    "Sampler": "widgets.jupyter",
    "Player": "widgets.jupyter",
    "controls": "widgets.jupyter",
    "watch_view": "widgets.jupyter",
    "serve": "widgets.server",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

"""The workbench in JupyterLab: apps in frames, and native widgets to compose with.

    app = widgets.Descent(surface="beale"); app          # the app; app.session is its live run
    session = wb.Session(wb.descent("rosenbrock", "adam"))
    widgets.controls(session), widgets.Player(session)   # sliders and transport; the picture

Nothing here needs a network: frames come from a server in the kernel, on the loopback address.
"""

from importlib import import_module
from typing import Any

_HOME = {
    **dict.fromkeys(("Descent", "Training", "Landscape", "Flow", "Sampler"), "apps"),
    "controls": "dials",
    "Controls": "dials",
    "Player": "player",
    "watch_view": "watched",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

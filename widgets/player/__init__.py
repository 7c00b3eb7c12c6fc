"""The live picture: moving points, paths and small images, drawn in the browser from binary frames.

`frames` says what can be drawn and its bytes, `feed` when to send it; `served` and `notebook` are the two hosts and
`export` a page that plays a recorded run by itself. Importing this package imports neither Panel nor anywidget.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Scene": "frames",
    "Marker": "frames",
    "LegendEntry": "frames",
    "Frame": "frames",
    "Points": "frames",
    "Paths": "frames",
    "Images": "frames",
    "thin": "frames",
    "Panel": "frames",
    "panels_of": "frames",
    "encode_scene": "frames",
    "encode_frame": "frames",
    "decode": "frames",
    "Feed": "feed",
    "ServedPlayer": "served",
    "set_nodelay": "served",
    "NotebookPlayer": "notebook",
    "export_html": "export",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

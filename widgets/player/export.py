"""A recorded run as one HTML file that plays without a server and without the network.

The page holds the scene's message and the frames' (see frames.py), deflated and in base64: first the length of all
headers together (uint32) and the headers, each with its magic and length; then the lowest byte of every number of
every array, in order; then the second byte of those that have one; and so on. An array is stored as the difference to
the same array of the message before: as unsigned integers, modulo their size, over the shorter length. Numbers that
change little leave high bytes that are almost all alike, so what moves smoothly takes about half its room.
What jumps from frame to frame keeps its 16 bits a number: 3.1 MB for 300 frames of 2,000 points in a normal cloud.
"""

from __future__ import annotations

import base64
import html
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .esm import module
from .frames import Bounds, Frame, Images, Scene, decode, encode_frame, encode_scene

Series = ArrayLike | tuple[ArrayLike, ArrayLike]


def export_html(
    scene: Scene,
    frames: Iterable[Frame],
    *,
    title: str,
    series: Mapping[str, Series] | None = None,
    meta: Mapping[str, Any] | None = None,
    quantise: bool = True,
) -> str:
    """The page, as text.

    series: curves under the picture by name; an array with one value a frame, or (steps, values). NaN leaves a gap.
    meta: provenance, shown as a table on request. quantise: coordinates as int16 between the extremes that their layer
    reaches over the whole run, cut to three times the scene's domain; the error is at most half a quantum, (high -
    low) / 131068, no more than 1/43,689 of the domain's side. Points beyond the cut are not drawn but counted, vertices
    are moved to it. False keeps float32. Raises ValueError without frames, or where a series differs in length.
    """
    frames = list(frames)
    if not frames:
        raise ValueError("frames: expected at least one, got none; record some steps first")
    bounds = layer_bounds(scene, frames) if quantise else []
    messages = [encode_scene(scene, 1)]
    for k, frame in enumerate(frames):
        messages.append(encode_frame(frame, k + 2, bounds[: len(frame.layers)] or None))
    options = {"series": _series(series or {}, [frame.step for frame in frames], scene)}
    return Template(files(__package__).joinpath("replay.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        meta=_table(meta or {}),
        options=json.dumps(options, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        recording=base64.b64encode(zlib.compress(pack(messages), 9)).decode(),
        module=module("replay.js").replace("</script", "<\\/script"),
    )


def layer_bounds(scene: Scene, frames: Sequence[Frame]) -> list[Bounds | None]:
    """For each place among the layers the bounds that `quantise` uses: the reach over the run, cut to 3 domains."""
    depth = max(len(frame.layers) for frame in frames)
    return [_reach(scene, [frame.layers[i] for frame in frames if i < len(frame.layers)]) for i in range(depth)]


def pack(messages: Iterable[bytes]) -> bytes:
    """The messages as the module's docstring lays them out, before deflating."""
    heads: list[bytes] = []
    planes: list[list[bytes]] = [[], [], [], []]
    before: list[NDArray[Any]] = []
    for message in messages:
        (length,) = struct.unpack_from("<I", message, 4)
        heads.append(message[: 8 + length])
        now = [array.view(f"<u{array.itemsize}") for array in decode(message)[1]]
        for k, array in enumerate(now):
            change = _difference(array, before[k] if k < len(before) else None)
            for plane, values in zip(planes, change.view(np.uint8).reshape(-1, array.itemsize).T, strict=False):
                plane.append(values.tobytes())
        before = now
    head = b"".join(heads)
    return b"".join([struct.pack("<I", len(head)), head, *(part for plane in planes for part in plane)])


def _reach(scene: Scene, layers: Sequence[Any]) -> Bounds | None:
    drawn = [layer for layer in layers if not isinstance(layer, Images)]
    if len(drawn) < len(layers):
        return None
    low_high: list[float] = []
    for axis, (low, high) in (("x", scene.x), ("y", scene.y)):
        values = np.concatenate([getattr(layer, axis) for layer in drawn]).astype(np.float64)
        values = np.clip(values[np.isfinite(values)], 2 * low - high, 2 * high - low)
        low_high += [float(values.min()), float(values.max())] if values.size else [low, high]
    return low_high[0], low_high[1], low_high[2], low_high[3]


def _difference(array: NDArray[Any], before: NDArray[Any] | None) -> NDArray[Any]:
    if before is None or before.dtype != array.dtype:
        return array
    n, result = min(len(array), len(before)), array.copy()
    result[:n] -= before[:n]
    return result


def _series(series: Mapping[str, Series], steps: list[int], scene: Scene) -> list[dict[str, Any]]:
    """Curves as the page wants them; a curve named like a method takes the method's colour."""
    known = {entry.name: entry.colour for entry in scene.legend}
    curves = []
    for k, (name, data) in enumerate(series.items()):
        at, values = data if isinstance(data, tuple) else (steps, data)
        at, values = np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if values.ndim != 1 or values.shape != at.shape or not values.size:
            raise ValueError(f"series {name!r}: expected {at.size} values, one a step, got shape {values.shape}")
        numbers = [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]
        curves.append({"name": name, "steps": at.tolist(), "values": numbers, "colour": known.get(name, k % 8)})
    return curves


def _table(meta: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in meta.items())
    return "".join(rows) or "<tr><td>Nothing was recorded about this run.</td></tr>"

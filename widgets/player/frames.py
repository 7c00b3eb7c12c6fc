"""What the player is sent: scenes and frames, and their bytes.

A message is

    4 bytes    magic b"GWP1"
    4 bytes    uint32, little-endian: length of the header in bytes
    header     UTF-8 JSON, padded with spaces so that the payload starts at a multiple of 8
    payload    the arrays one after the other, little-endian, each padded with zeros to a multiple of 8 bytes

The header's `arrays` lists the payload in order as "type:count", types `f4` (float32), `i4` (int32), `i2` (int16) and
`u1` (uint8); elsewhere in the header an array is named by its place in that list. A **scene** is what stays (domain,
field, contours, markers, legend); a **frame** is what moves (points, paths, images). A layer costs about 80 bytes of
header, so a frame of 10,000 points is 80 KB and 200 bytes.

Coordinates that are not finite in float32 are kept as NaN and never drawn; a layer's header counts them as `hidden`
(points, or polylines that break), and the player says the number in words. An array of int16 holds coordinates in
`bounds`: q from -32767 to 32767 stands for low + (q + 32767) (high - low) / 65534, and -32768 for NaN.

The arrays of a layer are copied when it is made: the caller may write into its own afterwards.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widgets import palette

MAGIC = b"GWP1"
MARKERS = ("dot", "square", "triangle", "diamond", "plus", "cross", "star", "ring")
MAPS = ("viridis", "cividis")
MAX_BYTES = 8 * 2**20
MAX_TEXT = 240
_TYPES: dict[str, np.dtype[Any]] = {
    "f4": np.dtype("<f4"),
    "i4": np.dtype("<i4"),
    "i2": np.dtype("<i2"),
    "u1": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in _TYPES.items()}

Bounds = tuple[float, float, float, float]
Array = Any  # given as anything array-like, kept as a NumPy array of the type that is sent


@dataclass(frozen=True, eq=False)
class Points:
    """A cloud of n points.

    x, y: (n,) data coordinates. colour: one palette index 0–7 for all, or (n,) of them; with `scale` ("viridis" or
    "cividis") it is a place 0–255 on that colour map instead. radius: CSS pixels, 0.5–40. opacity: 0–1. marker: one of
    MARKERS. crossed: (n,) of booleans, these are drawn as ×. Raises ValueError on any other shape or range.
    """

    x: Array
    y: Array
    colour: int | Array = 0
    radius: float = 3.0
    opacity: float = 1.0
    marker: str = "dot"
    scale: str | None = None
    crossed: Array | None = None
    hidden: int = field(init=False)

    def __post_init__(self) -> None:
        x, y, hidden = _coordinates(self.x, self.y)
        _check_drawing(self, len(x))
        _check_range("radius", self.radius, 0.5, 40)
        _check_choice("marker", self.marker, MARKERS)
        _freeze(self, x=x, y=y, hidden=hidden)


@dataclass(frozen=True, eq=False)
class Paths:
    """m polylines in one pair of arrays; polyline k is the vertices offsets[k] to offsets[k+1] - 1.

    x, y: (n,) data coordinates; a vertex that is not finite breaks its line there. offsets: (m+1,) rising from 0 to n;
    None is one polyline. colour, opacity, scale: as for points, per polyline. width: CSS pixels, 0.25–20. dashed: for
    a branch or a prediction. crossed: (m,) of booleans, these end in × (diverged). Send a growing path whole (see
    `thin`): the player drops frames, so it cannot lengthen a line by itself.
    """

    x: Array
    y: Array
    offsets: Array = None
    colour: int | Array = 0
    width: float = 1.5
    opacity: float = 1.0
    dashed: bool = False
    scale: str | None = None
    crossed: Array | None = None
    hidden: int = field(init=False)

    def __post_init__(self) -> None:
        x, y, hidden = _coordinates(self.x, self.y)
        offsets = _offsets(self.offsets, len(x))
        hidden = len(np.unique(np.searchsorted(offsets, np.flatnonzero(np.isnan(x)), side="right"))) if hidden else 0
        _check_drawing(self, len(offsets) - 1)
        _check_range("width", self.width, 0.25, 20)
        _freeze(self, x=x, y=y, offsets=offsets, hidden=hidden)

    @classmethod
    def of(cls, lines: Sequence[Array], **style: Any) -> Paths:
        """From a list of polylines, each an array (vertices, 2)."""
        arrays = [np.asarray(line, dtype=np.float64).reshape(-1, 2) for line in lines]
        joined = np.concatenate(arrays) if arrays else np.empty((0, 2))
        offsets = np.cumsum([0, *(len(a) for a in arrays)])
        return cls(joined[:, 0], joined[:, 1], offsets, **style)


@dataclass(frozen=True, eq=False)
class Images:
    """A grid of small grey pictures, such as the digits a net gets wrong.

    tiles: (n, height, width) uint8, 0 is black, sides at most 128. labels: n short texts, or none. colour: palette
    index of the border, one or (n,). crossed: (n,) of booleans, these carry an ×.
    """

    tiles: Array
    labels: Sequence[str] = ()
    colour: int | Array = 7
    crossed: Array | None = None
    opacity: float = 1.0
    scale: None = field(init=False, default=None)
    hidden: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        tiles = np.array(self.tiles)
        if tiles.dtype != np.uint8 or tiles.ndim != 3 or max(tiles.shape[1:]) > 128:
            raise ValueError(
                f"tiles: expected uint8 of shape (n, height <= 128, width <= 128), got {tiles.dtype} {tiles.shape}"
            )
        labels = tuple(str(label) for label in self.labels)
        if len(labels) not in (0, len(tiles)):
            raise ValueError(f"labels: expected 0 or {len(tiles)} texts, got {len(labels)}")
        for label in labels:
            _check_text("labels", label, 24)
        _check_drawing(self, len(tiles))
        _freeze(self, tiles=tiles, labels=labels)


Layer = Points | Paths | Images


@dataclass(frozen=True, eq=False)
class Frame:
    """What moves, at one step. caption: one short line drawn on the picture.

    number: counts what a person has turned so far; the first frame with another number is sent ahead of the queue.
    """

    step: int
    layers: Sequence[Layer] = ()
    caption: str = ""
    number: int = 0

    def __post_init__(self) -> None:
        layers = tuple(self.layers)
        for layer in layers:
            if not isinstance(layer, Points | Paths | Images):
                raise ValueError(f"layers: expected Points, Paths or Images, got {type(layer).__name__}")
        _check_text("caption", self.caption, MAX_TEXT)
        _freeze(self, step=int(self.step), layers=layers)

    @property
    def hidden(self) -> int:
        """How many points are not finite, and paths break, over all layers."""
        return sum(layer.hidden for layer in self.layers)


@dataclass(frozen=True)
class Marker:
    """A known place: a minimum (star), a saddle (cross), the start (ring)."""

    x: float
    y: float
    label: str = ""
    shape: str = "star"
    colour: int = 7

    def __post_init__(self) -> None:
        _check_choice("shape", self.shape, MARKERS)
        _check_text("label", self.label, 60)
        _check_range("colour", self.colour, 0, 7)
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise ValueError(f"marker: expected finite x and y, got ({self.x}, {self.y})")


@dataclass(frozen=True)
class LegendEntry:
    """A name, its palette index 0–7 and, so that methods differ by more than colour, a marker shape."""

    name: str
    colour: int
    marker: str = "dot"

    def __post_init__(self) -> None:
        _check_text("name", self.name, 60)
        _check_range("colour", self.colour, 0, 7)
        _check_choice("marker", self.marker, MARKERS)


@dataclass(frozen=True)
class Panel:
    """One of several pictures on one plane: what belongs to it is drawn shifted by (dx, dy), and its axes say so."""

    title: str
    dx: float
    dy: float
    x: tuple[float, float]
    y: tuple[float, float]

    def __post_init__(self) -> None:
        _check_text("title", self.title, 60)

    def holds(self, x: float, y: float) -> bool:
        """Whether a place of the plane is in this panel."""
        return self.x[0] <= x - self.dx <= self.x[1] and self.y[0] <= y - self.dy <= self.y[1]


def panels_of(
    titles: Sequence[str], x: tuple[float, float], y: tuple[float, float], columns: int | None = None
) -> tuple[list[Panel], tuple[float, float], tuple[float, float]]:
    """(panels, x, y): pictures of one domain laid out in rows, the first at the top left, and the plane they span.

    About as many rows as columns, so that they are large on wide screens and on tall ones; two stand side by side.
    """
    columns = columns or (len(titles) if len(titles) <= 2 else math.ceil(math.sqrt(len(titles))))
    wide, tall = 1.06 * (x[1] - x[0]), 1.06 * (y[1] - y[0])
    rows = -(-len(titles) // columns)
    made = [Panel(t, wide * (i % columns), tall * (rows - 1 - i // columns), x, y) for i, t in enumerate(titles)]
    return made, (x[0], x[1] + wide * (columns - 1)), (y[0], y[1] + tall * (rows - 1))


@dataclass(frozen=True, eq=False)
class Scene:
    """What stays: the domain x = (low, high), y = (low, high) and everything drawn under and around the moving layers.

    field: (H, W) heights at np.linspace(*y, H) × np.linspace(*x, W), row 0 at the low end of y; the sender takes the
    logarithm where one is wanted and says so in `field_label`. NaN is left blank. field_range: the values of the
    colour map's ends, by default the finite extremes. contours: Paths. equal: one unit is as long on both axes.
    axes: False for a scene of pictures only. backdrop: points under everything that moves. draw: dragging draws a line,
    which is sent, instead of moving the view. panels: several pictures on one plane, see `panels_of`; x and y are then
    the plane's.
    """

    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    x_label: str = "x"
    y_label: str = "y"
    equal: bool = False
    axes: bool = True
    title: str = ""
    field: Array | None = None
    field_label: str = ""
    field_map: str = "viridis"
    field_range: tuple[float, float] | None = None
    contours: Paths | None = None
    markers: Sequence[Marker] = ()
    legend: Sequence[LegendEntry] = ()
    backdrop: Points | None = None
    draw: bool = False
    panels: Sequence[Panel] = ()

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            _freeze(self, **{name: _interval(name, getattr(self, name))})
        for name in ("x_label", "y_label", "title", "field_label"):
            _check_text(name, getattr(self, name), MAX_TEXT)
        _check_choice("field_map", self.field_map, MAPS)
        _freeze(self, markers=tuple(self.markers), legend=tuple(self.legend), panels=tuple(self.panels))
        if self.field is not None:
            _freeze(self, field=_field(self.field))
            limits = _finite_range(self.field) if self.field_range is None else self.field_range
            _freeze(self, field_range=_interval("field_range", limits))


def encode_scene(scene: Scene, seq: int = 0) -> bytes:
    """The message of a scene. seq: what the browser acknowledges, counted by the feed."""
    pack = _Packer()
    header = {
        "kind": "scene", "seq": seq, "x": scene.x, "y": scene.y, "labels": (scene.x_label, scene.y_label),
        "equal": scene.equal, "axes": scene.axes, "title": scene.title,
        "markers": [vars(marker) for marker in scene.markers], "draw": scene.draw,
        "legend": [vars(entry) for entry in scene.legend],
        "palette": {"light": palette.LIGHT, "dark": palette.DARK, "paper": palette.PAPER},
    }  # fmt: skip
    if scene.field is not None:
        header["field"] = {
            "values": pack.add(scene.field), "shape": scene.field.shape, "label": scene.field_label,
            "map": scene.field_map, "range": scene.field_range,
        }  # fmt: skip
    if scene.contours is not None:
        header["contours"] = _layer_header(scene.contours, pack, None)
    if scene.backdrop is not None:
        header["backdrop"] = _layer_header(scene.backdrop, pack, None)
    if scene.panels:
        header["panels"] = [vars(panel) for panel in scene.panels]
    return pack.message(header)


def encode_frame(frame: Frame, seq: int = 0, bounds: Sequence[Bounds | None] | None = None) -> bytes:
    """The message of a frame.

    bounds: for a recording, one (x low, x high, y low, y high) a layer, or None to keep float32. Coordinates are then
    int16, at most half a quantum, (high - low) / 131068, from the truth; points outside the bounds become NaN (the
    player counts them as outside), vertices of paths are moved to the bounds. Raises ValueError above MAX_BYTES.
    """
    pack = _Packer()
    bounds = bounds or [None] * len(frame.layers)
    layers = [_layer_header(layer, pack, b) for layer, b in zip(frame.layers, bounds, strict=True)]
    header = {"kind": "frame", "seq": seq, "n": frame.number, "step": frame.step, "caption": frame.caption}
    message = pack.message({**header, "layers": layers})
    if len(message) > MAX_BYTES:
        raise ValueError(f"frame: expected at most {MAX_BYTES} bytes, got {len(message)}; thin its paths or points")
    return message


def decode(message: bytes) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Header and arrays of a message, as sent (int16 stays int16). Raises ValueError on anything else."""
    if message[:4] != MAGIC or len(message) < 8:
        raise ValueError(f"message: expected {MAGIC!r} first, got {bytes(message[:4])!r}")
    (length,) = struct.unpack_from("<I", message, 4)
    header, at, arrays = json.loads(message[8 : 8 + length]), 8 + length, []
    for spec in header["arrays"]:
        code, count = spec.split(":")
        arrays.append(np.frombuffer(message, _TYPES[code], int(count), at))
        at += -(-arrays[-1].nbytes // 8) * 8
    return header, arrays


def quantise(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.int16]:
    """int16 codes, at most (high - low) / 131068 off; values outside [low, high] are clamped, NaN is -32768."""
    span = (high - low) or 1.0
    with np.errstate(invalid="ignore"):
        codes = np.rint((np.clip(values.astype(np.float64), low, high) - low) * (65534 / span)) - 32767
    return np.where(np.isfinite(values), codes, -32768).astype("<i2")


def dequantise(codes: NDArray[np.int16], low: float, high: float) -> NDArray[np.float64]:
    """The values that `quantise` coded."""
    values = low + (codes.astype(np.float64) + 32767) * ((high - low) / 65534)
    return np.where(codes == -32768, np.nan, values)


def thin(xy: ArrayLike, cell: float | tuple[float, float]) -> NDArray[np.float64]:
    """A polyline (n, 2) without the vertices in the same grid cell as the one before; off by at most a cell's diagonal.

    cell: the grid's spacing in data units, one number or (x, y); a thousandth of the domain is about a pixel. The
    first and the last vertex stay.
    """
    xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    if len(xy) < 3:
        return xy
    moved = np.any(np.diff(np.floor(xy / np.asarray(cell, dtype=np.float64)), axis=0) != 0, axis=1)
    keep = np.concatenate([[True], moved])
    keep[-1] = True
    return xy[keep]


class _Packer:
    """Collects a message's arrays and names them by their place."""

    def __init__(self) -> None:
        self.arrays: list[NDArray[Any]] = []

    def add(self, array: ArrayLike) -> int:
        self.arrays.append(np.ascontiguousarray(array))
        return len(self.arrays) - 1

    def message(self, header: dict[str, Any]) -> bytes:
        header = {**header, "arrays": [f"{_CODES[a.dtype]}:{a.size}" for a in self.arrays]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        text += b" " * (-len(text) % 8)
        parts = [MAGIC, struct.pack("<I", len(text)), text]
        for array in self.arrays:
            parts += [array.tobytes(), b"\0" * (-array.nbytes % 8)]
        return b"".join(parts)


def _layer_header(layer: Layer, pack: _Packer, bounds: Bounds | None) -> dict[str, Any]:
    header: dict[str, Any] = {"kind": type(layer).__name__.lower()}
    if isinstance(layer, Images):
        header |= {"tiles": pack.add(layer.tiles), "shape": layer.tiles.shape, "labels": layer.labels}
    else:
        x, y = _bounded(layer, bounds)
        header |= {"x": pack.add(x), "y": pack.add(y)}
    if isinstance(layer, Paths):
        header |= {"offsets": pack.add(layer.offsets), "width": layer.width, "dashed": layer.dashed or None}
    if isinstance(layer, Points):
        header |= {"radius": layer.radius, "marker": layer.marker}
    colours = isinstance(layer.colour, np.ndarray)
    header |= {"colours": pack.add(layer.colour)} if colours else {"colour": layer.colour}
    header["crossed"] = None if layer.crossed is None else pack.add(layer.crossed)
    header |= {"bounds": bounds, "scale": layer.scale, "hidden": layer.hidden or None}
    header["opacity"] = None if layer.opacity == 1 else layer.opacity
    return {name: value for name, value in header.items() if value is not None}


def _bounded(layer: Points | Paths, bounds: Bounds | None) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = layer.x, layer.y
    if bounds is None:
        return x, y
    if isinstance(layer, Points):
        with np.errstate(invalid="ignore"):
            outside = (x < bounds[0]) | (x > bounds[1]) | (y < bounds[2]) | (y > bounds[3])
        x, y = np.where(outside, np.nan, x), np.where(outside, np.nan, y)
    return quantise(x, *bounds[:2]), quantise(y, *bounds[2:])


def _freeze(item: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(item, name, value)


def _coordinates(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    with np.errstate(over="ignore"):
        x, y = np.array(x, dtype="<f4"), np.array(y, dtype="<f4")
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x, y: expected two arrays of one shape (n,), got {x.shape} and {y.shape}")
    bad = ~(np.isfinite(x) & np.isfinite(y))
    hidden = int(np.count_nonzero(bad))
    if hidden:
        x[bad] = y[bad] = np.nan
    return x, y, hidden


def _offsets(offsets: ArrayLike | None, n: int) -> NDArray[np.int32]:
    array = np.array([0, n] if offsets is None else offsets, dtype="<i4")
    if array.ndim != 1 or not len(array) or array[0] != 0 or array[-1] != n or np.any(np.diff(array) < 0):
        raise ValueError(f"offsets: expected whole numbers rising from 0 to {n}, got {array.tolist()[:8]}")
    return array


def _check_drawing(layer: Any, n: int) -> None:
    """Checks and normalises what all layers share: colour, scale, opacity, crossed."""
    _check_range("opacity", layer.opacity, 0, 1)
    if layer.scale is not None:
        _check_choice("scale", layer.scale, MAPS)
    _freeze(layer, colour=_colours(layer.colour, n, 255 if layer.scale else 7))
    if layer.crossed is not None:
        crossed = np.array(layer.crossed, dtype="u1")
        if crossed.shape != (n,):
            raise ValueError(f"crossed: expected shape ({n},), got {crossed.shape}")
        _freeze(layer, crossed=crossed)


def _colours(colour: int | ArrayLike, n: int, most: int) -> int | NDArray[np.uint8]:
    array = np.asarray(colour)
    if array.dtype.kind not in "iu" or array.shape not in ((), (n,)):
        raise ValueError(f"colour: expected a whole number or shape ({n},), got {array.dtype} of shape {array.shape}")
    if array.size and (array.min() < 0 or array.max() > most):
        raise ValueError(f"colour: expected 0 to {most}, got {array.min()} to {array.max()}")
    return array.astype("u1") if array.ndim else int(array)


def _field(values: ArrayLike) -> NDArray[np.float32]:
    array = np.array(values, dtype="<f4")
    if array.ndim != 2 or min(array.shape) < 2 or max(array.shape) > 1024:
        raise ValueError(f"field: expected shape (H, W), each 2 to 1024, got {array.shape}")
    return array


def _finite_range(values: NDArray[np.float32]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _interval(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(v) for v in pair)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}: expected finite low < high, got ({low}, {high})")
    return low, high


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"{name}: expected at most {most} characters, got {len(text)}")

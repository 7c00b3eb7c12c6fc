"""Scenes and frames: what is accepted, and the bytes, against a decoder that reads them one number at a time."""

import json
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widgets import palette
from widgets.player import frames
from widgets.player.frames import Frame, Images, LegendEntry, Marker, Paths, Points, Scene

SIZES = {"f4": ("f", 4), "i4": ("i", 4), "i2": ("h", 2), "u1": ("B", 1)}


def naive_decode(message):
    """The layout read literally from the module's docstring."""
    assert message[:4] == b"GWP1"
    length = struct.unpack("<I", message[4:8])[0]
    header, at, arrays = json.loads(message[8 : 8 + length].decode("utf-8")), 8 + length, []
    assert at % 8 == 0
    for spec in header["arrays"]:
        letter, size = SIZES[spec.split(":")[0]]
        count = int(spec.split(":")[1])
        arrays.append([struct.unpack_from(f"<{letter}", message, at + size * i)[0] for i in range(count)])
        at += math.ceil(size * count / 8) * 8
    assert at == len(message)
    return header, arrays


def same(got, wanted):
    np.testing.assert_array_equal(np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64))


def test_points_survive_the_wire_bit_for_bit():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 57)).astype(np.float32)
    colour, crossed = rng.integers(0, 8, 57), rng.random(57) < 0.2
    message = frames.encode_frame(Frame(12, [Points(x, y, colour, 4.5, 0.5, "star", crossed=crossed)], "κ = 3", 4), 9)
    header, arrays = naive_decode(message)
    layer = header["layers"][0]
    assert (header["step"], header["n"], header["seq"], header["caption"]) == (12, 4, 9, "κ = 3")
    assert (layer["kind"], layer["radius"], layer["opacity"], layer["marker"]) == ("points", 4.5, 0.5, "star")
    for name, wanted in (("x", x), ("y", y), ("colours", colour), ("crossed", crossed)):
        same(arrays[layer[name]], wanted)


def test_paths_and_images_survive_the_wire():
    lines = [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9]]]
    tiles = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    layers = [Paths.of(lines, colour=[3, 255], scale="cividis", dashed=True), Images(tiles, ["7 → 1", "4 → 9"])]
    header, arrays = naive_decode(frames.encode_frame(Frame(0, layers)))
    path, images = header["layers"]
    same(arrays[path["x"]], [0, 2, 4, 6, 8])
    same(arrays[path["y"]], [1, 3, 5, 7, 9])
    same(arrays[path["offsets"]], [0, 3, 5])
    same(arrays[path["colours"]], [3, 255])
    assert path["dashed"] is True
    assert path["scale"] == "cividis"
    same(arrays[images["tiles"]], tiles.ravel())
    assert images["shape"] == [2, 3, 5]
    assert images["labels"] == ["7 → 1", "4 → 9"]


def test_scene_survives_the_wire_and_carries_the_palette():
    field = np.array([[0, 1, 2], [3, np.nan, 5]])
    legend, markers = [LegendEntry("Adam", 4, "square")], [Marker(0, 1, "minimum")]
    scene = Scene((-1, 1), (0, 2), equal=True, title="<b>", field=field, markers=markers, legend=legend)
    header, arrays = naive_decode(frames.encode_scene(scene, 3))
    same(arrays[header["field"]["values"]], field.ravel())
    assert header["field"]["shape"] == [2, 3]
    assert header["field"]["range"] == [0, 5]
    assert (header["x"], header["y"], header["equal"], header["title"]) == ([-1, 1], [0, 2], True, "<b>")
    assert header["legend"] == [{"name": "Adam", "colour": 4, "marker": "square"}]
    assert header["markers"][0]["shape"] == "star"
    assert header["palette"]["dark"] == list(palette.DARK)


@given(st.lists(st.tuples(*[st.integers(0, 40)] * 2), max_size=5), st.text(max_size=40))
def test_decode_agrees_with_the_naive_decoder(sizes, caption):
    rng = np.random.default_rng(0)
    layers = []
    for n, m in sizes:
        layers.append(Points(*rng.normal(size=(2, n)), colour=rng.integers(0, 8, n)))
        layers.append(Paths(*rng.normal(size=(2, m)), colour=[1]))
    message = frames.encode_frame(Frame(1, layers, caption))
    (header, arrays), (wanted_header, wanted) = frames.decode(message), naive_decode(message)
    assert header == wanted_header
    assert len(arrays) == len(wanted)
    for array, numbers in zip(arrays, wanted, strict=True):
        same(array, numbers)


def test_a_frame_of_10000_points_is_at_most_100_kb_and_a_layer_costs_little_header():
    points = Points(*np.random.default_rng(0).normal(size=(2, 10_000)), radius=1.5)
    assert len(frames.encode_frame(Frame(10**6, [points], "step 1000000 · loss 1.2e-3"))) < 81_000
    six = [Paths([0], [0], colour=k) for k in range(6)] + [Points([0], [0], colour=k, marker="star") for k in range(6)]
    (length,) = struct.unpack_from("<I", frames.encode_frame(Frame(0, six)), 4)
    assert length < 110 * 12 + 120


def test_arrays_are_copied_so_that_a_worker_may_go_on_writing():
    x = np.zeros(3, dtype=np.float32)
    points = Points(x, x)
    x[:] = 7
    same(points.x, [0, 0, 0])


def test_coordinates_that_are_not_finite_are_hidden_and_counted():
    points = Points([0, np.nan, 1e300, 3], [0, 1, 2, -np.inf])
    paths = Paths([0, np.nan, np.nan, 3, 4], [0, 0, 0, 0, 0], [0, 3, 5], crossed=[True, False])
    header, arrays = naive_decode(frames.encode_frame(Frame(0, [points, paths])))
    assert [layer["hidden"] for layer in header["layers"]] == [3, 1]
    same(arrays[header["layers"][0]["x"]], [0, np.nan, np.nan, np.nan])
    assert Frame(0, [points, paths]).hidden == 4
    assert "hidden" not in naive_decode(frames.encode_frame(Frame(0, [Points([0], [0])])))[0]["layers"][0]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_quantised_values_are_at_most_half_a_quantum_off(values, low, span):
    values = np.asarray(values, dtype=np.float32)
    high = low + span
    back = frames.dequantise(frames.quantise(values, low, high), low, high)
    quantum = (high - low) / 65534
    # The double rounding of low + q (high - low) is far below the quantum.
    assert np.all(np.abs(back - np.clip(values.astype(float), low, high)) <= 0.5 * quantum * (1 + 1e-6) + 1e-9)


def test_quantised_frames_hide_points_outside_their_bounds_and_move_vertices_to_them():
    frame = Frame(0, [Points([0, 5, np.nan], [0, 0, 0]), Paths([0, 5, np.nan], [0, -9, 0])])
    header, arrays = naive_decode(frames.encode_frame(frame, bounds=[(-1, 1, -1, 1)] * 2))
    points, path = header["layers"]
    assert header["arrays"][:2] == ["i2:3", "i2:3"]
    assert points["bounds"] == [-1, 1, -1, 1]
    same(frames.dequantise(np.asarray(arrays[points["x"]]), -1, 1), [0, np.nan, np.nan])
    same(frames.dequantise(np.asarray(arrays[path["x"]]), -1, 1), [0, 1, np.nan])
    same(frames.dequantise(np.asarray(arrays[path["y"]]), -1, 1), [0, -1, np.nan])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Points([0, 1], [0]), r"x, y: expected two arrays of one shape .*\(2,\) and \(1,\)"),
        (lambda: Points([[0]], [[0]]), "x, y: expected two arrays"),
        (lambda: Points([0], [0], colour=8), "colour: expected 0 to 7, got 8"),
        (lambda: Points([0], [0], colour=[0, 1]), r"colour: expected a whole number or shape \(1,\)"),
        (lambda: Points([0], [0], colour=0.5), "colour: expected a whole number"),
        (lambda: Points([0], [0], colour=256, scale="viridis"), "colour: expected 0 to 255"),
        (lambda: Points([0], [0], radius=0), "radius: expected 0.5 to 40, got 0"),
        (lambda: Points([0], [0], radius=math.nan), "radius: expected"),
        (lambda: Points([0], [0], opacity=2), "opacity: expected 0 to 1, got 2"),
        (lambda: Points([0], [0], marker="heart"), "marker: expected one of dot, .*got 'heart'"),
        (lambda: Points([0], [0], scale="jet"), "scale: expected one of viridis, cividis, got 'jet'"),
        (lambda: Points([0], [0], crossed=[True, False]), r"crossed: expected shape \(1,\), got \(2,\)"),
        (lambda: Paths([0, 1], [0, 1], [0, 1]), "offsets: expected whole numbers rising from 0 to 2"),
        (lambda: Paths([0, 1], [0, 1], [0, 2, 1, 2]), "offsets: expected"),
        (lambda: Images(np.zeros((1, 8, 8))), "tiles: expected uint8 of shape"),
        (lambda: Images(np.zeros((2, 8, 8), "u1"), ["one"]), "labels: expected 0 or 2 texts, got 1"),
        (lambda: Scene((1, 0)), r"x: expected finite low < high, got \(1.0, 0.0\)"),
        (lambda: Scene(field=np.zeros(4)), r"field: expected shape \(H, W\)"),
        (lambda: Scene(field=np.zeros((2, 2)), field_map="jet"), "field_map: expected one of"),
        (lambda: Marker(math.nan, 0), "marker: expected finite x and y"),
        (lambda: LegendEntry("Adam", 9), "colour: expected 0 to 7, got 9"),
        (lambda: Frame(0, ["points"]), "layers: expected Points, Paths or Images, got str"),
        (lambda: Frame(0, caption="x" * 999), "caption: expected at most 240 characters, got 999"),
        (lambda: frames.decode(b"GIF89a.."), "message: expected b'GWP1' first, got b'GIF8'"),
        (lambda: frames.encode_frame(Frame(0, [Points(*np.zeros((2, 10**6 + 10**5)))])), "frame: expected at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_with_a_reason(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_thinned_path_keeps_its_ends_and_stays_within_a_cell_of_the_whole():
    t = np.linspace(0, 6, 20_000)
    whole = np.stack([np.cos(t), np.sin(3 * t)], 1)
    thinned = frames.thin(whole, 0.01)
    assert len(thinned) < 1500
    same(thinned[[0, -1]], whole[[0, -1]])
    distance = np.min(np.linalg.norm(whole[::50, None] - thinned[None], axis=2), axis=1)
    assert distance.max() <= 0.01 * math.sqrt(2)


def contrast(colour, paper):
    def light(text):
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(colour), light(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "paper"), [(palette.LIGHT, "light"), (palette.DARK, "dark")])
def test_every_colour_stands_out_from_its_paper(colours, paper):
    assert len(colours) == len(palette.OKABE_ITO) == len(palette.NAMES) == 8
    assert min(contrast(colour, palette.PAPER[paper]) for colour in colours) >= 3


@pytest.mark.slow
def test_what_is_sent_can_be_made_without_any_user_interface():
    code = "import sys, widgets.player.frames, widgets.player.feed, widgets.player.export as e; e.export_html;"
    code += "import widgets.player as p; p.Scene;"
    code += "print([m for m in ('panel', 'bokeh', 'anywidget', 'ipywidgets', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_package_leads_somewhere():
    import widgets.player

    for name in widgets.player.__all__:
        assert getattr(widgets.player, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = widgets.player.Nothing

"""The page that plays a recorded run: its bytes undone by a naive twin of the unpacking, its size, its safety."""

import base64
import html
import json
import re
import struct
import zlib

import numpy as np
import pytest

from widgets.player.export import export_html, layer_bounds
from widgets.player.frames import Frame, Images, LegendEntry, Paths, Points, Scene, decode, dequantise, encode_frame

SIZES = {"f4": 4, "i4": 4, "i2": 2, "u1": 1}
NUMBERS = {"f4": "<f4", "i4": "<i4", "i2": "<i2", "u1": "u1"}
SQUARE = Scene((-4, 4), (-4, 4), equal=True)


def naive_unpack(page):
    """Headers and arrays of the messages in a page, one number at a time; the layout of the module's docstring."""
    text = re.search(r'id="recording">(.*?)</script>', page, re.DOTALL).group(1)
    blob = zlib.decompress(base64.b64decode(text))
    at, end, heads = 4, 4 + struct.unpack_from("<I", blob)[0], []
    while at < end:
        assert blob[at : at + 4] == b"GWP1"
        length = struct.unpack_from("<I", blob, at + 4)[0]
        heads.append(json.loads(blob[at + 8 : at + 8 + length]))
        at += 8 + length
    specs = [[(code, int(count)) for code, count in (s.split(":") for s in head["arrays"])] for head in heads]
    numbers = [[[0] * count for _, count in spec] for spec in specs]
    for plane in range(4):
        for m, spec in enumerate(specs):
            for k, (code, count) in enumerate(spec):
                for i in range(count if SIZES[code] > plane else 0):
                    numbers[m][k][i] += blob[at] << (8 * plane)
                    at += 1
    assert at == len(blob)
    messages, before = [], []
    for head, spec, lists in zip(heads, specs, numbers, strict=True):
        arrays = []
        for k, (code, _) in enumerate(spec):
            if k < len(before) and before[k][0] == SIZES[code]:
                for i, old in enumerate(before[k][1][: len(lists[k])]):
                    lists[k][i] = (lists[k][i] + old) % 256 ** SIZES[code]
            raw = b"".join(v.to_bytes(SIZES[code], "little") for v in lists[k])
            arrays.append(np.frombuffer(raw, NUMBERS[code]))
        before = [(SIZES[code], values) for (code, _), values in zip(spec, lists, strict=True)]
        messages.append((head, arrays))
    return messages


def walk(steps, n, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(scale=0.05, size=(steps, 2, n)), axis=0)


def test_float_recordings_unpack_to_the_very_messages():
    frames = [Frame(k, [Points(*z), Paths(z[0, :k], z[1, :k], colour=2)], f"{k}") for k, z in enumerate(walk(6, 9))]
    page = export_html(SQUARE, frames, title="t", quantise=False)
    scene, *messages = naive_unpack(page)
    assert scene[0]["kind"] == "scene"
    for k, (header, arrays) in enumerate(messages):
        wanted_header, wanted = decode(encode_frame(frames[k], k + 2))
        assert header == wanted_header
        for array, number in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(array, number)


def test_quantised_recordings_are_at_most_half_a_quantum_off():
    steps = walk(8, 20)
    frames = [Frame(k, [Points(*z), Paths(*z)]) for k, z in enumerate(steps)]
    bounds = layer_bounds(SQUARE, frames)
    for (header, arrays), z in zip(naive_unpack(export_html(SQUARE, frames, title="t"))[1:], steps, strict=True):
        for layer, (x0, x1, y0, y1) in zip(header["layers"], bounds, strict=True):
            x, y = dequantise(arrays[layer["x"]], x0, x1), dequantise(arrays[layer["y"]], y0, y1)
            # Frames are float32 first: its rounding comes on top.
            assert np.abs(x - z[0].astype("f4")).max() <= (x1 - x0) / 131068 * (1 + 1e-6)
            assert np.abs(y - z[1].astype("f4")).max() <= (y1 - y0) / 131068 * (1 + 1e-6)


def test_one_stray_point_does_not_coarsen_the_rest():
    frames = [Frame(0, [Points([0, 1, 1e9, np.nan], [0, 1, 0, 0])])]
    assert layer_bounds(SQUARE, frames) == [(0, 12, 0, 1)]
    header, arrays = naive_unpack(export_html(SQUARE, frames, title="t"))[1]
    np.testing.assert_allclose(dequantise(arrays[0], 0, 12), [0, 1, np.nan, np.nan], atol=12 / 131068)
    assert header["layers"][0]["hidden"] == 1


def test_layers_may_come_go_and_change_kind():
    tiles = np.full((2, 8, 8), 200, "u1")
    images, points = Images(tiles), Points([1], [2])
    frames = [Frame(k, layers) for k, layers in enumerate([[], [images], [points, images], [images]])]
    for quantise in (True, False):
        messages = naive_unpack(export_html(SQUARE, frames, title="t", quantise=quantise))[1:]
        kinds = [[layer["kind"] for layer in header["layers"]] for header, _ in messages]
        assert kinds == [[], ["images"], ["points", "images"], ["images"]]


def test_300_frames_of_2000_wandering_points_fit_in_2600_kb():
    frames = [Frame(k, [Points(*z, radius=2)]) for k, z in enumerate(walk(300, 2000))]
    assert len(export_html(SQUARE, frames, title="cloud")) < 2_600_000


def test_nothing_that_is_told_can_break_out_of_the_page():
    evil = "</script><script>alert(1)</script><!--"
    scene = Scene(title=evil, legend=[LegendEntry(evil, 1)])
    page = export_html(scene, [Frame(0, caption=evil)], title=evil, series={evil: [1.0]}, meta={evil: evil})
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 3
    assert html.escape(evil) in page


def test_the_page_allows_itself_no_network():
    page = export_html(SQUARE, [Frame(0)], title="t")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    assert not re.search(r"https?://", page)
    assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL), "a placeholder was left"


def test_series_take_their_method_s_colour_and_leave_gaps():
    scene = Scene(legend=[LegendEntry("Adam", 4)])
    page = export_html(scene, [Frame(5), Frame(6)], title="t", series={"loss": [1, np.nan], "Adam": ([5.5], [2])})
    options = json.loads(re.search(r'id="options">(.*?)</script>', page, re.DOTALL).group(1))
    assert options["series"] == [
        {"name": "loss", "steps": [5, 6], "values": [1, None], "colour": 0},
        {"name": "Adam", "steps": [5.5], "values": [2], "colour": 4},
    ]


def test_a_recording_without_frames_or_with_a_short_series_is_refused():
    with pytest.raises(ValueError, match="frames: expected at least one, got none"):
        export_html(SQUARE, [], title="t")
    with pytest.raises(ValueError, match=r"series 'loss': expected 2 values, one a step, got shape \(1,\)"):
        export_html(SQUARE, [Frame(0), Frame(1)], title="t", series={"loss": [1.0]})

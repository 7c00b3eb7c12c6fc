"""The player in a browser: served by Panel and fed from a worker thread, hosted as anywidget does it, and exported."""

import io
import math
import socket
import threading
import time

import numpy as np
import panel as pn
import pytest
from bokeh.server import tornado, urls
from PIL import Image

from widgets import palette
from widgets.player import (
    Frame,
    Images,
    LegendEntry,
    Marker,
    Paths,
    Points,
    Scene,
    ServedPlayer,
    decode,
    encode_frame,
    encode_scene,
    export_html,
)
from widgets.player.esm import module

SCENE = Scene((-2, 2), (-1, 3), title="Rosenbrock", legend=[LegendEntry("Adam", 1, "square")])
PLAYER = "Object.values(window.__players ?? {})[0]"


class Served:
    """A page with one player, served from a thread of this process; `player` is there once a browser has come."""

    def __init__(self, prefix=""):
        self.players = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        where = {"port": self.port, "address": "127.0.0.1", "prefix": prefix}
        self.server = pn.serve(self.app, **where, show=False, threaded=True, verbose=False)
        self.url = f"http://127.0.0.1:{self.port}{prefix}/"

    def app(self):
        player = ServedPlayer(sizing_mode="stretch_both", theme="light")
        player.show(scene=SCENE)
        self.players.append((player, pn.state.curdoc))
        return pn.Column(player, sizing_mode="stretch_both", styles={"height": "100dvh"}, margin=0)

    def open(self, page):
        """Goes to the page; returns its player once it has drawn the scene."""
        for _ in range(50):
            try:
                page.goto(self.url)
                break
            except Exception:  # noqa: BLE001 - the server may still be starting
                page.wait_for_timeout(100)
        page.wait_for_function(f"{PLAYER}?.seq > 0")
        return self.players[-1][0]

    def on_loop(self, call):
        self.players[-1][1].add_next_tick_callback(call)


@pytest.fixture
def served():
    served = Served()
    yield served
    served.server.stop()


def shot(page):
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def rgb(text):
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def centre_of(picture, colour):
    """(x, y) in the middle of the pixels of this colour below the legend, as pixel edges count."""
    rows, columns = np.nonzero(np.all(picture[30:] == rgb(colour), axis=2))
    assert len(rows), f"no pixel of {colour}"
    return columns.mean() + 0.5, rows.mean() + 30.5


def poll(page, true, seconds=10):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        page.wait_for_timeout(20)
    assert true()


def wait_for_step(page, step):
    # Not wait_for_function: it needs eval in the page, which an exported page forbids.
    poll(page, lambda: page.evaluate(f"{PLAYER}?.lastStep") == step)


def test_a_worker_s_frames_are_drawn_to_the_last_and_little_goes_back_up(served, page):
    sent, got = [], []

    def count(socket):
        socket.on("framesent", lambda message: sent.append(len(message)))
        socket.on("framereceived", lambda message: got.append(len(message)))

    page.on("websocket", count)
    player = served.open(page)
    page.wait_for_timeout(300)
    before, down = sum(sent), sum(got)
    z = np.random.default_rng(0).normal(size=(200, 2, 2000)).astype("f4")

    def work():
        for step in range(200):
            player.show(frame=Frame(step, [Points(*z[step], radius=1.5)], f"step {step}"))
            time.sleep(0.005)

    threading.Thread(target=work, daemon=True).start()
    wait_for_step(page, 199)
    page.wait_for_timeout(300)
    drawn = page.evaluate(f"{PLAYER}.drawn")
    counts = player.feed.counts
    assert counts.shown == 200
    assert drawn == counts.sent - 1, "every frame that was sent is drawn, beside the one message of the scene"
    assert counts.sent - 1 + counts.replaced == 200
    assert counts.silent == 0
    assert drawn >= 10
    assert (sum(sent) - before) / drawn < 1000
    assert (sum(got) - down) / drawn < 18_000
    assert page.evaluate(f"{PLAYER}.errors") == 0
    assert page.console_errors == []


class Traffic:
    """What a page's websockets bring: those for frames, and the page's own."""

    def __init__(self, page):
        self.lines, self.frames, self.rest = [], [], []
        page.on("websocket", self.opened)

    def opened(self, socket):
        of_frames = "/frames?" in socket.url
        self.lines += [socket.url] * of_frames
        into = self.frames if of_frames else self.rest

        def keep(message):  # Playwright marks its listeners, which a list's own method does not let it
            into.append(message)

        socket.on("framereceived", keep)


def in_use(page, served):
    """Waits until the latest player's frames travel on a line."""
    poll(page, served.players[-1][0].lines.carry)


def play(player, steps, seconds=0.01):
    """Shows frames from a worker; what was shown, by step."""
    shown = {step: Frame(step, [Points([0.01 * step], [1])], f"step {step}") for step in steps}

    def work():
        for frame in shown.values():
            player.show(frame=frame)
            time.sleep(seconds)

    threading.Thread(target=work, daemon=True).start()
    return shown


@pytest.mark.parametrize("prefix", ["", "/user/ada/proxy"])
def test_frames_come_on_a_websocket_of_their_own_and_each_is_drawn(page, prefix):
    traffic, served = Traffic(page), Served(prefix)
    try:
        player = served.open(page)
        in_use(page, served)
        page.wait_for_timeout(300)
        rest, drawn = sum(map(len, traffic.rest)), page.evaluate(f"{PLAYER}.drawn")
        shown = play(player, range(1, 101))
        wait_for_step(page, 100)
        poll(page, lambda: player.feed.drawn == player.feed.counts.sent)
        came = [decode(message) for message in traffic.frames]
        assert page.evaluate(f"{PLAYER}.drawn") - drawn == len(came) >= 10
        assert len(came) + player.feed.counts.replaced == 100
        for message, (header, _) in zip(traffic.frames, came, strict=True):
            assert message == encode_frame(shown[header["step"]], header["seq"])
        assert sum(map(len, traffic.rest)) - rest < 2000, "the page's own websocket hears of no frame"
        assert len(traffic.lines) == 1
        assert not [text for text in page.console_errors if "WebSocket" in text]
    finally:
        served.server.stop()


def test_without_the_route_frames_come_as_before(page, monkeypatch):
    monkeypatch.setattr(tornado, "per_app_patterns", [r for r in urls.per_app_patterns if r[0] != "/frames"])
    traffic, served = Traffic(page), Served()
    try:
        player = served.open(page)
        play(player, range(1, 101))
        wait_for_step(page, 100)
        assert traffic.lines
        assert traffic.frames == []
        assert not player.lines.carry()
        assert page.evaluate(f"{PLAYER}.drawn") >= 10
    finally:
        served.server.stop()


def test_a_line_that_breaks_loses_no_last_frame_and_comes_back(served, page):
    traffic = Traffic(page)
    player = served.open(page)
    in_use(page, served)
    play(player, range(1, 51))
    wait_for_step(page, 50)
    (line,) = player.lines._open.values()
    player.show(frame=Frame(51))
    served.on_loop(line.ws_connection.stream.close)  # with the frame on its way, or not
    player.show(frame=Frame(52))
    wait_for_step(page, 52)
    in_use(page, served)
    assert len(traffic.lines) == 2
    before = len(traffic.frames)
    player.show(frame=Frame(53))
    wait_for_step(page, 53)
    assert len(traffic.frames) == before + 1


def test_a_page_that_leaves_ends_its_line(served, page):
    player = served.open(page)
    in_use(page, served)
    page.goto("about:blank")
    poll(page, lambda: not player.lines._open)


def test_a_click_reports_the_place_that_was_drawn_there(served, page):
    player, clicks = served.open(page), []
    player.on_click(lambda x, y: clicks.append((x, y)))
    player.show(frame=Frame(1, [Points([0.7], [1.9], colour=1, radius=8)]))
    wait_for_step(page, 1)
    x, y = centre_of(shot(page), palette.LIGHT[1])
    page.mouse.click(x, y)
    poll(page, lambda: clicks)
    unit = page.evaluate(f"[1 / {PLAYER}.player.view.sx, 1 / {PLAYER}.player.view.sy]")
    assert abs(clicks[0][0] - 0.7) <= unit[0]
    assert abs(clicks[0][1] - 1.9) <= unit[1]
    assert player.clicked["n"] == 1


def test_zooming_keeps_clicks_true_and_a_double_click_resets_without_setting_the_start(served, page):
    player, clicks = served.open(page), []
    player.on_click(lambda x, y: clicks.append((x, y)))
    player.show(frame=Frame(1, [Points([0.7], [1.9], colour=1, radius=8)]))
    wait_for_step(page, 1)
    page.mouse.move(700, 400)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.mouse.move(500, 300)
    page.mouse.down()
    page.mouse.move(560, 340, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Reset view").wait_for()
    page.wait_for_timeout(100)
    x, y = centre_of(shot(page), palette.LIGHT[1])
    page.mouse.click(x, y)
    poll(page, lambda: clicks)
    np.testing.assert_allclose(clicks[0], (0.7, 1.9), atol=1 / page.evaluate(f"{PLAYER}.player.view.sy"))
    page.mouse.dblclick(600, 500)
    page.get_by_role("button", name="Reset view").wait_for(state="hidden")
    page.wait_for_timeout(500)
    assert len(clicks) == 1


def test_the_wheel_scrolls_the_page_until_the_picture_has_the_focus(served, page):
    served.open(page)
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(100)
    assert page.evaluate(f"{PLAYER}.player.view.zoom") == 1
    page.get_by_role("img").focus()
    page.mouse.wheel(0, -200)
    page.wait_for_function(f"{PLAYER}.player.view.zoom > 1")


def test_everything_works_by_keyboard(served, page):
    player, actions, clicks = served.open(page), [], []
    player.on_action(lambda name, value: actions.append(name))
    player.on_click(lambda x, y: clicks.append((x, y)))
    player.show(scene=Scene((-2, 2), (-1, 3), markers=[Marker(-1, 2, "start", "ring")]), frame=Frame(1))
    wait_for_step(page, 1)
    picture = page.get_by_role("img")
    assert "Space plays or pauses" in picture.get_attribute("aria-label")
    page.keyboard.press("Tab")
    for key in ("Space", "ArrowLeft", "ArrowRight", "Home", "End"):
        page.keyboard.press(key)
    poll(page, lambda: len(actions) == 5)
    assert actions == ["play", "back", "step", "home", "end"]
    page.keyboard.press("Enter")
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowUp", "Enter", "Escape", "Enter"):
        page.keyboard.press(key)
    poll(page, lambda: clicks)
    sx, sy = page.evaluate(f"[{PLAYER}.player.view.sx, {PLAYER}.player.view.sy]")
    np.testing.assert_allclose(clicks, [(-1 + 16 / sx, 2 + 8 / sy)], rtol=1e-9)


def test_the_theme_repaints_what_is_already_drawn(served, page):
    player = served.open(page)
    player.show(frame=Frame(1, [Points([0], [1], colour=7, radius=8)]))
    wait_for_step(page, 1)
    assert shot(page)[2, 2].tolist() == rgb(palette.PAPER["light"])
    centre_of(shot(page), palette.LIGHT[7])
    served.on_loop(lambda: setattr(player, "theme", "dark"))
    page.wait_for_function(f"{PLAYER}.player.name === 'dark'")
    page.wait_for_timeout(100)
    assert shot(page)[2, 2].tolist() == rgb(palette.PAPER["dark"])
    centre_of(shot(page), palette.DARK[7])
    served.on_loop(lambda: setattr(player, "theme", "auto"))
    page.wait_for_function(f"{PLAYER}.player.name === 'light'")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{PLAYER}.player.name === 'dark'")


def test_two_views_of_two_sessions_do_not_see_each_other(served, new_page):
    first, second = new_page(), new_page()
    mine, theirs = served.open(first), served.open(second)
    mine.show(frame=Frame(7))
    theirs.show(frame=Frame(8))
    wait_for_step(first, 7)
    wait_for_step(second, 8)


def test_a_page_that_reloads_gets_the_scene_and_the_latest_frame_of_a_player_that_lives_on(served, page):
    player = ServedPlayer(sizing_mode="stretch_both")
    player.show(scene=SCENE, frame=Frame(1, [Points([0], [0])]))
    served.server.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = pn.serve(lambda: player, port=port, address="127.0.0.1", show=False, threaded=True, verbose=False)
    try:
        served.url, served.players = f"http://127.0.0.1:{port}/", [(player, None)]
        served.open(page)
        player.show(frame=Frame(2))
        wait_for_step(page, 2)
        page.reload()
        wait_for_step(page, 2)
        player.show(frame=Frame(3))
        wait_for_step(page, 3)
    finally:
        server.stop()
    served.server = server


ANYWIDGET = """
<div id="here" style="width:600px"></div>
<script type="module">
%s
// What anywidget gives a module: get, on, off and send; Bytes as a DataView somewhere inside a larger buffer.
const view = (text) => new DataView(Uint8Array.from("xyz" + atob(text), (c) => c.charCodeAt(0)).buffer, 3);
const values = { theme: "light", tall: 500, scene: view("%s"), frame: new DataView(new ArrayBuffer(0)) };
const listeners = {};
window.sent = [];
const model = {
  get: (name) => values[name],
  on: (name, f) => (listeners[name] = f),
  off: (name) => delete listeners[name],
  send: (message) => window.sent.push(message),
};
window.give = (text) => { values.frame = view(text); listeners["change:frame"](); };
window.end = render({ model, el: document.getElementById("here") });
window.listeners = listeners;
</script>
"""


def base64(message):
    import base64 as b64

    return b64.b64encode(message).decode()


def test_the_same_module_runs_as_an_anywidget(page):
    page.set_content(ANYWIDGET % (module().replace("export default", "const widget ="), base64(encode_scene(SCENE, 1))))
    page.wait_for_function("window.sent.length >= 2")
    assert page.evaluate("document.querySelector('canvas').clientHeight") == 500
    for step in (5, 6):
        page.evaluate("text => window.give(text)", base64(encode_frame(Frame(step, [Points([0], [1])]), step)))
        wait_for_step(page, step)
    sent = page.evaluate("window.sent")
    assert [m["kind"] for m in sent] == ["ready", "drawn", "drawn", "drawn"]
    assert sent[0]["seen"] == 1
    assert [m["seq"] for m in sent[1:]] == [1, 5, 6]
    page.evaluate("window.end()")
    assert (
        page.evaluate("Object.keys(window.__players).length + Object.keys(window.listeners).length") == 1
    )  # msg:custom
    assert page.evaluate("window.sent.at(-1).kind") == "gone"
    assert page.console_errors == []


def test_a_message_that_cannot_be_read_is_said_and_does_not_stop_the_next(page):
    page.set_content(ANYWIDGET % (module().replace("export default", "const widget ="), base64(encode_scene(SCENE, 1))))
    page.wait_for_function("window.sent.length >= 2")
    page.evaluate("text => window.give(text)", base64(b"not a message"))
    page.wait_for_function(f"{PLAYER}.errors === 1")
    page.evaluate("text => window.give(text)", base64(encode_frame(Frame(2), 2)))
    wait_for_step(page, 2)
    assert len(page.console_errors) == 1


def test_every_kind_of_layer_is_drawn_and_what_is_missing_is_said_in_words(page):
    nan = math.nan
    layers = [
        Points([0, nan, 9], [0, 0, 0], colour=0, radius=6),
        Paths.of([[[-1, -0.5], [1, -0.5]], [[-1, 0.5], [nan, nan]]], colour=[1, 2], width=6, crossed=[False, True]),
        Points([1], [2], colour=3, radius=8, crossed=[True]),
        Points([-1, -0.9], [2, 2], colour=[0, 255], scale="viridis", radius=6),
    ]
    scene = Scene((-2, 2), (-1, 3), field=np.ones((4, 5)), contours=Paths([-2, 2], [1, 1]), markers=[Marker(0, 2, "m")])
    words = []
    page.expose_function("said", lambda text: words.append(text) or None)
    page.add_init_script(
        "const fill = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (...text) { said(text[0]); fill.apply(this, text); };"
    )
    page.goto("about:blank")
    page.set_content(ANYWIDGET % (module().replace("export default", "const widget ="), base64(encode_scene(scene, 1))))
    page.wait_for_function("window.sent?.length >= 2")
    page.evaluate("text => window.give(text)", base64(encode_frame(Frame(2, layers, "step 2"), 2)))
    wait_for_step(page, 2)
    page.wait_for_timeout(100)
    picture = shot(page)
    for colour in (palette.LIGHT[0], palette.LIGHT[1], palette.LIGHT[2], palette.LIGHT[3], "#440154", "#fde724"):
        centre_of(picture, colour)
    said = " · ".join(words)
    assert "step 2" in said
    assert "1 point diverged (not finite)" in said
    assert "1 path cut short (not finite)" in said
    assert "1 point outside the picture" in said


@pytest.fixture
def recording(tmp_path):
    t = np.linspace(0, 1, 30)
    tiles = np.arange(64, dtype="u1").reshape(1, 8, 8)
    frames = [
        Frame(10 * k, [Points(t * k / 30, t, colour=2), Paths(t[:k], t[:k] ** 2), Images(tiles)], f"at {k}")
        for k in range(30)
    ]
    path = tmp_path / "run.html"
    text = export_html(SCENE, frames, title="A run", series={"loss": np.exp(-9 * t)}, meta={"seed": 3})
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("options", [{}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}])
def test_an_exported_run_plays_from_a_file_with_the_network_cut(new_page, recording, options):
    page = new_page(**options)
    page.context.set_offline(True)
    page.goto(recording)
    wait_for_step(page, 0)
    page.get_by_role("button", name="Play").click()
    wait_for_step(page, 290)
    page.get_by_role("button", name="Play").wait_for()
    assert page.get_by_text("step 290 / 290").is_visible()
    page.get_by_role("button", name="One step back").click()
    wait_for_step(page, 280)
    page.keyboard.press("Home")
    wait_for_step(page, 0)
    page.keyboard.press("ArrowRight")
    wait_for_step(page, 10)
    page.get_by_label("Time").fill("20")
    wait_for_step(page, 200)
    page.get_by_text("How this was made").click()
    assert page.get_by_role("row", name="seed 3").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert page.evaluate(f"{PLAYER}.errors") == 0
    assert page.console_errors == []


def test_an_exported_frame_shows_its_points_where_they_were(new_page, tmp_path):
    frames = [Frame(k, [Points([0.7, -2], [1.9, -1], colour=[1, 0], radius=7)]) for k in range(2)]
    (tmp_path / "run.html").write_text(export_html(SCENE, frames, title="t"), encoding="utf-8")
    page = new_page()
    page.goto((tmp_path / "run.html").as_uri())
    wait_for_step(page, 0)
    page.wait_for_timeout(100)
    seen = centre_of(shot(page), palette.LIGHT[1])
    wanted = page.evaluate(f"[{PLAYER}.player.view.px(0.7), {PLAYER}.player.view.py(1.9)]")
    np.testing.assert_allclose(seen, wanted, atol=1)


def test_a_hidden_page_says_so_and_asks_for_the_latest_when_it_is_seen_again(page):
    page.set_content(ANYWIDGET % (module().replace("export default", "const widget ="), base64(encode_scene(SCENE, 1))))
    page.wait_for_function("window.sent.length >= 2")
    for hidden in ("true", "false"):
        page.evaluate(f"Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }})")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert [(m["kind"], m.get("seen")) for m in page.evaluate("window.sent")[2:]] == [("gone", None), ("ready", 1)]

"""How many frames of moving points a second the served player draws, beside a bare page that draws the same ones.

    python -m tests.widgets.player.frame_rate [--points 10000] [--seconds 5] [--rounds 3]

Server, worker and browser share the machine's cores. Prints one JSON object: both rates, medians over the rounds, their
ratio, and bytes a frame each way.
"""

import argparse
import base64
import json
import shutil
import socket
import statistics
import threading
import time

import numpy as np
import panel as pn

from widgets.player import Frame, Points, Scene, ServedPlayer, encode_frame

BARE = """
<!doctype html><body style="margin:0"><canvas></canvas><script>
const frames = [%s].map((text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
const canvas = document.querySelector("canvas"), w = (canvas.width = innerWidth), h = (canvas.height = innerHeight);
const ctx = canvas.getContext("2d", { alpha: false }), n = frames[0].length / 2;
window.drawn = 0;
function draw() {
  const z = frames[window.drawn++ %% frames.length];
  ctx.fillStyle = "#fff";
  ctx.fillRect(0, 0, w, h);
  ctx.fillStyle = "#0072b2";
  for (let i = 0; i < n; i++) ctx.fillRect(w / 2 + z[i] * w / 8 - 1.5, h / 2 - z[n + i] * h / 8 - 1.5, 3, 3);
  requestAnimationFrame(draw);
}
requestAnimationFrame(draw);
</script>
"""


VIEWPORT = {"width": 1440, "height": 900}
DRAWN = "Object.values(window.__players)[0].drawn"


def walk(points, frames=30):
    """(frames, 2, points) float32: points that wander inside ±4."""
    steps = np.random.default_rng(0).normal(scale=0.02, size=(frames, 2, points))
    steps[0] = np.random.default_rng(1).normal(size=(2, points))
    return np.cumsum(steps, axis=0).astype("f4")


def rate(page, count, seconds):
    """Frames a second that `count`, an expression in the page, goes up by."""
    start, first = time.perf_counter(), page.evaluate(count)
    page.wait_for_timeout(1000 * seconds)
    return (page.evaluate(count) - first) / (time.perf_counter() - start)


def serve(cloud, stop):
    """A page whose player is fed by a thread faster than screens draw; returns its address and server."""

    def work(player):
        k = 0
        while not stop.is_set():
            player.show(frame=Frame(k, [Points(*cloud[k % len(cloud)], radius=1.5)], f"step {k}"))
            k += 1
            time.sleep(0.01)

    def app():
        player = ServedPlayer(sizing_mode="stretch_both")
        player.show(scene=Scene((-4, 4), (-4, 4), title="Moving points"))
        threading.Thread(target=work, args=(player,), daemon=True).start()
        return pn.Column(player, sizing_mode="stretch_both", styles={"height": "100dvh"}, margin=0)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/", pn.serve(
        app, port=port, address="127.0.0.1", show=False, threaded=True, verbose=False
    )


def open_served(page, url):
    """Goes to the served page and waits until it plays."""
    for _ in range(50):
        try:
            page.goto(url)
            break
        except Exception:  # noqa: BLE001 - the server may still be starting
            page.wait_for_timeout(100)
    page.wait_for_function("Object.values(window.__players ?? {})[0]?.drawn > 20")


def traffic(page, url, seconds):
    """Bytes a drawn frame, (up, down). On a page of its own: listening to a websocket costs frames."""
    total = {"framesent": 0, "framereceived": 0}

    def count(name):
        return lambda message: total.__setitem__(name, total[name] + len(message))

    page.on("websocket", lambda socket: [socket.on(name, count(name)) for name in total])
    open_served(page, url)
    before, first = dict(total), page.evaluate(DRAWN)
    page.wait_for_timeout(1000 * seconds)
    frames = page.evaluate(DRAWN) - first
    return tuple((total[name] - before[name]) / frames for name in total)


def measure(browser, points=10_000, seconds=5.0, rounds=3):
    """The rates, in a Playwright browser: {ours, bare, ratio, up, down, frame}, frames a second and bytes a frame."""
    cloud, stop = walk(points), threading.Event()
    bare_html = BARE % ",".join(f'"{base64.b64encode(z.tobytes()).decode()}"' for z in cloud)
    ours, bare = [], []
    url, server = serve(cloud, stop)
    try:
        for _ in range(rounds):
            with browser.new_page(viewport=VIEWPORT) as page:
                open_served(page, url)
                ours.append(rate(page, DRAWN, seconds))
            with browser.new_page(viewport=VIEWPORT) as page:
                page.set_content(bare_html)
                bare.append(rate(page, "window.drawn", seconds))
        with browser.new_page(viewport=VIEWPORT) as page:
            up, down = traffic(page, url, min(seconds, 2))
    finally:
        stop.set()
        server.stop()
    middle = statistics.median
    return {
        "ours": round(middle(ours), 1),
        "bare": round(middle(bare), 1),
        "ratio": round(middle(ours) / middle(bare), 3),
        "up": round(up),
        "down": round(down),
        "frame": len(encode_frame(Frame(0, [Points(*cloud[0])]))),
    }


def main():
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(json.dumps(measure(browser, options.points, options.seconds, options.rounds)))
        browser.close()


if __name__ == "__main__":
    main()

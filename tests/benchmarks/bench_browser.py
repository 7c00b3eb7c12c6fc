"""What a person feels: frames a second, slider to picture, and how soon the workbench stands; in headless Chromium."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from workbench.bench import FOLDER, Figures, benchmark

ROOT = FOLDER.parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = ("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
DRAWN = "Object.values(window.__players ?? {}).some((p) => p.drawn > 0)"

# From a key pressed on a slider to the first animation frame in which `changed` gives another value.
WATCH = """
([selector, changed]) => {
  const deep = (root, out = []) => {
    for (const e of root.querySelectorAll("*")) {
      if (e.matches(selector)) out.push(e);
      if (e.shadowRoot) deep(e.shadowRoot, out);
    }
    return out;
  };
  const value = new Function("deep", "return " + changed);
  window.delays = [];
  document.addEventListener("keydown", () => {
    const start = performance.now(), before = value(deep);
    const look = () => {
      if (value(deep) !== before) window.delays.push(performance.now() - start);
      else if (performance.now() - start < 5000) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }, true);
}
"""
BARE = """
import sys, panel as pn
def app():
    slider = pn.widgets.FloatSlider(name="lr", start=0, end=1, step=0.001, value=0.5)
    return pn.Column(slider, pn.pane.HTML(pn.bind(lambda v: f"<b class='answer'>{v}</b>", slider)))
pn.serve(app, port=int(sys.argv[1]), address="127.0.0.1", show=False, verbose=False)
"""


def chromium():
    """The browser's path."""
    found = os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise ModuleNotFoundError("no Chromium", name="chromium")
    return found


@contextlib.contextmanager
def browsing():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGS))
        yield browser
        browser.close()


def free_port():
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(*command, port):
    """A server in a process of its own, up when the block begins."""
    from widgets.server import wait_until_up

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if not wait_until_up(f"http://127.0.0.1:{port}/"):
                raise RuntimeError("expected the server to answer within a minute")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


@benchmark(
    "frames",
    what="10,000 moving points in the served player, server and browser on the same two cores",
    peer="a bare page that draws the same frames with nothing else",
    least=0.8,
    target="50 frames/s; at most 100 KB a frame down, 1 KB up",
)
def frames(quick):
    from tests.widgets.player.frame_rate import measure

    with browsing() as browser:
        found = measure(browser, 1_000 if quick else 10_000, 1.0 if quick else 5.0, 1 if quick else 3)
    note = f"{found['down']:,} bytes a frame down, {found['up']:,} up"
    return Figures(found["ours"], found["bare"], "frames/s", note)


def delays(page, slider, changed, tries):
    """Milliseconds from a key pressed on a slider to the changed value, `tries` of them."""
    slider.focus()
    page.evaluate(WATCH, [".answer", changed])
    for i in range(tries):
        page.keyboard.press("ArrowRight" if i % 2 else "ArrowLeft")
        page.wait_for_timeout(170)
    page.wait_for_timeout(500)
    return page.evaluate("window.delays")


@benchmark(
    "slider-to-picture",
    what="slider moved to changed picture in Descent while it plays, 95th percentile",
    peer="the round trip of a bare Panel page with one slider and one text",
    most=2.0,
    target="150 ms",
)
def slider(quick):
    tries, found = 5 if quick else 80, {}
    ours, bare = free_port(), free_port()
    serve = (sys.executable, "-m", "widgets.server", "--port", str(ours), "--runs", "runs")
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        script = Path(folder, "bare.py")
        script.write_text(BARE)
        with running(*serve, port=ours) as url:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"{url}/descent")
            page.wait_for_function(DRAWN, timeout=60_000)
            page.get_by_role("button", name="Play or pause").click()
            number = "Object.values(window.__players)[0].lastNumber"
            found["ours"] = delays(page, page.get_by_role("slider", name="sgd lr"), number, tries)
        with running(sys.executable, str(script), str(bare), port=bare) as url:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(url)
            handle = page.get_by_role("slider").first
            handle.wait_for()
            found["peer"] = delays(page, handle, "deep(document)[0]?.textContent", tries)
    p95 = {side: float(np.quantile(values, 0.95)) for side, values in found.items()}
    note = f"{len(found['ours'])} and {len(found['peer'])} of {tries} keys answered within 5 s"
    return Figures(p95["ours"], p95["peer"], "ms", note)


@benchmark(
    "serve-to-picture",
    what="second start of the server to the first interactive picture of Descent",
    peer='python -c "import torch, panel, plotly, xarray"',
    most=2.5,
    target="5 s",
)
def start(quick):
    rounds, found = 1 if quick else 5, {"ours": [], "peer": []}
    with browsing() as browser:
        for _ in range(rounds):
            port = free_port()
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            began = time.perf_counter()
            command = (sys.executable, "-m", "workbench", "serve", "--port", str(port), "--runs", "runs")
            with running(*command, port=port) as url:
                page.goto(f"{url}/descent")
                page.wait_for_function(DRAWN, timeout=60_000)
                found["ours"].append(time.perf_counter() - began)
            page.close()
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import torch, panel, plotly, xarray"], check=True)
            found["peer"].append(time.perf_counter() - began)
    return Figures(float(np.median(found["ours"])), float(np.median(found["peer"])), "s")

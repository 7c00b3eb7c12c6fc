"""JupyterLab itself: native widgets and an app in a frame, live beside running cells, with no network."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CELLS = [
    """import time
import workbench as wb, widgets
session = wb.Session(wb.side_by_side({name: wb.descent("rosenbrock", name) for name in ("sgd", "adam")}))
widgets.controls(session)""",
    "player = widgets.Player(session, tall=240); player",
    "app = widgets.Descent(surface='himmelblau', methods=['sgd', 'adam'], height=520); app",
    "session.play(200, until=150); print('lr', session.hyper['adam.lr'])",
]
FLOWS = [
    "flow = widgets.Flow('two-moons', height=520, width=16, depth=1, batch=32); flow",
    "sampler = widgets.Sampler(wb.exact_field('two-modes'), height=520); sampler",
    """from torch import nn
net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))
landscape = widgets.Landscape(net, "squared", "digits", height=520); landscape""",
    "print('STOOD', flow.session.index, sampler.session.index, landscape.session.index, type(flow.field()).__name__)",
]
BUSY = """began, first, n = time.perf_counter(), app.session.index, 0
while time.perf_counter() - began < 3:
    n += sum(range(100))
print('STEPS', app.session.index - first)"""
PLAYER = "Object.values(window.__players ?? {})[0]"
MINUTES = 180_000
"""Milliseconds to wait for what a loaded machine may take long for."""

pytestmark = [pytest.mark.jupyter, pytest.mark.timeout(600)]


class Lab:
    """A JupyterLab of its own, in a folder of its own; nothing of the person's settings is read or written."""

    def __init__(self, folder):
        self.folder, self.token = folder, secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
        environ = {**os.environ, **own, "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT)}
        flags = [
            "--no-browser", "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0", "--allow-root",
            f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={self.token}",
            "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None",
        ]  # fmt: skip
        self.log = (folder / "lab.log").open("w")
        command = [sys.executable, "-m", "jupyterlab", *flags]
        self.process = subprocess.Popen(command, env=environ, stdout=self.log, stderr=self.log, cwd=folder)

    def wait(self, seconds=120):
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=5).close()
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"JupyterLab did not start:\n{(self.folder / 'lab.log').read_text()[-2000:]}")

    def open(self, page, name):
        """Goes to a notebook; returns once its kernel is ready."""
        page.goto(f"http://127.0.0.1:{self.port}/lab/workspaces/test/tree/{name}?token={self.token}&reset")
        page.wait_for_function("window.jupyterapp !== undefined", timeout=MINUTES)
        page.evaluate("() => window.jupyterapp.restored")
        page.evaluate("""async () => {
            const panel = () => window.jupyterapp.shell.currentWidget;
            while (!panel()?.context?.isReady) await new Promise(r => setTimeout(r, 100));
            await panel().sessionContext.ready;
            while (!panel().sessionContext.session?.kernel) await new Promise(r => setTimeout(r, 100));
            await panel().sessionContext.session.kernel.info;
        }""")

    def stop(self):
        """Ends it and its kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


@pytest.fixture
def lab(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in [*CELLS, BUSY, *FLOWS]])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "live.ipynb")
    lab = Lab(tmp_path)
    yield lab
    lab.stop()


def run(page, first, last):
    """Run cells first to last and wait for them."""
    page.evaluate(
        """async ([first, last]) => {
            const notebook = window.jupyterapp.shell.currentWidget.content;
            for (let i = first; i <= last; i++) {
                notebook.deselectAll(); notebook.activeCellIndex = i;
                await window.jupyterapp.commands.execute('notebook:run-cell');
            }
        }""",
        [first, last],
    )


def outputs(page, i):
    return page.evaluate(
        "i => JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.cells.get(i).outputs.toJSON())", i
    )


def test_widgets_and_an_app_live_beside_running_cells_and_nothing_leaves_loopback(lab, new_page, tmp_path):
    page = new_page(viewport={"width": 1440, "height": 1500})
    lab.wait()
    lab.open(page, "live.ipynb")
    run(page, 0, 3)

    # The player draws what the session does, and controls show it.
    page.wait_for_function(f"{PLAYER}?.drawn > 2 && {PLAYER}.lastStep === 150", timeout=MINUTES)
    page.get_by_text("step 150 of 150").first.wait_for(timeout=MINUTES)

    # A slider moved in the browser turns the hyperparameter.
    slider = page.locator(".jupyter-widgets.widget-slider", has_text="lr").nth(1).locator(".noUi-handle")
    slider.focus()
    for _ in range(40):
        slider.press("ArrowRight")
    page.wait_for_timeout(500)
    run(page, 3, 3)
    moved = float(re.search(r"lr ([\d.e-]+)", outputs(page, 3))[1])
    assert moved != 0.001, "the slider moved and adam.lr did not"

    # The app in its frame plays while a cell burns Python.
    frame = page.frame_locator("iframe[title=Descent]")
    play = frame.get_by_role("button", name="Play or pause")
    play.wait_for(timeout=MINUTES)
    inside = next(f for f in page.frames if f.parent_frame and "/lab" not in f.url)
    inside.wait_for_function(f"{PLAYER}?.drawn > 0", timeout=MINUTES)
    if shots := os.environ.get("WORKBENCH_SHOTS"):
        page.screenshot(path=f"{shots}/lab.png")
    play.click()
    drawn = inside.evaluate(f"{PLAYER}.drawn")
    run(page, 4, 4)
    steps = int(re.search(r"STEPS (\d+)", outputs(page, 4))[1])
    assert steps >= 10, "the app stood still while a cell ran"
    assert inside.evaluate(f"{PLAYER}.drawn") - drawn >= 5, "no frames arrived while a cell ran"
    print(f"\nwhile a cell ran for 3 s: {steps} steps, {inside.evaluate(f'{PLAYER}.drawn') - drawn} frames")
    play.click()

    # Flow, Sampler and the landscape of one's own network do the same.
    for i, title in ((5, "Flow"), (6, "Sampler"), (7, "Landscape")):
        run(page, i, i)
        play = page.frame_locator(f"iframe[title={title}]").get_by_role("button", name="Play or pause")
        play.wait_for(timeout=MINUTES)
        play.click()
    page.wait_for_timeout(1500)
    run(page, 8, 8)
    *steps, field = re.search(r"STOOD (\d+) (\d+) (\d+) (\w+)", outputs(page, 8)).groups()
    assert all(int(step) > 0 for step in steps), steps
    assert field == "NetField"

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    size = (tmp_path / "live.ipynb").stat().st_size
    assert size < 200_000, f"the saved notebook has {size} bytes"
    errors = [text for text in page.console_errors if "favicon" not in text]
    assert not errors, errors

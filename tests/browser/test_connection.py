"""What the server says last is what stands on the page."""

import subprocess
import sys

import pytest
from playwright.sync_api import expect

CHANGES = 100

# Each change comes in two, the second a few milliseconds after the first, as the browser draws that.
PAGE = f"""
import functools, sys, threading, time
import panel as pn
import panel_material_ui as pmui
from widgets.connection import KeepsNewest, on_loop
from widgets.server import Server, wait_until_up

def page():
    doc, returned = pn.state.curdoc, []
    text, go, end = pmui.Alert(object="nothing yet"), pmui.Button(label="Go"), pn.pane.Str("")

    def change():
        for i in range({CHANGES}):
            for word in ("older", "newer"):
                on_loop(doc, functools.partial(setattr, text, "object", f"{{word}} {{i}}"))
                time.sleep(0.001 * (i % 12))
            time.sleep(0.06)
        time.sleep(1.5)
        on_loop(doc, lambda: setattr(end, "object", f"{{len(returned)}} returned, the last is {{text.object}}"))

    text._process_property_change = lambda values: returned.append(values) or values
    go.on_click(lambda event: threading.Thread(target=change).start())
    return pn.Column(text, go, end, KeepsNewest())

server = Server(runs=sys.argv[1], port=0, extra={{"page": page}})
server.start(threaded=True)
assert wait_until_up(server.url)
print(server.url, flush=True)
threading.Event().wait()
"""


@pytest.fixture
def address(tmp_path):
    """Of the page above."""
    process = subprocess.Popen([sys.executable, "-c", PAGE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip() + "/page"
    process.terminate()
    process.wait(10)
    process.stdout.close()


def test_a_value_that_was_replaced_while_it_was_drawn_does_not_return(address, page):
    page.goto(address)
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
    page.get_by_role("button", name="Go").click()
    last = f"newer {CHANGES - 1}"
    expect(page.get_by_text(f"0 returned, the last is {last}")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("alert")).to_have_text(last)

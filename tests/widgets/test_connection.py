"""A page hears of what changes from the moment its browser has fetched it."""

import subprocess
import sys

# In a process of its own: the client below is cut off, and leaves its websocket open.
VISIT = """
import os, sys, threading, time
import panel as pn
import panel_material_ui as pmui
from bokeh.client import pull_session
from widgets.server import Server, wait_until_up

texts = []

def page():
    texts.append((pmui.Button(label="first"), pn.state.curdoc))
    return texts[-1][0]

server = Server(runs=sys.argv[1], port=0, extra={"text": page})
server.start(threaded=True)
assert wait_until_up(server.url)
visit = pull_session(url=f"{server.url}/text")  # fetches the page and, unlike a browser, never says that it is ready
text, doc = texts[-1]
shown = visit.document.roots[0].data
print(shown.label)
threading.Thread(target=visit._loop_until_closed, daemon=True).start()  # takes in what the server sends
doc.add_next_tick_callback(lambda: text.param.update(label="second"))
end = time.monotonic() + 10
while shown.label == "first" and time.monotonic() < end:
    time.sleep(0.05)
print(shown.label, flush=True)
os._exit(0)
"""


def test_what_changes_before_the_browser_has_drawn_everything_is_not_lost(tmp_path):
    command = [sys.executable, "-c", VISIT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["first", "second"]

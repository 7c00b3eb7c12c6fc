"""Fifty visitors come and go: nothing of them stays behind."""

import json
import subprocess
import sys

import pytest

VISITS = 50

# In a process of its own: pytest keeps log records, which keep what they speak of.
SOAK = """
import gc, json, os, sys, threading, time
from types import FrameType
import psutil
from bokeh.client import pull_session
from widgets.apps.desk import Desk
from widgets.player.served import ServedPlayer
from widgets.server import Server, wait_until_up
from workbench import Session

def alive(kind):
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())

def keepers(thing, most=40):
    # what refers to a thing, what to that, and so on, nearest first
    lines, waiting, seen = [], [(thing, 0)], {id(thing)}
    while waiting and len(lines) < most:
        kept, far = waiting.pop(0)
        for keeper in gc.get_referrers(kept):
            if id(keeper) not in seen | {id(waiting), id(globals())} and not isinstance(keeper, FrameType):
                seen.add(id(keeper))
                waiting.append((keeper, far + 1))
                lines.append(f"{far} {type(kept).__name__} < {type(keeper).__name__} {str(keeper)[:120]}")
    return lines

def settle():
    end = time.monotonic() + 30
    while time.monotonic() < end and (alive(Desk) or server.visitors):
        gc.collect()
        time.sleep(0.2)
    return psutil.Process().memory_info().rss / 2**20

server = Server(runs=sys.argv[1], port=0).add_apps()
server.start(threaded=True, unused_session_lifetime_milliseconds=300, check_unused_sessions_milliseconds=100)
assert wait_until_up(server.url)
sizes, roots = [], 0
for i in range(int(sys.argv[2])):
    visit = pull_session(url=f"{server.url}/{('descent', 'training')[i % 2]}")
    roots += bool(visit.document.roots)
    visit.close()
    if i == 9:
        sizes.append(settle())
sizes.append(settle())
left = {kind.__name__: alive(kind) for kind in (Desk, Session, ServedPlayer)}
for desk in [thing for thing in gc.get_objects() if isinstance(thing, Desk)]:
    print("left:", desk.title, "closed" if desk.closed else "open", *keepers(desk), sep="\\n", file=sys.stderr)
    print("threads:", *threading.enumerate(), sep="\\n", file=sys.stderr)
print(json.dumps({"left": left, "visitors": len(server.visitors), "pages": roots, "megabytes": sizes}), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_fifty_visits_leave_no_session_alive_and_memory_flat(tmp_path):
    command = [sys.executable, "-c", SOAK, str(tmp_path), str(VISITS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pages"] == VISITS
    assert found["left"] == {"Desk": 0, "Session": 0, "ServedPlayer": 0}, f"{found}\n{done.stderr[-8000:]}"
    assert found["visitors"] == 0
    early, late = found["megabytes"]
    assert late - early < 60, f"memory grew from {early:.0f} to {late:.0f} MB over {VISITS - 10} visits"

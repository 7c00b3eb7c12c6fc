"""A server of the workbench as `make serve` starts it, for tests that drive the apps in a browser."""

import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

START_SECONDS = 90


def free_port():
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server_log(tmp_path_factory):
    """File of what the served workbench prints; its runs are kept beside it."""
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="session")
def server(server_log):
    """Address of the served workbench, such as http://127.0.0.1:40001; runs are kept in a folder of the test."""
    port, log = free_port(), server_log
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "widgets.server", "--port", str(port), "--runs", str(log.with_name("runs"))]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(process, url, log)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(autouse=True)
def server_raises_nothing(request):
    """No test of the served workbench passes while the server prints an exception, save that a page has gone."""
    if "server" not in request.fixturenames:
        yield
        return
    log = request.getfixturevalue("server_log")
    before = log.stat().st_size if log.exists() else 0
    yield
    printed = log.read_bytes()[before:].decode(errors="replace")
    raised = set(re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception))\b", printed, re.MULTILINE))
    assert raised <= {"WebSocketClosedError", "StreamClosedError"}, printed[-5000:]


def _wait_until_up(process, url, log):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not answer at {url} within {START_SECONDS} s:\n{log.read_text()[-3000:]}")

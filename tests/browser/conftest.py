"""A server of the workbench as `make serve` starts it, for tests that drive the apps in a browser."""

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
def server(tmp_path_factory):
    """Address of the served workbench, such as http://127.0.0.1:40001; runs are kept in a folder of the test."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "log.txt"
    command = [sys.executable, "-m", "widgets.server", "--port", str(port), "--runs", str(folder / "runs")]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(process, url, log)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_up(process, url, log):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not answer at {url} within {START_SECONDS} s:\n{log.read_text()[-3000:]}")

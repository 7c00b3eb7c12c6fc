"""Serving the apps in a browser: one page a visitor, on the loopback address unless told otherwise."""

import argparse
import contextlib
import ctypes
import importlib
import secrets
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

APPS = {
    "descent": ("widgets.apps.descent", "Descent", "Optimizers side by side on a surface: turn them, rewind, branch."),
    "training": (
        "widgets.apps.training",
        "Training",
        "Train a network on real data; every setting can be turned live.",
    ),
    "landscape": (
        "widgets.apps.landscape",
        "Landscape",
        "The loss around networks as they learn, and how curved it is: one plane, and what it leaves out.",
    ),
    "sampler": ("widgets.apps.sampler", "Sampler", "Step solvers through a field, one evaluation at a time."),
    "flow": ("widgets.apps.flow", "Flow", "Train a generative flow, watch its paths bend, straighten them."),
}
"""What is served: page name to (module, title, one line). A module has a `page(query, runs)` that returns a Shell."""

MAX_VISITORS = 40
EXPIRY_SECONDS = 24 * 3600
SWITCH_SECONDS = 0.0005
"""How long one Python thread may keep the others waiting: pages stay quick while sessions compute."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class Server:
    """The apps on one address. `address` and `port` say where once `start` has returned.

    Args:
        runs: folder of saved runs.
        port: 0 takes any free one.
        address: where to listen; the loopback address unless others are to reach it.
        origins: further host:port from which pages may be opened.
        password: one password for all visitors, "" for none.
        extra: more pages, as functions of no arguments, by path.
    """

    def __init__(
        self,
        *,
        runs: str | Path = "runs",
        port: int = 5006,
        address: str = "127.0.0.1",
        origins: tuple[str, ...] = (),
        password: str = "",
        extra: dict[str, Callable[[], Any]] | None = None,
    ) -> None:
        self.runs, self.address, self.password = Path(runs), address, password
        self.port = port or _free_port(address)
        self.origins = [f"{address}:{self.port}", f"localhost:{self.port}", *origins]
        self.pages: dict[str, Any] = dict(extra or {})
        self.visitors: set[Any] = set()

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = "127.0.0.1" if self.address in ("", "0.0.0.0") else self.address
        return f"http://{host}:{self.port}"

    def add_apps(self) -> "Server":
        """Serve every app of `APPS`; their modules are loaded now, so that the first page opens at once."""
        for name, (module, _, _) in APPS.items():
            make = importlib.import_module(module).page
            self.pages[name] = lambda make=make: self.open(lambda query: make(query, self.runs))
        return self

    def open(self, make: Callable[[dict[str, str]], Any]) -> Any:
        """One visitor's page; says so instead when there are already as many as the server takes."""
        import panel as pn

        from widgets.apps.shell import serve_page

        if len(self.visitors) >= MAX_VISITORS:
            text = f"The workbench is full: it serves {MAX_VISITORS} open pages at most. Close one and reload."
            return pn.pane.Alert(text, alert_type="warning")
        ticket = object()
        self.visitors.add(ticket)

        def gone(session_context: Any) -> None:
            self.visitors.discard(ticket)

        pn.state.on_session_destroyed(gone)
        return serve_page(make)

    def start(self, *, threaded: bool = False, **more: Any) -> Any:
        """Listen; returns at once when threaded, at the end otherwise. `more` is handed on to `panel.serve`.

        Raises:
            OSError: when the port is taken.
        """
        import panel as pn

        self.prepare()
        where = {"port": self.port, "address": self.address, "websocket_origin": self.origins}
        quiet = {"show": False, "verbose": False, "session_token_expiration": EXPIRY_SECONDS}
        return pn.serve(self.pages, threaded=threaded, **where, **quiet, **self.options(), **more)

    def prepare(self) -> None:
        """What this process needs so that pages stay quick."""
        import panel as pn
        import torch

        from widgets.connection import lock_changes, mark_pulled, send_all
        from widgets.player import set_nodelay

        set_nodelay()
        mark_pulled()
        lock_changes()
        send_all()
        sys.setswitchinterval(SWITCH_SECONDS)
        keep_memory()
        torch.set_num_threads(1)
        pn.config.reconnect = True
        pn.config._index_titles = {f"/{name}": f"{title}: {line}" for name, (_, title, line) in APPS.items()}

    def options(self) -> dict[str, Any]:
        """Further options of the listening server: the page that lists the apps, the password."""
        auth = {"basic_auth": self.password, "cookie_secret": secrets.token_urlsafe(32)} if self.password else {}
        return {"index": str(Path(__file__).with_name("index.html")), **auth}


def keep_memory() -> None:
    """Let the C library keep up to 256 MB of freed memory, where it is glibc.

    It would give the memory of every large tensor back to the system and ask for it anew a moment later: an evaluation
    of a net at 2,000 points takes a quarter longer for it (measured on 2 cores: 1.88 ms against 1.40 ms).
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for setting, size in ((M_TRIM_THRESHOLD, 2**28), (M_MMAP_THRESHOLD, 2**25)):
            library.mallopt(setting, size)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def wait_until_up(url: str, seconds: float = 60.0) -> bool:
    """Whether the address answers within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
        time.sleep(0.05)
    return False


def _announce(url: str) -> None:
    if wait_until_up(url):
        print(f"Gradient Workbench: {url}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """`workbench serve`."""
    parser = argparse.ArgumentParser(prog="workbench serve", description="Serve the apps in a browser.")
    parser.add_argument("--port", type=int, default=5006, help="0 takes any free one (default 5006)")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of saved runs (default runs/)")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="HOST:PORT", help="may open pages too")
    parser.add_argument("--password-file", metavar="FILE", help="ask every visitor for the password in this file")
    given = parser.parse_args(argv)
    try:
        password = Path(given.password_file).read_text().strip() if given.password_file else ""
        origins = tuple(given.allow_origin)
        server = Server(runs=given.runs, port=given.port, address=given.address, origins=origins, password=password)
        threading.Thread(target=_announce, args=(server.url,), daemon=True).start()
        server.add_apps().start()
    except OSError as error:
        print(f"workbench serve: {error}. Is it running already? Another port: --port 5007", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

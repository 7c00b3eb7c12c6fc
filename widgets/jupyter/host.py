"""The server inside a kernel: one for all apps of a notebook, on the loopback address, each app on a secret path.

Whoever knows an app's address can use it, so other people on the same machine must not be able to find it out: it holds
32 random bytes, and nothing lists what is served.
"""

import html
import importlib.util
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from widgets.server import SWITCH_SECONDS, Server

START_SECONDS = 30.0
GONE = "This app is gone: its kernel was restarted, or it was closed. Run its cell again."


class Hosted(Protocol):
    """What has pages here."""

    token: str

    def open_page(self, server: Server) -> Any:
        """One page more of it, as Panel shows it."""


class KernelServer(Server):
    """The server of this kernel; made by `server()`. It holds no app that was opened: frames and variables do."""

    def __init__(self) -> None:
        origins = ("*",) if proxied() else ()
        super().__init__(port=0, origins=origins, extra={"/{token}": self._page})
        self.apps: weakref.WeakValueDictionary[str, Hosted] = weakref.WeakValueDictionary()
        self._waiting: dict[str, Hosted] = {}
        self.thread: Any = None
        self._up, self._failed = threading.Event(), ""
        self._stop: Callable[[], None] = lambda: None

    def add(self, app: Hosted) -> None:
        """Serve an app on a path of its own, which becomes its `token`."""
        if app.token not in self.apps:
            app.token = app.token or secrets.token_urlsafe(32)
            self.apps[app.token] = app

    def keep(self, app: Hosted) -> None:
        """Hold an app until its first page opens: nothing else may refer to one that was only displayed."""
        self._waiting[app.token] = app

    def drop(self, app: Hosted) -> None:
        """Serve an app no more."""
        self._waiting.pop(app.token, None)
        self.apps.pop(app.token, None)

    def prepare(self) -> None:
        """As for every server, but the number of threads PyTorch takes stays the notebook's own affair."""
        import panel as pn

        from widgets.player import set_nodelay

        set_nodelay()
        quick()
        pn.config.reconnect = True

    def options(self) -> dict[str, Any]:
        """No page lists the apps."""
        return {"use_index": False}

    def listen(self) -> None:
        """Start on a thread that ends with the kernel, and return once it answers.

        Raises:
            OSError: when it does not.
        """
        self.thread = threading.Thread(target=self._serve, daemon=True, name="kernel server")
        self.thread.start()
        if not self._up.wait(START_SECONDS) or self._failed:
            raise OSError(
                f"expected a server on {self.url} within {START_SECONDS:.0f} s, got {self._failed or 'no answer'}"
            )

    def _serve(self) -> None:
        from tornado.ioloop import IOLoop

        loop = IOLoop(make_current=False)
        try:
            listening = self.start(loop=loop, start=False)
            listening.start()
            self._stop = lambda: loop.add_callback(loop.stop)
        except OSError as error:
            self._failed = str(error)
            return
        finally:
            self._up.set()
        loop.start()
        listening.stop()

    def stop(self) -> None:
        """Stop listening; for tests."""
        self._stop()
        self.thread.join(5)

    def address_of(self, app: Hosted) -> str:
        """Where a browser finds an app: through the proxy of the notebook's server where there is one."""
        prefix = proxied()
        return f"{self.url}/{app.token}" if prefix is None else f"{prefix}/proxy/{self.port}/{app.token}"

    def _page(self) -> Any:
        import panel as pn

        token = pn.state.route_params.get("token", "")
        app = self.apps.get(token)
        self._waiting.pop(token, None)
        return pn.pane.HTML(f"<p role='alert'>{html.escape(GONE)}</p>") if app is None else app.open_page(self)


_lock = threading.Lock()
_servers: list[KernelServer] = []


def server() -> KernelServer:
    """The server of this kernel, started when first asked for.

    Raises:
        OSError: when it does not start.
    """
    with _lock:
        if not _servers or not _servers[0].thread.is_alive():
            fresh = KernelServer()
            fresh.listen()
            _servers[:] = [fresh]
        return _servers[0]


def quick() -> None:
    """Let no Python thread keep the others waiting for long: apps and a running cell both move on."""
    sys.setswitchinterval(min(SWITCH_SECONDS, sys.getswitchinterval()))


def proxied(environ: Mapping[str, str] | None = None) -> str | None:
    """The path under which the notebook's own server hands pages on (jupyter-server-proxy), None where it does not.

    A browser may be on another machine than the kernel, as with JupyterHub: then the loopback address is not the
    kernel's, and the proxy is the only way.
    """
    environ = os.environ if environ is None else environ
    if "JUPYTERHUB_SERVICE_PREFIX" in environ:
        return environ["JUPYTERHUB_SERVICE_PREFIX"].rstrip("/")
    if importlib.util.find_spec("jupyter_server_proxy") is None or "VSCODE_PID" in environ:
        return None
    return _base_url(environ.get("JPY_PARENT_PID", ""))


def _base_url(pid: str) -> str | None:
    """The path that the notebook server of that process serves at, without its last slash."""
    try:
        from jupyter_server.serverapp import list_running_servers
    except ImportError:
        return None
    found = [row for row in list_running_servers() if str(row.get("pid")) == pid]
    return str(found[0]["base_url"]).rstrip("/") if found else None

"""Serving the apps: one page each, on the loopback address unless told otherwise."""

import argparse
import sys
import urllib.request
import threading
import time

import panel as pn

from widgets.apps.shell import serve_page


def pages(runs: str) -> dict:
    """What is served: page by name."""
    from widgets.apps.descent import DescentDesk, DescentShell

    return {"descent": lambda: serve_page(lambda query: DescentShell(DescentDesk(runs=runs, query=query)))}


def main(argv: list[str] | None = None) -> int:
    """`workbench serve`."""
    import torch

    parser = argparse.ArgumentParser(prog="workbench serve", description="Serve the apps in a browser.")
    parser.add_argument("--port", type=int, default=5006)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--runs", default="runs", metavar="DIR")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0005)
    pn.serve(pages(given.runs), port=given.port, address=given.address, show=False, websocket_origin=[f"{given.address}:{given.port}", f"localhost:{given.port}"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What every test starts from: seeded, float32, few threads; and a browser that cannot leave this machine."""

import os
import random
import shutil
from urllib.parse import urlsplit

import hypothesis
import numpy as np
import pytest
import torch

# Reproducible by default, and no deadlines: machines that run tests are shared. HYPOTHESIS_PROFILE=explore draws anew.
hypothesis.settings.register_profile("workbench", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "workbench"))

THREADS = min(2, int(os.environ.get("OMP_NUM_THREADS") or 2))
"""One where tests run side by side: more than there are cores wait for each other."""
BROWSER_FIXTURES = {"browser", "new_page", "page"}
BROWSER_NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
BROWSER_ARGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE [::1]",
]
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
LOCAL_SCHEMES = {"about", "blob", "data", "file"}


def pytest_addoption(parser):
    """The two parts of `make test`; an option, so that `-m` stays free for whoever runs it."""
    words = "only tests that may run beside others, or only those that drive a browser or Jupyter"
    parser.addoption("--part", choices=["together", "alone"], help=words)


def pytest_collection_modifyitems(config, items):
    """Mark browser tests, and run them last: sync Playwright occupies the main thread's event loop to the end."""
    for item in items:
        if BROWSER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.browser)
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
    part = config.getoption("--part")
    if part:
        kept: dict[bool, list] = {True: [], False: []}
        for item in items:
            alone = any(map(item.get_closest_marker, ("browser", "jupyter")))
            kept[alone == (part == "alone")].append(item)
        items[:] = kept[True]
        config.hook.pytest_deselected(items=kept[False])


@pytest.fixture(autouse=True)
def _fixed_numerics():
    """Seed the global generators and set the threads; fail a test that leaves global numerics changed."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - scikit-learn and peers draw from it
    random.seed(0)
    yield
    left = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_default_device(None)
    assert left == (torch.float32, True, torch.device("cpu")), (
        "the test left default dtype, grad mode or device changed"
    )


@pytest.fixture
def one_thread(_fixed_numerics):
    """For steps so small that they gain nothing from a second thread, and wait for it on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chromium_path():
    """The Chromium or Chrome that browser tests drive; its absence is a failure, never a skip."""
    given = os.environ.get("WORKBENCH_CHROMIUM")
    found = next(filter(None, map(shutil.which, [given] if given else BROWSER_NAMES)), None)
    if found is None:
        looked_for = f"WORKBENCH_CHROMIUM={given}" if given else f"any of {', '.join(BROWSER_NAMES)} on the PATH"
        pytest.fail(
            f"no browser: expected {looked_for}. Run `make test`, which fetches one, or set WORKBENCH_CHROMIUM."
        )
    return found


@pytest.fixture(scope="session")
def browser(chromium_path):
    """One headless Chromium for the whole run; host names other than loopback do not resolve in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path, headless=True, args=BROWSER_ARGS)
        yield chromium
        chromium.close()


def leaves_loopback(url):
    """Whether fetching this URL would need a network."""
    parts = urlsplit(url)
    return parts.scheme not in LOCAL_SCHEMES and parts.hostname not in LOOPBACK


@pytest.fixture
def new_page(browser):
    """``new_page(**options)``: a page in its own context (cookies, storage, size); errors in ``page.console_errors``.

    The test fails if any of its pages, frames, workers or websockets asked for something beyond loopback.
    """
    contexts, requested = [], []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        context.on("request", lambda request: requested.append(request.url))
        context.on("page", lambda page: page.on("websocket", lambda socket: requested.append(socket.url)))
        page = context.new_page()
        page.console_errors = []
        page.on("console", lambda message: message.type == "error" and page.console_errors.append(message.text))
        page.on("pageerror", lambda error: page.console_errors.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    outside = sorted({url for url in requested if leaves_loopback(url)})
    assert not outside, f"requests that left loopback: {outside}"


@pytest.fixture
def page(new_page):
    """One page of 1440×900; see ``new_page`` for more, for other sizes and for what it forbids."""
    return new_page()

"""How a person uses a page of an app: opens it, presses, looks at the status line, waits, takes files away."""

import re

import pytest

TIMEOUT = 30_000
MAKING = 120_000
"""ms until a file that is made first, beside everything else, is there."""
PLAYER = "Object.values(window.__players)[0]"
AGENT = "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Mobile Safari/537.36"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "user_agent": AGENT}


def open_app(page, url):
    """Goes to the app, or to an exported page; returns the page once the picture is drawn."""
    page.goto(url, timeout=TIMEOUT)
    drawn = f"!!window.__players && {PLAYER}?.drawn > 0"
    # Asked anew each time: wait_for_function polls by eval in the page, which an exported page forbids.
    until(page, lambda: page.evaluate(drawn), "the page to draw")
    return page


def press(page, name):
    page.get_by_role("button", name=name).first.click()


def said(page):
    """The status line."""
    return page.get_by_role("status").first.inner_text()


def standing(page):
    """(step, furthest step) as the status line says."""
    found = re.search(r"step ([\d,]+) of ([\d,]+)", said(page)).groups()
    return tuple(int(number.replace(",", "")) for number in found)


def until(page, holds, what):
    """Waits until `holds()` is true."""
    for _ in range(TIMEOUT // 100):
        if holds():
            return
        page.wait_for_timeout(100)
    pytest.fail(f"expected {what}; the page says {said(page)!r}")


def linked(page, text):
    """Waits until the address holds a text."""
    until(page, lambda: text in page.url, f"{text!r} in the address, got {page.url}")


def play_to(page, step):
    """Plays until a step has passed, and waits for the address to say so."""
    press(page, "Play or pause")
    until(page, lambda: standing(page)[0] >= step, f"step {step} to be passed while it plays")
    press(page, "Play or pause")
    linked(page, "step=")


def table(page):
    """What the table in front says: by the text of a row's first cell, (head to text) of its numbers."""
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.replace('●', '').trim()))"
    heads, *rows = page.get_by_role("row").evaluate_all(script) or [[]]
    return {cells[0]: dict(zip(heads, cells, strict=False)) for cells in rows}


def download(page, name):
    """Presses a button that gives a file; the file's path."""
    button = page.get_by_role("button", name=name).last
    until(page, button.is_enabled, f"a button {name!r} that can be pressed")
    with page.expect_download(timeout=MAKING) as caught:
        button.click()
    return caught.value.path()


def quiet(page):
    """Nothing was complained of in the console."""
    assert page.console_errors == [], page.console_errors

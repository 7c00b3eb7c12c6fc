"""What tests of desks do: give commands and wait."""

import time


def done(desk, *commands):
    """Give commands; returns once they, and what they queued, are carried out."""
    for command in commands:
        command()
    desk.wait()
    desk.wait()
    return desk


def until(holds, seconds=30):
    """Wait until something holds; fail when it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)

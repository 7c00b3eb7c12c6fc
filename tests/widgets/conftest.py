"""Desks for tests that need no page. A test file says which with a fixture `make`; `desk` is the default one."""

import pytest


@pytest.fixture
def open_desk(tmp_path):
    """`open_desk(kind, query=…)`: a desk, closed at the end; messages in `said`, answers to uploads in `answered`."""
    desks = []

    def opened(kind, **options):
        desk = kind(runs=tmp_path / "runs", **options)
        desk.said, desk.answered = [], []
        desk.on("message", lambda text, tone: desk.said.append((tone, text)))
        desk.on("upload", lambda text, tone: desk.answered.append((tone, text)))
        desks.append(desk)
        desk.wait()
        desk.wait()  # what opening a link has queued
        return desk

    yield opened
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(make):
    """The desk as it opens without a link."""
    return make()

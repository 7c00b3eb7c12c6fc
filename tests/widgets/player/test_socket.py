"""The player's own websocket, with a client by hand: who may open it, what travels on it, and what is left of it."""

import asyncio
import contextlib
import gc
import http.client
import socket
import threading
import time
import weakref

import panel as pn
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from widgets.player import Frame, Scene, ServedPlayer
from widgets.player.frames import decode
from widgets.player.socket import MOST_LINES, MOST_UNDER_WAY, _players


@pytest.fixture(scope="module")
def address():
    """host:port of a server of two pages, one of them on a path that its visitors know alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pages = {"page": ServedPlayer, "/{secret}": ServedPlayer}
    server = pn.serve(pages, port=port, address="127.0.0.1", show=False, threaded=True, verbose=False)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
    yield f"127.0.0.1:{port}"
    server.stop()


class Page(ServedPlayer):
    """A player whose page is the test itself, until there is a line."""

    def _soon(self, call):
        if self.lines.loop() is None:
            call()
        else:
            super()._soon(call)


@pytest.fixture
def player():
    player = Page()
    yield player
    player.close()


class Browser:
    """A client's end of a line."""

    def __init__(self, address, token, view="v", path="page"):
        self.url, self.origin = f"ws://{address}/{path}/frames?player={token}&view={view}", f"http://{address}"

    async def __aenter__(self):
        self.line = await websocket_connect(HTTPRequest(self.url, headers={"Origin": self.origin}))
        self.stream = self.line.protocol.stream
        return self

    async def __aexit__(self, *_error):
        self.line.close()
        await until(self.stream.closed)

    async def read(self):
        """Header of the next message; None once the server has closed the line."""
        message = await asyncio.wait_for(self.line.read_message(), 5)
        return None if message is None else decode(message)[0]

    async def silent(self, seconds=0.2):
        """Whether nothing comes for a while."""
        waiting = asyncio.ensure_future(self.line.read_message())
        done, _ = await asyncio.wait([waiting], timeout=seconds)
        waiting.cancel()
        return not done


async def until(true, seconds=5):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert true()


def asks(address, token, origin=None, view="v"):
    """Status with which a server answers whoever wants a line: 101 is yes."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==", "Origin": origin or f"http://{address}"}
        connection.request("GET", f"/page/frames?player={token}&view={view}", headers=headers | key)
        with contextlib.closing(connection.getresponse()) as answer:
            return answer.status
    finally:
        connection.close()


def from_a_worker(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


async def looking(player, browser, seq=0):
    """The view has said by its page that it is there, and by its line what it holds."""
    player._handle_msg({"kind": "ready", "view": "v", "seen": seq})
    await browser.line.write_message(str(seq))
    await until(player.lines.carry)


@pytest.mark.parametrize("path", ["page", "some-secret"])
def test_frames_of_a_worker_travel_on_the_line_two_at_a_time_and_the_newest_wins(address, player, path):
    async def visit():
        async with Browser(address, player.line, path=path) as browser:
            await looking(player, browser)
            from_a_worker(lambda: [(player.show(frame=Frame(step)), time.sleep(0.02)) for step in range(1, 8)])
            first, second = await browser.read(), await browser.read()
            assert (first["step"], second["step"]) == (1, 2)
            assert await browser.silent()
            await browser.line.write_message(str(first["seq"]))

    asyncio.run(visit())


def test_what_is_drawn_makes_room_for_the_newest(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            from_a_worker(lambda: [(player.show(frame=Frame(step)), time.sleep(0.02)) for step in range(1, 8)])
            first = await browser.read()
            await browser.read()
            await browser.line.write_message(str(first["seq"]))
            assert (await browser.read())["step"] == 7
            assert player.feed.counts.replaced == 4
            assert decode(player.frame)[0]["step"] == 7, "a page that opens now starts from the latest"

    asyncio.run(visit())


def test_a_line_goes_on_as_long_as_what_it_sends_is_taken(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            for step in range(3 * MOST_UNDER_WAY):
                player.show(frame=Frame(step))
                came = await browser.read()
                assert came["step"] == step
                await browser.line.write_message(str(came["seq"]))
                await until(lambda seq=came["seq"]: player.feed.drawn == seq)
            assert player.lines.carry()

    asyncio.run(visit())


@pytest.mark.parametrize("token", ["", "no-such-player"])
def test_an_unknown_token_is_refused(address, token):
    assert asks(address, token) == 403


def test_another_site_is_refused_though_it_has_the_token(address, player):
    assert asks(address, player.line) == 101
    assert asks(address, player.line, origin="http://elsewhere.example") == 403
    assert asks(address, player.line, view="") == 403


def test_a_closed_player_is_forgotten_and_its_lines_end(address):
    player = ServedPlayer()
    token = player.line

    async def visit():
        async with Browser(address, token) as browser:
            await looking(player, browser)
            player.close()
            assert await browser.read() is None

    asyncio.run(visit())
    assert asks(address, token) == 403
    assert token not in _players


def test_an_open_line_does_not_keep_a_player_alive(address):
    player = ServedPlayer()
    alive, token = weakref.ref(player), player.line

    async def visit(player):
        async with Browser(address, token) as browser:
            await looking(player, browser)
            del player
            await asyncio.sleep(0)
            holder.clear()
            gc.collect()
            assert alive() is None
            await browser.line.write_message("1")
            assert await browser.read() is None

    holder = [player]
    del player
    asyncio.run(visit(holder[0]))
    assert token not in _players


def test_tokens_are_not_to_be_guessed():
    players = [ServedPlayer() for _ in range(3)]
    assert len({player.line for player in players}) == 3
    assert all(len(player.line) >= 43 for player in players)


def test_two_visitors_do_not_see_each_other_s_frames(address):
    mine, theirs = ServedPlayer(), ServedPlayer()

    async def visit():
        async with Browser(address, mine.line) as first, Browser(address, theirs.line) as second:
            await looking(mine, first)
            await looking(theirs, second)
            mine.show(frame=Frame(7))
            assert (await first.read())["step"] == 7
            assert await second.silent()
            theirs.show(frame=Frame(8))
            assert (await second.read())["step"] == 8
            assert await first.silent()

    asyncio.run(visit())
    mine.close()
    theirs.close()


@pytest.mark.parametrize("message", ["x", "-1", "1.5", "9" * 33, b"1", "٣", ""])
def test_a_line_that_says_anything_but_a_number_is_closed(address, player, message):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            await browser.line.write_message(message, binary=isinstance(message, bytes))
            assert await browser.read() is None
            await until(lambda: not player.lines._open)

    asyncio.run(visit())


def test_a_frame_that_a_broken_line_swallowed_is_sent_again_as_a_property(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            player.show(frame=Frame(1))
            await browser.read()  # and never draws it
        await until(lambda: decode(player.frame)[0]["seq"] == 2)
        assert decode(player.frame)[0]["step"] == 1
        assert not player.lines.carry()

    asyncio.run(visit())


def test_a_page_that_says_its_line_is_lost_is_believed(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            player._handle_msg({"kind": "ready", "view": "v", "seen": 0, "lost": True})
            assert not player.lines.carry()
            assert await browser.read() is None

    asyncio.run(visit())


def test_nothing_overtakes_a_scene(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            player.show(scene=Scene(title="new"))
            await until(lambda: player.scene)
            seq = decode(player.scene)[0]["seq"]
            player.show(frame=Frame(1))
            await until(lambda: player.frame)
            assert await browser.silent(), "the scene may still be on its way"
            await browser.line.write_message(str(seq + 1))
            await until(player.lines.carry)
            player.show(frame=Frame(2))
            assert (await browser.read())["step"] == 2

    asyncio.run(visit())


def test_while_one_of_two_views_has_no_line_both_get_properties(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            player._handle_msg({"kind": "ready", "view": "w", "seen": 0})
            player.show(frame=Frame(1))
            await until(lambda: player.frame)
            assert await browser.silent()
            async with Browser(address, player.line, view="w") as other:
                seq = player.feed.counts.sent
                await other.line.write_message(str(seq))
                await browser.line.write_message(str(seq))
                await until(player.lines.carry)
                player.show(frame=Frame(2))
                assert (await browser.read())["step"] == (await other.read())["step"] == 2

    asyncio.run(visit())


def test_a_network_that_takes_nothing_costs_a_few_frames_of_memory_and_then_the_line(address, player):
    async def visit():
        async with Browser(address, player.line) as browser:
            await looking(player, browser)
            line = player.lines._open["v"]
            line._write = lambda frame: None  # as if none were ever done
            sent = sum(line.send(b"frame") for _ in range(100))
            assert sent == MOST_UNDER_WAY
            player.lines.send(b"frame")
            assert not player.lines._open
            assert await browser.read() is None

    asyncio.run(visit())


def test_a_player_has_only_so_many_lines_and_a_view_only_one(address, player):
    async def visit():
        browsers = [Browser(address, player.line, view=f"v{i}") for i in range(MOST_LINES + 1)]
        for browser in browsers:
            await browser.__aenter__()
            await browser.line.write_message("0")
        assert await browsers[-1].read() is None
        assert len(player.lines._open) == MOST_LINES
        async with Browser(address, player.line, view="v3") as again:
            await again.line.write_message("0")
            assert await browsers[3].read() is None
            await until(lambda: len(player.lines._open) == MOST_LINES)
        for browser in browsers:
            await browser.__aexit__()
        await until(lambda: not player.lines._open)

    asyncio.run(visit())

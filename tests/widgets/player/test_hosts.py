"""The two Python players, without a browser: what they hand on and what they make of what a browser sends."""

import threading

import pytest
from bokeh.document import Document
from bokeh.server.views.ws import WSHandler

from widgets.player import Frame, NotebookPlayer, Scene, ServedPlayer, set_nodelay
from widgets.player.esm import module
from widgets.player.frames import decode


class Page(ServedPlayer):
    """A served player whose loop is the test itself."""

    def _soon(self, call):
        call()


@pytest.fixture(params=[Page, NotebookPlayer])
def player(request):
    player = request.param()
    yield player
    player.close()


def tell(player, **message):
    if isinstance(player, ServedPlayer):
        player._handle_msg(message)
    else:
        player._on_message(player, message, [])


def test_what_is_shown_becomes_the_property_that_the_browser_reads(player):
    player.show(scene=Scene(title="bowl"), frame=Frame(3))
    assert decode(player.scene)[0]["title"] == "bowl"
    assert decode(player.frame)[0]["step"] == 3


def test_frames_from_a_worker_thread_wait_for_the_browser_and_the_newest_wins(player):
    tell(player, kind="ready", view="v", seen=0)
    thread = threading.Thread(target=lambda: [player.show(frame=Frame(step)) for step in range(10)])
    thread.start()
    thread.join()
    assert decode(player.frame)[0]["step"] == 1
    tell(player, kind="drawn", view="v", seq=2)
    assert decode(player.frame)[0]["step"] == 9


def test_clicks_and_actions_reach_their_callbacks_and_count(player):
    clicks, actions = [], []
    undo = player.on_click(lambda x, y: clicks.append((x, y)))
    player.on_action(lambda name, value: actions.append((name, value)))
    tell(player, kind="click", view="v", x=1, y=-2.5)
    tell(player, kind="action", view="v", name="play")
    tell(player, kind="action", view="v", name="tile", value=7)
    undo()
    tell(player, kind="click", view="v", x=3, y=4)
    assert clicks == [(1.0, -2.5)]
    assert actions == [("play", None), ("tile", 7)]
    assert player.clicked == {"x": 3.0, "y": 4.0, "n": 2}
    assert player.action == {"name": "tile", "value": 7, "n": 2}


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "click", "x": float("nan"), "y": 0},
        {"kind": "click", "x": "0", "y": 0},
        {"kind": "click"},
        {"kind": "action", "name": "rm -rf"},
        {"kind": "drawn", "seq": "many"},
        {"kind": "drawn", "seq": -(10**30)},
        {"kind": "ready", "view": ["x"] * 10_000, "seen": None},
        {"kind": None},
    ],
)
def test_a_malformed_message_changes_nothing(player, message):
    tell(player, **message)
    assert player.clicked is None
    assert player.action is None


def test_a_theme_that_does_not_exist_is_refused(player):
    with pytest.raises(Exception, match="theme"):
        player.theme = "sepia"


def test_a_closed_player_sends_nothing_more(player):
    player.show(frame=Frame(1))
    before = player.frame
    player.close()
    player.show(frame=Frame(2))
    assert player.frame == before


def test_a_served_player_without_a_page_keeps_the_latest_for_the_first():
    player = ServedPlayer()
    for step in range(5):
        player.show(frame=Frame(step))
    model = player.get_root(Document())
    assert decode(model.data.frame)[0]["step"] == 4
    assert "clicked" not in model.data.properties()


def test_set_nodelay_wraps_the_websocket_once():
    set_nodelay()
    wrapped = WSHandler.open
    set_nodelay()
    assert WSHandler.open is wrapped


def test_browsers_get_one_small_module_that_imports_nothing():
    text = module()
    assert "import " not in "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
    assert text.count("export ") == text.count("export default") == 1
    assert len(text.encode()) < 64_000

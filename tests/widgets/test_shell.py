"""The page around a desk, without a browser: what its sliders do while the desk is still busy, and what it costs."""

import threading

import numpy as np
import panel as pn
import pytest
from bokeh.document import Document

from widgets.apps.curves import curves
from widgets.apps.descent import DescentDesk, DescentShell
from widgets.apps.plot import LivePlot
from widgets.scales import to_slider

# 2026-11-25: panel-material-ui's own FileDownload gives Panel's Button both names of its look.
pytestmark = pytest.mark.filterwarnings("ignore:Both 'variant' and 'button_style':PendingDeprecationWarning")


@pytest.fixture
def shell(tmp_path):
    made = DescentShell(DescentDesk(runs=tmp_path / "runs"))
    made.page()
    made.desk.wait()
    yield made
    made.close()


@pytest.fixture
def busy(shell):
    """Holds the desk until it is called."""
    held = threading.Event()
    shell.desk.do(lambda: held.wait(20))
    yield lambda: (held.set(), shell.desk.wait())
    held.set()


def slide(shell, name, value):
    """What the page does when a person moves a slider to a value."""
    control = shell.hyper[name]
    control.slider.value = to_slider(control.hyper, value)


def test_a_slider_stays_under_the_hand_until_its_turn_is_carried_out(shell, busy):
    slide(shell, "sgd.lr", 0.25)
    shell._state()
    assert shell.hyper["sgd.lr"].slider.value == to_slider(shell.hyper["sgd.lr"].hyper, 0.25)
    assert shell.desk.session.hyper["sgd.lr"] != 0.25
    busy()
    assert shell.desk.session.hyper["sgd.lr"] == 0.25


def test_a_slider_moved_back_and_forth_is_obeyed_every_time(shell):
    followed = []
    for value in (0.01, 0.02, 0.01, 0.02, 0.01):
        held = threading.Event()
        shell.desk.do(lambda held=held: held.wait(20))
        slide(shell, "adam.lr", value)
        shell._state()
        held.set()
        shell.desk.wait()
        shell._state()
        followed.append(shell.desk.session.hyper["adam.lr"])
    assert followed == [0.01, 0.02, 0.01, 0.02, 0.01]


def test_a_value_the_desk_refuses_leaves_the_controls_where_the_session_stands(shell):
    before = shell.desk.session.hyper["sgd.lr"]
    shell.desk.turn("sgd.lr", -1.0)
    shell.desk.wait()
    assert shell.desk.hyper["sgd.lr"] == before


def test_a_page_does_not_follow_whether_the_server_is_busy(shell):
    pn.state._add_busy_event("somebody else's")
    try:
        assert pn.state.busy
        assert not shell.page_.busy
    finally:
        pn.state._remove_busy_event("somebody else's")


def test_a_live_plot_hands_on_a_figure_as_it_was_made():
    figure = curves([{"name": "loss", "steps": np.arange(5), "values": np.arange(5) + 1.0}], title="loss", log=True)
    pane = LivePlot(figure)
    model = pane.get_root(Document())
    assert model.layout == figure["layout"]
    assert [trace["name"] for trace in model.data] == ["loss"]
    pane.object = curves([{"name": "loss", "steps": np.arange(7), "values": np.arange(7) + 2.0}], title="loss")
    assert model.layout["yaxis"].get("type") is None
    np.testing.assert_array_equal(model.data_sources[0].data["y"][0], np.arange(7) + 2.0)

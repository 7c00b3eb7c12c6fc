"""The picture of a watched loop follows it, and not too often."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from widgets.jupyter.watched import watch_view
from workbench.watch import watch

pytestmark = pytest.mark.usefixtures("one_thread")


class Shown:
    def __init__(self, figure):
        self.figures, self.times = [figure], []

    def update(self, figure):
        self.figures.append(figure)
        self.times.append(time.monotonic())


def test_curves_follow_the_loop_at_most_twice_a_second():
    model = nn.Linear(3, 1)
    optimizer, shown = torch.optim.SGD(model.parameters(), lr=1e-3), []
    run = watch(model, optimizer, budget=None)
    draw = watch_view(run, ["loss", "gradient_norm"], show=lambda figure: shown.append(Shown(figure)) or shown[0])
    (pane,) = shown
    assert not pane.figures[0].data
    with run:
        until = time.monotonic() + 1.3
        while time.monotonic() < until:
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            time.sleep(0.001)
        assert 2 <= len(pane.times) <= 3
        assert min(np.diff(pane.times)) >= 0.5
    draw()
    record, last = run.record(), pane.figures[-1]
    assert [curve.name for curve in last.data] == ["loss", "gradient_norm"]
    for curve in last.data:
        known = record["step"].values
        assert len(curve.x) <= 1000
        np.testing.assert_array_equal(curve.y, record[curve.name].values[0][np.searchsorted(known, curve.x)])
    assert f"step {run.index:,}" in last.layout.title.text

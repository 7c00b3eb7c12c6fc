"""What only a fresh interpreter or a browser can tell."""

import subprocess
import sys

import numpy as np
import pytest

import workbench as wb
from workbench import figures

IMPORTS = """
import sys
import workbench as wb
from workbench import figures
record = wb.rollout(wb.descent("rosenbrock", "adam"), 2)
heavy = {"plotly", "panel", "bokeh", "ipywidgets", "widgets"}
early = heavy & {name.split(".")[0] for name in sys.modules}
assert not early, early
record.wb.plot()
assert "plotly" in sys.modules
"""


@pytest.mark.slow
def test_plotly_is_imported_only_when_a_figure_is_asked_for():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def all_figures(theme):
    lr = np.geomspace(1e-3, 1, 12)
    few = wb.rollout(wb.descent("quadratic", "sgd"), 300, hyper={"lr": [1e-2, 0.11, 0.5]})
    many = wb.rollout(wb.descent("quadratic", "sgd"), 100, hyper={"lr": lr})
    x, y = (part.ravel() for part in np.meshgrid(lr, [0, 0.5, 0.9]))
    grid = wb.rollout(wb.descent("quadratic", "momentum"), 200, hyper={"lr": x, "momentum": y}, every=200)
    return [
        figures.curves(few, theme=theme),
        figures.curves(few, log=False, theme=theme),
        figures.curves(many, theme=theme),
        figures.paths(few, theme=theme),
        figures.paths(many, theme=theme),
        figures.sweep(grid, theme=theme),
        figures.sweep(many, theme=theme),
        figures.contours(wb.make("monkey-saddle"), theme=theme),
    ]


def test_every_kind_of_figure_is_drawn_without_an_error_and_without_a_network(page, tmp_path):
    for theme in ("light", "dark"):
        for k, figure in enumerate(all_figures(theme)):
            path = tmp_path / f"{theme}{k}.html"
            figure.write_html(path, include_plotlyjs="directory")
            page.goto(path.as_uri())
            page.wait_for_selector(".main-svg .xtitle")
            paper = page.evaluate("getComputedStyle(document.querySelector('.main-svg')).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[theme]
            assert page.console_errors == [], path.name

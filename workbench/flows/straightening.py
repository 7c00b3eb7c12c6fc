"""Bellman straightening: piecewise reflow on the steps that lose the least, so that they lose still less."""

from functools import cached_property

import torch

from workbench.flows.perflow import PiecewiseReflow


class BellmanStraightening(PiecewiseReflow):
    """E |v(z_t, t) - (z_e - z_s) / (e - s)|² as "perflow", its windows the steps of the "bellman-grid" of the teacher.

    Retrain the net from the teacher's weights, then draw with Euler's method on `grid`: each of its jumps was chosen to
    be nearly straight, and is made straighter.

    Args:
        field: the teacher, such as `wb.trained_field(session)`; the exact field from the unit normal to eight Gaussians
            on the linear path when None.

    Source: Nguyen, Nguyen & Nguyen 2024, arXiv:2312.16414 (straightening). Derived here, not checked against the public
    code; windows begin at noised data, as in "perflow".
    """

    name = "bellman-straightening"
    title = "Bellman straightening"
    source = "Nguyen, Nguyen & Nguyen 2024, arXiv:2312.16414"
    ledger = "bellman-optimal-step-size-straightening-of"
    evidence = "tests/flows/test_straightening.py::test_windows_are_the_steps_of_the_bellman_grid"

    @cached_property
    def grid(self):
        """The windows' ends, (windows + 1,): the cheapest steps among 64 fine ones."""
        from workbench.samplers.bellman import BellmanGrid

        like = torch.empty(0, dtype=torch.float64)
        return BellmanGrid(self.flow).times(self.teacher, self.windows, {}, like)

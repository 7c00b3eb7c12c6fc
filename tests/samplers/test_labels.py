"""A label is a promise: the evaluations that are shown are those that the field was asked for."""

import pytest
import torch

import workbench as wb
from workbench.flows.fields import Field


class Asked(Field):
    """Counts the rows it is asked for, on its own."""

    def __init__(self, field):
        self.field, self.rows = field, 0
        self.dim, self.interpolant, self.source, self.target = field.dim, field.interpolant, field.source, field.target

    def known(self, x, t, rows=None):
        self.rows += x.numel() // x.shape[-1]
        return self.field.known(x, t, rows)


@pytest.mark.parametrize("name", [row.name for row in wb.catalogue("solvers")])
def test_evaluations_shown_are_those_the_field_counted(name):
    torch.set_num_threads(1)
    field = Asked(wb.exact_field("two-modes", "variance-preserving"))
    session = wb.Session(wb.sampling(field, name, steps=6, samples=9), seed=[1, 2])
    for _ in range(5):
        session.step()
        shown = session.state.nfe.expand(2, 9).sum() if session.state.nfe.shape[1] == 1 else session.state.nfe.sum()
        assert int(shown) == field.rows
    assert field.rows > 0

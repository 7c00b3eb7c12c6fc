"""Several nets in one vector of parameters: each is the model alone, for every way that batches may be shaped."""

import pytest
import torch

import workbench as wb
from workbench.flows.nets import Nets
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)


def test_each_net_is_the_model_alone_on_its_own_part_of_the_vector():
    model = wb.make("mlp", width=5, depth=1, activation="tanh")
    nets = Nets(model, 2, 0, {"first": (0, 2), "second": (3, 4)})
    params = nets.model.init(Key((1, 2)), EXACT)
    x, more = Key(3).normal((6, 2), like=EXACT), Key(4).normal((2, 6, 3), like=EXACT)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    first, second = model.bind(3, 2), model.bind(6, 4)
    sizes = [sum(torch.Size(shape).numel() for shape in part.space.shapes) for part in (first, second)]
    assert params.shape == (2, sum(sizes))
    assert torch.equal(params[:, : sizes[0]], first.init(Key((1, 2)), EXACT))
    rows = torch.cat([x, t.unsqueeze(-1)], -1)
    expected = first(params[:, : sizes[0]], rows, {}, training=False)[0]
    torch.testing.assert_close(nets(params, x, t), expected)
    expected = second(params[:, sizes[0] :], torch.cat([rows.expand(2, -1, -1), more], -1), {}, training=False)[0]
    torch.testing.assert_close(nets(params, x, t, part="second", given=more), expected)


def test_runs_may_differ_in_when_they_look():
    """And train as if alone, with classes too."""
    small = wb.make("mlp", width=6, depth=1, activation="silu")
    for objective in ("constant-acceleration-flow", "c-rectified-flow", "learned-coupling"):
        made = {"network": small, "times": "logit-normal-times", "batch_size": 8, "dtype": torch.float64}
        routine = wb.flow_training(wb.make("gaussian", dim=64), "digit-images", objective, **made)
        together = wb.Session(routine, hyper={"logit_mean": [-1.0, 1.0]}, seed=(4, 5)).step(2)
        for run in (0, 1):
            alone = wb.Session(routine, hyper={"logit_mean": [-1.0, 1.0][run]}, seed=4 + run).step(2)
            torch.testing.assert_close(together.state.x[run], alone.state.x[0], rtol=1e-9, atol=1e-9)
        shared = wb.Session(routine, hyper={"logit_mean": [-1.0, 1.0]}).step(2)
        alone = wb.Session(routine, hyper={"logit_mean": 1.0}).step(2)
        torch.testing.assert_close(shared.state.x[1], alone.state.x[0], rtol=1e-9, atol=1e-9)
        field = routine.field(shared.state, 1).given(torch.arange(10))
        found = field(Key(6).normal((10, 64), like=EXACT), torch.tensor(0.5, dtype=torch.float64))
        other = routine.field(shared.state, 1)(found.x, found.t)
        assert (found.velocity != other.velocity).any(-1).all()

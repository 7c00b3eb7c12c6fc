"""Units dropped as by hand; the path between networks bounded as derived; both better in wider networks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.landscapes import landscape
from workbench.landscapes.connections import barrier, line
from workbench.landscapes.dropout import drop, dropout_path, dropout_stability
from workbench.problems.networks import MLP
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = {"inner.weight": ("units", None), "inner.bias": ("units",), "outer.weight": (None, "units")}


def made(width=8, depth=1):
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3
    model = MLP(width=width, depth=depth, activation="tanh")
    return landscape(model, "cross_entropy", (x, y, x[:3], y[:3]), dtype=torch.float64)


def test_dropped_units_are_silent_and_the_others_louder():
    net = made(6, 2)
    x = Key(0).normal((net.dim,), like=net.start)
    masks = [torch.tensor([1, 1, 0, 1, 0, 0]).bool(), torch.tensor([0, 0, 0, 0, 1, 1]).bool()]
    w1, b1, w2, b2, w3, b3 = net.space.blocks(x)
    h = torch.tanh(net.inputs @ w1.T + b1) * masks[0] * 2
    h = torch.tanh(h @ w2.T + b2) * masks[1] * 3
    found = drop(net, torch.stack([x, x]), {"units 1": masks[0], "units 2": masks[1]})
    torch.testing.assert_close(net.outputs(found), (h @ w3.T + b3).expand(2, -1, -1))
    everything = {"units 1": torch.ones(6).bool()}
    assert torch.equal(drop(net, x, everything), x)
    for wrong in ({"units 1": masks[0][:5]}, {"units 3": masks[0]}, {"units 1": ~everything["units 1"]}):
        with pytest.raises(ValueError, match="expected masks"):
            drop(net, x, wrong)


def test_channels_dropped_before_flatten():
    pictures, y = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.arange(9) % 3
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    net = landscape(module, "cross_entropy", (pictures, y, pictures[:3], y[:3]), dtype=torch.float64)
    masks = [torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([1, 1, 0, 1, 1]).bool()]
    module = module.double()
    h = module[1](module[0](net.inputs)) * masks[0][:, None, None] * 2
    h = module[3](module[2](h)) * masks[1][:, None, None] * 1.25
    found = drop(net, net.start, {"units 1": masks[0], "units 2": masks[1]})
    torch.testing.assert_close(net.outputs(found[None])[0], module[5](module[4](h)))


def test_stability_is_the_mean_over_all_choices_of_units():
    """4 of 8 units: 70 choices, whose mean the estimate meets within its error; the error is their spread."""
    net = made(8)
    x = 2 * Key(1).normal((net.dim,), like=net.start)
    masks = [m for m in torch.cartesian_prod(*[torch.tensor([False, True])] * 8) if m.sum() == 4]
    every = torch.stack([net(drop(net, x[None], {"units 1": m}))[0] for m in masks]) - net(x[None])
    found = dropout_stability(net, x, draws=600, key=Key(2))
    assert abs(found.value - every.mean()) < 4 * found.standard_error
    assert found.standard_error.item() == pytest.approx((every.std() / 600**0.5).item(), rel=0.15)
    assert dropout_stability(net, x, keep=1, draws=2).value.item() == 0
    seen = []
    dropout_stability(net, x, draws=2, watch=seen.append)
    assert seen == [0.5, 1]
    with pytest.raises(ValueError, match="keep"):
        dropout_stability(net, x, keep=0)


@pytest.mark.parametrize("width", [8, 9])
def test_the_path_ends_at_the_networks_and_is_highest_at_a_corner(width):
    net = made(width)
    for seed in range(5):
        a, b = 2 * Key(seed).normal((2, net.dim), like=net.start)
        path = dropout_path(net, a, b, key=Key(seed))
        assert torch.equal(path.point(0), a)
        assert torch.equal(path.point(1), b)
        corners = net(path.controls)
        torch.testing.assert_close(corners[[1, 3]], corners[[2, 4]])
        assert net(path.points(torch.linspace(0, 1, 251))).max() <= corners.max() + 1e-12
        # The second corner is a without the units that nothing leaves, the fifth b without the others.
        h = torch.tanh(net.inputs @ (w := net.space.blocks(a))[0].T + w[1])
        silent = (net.space.blocks(path.controls[1])[2] == 0).all(0)
        assert silent.sum() == width // 2
        outputs = (h * ~silent * width / (~silent).sum()) @ w[2].T + w[3]
        torch.testing.assert_close(corners[1], F.cross_entropy(outputs, net.targets))
        other = drop(net, b, {"units 1": silent})
        torch.testing.assert_close(path.controls[4], other)


def test_a_path_needs_one_hidden_layer():
    net = made(4, 2)
    with pytest.raises(ValueError, match="one hidden layer"):
        dropout_path(net, net.start, net.start)


class MeanField(nn.Module):
    """1/width Σ a_i relu(w_i x + b_i), trained at a step size that grows with width."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.outer, self.width = nn.Linear(64, width), nn.Linear(width, 10, bias=False), width
        nn.init.uniform_(self.outer.weight, -1, 1)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x))) / self.width


def trained(scaling, width, runs=4):
    """Independent trainings on digits, and a landscape they are points of."""
    if scaling == "usual":
        routine, start, lr = wb.training(wb.make("mlp", width=width), "cross_entropy", "digits", "adam"), None, 1e-3
    else:
        nets = []
        for seed in range(runs):
            torch.manual_seed(seed)
            nets.append(MeanField(width))
        routine, lr = wb.training(nets[0], "cross_entropy", "digits", "sgd"), 0.5 * width
        start = torch.stack([nn.utils.parameters_to_vector(net.parameters()) for net in nets]).detach()
    with wb.Session(routine, seed=tuple(range(runs)), start=start, hyper={"lr": lr}) as session:
        session.step(150)
        return landscape(routine), session.state.x


@pytest.mark.parametrize(
    ("scaling", "widths"),
    [
        ("mean field", (32, 128, 512)),
        ("usual", (32, 128, 512)),
        pytest.param("mean field", (32, 128, 512, 2048), marks=pytest.mark.slow),
        pytest.param("usual", (32, 128, 512, 2048), marks=pytest.mark.slow),
    ],
)
def test_wider_networks_are_more_stable_and_joined_by_lower_paths(scaling, widths):
    """Shevchenko & Mondelli: change of the loss and barrier of the path fall with width; four trainings, two pairs."""
    spec = None if scaling == "usual" else SPEC
    rows = []
    for width in widths:
        net, x = trained(scaling, width)
        change = np.mean([dropout_stability(net, one, draws=8, spec=spec).value.item() for one in x])
        pairs = list(x.view(2, 2, -1))
        paths = [[dropout_path(net, a, b, spec=spec), line(a, b)] for a, b in pairs]
        rows.append([change, *np.mean([[barrier(net, path, 26).value.item() for path in pair] for pair in paths], 0)])
    change, constructed, straight = np.transpose(rows)
    assert np.polyfit(np.log(widths), np.log(change), 1)[0] < -0.8
    assert np.polyfit(np.log(widths), np.log(constructed), 1)[0] < -0.8
    assert (constructed < 0.8 * straight)[1:].all()
    assert constructed[-1] < 0.2 * straight[-1]

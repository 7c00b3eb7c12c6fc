"""Reordered units compute the same; matching finds orders, and lowers the barrier between two trainings."""

import itertools

import pytest
import torch
from torch import nn

from workbench.landscapes import landscape
from workbench.landscapes.alignment import activation_matching, straight_through_matching, weight_matching
from workbench.landscapes.units import permute, unit_spec
from workbench.problems.networks import MLP
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(shape=(6,), count=20):
    x, y = torch.randn(count, *shape, dtype=torch.float64), torch.arange(count) % 3
    return x, y, x[:3], y[:3]


def dense(width=7, depth=3, activation="relu"):
    model = MLP(width=width, depth=depth, activation=activation)
    return landscape(model, "cross_entropy", samples(), dtype=torch.float64)


def convolutional():
    front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2, bias=False))
    net = nn.Sequential(front, nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.GELU(), nn.Dropout(), nn.Linear(6, 3))
    return landscape(net, "cross_entropy", samples((1, 6, 6)), dtype=torch.float64)


def shuffled(made, seed=1):
    spec, orders = unit_spec(made), {}
    for name, axes in spec.items():
        for axis, order in enumerate(axes):
            if order is not None and order not in orders:
                size = made.space.shapes[made.names.index(name)][axis]
                orders[order] = Key(seed).stream(order).permutation(size)
    return orders


def inverse(orders):
    return {name: order.argsort() for name, order in orders.items()}


@pytest.mark.parametrize("make", [dense, convolutional])
def test_a_permuted_network_is_the_same_function(make):
    made = make()
    x = Key(3).normal((2, made.dim), like=made.start)
    moved = permute(made, x, shuffled(made))
    assert (moved != x).float().mean() > 0.7
    torch.testing.assert_close(made.outputs(moved), made.outputs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(permute(made, x[0], shuffled(made)), moved[0], rtol=0, atol=0)
    back = permute(made, moved, inverse(shuffled(made)))
    assert torch.equal(back, x)


def test_new_unit_j_is_old_unit_order_j():
    made = dense(depth=1)
    order = torch.tensor([3, 0, 1, 2, 6, 5, 4])
    moved = made.space.blocks(permute(made, made.start, {"units 1": order}))
    old = made.space.blocks(made.start)
    assert torch.equal(moved[0], old[0][order])
    assert torch.equal(moved[1], old[1][order])
    assert torch.equal(moved[2], old[2][:, order])
    assert torch.equal(moved[3], old[3])


@pytest.mark.parametrize("match", [weight_matching, activation_matching])
@pytest.mark.parametrize("make", [lambda: dense(activation="gelu"), lambda: dense(60, 4, "tanh"), convolutional])
def test_a_permuted_copy_is_recovered_exactly(make, match):
    made = make()
    a = made.start
    for seed in range(5):
        b = permute(made, a, shuffled(made, seed))
        found = match(made, a, b)
        assert {name: order.tolist() for name, order in found.items()} == {
            name: order.tolist() for name, order in inverse(shuffled(made, seed)).items()
        }
        assert torch.equal(permute(made, b, found), a)


def test_one_hidden_layer_is_matched_at_the_best_of_all_orders():
    made = dense(width=5, depth=1)
    a, b = Key(0).normal((2, made.dim), like=made.start)
    every = [torch.tensor(order) for order in itertools.permutations(range(5))]
    products = torch.stack([a @ permute(made, b, {"units 1": order}) for order in every])
    found = weight_matching(made, a, b)["units 1"]
    assert torch.equal(found, every[int(products.argmax())])


def test_no_single_layer_can_be_matched_better():
    made = dense(width=4, depth=3)
    a, b = Key(1).normal((2, made.dim), like=made.start)
    found = weight_matching(made, a, b)
    best = a @ permute(made, b, found)
    assert best > a @ b
    for name in found:
        for order in itertools.permutations(range(4)):
            other = found | {name: torch.tensor(order)}
            assert a @ permute(made, b, other) <= best + 1e-9


def test_the_midpoint_is_matched_near_the_best_of_all_orders():
    """Of 120 orders, for three pairs, none, 11 and 3 are better; than those of weight matching 101, 11 and 84."""
    made, places = dense(width=5, depth=1), []
    for seed in range(3):
        a, b = Key(seed).normal((2, made.dim), like=made.start)
        every = torch.stack([permute(made, b, {"units 1": torch.tensor(o)}) for o in itertools.permutations(range(5))])
        heights = made((a + every) / 2)
        place = []
        for steps in (0, 200):
            found = straight_through_matching(made, a, b, steps=steps)
            height = made((a + permute(made, b, found))[None] / 2)
            place.append(int((heights < height - 1e-9).sum()))
        places.append(place)
    assert all(after <= before for before, after in places)
    assert sorted(after for _, after in places)[1] <= 5


def test_no_steps_straight_through_are_weight_matching():
    made = dense(width=4, depth=2)
    a, b = Key(1).normal((2, made.dim), like=made.start)
    found, other = straight_through_matching(made, a, b, steps=0), weight_matching(made, a, b, key=Key(0).at(0))
    assert {name: order.tolist() for name, order in found.items()} == {n: order.tolist() for n, order in other.items()}


def test_activations_are_matched_at_the_best_of_all_orders():
    made = dense(width=5, depth=1)
    a, b = Key(2).normal((2, made.dim), like=made.start)
    wa, ba, wb_, bb = (x for p in (a, b) for x in made.space.blocks(p)[:2])
    za, zb = torch.relu(made.inputs @ wa.T + ba), torch.relu(made.inputs @ wb_.T + bb)
    every = [torch.tensor(order) for order in itertools.permutations(range(5))]
    distances = torch.stack([(za - zb[:, order]).square().sum() for order in every])
    assert torch.equal(activation_matching(made, a, b)["units 1"], every[int(distances.argmin())])


def test_a_convolutions_activations_are_what_the_next_layer_reads():
    """Channels of b are those of a with a little noise: matched on activations, in another order."""
    made = convolutional()
    a = made.start
    b = permute(made, a + 1e-3 * Key(0).normal((made.dim,), like=a), shuffled(made))
    found = activation_matching(made, a, b)
    assert all(torch.equal(found[name], order) for name, order in inverse(shuffled(made)).items())


def test_units_on_the_last_axis_of_sequences():
    """Linear layers on samples × 10 positions × features: positions count as samples."""
    x, y = torch.randn(20, 10, 4, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    made = landscape(net, lambda out, _: out.square().mean(), (x, y, x[:3], y[:3]), dtype=torch.float64)
    b = permute(made, made.start, shuffled(made))
    for match in (weight_matching, activation_matching):
        assert torch.equal(permute(made, b, match(made, made.start, b)), made.start)


def test_a_spec_by_hand_is_tried():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.mid, self.down = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = torch.relu(self.up(x))
            return self.down(h + torch.relu(self.mid(h)))

    made = landscape(Residual(), "cross_entropy", samples(), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"nn.Sequential.*Residual"):
        unit_spec(made)
    rows = dict.fromkeys(("up.bias", "mid.bias"), ("u",))
    spec = rows | {"up.weight": ("u", None), "mid.weight": ("u", "u"), "down.weight": (None, "u")}
    order = Key(0).permutation(5)
    moved = permute(made, made.start, {"u": order}, spec)
    torch.testing.assert_close(made.outputs(moved[None]), made.outputs(made.start[None]), rtol=1e-12, atol=1e-12)
    found = weight_matching(made, made.start, moved, spec=spec)
    assert torch.equal(found["u"], order.argsort())
    for wrong in (spec | {"mid.weight": ("u", None)}, spec | {"down.bias": ("u",)}):
        with pytest.raises(ValueError, match="expected"):
            unit_spec(made, wrong)
    with pytest.raises(ValueError, match="each unit once"):
        permute(made, made.start, {"u": torch.zeros(5, dtype=torch.int64)}, spec)


def test_networks_without_units_are_refused():
    with pytest.raises(ValueError, match="hidden"):
        unit_spec(landscape("linear", "cross_entropy", samples(), dtype=torch.float64))
    norm = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="LayerNorm"):
        unit_spec(landscape(norm, "cross_entropy", samples(), dtype=torch.float64))
    with pytest.raises(ValueError, match="spec"):
        unit_spec(landscape(lambda x: x.sum(), start=torch.ones(3)))


def test_matching_can_be_stopped():
    made = dense()

    def stop(share):
        raise KeyboardInterrupt(share)

    with pytest.raises(KeyboardInterrupt):
        weight_matching(made, made.start, made.start, watch=stop)
    seen = []
    weight_matching(made, made.start, made.start, sweeps=4, watch=seen.append)
    assert seen == [0, 1]
    seen = []
    straight_through_matching(made, made.start, made.start, steps=4, watch=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1]

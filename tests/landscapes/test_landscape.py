"""A landscape is the loss as the plain model computes it, with its samples apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.landscapes import landscape, of_training

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(count=12, classes=True):
    x = torch.randn(count, 5, dtype=torch.float64)
    y = torch.arange(count) % 3 if classes else torch.randn(count, 2, dtype=torch.float64)
    return x, y, x[:3], y[:3]


def net(outputs=3):
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, outputs)).double()


def own_mse(outputs, targets):
    return F.mse_loss(outputs, targets)


def one_hot(outputs, targets):
    return ((outputs - torch.eye(3, dtype=torch.float64)[targets]) ** 2).sum(1).mean() / 2


@pytest.mark.parametrize(
    ("loss", "plain", "classes"),
    [
        ("cross_entropy", F.cross_entropy, True),
        (F.cross_entropy, F.cross_entropy, True),
        ("mse", F.mse_loss, False),
        (own_mse, F.mse_loss, False),
        ("squared", one_hot, True),
    ],
)
def test_equals_the_plain_loss_and_the_mean_over_single_samples(loss, plain, classes):
    module, data = net(3 if classes else 2), samples(classes=classes)
    made = landscape(module, loss, data, dtype=torch.float64)
    expected = plain(module(made.inputs), made.targets)
    x = made.point().unsqueeze(0)
    torch.testing.assert_close(made(x)[0], expected)
    torch.testing.assert_close(made.each(x).mean(1)[0], expected)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(made.each(x, rows), made.each(x)[:, rows])
    torch.testing.assert_close(made.on(rows)(x), made.each(x)[:, rows].mean(1))
    two = torch.cat([x, 2 * x])
    torch.testing.assert_close(made(two), torch.cat([made(x), made(2 * x)]))


def test_gradient_equals_the_modules_own():
    module, data = net(), samples()
    made = landscape(module, "cross_entropy", data, dtype=torch.float64)
    F.cross_entropy(module(made.inputs), made.targets).backward()
    flat = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(made.gradient(made.start[None])[1][0], flat)


def test_a_training_is_a_landscape_where_it_stands():
    routine = wb.training("mlp", "cross_entropy", samples(), "sgd", dtype=torch.float64)
    with wb.Session(routine) as session:
        session.step(5)
        for part, name in (("train", "train_loss"), ("heldout", "heldout_loss")):
            made = of_training(routine, session.state, part=part)
            probed = routine.probes[part].measure(routine, session.state)[name]
            torch.testing.assert_close(made(session.state.x), probed)
            assert torch.equal(made.start, session.state.x[0])


def test_a_function_of_a_vector_is_a_landscape():
    made = landscape(lambda x: (x**4).sum(), start=torch.ones(3), dtype=torch.float64)
    points = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert made(points).tolist() == [98.0, 1.0]
    assert made.gradient(points)[1][0].tolist() == [4.0, 32.0, 108.0]
    with pytest.raises(ValueError, match="no single samples"):
        made.each(points)
    with pytest.raises(ValueError, match="expected start"):
        landscape(lambda x: x.sum())


def test_batch_norm_must_be_fixed():
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        landscape(module, "cross_entropy", samples(), dtype=torch.float64)
    made = landscape(module.eval(), "cross_entropy", samples(), dtype=torch.float64)
    expected = F.cross_entropy(module(made.inputs), made.targets)
    torch.testing.assert_close(made(made.start[None])[0], expected)


def test_a_checkpoint_of_another_architecture_is_refused():
    made = landscape(net(), "cross_entropy", samples(), dtype=torch.float64)
    other = net()
    torch.testing.assert_close(made.point(other), torch.cat([p.detach().flatten() for p in other.parameters()]))
    torch.testing.assert_close(made.point(other.state_dict()), made.point(other))
    for wrong in (nn.Linear(5, 3), net(4), torch.zeros(7)):
        with pytest.raises(ValueError, match="same architecture"):
            made.point(wrong)

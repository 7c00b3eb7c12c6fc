"""A watched loop computes the same bits, and its record says what happened."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.watch import watch

pytestmark = pytest.mark.usefixtures("one_thread")

CRITERION = nn.CrossEntropyLoss()


def samples(count=24):
    key = torch.Generator().manual_seed(3)
    return torch.randn(count, 6, generator=key), torch.arange(count) % 3


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def plain(model, optimizer, steps=12):
    x, y = samples()
    for _ in range(steps):
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        optimizer.step()


def accumulated(model, optimizer):
    x, y = samples()
    for _ in range(6):
        optimizer.zero_grad()
        for rows in torch.arange(24).split(8):
            loss = CRITERION(model(x[rows]), y[rows])
            loss /= 3
            loss.backward()
        optimizer.step()


def scheduled(model, optimizer):
    x, y = samples()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=12)
    for _ in range(12):
        optimizer.zero_grad(set_to_none=False)
        CRITERION(model(x), y).backward()
        optimizer.step()
        scheduler.step()


def mixed(model, optimizer):
    x, y = samples()
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = CRITERION(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def closed(model, optimizer):
    x, y = samples()

    def closure():
        optimizer.zero_grad()
        loss = CRITERION(model(x), y)
        loss.backward()
        return loss

    for k in range(4):
        optimizer.step(closure) if k % 2 else optimizer.step(closure=closure)


def grown(model, optimizer):
    x, y = samples()
    for k in range(9):
        if k == 4:
            for p in model[0].parameters():
                p.requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.003})
        model.train(k % 3 != 2)
        optimizer.zero_grad()
        (CRITERION(model(x), y) + np.random.rand() + random.random()).backward()  # noqa: NPY002
        optimizer.step()


def frozen_net():
    model = net()
    for p in model[0].parameters():
        p.requires_grad_(False)
    return model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.inner = nn.Linear(6, 6)
        self.again = self.inner
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.again(F.dropout(torch.tanh(self.inner(x)), 0.2, self.training))))


def groups(model):
    first, *rest = model.parameters()
    return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest}], lr=0.01, momentum=0.9)


def head_only(model):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)


LOOPS = {
    "plain": (net, adam, plain),
    "accumulated": (net, adam, accumulated),
    "scheduled": (net, groups, scheduled),
    "mixed precision": (net, adam, mixed),
    "lbfgs": (net, lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=4), closed),
    "closure": (net, adam, closed),
    "unfrozen later": (frozen_net, head_only, grown),
    "tied": (Tied, adam, plain),
}


def greedy(landscape, x):
    """A probe that draws from every generator and changes whatever it gets."""
    torch.randn(5), np.random.rand(5), random.random()  # noqa: NPY002
    found = landscape(x).sum()
    x.zero_(), [b.zero_() for b in landscape.buffers.values()]
    return {"greedy": found}


def ended(name, watched):
    """Everything that a loop leaves behind, as one list of tensors and numbers."""
    make, method, loop = LOOPS[name]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    model = make()
    optimizer = method(model)
    if watched:
        probes = ["sharpness", "trace", "loss", greedy]
        with watch(model, optimizer, loss=CRITERION, data=samples(), probes=probes, budget=None) as run:
            run.listen(lambda run: (run.record(), torch.randn(3)))
            loop(model, optimizer)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not CRITERION._forward_hooks
        assert {"sharpness", "trace", "data_loss", "greedy"} <= set(run.record().data_vars)
    else:
        loop(model, optimizer)
    left = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]
    state = optimizer.state_dict()
    left += [v for own in state["state"].values() for v in own.values()]
    modes = [m.training for m in model.modules()]
    return left, repr(state["param_groups"]), modes, np.random.rand(), random.random()  # noqa: NPY002


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    return all(map(same, a, b)) if isinstance(a, list) else a == b


@pytest.mark.parametrize("name", LOOPS)
def test_the_loop_computes_the_same_bits(name):
    without, watched = ended(name, False), ended(name, True)
    assert len(without[0]) == len(watched[0])
    assert all(map(same, without[0], watched[0]))
    assert without[1:] == watched[1:]


def test_gradients_are_the_same_objects():
    model = net()
    optimizer = adam(model)
    plain(model, optimizer, 1)
    before = [(p.grad, p.grad.clone()) for p in model.parameters()]
    with watch(model, optimizer, loss=CRITERION, data=samples(), probes=["sharpness", "loss"], budget=None):
        optimizer.step()
    assert all(p.grad is g and torch.equal(g, kept) for p, (g, kept) in zip(model.parameters(), before, strict=True))


def by_hand(model, optimizer, steps):
    """Loss, norms and rates of the plain loop, written out."""
    x, y = samples()
    x, rows = x.double(), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        old = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        slope = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
        new = nn.utils.parameters_to_vector(model.parameters()).detach()
        rows.append([loss.item(), slope.norm().item(), new.norm().item(), (new - old).norm().item(), new.numpy()])
    return rows


def test_record_says_what_the_loop_did():
    model = net().double().eval()
    twin = copy.deepcopy(model)
    x, y = samples()
    rows = by_hand(twin, adam(twin), 7)
    optimizer = adam(model)
    with watch(model, optimizer, loss=CRITERION, budget=None) as run:
        for _ in range(7):
            optimizer.zero_grad()
            CRITERION(model(x.double()), y).backward()
            optimizer.step()
            with torch.no_grad():
                CRITERION(model(x.double()[:3]), y[:3])
    record = run.record()
    for i, name in enumerate(["loss", "gradient_norm", "weight_norm", "update_norm"]):
        np.testing.assert_allclose(record[name].values[0], [row[i] for row in rows], rtol=1e-12)
    np.testing.assert_array_equal(record["x"].values[0, 1:], [row[4] for row in rows])
    assert record["kept"].values.tolist() == list(range(8))
    assert record["step"].values.tolist() == list(range(1, 8))
    squares = np.square(record["layer_gradient_norm"].values).sum(2)
    np.testing.assert_allclose(np.sqrt(squares[0]), record["gradient_norm"].values[0])
    assert record["layer"].values.tolist() == [name for name, _ in model.named_parameters()]
    assert record.wb.status == ["running"] or record.wb.status
    assert record["diverged_at"].values.tolist() == [-1]
    record.wb.plot("loss")

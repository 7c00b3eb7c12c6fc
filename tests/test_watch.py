"""A watched loop computes the same bits, and its record says what happened."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.landscapes import landscape
from workbench.watch import watch
from workbench.watching.probes import sharpness, trace
from workbench.watching.series import Series

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
    assert record.wb.status == ["ok"]
    assert record["diverged_at"].values.tolist() == [-1]
    record.wb.plot("loss")


def test_mean_of_the_losses_of_accumulated_batches_before_the_loop_changes_them():
    model = net().eval()
    with watch(model, adam(model), loss=CRITERION, budget=None) as run:
        expected = CRITERION(model(samples()[0]), samples()[1]).item()
        accumulated(model, run.optimizer)
    assert run.record()["loss"].values[0, 0] == pytest.approx(expected, rel=1e-6)


def test_gradient_norm_is_that_of_the_loss_when_a_scaler_multiplied_it():
    norms = []
    for scaling in (False, True):
        model = net().eval()
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaling)
        with watch(model, optimizer, budget=None) as run:
            scaler.scale(CRITERION(model(samples()[0]), samples()[1])).backward()
            scaler.step(optimizer)
        norms.append(run.record()["gradient_norm"].item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_closures_first_value_and_gradient_are_the_steps():
    model = net().eval()
    x, y = samples()
    loss = CRITERION(model(x), y)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    with watch(model, optimizer, loss=CRITERION, budget=None) as run:
        closed(model, optimizer)
    record = run.record()
    assert record.sizes["step"] == 4
    assert record["loss"].values[0, 0] == pytest.approx(loss.item(), rel=1e-6)
    assert record["gradient_norm"].values[0, 0] == pytest.approx(slope.norm().item(), rel=1e-5)


@pytest.mark.parametrize("before", [True, False])
def test_logged_numbers_belong_to_their_step_on_either_side_of_it(before):
    model = net()
    optimizer = adam(model)
    with watch(model, optimizer, budget=None) as run:
        for k in range(5):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            if before:
                run.log(loss=torch.tensor(float(k)), mine=k)
            optimizer.step()
            if not before:
                run.log(loss=torch.tensor(float(k)), mine=k)
    record = run.record()
    assert record["loss"].values[0].tolist() == record["mine"].values[0].tolist() == [0, 1, 2, 3, 4]


def test_rates_of_each_group_and_of_one_that_came_later():
    model = frozen_net()
    optimizer = head_only(model)
    with watch(model, optimizer, budget=None) as run:
        grown(model, optimizer)
    rates = run.record()["lr"].values[0]
    assert rates[:, 0].tolist() == [0.01] * 9
    assert np.isnan(rates[:4, 1]).all()
    assert rates[4:, 1].tolist() == [0.003] * 5


def test_a_schedule_is_recorded_as_used_by_each_step():
    model = net()
    optimizer = groups(model)
    twin = net()
    other, rates = groups(twin), []
    other.register_step_post_hook(lambda *_: rates.append([g["lr"] for g in other.param_groups]))
    with watch(model, optimizer, budget=None) as run:
        scheduled(model, optimizer)
    scheduled(twin, other)
    np.testing.assert_array_equal(run.record()["lr"].values[0], rates)


def dense(made, x):
    return torch.autograd.functional.hessian(lambda v: made(v.unsqueeze(0))[0], x[0])


def test_sharpness_and_trace_equal_those_of_the_whole_matrix():
    model = net().double().eval()
    x, y = samples()
    made = landscape(model, "cross_entropy", (x.double(), y, x[:1].double(), y[:1]), dtype=torch.float64)
    point = made.start.unsqueeze(0)
    matrix = dense(made, point)
    top = torch.linalg.eigvalsh(matrix)[-1].item()
    found = sharpness(made, point, most=60, tolerance=1e-12)
    assert found["sharpness"] == pytest.approx(top, rel=1e-7)
    rough = sharpness(made, point, most=4)
    assert 1e-6 < abs(rough["sharpness"] - top) <= rough["sharpness_error"]
    guess = trace(made, point, draws=200)
    assert abs(guess["trace"] - matrix.trace().item()) < 4 * guess["trace_error"]
    off = matrix - matrix.diag().diag()  # Rademacher: var(v'Hv) = 2 |off-diagonal|^2
    assert guess["trace_error"] == pytest.approx((2 * off.square().sum().item() / 200) ** 0.5, rel=0.25)


def test_landscape_is_the_loss_of_the_present_model_in_evaluation():
    model = net()
    optimizer = adam(model)
    x, y = samples()
    with watch(model, optimizer, loss=nn.CrossEntropyLoss(label_smoothing=0.1), data=(x, y), budget=None) as run:
        for _ in range(2):
            plain(model, optimizer, 3)
            here = run.landscape()
            training, _ = model.training, model.eval()
            expected = F.cross_entropy(model(x), y, label_smoothing=0.1)
            model.train(training)
            torch.testing.assert_close(here(here.start.unsqueeze(0))[0], expected)
            steps, points = run.trajectory()
            np.testing.assert_array_equal(points[-1], here.start)
            assert steps[-1] == run.index
    assert not run._losses


class Stop(Exception):
    pass


def test_an_exception_in_the_loop_leaves_a_record_and_no_hooks(tmp_path):
    model = net()
    optimizer = adam(model)
    with pytest.raises(Stop), watch(model, optimizer, loss=CRITERION, path=tmp_path / "run.zarr"):  # noqa: PT012
        plain(model, optimizer, 3)
        raise Stop
    assert not optimizer._optimizer_step_pre_hooks
    assert not CRITERION._forward_hooks
    assert wb.open(tmp_path / "run.zarr").sizes["step"] == 3


def test_the_loops_exception_is_seen_though_writing_failed_too(tmp_path):
    model = net()

    def loop():
        with watch(model, adam(model), path=tmp_path / "run.zarr"):
            (tmp_path / "run.zarr").write_text("foreign")
            raise Stop

    with pytest.warns(RuntimeWarning, match=r"was not written.*wb\.save"), pytest.raises(Stop):
        loop()
    assert (tmp_path / "run.zarr").read_text() == "foreign"


def test_a_failing_probe_is_said_once_and_dropped():
    def broken(landscape, x):
        raise ArithmeticError("no such thing")

    model = net()
    optimizer = adam(model)
    run = watch(model, optimizer, loss=CRITERION, data=samples(), probes=[broken, "loss"], budget=None)
    with run, pytest.warns(RuntimeWarning, match="'broken' failed at step 1 and was dropped: no such thing") as said:
        plain(model, optimizer, 5)
    assert len(said) == 1
    assert np.isfinite(run.record()["data_loss"].values).all()


def test_a_failing_listener_is_said_once_and_dropped():
    model = net()
    optimizer = adam(model)
    run = watch(model, optimizer, budget=None)
    run.listen(lambda run: 1 / 0)

    def loop():
        for _ in range(3):
            time.sleep(0.25)
            plain(model, optimizer, 1)

    with run, pytest.warns(RuntimeWarning, match="listener failed") as said:
        loop()
    assert len(said) == 1


def test_listeners_hear_five_times_a_second_at_most():
    model = net()
    optimizer, heard = adam(model), []
    with watch(model, optimizer, budget=None) as run:
        end = run.listen(lambda run: heard.append((time.perf_counter(), run.index)))
        until = time.perf_counter() + 0.7
        while time.perf_counter() < until:
            plain(model, optimizer, 1)
        end()
        count = len(heard)
        time.sleep(0.25)
        plain(model, optimizer, 2)
    assert 2 <= count <= 3
    assert len(heard) == count
    assert min(np.diff([at for at, _ in heard])) >= 0.2
    assert heard[-1][1] > heard[0][1]


def test_stop_ends_watching_and_the_loop_goes_on():
    model = net()
    optimizer = adam(model)
    with watch(model, optimizer, loss=CRITERION) as run:
        plain(model, optimizer, 2)
        run.stop()
        plain(model, optimizer, 2)
    assert run.index == run.record().sizes["step"] == 2


def test_what_a_costly_probe_takes_stays_in_the_budget():
    def slow(landscape, x):
        time.sleep(0.02)
        return {"slow": 1.0}

    model = net()
    optimizer = adam(model)
    with watch(model, optimizer, loss=CRITERION, data=samples(), probes=[slow], budget=0.2) as run:
        until = time.perf_counter() + 2.0
        while time.perf_counter() < until:
            time.sleep(0.002)
            plain(model, optimizer, 1)
    record = run.record()
    times = np.isfinite(record["slow"].values).sum()
    assert 3 <= times <= 6  # 2 s × 0.2 × 0.4 / 2 / 20 ms = 4, and the first
    assert record.attrs["share"] == pytest.approx(run.share, abs=1e-3)
    assert 0.05 < run.share < 0.2


def test_series_keeps_evenly_spaced_values_within_its_room():
    series = Series(room=800)
    for step in range(5000):
        if series.wants(step):
            series.add(step, torch.full((10,), float(step), dtype=torch.float64))
    steps, values = series.arrays()
    assert values.nbytes <= 800
    assert len(steps) >= 5
    assert set(np.diff(steps)) == {series.stride}
    assert steps[0] == 0
    np.testing.assert_array_equal(values[:, 0], steps)


KILLED = """
import sys, time, torch
from torch import nn
from workbench.watch import watch
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with watch(model, optimizer, path=sys.argv[1], flush=0.05, budget=None) as run:
    while True:
        run.log(loss=float(run.index))
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        print(run.index, flush=True)
        time.sleep(0.001)
"""


@pytest.mark.slow
def test_a_killed_run_opens_with_what_was_written_last(tmp_path):
    path = tmp_path / "run.zarr"
    environment = {**os.environ, "PYTHONPATH": str(Path(wb.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        while not path.exists():
            process.stdout.readline()
        for _ in range(60):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    record = wb.open(path)
    steps = record.sizes["step"]
    assert steps > last - 500
    assert record["loss"].values[0].tolist() == list(range(steps))
    assert record["x"].sizes["kept"] == steps + 1
    assert record.attrs["steps"] == steps


def test_says_what_it_cannot_do(tmp_path):
    model = net()
    optimizer = adam(model)
    with pytest.raises(ValueError, match="sharpness"):
        watch(model, optimizer, probes=["sharpnes"])
    with pytest.raises(ValueError, match="expected loss= and data= for the probes sharpness"):
        watch(model, optimizer, probes=["sharpness"], loss=CRITERION)
    with pytest.raises(ValueError, match="budget"):
        watch(model, optimizer, budget=1.5)
    with pytest.raises(ValueError, match="above zero"):
        watch(model, optimizer, every=0)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="something else"):
        watch(model, optimizer, path=tmp_path / "mine")
    with pytest.raises(ValueError, match="parameters to train"):
        watch(nn.Tanh(), optimizer)
    run = watch(model, optimizer)
    with pytest.raises(ValueError, match="expected loss= and data="):
        run.landscape()
    with run, pytest.raises(RuntimeError, match="watched already"):
        run.__enter__()


def test_first_step_that_is_not_finite_is_noted():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e8)
    with watch(model, optimizer, budget=None) as run:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()
    norms = run.record()["weight_norm"].values[0]
    first = int(np.flatnonzero(~np.isfinite(norms))[0]) + 1
    assert 1 < first < 6
    assert run.record()["diverged_at"].item() == first

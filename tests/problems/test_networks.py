"""Networks as pure functions of a flat vector, and training them: equal to torch.nn and to a plain loop."""

import copy
import itertools
import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.problems.losses import cross_entropy, mse
from workbench.problems.networks import ACTIVATIONS, KeyedDropout, Module
from workbench.tree import same_bits

LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(name, **settings):
    """(model of the catalogue, the same in torch.nn with the same weights, those weights), 6 inputs and 3 outputs."""
    model = wb.make(name, **settings).bind(6, 3)
    flat = model.init(wb.Key(3), torch.empty(0, dtype=torch.float64))
    sizes = [6, *[model.width] * model.depth, 3] if name == "mlp" else [6, 3]
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=torch.float64), LAYERS[model.activation]()]
    module = nn.Sequential(*layers[:-1])
    nn.utils.vector_to_parameters(flat.clone(), module.parameters())
    return model, module, flat


def gradient(model, x, inputs, targets):
    x = x.clone().requires_grad_()
    outputs, buffers = model(x, inputs, {}, training=True)
    assert buffers == {}
    return torch.autograd.grad(cross_entropy(outputs, targets).sum(), x)[0], outputs.detach()


SETTINGS = {"mlp": [{"width": 5, "depth": depth, "activation": "tanh"} for depth in (0, 1, 3)], "linear": [{}]}
SETTINGS["mlp"] += [{"width": 7, "activation": activation} for activation in ACTIVATIONS]


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_same_module_in_torch_nn(name):
    """Outputs and gradients in float64, one run and several, with shared inputs and with inputs of their own."""
    inputs, targets = torch.randn(11, 6, dtype=torch.float64), torch.arange(11) % 3
    for settings in SETTINGS[name]:
        model, module, flat = plain(name, **settings)
        loss = F.cross_entropy(module(inputs), targets)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
        for runs in (1, 4):
            x = torch.stack([flat * (1 - run / 8) for run in range(runs)])
            for own in (inputs, inputs.expand(runs, 11, 6).contiguous()):
                found, outputs = gradient(model, x, own, targets)
                torch.testing.assert_close(outputs[0], module(inputs), rtol=1e-12, atol=1e-14)
                torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14)
                for run in range(runs):
                    alone, _ = gradient(model, x[run : run + 1], inputs, targets)
                    torch.testing.assert_close(found[run], alone[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SETTINGS)
def test_first_weights_are_uniform_within_one_over_the_root_of_the_inputs(name):
    settings = {"width": 60, "depth": 2} if name == "mlp" else {}
    model = wb.make(name, **settings).bind(100, 50)
    flat = model.init(wb.Key(0), torch.empty(0, dtype=torch.float64))
    torch.manual_seed(0)
    for i, block in enumerate(model.space.blocks(flat.unsqueeze(0))):
        bound = 1 / math.sqrt(model.space.shapes[i - i % 2][1])
        assert block.abs().max() < bound
        n = block.numel()
        assert abs(block.mean().item()) < 4 * bound / math.sqrt(3 * n)
        assert abs(block.var().item() / (bound**2 / 3) - 1) < 4 * math.sqrt(0.8 / n)
        like_torch = nn.Linear(model.space.shapes[i - i % 2][1], 50).weight
        assert like_torch.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_first_weights_differ_between_layers_and_seeds_and_agree_between_dtypes():
    model, like = wb.make("mlp", width=6, depth=3).bind(6, 6), torch.empty(0, dtype=torch.float64)
    blocks = [block.flatten() for block in model.space.blocks(model.init(wb.Key(0), like).unsqueeze(0))]
    assert len({block[0].item() for block in blocks}) == len(blocks)
    many = model.init(wb.Key((0, 1)), like)
    assert torch.equal(many[0], model.init(wb.Key(0), like))
    assert not torch.equal(many[0], many[1])
    single = model.init(wb.Key(0), like.float())
    torch.testing.assert_close(single.double(), many[0], rtol=1e-6, atol=1e-7)


def test_losses_of_several_runs_are_those_of_each():
    outputs, classes = torch.randn(3, 8, 4), torch.arange(8) % 4
    values, per_run = torch.randn(8, 4), torch.arange(24).reshape(3, 8) % 4
    for run in range(3):
        torch.testing.assert_close(cross_entropy(outputs, classes)[run], F.cross_entropy(outputs[run], classes))
        torch.testing.assert_close(cross_entropy(outputs, per_run)[run], F.cross_entropy(outputs[run], per_run[run]))
        torch.testing.assert_close(mse(outputs, values)[run], F.mse_loss(outputs[run], values))
    with pytest.raises(
        ValueError, match=r"expected outputs and targets of one shape for 'mse', got \(8, 4\) and \(8,\)"
    ):
        mse(outputs, values[:, 0])


# ------------------------------------------------------------------------------------------------- training


def samples(count=60, inputs=6, classes=3):
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, x[:, :classes].argmax(1), x[:10], x[:10, :classes].argmax(1)


def minibatches(routine, steps, seed=0):
    """The minibatches a session draws, as (inputs, targets)."""
    key, state = wb.Key(seed), routine.init(wb.Key(seed).stream("init"))
    ready = routine.normalise()
    for k in range(steps):
        rows = routine.draw(key.at(k), state, ready).rows[0]
        yield routine.data.x[rows], routine.data.y[rows]
        state, _ = routine.step(state, ready, routine.draw(key.at(k), state, ready))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.01),
    "torch.Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_a_plain_loop(name):
    """50 steps in float64 on the same minibatches, seven of which end and begin an epoch."""
    model = wb.make("mlp", width=5, depth=2, activation="tanh")
    routine = wb.training(model, "cross_entropy", samples(), name, batch_size=8, dtype=torch.float64)
    hyper = {"lr": 0.05, "weight_decay": 0.01, "alpha": 0.9, "momentum": 0.8}
    hyper = {label: value for label, value in hyper.items() if label in routine.hypers}
    session = wb.Session(routine, hyper=hyper)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.utils.vector_to_parameters(session.state.x[0].clone(), module.parameters())
    optimizer, losses = OPTIMIZERS[name](module.parameters()), []
    for inputs, targets in minibatches(routine, 50):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    session.step(50)
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(session.state.x[0], expected, rtol=1e-9, atol=1e-11)
    assert session.trace()[1]["loss"][:, 0].tolist() == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 60])
def test_every_epoch_shows_every_sample_once_in_a_new_order(batch_size):
    routine = wb.training("linear", "cross_entropy", samples(), "sgd", batch_size=batch_size)
    state, key, ready = routine.init(wb.Key(0)), wb.Key(0), routine.normalise()
    seen = []
    for k in range(math.ceil(120 / batch_size)):
        noise = routine.draw(key.at(k), state, ready)
        assert noise.rows.shape == (1, batch_size)
        seen += noise.rows[0].tolist()
        state, _ = routine.step(state, ready, noise)
        assert state.cursor == len(seen)
    assert sorted(seen[:60]) == sorted(seen[60:120]) == list(range(60))
    assert seen[:60] != seen[60:120]


def test_the_batch_size_may_be_turned_in_mid_epoch_without_losing_a_sample():
    routine = wb.training("linear", "cross_entropy", samples(), "sgd", batch_size=7)
    session, seen = wb.Session(routine), []
    for size in (7, 20, 3, 30, 60):
        session.set(batch_size=size)
        seen += routine.draw(session.key.at(session.index), session.state, {"batch_size": size}).rows[0].tolist()
        session.step()
    assert sorted(seen[:60]) == list(range(60))
    assert sorted(seen[60:120]) == list(range(60))
    with pytest.raises(ValueError, match="expected batch_size to be a whole number from 1 to 60, got 61"):
        session.set(batch_size=61)


def test_digits_are_learned_well_above_chance():
    """200 steps of Adam on 128 of 1,438 samples: chance is 0.1, a net that learns passes 0.9."""
    routine = wb.training("mlp", "cross_entropy", "digits", "adam")
    record = wb.rollout(routine, 200, hyper={"lr": 3e-3}, probes=["heldout", "train"], every=200)
    assert record.heldout_accuracy[0, 0] < 0.3
    assert record.heldout_accuracy[0, -1] > 0.9
    assert record.train_loss[0, -1] < 0.2
    assert record.heldout_loss[0, -1] < record.heldout_loss[0, 0] / 4


def test_linear_regression_finds_the_least_squares_solution():
    data = wb.make("diabetes").load()
    routine = wb.training("linear", "mse", data, "nesterov", batch_size=len(data.x), dtype=torch.float64)
    session = wb.Session(routine, hyper={"lr": 0.1}).step(3000)
    inputs = torch.cat([data.x, torch.ones(len(data.x), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(inputs, data.y).solution[:, 0]
    torch.testing.assert_close(session.state.x[0], best, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------- a module of your own


class Net(nn.Module):
    """Batch norm, dropout, a frozen layer, a scalar parameter, a buffer that is assigned anew, tied weights."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.tied = nn.Linear(5, 5)
        self.tied.weight = nn.Parameter(self.tied.weight.detach().clone())
        self.again = nn.Linear(5, 5)
        self.again.weight = self.tied.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("centre", torch.zeros(6))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        h = torch.tanh(self.norm(self.first(x - self.centre)))
        return self.scale * self.last(self.dropout(self.frozen(self.again(torch.tanh(self.tied(h))))))


def made(dropout=0.0):
    torch.manual_seed(5)
    return Net(dropout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_module_trains_as_in_a_plain_loop_buffers_included(dtype):
    net = made()
    routine = wb.training(net, nn.CrossEntropyLoss(), samples(), "sgd", batch_size=8, dtype=dtype)
    twin = copy.deepcopy(net).to(dtype)
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    session = wb.Session(routine, hyper={"lr": 0.1}).step(20)
    for inputs, targets in minibatches(routine, 20):
        optimizer.zero_grad()
        F.cross_entropy(twin(inputs), targets).backward()
        optimizer.step()
    state, tolerance = session.state, {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {}
    expected = torch.cat([p.detach().flatten() for p in twin.parameters() if p.requires_grad])
    torch.testing.assert_close(state.x[0], expected, **tolerance)
    assert set(state.buffers) == {name for name, _ in twin.named_buffers()}
    for name, held in twin.named_buffers():
        torch.testing.assert_close(state.buffers[name][0], held, **tolerance)
    assert state.buffers["seen"].tolist() == [20]
    twin.eval()
    torch.testing.assert_close(routine.outputs(state, routine.data.x_test)[0], twin(routine.data.x_test), **tolerance)


def test_a_module_is_never_changed_nor_is_the_global_generator():
    net = made(0.5).eval()
    net.first.train()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    routine = wb.training(net, "cross_entropy", samples(), "adam", batch_size=8)
    session = wb.Session(routine, hyper={"lr": [0.1, 0.2]}, probes=["train", "norms"]).step(5)
    session.record()
    assert torch.equal(torch.get_rng_state(), generator)
    assert same_bits(dict(net.state_dict()), dict(before))
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    net.first.weight.data.zero_()
    again = wb.Session(routine, hyper={"lr": [0.1, 0.2]}).step(5)
    assert same_bits(again.state, session.state)


def test_runs_of_a_module_move_as_they_would_alone_dropout_and_batch_norm_included():
    routine = wb.training(made(0.5), "cross_entropy", samples(), "sgd", batch_size=8, dtype=torch.float64)
    for options in ({"hyper": {"lr": [0.1, 0.3]}}, {"seed": [4, 9], "hyper": {"lr": 0.1}}):
        together = wb.Session(routine, **options).step(10).state
        for run in range(2):
            seed = options["seed"][run] if "seed" in options else 0
            lr = options["hyper"]["lr"]
            alone = wb.Session(routine, seed=seed, hyper={"lr": lr[run] if isinstance(lr, list) else lr}).step(10).state
            torch.testing.assert_close(together.x[run], alone.x[0], rtol=1e-9, atol=1e-11)
            for name, held in together.buffers.items():
                torch.testing.assert_close(held[run], alone.buffers[name][0], rtol=1e-9, atol=1e-11)


def test_dropout_follows_its_key_and_drops_the_stated_share():
    x = torch.ones(100, 100)

    def masks(key):
        with KeyedDropout(key):
            return torch.stack([F.dropout(x, 0.3), nn.Dropout(0.3)(x), F.dropout(x, p=0.3, training=True)])

    first, again, other = masks(wb.Key(0).at(3)), masks(wb.Key(0).at(3)), masks(wb.Key(0).at(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    share = (first == 0).double().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / first.numel())
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything_is_that_of_torch(p):
    x = torch.randn(4, 4, requires_grad=True)
    with KeyedDropout(wb.Key(0)):
        assert torch.equal(F.dropout(x, p), x * (1 - p))
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            F.dropout(x, 1.5)


class Drawing(nn.Module):
    """Draws noise that no key knows of."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(6, 3), draw

    def forward(self, x):
        return self.layer(x) + self.draw(x)


DRAWS = {
    "torch": lambda x: torch.rand_like(x[:, :3]),
    "numpy": lambda x: float(np.random.rand()),  # noqa: NPY002 - what is to be found out
    "other dropout": lambda x: F.alpha_dropout(x, 0.5, training=True)[:, :3],
}


@pytest.mark.parametrize("name", DRAWS)
def test_randomness_without_a_key_is_said_once_when_the_training_is_made(name):
    with pytest.warns(
        UserWarning, match="Drawing gives two answers to the same inputs: it draws random numbers"
    ) as said:
        wb.training(Drawing(DRAWS[name]), "cross_entropy", samples(), "sgd", batch_size=8)
    assert len(said) == 1
    assert said[0].filename == __file__


def test_two_sessions_and_a_record_of_one_module_at_the_same_time_do_not_disturb_each_other():
    routine = wb.training(made(0.5), "cross_entropy", samples(), "adam", batch_size=8)
    expected = wb.Session(routine).step(150).state
    sessions = [wb.Session(routine, probes=["train"]).play(until=150) for _ in range(3)]
    threads = [threading.Thread(target=session.record) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session._thread.join()
        assert session.stopped == "reached step 150"
        assert same_bits(session.state, expected)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.ReLU, "expected a module with parameters to train, got ReLU with none"),
        (lambda: nn.Linear(6, 3).requires_grad_(False), "expected a module with parameters to train, got Linear"),
        (lambda: nn.Linear(5, 3), "expected a module that takes the data, but Linear says: mat1 and mat2"),
        (nn.Identity, "expected a module with parameters"),
        (lambda: nn.LSTM(6, 3), "expected LSTM to return one tensor, got tuple"),
        (lambda: nn.Bilinear(6, 6, 3), "expected a module that takes the data, but Bilinear says"),
        (lambda: "mpl", "expected a model to be one of .*'mpl'"),
        (lambda: nn.Linear, "expected a model"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused_in_a_sentence(module, words):
    with pytest.raises(ValueError, match=words):
        wb.training(module(), "cross_entropy", samples(), "sgd")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), r"to return one number \(a tensor\), got \(8,\)"),
        (lambda out, y: 1.0, r"to return one number \(a tensor\), got float"),
        (lambda out, y: None, "got NoneType"),
    ],
)
@pytest.mark.parametrize("runs", [1, 2])
def test_a_loss_that_gives_no_number_is_refused_in_a_sentence(loss, words, runs):
    routine = wb.training("linear", loss, samples(), "sgd", batch_size=8)
    with pytest.raises(ValueError, match=words):
        wb.rollout(routine, 1, hyper={"lr": [0.1] * runs})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "crossentropy"}, "expected a loss to be one of cross_entropy, mse, squared; got 'crossentropy'"),
        ({"loss": "mse"}, "expected data with values for mse, got classes"),
        ({"data": "diabetes"}, "expected data with classes for cross_entropy, got values in 'diabetes'; use 'mse'"),
        ({"data": "digit"}, "Did you mean 'digits'"),
        ({"data": 3}, "expected a model .* and data"),
        ({"batch_size": 0}, "expected batch_size to be a whole number from 1 to 60, got 0"),
        ({"batch_size": 61}, "expected batch_size to be a whole number from 1 to 60, got 61"),
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"optimizer": nn.Linear}, "expected an optimizer"),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_a_sentence(options, words):
    given = {"model": "linear", "loss": "cross_entropy", "data": samples(), "optimizer": "sgd", **options}
    extra = {"batch_size": given.pop("batch_size")} if "batch_size" in given else {}
    with pytest.raises(ValueError, match=words):
        wb.training(*given.values(), **extra)


def test_probes_measure_all_training_and_all_held_out_samples():
    net = made()
    routine = wb.training(net, "cross_entropy", samples(), "sgd", batch_size=8, dtype=torch.float64)
    session = wb.Session(routine, hyper={"lr": 0.1}, probes=["train", "heldout", "norms"]).step(3)
    record, state, twin = session.record(), session.state, copy.deepcopy(net).double().eval()
    named = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    nn.utils.vector_to_parameters(state.x[0].clone(), named.values())
    for name, held in twin.named_buffers():
        held.data = state.buffers[name][0].clone()
    for part, x, y in (("train", *samples()[:2]), ("heldout", *samples()[2:])):
        outputs = twin(x)
        assert record[f"{part}_loss"][0, -1] == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-9)
        assert record[f"{part}_accuracy"][0, -1] == (outputs.argmax(1) == y).double().mean().item()
    F.cross_entropy(twin(samples()[0]), samples()[1]).backward()
    for name, p in named.items():
        norms = record.layer_grad_norm.sel(layer=name), record.layer_weight_norm.sel(layer=name)
        assert norms[0][0, -1] == pytest.approx(p.grad.norm().item(), rel=1e-8)
        assert norms[1][0, -1] == pytest.approx(p.norm().item(), rel=1e-12)


def test_a_module_in_other_dtypes_and_on_other_devices_takes_its_frozen_part_along():
    routine = wb.training(made(0.5), "cross_entropy", samples(), "adam", batch_size=8, dtype=torch.float64).to("meta")
    state, ready = routine.init(wb.Key(0)), routine.normalise()
    state, _ = routine.step(state, ready, routine.draw(wb.Key(0), state, ready))
    assert {b.device.type for b in state.buffers.values()} == {"meta"}
    assert {b.dtype for b in state.buffers.values()} == {torch.float64, torch.int64}
    assert state.x.dtype == torch.float64
    assert isinstance(routine.model, Module)

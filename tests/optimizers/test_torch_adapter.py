"""The adapter for torch.optim classes: equal to a plain PyTorch loop bit for bit, pure, honest about what it offers."""

import collections
import threading
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

import workbench as wb
from workbench.catalogue import catalogue, find_objective, find_optimizer
from workbench.descent import Descent, value_and_gradient
from workbench.optimizers.torch_adapter import TorchOptimizer
from workbench.routine import Key
from workbench.space import Space
from workbench.tree import pick_run, repeat_runs, same_bits, tensors, tree_map

STEPS = 30
MENU = [row for row in catalogue("optimizers") if issubclass(row.make, TorchOptimizer)]
SETTINGS = {
    "torch.Adagrad": {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
    "torch.Adadelta": {"rho": 0.8, "eps": 1e-4},
    "torch.Adamax": {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3},
    "torch.NAdam": {
        "lr": 0.02,
        "beta1": 0.8,
        "momentum_decay": 0.01,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
    },
    "torch.RAdam": {"lr": 1e-3, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1},
    "torch.ASGD": {"lr": 1e-3, "lambd": 1e-2, "alpha": 0.5, "t0": 5.0},
    "torch.Rprop": {"lr": 1e-2, "etaminus": 0.6, "etaplus": 1.3, "step_size_min": 1e-4, "step_size_max": 0.1},
    "torch.Adafactor": {"lr": 0.05, "beta2_decay": -0.5, "eps2": 1e-2, "d": 2.0, "weight_decay": 0.1},
    "torch.LBFGS": {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"},
}
"""A setting of each class in the menu away from its defaults; a class without one is compared at its defaults only."""

SHAPES = ((4, 3), (4,), (2, 4), (2,))
INPUTS = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64).reshape(10, 3).sin()
LABELS = torch.arange(10) % 2


def descent(optimizer, dtype=torch.float64):
    return Descent(find_objective("rosenbrock"), find_optimizer(optimizer), dtype=dtype)


def path(routine, hyper=None, steps=STEPS, runs=None):
    """(steps + 1, dim, runs), and the last state; `hyper` may be a function of the step."""
    state = routine.init(Key(0), runs=runs)
    points = [state.x]
    for k in range(steps):
        given = hyper(k) if callable(hyper) else hyper
        state, _ = routine.step(state, routine.normalise(given, runs=runs), ())
        points.append(state.x)
    return torch.stack(points), state


def plain_path(make, dtype=torch.float64, steps=STEPS, before=lambda k, optimizer: None):
    """The same from a plain PyTorch loop over one point, (steps + 1, dim). `make(params)` gives the optimizer."""
    objective = find_objective("rosenbrock")
    x = torch.tensor(objective.start, dtype=dtype, requires_grad=True)
    optimizer = make([x])
    points = [x.detach().clone()]

    def closure():
        optimizer.zero_grad()
        loss = objective(x)
        loss.backward()
        return loss

    for k in range(steps):
        before(k, optimizer)
        optimizer.step(closure)
        points.append(x.detach().clone())
    return torch.stack(points)


def network_loss(w1, b1, w2, b2):
    return F.cross_entropy(torch.tanh(INPUTS.to(w1.dtype) @ w1.T + b1) @ w2.T + b2, LABELS)


def network_oracle(space):
    """Loss and gradient of each run by the very operations of a plain loop, so that bits can be compared."""

    def oracle(x, draw=0):
        rows = [value_and_gradient(lambda p: network_loss(*space.blocks(p)), row) for row in x]
        return torch.stack([loss for loss, _ in rows]), torch.stack([gradient for _, gradient in rows])

    return oracle


def network_start(space, runs, dtype=torch.float64):
    count = sum(torch.Size(shape).numel() for shape in space.shapes)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(runs, count, generator=generator, dtype=torch.float64).to(dtype)


def plain_network_path(make, space, start, loss=network_loss):
    """(steps + 1, parameters) from a plain loop with one parameter a layer."""
    params = [block.clone().requires_grad_() for block in space.blocks(start)]
    optimizer = make(params)
    points = [start]

    def closure():
        optimizer.zero_grad()
        value = loss(*params)
        value.backward()
        return value

    for _ in range(STEPS):
        optimizer.step(closure)
        points.append(torch.cat([p.detach().flatten() for p in params]))
    return torch.stack(points)


def full(method, setting, dtype=torch.float64):
    """Every hyperparameter as a method's step takes it."""
    rows = {name: setting.get(name, hyper.default) for name, hyper in method.hypers.items()}
    values = {name: hyper.kind == "value" for name, hyper in method.hypers.items()}
    return {name: torch.tensor(row, dtype=dtype) if values[name] else row for name, row in rows.items()}


def as_arguments(method, setting):
    """A setting as the torch class takes it."""
    defaults = {name: hyper.default for name, hyper in method.hypers.items()}
    return method._arguments({**defaults, **setting})


# ----------------------------------------------------------------------------------------------- equal to torch


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
def test_equals_the_plain_torch_loop_bit_for_bit(row):
    method = find_optimizer(row.name)
    for setting in ({}, SETTINGS.get(row.name, {})):
        arguments = as_arguments(method, setting)
        for dtype in (torch.float64, torch.float32):
            ours, _ = path(descent(row.name, dtype), setting)
            theirs = plain_path(lambda params, a=arguments: method.wrapped(params, **a), dtype)
            held = torch.isfinite(theirs).all(-1)  # a run that diverges stays where it was, by design
            assert held[: STEPS if setting else 5].all(), f"{setting} {dtype}: the peer diverges"
            assert same_bits(ours[held][..., 0], theirs[held]), f"{setting} {dtype}"
            assert not torch.equal(ours[-1], ours[0])


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
def test_equals_the_plain_torch_loop_on_a_network_with_one_parameter_a_layer(row):
    method, space = find_optimizer(row.name), Space(axis=-1, shapes=SHAPES)
    setting = SETTINGS.get(row.name, {})
    x = network_start(space, runs=2)
    state, points = method.init(space, x), [x]
    for _ in range(STEPS):
        moved, state, _ = method.step(space, network_oracle(space), points[-1], state, full(method, setting), ())
        points.append(moved)
    for run in range(2):
        theirs = plain_network_path(
            lambda params: method.wrapped(params, **as_arguments(method, setting)), space, x[run]
        )
        assert same_bits(torch.stack(points)[:, run], theirs), f"run {run}"


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
@pytest.mark.slow
def test_runs_with_different_step_sizes_at_once_equal_them_one_by_one(row):
    lrs = [1e-3, 1e-2, 5e-2]
    together, _ = path(descent(row.name), {"lr": lrs}, runs=3)
    for run, lr in enumerate(lrs):
        alone, _ = path(descent(row.name), {"lr": lr})
        assert same_bits(together[..., run : run + 1].contiguous(), alone)


def test_muon_works_on_matrices_and_refuses_a_surface_in_one_sentence():
    space = Space(axis=-1, shapes=((4, 3), (2, 4)))
    method, x = TorchOptimizer(torch.optim.Muon), network_start(space, 1)
    oracle_space = lambda p: network_loss(space.blocks(p)[0], 0.1, space.blocks(p)[1], 0.2)  # noqa: E731

    def oracle(p, draw=0):
        loss, gradient = value_and_gradient(lambda q: oracle_space(q[0]).reshape(1), p)
        return loss, gradient

    state, points = method.init(space, x), [x]
    for _ in range(STEPS):
        moved, state, _ = method.step(space, oracle, points[-1], state, full(method, {"lr": 0.02}), ())
        points.append(moved)
    theirs = plain_network_path(
        lambda params: torch.optim.Muon(params, lr=0.02), space, x[0], lambda w1, w2: network_loss(w1, 0.1, w2, 0.2)
    )
    assert same_bits(torch.cat(points), theirs)
    with pytest.raises(ValueError, match=r"Muon accepts; for shapes \(2,\) it says: Muon only supports 2D parameters"):
        descent(torch.optim.Muon).init(Key(0))


# -------------------------------------------------------------------------------------------------------- purity


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
def test_stepping_twice_from_one_state_gives_the_same_bits_and_changes_nothing(row):
    routine = descent(row.name)
    _, state = path(routine, SETTINGS.get(row.name), steps=6, runs=2)
    hyper = routine.normalise(SETTINGS.get(row.name), runs=2)
    kept, held = tree_map(torch.clone, state), tree_map(torch.clone, hyper)
    generator = torch.get_rng_state()
    first, info = routine.step(state, hyper, ())
    again, _ = routine.step(state, hyper, ())
    assert same_bits(first, again)
    assert same_bits(state, kept)
    assert same_bits(hyper, held)
    assert torch.equal(torch.get_rng_state(), generator)
    assert same_bits(info["gradient"], value_and_gradient(routine.objective, state.x)[1])
    routine.step(first, hyper, ())
    assert same_bits(first, again), "a later step changed the state it started from"
    shared = {leaf.data_ptr() for leaf in tensors(state.method)} & {leaf.data_ptr() for leaf in tensors(first.method)}
    assert not shared


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
def test_states_can_be_repeated_and_picked(row):
    routine = descent(row.name)
    _, state = path(routine, steps=4)
    hyper = routine.normalise()
    alone, _ = routine.step(state, hyper, ())
    three, _ = routine.step(repeat_runs(state, 3, routine.run_axis), hyper, ())
    for run in range(3):
        assert same_bits(pick_run(three, run, routine.run_axis), alone._replace(k=three.k))


def test_a_class_that_changes_gradients_in_place_does_not_change_what_was_measured():
    class Clipping(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad.clamp_(-1.0, 1.0)
            super().step()

    routine = descent(Clipping)
    state = routine.init(Key(0))
    new, info = routine.step(state, routine.normalise({"lr": 0.5}), ())
    assert same_bits(info["gradient"], value_and_gradient(routine.objective, state.x)[1])
    assert torch.equal(new.x, state.x - 0.5 * info["gradient"].clamp(-1.0, 1.0))


def test_threads_that_share_one_method_do_not_see_each_other():
    routine, lrs, found = descent(torch.optim.NAdam), [1e-3, 3e-3, 1e-2, 3e-2], {}

    def work(lr):
        found[lr] = path(routine, {"lr": lr})[0]

    threads = [threading.Thread(target=work, args=(lr,)) for lr in lrs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(found[lr], path(routine, {"lr": lr})[0]) for lr in lrs)


def test_a_session_goes_back_and_replays_to_the_same_bits():
    with wb.Session(wb.descent("rosenbrock", torch.optim.NAdam)) as session:
        session.step(10).set(lr=0.05).step(10)
        reached = session.state
        session.back(15).step(15)
        assert same_bits(session.state, reached)
        assert [edit.target for edit in session.edits] == ["lr"]


def test_a_class_that_draws_random_numbers_is_said_to_be_unrepeatable():
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                p.add_(torch.randn_like(p), alpha=1e-3)

    with pytest.warns(UserWarning, match="Noisy gives two answers from one state"):
        path(descent(Noisy), steps=2)


def test_arithmetic_that_fails_in_one_run_ends_that_run_only():
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            lr = self.param_groups[0]["lr"]
            1 / (lr - 0.25)
            torch.linalg.cholesky(torch.eye(2) * (-1 if lr == 0.5 else 1))
            super().step(closure)

    points, state = path(descent(Fragile), {"lr": [0.25, 1e-4, 0.5]}, steps=3, runs=3)
    assert state.diverged.tolist() == [0, -1, 0]
    assert same_bits(points[..., 1:2].contiguous(), path(descent(torch.optim.SGD), {"lr": 1e-4}, steps=3)[0])
    assert torch.isfinite(points).all()


# ------------------------------------------------------------------------------------------------- introspection


def read(optimizer):
    return {name: hyper.default for name, hyper in find_optimizer(optimizer).hypers.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SGD", {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}),
        ("RMSprop", {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False}),
        ("AdamW", {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}),
        ("Rprop", {"lr": 1e-2, "etaminus": 0.5, "etaplus": 1.2, "step_size_min": 1e-6, "step_size_max": 50.0}),
        ("Adafactor", {"lr": 1e-2, "beta2_decay": -0.8, "eps2": 1e-3, "d": 1.0, "weight_decay": 0.0}),
        (
            "LBFGS",
            {"lr": 1.0, "max_iter": 20, "tolerance_grad": 1e-7, "tolerance_change": 1e-9, "line_search_fn": "none"},
        ),
    ],
)
def test_finds_the_hyperparameters_of_a_torch_class(name, expected):
    assert read(getattr(torch.optim, name)) == expected


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW", *[row.name.split(".")[1] for row in MENU]])
def test_every_hyperparameter_is_legal_at_its_default_named_and_explained(name):
    for key, hyper in find_optimizer(getattr(torch.optim, name)).hypers.items():
        assert hyper.name == key
        assert hyper.check(hyper.default) == hyper.default
        assert hyper.doc or key == "centered", key  # torch's own docstring says nothing usable of it
        if hyper.scale != "choice":
            low, high = hyper.slider
            assert hyper.low <= low <= hyper.default <= high <= hyper.high, key
            assert hyper.scale != "log" or low > 0, key


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
def test_the_class_accepts_the_ends_of_every_range(row):
    method = find_optimizer(row.name)
    for name, hyper in method.hypers.items():
        ends = hyper.choices if hyper.scale == "choice" else (hyper.low, hyper.high)
        for end in ends:
            method._build([torch.zeros(2, requires_grad=True)], as_arguments(method, {name: end}))


def test_reads_a_users_class():
    class Mine(torch.optim.Optimizer):
        """Mine.

        Args:
            lr (float): how far. (default: 0.5)
            sharp: how sharp it turns, from blunt
                to keen
        """

        def __init__(
            self,
            params,
            lr=None,
            gammas=(0.1, None, 0.3),
            sharp=-2.0,
            k=3,
            width: float = 2,
            mode: Literal["a", "b"] = "b",
            flag=False,
            extra=None,
            note="x",
            foreach=None,
        ):
            super().__init__(params, {"lr": lr, "gammas": gammas, "sharp": sharp, "mode": mode, "extra": extra})

        def step(self):
            pass

    hypers = TorchOptimizer(Mine).hypers
    assert {name: hyper.default for name, hyper in hypers.items()} == {
        "lr": 1e-3,
        "gamma1": 0.1,
        "gamma3": 0.3,
        "sharp": -2.0,
        "k": 3,
        "width": 2.0,
        "mode": "b",
        "flag": False,
    }
    assert {name for name, hyper in hypers.items() if hyper.kind == "shape"} == {"k", "mode", "flag"}
    assert hypers["k"].scale == "integer"
    assert hypers["mode"].choices == ("a", "b")
    assert hypers["sharp"].doc == "How sharp it turns, from blunt to keen."
    assert hypers["sharp"].check(1e6) == 1e6
    assert TorchOptimizer(Mine, k=5, lr=0.1).hypers.keys() == hypers.keys() - {"k", "lr"}


def test_arguments_behind_kwargs_are_found_unless_they_are_taken():
    class Passing(torch.optim.Adam):
        def __init__(self, params, boost=2.0, **rest):
            super().__init__(params, **rest)

    class Taking(torch.optim.SGD):
        def __init__(self, params, boost=2.0, **rest):
            super().__init__(params, momentum=0.9, **rest)

    assert {"boost", "lr", "beta1", "beta2", "weight_decay"} <= read(Passing).keys()
    assert read(Taking) == {"boost": 2.0}


def test_errors_name_what_is_wrong_with_a_class():
    class Needy(torch.optim.SGD):
        def __init__(self, params, anchor, lr=0.1):
            super().__init__(params, lr)

    class Hooked(torch.optim.SGD):
        def __init__(self, params, lr=0.1):
            super().__init__(params, lr)
            self.register_step_post_hook(lambda *_: None)

    with pytest.raises(ValueError, match=r"anchor has none: give it, TorchOptimizer\(Needy, anchor=…\)"):
        TorchOptimizer(Needy)
    assert read(TorchOptimizer(Needy, anchor=1)) == {"lr": 0.1}
    with pytest.raises(ValueError, match="Hooked to register no step hooks"):
        TorchOptimizer(Hooked)
    with pytest.raises(ValueError, match=r"expected a subclass of torch.optim.Optimizer, got 'adam'"):
        TorchOptimizer("adam")
    with pytest.raises(ValueError, match="unexpected keyword argument 'speed'"):
        TorchOptimizer(torch.optim.SGD, speed=1)
    with pytest.raises(ValueError, match=r"expected beta1 to be a number from 0 to 0.999999, got 1.0"):
        descent("torch.NAdam").normalise({"beta1": 1.0})


# ----------------------------------------------------------------------------------------- turning while it runs


def test_turning_lr_and_betas_in_mid_run_equals_turning_them_in_the_parameter_group():
    def turn(k, optimizer):
        if k == 10:
            optimizer.param_groups[0].update(lr=0.05, betas=(0.5, 0.999))

    ours, _ = path(descent(torch.optim.Adam), lambda k: {"lr": 0.05, "beta1": 0.5} if k >= 10 else {})
    assert same_bits(ours[..., 0], plain_path(torch.optim.Adam, before=turn))


@pytest.mark.parametrize(
    ("make", "turned", "buffer"),
    [
        (torch.optim.RMSprop, {"momentum": 0.5}, "momentum_buffer"),
        (torch.optim.RMSprop, {"centered": True}, "grad_avg"),
        (torch.optim.Adam, {"amsgrad": True}, "max_exp_avg_sq"),
    ],
)
def test_a_buffer_that_a_turned_hyperparameter_asks_for_starts_at_zero(make, turned, buffer):
    def turn(k, optimizer):
        if k == 10:
            optimizer.param_groups[0].update(turned)
            for p in optimizer.param_groups[0]["params"]:
                optimizer.state[p][buffer] = torch.zeros_like(p)

    ours, _ = path(descent(make), lambda k: turned if k >= 10 else {})
    assert same_bits(ours[..., 0], plain_path(make, before=turn))


@pytest.mark.parametrize("row", MENU, ids=lambda row: row.name)
def test_every_hyperparameter_can_be_turned_while_it_runs(row):
    routine = descent(row.name)
    start = routine.init(Key(0))
    _, state = path(routine, steps=3)
    for name, hyper in routine.hypers.items():
        ends = hyper.choices if hyper.scale == "choice" else hyper.slider
        for end in ends:
            turned, _ = routine.step(state, routine.normalise({name: end}), ())
            turned, _ = routine.step(turned, routine.normalise(), ())
            assert turned.x.shape == start.x.shape, f"{name} = {end}"


# ------------------------------------------------------------------------------------------- classes of one's own


class Sign(torch.optim.Optimizer):
    """Signed descent that keeps everything where a class may: attributes, its own group entries, a deque, tensors."""

    def __init__(self, params, lr=0.01, shrink=0.9):
        super().__init__(params, {"lr": lr, "shrink": shrink, "t": 0})
        self.recent = collections.deque(maxlen=3)
        self.total = torch.zeros(())
        self.names = {"first": self.param_groups[0]["params"][0]}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["t"] += 1
            group["lr"] *= group["shrink"]
            for p in group["params"]:
                self.recent.append(p.grad.sign())
                self.total += p.grad.abs().sum()
                p.sub_(sum(self.recent), alpha=group["lr"])
        assert self.names["first"] is self.param_groups[0]["params"][0]
        self.names["first"].sub_(1e-4 * self.total.to(p.dtype).sin())


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware descent round another optimizer; it wants a closure."""

    def __init__(self, params, rho=0.05, lr=1e-3):
        super().__init__(params, {"rho": rho, "lr": lr})
        self.inner = torch.optim.Adam(self.param_groups, lr=lr)
        self.param_groups = self.inner.param_groups

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                moves = [group["rho"] * p.grad / p.grad.norm() for p in group["params"]]
                for p, move in zip(group["params"], moves, strict=True):
                    p.add_(move)
                with torch.enable_grad():
                    closure()
                for p, move in zip(group["params"], moves, strict=True):
                    p.sub_(move)
        self.inner.step()
        return loss


class WithoutClosure:
    """A plain loop's optimizer whose step takes no closure, called with one."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self, closure):
        closure()
        self.optimizer.step()


def test_a_users_class_may_keep_its_state_wherever_it_likes():
    ours, state = path(descent(Sign), {"lr": 0.05}, runs=2)
    theirs = plain_path(lambda params: WithoutClosure(Sign(params, lr=0.05)))
    assert same_bits(ours[..., 0], theirs)
    assert same_bits(ours[..., 1].contiguous(), theirs)
    again, _ = descent(Sign).step(state, descent(Sign).normalise({"lr": 0.05}), ())
    assert same_bits(again.x, descent(Sign).step(state, descent(Sign).normalise({"lr": 0.05}), ())[0].x)


def test_a_users_class_may_wrap_another_and_evaluate_elsewhere():
    ours, state = path(descent(Sharpness), {"lr": 0.02, "rho": 0.1})
    assert same_bits(ours[..., 0], plain_path(lambda params: Sharpness(params, lr=0.02, rho=0.1)))
    hyper = descent(Sharpness).normalise({"lr": 0.02, "rho": 0.1})
    first, _ = descent(Sharpness).step(state, hyper, ())
    again, _ = descent(Sharpness).step(state, hyper, ())
    assert same_bits(first.x, again.x)


def test_settings_that_are_not_offered_can_be_fixed():
    method = TorchOptimizer(torch.optim.LBFGS, history_size=2, line_search_fn="strong_wolfe")
    ours, _ = path(descent(method), {"max_iter": 3})
    theirs = plain_path(
        lambda params: torch.optim.LBFGS(params, max_iter=3, history_size=2, line_search_fn="strong_wolfe")
    )
    assert same_bits(ours[..., 0], theirs)


def test_float32_hyperparameters_reach_the_class_as_the_numbers_they_were_written_as():
    ours, _ = path(descent(torch.optim.AdamW, torch.float32), {"lr": 0.013, "weight_decay": 0.07})
    theirs = plain_path(lambda params: torch.optim.AdamW(params, lr=0.013, weight_decay=0.07), torch.float32)
    assert same_bits(ours[..., 0], theirs)


# --------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("method", "recipe", "setup"),
    [
        (TorchOptimizer(torch.optim.NAdam), "torch.optim.NAdam", ""),
        (find_optimizer("torch.NAdam"), "'torch.NAdam'", ""),
        (
            TorchOptimizer(torch.optim.LBFGS, history_size=2),
            "TorchOptimizer(torch.optim.LBFGS, history_size=2)",
            "from workbench.optimizers.torch_adapter import TorchOptimizer",
        ),
        (TorchOptimizer(Sign), f"{Sign.__module__}.Sign", f"import {Sign.__module__}"),
    ],
)
def test_the_recipe_makes_the_same_method_again(method, recipe, setup):
    assert (method.recipe(), method.setup()) == (recipe, setup)
    names = {"torch": torch, "wb": wb}
    exec(method.setup(), names)  # noqa: S102 - this is what an exported script does
    again = find_optimizer(eval(method.recipe(), names))  # noqa: S307
    assert (again.name, again.wrapped, again.hypers, again.settings) == (
        method.name,
        method.wrapped,
        method.hypers,
        method.settings,
    )


def test_a_class_that_cannot_be_imported_says_what_the_script_needs():
    class Local(torch.optim.SGD):
        pass

    method = TorchOptimizer(Local)
    assert method.recipe() == "Local"
    assert method.setup() == "# Define the class Local here: it is in no module that can be imported."

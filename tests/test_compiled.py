"""Compiled rollouts give what eager stepping gives, compile once, and say why when they cannot."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch._dynamo.utils import counters

import workbench as wb
from workbench import compiled, native
from workbench.catalogue import find_objective
from workbench.compiled import NoCompiler, RunsEager, eager_trajectory, trajectory
from workbench.optimizers.classical import HeavyBall
from workbench.problems.objective import Function
from workbench.rollout import stack_noises
from workbench.routine import RUNNING, Key
from workbench.tree import leaves, same_bits, tree_map

# 2026-11-21: torch 2.13's compiler imports torch.utils.mkldnn; goes with https://github.com/pytorch/pytorch/pull/189914
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

STEPS = 25
WRITTEN_HERE = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw")
RATES = torch.logspace(-5, 1, 13, dtype=torch.float64)


@pytest.fixture(autouse=True)
def said():
    """What has been said once is said again in the next test."""
    compiled._said.clear()


@pytest.fixture
def builds(monkeypatch):
    """The sources that are compiled from here on."""
    texts = []
    monkeypatch.setattr(native, "build", lambda text, build=native.build: texts.append(text) or build(text))
    return texts


def prepared(routine, hyper=None, *, runs=13, steps=STEPS, seed=0, start=None):
    """The arguments of a trajectory."""
    key = Key(seed)
    state = routine.init(key.stream("init"), start=start, runs=runs)
    ready = routine.normalise(hyper, runs=runs)
    return routine, state, ready, stack_noises([routine.draw(key.at(k), state, ready) for k in range(steps)]), steps


def assert_same(given, *, rtol=1e-9, **options):
    """Compiled and eager: the same points, the same final state, the same divergences."""
    (ours, points), (eager, expected) = trajectory(*given, **options), eager_trajectory(*given)
    torch.testing.assert_close(points, expected, rtol=rtol, atol=rtol)
    assert torch.equal(ours.diverged, eager.diverged)
    for a, b in zip(leaves(ours), leaves(eager), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        sound = (ours.diverged == RUNNING).expand_as(a) if a.ndim else ...
        torch.testing.assert_close(a[sound], b[sound], rtol=rtol, atol=rtol)
    return ours, points


# ------------------------------------------------------------------------------------------- the C++ loop


@pytest.mark.parametrize("optimizer", WRITTEN_HERE)
def test_each_optimizer_goes_the_same_way_runs_that_diverge_included(optimizer, builds):
    given = prepared(wb.descent("rosenbrock", optimizer, dtype=torch.float64), {"lr": RATES})
    ours, points = assert_same(given)
    assert torch.isfinite(points).all()
    assert len(builds) == 1
    assert ours.k == STEPS
    if optimizer in ("sgd", "momentum", "nesterov"):
        assert set(ours.diverged.tolist()) > {RUNNING}, "expected some runs to diverge and some not"


@pytest.mark.parametrize("surface", [entry.name for entry in wb.catalogue("surfaces")] or ["rosenbrock"])
def test_each_surface_gives_the_same_descent(surface, builds):
    assert_same(prepared(wb.descent(surface, "adam", dtype=torch.float64), {"lr": 0.01}, runs=3))
    assert len(builds) == 1


def test_float32_agrees_to_its_precision():
    assert_same(prepared(wb.descent("rosenbrock", "adam"), {"lr": 1e-3}), rtol=1e-5)


def test_your_own_expression_and_function_and_schedule_compile(builds):
    own = wb.descent("sin(x)*y**2 + exp(-x*x)", "momentum", dtype=torch.float64, schedule=lambda k: 0.9**k)
    assert_same(prepared(own))
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert_same(prepared(wb.descent(lambda x: x @ matrix.to(x) @ x, "sgd")), rtol=1e-5)
    assert len(builds) == 2


def test_nothing_compiles_again_for_values_runs_steps_or_starts(builds):
    routine = wb.descent("rosenbrock", "adam", dtype=torch.float64)
    starts = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same(prepared(routine, {"lr": 0.1}, runs=1))
    assert_same(prepared(routine, {"lr": 0.2, "beta1": 0.5}, runs=2))
    assert_same(prepared(routine, {"lr": RATES, "beta2": RATES / 11}))
    assert_same(prepared(routine, {"lr": 0.01}, runs=5, steps=3, start=starts))
    assert len(builds) == 1


@pytest.mark.parametrize("seed", [0, (1, 2), (1, 2, 3)], ids=str)
def test_runs_share_their_noise_or_have_their_own_also_when_there_are_as_many_as_coordinates(seed):
    runs = len(seed) if isinstance(seed, tuple) else 2
    routine = wb.descent("noisy-ravine", "sgd", dtype=torch.float64)
    _, points = assert_same(prepared(routine, {"lr": 0.01, "noise": 1.0}, runs=runs, seed=seed))
    assert torch.equal(points[..., 0], points[..., 1]) == (seed == 0)


def test_many_runs_on_several_threads_are_the_runs_one_by_one(monkeypatch):
    monkeypatch.setattr(native, "THREAD_WORTH", 1)
    routine = wb.descent("rosenbrock", "momentum", dtype=torch.float64)
    runs = 3 * native.BLOCK + 1
    starts = torch.randn(runs, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    final, points = trajectory(*prepared(routine, {"lr": 1e-4}, runs=runs, start=starts))
    for run in (0, 1, native.LANES, native.BLOCK - 1, native.BLOCK, runs - 1):
        _, alone = trajectory(*prepared(routine, {"lr": 1e-4}, runs=1, start=starts[run]))
        assert torch.equal(points[..., run], alone[..., 0])
    assert torch.equal(final.x, points[-1])


def test_a_run_that_has_already_stopped_stays(builds):
    routine, state, hyper, noises, steps = prepared(wb.descent("rosenbrock", "sgd", dtype=torch.float64))
    stopped = state._replace(
        k=torch.tensor(9, dtype=torch.int32), diverged=state.diverged.index_fill(0, torch.tensor(4), 7)
    )
    ours, points = assert_same((routine, stopped, hyper, noises, steps))
    assert ours.diverged[4] == 7
    assert torch.equal(points[-1, :, 4], state.x[:, 4])


def test_a_trajectory_in_two_halves_is_the_trajectory():
    routine, state, hyper, _, _ = prepared(wb.descent("rosenbrock", "adam"), {"lr": 0.1})
    final, points = trajectory(routine, state, hyper, (), 10)
    middle, first = trajectory(routine, state, hyper, (), 4)
    last, second = trajectory(routine, middle, hyper, (), 6)
    assert same_bits(final, last)
    assert torch.equal(points, torch.cat([first, second[1:]]))


def test_inputs_stay_as_they_are_and_outputs_are_apart():
    routine, state, hyper, noises, _ = prepared(wb.descent("rosenbrock", "adam"))
    before = tree_map(torch.clone, state)
    final, points = trajectory(routine, state, hyper, noises, STEPS)
    assert same_bits(state, before)
    points.zero_()
    assert bool(final.x.any())
    same, only = trajectory(routine, state, hyper, (), 0)
    assert same_bits(same, state)
    assert torch.equal(only, state.x[None])


def test_noise_for_another_number_of_steps_is_refused():
    routine, state, hyper, noises, steps = prepared(wb.descent("noisy-ravine", "sgd"))
    with pytest.raises(ValueError, match="leading axis of 24 steps"):
        trajectory(routine, state, hyper, noises, steps - 1)


def test_a_tensor_of_the_wrong_size_is_refused():
    routine, state, hyper, noises, steps = prepared(wb.descent("rosenbrock", "sgd"))
    with pytest.raises(ValueError, match="expected a hyper of shape"):
        trajectory(routine, state, {**hyper, "lr": torch.ones(2)}, noises, steps)


def test_what_is_compiled_goes_with_the_routine_and_is_not_copied():
    routine = wb.descent("rosenbrock", "sgd")
    trajectory(*prepared(routine))
    (loop,) = vars(routine)["_compiled"]._loops.values()
    assert not copy.deepcopy(vars(routine)["_compiled"])._loops
    assert not pickle.loads(pickle.dumps(vars(routine)["_compiled"]))._loops  # noqa: S301 - made here
    kept = weakref.ref(loop)
    del routine, loop
    gc.collect()
    assert kept() is None


def test_threads_that_ask_at_once_compile_once_and_agree(builds):
    given, found = prepared(wb.descent("rosenbrock", "sgd")), []
    workers = [threading.Thread(target=lambda: found.append(trajectory(*given)[1])) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(builds) == 1
    assert all(torch.equal(points, found[0]) for points in found)


# ------------------------------------------------------------------------------------------ torch.compile


@pytest.fixture(scope="module")
def many():
    """A descent with too many coordinates for straight-line code."""
    objective = find_objective("rosenbrock").__class__(dim=300)
    return wb.descent(objective, HeavyBall(), dtype=torch.float64)


@pytest.mark.slow
def test_torch_compile_gives_the_same_compiles_at_most_twice_and_breaks_no_graph(many, builds):
    counters.clear()
    options = {"unroll": 2}
    rates = torch.tensor([1e-6, 1e-4, 1e-2], dtype=torch.float64)
    ours, _ = assert_same(prepared(many, {"lr": rates}, runs=3, steps=7), **options)
    assert set(ours.diverged.tolist()) > {RUNNING}, "expected some runs to diverge and some not"
    assert counters["stats"]["unique_graphs"] == 1
    assert_same(prepared(many, {"lr": rates / 2, "momentum": 0.5}, runs=3, steps=4), **options)
    assert counters["stats"]["unique_graphs"] == 1
    for runs in (5, 4, 9):
        assert_same(prepared(many, {"lr": torch.full((runs,), 1e-5)}, runs=runs, steps=3), **options)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert not builds


@pytest.mark.slow
def test_settings_stay_as_they_were_also_in_a_worker_thread(many):
    given, found = prepared(many, {"lr": 1e-6}, runs=3, steps=2), []

    def work():
        before = torch.get_num_threads(), torch.is_grad_enabled()
        trajectory(*given, unroll=2)
        found.append(before == (torch.get_num_threads(), torch.is_grad_enabled()))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert found == [True]


def test_code_that_torch_cannot_compile_runs_eager_and_says_so_once(many, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("no")

    monkeypatch.setattr(compiled, "_make_chunk", lambda *args: refuse)
    vars(many).pop("_compiled", None)
    given = prepared(many, runs=3, steps=5)
    with pytest.warns(RunsEager, match="momentum.* runs eager: torch.compile says no$"):
        _, points = trajectory(*given)
    assert torch.equal(points, eager_trajectory(*given)[1])
    assert_same(given)
    vars(many).pop("_compiled")


# ------------------------------------------------------------------------------------------- running eager


def test_without_a_compiler_it_says_so_once_and_runs_eager(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    given = prepared(wb.descent("rosenbrock", "sgd"))
    with pytest.warns(NoCompiler, match=r"no C\+\+ compiler found.*CXX") as heard:
        _, points = trajectory(*given)
    assert [warning.filename for warning in heard] == [__file__]
    trajectory(*prepared(wb.descent("beale", "sgd")))  # warnings are errors here: it says nothing
    assert torch.equal(points, eager_trajectory(*given)[1])


def test_a_compiler_that_fails_leads_to_torch_compile(monkeypatch):
    monkeypatch.setattr(native, "FLAGS", ("-no-such-flag",))
    monkeypatch.setattr(compiled, "_run_chunks", lambda *args: "chunks")
    assert trajectory(*prepared(wb.descent("rosenbrock", "sgd"))) == "chunks"


def test_a_step_that_reads_values_runs_eager_and_says_so_once():
    given = prepared(wb.descent("rosenbrock", torch.optim.Rprop), runs=2, steps=3)
    with pytest.warns(RunsEager, match="reads values on the host"):
        _, points = trajectory(*given)
    assert torch.equal(points, eager_trajectory(*given)[1])
    trajectory(*given)  # warnings are errors here: it says nothing


def test_a_state_with_plain_values_runs_eager():
    routine = wb.training("linear", "cross_entropy", "digits", "sgd", batch_size=8)
    state, hyper = routine.init(Key(0)), routine.normalise()
    noise = routine.draw(Key(0), state)
    with pytest.warns(RunsEager, match="plain values"):
        final, _ = trajectory(routine, state, hyper, noise._replace(rows=noise.rows[None]), 1)
    assert same_bits(final, routine.step(state, hyper, noise)[0])


def test_a_function_with_no_gradient_anywhere_compiles():
    assert_same(prepared(wb.descent(Function(lambda x: x[0] * 0 + 1, dim=2), "sgd")), rtol=1e-6)

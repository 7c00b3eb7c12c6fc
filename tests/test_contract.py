"""The contract, checked over the whole catalogue by introspection: a new method gets these tests for nothing."""

import ast
import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.rollout import advance
from workbench.routine import Hyper
from workbench.tree import leaves, same_bits, tensors, tree_map

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = wb.catalogue()
OPTIMIZERS, SURFACES, MODELS = (wb.catalogue(family) for family in ("optimizers", "surfaces", "models"))
FLOW_PARTS = {
    "objective": "flow objectives",
    "coupling": "couplings",
    "interpolant": "interpolants",
    "times": "time distributions",
    "weight": "loss weights",
    "premetric": "premetrics",
}
DTYPES = [torch.float32, torch.float64]

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator)
    return x, x[:, :3].argmax(1), x[:12], x[:12, :3].argmax(1)


def train(model, optimizer, dtype):
    small = wb.make("mlp", width=5, depth=2) if model == "mlp" else model
    return wb.training(small, "cross_entropy", samples(), optimizer, batch_size=8, dtype=dtype)


def flow(part, name, dtype):
    small = wb.make("mlp", width=5, depth=1, activation="tanh")
    return wb.flow_training(None, "two-moons", network=small, batch_size=8, dtype=dtype, **{part: name})


def sample(solver, grid, dtype):
    return wb.sampling(
        "eight-gaussians", solver, steps=8, grid=grid, samples=7, interpolant="variance-preserving", dtype=dtype
    )


def unmask(law, method, dtype):
    return wb.unmasking(law, method, steps=8, samples=7, dtype=dtype)


def cases():
    """Optimizers on a surface and on a net, surfaces and models under Adam, parts of a flow, solvers, grids, tokens."""
    found = {}
    for row in OPTIMIZERS:
        found[f"rosenbrock/{row.name}"] = functools.partial(wb.descent, "rosenbrock", row.name)
        found[f"mlp/{row.name}"] = functools.partial(train, "mlp", row.name)
    for row in SURFACES:
        found[f"{row.name}/adam"] = functools.partial(wb.descent, row.name, "adam")
    for row in MODELS:
        found[f"{row.name}/adam"] = functools.partial(train, row.name, "adam")
    for part, family in FLOW_PARTS.items():
        for row in wb.catalogue(family):
            found[f"flow/{row.name}"] = functools.partial(flow, part, row.name)
    for row in wb.catalogue("solvers"):
        found[f"sampling/{row.name}"] = functools.partial(sample, row.name, "uniform-grid")
    for row in wb.catalogue("grids"):
        found[f"sampling/{row.name}"] = functools.partial(sample, "euler", row.name)
    for row in wb.catalogue("token laws"):
        found[f"unmasking/{row.name}"] = functools.partial(unmask, row.name, "mdlm")
    for row in wb.catalogue("unmaskers"):
        found[f"unmasking/{row.name}"] = functools.partial(unmask, "ising-chain", row.name)
    return found


CASES = cases()
over_the_catalogue = pytest.mark.parametrize("name", CASES)


def make(name, dtype=torch.float32):
    return CASES[name](dtype=dtype)


def run(routine, steps, **options):
    return wb.Session(routine, **options).step(steps).state


# ------------------------------------------------------------------------------------------------- every routine


@over_the_catalogue
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_hypers_and_what_is_observed_keep_the_dtype(name, dtype):
    routine = make(name, dtype)
    key, ready = wb.Key(0), routine.normalise()
    state = routine.init(key.stream("init"))
    for k in range(3):
        state, info = advance(routine, state, ready, key, k)
        seen = [state.x, routine.observe(state), routine.measure(info)]
        if not routine.host_sync:  # torch.optim classes keep counters as they like
            seen.append(state)
        floating = {leaf.dtype for leaf in tensors(seen) if leaf.is_floating_point()}
        assert floating == {dtype}
    values = [value for value in ready.values() if isinstance(value, torch.Tensor)]
    assert all(value.dtype == dtype and value.ndim == 0 for value in values)


@over_the_catalogue
def test_what_is_observed_and_measured_is_labelled_and_has_one_value_a_run(name):
    routine = make(name)
    state = routine.init(wb.Key(0), runs=3)
    state, info = advance(routine, state, routine.normalise(), wb.Key(0), 0)
    observed, measured = routine.observe(state), routine.measure(info)
    assert set(observed) | set(routine.recorded) == set(routine.variables)
    assert set(routine.recorded) <= set(measured)
    assert routine.runs(state) == 3
    for label, array in observed.items():
        assert array.ndim == 1 + len(routine.variables[label].dims)
        assert array.shape[routine.run_axis] == 3
        assert routine.variables[label].long_name
        assert routine.variables[label].units
    for array in measured.values():
        assert array.shape == (3,)
    for label, (dims, values, attrs) in routine.coords().items():
        assert label == dims
        assert len(values) >= 1
        assert attrs["long_name"]
        assert attrs["units"]


@over_the_catalogue
def test_a_step_changes_nothing_it_was_given_and_gives_the_same_bits_again(name):
    routine = make(name)
    key, ready = wb.Key(0), routine.normalise()
    state = routine.init(key.stream("init"), runs=2)
    for k in range(3):
        noise = routine.draw(key.at(k), state, ready)
        given = (state, ready, noise)
        before = tree_map(torch.clone, given)
        with torch.no_grad():
            new, info = routine.step(state, ready, noise)
            again, _ = routine.step(state, ready, noise)
        observed = tree_map(torch.clone, new)
        routine.observe(new)
        routine.measure(info)
        assert same_bits(given, before)
        assert same_bits(new, again)
        assert same_bits(new, observed)
        state = new


@over_the_catalogue
def test_the_same_seed_gives_the_same_bits(name):
    assert same_bits(run(make(name), 5, seed=11), run(make(name), 5, seed=11))


@over_the_catalogue
def test_batched_equals_looped(name):
    """To rounding, and what the method makes of it: how much that is shows when the start is moved by 1e-14."""
    routine = make(name, torch.float64)
    turned = {"lr": [1e-3, 4e-3, 2e-2]} if "lr" in routine.hypers else {}
    point = run(routine, 0).x
    point = point[0] if routine.run_axis == 0 else point[:, 0]
    near = 1 + 1e-14 if point.is_floating_point() else 1  # tokens have no neighbours
    starts = torch.stack(
        [point, 0.95 * point, point + 0.01] if point.is_floating_point() else [point, point // 2, point]
    )
    batched = run(routine, 6, hyper=turned, start=starts)
    for i in range(3):
        own = {label: values[i] for label, values in turned.items()}
        alone, moved = (run(routine, 6, hyper=own, start=starts[i] * size) for size in (1, near))
        ours = routine.pick(batched, i)
        allowed = 1e-11 * (1 + alone.x.abs().max()) + 1000 * (alone.x - moved.x).abs().max()
        assert (ours.x - alone.x).abs().max() <= allowed
        assert torch.equal(ours.diverged, alone.diverged)


@over_the_catalogue
def test_it_runs_without_reading_a_value_and_every_tensor_stays_on_its_device(name):
    """On the device "meta" reading a value raises, so does mixing devices; leaves are checked besides."""
    routine = make(name)
    if routine.host_sync:
        with pytest.raises((RuntimeError, NotImplementedError)):
            advance(
                routine.to("meta"), routine.to("meta").init(wb.Key(0)), routine.to("meta").normalise(), wb.Key(0), 0
            )
        return
    moved = routine.to("meta")
    turned = {"lr": [1e-3, 1e-2]} if "lr" in moved.hypers else {}
    key, ready = wb.Key(0), moved.normalise(turned)
    state = moved.init(key.stream("init"), runs=2)
    there = [ready, state]
    for k in range(2):
        noise = moved.draw(key.at(k), state, ready)
        state, info = moved.step(state, ready, noise)
        there += [noise, state, info, moved.observe(state), moved.measure(info)]
    assert {leaf.device.type for leaf in tensors(there)} == {"meta"}
    assert same_shapes(state, run(routine, 2, hyper=turned, start=twice(routine)))


def twice(routine):
    """The routine's own start for each of two runs."""
    point = run(routine, 0).x
    return torch.cat([point, point], 0) if routine.run_axis == 0 else torch.cat([point, point], 1).T


def same_shapes(a, b):
    shapes = [[(leaf.shape, leaf.dtype) for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)] for tree in (a, b)]
    return shapes[0] == shapes[1]


def wrong_values(hyper):
    """Values that a declaration forbids."""
    if hyper.scale == "choice":
        return ["no such choice", None]
    beyond = [math.nan, math.inf, "text", None]
    if math.isfinite(hyper.low):
        beyond.append(hyper.low - max(1.0, abs(hyper.low)))
    if math.isfinite(hyper.high):
        beyond.append(hyper.high + max(1.0, abs(hyper.high)))
    if hyper.scale == "integer":
        beyond.append(hyper.default + 0.5)
    return beyond


@over_the_catalogue
def test_unknown_and_illegal_hyperparameters_are_refused_by_name(name):
    routine = make(name)
    with pytest.raises(ValueError, match=r"expected a hyperparameter to be one of .*; got 'learning_rat'"):
        routine.normalise({"learning_rat": 0.1})
    for label, hyper in routine.hypers.items():
        for value in wrong_values(hyper):
            with pytest.raises(ValueError, match=f"expected {re.escape(label)} to be .*, got|; got"):
                routine.normalise({label: value})
        if hyper.kind == "value":
            with pytest.raises(ValueError, match=f"expected {re.escape(label)}"):
                routine.normalise({label: [hyper.default, math.nan]})
            with pytest.raises(ValueError, match=f"expected {re.escape(label)} to have one value for each of 3 runs"):
                routine.normalise({label: [hyper.default] * 2}, runs=3)


# ------------------------------------------------------------------------------------------------- every entry


@pytest.mark.parametrize("row", ENTRIES, ids=lambda row: row.name)
def test_an_entry_says_what_it_is_and_where_it_comes_from(row):
    assert re.fullmatch(r"[A-Za-z0-9]+([-.][A-Za-z0-9]+)*", row.name)
    for words in (row.title, row.family, row.kind, row.source, row.doc, row.evidence):
        assert words.strip() == words != ""
    assert re.search(r"\d", row.source), "a source has a year, a number or an address"
    assert row.ledger_id == "" or re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.ledger_id)
    text = json.dumps(row.describe(), allow_nan=False)
    assert json.loads(text)["name"] == row.name


@pytest.mark.parametrize("row", ENTRIES, ids=lambda row: row.name)
def test_the_declared_hyperparameters_of_an_entry_are_sound(row):
    for label, hyper in row.make.hypers.items():
        assert isinstance(hyper, Hyper)
        assert hyper.name == label
        assert hyper.scale in ("linear", "log", "integer", "choice")
        assert hyper.kind in ("value", "shape", "init")
        assert hyper.check(hyper.default) == hyper.default
        assert "\n" not in hyper.doc
        if hyper.scale != "choice":
            low, high = hyper.slider
            assert hyper.low <= low <= hyper.default <= high <= hyper.high, label
            assert hyper.scale != "log" or high > 0


def test_names_are_unique_and_found():
    names = [row.name for row in ENTRIES]
    assert len(set(names)) == len(names)
    assert {row.family for row in ENTRIES} >= {"surfaces", "optimizers", "datasets", "models"}
    for row in ENTRIES:
        made = wb.make(row.name)
        assert isinstance(made, row.make)
        assert made.recipe() == repr(row.name)
    with pytest.raises(ValueError, match="Did you mean 'optimizers'"):
        wb.catalogue("optimisers")
    with pytest.raises(ValueError, match="Did you mean 'adam'"):
        wb.descent("rosenbrock", "adamm")
    with pytest.raises(ValueError, match="Did you mean 'rosenbrock'"):
        wb.descent("rosenbroc", "adam")
    with pytest.raises(ValueError, match="Did you mean 'rosenbrock'"):
        wb.make("rosenbrok")


def test_the_evidence_of_every_entry_is_a_test_that_pytest_collects():
    files = sorted({row.evidence.partition("::")[0] for row in ENTRIES})
    assert [file for file in files if not (ROOT / file).is_file()] == []
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line for line in done.stdout.splitlines() if "::" in line}
    missing = {row.name: row.evidence for row in ENTRIES if row.evidence not in collected}
    assert missing == {}


# ------------------------------------------------------------------------------------------------- imports

INTERFACES = {"widgets", "panel", "panel_material_ui", "bokeh", "ipywidgets", "anywidget", "IPython", "tornado"}
HEAVY = {"plotly", "sklearn", "zarr", "scipy", "matplotlib", "pandas.plotting", "jax"}


def test_importing_the_library_imports_no_interface_and_nothing_heavy():
    code = "import sys, json, workbench; workbench.catalogue(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "torch" in loaded
    assert loaded & (INTERFACES | HEAVY) == set()


def test_no_file_of_the_library_mentions_an_interface_in_an_import():
    found = []
    for path in (ROOT / "workbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found += [f"{path.name}:{node.lineno} {name}" for name in names if name.partition(".")[0] in INTERFACES]
    assert found == []


def test_a_rollout_needs_no_interface_and_its_numbers_are_those_of_the_session():
    record = wb.rollout(wb.descent("himmelblau", "adam"), 20, hyper={"lr": 0.1})
    session = wb.Session(wb.descent("himmelblau", "adam"), hyper={"lr": 0.1}).step(20)
    assert np.array_equal(record.x[0, -1], session.state.x[:, 0])

"""The command line, command by command."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(capsys):
    """``run(*words)``: (exit code, what was printed, what was complained about)."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def ask(run):
    """``ask(*words)``: the JSON a command prints."""

    def call(*words):
        code, out, err = run(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))

    return call


# ------------------------------------------------------------------------------------------------ list


def test_list_gives_every_entry_of_the_catalogue_with_what_is_declared(ask):
    rows = ask("list")
    assert {row["name"] for row in rows} == {entry.name for entry in wb.catalogue()}
    for row in rows:
        assert {"name", "family", "kind", "source", "ledger_id", "hyperparameters", "evidence"} <= row.keys()
        assert all(isinstance(row[name], str) for name in ("name", "family", "kind", "source", "ledger_id"))
        assert "::test_" in row["evidence"]
        for hyper in row["hyperparameters"]:
            assert {"name", "default", "low", "high", "scale", "doc"} <= hyper.keys()


def test_list_of_a_family_has_only_that_family(ask):
    rows = ask("list", "optimizers")
    assert {row["family"] for row in rows} == {"optimizers"}
    (adam,) = (row for row in rows if row["name"] == "adam")
    (lr,) = (hyper for hyper in adam["hyperparameters"] if hyper["name"] == "lr")
    assert (lr["default"], lr["low"], lr["high"], lr["scale"]) == (1e-3, 0, 1e4, "log")


def test_list_for_people_is_an_aligned_table(run):
    code, out, _ = run("list", "surfaces")
    head, *rows = out.splitlines()
    assert code == 0
    assert len(rows) == len(wb.catalogue("surfaces"))
    for word in ("family", "what it is"):
        assert all(row[head.index(word) - 2 : head.index(word)] == "  " for row in rows)


# ------------------------------------------------------------------------------------------------ run


def test_run_gives_the_numbers_of_a_rollout(ask):
    told = ask("run", "rosenbrock", "adam", "--steps", 30, "--hyper", "lr=0.1", "beta1=0.8", "--start", "-1,2")
    record = wb.rollout(wb.descent("rosenbrock", "adam"), 30, hyper={"lr": 0.1, "beta1": 0.8}, start=[-1, 2])
    (only,) = told["runs"]
    for name in ("loss", "grad_norm", "x"):
        assert only["first"][name] == record[name].values[0, 0].tolist()
        assert only["last"][name] == record[name].values[0, -1].tolist()
    assert (told["steps"], told["seed"], told["dtype"], only["status"]) == (30, 0, "float32", "ok")
    assert told["recipe"] == record.attrs["recipe"]
    assert told["hyper"]["beta1"] == 0.8


def test_run_of_several_values_gives_each_its_run_and_says_what_diverged(ask, run):
    words = ["run", "quadratic", "sgd", "--hyper", "lr=0.01,0.11,0.5", "condition=20", "--steps", 300]
    told = ask(*words)
    routine = wb.descent(wb.make("quadratic", condition=20), "sgd")
    record = wb.rollout(routine, 300, hyper={"lr": [0.01, 0.11, 0.5]})
    assert [one["lr"] for one in told["runs"]] == [0.01, 0.11, 0.5]
    assert [one["status"] for one in told["runs"]] == ["ok", "loss is not finite", record.wb.status[2]]
    assert told["runs"][1]["last"]["loss"] is None
    assert told["runs"][0]["last"]["loss"] == float(record["loss"].values[0, -1])
    code, out, _ = run(*words)
    assert code == 0
    assert "lr = 0.5" in out
    assert "diverged at step" in out


def test_run_takes_a_formula_a_seed_a_dtype_and_settings(ask):
    told = ask("run", "x**2 + 3*y**2", "sgd", "--steps", 5, "--dtype", "float64", "--seed", 7)
    assert told["recipe"] == "wb.descent('x**2 + 3*y**2', 'sgd', dtype=torch.float64)"
    assert told["seed"] == 7
    deep = ask("run", "rosenbrock", "sgd", "--steps", 1, "--hyper", "dim=4")
    assert len(deep["runs"][0]["first"]["x"]) == 4


def test_compile_and_device_reach_the_rollout(ask, monkeypatch):
    asked = {}

    def rollout(routine, steps, *, compile, **options):
        asked.update(compile=compile, device=str(routine.device))
        return original(routine, steps, **options)

    original = wb.rollout
    monkeypatch.setattr(wb, "rollout", rollout)
    ask("run", "rosenbrock", "adam", "--steps", 1, "--compile", "--device", "cpu")
    assert asked == {"compile": True, "device": "cpu"}


def test_run_keeps_the_record_and_the_figure_where_it_was_told(run, tmp_path):
    kept, figure = tmp_path / "kept", tmp_path / "figure.html"
    words = ["run", "rosenbrock", "adam", "--steps", 20, "--every", 5, "--save", kept, "--plot", figure]
    code, out, _ = run(*words)
    assert code == 0
    assert str(kept) in out
    record = wb.open(kept)
    assert record["step"].values.tolist() == [0, 5, 10, 15, 20]
    assert record.drop_attrs().identical(wb.rollout(wb.descent("rosenbrock", "adam"), 20, every=5).drop_attrs())
    assert "Rosenbrock valley" in figure.read_text(encoding="utf-8")
    assert 'src="http' not in figure.read_text(encoding="utf-8")


def test_run_for_people_ends_at_the_last_step(run):
    code, out, _ = run("run", "rosenbrock", "adam", "--steps", 25)
    lines = out.splitlines()
    record = wb.rollout(wb.descent("rosenbrock", "adam"), 25)
    assert code == 0
    assert lines[0].startswith("adam on rosenbrock: 25 steps, 1 run, seed 0, float32, eager")
    assert lines[1].split() == ["step", "loss", "grad_norm"]
    assert lines[-2].split()[:2] == ["25", f"{float(record['loss'][0, -1]):.5g}"]
    assert lines[-1] == "status: ok"


# ------------------------------------------------------------------------------------------------ train


def test_train_gives_the_numbers_of_a_rollout(ask):
    words = ["train", "mlp", "digits", "adam", "--steps", 6, "--batch-size", 32, "--hyper", "width=8", "lr=0.01"]
    told = ask(*words, "--every", 3)
    routine = wb.training(wb.make("mlp", width=8), "cross_entropy", "digits", "adam", batch_size=32)
    record = wb.rollout(routine, 6, hyper={"lr": 0.01}, probes=("train", "heldout"), every=3)
    for name in ("loss", "heldout_loss", "train_accuracy"):
        assert told["runs"][0]["last"][name] == float(record[name].values[0, -1])
    assert told["runs"][0]["first"]["loss"] is None, "nothing was measured before the first step"


def test_train_chooses_the_loss_that_suits_the_data(ask, run):
    assert "'mse'" in ask("train", "linear", "diabetes", "sgd", "--steps", 2)["recipe"]
    code, _, err = run("train", "linear", "diabetes", "sgd", "--loss", "cross_entropy")
    assert code == 2
    assert "expected data with classes for cross_entropy" in err


def test_train_for_people_shows_a_dash_where_nothing_was_measured(run):
    code, out, _ = run("train", "linear", "breast-cancer", "sgd", "--steps", 4)
    assert code == 0
    assert out.splitlines()[2].split()[-1] == "-"
    assert "nan" not in out


# ------------------------------------------------------------------------------------------------ sweep


def test_sweep_over_one_hyperparameter_is_one_rollout_of_all_values(ask):
    told = ask("sweep", "quadratic", "sgd", "lr=1e-3:1:log:7", "--steps", 50)
    values = np.geomspace(1e-3, 1, 7)
    record = wb.rollout(wb.descent("quadratic", "sgd"), 50, hyper={"lr": values})
    last = record["loss"].values[:, -1]
    assert [one["lr"] for one in told["runs"]] == values.tolist()
    assert [one["loss"] for one in told["runs"]] == [float(v) if np.isfinite(v) else None for v in last]
    sound = (record["diverged_at"].values < 0) & np.isfinite(last)
    assert told["diverged"] == int((~sound).sum()) > 0
    best = np.argmin(np.where(sound, last, np.inf))
    assert told["best"] == {"lr": float(values[best]), "loss": float(last[best]), "status": "ok"}


def test_sweep_over_two_hyperparameters_meets_every_pair_once(ask, run, tmp_path):
    words = ["sweep", "quadratic", "momentum", "lr=1e-3:0.1:log:4", "momentum=0:0.9:linear:3", "--steps", 20]
    told = ask(*words, "--hyper", "dampening=0.1")
    pairs = {(one["lr"], one["momentum"]) for one in told["runs"]}
    assert len(pairs) == len(told["runs"]) == 12
    assert told["hyper"]["dampening"] == 0.1
    code, out, _ = run(*words, "--save", tmp_path / "kept", "--plot", tmp_path / "map.html")
    assert code == 0
    assert "diverged: 0 of 12" in out
    assert "best: lr = " in out
    assert wb.open(tmp_path / "kept").sizes["run"] == 12
    assert "heatmap" in (tmp_path / "map.html").read_text(encoding="utf-8")


def test_sweep_of_many_runs_prints_the_ten_best(run):
    _, out, _ = run("sweep", "quadratic", "sgd", "lr=1e-3:1e-1:log:50", "--steps", 10)
    losses = [float(line.split()[1]) for line in out.splitlines()[-10:]]
    assert "the ten best:" in out
    assert losses == sorted(losses)


def test_sweep_takes_scale_and_count_from_the_declaration(ask):
    told = ask("sweep", "quadratic", "adam", "lr=1e-3:1e-1", "--steps", 2)
    assert [one["lr"] for one in told["runs"]] == np.geomspace(1e-3, 1e-1, 32).tolist()


def test_sweep_in_which_everything_diverges_has_no_best(ask, run):
    words = ["sweep", "quadratic", "sgd", "lr=10:100:log:3", "--steps", 100]
    told = ask(*words)
    assert (told["best"], told["diverged"]) == (None, 3)
    assert "best: none, every run diverged" in run(*words)[1]


# ------------------------------------------------------------------------------------------------ other commands


def test_bench_is_handed_its_words(run, monkeypatch):
    heard = []
    bench = types.ModuleType("workbench.bench")
    bench.main = lambda argv: heard.append(argv) or 3
    monkeypatch.setitem(sys.modules, "workbench.bench", bench)
    assert run("bench", "adam", "--json")[0] == 3
    assert heard == [["adam", "--json"]]


def test_serve_is_found_in_the_table_of_entry_points_and_handed_its_words(run, monkeypatch):
    heard = []
    serve = types.ModuleType("pretend_server")
    serve.main = heard.append
    monkeypatch.setitem(sys.modules, "pretend_server", serve)
    point = importlib.metadata.EntryPoint("serve", "pretend_server:main", cli.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == cli.GROUP else [])
    assert run("serve", "--port", "0", "--help")[0] == 0
    assert heard == [["--port", "0", "--help"]]


def test_a_checkout_that_was_never_installed_knows_the_same_commands(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert cli._commands() == {"serve": "widgets.server:main"}


def test_a_command_whose_packages_are_missing_says_what_to_install(run, monkeypatch):
    point = importlib.metadata.EntryPoint("serve", "no_such_package.server:main", cli.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    code, _, err = run("serve")
    assert code == 2
    assert "serve needs no_such_package" in err
    assert "pip install 'gradient-workbench[app]'" in err


@pytest.mark.parametrize("words", [["--help"], [], ["run", "--help"], ["sweep", "--help"], ["train", "--help"]])
def test_help_is_printed_and_is_no_error(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.startswith("usage: workbench")


def test_help_has_examples_and_every_command(run):
    _, out, _ = run("--help")
    for word in ("list", "run", "train", "sweep", "bench", "serve", "examples:", "lr=1e-4:1:log:32"):
        assert word in out


def test_examples_of_the_help_are_commands_that_parse():
    import shlex

    examples = [shlex.split(line) for line in cli.EXAMPLES.splitlines() if line.startswith("  workbench")]
    parser = cli._parser({})
    assert len(examples) == 7
    for words in examples:
        if words[1] not in ("serve", "list"):
            assert callable(parser.parse_args(cli._joined(words[1:])).command)


def test_version_is_that_of_the_package(run):
    assert run("--version")[:2] == (0, f"workbench {wb.__version__}\n")


# ------------------------------------------------------------------------------------------------ mistakes


MISTAKES = {
    "run rosenbrok adam": "Did you mean 'rosenbrock'?",
    "run rosenbrock adm": "Did you mean 'adam'?",
    "run x**2+z adam": "z",
    "run rosenbrock adam --hyper lr": "expected --hyper NAME=VALUE, got 'lr'",
    "run rosenbrock adam --hyper lr=0.1 lr=0.2": "expected lr once",
    "run rosenbrock adam --hyper rate=0.1": "expected a hyperparameter to be one of beta1",
    "run rosenbrock adam --hyper lr=-1": "expected lr to be a number from 0 to 10000, got -1.0",
    "run rosenbrock adam --hyper lr=high": "expected lr to be a number",
    "run rosenbrock adam --hyper lr=0.1,0.2 beta1=0.1,0.2,0.3": "same number of runs",
    "run rosenbrock adam --hyper dim=1": "expected dim to be a whole number from 2",
    "run rosenbrock adam --start 1": "expected start to have shape (2,)",
    "run rosenbrock adam --start 1,here": "expected numbers with commas between them, got '1,here'",
    "run rosenbrock adam --steps -1": "expected steps to be a whole number from 0",
    "run rosenbrock adam --steps many": "invalid int value: 'many'",
    "run rosenbrock adam --dtype float16": "invalid choice: 'float16'",
    "run rosenbrock adam --device nowhere": "expected a device of this machine, got 'nowhere'",
    "run rosenbrock": "required: OPTIMIZER",
    "train mpl digits adam": "Did you mean 'mlp'?",
    "train mlp digit adam": "Did you mean 'digits'?",
    "train mlp digits adam --batch-size 0": "expected batch_size to be a whole number from 1",
    "sweep rosenbrock adam": "required: RANGE",
    "sweep rosenbrock adam lr=1:2:log:2 beta1=0:0.5:linear:2 beta2=0:0.5:linear:2": "expected one or two ranges, got 3",
    "sweep rosenbrock adam lr=1:2:log:2 lr=1:2:log:2": "expected each hyperparameter once",
    "sweep rosenbrock adam lr=1:2:log:2 --hyper lr=1": "expected each hyperparameter once",
    "sweep rosenbrock adam lr=0.1": "expected NAME=LOW:HIGH:SCALE:COUNT such as lr=1e-4:1:log:32, got 'lr=0.1'",
    "sweep rosenbrock adam lr=2:1:log:3": "expected NAME=LOW:HIGH:SCALE:COUNT",
    "sweep rosenbrock adam lr=a:1:log:3": "expected NAME=LOW:HIGH:SCALE:COUNT",
    "sweep rosenbrock adam lr=0:1:log:3": "expected lr to begin above 0 on a log scale",
    "sweep rosenbrock adam lr=0:1:cubic:3": "expected the scale of lr to be linear, log or integer, got 'cubic'",
    "sweep rosenbrock adam rate=0:1:linear:3": "expected a hyperparameter to be one of",
    "sweep rosenbrock adam lr=0.1:1:log:5000 beta1=0:0.9:linear:5000": "at most 1,000,000 runs, got 25,000,000",
    "list optimisers": "Did you mean 'optimizers'?",
    "lits": "invalid choice: 'lits'",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_two(run, words, complaint):
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("workbench: ")
    assert complaint in err


def test_a_folder_that_is_not_ours_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("private")
    code, _, err = run("run", "rosenbrock", "adam", "--steps", 1, "--save", tmp_path / "mine")
    assert code == 2
    assert "free or a saved run" in err
    assert (tmp_path / "mine" / "diary.txt").read_text() == "private"


def test_a_figure_that_cannot_be_written_is_a_mistake(run, tmp_path):
    code, _, err = run("run", "rosenbrock", "adam", "--steps", 1, "--plot", tmp_path / "nowhere" / "figure.html")
    assert code == 2
    assert "nowhere" in err


# ------------------------------------------------------------------------------------------------ as a process


def module(*words, **options):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "workbench", *words], capture_output=True, text=True, check=False, env=env, **options
    )


@pytest.mark.slow
def test_python_m_workbench_is_the_same_command(tmp_path):
    done = module("run", "rosenbrock", "adam", "--steps", "3", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    record = wb.rollout(wb.descent("rosenbrock", "adam"), 3)
    assert json.loads(done.stdout)["runs"][0]["last"]["loss"] == float(record["loss"].values[0, -1])
    wrong = module("run", "rosenbrock", "adm", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    line = f"{sys.executable} -m workbench list --json | head -c 10"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout[:1], done.stderr) == ("[", "")


def test_flow_trains_a_field_and_keeps_it(tmp_path, ask):
    path = tmp_path / "moons.safetensors"
    given = ["flow", "two-moons", "--steps", 6, "--hyper", "lr=1e-3", "width=8", "depth=1", "--batch-size", 16]
    row = ask(*given, "--coupling", "minibatch-ot", "--settle", "--save", path)
    assert (row["steps"], row["status"]) == (6, "ok")
    field = wb.load_field(path)
    assert field.target.name == "two-moons"
    assert field.params.shape == (1, 8 * 3 + 8 + 2 * 8 + 2)


def test_flow_refuses_what_is_not_there(run):
    code, _, err = run("flow", "two-moon", "--steps", 1)
    assert (code, "Did you mean 'two-moons'" in err) == (2, True)
    code, _, err = run("flow", "two-moons", "--hyper", "learning_rat=1")
    assert (code, "expected a hyperparameter to be one of" in err) == (2, True)

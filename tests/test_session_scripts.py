"""What a session leaves: its record is the run it lived, its script makes that run again."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests.session_cases import ALONE, CASES, STOCHASTIC, case, digest, net, rosenbrock, wait_for
from workbench.optimizers.torch_adapter import TorchOptimizer
from workbench.tree import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CASES)
def test_the_record_of_a_session_is_the_run_it_lived(name):
    routine, first, edits = case(name)
    session = wb.Session(routine, hyper=first).step(6).set(**edits[0]).step(9).set(**edits[1]).step(5)
    record, line = session.record(), session.branch()
    assert record.sizes["step"] == 21
    assert record.wb.attr("edits") == [list(edit) for edit in session.edits]
    for k in (0, 5, 6, 7, 15, 20):
        for label, values in routine.observe(line.seek(k).state).items():
            there, here = record[label].isel(step=k).values, np.moveaxis(values.numpy(), routine.run_axis, 0)
            assert np.allclose(there, here, rtol=0 if label == "x" else 1e-5, atol=0), (label, k)
    assert record.wb.status == session.status
    assert session.record(every=7).step.values.tolist() == [0, 7, 14]


def test_a_record_taken_while_it_plays_is_whole():
    session = wb.Session(case("net").routine, probes=["train", "heldout"]).play()
    wait_for(lambda: session.index > 20)
    record = session.record()
    session.pause()
    alone = wb.Session(case("net").routine, probes=["train", "heldout"]).step(record.attrs["steps"]).record()
    assert record.drop_attrs().identical(alone.drop_attrs())


def test_who_watches_a_record_hears_of_every_step_and_can_end_it():
    session, shares = rosenbrock().step(8), []
    assert session.record(watch=shares.append).identical(session.record())
    assert shares == [k / 8 for k in range(8)]

    def enough(share):
        if share > 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        session.record(watch=enough)
    assert session.step().index == 9


# ------------------------------------------------------------------------------------------------- scripts


def script_cases(folder):
    """(session, names its script needs) by name."""
    model, data = net()
    table = folder / "flowers.csv"
    table.write_text("a,b,kind\n" + "\n".join(f"{i % 7},{(i * i) % 5},{'xyz'[i % 3]}" for i in range(30)))
    ravine = {name: wb.descent(STOCHASTIC, method) for name, method in (("a b", "adam"), ("n", torch.optim.NAdam))}
    quadratic = wb.make("quadratic", condition=7.5, dim=3)
    starts = torch.tensor([[0.1, 0.7], [1.0, 1 / 3]])
    fixed = TorchOptimizer(torch.optim.LBFGS, history_size=4)
    digits = wb.training("mlp", "cross_entropy", "digits", "adam", batch_size=64)
    wide = wb.training(
        wb.make("mlp", width=9, depth=2, activation="tanh"), "mse", "diabetes", "sgd", dtype=torch.float64
    )
    own = wb.training(model, nn.CrossEntropyLoss(), data, "momentum", batch_size=8)
    held = wb.training("linear", "cross_entropy", wb.make("breast-cancer", holdout=0.5), "adamw")
    bowl = wb.descent(lambda x: (x**2).sum(0), "adam", schedule=lambda k: 1 / (1 + k))
    return {
        "descent": (rosenbrock(), {}),
        "first values": (rosenbrock(hyper={"lr": 1 / 3, "beta1": 0.7}, start=[0.3, 0.1], seed=7), {}),
        "per run": (rosenbrock(hyper={"lr": torch.tensor([0.1, 1 / 3])}, start=starts), {}),
        "seeds": (wb.Session(wb.descent(STOCHASTIC, "adam"), seed=[3, 5]), {}),
        "float64": (
            wb.Session(wb.descent("beale", "rmsprop", dtype=torch.float64), hyper={"lr": np.full(2, 1 / 7)}),
            {},
        ),
        "settings": (wb.Session(wb.descent(quadratic, "nesterov")), {}),
        "expression": (wb.Session(wb.descent("(1-x)**2 + 100*(y-x**2)**2", "adam")), {}),
        "torch class": (wb.Session(wb.descent("rosenbrock", torch.optim.NAdam)), {}),
        "torch class of the catalogue": (wb.Session(wb.descent("himmelblau", "torch.Adagrad")), {}),
        "torch class with arguments": (wb.Session(wb.descent("rosenbrock", fixed)), {}),
        "training": (wb.Session(digits), {}),
        "training in float64": (wb.Session(wide, hyper={"lr": [0.1, 0.01]}), {}),
        "training on a share": (wb.Session(held), {}),
        "training on a file": (wb.Session(wb.training("linear", "cross_entropy", wb.load_data(table), "adam")), {}),
        "training of your own": (wb.Session(own), {"model": model, "data": data, "loss": nn.CrossEntropyLoss()}),
        "side by side": (wb.Session(wb.side_by_side(ravine), hyper={"a b.lr": 0.2}), {}),
        "your own function": (wb.Session(bowl), {"objective": bowl.objective, "schedule": bowl.schedule}),
    }


def live(session):
    """Steps, edits, a step back with an edit in the past, and more steps."""
    lead = next(name for name in session.routine.hypers if name.endswith("lr"))
    session.step(5).set(**{lead: 0.015625}).step(6).back(4)
    session.set(**{lead: 0.1}).step(4)
    if "batch_size" in session.routine.hypers:
        session.set(batch_size=11).step(3)
    return session.set(**{lead: 1 / 3})


def assert_same_run(made, session):
    assert made.index == session.index
    assert made.edits == session.edits
    assert made.hyper == session.hyper
    assert same_bits(made.state, session.state)


def test_the_script_of_a_session_makes_its_last_state_again_bit_for_bit(tmp_path):
    for name, (session, needs) in script_cases(tmp_path).items():
        live(session)
        script = session.script()
        path = tmp_path / "run.py"
        path.write_text(script)
        made = runpy.run_path(str(path), init_globals=needs)["session"]
        try:
            assert_same_run(made, session)
            assert all(word in script.partition("# Put your own ")[2].partition("here")[0] for word in needs)
            assert ("# Put your own" in script) == bool(needs)
        except AssertionError as error:
            raise AssertionError(f"script of {name!r}:\n{script}") from error


@pytest.mark.slow
def test_a_script_runs_by_itself_and_prints_its_record(tmp_path):
    session = live(
        wb.Session(wb.side_by_side({"adam": wb.descent(STOCHASTIC, "adam"), "n": wb.descent(STOCHASTIC, "sgd")}))
    )
    (tmp_path / "run.py").write_text(session.script())
    code = (
        "import runpy, sys; from session_cases import digest\n"
        "print(digest(runpy.run_path('run.py', run_name='__main__')['session'].state))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=ALONE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "<xarray.Dataset>" in done.stdout
    assert done.stdout.split()[-1] == digest(session.state)

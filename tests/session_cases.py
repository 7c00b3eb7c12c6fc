"""Routines, edits and small things that the tests of sessions share."""

import functools
import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import workbench as wb
from workbench.tree import leaves

STOCHASTIC = next(row.name for row in wb.catalogue("surfaces") if row.make.stochastic)
ALONE = {"PYTHONPATH": os.pathsep.join([str(Path(wb.__path__[0]).parent), str(Path(__file__).parent)]), "PATH": ""}
"""The environment of a fresh interpreter that finds the library and this file."""


class Case(NamedTuple):
    """A routine, its first hyperparameters, and edits that may be made."""

    routine: wb.Routine
    first: dict
    edits: list


def net():
    """A net with batch norm and dropout, and 40 samples with words as classes."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)]
    x = torch.randn(40, 5)
    return nn.Sequential(*layers), (x, x[:, :3].argmax(1), x[:10], x[:10, :3].argmax(1))


def surface_case():
    routine = wb.descent("rosenbrock", "momentum")
    first = {"lr": [1e-3, 5e-4, 0.5]}  # the third run diverges
    return Case(routine, first, [{"lr": 2e-3}, {"lr": [1e-4, 1e-3, 0.2]}, {"momentum": 0.5}, {"weight_decay": 0.01}])


def noisy_case():
    edits = [{"lr": 0.1}, {"noise": 3.0}, {"beta1": 0.5, "lr": 0.02}, {"noise": 0.0}]
    return Case(wb.descent(STOCHASTIC, "adam"), {"lr": 0.05}, edits)


def net_case():
    model, data = net()
    routine = wb.training(model, "cross_entropy", data, "adam", batch_size=8)
    return Case(routine, {}, [{"batch_size": 3}, {"batch_size": 32, "lr": 0.01}, {"lr": 0.1}, {"beta1": 0.0}])


def nets_case():
    model, data = net()
    routine = wb.training(model, "cross_entropy", data, "momentum", batch_size=16)
    return Case(routine, {"lr": [0.1, 0.5]}, [{"batch_size": 5}, {"lr": [0.3, 0.01]}, {"momentum": [0.0, 0.9]}])


def unmasking_case():
    routine = wb.unmasking("ising-chain", "remdm-conf", steps=1000, samples=40)
    return Case(
        routine, {"error": [0.0, 2.0]}, [{"steps": 2000}, {"error": [1.0, 0.5]}, {"steps": 800}, {"error": 3.0}]
    )


def together_case():
    parts = {"adam": "adam", "sgd": "sgd", "n.adam": torch.optim.NAdam}
    routine = wb.side_by_side({label: wb.descent(STOCHASTIC, method) for label, method in parts.items()})
    return Case(routine, {"adam.lr": 0.1}, [{"adam.lr": 0.3}, {"sgd.lr": 0.01}, {"n.adam.lr": 0.02, "adam.beta1": 0.5}])


CASES = {name.removesuffix("_case"): make for name, make in list(globals().items()) if name.endswith("_case")}


@functools.cache
def case(name):
    return CASES[name]()


def rosenbrock(**options):
    return wb.Session(wb.descent("rosenbrock", "adam"), **options)


def wait_for(condition, seconds=30):
    """Wait until a condition holds; fail loudly when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def digest(state):
    raw = hashlib.sha256()
    for leaf in leaves(state):
        raw.update(leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return raw.hexdigest()

"""Gradient Workbench: watch, steer and rewind anything that gradients move.

import workbench as wb
record = wb.rollout(wb.descent("rosenbrock", "adam"), 500, hyper={"lr": [1e-3, 1e-2, 1e-1]})
"""

from workbench.catalogue import catalogue, make
from workbench.descent import descent
from workbench.optimizers.base import Optimizer
from workbench.problems.data import Data, load_data
from workbench.problems.objective import Objective
from workbench.record import open_record as open
from workbench.record import save
from workbench.rollout import ahead, rollout
from workbench.routine import Hyper, Key, Probe, Routine, Variable
from workbench.session import Edit, Session
from workbench.together import side_by_side
from workbench.training import training

__version__ = "0.1.0"

__all__ = [
    "Data",
    "Edit",
    "Hyper",
    "Key",
    "Objective",
    "Optimizer",
    "Probe",
    "Routine",
    "Session",
    "Variable",
    "ahead",
    "catalogue",
    "descent",
    "load_data",
    "make",
    "open",
    "rollout",
    "save",
    "side_by_side",
    "training",
]

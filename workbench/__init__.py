"""Gradient Workbench: watch, steer and rewind anything that gradients move.

import workbench as wb
record = wb.rollout(wb.descent("rosenbrock", "adam"), 500, hyper={"lr": [1e-3, 1e-2, 1e-1]})
"""

from workbench import landscapes
from workbench.catalogue import catalogue, make
from workbench.descent import descent
from workbench.flows import measures
from workbench.flows.fields import Field, exact_field
from workbench.flows.store import load_field, save_field
from workbench.flows.trained import trained_field
from workbench.flows.training import flow_training
from workbench.optimizers.base import Optimizer
from workbench.problems.data import Data, load_data
from workbench.problems.densities import Density, Mixture, from_points
from workbench.problems.objective import Objective
from workbench.record import open_record as open
from workbench.record import save
from workbench.rollout import ahead, rollout
from workbench.routine import Hyper, Key, Probe, Routine, Variable
from workbench.samplers.base import Solver
from workbench.samplers.sampling import sampling
from workbench.samplers.unmasking import unmasking
from workbench.session import Edit, Session
from workbench.together import side_by_side
from workbench.training import training
from workbench.watch import watch

__version__ = "0.1.0"

__all__ = [
    "Data",
    "Density",
    "Edit",
    "Field",
    "Hyper",
    "Key",
    "Mixture",
    "Objective",
    "Optimizer",
    "Probe",
    "Routine",
    "Session",
    "Solver",
    "Variable",
    "ahead",
    "catalogue",
    "descent",
    "exact_field",
    "flow_training",
    "from_points",
    "landscapes",
    "load_data",
    "load_field",
    "make",
    "measures",
    "open",
    "rollout",
    "sampling",
    "save",
    "save_field",
    "side_by_side",
    "trained_field",
    "training",
    "unmasking",
    "watch",
]

"""Problems: what is minimised, sampled or transported, with the facts that mathematics gives about them."""

from workbench.problems import expression
from workbench.problems.objective import Function, Objective

__all__ = ["Function", "Objective", "expression"]

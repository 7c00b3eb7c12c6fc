"""What exists: problems and methods, collected from their declarations by walking the packages that hold them."""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

from workbench.routine import Declared, unknown

NAME = re.compile(r"[A-Za-z]\w*(-\w+)*")
COORDINATES = re.compile(r"([xy]\d?)(-[xy]\d?)*")
PACKAGES = ("workbench.problems", "workbench.optimizers", "workbench.flows", "workbench.samplers")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the catalogue."""

    name: str
    title: str
    family: str
    kind: str
    source: str
    ledger_id: str
    hyper: tuple[dict, ...]
    evidence: str
    doc: str
    host_sync: bool
    make: type[Declared] = dataclasses.field(repr=False)

    def describe(self) -> dict:
        """The row as plain values, as `workbench list --json` prints it."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "make"}
        row["hyperparameters"] = list(row.pop("hyper"))
        return row


def _declarations(package: str) -> list[type[Declared]]:
    """The public declarations of a package: classes with a name and evidence, in the order they are written."""
    found: list[type[Declared]] = []
    root = importlib.import_module(package)
    for module in pkgutil.iter_modules(root.__path__, package + "."):
        for value in vars(importlib.import_module(module.name)).values():
            here = inspect.isclass(value) and value.__module__ == module.name and issubclass(value, Declared)
            if here and value.evidence and "name" in vars(value):
                found.append(value)
    return found


@functools.cache
def _entries() -> tuple[Entry, ...]:
    return tuple(_entry(cls) for package in PACKAGES for cls in _declarations(package))


def _entry(cls: type[Declared]) -> Entry:
    hypers = tuple(hyper.describe() for hyper in cls.hypers.values())
    doc = inspect.cleandoc(cls.__doc__ or "")
    row = (cls.name, cls.title, cls.family, cls.kind, cls.source, cls.ledger, hypers, cls.evidence, doc, cls.host_sync)
    return Entry(*row, cls)


def catalogue(family: str | None = None) -> list[Entry]:
    """Everything that exists, or one family of it ("optimizers", "surfaces", …).

    Raises:
        ValueError: on a family that does not exist, naming those that do.
    """
    rows = list(_entries())
    families = {row.family for row in rows}
    if family is not None and family not in families:
        raise unknown("a family", family, families)
    return [row for row in rows if family in (None, row.family)]


def make(name: str, **settings: Any) -> Any:
    """A problem or method of the catalogue with settings of its own: `wb.make("quadratic", condition=100)`.

    Raises:
        ValueError: on an unknown name or setting.
    """
    rows = {row.name: row for row in _entries()}
    if name not in rows:
        raise unknown("a name of the catalogue", name, rows)
    return rows[name].make(**settings)


def find(family: str, what: str, name: str) -> Entry:
    """The row of a name in a family; `what` is how an error calls it."""
    rows = {row.name: row for row in catalogue(family)}
    if name not in rows:
        raise unknown(what, name, rows)
    return rows[name]


def find_objective(objective: Any) -> Any:
    """An objective from a catalogue name, an expression, or an `Objective` itself."""
    from workbench.problems.objective import Objective

    if isinstance(objective, Objective):
        return objective
    if inspect.isclass(objective) and issubclass(objective, Objective):
        return objective()
    rows = {row.name: row for row in catalogue("surfaces")}
    if objective in rows:
        return rows[objective].make()
    if isinstance(objective, str) and (NAME.fullmatch(objective) is None or COORDINATES.fullmatch(objective)):
        from workbench.problems.expression import parse

        return parse(objective)
    raise unknown("an objective", objective, rows)


def find_optimizer(optimizer: Any) -> Any:
    """An optimizer from a catalogue name, an `Optimizer` (class or instance), or a `torch.optim.Optimizer` subclass."""
    import torch

    from workbench.optimizers.base import Optimizer

    if isinstance(optimizer, Optimizer):
        return optimizer
    if inspect.isclass(optimizer) and issubclass(optimizer, Optimizer):
        return optimizer()
    if inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer):
        from workbench.optimizers.torch_adapter import TorchOptimizer

        return TorchOptimizer(optimizer)
    rows = {row.name: row for row in catalogue("optimizers")}
    if optimizer in rows:
        return rows[optimizer].make()
    raise unknown("an optimizer", optimizer, rows)


def find_declared(family: str, what: str, given: Any) -> Any:
    """A problem or method of a family from its catalogue name, itself, or its class.

    Raises:
        ValueError: on a name that the family does not have; `what` is how the error calls it.
    """
    if isinstance(given, Declared) and given.family == family:
        return given
    if inspect.isclass(given) and issubclass(given, Declared) and given.family == family:
        return given()
    rows = {row.name: row for row in catalogue(family)}
    if not isinstance(given, str) or given not in rows:
        raise unknown(what, given, rows)
    return rows[given].make()

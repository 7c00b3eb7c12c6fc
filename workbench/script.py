"""A run as plain Python: the shortest script that makes it again, edits included."""

import ast
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench.record import plain, versions
from workbench.routine import Routine
from workbench.timeline import Edit


def write_script(
    routine: Routine, seed: Any, start: Any, hyper: Mapping[str, Any], edits: Sequence[Edit], end: int
) -> str:
    """The script of a session that stands at step `end`; it leaves its own `session` at the same step, same bits.

    On a CPU it asks for the number of threads that there are here, because the last bit of a sum depends on it.
    """
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    setup, recipe = routine.setup(), routine.recipe()
    needed = _names(f"{setup}\n{recipe}")
    missing = sorted(needed - _defined(setup) - {"wb", "torch"})
    if missing:
        setup = f"# Put your own {' and '.join(missing)} here, made as before.\n{setup}"
    cpu = torch.device(routine.device).type == "cpu"
    threads = [f"torch.set_num_threads({torch.get_num_threads()})", ""] if cpu else []
    lines = [
        '"""Written by the Gradient Workbench; makes the run again, bit for bit with the same versions and device.',
        "",
        f"{made}; device {routine.device}.",
        '"""',
        "",
        *(["import torch"] if "torch" in needed or threads else []),
        "import workbench as wb",
        "",
        *threads,
        *([setup.strip(), ""] if setup.strip() else []),
        *session_lines("routine", "session", routine, seed, start, hyper, edits, end),
        "",
        'if __name__ == "__main__":',
        "    print(session.record())",
        "",
    ]
    return "\n".join(lines)


def session_lines(
    first: str, name: str, routine: Routine, seed: Any, start: Any, hyper: Mapping, edits: Sequence[Edit], end: int
) -> list[str]:
    """Lines that make a routine, called `first`, and a session of it, called `name`, that stands at step `end`."""
    return [
        f"{first} = {routine.recipe()}",
        f"{name} = wb.Session({first}{_given(seed, start, hyper, routine)})",
        *_moves(name, edits, end),
    ]


def _names(code: str) -> set[str]:
    """Names that Python code needs defined."""
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def _defined(setup: str) -> set[str]:
    """Names that lines of Python import or make, or ask for in a comment of their own."""
    nodes = list(ast.walk(ast.parse(setup)))
    aliases = (node.names for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
    imported = {(alias.asname or alias.name).partition(".")[0] for names in aliases for alias in names}
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return imported | made | {word for line in setup.splitlines() if line.startswith("#") for word in line.split()}


def _given(seed: Any, start: Any, hyper: Mapping[str, Any], routine: Routine) -> str:
    parts = [f", seed={plain(seed)!r}"]
    if start is not None:
        parts.append(f", start={plain(start)!r}")
    if hyper:
        parts.append(f", hyper={plain(hyper)!r}")
    if routine.device.type != "cpu":
        parts.append(f", device={str(routine.device)!r}")
    return "".join(parts)


def _moves(session: str, edits: Sequence[Edit], end: int) -> list[str]:
    lines, at = [], 0
    for step in sorted({edit.step for edit in edits if edit.step <= end}):
        if step > at:
            lines.append(f"{session}.step({step - at})")
        at = step
        turned = {edit.target: plain(edit.value) for edit in edits if edit.step == step}
        if all(name.isidentifier() and not keyword.iskeyword(name) for name in turned):
            lines.append(f"{session}.set({', '.join(f'{name}={value!r}' for name, value in turned.items())})")
        else:
            lines.append(f"{session}.set(**{turned!r})")
    if end > at:
        lines.append(f"{session}.step({end - at})")
    return lines

"""From training to sampling: the field that a session has learned, which knows how to be trained again."""

from typing import Any

from workbench.flows.training import FlowTraining, NetField
from workbench.routine import whole


def trained_field(session: Any, run: int = 0) -> NetField:
    """The field that a session of `wb.flow_training` has learned up to where it stands; later steps do not change it.

    Scripts of what is sampled through it train it first, with the session's edits, to the same bits.

    Args:
        session: a `wb.Session` of a flow training.
        run: which of its runs.

    Raises:
        ValueError: on a session of something else, or a run that it does not have.
    """
    routine = getattr(session, "routine", None)
    if not isinstance(routine, FlowTraining):
        got = type(session if routine is None else routine).__name__
        raise ValueError(f"expected a session of wb.flow_training, got {got}")
    index, state = session.now
    if whole("run", run) >= routine.runs(state):
        raise ValueError(f"expected run to be one of {routine.runs(state)} runs, from 0, got {run}")
    lines, chosen = session.lines("training", "learned", end=index), f", run={run}" if run else ""
    return routine.field(state, run, origin=f"{lines}\nwb.trained_field(learned{chosen})")

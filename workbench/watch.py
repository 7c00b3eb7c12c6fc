"""Watching a training loop that is not ours: any module, any `torch.optim.Optimizer`, the loop unchanged.

    with wb.watch(model, optimizer, loss=criterion, data=(x, y), probes=["sharpness"], path="run.zarr") as run:
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()
    run.record()

The loop computes the same bits as without: watching only reads, and probes work on a copy of the model.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from workbench.record import place
from workbench.routine import unknown
from workbench.watching.probes import PROBES, Probe
from workbench.watching.run import Watch

POINTS_ROOM = 64 << 20


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: str | nn.Module | Callable | None = None,
    data: Any = None,
    probes: Sequence[str | Probe] = (),
    path: str | os.PathLike | None = None,
    every: int = 1,
    budget: float | None = 0.2,
    flush: float = 5.0,
    room: float = POINTS_ROOM,
) -> Watch:
    """Watch your own training loop: losses, rates, norms, the path of the weights, and probes, within a budget of time.

    Recorded at every step: the loss and the learning rate of each group. Norms of gradient, weights and update, the
    weights themselves and probes are taken as often as the budget lets them: what costs much comes seldom. Nothing is
    brought to the host until it is looked at or written.

    Args:
        model: any module. Its parameters are those it has when the watch is made; later ones are not seen.
        optimizer: any `torch.optim.Optimizer`; closures, several groups, groups added later and `GradScaler` are fine.
        loss: the loss module that the loop calls: what it returned between two steps, averaged, is the step's loss.
            Or loss(outputs, targets) or a name, for probes only; then record it by `run.log(loss=value)`. A closure's
            first value is recorded anyhow.
        data: the samples that probes look at, (x, y), or as `wb.training` takes it. Few are quick.
        probes: names ("loss", "sharpness", "trace"; norms are always taken) or functions
            probe(landscape, x) -> {name: number}, where x is the present weights, (1, parameters).
        path: where the record is written: whole and atomically, every `flush` seconds and at the end. After the
            process is killed it opens with everything up to the last time. Each time costs what the whole record
            costs, so as the record grows this comes seldom: writing takes an eighth of the budget.
        every: take nothing but loss and rates more often than every so many steps.
        budget: the share of the time that all this may take, 0 to 1; None: no bound, everything every `every` steps.
            Times are the host's: on a GPU, of launching. A loop whose steps take under a millisecond loses more than
            its `share` says, for what measuring puts out of the processor's cache (see the benchmark watched-loop).
        flush: seconds.
        room: bytes for weights kept. When they are full every second point goes, so the path stays evenly spaced.

    Raises:
        ValueError: on an unknown probe, a share or a cadence out of range, a model with nothing to train, or a path
            that holds something else than a record.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"expected a model with parameters to train, got {type(model).__name__} with none")
    if budget is not None and not 0 < budget <= 1:
        raise ValueError(f"expected budget, a share of the time above 0 and up to 1, or None, got {budget}")
    if every < 1 or flush <= 0 or room <= 0:
        raise ValueError(f"expected every, flush and room above zero, got {every}, {flush}, {room}")
    wanted: dict[str, Probe] = {}
    for probe in probes:
        if isinstance(probe, str) and probe not in ("norms", *PROBES):
            raise unknown("a probe", probe, ("norms", *PROBES))
        if probe != "norms":
            name = probe if isinstance(probe, str) else getattr(probe, "__name__", type(probe).__name__)
            wanted[name] = PROBES[probe] if isinstance(probe, str) else probe
    if wanted and (loss is None or data is None):
        raise ValueError(f"expected loss= and data= for the probes {', '.join(wanted)}, got one of them missing")
    if path is not None:
        place(path)  # said before the loop starts, not at its end
    given = {"loss": loss, "data": data, "probes": wanted, "path": path, "every": every}
    return Watch(model, optimizer, {**given, "budget": budget, "flush": flush, "room": room})

"""Dropout stability: what the loss loses when half of the hidden units go, and the path between networks it opens."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.flows.measures.estimate import Estimate, mean_of
from workbench.landscapes.connections import Path
from workbench.landscapes.landscape import Landscape
from workbench.landscapes.progress import Watch, within
from workbench.landscapes.units import Spec, sizes, unit_spec
from workbench.routine import Key, whole


def drop(landscape: Landscape, x: Tensor, kept: Mapping[str, Tensor], spec: Spec | None = None) -> Tensor:
    """The network without some of its hidden units: kept ones send on n/kept times what they did, the others nothing.

    Only outgoing weights change (those with the units on their second axis), so that what a unit is stays readable.

    Args:
        x: points, (parameters,) or (runs, parameters).
        kept: True for the units that stay, (units,), for each hidden layer to drop from.
        spec: as in `unit_spec`, which derives it.

    Raises:
        ValueError: when a layer has another number of units, or none is kept.
    """
    made = unit_spec(landscape, spec)
    known = sizes(landscape, made)
    for name, mask in kept.items():
        if mask.shape != (known.get(name),) or not bool(mask.any()):
            there = ", ".join(f"{layer} ({size} units)" for layer, size in known.items())
            raise ValueError(f"expected masks of {there}, some unit kept, got {tuple(mask.shape)} for {name!r}")
    return _dropped(landscape, x, kept, made)


def dropout_stability(
    landscape: Landscape,
    x: Tensor,
    *,
    keep: float = 0.5,
    draws: int = 16,
    key: Key | None = None,
    spec: Spec | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """L(x without some units) - L(x): what the loss changes by when a share of every hidden layer is kept, rescaled.

    The mean over random choices of the units to keep; its standard error is over them, the samples held.

    Args:
        x: one point, (parameters,).
        keep: share of the units of each hidden layer that stay (rounded up), above 0, at most 1.
        draws: choices of units, at least 1; with one there is no standard error.
        key: draws them.
        spec: as in `unit_spec`, which derives it.
        watch: told the share of draws done, after each; what it raises ends the work.

    Source: Shevchenko & Mondelli 2020, arXiv:1912.10095: there for one fixed half, in deep networks one layer after the
    other. Their claim, that the change falls with width, is for output weights of size 1/width (mean-field scaling).
    Measured on digits, one hidden layer of 32 to 2,048 units: it falls about as 1/width in that scaling, at a constant
    training loss; also with the usual initialisation, there together with the training loss.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"expected keep to be a share above 0 and at most 1, got {keep!r}")
    made, x, key, watch = unit_spec(landscape, spec), landscape.point(x), key or Key(0), within(watch)
    known, changes = sizes(landscape, made), []
    with torch.no_grad():
        before = landscape(x[None])
        for draw in range(whole("draws", draws, 1)):
            kept = {name: _some(key.stream(name).at(draw), size, keep, x) for name, size in known.items()}
            changes.append(landscape(_dropped(landscape, x[None], kept, made)) - before)
            watch((draw + 1) / draws)
    return mean_of(torch.cat(changes), f"mean over {draws} random choices of {keep:g} of the units of every layer")


def dropout_path(
    landscape: Landscape, a: Tensor, b: Tensor, *, key: Key | None = None, spec: Spec | None = None
) -> Path:
    """The path from a to b over networks with half of their units: for one hidden layer.

    Six corners, joined by straight pieces: a; a without half H of its units; b's units written where nothing leaves H;
    now heard instead of a's; b's other units written where a's were; and b. Every piece changes either the output
    weights alone, in which the network is linear, or units that nothing leaves. So for a loss convex in the outputs
    (cross-entropy, squared error) the loss on the path is at most the larger of L(a), L(b), L(a without H) and
    L(b with H alone): two networks that are dropout stable are joined by a low path. Narrow ones are not: on digits in
    mean-field scaling the path is above the straight one's barrier at width 32, below it from 128 on.

    Args:
        a, b: points, (parameters,).
        key: chooses H, the half (rounded down) that a loses and b keeps.
        spec: as in `unit_spec`, which derives it.

    Returns:
        A polygon of 6 controls; φ(0) = a and φ(1) = b exactly.

    Raises:
        ValueError: for other than one hidden layer, or a layer of one unit.

    Source: Shevchenko & Mondelli 2020, arXiv:1912.10095, after Kuditipudi et al. 2019, arXiv:1906.06247; the bound is
    derived as said above. Here a and b keep different halves, which saves the step in which halves change places.
    """
    made, a, b = unit_spec(landscape, spec), landscape.point(a), landscape.point(b)
    known = sizes(landscape, made)
    if len(known) != 1 or min(known.values()) < 2:
        raise ValueError(f"expected one hidden layer of 2 units or more, got units {known}; train a network of depth 1")
    ((name, size),) = known.items()
    of_a = {name: _some(key or Key(0), size, 0.5, a)}
    of_b = {name: ~of_a[name]}
    halves = [_dropped(landscape, a, of_a, made), _dropped(landscape, b, of_b, made)]
    ours, written = _incoming(landscape, made, of_a, a), _incoming(landscape, made, of_b, a)
    corners = [a, halves[0], torch.where(written, b, halves[0]), torch.where(ours, a, halves[1]), halves[1], b]
    return Path(torch.stack(corners))


def _some(key: Key, size: int, keep: float, like: Tensor) -> Tensor:
    """A random choice of a share of units, rounded up, as a mask."""
    count = math.ceil(round(keep * size, 9))
    return (key.permutation(size) < count).to(like.device)


def _dropped(landscape: Landscape, x: Tensor, kept: Mapping[str, Tensor], spec: Spec) -> Tensor:
    scales = {name: mask.to(x) * (len(mask) / mask.sum()) for name, mask in kept.items()}
    parts = []
    for name, block in zip(landscape.names, landscape.space.blocks(x), strict=True):
        for axis, order in enumerate(spec[name]):
            if axis and order is not None and order in scales:
                block = block * _spread(scales[order], axis, block, len(spec[name]))
        parts.append(block.reshape(*x.shape[:-1], -1))
    return torch.cat(parts, -1)


def _incoming(landscape: Landscape, spec: Spec, chosen: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Which parameters lead into the chosen units, (parameters,): units are rows of them."""
    parts = []
    for name, block in zip(landscape.names, landscape.space.blocks(x), strict=True):
        mask = torch.zeros_like(block, dtype=torch.bool)
        order = spec[name][0] if spec[name] else None
        if order is not None and order in chosen:
            mask = mask | _spread(chosen[order], 0, block, len(spec[name]))
        parts.append(mask.flatten())
    return torch.cat(parts)


def _spread(units: Tensor, axis: int, block: Tensor, axes: int) -> Tensor:
    """One number for each unit, along an axis of a block (of `axes` axes) that is units × positions."""
    length = block.shape[axis - axes]
    along = units.repeat_interleave(length // len(units))
    return along.reshape(-1, *[1] * (axes - axis - 1))

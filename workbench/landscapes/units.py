"""Hidden units in another order compute the same function: which axes of which parameters go by which order.

A specification says for each block of parameters which order each axis goes by: {"weight 1": ("units 1", None)} means
that rows are the units of hidden layer 1 and columns are nobody's to reorder.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workbench.landscapes.landscape import Landscape, ModelLandscape
from workbench.problems.networks import ACTIVATIONS, MLP, Module
from workbench.routine import Key

Spec = Mapping[str, tuple[str | None, ...]]
Permutations = Mapping[str, Tensor]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
UNIT_BY_UNIT = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Identity, nn.Dropout, nn.Flatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
"""Modules that treat every unit (or channel) alike and on its own."""


def unit_spec(landscape: Landscape, spec: Spec | None = None) -> dict[str, tuple[str | None, ...]]:
    """Which axis of which block goes by which order of hidden units: derived, or the one given, tried on the loss.

    Derived for the workbench's MLP and for `nn.Sequential`s (nested ones too) of Linear and Conv layers with what acts
    unit by unit between them: activations, pooling, dropout, Flatten. An axis may be a multiple of its order: after
    Flatten, the columns of a Linear layer are channels × positions. Either specification is tried once: with all orders
    reversed at a random point the loss must be the same.

    Args:
        landscape: a loss over the parameters of a network.
        spec: by block name, a name of an order (or None) for each axis; blocks left out have no units.

    Raises:
        ValueError: when there is no order to derive, axes disagree in size, or reordering changes the loss.
    """
    shapes = dict(zip(landscape.names, landscape.space.shapes, strict=True))
    given = _derived(landscape) if spec is None else spec
    made = {name: tuple(given.get(name, (None,) * len(shape))) for name, shape in shapes.items()}
    for name in given:
        if name not in shapes:
            raise ValueError(f"expected blocks of this landscape in the spec ({', '.join(shapes)}), got {name!r}")
    for name, axes in made.items():
        if len(axes) != len(shapes[name]):
            raise ValueError(f"expected {len(shapes[name])} axes in the spec of {name!r}, got {axes}")
    reverse = {name: torch.arange(size - 1, -1, -1) for name, size in sizes(landscape, made).items()}
    _try(landscape, made, reverse)
    return made


def permute(landscape: Landscape, x: Tensor, permutations: Permutations, spec: Spec | None = None) -> Tensor:
    """The same network with its hidden units in another order: new unit j is old unit permutations[name][j].

    Args:
        x: points, (parameters,) or (runs, parameters).
        permutations: an order for each name in the spec; names left out keep theirs.
        spec: as in `unit_spec`, which derives it.

    Returns:
        Points shaped like x, with the same outputs: reordering only changes the order in which numbers are summed.

    Raises:
        ValueError: on an order that is none, or of another size.
    """
    made = unit_spec(landscape, spec)
    known = sizes(landscape, made)
    for name, order in permutations.items():
        if name not in known or sorted(order.tolist()) != list(range(known[name])):
            there = ", ".join(f"{key} ({size} units)" for key, size in known.items())
            raise ValueError(f"expected an order of each unit once, of {there}; got another one for {name!r}")
    return permuted(landscape, made, x, permutations)


def reorder(block: Tensor, axes: tuple[str | None, ...], orders: Permutations) -> Tensor:
    """A block, with runs before its own axes or not, in other orders; an axis may be units × positions."""
    for axis, name in enumerate(axes, block.ndim - len(axes)):
        if name is not None and name in orders:
            order = orders[name].to(block.device)
            grouped = block.unflatten(axis, (len(order), -1))
            block = grouped.index_select(axis, order).flatten(axis, axis + 1)
    return block


def permuted(landscape: Landscape, spec: Spec, x: Tensor, orders: Permutations) -> Tensor:
    """`permute` by a spec that is known to fit."""
    parts = zip(landscape.names, landscape.space.blocks(x), strict=True)
    return torch.cat([reorder(part, spec[name], orders).reshape(*x.shape[:-1], -1) for name, part in parts], -1)


def sizes(landscape: Landscape, spec: Spec) -> dict[str, int]:
    """Units of each order: the shortest axis that goes by it, which the others must be multiples of."""
    found: dict[str, list[int]] = {}
    for name, shape in zip(landscape.names, landscape.space.shapes, strict=True):
        for axis, order in enumerate(spec[name]):
            if order is not None:
                found.setdefault(order, []).append(shape[axis])
    if not found:
        raise ValueError("expected hidden units to reorder, got a network without any; train one with a hidden layer")
    for order, lengths in found.items():
        if any(length % min(lengths) for length in lengths):
            raise ValueError(f"expected axes of one size for {order!r}, or multiples of it, got {lengths}")
    return {order: min(lengths) for order, lengths in found.items()}


def _try(landscape: Landscape, spec: Spec, orders: Permutations) -> None:
    """Refuse a spec that is not the network's: at a random point, with weights of the size that layers begin with."""
    parts = []
    for i, shape in enumerate(landscape.space.shapes):
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        parts.append(scale * Key(0).stream("spec").at(i).normal((math.prod(shape),), like=landscape.start))
    x = torch.cat(parts)
    with torch.no_grad():
        before, after = (landscape(point[None]).item() for point in (x, permuted(landscape, spec, x, orders)))
    if not abs(before - after) <= torch.finfo(x.dtype).eps ** 0.7 * (1 + abs(before)):
        raise ValueError(
            f"expected a spec of this network, whose loss stays the same when units are reordered by it, "
            f"got {before:.6g} before and {after:.6g} after; check which axes of which blocks share their units"
        )


def _derived(landscape: Landscape) -> dict[str, tuple[str | None, ...]]:
    """The spec of a chain of layers: rows of layer i and columns of layer i + 1 are the units of hidden layer i."""
    spec: dict[str, tuple[str | None, ...]] = {}
    layers = _layers(landscape)
    for i, names in enumerate(layers, 1):
        above, below = (f"units {i}" if i < len(layers) else None, f"units {i - 1}" if i > 1 else None)
        for name in names:
            axes = len(landscape.space.shapes[landscape.names.index(name)])
            spec[name] = (above,) if axes == 1 else (above, below, *[None] * (axes - 2))
    return spec


def _layers(landscape: Landscape) -> list[list[str]]:
    """The names of the blocks of each layer of a chain, from the input to the output."""
    model = landscape.model if isinstance(landscape, ModelLandscape) else None
    if isinstance(model, MLP):
        return [list(landscape.names[i : i + 2]) for i in range(0, len(landscape.names), 2)]
    if not isinstance(model, Module):
        raise ValueError(
            "expected a network whose units can be found, or a spec that says which axes they are; got "
            f"{landscape.title}"
        )
    found = []
    for path, part in _chain(model.module):
        if isinstance(part, LAYERS):
            found.append([f"{path}.{name}".lstrip(".") for name, _ in part.named_parameters()])
    missing = set(landscape.names) ^ {name for names in found for name in names}
    if missing:
        raise ValueError(
            f"expected every parameter in its own layer and trained, got {', '.join(sorted(missing))} "
            "shared or frozen; give a spec that says which axes go by which order"
        )
    return found


def _chain(module: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """The modules of nested `nn.Sequential`s in the order of their calls, with their names."""
    if isinstance(module, nn.Sequential):
        return [found for name, part in module.named_children() for found in _chain(part, f"{path}.{name}".lstrip("."))]
    fits = isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1
    if not fits and not (isinstance(module, UNIT_BY_UNIT) and not list(module.parameters())):
        raise ValueError(
            "expected nn.Sequential of Linear and Conv layers (without groups) with activations, pooling, dropout or "
            f"Flatten between, got {path or 'a module'!r} of {type(module).__name__}; give a spec by hand: for each "
            "block of parameters, which order each axis goes by"
        )
    return [(path, module)]


def activations(landscape: Any, units: Mapping[str, int], x: Tensor) -> dict[str, Tensor]:
    """What the next layer reads of each hidden layer, (units, samples × positions)."""
    read: list[Tensor] = []
    if isinstance(landscape.model, MLP):
        squash, h = ACTIVATIONS[landscape.model.activation], landscape.inputs
        blocks = landscape.space.blocks(x)
        for i in range(0, len(blocks) - 2, 2):
            h = squash(nn.functional.linear(h, blocks[i], blocks[i + 1]))
            read.append(h)
    else:
        own = Module(landscape.model.module)
        for _, part in [found for found in _chain(own.module) if isinstance(found[1], LAYERS)][1:]:
            part.register_forward_pre_hook(lambda part, inputs: read.append(_units_second(part, inputs[0])))
        own(x[None], landscape.inputs, landscape.buffers, training=False)
    pairs = zip(units.items(), read, strict=True)
    return {name: h.unflatten(1, (size, -1)).transpose(0, 1).reshape(size, -1) for (name, size), h in pairs}


def _units_second(reader: nn.Module, h: Tensor) -> Tensor:
    return h.movedim(-1, 1) if isinstance(reader, nn.Linear) else h

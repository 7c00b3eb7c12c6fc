"""Aligning networks: orders of one network's hidden units that bring them to another's."""

import math

import torch
from torch import Tensor

from workbench.landscapes.gradients import minibatch_gradient
from workbench.landscapes.landscape import Landscape
from workbench.landscapes.progress import Watch, within
from workbench.landscapes.units import Permutations, Spec, activations, permuted, reorder, sizes, unit_spec
from workbench.routine import Key, whole

SWEEPS = 50
"""Over the layers, at most."""


def weight_matching(
    landscape: Landscape,
    a: Tensor,
    b: Tensor,
    *,
    spec: Spec | None = None,
    key: Key | None = None,
    sweeps: int = SWEEPS,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """Orders π of the hidden units of b that bring its parameters near those of a: argmax_π ⟨a, π(b)⟩.

    That is argmin ‖a - π(b)‖². By coordinate descent: with the other layers' orders held, the best order of one layer
    is a linear assignment over the products of all parameters that touch its units. Sweeps over the layers in keyed
    random order, until one changes nothing. With one hidden layer it is the exact optimum, else a local one.

    Args:
        a, b: points, (parameters,).
        spec: as in `unit_spec`, which derives it.
        key: draws the order of the layers in each sweep.
        sweeps: at most so many, at least 1.
        watch: told the share of sweeps done, before each and at the end (1); what it raises ends the work.

    Returns:
        {name: order (units,)}, to give to `permute`.

    Source: Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836, algorithm 1 (their objective follows from expanding
    the squared distance, as reordering keeps the norm of b).
    Measured, two MLPs trained on digits, one to three hidden layers: the barrier of the straight line falls to 1/5 of
    what it is without matching or less, and falls with width (32 to 512 units); it does not vanish: with one hidden
    layer of 512 units it is 0.014 ± 0.001, as large as the training loss of either network.
    """
    a, b, made = landscape.point(a), landscape.point(b), unit_spec(landscape, spec)
    return _ascend(landscape, made, a, b, _as_they_are(landscape, made), key or Key(0), sweeps, within(watch))


def straight_through_matching(
    landscape: Landscape,
    a: Tensor,
    b: Tensor,
    *,
    spec: Spec | None = None,
    steps: int = 200,
    lr: float = 0.1,
    momentum: float = 0.9,
    batch_size: int = 128,
    seed: int = 0,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """Orders π of the hidden units of b that make the midpoint good: argmin_π L((a + π(b)) / 2).

    A point θ that begins at a chooses them: π maximises ⟨θ, π(b)⟩ as in `weight_matching`, begun at the π before. θ
    goes down ∇L((a + π(b)) / 2) / 2, as if π(b) were θ (straight through the choice), by SGD with momentum. Of all π
    met, the first of which is that of `weight_matching`, the one with the lowest loss over all samples is returned: at
    the midpoint it is never worse than that one.

    Args:
        a, b: points, (parameters,).
        spec: as in `unit_spec`, which derives it.
        steps: of θ; 0 is `weight_matching`.
        lr, momentum: as of `torch.optim.SGD`.
        batch_size: samples a step; all of them when there are fewer.
        seed: of the minibatches, and of the order of the layers in sweeps.
        watch: told the share of steps done, after each; what it raises ends the work.

    Returns:
        {name: order (units,)}, to give to `permute`.

    Source: Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836, section 3.3, and the rule of their public code, which
    keeps the π of the best minibatch instead.
    Measured, twelve pairs of MLPs trained on digits, two hidden layers of 32: the barrier is 0.69 ± 0.06 of that after
    `weight_matching`, between 0.46 and 0.98.
    """
    a, b, made = landscape.point(a), landscape.point(b), unit_spec(landscape, spec)
    key, size, watch = Key(seed), whole("batch_size", batch_size, 1), within(watch)
    theta, orders, lowest, middle = a.clone(), _as_they_are(landscape, made), math.inf, a
    best, optimizer = orders, torch.optim.SGD([theta], lr=lr, momentum=momentum)
    for k in range(whole("steps", steps) + 1):
        orders = _ascend(landscape, made, theta, b, orders, key.at(k), SWEEPS, within(None))
        before, middle = middle, (a + permuted(landscape, made, b, orders)) / 2
        if k == 0 or not torch.equal(middle, before):
            with torch.no_grad():
                height = landscape(middle[None]).item()
            if height < lowest:
                best, lowest = orders, height
        if k < steps:
            theta.grad = minibatch_gradient(landscape, middle[None], key.stream("rows").at(k), size)[0] / 2
            optimizer.step()
            watch((k + 1) / steps)
    return best


def activation_matching(landscape: Landscape, a: Tensor, b: Tensor, *, watch: Watch | None = None) -> dict[str, Tensor]:
    """Orders of the hidden units of b that bring its activations near those of a on the landscape's samples.

    For each hidden layer argmin_π Σ over samples ‖z_a - π(z_b)‖², a linear assignment over the products z_a z_bᵀ, where
    z is what the next layer reads (positions of a picture count as samples). Layers are matched each on its own.
    Units that are zero on all samples (dead ones) cannot be told apart.

    Args:
        a, b: points, (parameters,), of the workbench's MLP or a sequential module: those that `unit_spec` derives.
        watch: told the share of layers done, after each; what it raises ends the work.

    Returns:
        {name: order (units,)}, to give to `permute`.

    Source: Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836, section 3.1.
    """
    known = sizes(landscape, unit_spec(landscape))
    with torch.no_grad():
        of_a, of_b = (activations(landscape, known, landscape.point(x)) for x in (a, b))
    orders, watch = {}, within(watch)
    for name in known:
        orders[name] = _assign(of_a[name] @ of_b[name].T)
        watch(len(orders) / len(known))
    return orders


def _as_they_are(landscape: Landscape, spec: Spec) -> dict[str, Tensor]:
    """Orders that change nothing."""
    return {name: torch.arange(size, device=landscape.start.device) for name, size in sizes(landscape, spec).items()}


def _ascend(
    landscape: Landscape,
    spec: Spec,
    a: Tensor,
    b: Tensor,
    orders: dict[str, Tensor],
    key: Key,
    sweeps: int,
    watch: Watch,
) -> dict[str, Tensor]:
    """Coordinate ascent of ⟨a, π(b)⟩ over the layers, from these orders on."""
    names, best = list(orders), a @ permuted(landscape, spec, b, orders)
    for sweep in range(whole("sweeps", sweeps, 1)):
        watch(sweep / sweeps)
        changed = False
        for name in (names[i] for i in key.stream("layers").at(sweep).permutation(len(names)).tolist()):
            tried = {**orders, name: _assign(_products(landscape, spec, a, b, name, orders))}
            value = a @ permuted(landscape, spec, b, tried)
            # Only what is better than rounding: where one order stands on two axes of a block, a step may not ascend.
            if value > best + 8 * torch.finfo(a.dtype).eps * a.norm() * b.norm():
                orders, best, changed = tried, value, True
        if not changed:
            break
    watch(1.0)
    return orders


def _assign(products: Tensor) -> Tensor:
    """The order o that maximises Σ_j products[j, o[j]]."""
    from scipy.optimize import linear_sum_assignment  # here, so that the library starts without it

    order = linear_sum_assignment(products.detach().cpu().double().numpy(), maximize=True)[1]
    return torch.from_numpy(order).to(products.device)


def _products(landscape: Landscape, spec: Spec, a: Tensor, b: Tensor, name: str, orders: Permutations) -> Tensor:
    """⟨parameters of unit i of a, those of unit j of b⟩ over all blocks, (units, units), the other orders in place."""
    size, total = len(orders[name]), a.new_zeros(())
    for block, mine, theirs in zip(landscape.names, landscape.space.blocks(a), landscape.space.blocks(b), strict=True):
        for axis, other in enumerate(spec[block]):
            if other == name:
                rest = tuple(None if at == axis else held for at, held in enumerate(spec[block]))
                moved = reorder(theirs, rest, orders)
                rows = [part.movedim(axis, 0).reshape(size, -1) for part in (mine, moved)]
                total = total + rows[0] @ rows[1].T
    return total

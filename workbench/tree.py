"""States are trees: tensors inside NamedTuples, tuples and dicts. The few walks over them that everything needs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def tree_map(function: Callable, tree: Any, *others: Any) -> Any:
    """The tree with `function` applied to each tensor (and to its fellows in `others`); other leaves stay."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    columns = [_parts(other) for other in others]
    return _rebuild(tree, [tree_map(function, *row) for row in zip(_parts(tree), *columns, strict=True)])


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf, tensors and plain values alike, in a fixed order."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)
    else:
        yield tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor leaf, in a fixed order."""
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Tensor))


TENSOR_BYTES = 512
"""What a tensor costs beyond its numbers (its two objects and its allocation): for small states this is most of it."""


def nbytes(tree: Any) -> int:
    """Bytes held by the tensors of the tree, with what keeping a tensor costs (shared storage counts each time)."""
    if isinstance(tree, Tensor):
        return tree.nbytes + TENSOR_BYTES
    if isinstance(tree, dict):
        return sum(map(nbytes, tree.values()))
    return sum(map(nbytes, tree)) if isinstance(tree, tuple | list) else 0


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees agree in structure, dtype, shape and every bit (NaN equals the same NaN)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _same_tensor(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(item, b[name]) for name, item in a.items())
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same_bits(p, q) for p, q in zip(a, b, strict=True))
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    plain = [leaf.detach().cpu().clone(memory_format=torch.contiguous_format) for leaf in (a, b)]
    return torch.equal(*[leaf.flatten().view(torch.uint8) for leaf in plain])


def own(value: Any) -> Any:
    """A copy of a value, or of lists, tuples and dicts of values, whose arrays nobody else can change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict | list | tuple):
        return _rebuild(value, [own(part) for part in _parts(value)])
    return value.copy() if hasattr(value, "__array__") and hasattr(value, "copy") else value


class PerRun(tuple):
    """A tuple with one subtree a run, for state that cannot be stacked (that of `torch.optim` classes)."""


def repeat_runs(tree: Any, runs: int, axis: int) -> Any:
    """The state of one run, copied to `runs` runs along `axis`; 0-d leaves are shared by all runs and stay."""
    if isinstance(tree, PerRun):
        return PerRun(tree[0] for _ in range(runs))
    if isinstance(tree, Tensor):
        return tree if tree.ndim == 0 else tree.repeat_interleave(runs, axis)
    return _rebuild(tree, [repeat_runs(part, runs, axis) for part in _parts(tree)])


def pick_run(tree: Any, run: int, axis: int) -> Any:
    """One run of a state, as a state of one run."""
    if isinstance(tree, PerRun):
        return PerRun([tree[run]])
    if isinstance(tree, Tensor):
        return tree if tree.ndim == 0 else tree.narrow(axis, run, 1).contiguous()
    return _rebuild(tree, [pick_run(part, run, axis) for part in _parts(tree)])


def _parts(tree: Any) -> list:
    return list(tree.values()) if isinstance(tree, dict) else list(tree) if isinstance(tree, tuple | list) else []


def _rebuild(tree: Any, parts: list) -> Any:
    if isinstance(tree, dict):
        return dict(zip(tree, parts, strict=True))
    if isinstance(tree, tuple | list):
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree

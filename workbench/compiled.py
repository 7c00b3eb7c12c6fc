"""Many steps as one call of compiled code; the same trajectory as stepping, run by run, diverged runs included.

Steps that are arithmetic on a few numbers a run become one C++ loop over time (`native.py`). Other steps are unrolled
a few at a time and given to `torch.compile`. What can do neither runs eager and says so once.
"""

import logging
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.arithmetic import NotArithmetic
from workbench.native import Input, Loop, compiler
from workbench.routine import Routine
from workbench.tree import leaves, tensors, tree_map

log = logging.getLogger(__name__)


class RunsEager(UserWarning):
    """Compiled code was asked for, and there is a reason to run eager; said once for each reason."""


class NoCompiler(RunsEager):
    """There is no C++ compiler."""


class NotCompilable(Exception):
    """Why a rollout cannot be compiled, in words."""


def trajectory(
    routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, steps: int, *, unroll: int = 4
) -> tuple[Any, Tensor]:
    """Run a routine for some steps in compiled code.

    The result is that of `eager_trajectory`, runs that diverge included: bit for bit where a step only adds, multiplies
    and divides, otherwise within a few units in the last place a step. Compiling is paid once: a C++ loop takes about
    a second for each routine; `torch.compile` takes 5 to 30 for each routine and value of a "shape" hyperparameter, and
    once more for a second number of runs. Hyperparameter values never compile anything.

    Args:
        routine: its states have `x` and `diverged`.
        state: where to start; not changed.
        hyper: from `routine.normalise`.
        noises: what `routine.draw` gave for each step, stacked along a leading axis `steps`; () when nothing is random.
        steps: how many, at least 0.
        unroll: steps in one call of `torch.compile`d code.

    Returns:
        (final state, points (steps + 1, *x.shape)), the first of which is state.x.

    Raises:
        ValueError: when `noises` are not those of so many steps.
    """
    if any(noise.shape[:1] != (steps,) for noise in tensors(noises)):
        shapes = [tuple(noise.shape) for noise in tensors(noises)]
        raise ValueError(f"expected noises with a leading axis of {steps} steps, got shapes {shapes}")
    compiled = vars(routine).setdefault("_compiled", Compiled())
    with torch.no_grad():
        try:
            _check(routine, state, noises)
            loop = compiled.loop(routine, state, hyper, noises)
            if loop is not None:
                return _run_loop(loop, routine, state, hyper, noises, steps)
            return _run_chunks(compiled, routine, state, hyper, noises, steps, unroll)
        except NotCompilable as reason:
            _say_once(RunsEager, f"{_name(routine)} runs eager: {reason}")
        except NoCompiler as reason:
            _say_once(NoCompiler, str(reason))
        return eager_trajectory(routine, state, hyper, noises, steps)


def eager_trajectory(
    routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, steps: int
) -> tuple[Any, Tensor]:
    """The same step by step: the naive twin that compiled code is compared with."""
    points = [state.x]
    with torch.no_grad():
        for t in range(steps):
            state, _ = routine.step(state, hyper, _at(noises, t))
            points.append(state.x)
    return state, torch.stack(points)


class Compiled:
    """What has been compiled for one routine, and held by it; a copy or pickle of the routine starts anew."""

    _lock = threading.RLock()

    def __init__(self) -> None:
        self._loops: dict[tuple, Loop | None] = {}
        self._chunks: dict[tuple, Callable] = {}

    def __reduce__(self) -> tuple:
        return Compiled, ()

    def loop(self, routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any) -> Loop | None:
        """The C++ loop for states like this one, None when the step is not arithmetic on a few numbers a run."""
        if routine.run_axis != -1 or any(leaf.device.type != "cpu" for leaf in tensors((state, hyper, noises))):
            return None
        inputs = _inputs(state, hyper, noises, routine.runs(state))
        key = (*inputs, *_plain(hyper))
        if key not in self._loops:
            with self._lock:
                if key not in self._loops:
                    _need_compiler()
                    self._loops[key] = _make_loop(routine, state, hyper, noises, inputs)
        return self._loops[key]

    def chunk(self, routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, unroll: int) -> Callable:
        """Compiled code of several steps."""
        key = (unroll, *_plain(hyper))
        if key not in self._chunks:
            with self._lock:
                if key not in self._chunks:
                    if routine.device.type == "cpu":
                        _need_compiler()
                    self._chunks[key] = _make_chunk(routine, state, hyper, noises, unroll)
        return self._chunks[key]


# --------------------------------------------------------------------------------------------- the C++ loop


def _make_loop(
    routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, inputs: tuple[Input, ...]
) -> Loop | None:
    def step(*flat: Tensor) -> list[Tensor]:
        given = iter(flat)
        old, turned, noise = (_filled(tree, given) for tree in (state, hyper, noises))
        return list(tensors(routine.step(old, turned, noise)[0]))

    runs = routine.runs(state)
    for guess in dict.fromkeys((inputs, tuple(_shared(given, runs) for given in inputs))):
        try:
            return Loop(step, guess, _place_of_points(state))
        except NotArithmetic as reason:
            log.debug("%s: no C++ loop: %s", _name(routine), reason)
        except OSError as reason:
            log.warning("%s: no C++ loop: %s", _name(routine), reason)
            break
    return None


def _inputs(state: Any, hyper: Mapping[str, Any], noises: Any, runs: int) -> tuple[Input, ...]:
    """What a step takes, without the number of runs. Noise whose last axis is as long as there are runs is taken to be
    one a run; where it is not, tracing fails, and is tried again with `_shared`.
    """
    found = [Input("state", tuple(leaf.shape[:-1]), leaf.dtype, leaf.ndim > 0) for leaf in tensors(state)]
    found += [Input("hyper", (), leaf.dtype, True) for leaf in tensors(hyper)]
    for leaf in tensors(noises):
        per_run = leaf.ndim > 1 and leaf.shape[-1] == runs
        found.append(Input("noise", tuple(leaf.shape[1:-1] if per_run else leaf.shape[1:]), leaf.dtype, per_run))
    return tuple(found)


def _shared(given: Input, runs: int) -> Input:
    """Noise that all runs share, in place of noise of each run."""
    if given.role != "noise" or not given.per_run:
        return given
    return given._replace(shape=(*given.shape, runs), per_run=False)


def _place_of_points(state: Any) -> int:
    """Which of a state's tensors is x."""
    return sum(1 for field in state._fields[: state._fields.index("x")] for _ in tensors(getattr(state, field)))


def _run_loop(
    loop: Loop, routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, steps: int
) -> tuple[Any, Tensor]:
    points = _room((steps + 1, *state.x.shape), state.x)
    points[0] = state.x
    flat = list(tensors((state, hyper, noises)))
    new = loop(flat, routine.runs(state), points[1:], torch.get_num_threads())
    return _filled(state, iter(new)), points


def _room(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor. NumPy asks for huge pages, torch does not: without them the first touch of 400 MB takes
    longer than computing what goes there.
    """
    if like.device.type != "cpu" or like.dtype == torch.bfloat16:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, like.new_empty(0).numpy().dtype))


# -------------------------------------------------------------------------------------------- torch.compile


def _make_chunk(routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, unroll: int) -> Callable:
    # only the shape of these trees is wanted: no tensor of this call shall live as long as the code
    old, turned, noise = (tree_map(lambda leaf: leaf.new_empty(0), tree) for tree in (state, hyper, noises))

    def chunk(state_leaves: list[Tensor], hyper_leaves: list[Tensor], noise_leaves: list[Tensor]) -> tuple:
        now, ready = _filled(old, iter(state_leaves)), _filled(turned, iter(hyper_leaves))
        points = []
        for t in range(unroll):
            now, _ = routine.step(now, ready, _filled(noise, iter([leaf[t] for leaf in noise_leaves])))
            points.append(now.x)
        return list(tensors(now)), torch.stack(points)

    # torch.compile keeps what it compiled with the code object: one of our own goes when the routine goes
    own = types.FunctionType(chunk.__code__.replace(), globals(), "chunk", None, chunk.__closure__)
    # 0 * x is not 0 where x is not finite: a run that diverges has to be seen
    return torch.compile(own, fullgraph=True, options={"joint_graph_constant_folding": False})


def _run_chunks(
    compiled: Compiled, routine: Routine, state: Any, hyper: Mapping[str, Any], noises: Any, steps: int, unroll: int
) -> tuple[Any, Tensor]:
    points = _room((steps + 1, *state.x.shape), state.x)
    points[0] = state.x
    whole = steps - steps % unroll
    ready = [leaf.clone() for leaf in tensors(hyper)]
    flat = [leaf.detach().clone() for leaf in tensors(state)]  # no two inputs may share memory
    for t in range(0, whole, unroll):
        chunk = compiled.chunk(routine, state, hyper, noises, unroll)
        try:
            flat, made = chunk(flat, ready, [leaf[t : t + unroll] for leaf in tensors(noises)])
        except Exception as error:
            raise NotCompilable(f"torch.compile says {' '.join(str(error).split()[:30])}") from error
        points[t + 1 : t + unroll + 1] = made
    state = _filled(state, iter(flat))
    for t in range(whole, steps):
        state, _ = routine.step(state, hyper, _at(noises, t))
        points[t + 1] = state.x
    return state, points


# ---------------------------------------------------------------------------------------------------- shared


def _check(routine: Routine, state: Any, noises: Any) -> None:
    if routine.host_sync:
        raise NotCompilable("its step reads values on the host")
    if any(not isinstance(leaf, Tensor) for leaf in leaves((state, noises))):
        raise NotCompilable("its state or its noise holds plain values beside tensors")


def _need_compiler() -> None:
    if compiler() is None:
        raise NoCompiler(
            "no C++ compiler found: running eager, with the same result more slowly. "
            "Install one (g++ or clang++), or name it in the environment variable CXX."
        )


def _say_once(category: type[Warning], message: str) -> None:
    if (category, message) not in _said:
        _said.add((category, message))
        warnings.warn(message, category, stacklevel=3)


_said: set[tuple[type[Warning], str]] = set()


def _name(routine: Routine) -> str:
    words = routine.describe()
    return f"{type(routine).__name__} ({', '.join(map(str, words.values()))})" if words else type(routine).__name__


def _plain(hyper: Mapping[str, Any]) -> tuple:
    """Hyperparameters that are built into the code: whole numbers and choices."""
    return tuple(leaf for leaf in leaves(hyper) if not isinstance(leaf, Tensor))


def _filled(tree: Any, given: Iterator[Tensor]) -> Any:
    """The tree with its tensors replaced by the next ones, in order."""
    return tree_map(lambda _: next(given), tree)


def _at(noises: Any, t: int) -> Any:
    """The noise of one step."""
    return tree_map(lambda leaf: leaf[t], noises)

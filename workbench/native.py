"""The fast path of compiled rollouts: one C++ loop over time, for steps that are arithmetic on a few numbers a run.

The compiler vectorises the arithmetic over runs, and points are stored as they are made. The number of runs, the number
of steps and the hyperparameters (one number, or one a run) are arguments: none of them ever compiles anything again.

Sums, products and quotients are those of eager code, in its order and without fused multiply-adds of our own; roots
and transcendental functions may differ from it in the last digits.
"""

import _ctypes
import ctypes
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.arithmetic import C_TYPES, FUNCTIONS, RUNS, NotArithmetic, Numbers, Reader, Writer, trace

LANES, BLOCK = 64, 512
"""Runs advanced together through time (their state stays in the first-level cache), and runs a thread takes at once."""

THREAD_WORTH = 2**26
"""Operations below which a further thread costs more than it saves."""

FLAGS = (
    *("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd"),
    *("-fPIC", "-shared", "-pthread", "-w", "-x", "c++"),
)

VECTORS = ["-march=native", "-DVECTORS", "-lmvec", "-fno-tree-sink", "-fno-thread-jumps"]
"""Tried first. Work that is moved into a branch because only that branch needs it cannot be vectorised."""

SOURCE = """\
#include <math.h>
#include <pthread.h>
#include <stdint.h>
{functions}
typedef struct {{
    int64_t runs, steps, next;
    const void* const* in;
    const int64_t* stride;
    void* const* out;
    {point}* points;
}} Job;

static void advance(const Job* job, const int64_t first, const int64_t n) {{
    const int64_t R = job->runs;
    {declarations}
    for (int64_t i = 0; i < n; ++i) {{
        const int64_t r = first + i;
        {loads}
    }}
    for (int64_t t = 0; t < job->steps; ++t) {{
        {point}* const x = job->points + t * {dim} * R + first;
        {noise}
        #pragma omp simd
        for (int64_t i = 0; i < n; ++i) {{
            {body}
        }}
    }}
    for (int64_t i = 0; i < n; ++i) {{
        const int64_t r = first + i;
        {stores}
    }}
}}

static void* work(void* argument) {{
    Job* job = (Job*)argument;
    for (;;) {{
        const int64_t first = __atomic_fetch_add(&job->next, {block}, __ATOMIC_RELAXED);
        if (first >= job->runs) return 0;
        const int64_t last = first + {block} < job->runs ? first + {block} : job->runs;
        for (int64_t r = first; r < last; r += {lanes}) advance(job, r, last - r < {lanes} ? last - r : {lanes});
    }}
}}

extern "C" void loop(int64_t runs, int64_t steps, int64_t threads, const void* const* in, const int64_t* stride,
                     void* const* out, {point}* points) {{
    Job job = {{runs, steps, 0, in, stride, out, points}};
    pthread_t helpers[64];
    int64_t started = 0;
    while (started + 1 < threads && started < 64 && !pthread_create(&helpers[started], 0, work, &job)) ++started;
    work(&job);
    while (started) pthread_join(helpers[--started], 0);
}}
"""


class Input(NamedTuple):
    """A tensor that a step takes. `role`: "state", "hyper" or "noise". `shape`: of one run. `per_run`: has a last axis
    of runs (a hyperparameter always has: one number for all is the case of no stride).
    """

    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    per_run: bool

    @property
    def size(self) -> int:
        """Numbers a run."""
        return math.prod(self.shape)

    def example(self) -> Tensor:
        """What a step is traced with."""
        return torch.zeros((*self.shape, RUNS) if self.per_run else self.shape, dtype=self.dtype)

    def names(self, j: int) -> np.ndarray:
        """C++ names of its numbers, as input j."""
        shape = (*self.shape, 1) if self.per_run else self.shape
        return np.array([f"a{j}_{e}" for e in range(self.size)], object).reshape(shape)

    def fits(self, tensor: Tensor, runs: int, steps: int) -> bool:
        """Whether memory is laid out as the loop reads it."""
        counts = {"state": 1, "hyper": 1, "noise": steps}[self.role] * self.size * (runs if self.per_run else 1)
        return tensor.numel() == counts or (self.role == "hyper" and tensor.ndim == 0)


# ------------------------------------------------------------------------------------------------- the source


def source(step: Callable, inputs: Sequence[Input], kept: int) -> str:
    """The C++ of a loop over a step.

    Args:
        step: (*tensors) -> the new tensors of the state, in the order of the inputs whose role is "state".
        inputs: first the state, then the rest.
        kept: which of them is stored at every step.

    Raises:
        NotArithmetic: when the step is not arithmetic on a few numbers a run.
    """
    writer, names = Writer(), [given.names(j) for j, given in enumerate(inputs)]
    for given, array in zip(inputs, names, strict=True):
        writer.dtypes.update(dict.fromkeys(array.flat, given.dtype))
    new = Reader(trace(step, [given.example() for given in inputs]), writer).read(names)
    parts: dict[str, list[str]] = {"declarations": [], "loads": [], "noise": [], "body": [], "stores": []}
    for j, given in enumerate(inputs):
        (_take_noise if given.role == "noise" else _take)(parts, j, given)
    parts["body"] += writer.statements
    for j, numbers in enumerate(new):
        _keep(parts, j, inputs[j], numbers, names[j], writer)
        if j == kept:
            parts["body"] += [f"x[{e} * R + i] = s{j}_{e}[i];" for e in range(inputs[j].size)]
    joined = {name: "\n            ".join(lines) for name, lines in parts.items()}
    point, dim = C_TYPES[inputs[kept].dtype], inputs[kept].size
    return SOURCE.format(point=point, dim=dim, lanes=LANES, block=BLOCK, functions=_functions(), **joined)


def _take(parts: dict[str, list[str]], j: int, given: Input) -> None:
    """A tensor that is read once, into one small array for each of its numbers."""
    kind = C_TYPES[given.dtype]
    parts["declarations"].append(f"const {kind}* const in{j} = (const {kind}*)job->in[{j}];")
    for e in range(given.size):
        where = f"r * job->stride[{j}]" if given.role == "hyper" else f"{e} * R + r" if given.per_run else f"{e}"
        parts["declarations"].append(f"{kind} s{j}_{e}[{LANES}];")
        parts["loads"].append(f"s{j}_{e}[i] = in{j}[{where}];")
        parts["body"].append(f"const {kind} a{j}_{e} = s{j}_{e}[i];")


def _take_noise(parts: dict[str, list[str]], j: int, given: Input) -> None:
    """A tensor of which every step reads its own part."""
    kind, runs = C_TYPES[given.dtype], "R" if given.per_run else "1"
    parts["noise"].append(f"const {kind}* const in{j} = (const {kind}*)job->in[{j}] + t * {given.size} * {runs};")
    for e in range(given.size):
        where = f"{e} * R + first + i" if given.per_run else f"{e}"
        parts["body"].append(f"const {kind} a{j}_{e} = in{j}[{where}];")


def _keep(parts: dict[str, list[str]], j: int, given: Input, new: Numbers, names: np.ndarray, writer: Writer) -> None:
    """A tensor of the state: its new numbers for the next step, its last ones for the caller."""
    kind = C_TYPES[given.dtype]
    if new.array.shape != names.shape or new.dtype != given.dtype:
        raise NotArithmetic(f"a state whose tensor {j} changes its shape or type")
    parts["declarations"].append(f"{kind}* const out{j} = ({kind}*)job->out[{j}];")
    for e, term in enumerate(new.array.flat):
        parts["body"].append(f"s{j}_{e}[i] = {writer.operand(term, given.dtype)};")
        target = f"out{j}[{e} * R + r]" if given.per_run else f"if (r == 0) out{j}[{e}]"
        parts["stores"].append(f"{target} = s{j}_{e}[i];")


def _functions() -> str:
    """The functions v_… of C++: declared as vector functions where the C library has those, else its plain ones.

    They have names of their own because what the compiler knows about `sin` and `cos` keeps it from using vectors.
    """
    library, version = platform.libc_ver()
    vectors = library == "glibc" and platform.machine() == "x86_64"
    recent = vectors and tuple(map(int, version.split("."))) >= (2, 35)
    known = set(FUNCTIONS) if recent else {"exp", "log", "sin", "cos", "pow"} if vectors else set()
    fast, plain = [], []
    for name, count in FUNCTIONS.items():
        for kind, f in (("double", ""), ("float", "f")):
            plain.append(f"#define v_{name}{f} {name}{f}")
            one = (
                f'{kind} v_{name}{f}({", ".join([kind] * count)}) noexcept __asm__("{name}{f}") __attribute__((const));'
            )
            fast += ["#pragma omp declare simd notinbranch", one] if name in known else plain[-1:]
    return "\n".join(["#ifdef VECTORS", 'extern "C" {', *fast, "}", "#else", *plain, "#endif"])


# ------------------------------------------------------------------------------------------------- building it


def compiler() -> list[str] | None:
    """The command of the C++ compiler, as CXX says or by its usual names; None when there is none."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given if shutil.which(given[0]) else None
    return next(([name] for name in ("g++", "clang++", "c++", "cl") if shutil.which(name)), None)


def build(text: str) -> ctypes.CDLL:
    """The library of a source text, loaded; with the machine's own instructions and vector functions where they work.

    Raises:
        OSError: when nothing could be built; the compiler's first words are in the message.
    """
    command, said = compiler() or ["c++"], ""
    for options in (VECTORS, ["-march=native"], []):
        with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
            written, library = Path(folder, "loop.cpp"), Path(folder, "loop.so")
            written.write_text(text)
            line = [*command, *FLAGS, str(written), "-x", "none", "-o", str(library), *options, "-lm"]
            done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
            try:
                return ctypes.CDLL(str(library))
            except OSError as error:
                said = done.stderr or str(error)
    raise OSError(f"no C++ loop could be built: {said[:500]}")


class Loop:
    """A compiled loop over the steps of a routine. Arguments as for `source`.

    Raises:
        NotArithmetic: when the step is not arithmetic on a few numbers a run.
        OSError: when the compiler fails.
    """

    def __init__(self, step: Callable, inputs: Sequence[Input], kept: int) -> None:
        self.inputs = tuple(inputs)
        text = source(step, inputs, kept)
        self._operations = text.count("const")
        self._library = build(text)
        self._library.loop.restype = None
        self._library.loop.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 4
        if hasattr(_ctypes, "dlclose"):
            weakref.finalize(self, _ctypes.dlclose, self._library._handle).atexit = False

    def __call__(self, tensors: Sequence[Tensor], runs: int, points: Tensor, threads: int) -> list[Tensor]:
        """Fill `points`, (steps, …), and give the tensors of the last state. Changes none of its inputs.

        Raises:
            ValueError: when a tensor is not of the shape it was compiled for.
        """
        steps = points.shape[0]
        for tensor, given in zip(tensors, self.inputs, strict=True):
            if not given.fits(tensor, runs, steps) or tensor.dtype != given.dtype:
                raise ValueError(f"expected a {given.role} of shape {given.shape} for {runs} runs, got {tensor.shape}")
        held = [tensor.detach().contiguous() for tensor in tensors]
        new = [torch.empty_like(t) for t, given in zip(held, self.inputs, strict=True) if given.role == "state"]
        strides = (ctypes.c_int64 * len(held))(*(int(t.ndim > 0) for t in held))
        addresses = [(ctypes.c_void_p * len(part))(*(t.data_ptr() for t in part)) for part in (held, new)]
        busy = min(threads, -(-runs // BLOCK), 1 + runs * steps * self._operations // THREAD_WORTH)
        self._library.loop(runs, steps, busy, addresses[0], strides, addresses[1], points.data_ptr())
        return new

"""Adam on Rosenbrock's valley, 500 steps, all states kept: compiled against optax, eager against torch.optim."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

import workbench as wb
from workbench.bench import THREADS, Sides, benchmark
from workbench.compiled import eager_trajectory, trajectory
from workbench.native import compiler
from workbench.routine import Key

STEPS, LR = 500, 1e-3
START = (-1.2, 1.0)
XLA = {"XLA_FLAGS": f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={THREADS}", "JAX_PLATFORMS": "cpu"}

LIMIT = """
#include <cmath>
extern "C" void adam(float* out, const float* start, long runs, long steps, float lr, float b1, float b2, float eps) {
    const int L = 16;
    #pragma omp parallel for schedule(static) if (runs > 4000)
    for (long r = 0; r < runs; r += L) {
        const int n = runs - r < L ? runs - r : L;
        float x[L] = {}, y[L] = {}, mx[L] = {}, my[L] = {}, vx[L] = {}, vy[L] = {}, p1 = 1, p2 = 1;
        for (int i = 0; i < n; ++i) { x[i] = start[r + i]; y[i] = start[runs + r + i]; }
        for (long t = 0; t < steps; ++t) {
            p1 *= b1; p2 *= b2;
            const float scale = lr / (1 - p1), root = 1 / std::sqrt(1 - p2);
            #pragma omp simd
            for (int i = 0; i < L; ++i) {
                const float d = y[i] - x[i] * x[i], gx = -400 * d * x[i] - 2 * (1 - x[i]), gy = 200 * d;
                mx[i] += (1 - b1) * (gx - mx[i]); my[i] += (1 - b1) * (gy - my[i]);
                vx[i] += (1 - b2) * (gx * gx - vx[i]); vy[i] += (1 - b2) * (gy * gy - vy[i]);
                x[i] -= scale * mx[i] / (std::sqrt(vx[i]) * root + eps);
                y[i] -= scale * my[i] / (std::sqrt(vy[i]) * root + eps);
            }
            for (int i = 0; i < n; ++i) { out[2 * t * runs + r + i] = x[i]; out[(2 * t + 1) * runs + r + i] = y[i]; }
        }
    }
}
"""


def prepared(runs, steps):
    """Our Adam, ready to step."""
    routine = wb.descent("rosenbrock", "adam")
    state = routine.init(Key(0), start=START, runs=runs)
    return routine, state, routine.normalise({"lr": LR}), (), steps


def optax_side(runs, steps):
    """The peer: one run's gradient and update, under scan, vmap and jit."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adam(LR)

    def loss(x):
        return 100 * (x[1] - x[0] * x[0]) ** 2 + (1 - x[0]) ** 2

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    def one(start):
        return jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)[1]

    many = jax.jit(jax.vmap(one, in_axes=1, out_axes=-1))
    start = jnp.tile(jnp.array([[START[0]], [START[1]]], jnp.float32), (1, runs))
    return lambda: many(start).block_until_ready()


def limit_side(runs, steps):
    """A loop written by hand: what the machine can do. None without a compiler."""
    if compiler() is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "adam.cpp"), Path(folder, "adam.so")
        source.write_text(LIMIT)
        flags = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([*compiler(), *flags, str(source), "-o", str(library)], check=True)
        adam = ctypes.CDLL(str(library)).adam
    adam.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 2 + [ctypes.c_float] * 4
    start = np.repeat(np.array(START, np.float32)[:, None], runs, 1)

    def once():
        out = np.empty((steps, 2, runs), np.float32)
        adam(out.ctypes.data, start.ctypes.data, runs, steps, LR, 0.9, 0.999, 1e-8)
        return out

    return once


def compiled(runs, quick):
    """Ours and optax's, which must have gone the same way."""
    runs, steps = (runs // 100, 20) if quick else (runs, STEPS)
    given = prepared(runs, steps)
    peer, limit = optax_side(runs, steps), limit_side(runs, steps)
    points = trajectory(*given)[1]
    for other in (peer(), limit() if limit else peer()):
        np.testing.assert_allclose(points[1:].numpy(), np.asarray(other), rtol=1e-3, atol=1e-4)
    return Sides(lambda: trajectory(*given), peer, limit=limit)


for count, least, aim in ((1_000, 0.7, 1), (10_000, 1.5, 2), (100_000, 2.0, 3)):
    benchmark(
        f"adam-rosenbrock-{count}",
        what=f"{count:,} runs of Adam on Rosenbrock, {STEPS} steps, all states kept, compiled and warm",
        peer="optax under jit, vmap and scan",
        least=least,
        target=f"{aim} times",
        env=XLA,
    )(functools.partial(compiled, count))


@benchmark(
    "adam-rosenbrock-eager-1000",
    what=f"1,000 runs of Adam on Rosenbrock, {STEPS} steps, all states kept, eager",
    peer="a torch.optim.Adam loop, one run",
    least=500,
)
def eager(quick):
    # torch's roots wake a second thread even for a hundred numbers, and wait for it: 15 ms a root when cores are busy
    torch.set_num_threads(1)
    steps = 20 if quick else STEPS
    given = prepared(1_000, steps)

    def peer():
        x = torch.tensor(START, requires_grad=True)
        optimizer = torch.optim.Adam([x], lr=LR)
        points = [x.detach().clone()]
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 100 * (x[1] - x[0] * x[0]) ** 2 + (1 - x[0]) ** 2
            loss.backward()
            optimizer.step()
            points.append(x.detach().clone())
        return torch.stack(points)

    torch.testing.assert_close(eager_trajectory(*given)[1][..., 0], peer(), rtol=1e-3, atol=1e-4)
    note = "one thread each"
    return Sides(lambda: eager_trajectory(*given), peer, unit="trajectories/s", jobs=(1_000, 1), note=note)

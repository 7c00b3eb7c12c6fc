"""Networks on digits: many at once against plain loops, and one session step against a plain step; seeking."""

import itertools
import time

import numpy as np
import torch

import workbench as wb
from workbench.bench import Figures, Sides, benchmark
from workbench.rollout import advance
from workbench.routine import Key

BATCH, NETS = 128, 64


def plain_loop(data, lr):
    """One step of an ordinary training loop on digits, with the same net, loss, batch size and optimizer."""
    net = torch.nn.Sequential(torch.nn.Linear(64, 120), torch.nn.ReLU(), torch.nn.Linear(120, 10))
    optimizer, loss = torch.optim.Adam(net.parameters(), lr=lr), torch.nn.CrossEntropyLoss()
    order = itertools.cycle(torch.randperm(len(data.x)).split(BATCH)[:-1])

    def step():
        rows = next(order)
        optimizer.zero_grad()
        loss(net(data.x[rows]), data.y[rows]).backward()
        optimizer.step()

    return step


@benchmark(
    "64-mlps",
    what=f"a step of {NETS} MLPs (9,010 parameters, digits, batch {BATCH}, Adam) with {NETS} learning rates at once",
    peer=f"{NETS} plain torch.optim loops, one after the other",
    least=4.0,
)
def many(quick):
    routine, key = wb.training("mlp", "cross_entropy", "digits", "adam", batch_size=BATCH), Key(0)
    rates = torch.logspace(-4, -1, NETS)
    hyper = routine.normalise({"lr": rates}, runs=NETS)
    state, steps = routine.init(key.stream("init"), runs=NETS), 2 if quick else 10
    loops = [plain_loop(routine.data, float(lr)) for lr in rates]

    def ours():
        now = state
        for k in range(steps):
            now, _ = advance(routine, now, hyper, key, k)
        return now

    def peer():
        for loop in loops:
            for _ in range(steps):
                loop()

    return Sides(ours, peer, unit="steps/s", jobs=(steps, steps))


@benchmark(
    "session-step",
    what=f"one step of the Training app's session (MLP, digits, batch {BATCH}, Adam), no probes",
    peer="one step of a plain PyTorch loop",
    most=1.25,
)
def session_step(quick):
    routine = wb.training("mlp", "cross_entropy", "digits", "adam", batch_size=BATCH)
    session, loop, steps = wb.Session(routine), plain_loop(routine.data, 1e-3), 20 if quick else 200

    def peer():
        for _ in range(steps):
            loop()

    return Sides(lambda: session.step(steps), peer, unit="ms", note=f"each time is of {steps} steps")


@benchmark(
    "seek",
    what="seek to any of the last 10,000 steps of a 2-D descent with 1,000 runs, 95th percentile",
    peer="150 steps of that descent",
    most=1.0,
    target="200 ms",
)
def seek(quick):
    steps, tries = (300, 10) if quick else (10_000, 200)
    session = wb.Session(wb.descent("rosenbrock", "adam"), hyper={"lr": torch.logspace(-4, -1, 1000)})
    session.step(steps)
    targets = np.random.default_rng(0).integers(0, steps + 1, tries)
    seeks, blocks = [], []
    for target in targets.tolist():
        start = time.perf_counter()
        session.seek(target)
        seeks.append(time.perf_counter() - start)
    forward = wb.Session(session.routine, hyper=session.first)
    for _ in range(3 if quick else 20):
        start = time.perf_counter()
        forward.step(150)
        blocks.append(time.perf_counter() - start)
    return Figures(1e3 * float(np.quantile(seeks, 0.95)), 1e3 * float(np.median(blocks)), "ms")

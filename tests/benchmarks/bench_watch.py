"""A watched training loop beside the same loop unwatched."""

import itertools
import statistics
import time

import torch

import workbench as wb
from workbench.bench import Figures, benchmark
from workbench.watch import watch

BATCH = 128


def loop(data, criterion):
    """One step of an ordinary loop on digits: 9,010 parameters, Adam."""
    net = torch.nn.Sequential(torch.nn.Linear(64, 120), torch.nn.ReLU(), torch.nn.Linear(120, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    order = itertools.cycle(torch.randperm(len(data.x)).split(BATCH)[:-1])

    def step():
        rows = next(order)
        optimizer.zero_grad()
        criterion(net(data.x[rows]), data.y[rows]).backward()
        optimizer.step()

    return net, optimizer, step


@benchmark(
    "watched-loop",
    what=f"a loop watched at default settings (MLP, 9,010 parameters, digits, batch {BATCH}, Adam)",
    peer="the same loop, not watched",
    least=0.8,
)
def watched(quick):
    """Blocks of steps in turn, so that other work on the machine meets both; medians count."""
    torch.set_num_threads(1)  # steps so small gain nothing from a second, and wait for it on a busy machine
    data = wb.training("mlp", "cross_entropy", "digits", "sgd").data
    rates: tuple[list[float], list[float]] = ([], [])
    criterion = torch.nn.CrossEntropyLoss()
    net, optimizer, step = loop(data, criterion)
    _, _, plain = loop(data, torch.nn.CrossEntropyLoss())
    steps, blocks = (20, 3) if quick else (200, 30)
    run = watch(net, optimizer, loss=criterion)
    for _ in range(blocks):
        with run:  # its clock stands still while the other runs
            rates[0].append(speed(step, steps))
        rates[1].append(speed(plain, steps))
    kept = f"norms at {len(run.norms.arrays()[0]):,} and weights at {len(run.points):,} of {run.index:,} steps"
    note = f"{kept}; it says itself that watching took {100 * run.share:.0f} % of its time"
    return Figures(statistics.median(rates[0]), statistics.median(rates[1]), "steps/s", note)


def speed(one, steps):
    """Steps a second."""
    began = time.perf_counter()
    for _ in range(steps):
        one()
    return steps / (time.perf_counter() - began)

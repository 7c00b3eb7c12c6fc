"""A watched training loop beside the same loop unwatched."""

import itertools
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
    data, rates = wb.load_data("digits"), ([], [])
    criterion = torch.nn.CrossEntropyLoss()
    net, optimizer, step = loop(data, criterion)
    _, _, plain = loop(data, torch.nn.CrossEntropyLoss())
    steps, blocks = (20, 3) if quick else (200, 30)
    with watch(net, optimizer, loss=criterion) as run:
        for _ in range(blocks):
            for rate, one in zip(rates, (step, plain), strict=True):
                began = time.perf_counter()
                for _ in range(steps):
                    one()
                rate.append(steps / (time.perf_counter() - began))
    note = f"norms at {len(run.norms.arrays()[0]):,} and weights at {len(run.points):,} of {run.index:,} steps"
    return Figures(sorted(rates[0])[len(rates[0]) // 2], sorted(rates[1])[len(rates[1]) // 2], "steps/s", note)

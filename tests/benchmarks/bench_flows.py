"""Flow training: a step against the loop that one writes in plain PyTorch for the same net, loss and optimizer."""

import math

import torch

import workbench as wb
from workbench.bench import Sides, benchmark
from workbench.rollout import advance
from workbench.routine import Key

BATCH, WIDTH, LR = 512, 128, 1e-3


def plain_loop():
    """Flow matching as its tutorials train it: a batch of pairs, a time for each, a squared error, a step of Adam."""
    layers = [torch.nn.Linear(3, WIDTH), torch.nn.SiLU()]
    for _ in range(2):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    angle = torch.arange(8) * (math.pi / 4)
    centres = 3 * torch.stack([angle.cos(), angle.sin()], -1)

    def step():
        x1 = centres[torch.randint(8, (BATCH,))] + 0.25 * torch.randn(BATCH, 2)
        x0, t = torch.randn(BATCH, 2), torch.rand(BATCH, 1)
        x_t = t * x1 + (1 - t) * x0
        v_t = net(torch.cat([x_t, t], -1))
        loss = torch.mean((v_t - (x1 - x0)) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@benchmark(
    "flow-training",
    what=f"a step of flow matching, drawing included (eight Gaussians, MLP 3 × {WIDTH}, batch {BATCH}, Adam)",
    peer="one step of a plain PyTorch loop with torch.optim.Adam",
    least=1.5,
)
def flow_training(quick):
    routine, key = wb.flow_training(None, "eight-gaussians", batch_size=BATCH), Key(0)
    hyper, state = routine.normalise({"lr": LR}), routine.init(key.stream("init"))
    loop, steps = plain_loop(), 5 if quick else 50

    def ours():
        now = state
        for k in range(steps):
            now, _ = advance(routine, now, hyper, key, k)
        return now

    def peer():
        for _ in range(steps):
            loop()

    return Sides(ours, peer, unit="ms", note=f"each time is of {steps} steps")

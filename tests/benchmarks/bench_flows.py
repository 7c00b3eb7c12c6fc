"""Flow training: a step against the loop that one writes in plain PyTorch for the same net, loss and optimizer."""

import math

import torch

import workbench as wb
from workbench.bench import Sides, benchmark
from workbench.rollout import advance
from workbench.routine import Key

BATCH, WIDTH, LR = 512, 128, 1e-3


def point_by_point(noise, centres):
    """Eight Gaussians as torchcfm's utilities draw them: centre and noise are added one point after the other."""
    drawn = torch.multinomial(torch.ones(8), BATCH, replacement=True)
    return torch.stack([centres[k] + z for k, z in zip(drawn, noise, strict=True)])


def at_once(noise, centres):
    """The same without a loop."""
    return centres[torch.randint(8, (BATCH,))] + noise


def plain_loop(target):
    """Flow matching as its tutorials train it: a batch of pairs, a time for each, a squared error, a step of Adam."""
    layers = [torch.nn.Linear(3, WIDTH), torch.nn.SiLU()]
    for _ in range(2):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    angle = torch.arange(8) * (math.pi / 4)
    centres = 3 * torch.stack([angle.cos(), angle.sin()], -1)

    def step():
        x1 = target(0.25 * torch.randn(BATCH, 2), centres)
        x0, t = torch.randn(BATCH, 2), torch.rand(BATCH, 1)
        x_t = t * x1 + (1 - t) * x0
        v_t = net(torch.cat([x_t, t], -1))
        loss = torch.mean((v_t - (x1 - x0)) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


WHAT = f"a step of flow matching, drawing included (eight Gaussians, MLP 3 × {WIDTH}, batch {BATCH}, Adam)"


def beside(target, quick):
    """Our steps beside those of a plain loop."""
    routine, key = wb.flow_training(None, "eight-gaussians", batch_size=BATCH), Key(0)
    hyper, state = routine.normalise({"lr": LR}), routine.init(key.stream("init"))
    loop, steps = plain_loop(target), 5 if quick else 50

    def ours():
        now = state
        for k in range(steps):
            now, _ = advance(routine, now, hyper, key, k)
        return now

    def peer():
        for _ in range(steps):
            loop()

    return Sides(ours, peer, unit="ms", note=f"each time is of {steps} steps")


@benchmark(
    "flow-training",
    what=WHAT,
    peer="the loop of torchcfm's tutorial in plain PyTorch, its way of drawing the target point by point included",
    least=1.5,
)
def flow_training(quick):
    return beside(point_by_point, quick)


@benchmark(
    "flow-training-plain",
    what=WHAT,
    peer="the same loop with the target drawn at once: what a careful hand would write",
    least=1.0,
)
def flow_training_plain(quick):
    return beside(at_once, quick)

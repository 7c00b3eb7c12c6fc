"""Sampling: a routine beside the bare evaluations of its field, and an adaptive solver beside torchdiffeq's."""

import torch

import workbench as wb
from workbench.bench import Sides, benchmark
from workbench.flows.training import NetField
from workbench.samplers.solve import run_to_end, solve


def digits_field():
    """A net of the size of a generator of digits (64 + 1 + 10 inputs, 3 × 256), as it starts."""
    net = wb.make("mlp", width=256, depth=3, activation="silu")
    routine = wb.flow_training(None, "digit-images", network=net)
    return routine.field(routine.init(wb.Key(0).stream("init")))


@benchmark(
    "sampling-overhead",
    what="256 samples of 64 numbers, 50 steps of Heun through a net of three layers of 256, classes given, to the end",
    peer="its 100 evaluations and nothing else",
    most=1.05,
)
def overhead(quick):
    torch.set_num_threads(1)
    steps, samples = 5 if quick else 50, 256
    field = digits_field().given(torch.arange(samples) % 10)
    assert isinstance(field, NetField)
    routine = wb.sampling(field, "heun", steps=steps, samples=samples)
    x, t = wb.Key(0).normal((1, samples, 64), like=torch.empty(0)), torch.full((1, 1), 0.5)

    def peer():
        with torch.no_grad():
            for _ in range(2 * steps):
                found = field(x, t).velocity
        return found

    assert run_to_end(routine).nfe.item() == 2 * steps
    return Sides(lambda: run_to_end(routine, start=x), peer, note="one thread each")


@benchmark(
    "dopri5-mixture",
    what="Dormand–Prince from the source to eight Gaussians, exact velocity, rtol = atol = 1e-5",
    peer="torchdiffeq's dopri5, same velocity and tolerances; its error is at least ours",
    least=1.3,
)
def dopri5(quick):
    from torchdiffeq import odeint

    torch.set_num_threads(1)  # as for torchdiffeq, no array here is long enough for a second one to pay
    tolerance, ends = 1e-5, torch.tensor([0.0, 1.0])
    field = wb.exact_field("eight-gaussians")
    x = wb.Key(0).normal((500 if quick else 10_000, 2), like=torch.empty(0))

    def ours():
        return solve(field, "dormand-prince", x=x, hyper={"rtol": tolerance, "atol": tolerance})

    def peer():
        with torch.no_grad():
            same = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
            return odeint(lambda t, y: field(y, t).velocity, x, ends, **same)[1]

    fine = solve(field, "rk4", x=x.double(), steps=100 if quick else 1000)
    errors = [float((found - fine).norm(dim=-1).square().mean().sqrt()) for found in (ours(), peer())]
    assert errors[0] <= errors[1], errors
    note = f"one thread each; root mean square error {errors[0]:.1e}, of torchdiffeq {errors[1]:.1e}"
    return Sides(ours, peer, note=note)

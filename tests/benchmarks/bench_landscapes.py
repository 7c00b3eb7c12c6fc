"""Landscapes: slices beside the bare products and the loss-landscapes package, eigenvalues beside two peers."""

import subprocess
import sys

import numpy as np
import torch
from torch import nn

import workbench as wb
from workbench import landscapes
from workbench.bench import Figures, Sides, benchmark

SLICE = "a 51×51 slice of an MLP of 9,010 parameters on all 1,797 digits, with its standard error"


def digits(steps=0):
    """The landscape of the MLP on all digits, after some steps of Adam."""
    routine = wb.training("mlp", "cross_entropy", "digits", "adam")
    with wb.Session(routine) as session:
        session.step(steps)
        return landscapes.of_training(routine, session.state, part="all")


def module_of(scene):
    """The same network in torch.nn."""
    module = nn.Sequential(nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 10))
    nn.utils.vector_to_parameters(scene.start.clone(), module.parameters())
    return module


@benchmark("slice-51", what=SLICE, peer="the matrix products of the same arithmetic and nothing else", most=2.0)
def slice_51(quick):
    torch.set_num_threads(2)
    scene, side, chunk = digits(), 7 if quick else 51, 16
    first, second = torch.randn(chunk, 120, 64), torch.randn(chunk, 10, 120)
    inputs = scene.inputs.mT.expand(chunk, -1, -1)

    def peer():
        for _ in range(0, side * side, chunk):
            found = torch.bmm(second, torch.bmm(first, inputs))
        return found

    return Sides(lambda: landscapes.slice2d(scene, points=side), peer, note="two threads each")


@benchmark(
    "slice-51-peer", what=SLICE, peer="the random plane of the loss-landscapes package, without error", least=2.0
)
def slice_peer(quick):
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    torch.set_num_threads(2)
    scene, side = digits(), 7 if quick else 51
    module, metric = module_of(scene), Loss(nn.CrossEntropyLoss(), scene.inputs, scene.targets)

    def peer():
        return loss_landscapes.random_plane(module, metric, distance=1, steps=side, normalization="filter")

    return Sides(lambda: landscapes.slice2d(scene, points=side), peer, note="two threads each")


@benchmark(
    "slice-coarse",
    what="the first coarse picture of that slice",
    peer="the whole slice",
    most=0.1,
    target="150 ms",
)
def coarse(quick):
    torch.set_num_threads(2)
    scene, side = digits(), 13 if quick else 51
    whole = lambda: list(landscapes.coarse_to_fine(scene, points=side))  # noqa: E731
    return Sides(lambda: next(landscapes.coarse_to_fine(scene, points=side)), whole, note="two threads each")


CNN = """
import resource, sys, time, torch, workbench as wb
from torch import nn
torch.set_num_threads(2)
side = int(sys.argv[1])
net = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(1024, 950), nn.ReLU(), nn.Linear(950, 10),
)
x, y = torch.randn(2000, 1, 8, 8), torch.arange(2000) % 10
scene = wb.landscapes.landscape(net, "cross_entropy", (x, y, x[:10], y[:10]))
looks = []
wb.landscapes.slice2d(scene, points=side, watch=lambda share: looks.append(time.perf_counter()))
gaps = [b - a for a, b in zip(looks, looks[1:])]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, max(gaps), scene.dim)
"""


@benchmark(
    "slice-cnn-memory",
    what="peak memory of a 25×25 slice of a CNN of 1,000,000 parameters on 2,000 images of 8×8",
    peer="what is allowed",
    most=1.0,
)
def cnn(quick):
    made = subprocess.run(
        [sys.executable, "-c", CNN, "3" if quick else "25"], check=True, capture_output=True, text=True
    )
    peak, gap, dim = map(float, made.stdout.split())
    return Figures(
        peak, 1.5, "GB", f"{dim:,.0f} parameters; a cancel takes at most {1000 * gap:.0f} ms (target 200 ms)"
    )


def accuracy(values, exact):
    """Largest relative error of eigenvalues, in words."""
    return f"{np.abs(np.asarray(values) / exact - 1).max():.1e}"


def exact_top(scene):
    """The ten largest eigenvalues to the end of float32."""
    found = landscapes.top_eigenpairs(landscapes.hessian(scene), 10, tolerance=1e-12, most=400)
    return found.values.double().numpy()


EIGEN = "the ten largest eigenvalues of the Hessian of that network after 200 steps, to a relative error of 1e-4"


@benchmark("top-10-pyhessian", what=EIGEN, peer="PyHessian, its tolerance as loose as keeps that error", least=1.5)
def against_pyhessian(quick):
    from pyhessian import hessian as pyhessian

    torch.set_num_threads(2)
    scene, count = digits(20 if quick else 200), 2 if quick else 10
    module, exact = module_of(scene), exact_top(scene)[:count]
    data = (scene.inputs, scene.targets)

    def peer():
        torch.manual_seed(0)
        found = pyhessian(module, nn.CrossEntropyLoss(), data=data, cuda=False)
        return found.eigenvalues(maxIter=500, tol=1e-5, top_n=count)[0]

    def ours():
        return landscapes.top_eigenpairs(landscapes.hessian(scene), count, tolerance=1e-5).values.numpy()

    return Sides(ours, peer, note=f"errors: ours {accuracy(ours(), exact)}, theirs {accuracy(peer(), exact)}")


@benchmark("top-10-scipy", what=EIGEN, peer="curvlinops' Hessian in scipy.sparse.linalg.eigsh, same error", least=1.2)
def against_scipy(quick):
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    torch.set_num_threads(2)
    scene, count = digits(20 if quick else 200), 2 if quick else 10
    module, exact = module_of(scene), exact_top(scene)[:count]
    data = [(scene.inputs, scene.targets)]

    def peer():
        params = list(module.parameters())
        hessian = HessianLinearOperator(module, nn.CrossEntropyLoss(), params, data, check_deterministic=False)
        start = np.random.default_rng(0).normal(size=scene.dim).astype(np.float32)
        return eigsh(hessian.to_scipy(), k=count, which="LA", tol=1e-3, v0=start)[0][::-1]

    def ours():
        return landscapes.top_eigenpairs(landscapes.hessian(scene), count, tolerance=1e-5).values.numpy()

    return Sides(ours, peer, note=f"errors: ours {accuracy(ours(), exact)}, theirs {accuracy(peer(), exact)}")

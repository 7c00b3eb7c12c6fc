"""Predictor and corrector: the corrector's step written out, and its paper's claims on mixtures with a known score."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.routine import Key
from workbench.samplers.brownian import Brownian

pytestmark = pytest.mark.usefixtures("one_thread")

LIKE = torch.empty(0, dtype=torch.float64)
SAMPLES = 2000


def sliced(x, y):
    """Sliced W2 of two samples of equal size, over 64 fixed directions."""
    directions = torch.randn(x.shape[1], 64, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    directions /= directions.norm(dim=0)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).square().mean().sqrt())


def distance(target, solver, interpolant, steps, seed, form="reverse-sde"):
    """Sliced W2 between what a solver makes and as many samples of the data; evaluations of the field."""
    routine = wb.sampling(target, solver, steps=steps, samples=SAMPLES, interpolant=interpolant, dtype=torch.float64)
    hyper = {"diffusion_form": form} if "diffusion_form" in routine.hypers else {}
    state = wb.Session(routine, seed=seed, hyper=hyper).step(steps).state
    return sliced(state.x[0], wb.make(target).sample(Key(100 + seed), SAMPLES, LIKE)), int(state.nfe)


def test_a_corrector_step_is_langevin_with_the_step_of_the_paper():
    """Two runs with noise of their own: ε = 2 (snr ‖z‖ / ‖s‖)², norms averaged over each run's samples."""
    key, t, end = Key((3, 4)), torch.full((2, 1), 0.4).double(), torch.full((2, 1), 0.5).double()
    solver = wb.make("predictor-corrector", corrections=2)
    field, x = wb.exact_field("two-modes"), Key(1).normal((2, 30, 2), like=LIKE)
    hyper = {"diffusion": 1.0, "diffusion_form": "reverse-sde", "snr": 0.3}
    noise = solver.draw(key, Brownian(key.stream("brownian"), (30, 2), LIKE), x, t, end)
    found = solver.step(field, field.interpolant, x, t, end, (), hyper, noise).x
    expected = wb.make("exponential-euler-maruyama").step(field, field.interpolant, x, t, end, (), hyper, noise).x
    for z in noise[2]:
        score = field(expected, end).score
        for run in range(2):
            lengths = [np.mean([float(v.norm()) for v in many[run]]) for many in (z, score)]
            size = 2 * (0.3 * lengths[0] / lengths[1]) ** 2
            expected[run] = expected[run] + size * score[run] + (2 * size) ** 0.5 * z[run]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.equal(noise[2][0], noise[2][1])
    assert not torch.equal(noise[2][0][0], noise[2][0][1])


def test_no_corrections_make_it_the_predictor():
    sampling = [
        wb.sampling("two-modes", solver, steps=8, samples=40)
        for solver in (wb.make("predictor-corrector", corrections=0), "exponential-euler-maruyama")
    ]
    one, other = (wb.Session(s, hyper={"diffusion_form": "reverse-sde"}).step(8).state.x for s in sampling)
    assert torch.equal(one, other)


def test_correcting_beats_predicting_alone_at_equal_evaluations():
    """On the variance-exploding process in 16 dimensions, at 40 evaluations, for each of 4 seeds."""
    case = "high-dimensional-mixture", "variance-exploding"
    for seed in range(4):
        predicted, spent = distance(case[0], "exponential-euler-maruyama", case[1], 40, seed)
        corrected, also = distance(case[0], "predictor-corrector", case[1], 20, seed)
        assert spent == also == 40
        assert corrected < 0.95 * predicted


@pytest.mark.parametrize("interpolant", ["variance-exploding", "variance-preserving"])
@pytest.mark.parametrize("solver", ["euler-maruyama", "heun", "predictor-corrector"])
def test_reverse_sde_flow_and_correctors_all_end_at_the_data(solver, interpolant):
    """Sliced W2 is that of two samples of the data: within 4 standard deviations of its mean over 20 pairs."""
    density = wb.make("two-modes")
    draws = [density.sample(Key(200 + i), SAMPLES, LIKE) for i in range(40)]
    pairs = [sliced(one, other) for one, other in zip(draws[::2], draws[1::2], strict=True)]
    found, _ = distance("two-modes", solver, interpolant, 120, seed=1)
    assert found < np.mean(pairs) + 4 * np.std(pairs)

"""Editing: what was recorded comes back, and a changed latent is drawn to the data by the SDE, not by the ODE."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.flows.fields import FunctionField
from workbench.problems.densities import Mixture
from workbench.routine import Key
from workbench.samplers.editing import CycleSDE, record_noises

pytestmark = pytest.mark.usefixtures("one_thread")


TIMES = torch.linspace(0.2, 0.99, 41, dtype=torch.float64)


def recorded(dtype=torch.float64, samples=300):
    field = wb.exact_field("two-modes")
    data = field.target.sample(Key(2), samples, torch.empty(0, dtype=dtype))
    return field, data, record_noises(field, data, TIMES)


def come_back(field, recording, start):
    routine = wb.sampling(field, CycleSDE(recording), grid=TIMES, samples=len(start), dtype=start.dtype)
    return wb.Session(routine, start=start).step(len(TIMES) - 1).state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_recorded_and_not_edited_comes_back(dtype):
    field, data, recording = recorded(dtype)
    state = come_back(field, recording, recording.latent)
    assert (state.x[0] - data).abs().max() < (1e-12 if dtype == torch.float64 else 1e-4)
    assert state.nfe.tolist() == [[len(TIMES) - 1]]


def test_the_latent_is_the_data_noised():
    """x_t = alpha x1 + spread n at the first time: residuals are unit normals, 4 sigma of 20,000 numbers."""
    _, data, recording = recorded(samples=10_000)
    t = TIMES[0]
    ratio = t / TIMES[-1]  # alpha; data is taken to be at the last time
    spread = ((1 - t) ** 2 - (ratio * (1 - TIMES[-1])) ** 2).sqrt()
    n = (recording.latent - ratio * data) / spread
    assert n.mean().abs() < 4 / n.numel() ** 0.5
    assert (n.square().mean() - 1).abs() < 4 * (2 / n.numel()) ** 0.5
    assert (n * data).mean().abs() < 4 * float(data.square().mean() / n.numel()) ** 0.5


def test_between_other_times_and_without_a_recording_noise_is_drawn():
    field, _, recording = recorded(samples=20)
    plain, other = (
        wb.Session(wb.sampling(field, solver, steps=8, samples=20, dtype=torch.float64)).step(8).state.x
        for solver in ("cycle-sde", CycleSDE(recording))
    )
    exponential = wb.Session(
        wb.sampling(field, "exponential-euler-maruyama", steps=8, samples=20, dtype=torch.float64),
        hyper={"diffusion_form": "reverse-sde"},
    )
    assert torch.equal(plain, other)
    assert torch.allclose(plain, exponential.step(8).state.x, rtol=0, atol=1e-12)


def test_what_cannot_be_recorded_is_refused():
    field, data, recording = recorded(samples=20)
    with pytest.raises(ValueError, match="expected a field with an interpolant"):
        record_noises(FunctionField(lambda x, t: x), data, TIMES)
    with pytest.raises(ValueError, match="expected at least two times that rise"):
        record_noises(field, data, [0.5, 0.2])
    with pytest.raises(ValueError, match="expected noise to be left at the last time, got 1"):
        record_noises(field, data, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"expected points of shape \(20, 2\), as recorded, got \(7, 2\)"):
        come_back(field, recording, data[:7])


# ------------------------------------------------------------------------------------------------ a mismatched latent


LINE = Mixture([[-1.5], [1.5]], [0.4, 0.7], [0.3, 0.7])


def divergence(x, field, t):
    """KL from the samples' density to p_t, both on a grid of 100 cells from -5 to 5."""
    edges = np.linspace(-5, 5, 101)
    middles = torch.tensor(edges[1:] + edges[:-1]).unsqueeze(-1) / 2
    p, _ = np.histogram(x.double().numpy(), edges, density=True)
    log_q = field.log_density(middles, torch.full((100,), t, dtype=torch.float64)).numpy()
    some = p > 0
    return float((p[some] * (np.log(p[some]) - log_q[some])).sum() * (edges[1] - edges[0]))


@pytest.mark.parametrize("solver", ["heun", "exponential-euler-maruyama", "euler-maruyama"])
def test_a_mismatch_shrinks_along_the_sde_and_stays_along_the_ode(solver):
    """100,000 unit normals moved by 1 to start with: the Kullback–Leibler divergence to p_t at nine times."""
    routine = wb.sampling(LINE, solver, steps=64, samples=100_000, interpolant="trigonometric-path")
    start = Key(1).normal((100_000, 1), like=torch.empty(0)) + 1
    session, found = wb.Session(routine, start=start), []
    for k in range(0, 65, 8):
        state = session.seek(k).state if k <= session.head else session.step(k - session.index).state
        found.append(divergence(state.x[0, :, 0], routine.field, state.t.item()))
    assert found[0] == pytest.approx(0.5, rel=0.02)
    if solver == "heun":
        assert max(found) < 1.02 * min(found)
    else:
        assert (np.diff(found) < 0).all()
        assert found[-1] < 0.6 * found[0]


def test_an_edited_latent_comes_back_nearer_to_the_data_by_the_sde():
    """Data carried back to t = 0.3, moved by 1 there, and let go: by recorded noise, and by the flow both ways."""
    field = wb.exact_field(LINE)
    data = LINE.sample(Key(3), 20_000, torch.empty(0, dtype=torch.float64))
    times = torch.linspace(0.3, 0.99, 41, dtype=torch.float64)
    recording = record_noises(field, data, times)
    more = {"grid": times, "samples": len(data), "dtype": torch.float64}
    cycle = wb.sampling(field, CycleSDE(recording), **more)
    by_sde = wb.Session(cycle, start=recording.latent + 1).step(40).state.x[0, :, 0]
    latent = wb.Session(wb.sampling(field, "heun", reverse=True, **more), start=data).step(40).state.x[0]
    by_ode = wb.Session(wb.sampling(field, "heun", **more), start=latent + 1).step(40).state.x[0, :, 0]
    assert divergence(by_sde, field, 0.99) < 0.5 * divergence(by_ode, field, 0.99)

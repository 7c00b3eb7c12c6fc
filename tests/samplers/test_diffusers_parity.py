"""Diffusion samplers are those of `diffusers`, step for step, on the exact noise prediction of a Gaussian mixture.

Both see the same noise levels: the trigonometric path has alpha² + sigma² = 1, so that a scheduler's table is
alphas_cumprod = alpha(t)² or sigmas = sigma(t) / alpha(t) at our times; it is put in place of the scheduler's own, in
float64. The scheduler's timesteps count down to 0 at our last time but one; its `final` value is our last time.
Schedulers are set to the plain method: no clipping, no lower order at the end beyond what noise level 0 needs.
"""

import functools
import itertools

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete

import workbench as wb
from workbench.flows.fields import exact_field
from workbench.problems.densities import Mixture
from workbench.rollout import advance

# 2026-11-25: diffusers 0.42 gives tensors to np.array and np.log; these go when torch.Tensor follows NumPy 2,
# https://github.com/pytorch/pytorch/issues/136264 and https://github.com/pytorch/pytorch/issues/180657
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar"),
]

PATH = wb.make("trigonometric-path")
FIELD = exact_field(Mixture([[1.5, 0.0], [-1.0, 0.8], [0.0, -1.2]], [0.5, 0.3, 0.6], [1, 2, 1.5]), PATH)
UNEVEN = [0.06, 0.13, 0.27, 0.35, 0.52, 0.6, 0.79, 0.86, 0.93]
EVEN = [0.1 + 0.1 * i for i in range(9)]
TO_DATA = [*UNEVEN, 1.0]
EXACT, SINGLE = {"rtol": 0, "atol": 1e-12}, {"rtol": 0, "atol": 3e-6}


@pytest.fixture(autouse=True)
def _deprecations_of_diffusers(monkeypatch):
    """It announces that DPM-Solver without ++ will go; that is no matter here."""
    modules = [
        diffusers.schedulers.scheduling_dpmsolver_singlestep,
        diffusers.schedulers.scheduling_dpmsolver_multistep,
    ]
    for module in modules:
        monkeypatch.setattr(module, "deprecate", lambda *args, **kwargs: None)


@functools.cache
def start():
    return torch.randn(1, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def noise(x, t):
    """What both take for the network: E[unit noise | x_t = x]."""
    return FIELD(x, torch.as_tensor(t, dtype=x.dtype)).noise


def ours(solver, times, hyper=None):
    """(points after every step, the unit normals of every step, evaluations)."""
    routine = wb.sampling(FIELD, solver, grid=times, samples=16, dtype=torch.float64)
    key, ready = wb.Key(3), routine.normalise(hyper)
    state = routine.init(key.stream("init"), start=start())
    points, normals = [], []
    for k in range(len(times) - 1):
        normals.append(routine.draw(key.at(k), state, ready))
        state, _ = advance(routine, state, ready, key, k)
        points.append(state.x)
    return points, normals, int(state.nfe[0, 0])


def levels(times):
    """alpha and sigma at times, float64."""
    t = torch.tensor(times, dtype=torch.float64)
    sigma = torch.where(t == 1, 0, PATH.sigma(t))
    return PATH.alpha(t), sigma


def tabled(scheduler, times, every=1):
    """A scheduler of `alphas_cumprod` with ours in it; one step is `every` of its timesteps."""
    squares = levels(times)[0].square()
    scheduler.set_timesteps((len(times) - 1) // every)
    scheduler.alphas_cumprod = squares[: scheduler.config.num_train_timesteps].flip(0)
    scheduler.final_alpha_cumprod = scheduler.one = squares[-1]
    return scheduler


def ladder(scheduler, times):
    """A scheduler of `sigmas` with ours in it; it starts at the first."""
    alpha, sigma = levels(times)
    scheduler.set_timesteps(len(times) - 1)
    scheduler.sigmas = sigma / alpha
    scheduler.set_begin_index(0)
    return scheduler


def walk(scheduler, times, scaled=False):
    """Points after every step of a scheduler of `sigmas`; `scaled`: its points are x / alpha."""
    x, alpha, found = start(), levels(times)[0], []
    for k, t in enumerate(times[:-1]):
        sample = x / alpha[k] if scaled else x
        x = scheduler.step(noise(x, t), scheduler.timesteps[k], sample).prev_sample
        x = x * alpha[k + 1] if scaled else x
        found.append(x)
    return found


def same(points, theirs, tolerance):
    assert len(points) == len(theirs)
    for one, other in zip(points, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def plain(kind, **more):
    """A scheduler of `sigmas` that ends at its smallest noise level."""
    return kind(num_train_timesteps=1000, final_sigmas_type="sigma_min", lower_order_final=False, **more)


# ------------------------------------------------------------------------------------------------- one evaluation


def ddim_of_diffusers(times, eta=0.0, normals=None):
    n = len(times) - 1
    kind = diffusers.DDIMScheduler(num_train_timesteps=n, clip_sample=False, set_alpha_to_one=False)
    scheduler, x, found = tabled(kind, times), start(), []
    for k, t in enumerate(times[:-1]):
        drawn = {} if normals is None else {"variance_noise": normals[k]}
        x = scheduler.step(noise(x, t), n - 1 - k, x, eta=eta, **drawn).prev_sample
        found.append(x)
    return found


@pytest.mark.parametrize("times", [UNEVEN, TO_DATA], ids=["uneven", "to-data"])
def test_ddim_equals_diffusers(times):
    points, _, spent = ours("ddim", times)
    same(points, ddim_of_diffusers(times), EXACT)
    assert spent == len(times) - 1


def test_ddim_is_euler_in_the_noise_level_of_diffusers():
    points, _, _ = ours("ddim", TO_DATA)
    scheduler = ladder(diffusers.EulerDiscreteScheduler(), TO_DATA)
    scheduler.is_scale_input_called = True
    same(points, walk(scheduler, TO_DATA, scaled=True), SINGLE)


def test_ddim_is_the_edm_euler_of_diffusers():
    points, _, _ = ours("ddim", TO_DATA)
    scheduler, alpha, x, found = ladder(diffusers.EDMEulerScheduler(), TO_DATA), levels(TO_DATA)[0], start(), []
    scheduler.is_scale_input_called = True
    for k, t in enumerate(TO_DATA[:-1]):
        data = FIELD(x, torch.tensor(t, dtype=torch.float64)).data
        made = scheduler.step(data, scheduler.timesteps[k], x / alpha[k], pred_original_sample=data)
        x = made.prev_sample * alpha[k + 1]
        found.append(x)
    same(points, found, SINGLE)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_noisy_ddim_equals_diffusers(eta):
    points, normals, _ = ours("ddim-eta", TO_DATA, {"eta": eta})
    same(points, ddim_of_diffusers(TO_DATA, eta, normals), EXACT)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_equals_diffusers(variance, monkeypatch):
    points, normals, _ = ours("ddpm", TO_DATA, {"variance": variance})
    n, x, found = len(TO_DATA) - 1, start(), []
    kind = diffusers.DDPMScheduler(num_train_timesteps=n, clip_sample=False, variance_type=f"fixed_{variance}")
    scheduler = tabled(kind, TO_DATA)
    for k, t in enumerate(TO_DATA[:-1]):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, drawn=normals[k], **kwargs: drawn)
        x = scheduler.step(noise(x, t), n - 1 - k, x).prev_sample
        found.append(x)
    same(points, found, {"rtol": 0, "atol": 1e-9})  # diffusers keeps a variance of 1e-20 where there is none


def test_ddpm_is_euler_ancestral_of_diffusers(monkeypatch):
    points, normals, _ = ours("ddpm", TO_DATA)
    drawn = iter(normals)
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *args, **kwargs: next(drawn))
    scheduler = ladder(diffusers.EulerAncestralDiscreteScheduler(), TO_DATA)
    scheduler.is_scale_input_called = True
    same(points, walk(scheduler, TO_DATA, scaled=True), SINGLE)


def test_heun_equals_diffusers():
    points, _, spent = ours("edm-heun", TO_DATA)
    scheduler, alpha, x, found = diffusers.HeunDiscreteScheduler(), levels(TO_DATA)[0], start(), []
    s = levels(TO_DATA)[1] / alpha
    scheduler.set_timesteps(len(TO_DATA) - 1)
    scheduler.sigmas = torch.cat([s[:1], s[1:-1].repeat_interleave(2), s[-1:]])
    scheduler.set_begin_index(0)
    for k, t in enumerate(TO_DATA[:-1]):
        u = scheduler.step(noise(x, t), scheduler.timesteps[0], x / alpha[k]).prev_sample
        if TO_DATA[k + 1] < 1:
            slope = noise(u * alpha[k + 1], TO_DATA[k + 1])
            u = scheduler.step(slope, scheduler.timesteps[0], u).prev_sample
        x = u * alpha[k + 1]
        found.append(x)
    same(points, found, EXACT)
    assert spent == 2 * len(found)


# ------------------------------------------------------------------------------------------------- within a step


def with_stages(times, stages):
    """Times with those of λ_s + r h in between: what are steps in diffusers."""
    t = torch.tensor(times, dtype=torch.float64)
    lam, found = PATH.log_snr(t), []
    for k, (here, there) in enumerate(itertools.pairwise(lam)):
        found += [times[k], *[float(PATH.time_of(here + r * (there - here))) for r in stages]]
    return [*found, times[-1]]


SINGLESTEP = {
    "dpm-solver-1": ("dpmsolver", []),
    "dpm-solver-2": ("dpmsolver", [1 / 2]),
    "dpm-solver-3": ("dpmsolver", [1 / 3, 2 / 3]),
    "dpm-solver-pp-2s": ("dpmsolver++", [1 / 2]),
    "dpm-solver-pp-3s": ("dpmsolver++", [1 / 3, 2 / 3]),
}


@pytest.mark.parametrize("name", SINGLESTEP)
def test_singlestep_equals_diffusers(name):
    """diffusers has one solver type for all stages; the papers' algorithms integrate the slope exactly at the second
    stage of order 3 ("heun" there), and take the middle's at order 2 ("midpoint").
    """
    algorithm, stages = SINGLESTEP[name]
    order, points, x, theirs = len(stages) + 1, ours(name, UNEVEN), start(), []
    kind = diffusers.DPMSolverSinglestepScheduler
    nodes = with_stages(UNEVEN, stages)
    scheduler = ladder(plain(kind, solver_order=order, algorithm_type=algorithm), nodes)
    assert scheduler.order_list == list(range(1, order + 1)) * (len(UNEVEN) - 1)
    for k, t in enumerate(nodes[:-1]):
        within = k % order + 1
        scheduler.register_to_config(solver_type="heun" if within < order else "midpoint")
        x = scheduler.step(noise(x, t), scheduler.timesteps[k], x).prev_sample
        theirs += [x] if within == order else []
    same(points[0], theirs, EXACT)
    assert points[2] == order * (len(UNEVEN) - 1)


def test_dpm_solver_2_is_kdpm2_of_diffusers():
    points, _, _ = ours("dpm-solver-2", UNEVEN)
    alpha, sigma = levels(UNEVEN)
    s = sigma / alpha
    scheduler = diffusers.KDPM2DiscreteScheduler()
    scheduler.set_timesteps(len(UNEVEN) - 1)
    middle = (s[:-1] * s[1:]).sqrt()
    scheduler.sigmas = torch.cat([s[:1], s[1:-1].repeat_interleave(2), s[-1:]])
    scheduler.sigmas_interpol = torch.cat([s[:1], torch.stack([middle, s[1:]], 1).flatten()])
    scheduler.set_begin_index(0)
    nodes, x, found = with_stages(UNEVEN, [1 / 2]), start(), []
    for k in range(len(UNEVEN) - 1):
        u = scheduler.step(noise(x, nodes[2 * k]), scheduler.timesteps[0], x / alpha[k]).prev_sample
        a = levels([nodes[2 * k + 1]])[0]
        x = scheduler.step(noise(u * a, nodes[2 * k + 1]), scheduler.timesteps[0], u).prev_sample * alpha[k + 1]
        found.append(x)
    same(points, found, EXACT)


# ------------------------------------------------------------------------------------------------- over several steps


@pytest.mark.parametrize("times", [UNEVEN, TO_DATA], ids=["uneven", "to-data"])
@pytest.mark.parametrize("name", ["dpm-solver-pp-2m", "dpm-solver-pp-3m"])
def test_multistep_equals_diffusers_on(name, times):
    """In float32, which diffusers rounds points to. To noise level 0 it, too, steps by DDIM."""
    points, _, spent = ours(name, times)
    kind = functools.partial(diffusers.DPMSolverMultistepScheduler, solver_order=2 if name.endswith("2m") else 3)
    scheduler = plain(kind)
    scheduler.register_to_config(final_sigmas_type="zero" if times[-1] == 1 else "sigma_min")
    same(points, walk(ladder(scheduler, times), times), SINGLE)
    assert spent == len(times) - 1


@pytest.mark.parametrize("name", ["dpm-solver-pp-2m", "dpm-solver-pp-3m"])
def test_multistep_equals_diffusers(name):
    """Its update itself, in float64, once there are predictions enough."""
    points, _, _ = ours(name, UNEVEN)
    order = 2 if name.endswith("2m") else 3
    scheduler = ladder(plain(diffusers.DPMSolverMultistepScheduler, solver_order=order), UNEVEN)
    update = getattr(scheduler, f"multistep_dpm_solver_{'second' if order == 2 else 'third'}_order_update")
    before = [start(), *points]
    data = [FIELD(x, torch.tensor(t, dtype=torch.float64)).data for x, t in zip(before, UNEVEN, strict=True)]
    for k in range(order - 1, len(UNEVEN) - 1):
        scheduler._step_index = k
        torch.testing.assert_close(update(data[k - order + 1 : k + 1], sample=before[k]), points[k], **EXACT)


def test_sde_multistep_equals_diffusers():
    points, normals, _ = ours("sde-dpm-solver-pp-2m", TO_DATA)
    kind = functools.partial(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
    scheduler = ladder(kind(final_sigmas_type="zero", lower_order_final=False), TO_DATA)
    x, found = start(), []
    for k, t in enumerate(TO_DATA[:-1]):
        x = scheduler.step(noise(x, t), scheduler.timesteps[k], x, variance_noise=normals[k]).prev_sample
        found.append(x)
    same(points, found, SINGLE)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("name", ["unip-3", "unipc-1", "unipc-2", "unipc-3"])
def test_unipc_equals_diffusers(name, variant):
    """Theirs corrects a point at the start of the next step, and so do we: what is compared is before correction."""
    points, _, spent = ours(name, UNEVEN, {"variant": variant})
    never = list(range(len(UNEVEN))) if name == "unip-3" else []
    made = plain(
        diffusers.UniPCMultistepScheduler, solver_order=int(name[-1]), solver_type=variant, disable_corrector=never
    )
    same(points, walk(ladder(made, UNEVEN), UNEVEN), EXACT)
    assert spent == len(UNEVEN) - 1


def test_unipc_equals_diffusers_to_noise_level_0():
    points, _, _ = ours("unipc-2", TO_DATA)
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=2, final_sigmas_type="zero", lower_order_final=True)
    same(points, walk(ladder(scheduler, TO_DATA), TO_DATA), EXACT)


@pytest.mark.parametrize("name", ["deis-2", "deis-3"])
def test_deis_equals_diffusers(name):
    points, _, _ = ours(name, UNEVEN)
    scheduler = diffusers.DEISMultistepScheduler(solver_order=int(name[-1]), lower_order_final=False)
    same(points, walk(ladder(scheduler, UNEVEN), UNEVEN), {"rtol": 0, "atol": 1e-11})


def test_lms_equals_diffusers():
    points, _, _ = ours("lms", TO_DATA)
    scheduler = ladder(diffusers.LMSDiscreteScheduler(), TO_DATA)
    scheduler.is_scale_input_called = True
    same(points, walk(scheduler, TO_DATA, scaled=True), EXACT)


# ------------------------------------------------------------------------------------------------- pseudo methods


def test_plms_equals_diffusers():
    points, _, spent = ours("plms", EVEN)
    n, x, found = len(EVEN) - 1, start(), []
    kind = diffusers.PNDMScheduler(num_train_timesteps=n, skip_prk_steps=True)
    scheduler = tabled(kind, EVEN)
    assert scheduler.timesteps[:4].tolist() == [n - 1, n - 2, n - 2, n - 3]
    for timestep in scheduler.timesteps.tolist():
        x = scheduler.step(noise(x, EVEN[n - 1 - timestep]), timestep, x).prev_sample
        found.append(x)
    same(points, found[1:], EXACT)
    assert spent == n + 1


def test_pndm_equals_diffusers():
    """Its timesteps are two a step: the odd ones are the middles of the Runge–Kutta steps."""
    points, _, spent = ours("pndm", EVEN)
    n, x, found = len(EVEN) - 1, start(), []
    middles = [(a + b) / 2 for a, b in itertools.pairwise(EVEN)]
    finer = [t for pair in zip(EVEN, middles, strict=False) for t in pair] + EVEN[-1:]
    kind = diffusers.PNDMScheduler(num_train_timesteps=2 * n, skip_prk_steps=False)
    scheduler = tabled(kind, finer, every=2)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.roll(-1)  # its timesteps start at 2n - 2, not 2n - 1
    for timestep in scheduler.timesteps.tolist():
        x = scheduler.step(noise(x, finer[2 * n - 2 - timestep]), timestep, x).prev_sample
        found.append(x)
    same(points, [*found[3:12:4], *found[12:]], EXACT)
    assert spent == n + 9

"""What the papers claim of their training choices, at small scale: three trainings of each, at equal steps and nets.

Three runs share their batches and differ in their first weights; each is compared with its fellow of the baseline.
"""

import functools
import math

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.flows.measures.paths import follow, straightness
from workbench.rollout import advance
from workbench.routine import Key

pytestmark = pytest.mark.usefixtures("one_thread")

LIKE = torch.empty(0)
RUNS = 3


def learn(target, objective="flow-matching", *, steps=1500, lr=4e-3, width=64, source=None, start=None, **options):
    """The fields of three runs after `steps` steps of Adam on batches of 256, the rate falling as a cosine to 0.

    They start from new weights, or from those of the fields `start`; `hyper`, among the options, turns the rest.
    """
    net, hyper = wb.make("mlp", width=width, depth=3, activation="silu"), options.pop("hyper", None)
    routine = wb.flow_training(source, target, objective, network=net, **options)
    first = routine.net.model.init(Key(tuple(range(RUNS))).stream("init"), LIKE)
    first = first if start is None else torch.cat([field.params for field in start])
    state, hyper = routine.init(Key(0), start=first), routine.normalise(hyper)
    for k in range(steps):
        hyper["lr"] = torch.tensor(lr / 2 * (1 + math.cos(math.pi * k / steps)))
        state, _ = advance(routine, state, hyper, Key(0), k)
    return [routine.field(state, run) for run in range(RUNS)]


def drawn(density, n=1000, seed=1):
    return (wb.make(density) if isinstance(density, str) else density).sample(Key(seed), n, LIKE)


def generated(field, steps, solver="euler", n=1000):
    """Samples of the same n source samples, in so many steps."""
    routine = wb.sampling(field, solver, steps=steps, samples=n)
    return wb.Session(routine, seed=2, budget=1).step(steps).state.x[0]


def w2(a, b):
    """W₂ between two sets of samples, exactly, by POT."""
    import ot

    cost = torch.cdist(a.double(), b.double()).square().numpy()
    return math.sqrt(ot.emd2([], [], cost))


def w2s(fields, steps, target, solver="euler"):
    """W₂ to two sets of data, their mean, of every field."""
    data = [drawn(target, seed=seed) for seed in (3, 4)]
    found = [generated(field, steps, solver) for field in fields]
    return np.array([np.mean([w2(x, real) for real in data]) for x in found])


def paths_of(fields):
    start = drawn("gaussian", 2000, seed=5)
    with torch.no_grad():
        return [follow(field, start, steps=32) for field in fields]


def straight(fields):
    return np.array([float(straightness(paths).value) for paths in paths_of(fields)])


def reflow(field, **settings):
    return wb.make("reflow", field=field, steps=50, pool=8192, **settings)


# ------------------------------------------------------------------------------------------------- reflow


@functools.cache
def first_flow():
    return learn("eight-gaussians")


@functools.cache
def second_flow():
    return learn("eight-gaussians", coupling=reflow(first_flow()[0]))


@pytest.mark.slow
def test_reflow_straightens_a_flow_at_no_transport_cost():
    """Liu et al.: S and E|X_1 - X_0|² fall, and one step of Euler's method then does with at most half of W₂."""
    once, twice = first_flow(), second_flow()
    assert (straight(twice) < 0.05 * straight(once)).all()
    before, *after = (p.points[-1] - p.points[0] for p in paths_of([once[0], *twice]))
    for moved in after:
        saved = before.square().sum(-1) - moved.square().sum(-1)
        assert saved.mean() > -3 * saved.std() / len(saved) ** 0.5
    assert (w2s(twice, 1, "eight-gaussians") < 0.5 * w2s(once, 1, "eight-gaussians")).all()
    assert abs(w2s(twice, 50, "eight-gaussians") - w2s(once, 50, "eight-gaussians")).max() < 0.1


@pytest.mark.slow
def test_one_step_is_distilled_better_from_a_reflowed_flow():
    """InstaFlow: one step comes nearer to the map of a 2-rectified flow than to that of a 1-rectified one.

    Its claim about W₂ to the data does not show here: either student is as near as a second set of data is.
    """
    start, students, misses = drawn("gaussian", 2000, seed=5), [], []
    for teacher in (first_flow()[0], second_flow()[0]):
        pairs = reflow(teacher)
        fields = learn("eight-gaussians", "one-step-distillation", coupling=pairs)
        with torch.no_grad():
            steps = [start + field(start, torch.zeros(len(start))).velocity for field in fields]
        misses.append([float((x - pairs.carry(teacher, start)).square().sum(-1).mean()) for x in steps])
        students.append(w2s(fields, 1, "eight-gaussians"))
    assert (np.array(misses[1]) < 0.9 * np.array(misses[0])).all()
    floor = w2(drawn("eight-gaussians", seed=3), drawn("eight-gaussians", seed=4))
    assert abs(np.array(students) - floor).max() < 0.03


@pytest.mark.slow
def test_u_shaped_times_and_pseudo_huber_make_a_better_reflow():
    """Lee et al.: one step's W₂ is lower than with uniform times and squared errors; a second reflow adds little."""
    better = learn(
        "eight-gaussians", coupling=reflow(first_flow()[0]), times="u-shaped-times", premetric="pseudo-huber"
    )
    assert w2s(better, 1, "eight-gaussians").mean() < w2s(second_flow(), 1, "eight-gaussians").mean()
    third = learn("eight-gaussians", coupling=reflow(second_flow()[0]))
    s = [straight(fields).mean() for fields in (first_flow(), second_flow(), third)]
    assert abs(s[2] - s[1]) < 0.1 * abs(s[1] - s[0])


# ------------------------------------------------------------------------------------------------- couplings


@pytest.mark.slow
def test_batch_optimal_transport_straightens_a_flow():
    """Pooladian et al.: with 256 pairs matched S, the pairs' E|x1 - x0|² and W₂ of four Euler steps are all lower."""
    matched, plain = learn("eight-gaussians", coupling="minibatch-ot"), first_flow()
    assert (straight(matched) < 0.1 * straight(plain)).all()
    assert (w2s(matched, 4, "eight-gaussians") < w2s(plain, 4, "eight-gaussians")).all()
    costs = []
    for name in ("minibatch-ot", "independent"):
        source, target = wb.make("gaussian"), wb.make("eight-gaussians")
        x0, x1, _ = wb.make(name).draw(Key(0), source, target, 2048, {"group": 256}, LIKE)
        costs.append(float((x1 - x0).square().sum(-1).mean()))
    assert costs[0] < 0.5 * costs[1]


# ------------------------------------------------------------------------------------------------- paths


def test_deblending_comes_to_the_target_at_first_order():
    """Heitz et al.: with exact means of blends the mapped points err by O(1/steps), and the way back is a way back."""
    field = wb.exact_field("two-modes", source="eight-gaussians")
    start, real = drawn("eight-gaussians", 400, seed=6).double(), [drawn("two-modes", 400, seed) for seed in (7, 8)]
    exact = follow(field, start, steps=256).points[-1]

    def mapped(x, steps, reverse=False):
        routine = wb.sampling(field, "euler", steps=steps, samples=400, reverse=reverse, dtype=torch.float64)
        return wb.Session(routine, start=x, budget=1).step(steps).state.x[0]

    steps = [32, 64, 128, 256]
    ends = [mapped(start, n) for n in steps]
    returned = [mapped(end, n, reverse=True) for end, n in zip(ends, steps, strict=True)]
    for errors in (
        [float((end - exact).norm(dim=-1).mean()) for end in ends],
        [w2(end, exact) for end in ends],
        [float((back - start).norm(dim=-1).mean()) for back in returned],
    ):
        slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert -1.25 < slope < -0.8
    assert w2(exact, real[0]) < 1.2 * w2(real[1], real[0])


def test_straight_paths_spend_less_energy_than_those_of_diffusions():
    """SiT: what it calls path length, E∫|v|² dt, is lower on the linear path than on the variance-preserving one.

    In the plain sense of length, E∫|v| dt, the linear path is the longer one here.
    """
    start = drawn("gaussian", 1000, seed=5).double()
    for density in ("eight-gaussians", "two-modes", "gaussian-grid"):
        energies, lengths = [], []
        for path in ("linear-path", "variance-preserving"):
            paths = follow(wb.exact_field(density, path), start, steps=128)
            energies.append(float(paths.velocities.square().sum(-1).mean()))
            lengths.append(float(paths.points.diff(dim=0).norm(dim=-1).sum(0).mean()))
        assert energies[0] < 0.9 * energies[1]
        assert lengths[0] > lengths[1]

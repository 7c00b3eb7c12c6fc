"""Rectified diffusion: retrained on its own pairs, a diffusion model predicts one noise along a path that stays bent.

The noise schedule leaves alpha = 0.07 of the data at the first time: one step's error in the data is 1 / alpha of that
in the noise.
"""

import functools

import numpy as np
import pytest
import torch

import workbench as wb
from tests.flows.test_claims import learn, paths_of, w2s
from workbench.flows.fields import Prediction
from workbench.flows.measures.paths import turning
from workbench.flows.measures.reference import solve_to
from workbench.routine import Key
from workbench.samplers.exponential import first_order, level

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = torch.empty(0, dtype=torch.float64)


def test_one_step_between_any_two_times_is_exact():
    """Pairs end where a fine solution does on the variance-preserving path; with a pair's noise DDIM stays on it."""
    field = wb.exact_field("eight-gaussians", "variance-preserving")
    path = field.interpolant
    coupling = wb.make("rectified-diffusion", pool=0, steps=400)
    assert coupling.exact(field.source, field.target).interpolant.name == path.name
    x0, x1, _ = coupling.draw(Key(1), field.source, field.target, 50, {}, EXACT)
    first, last = torch.tensor(path.ends, dtype=torch.float64)
    fine, _ = solve_to(field, path.spread(first) * x0, first, last)
    assert float((x1 - fine).norm(dim=-1).median()) < 2e-2
    t, end = torch.tensor([0.1, 0.6], dtype=torch.float64)
    known = Prediction(path, path.at(x0, x1, t), t, {"noise": x0})
    torch.testing.assert_close(first_order(known, level(path, end)), path.at(x0, x1, end))


def diffusion(**options):
    path = wb.make("variance-preserving", beta_max=10.5)
    return learn("eight-gaussians", "noise-prediction", interpolant=path, **options)


@functools.cache
def first():
    return diffusion()


def unsteady(fields):
    """The variance of the predicted noise along the flow's own paths, mean over samples."""
    found = []
    for field, paths in zip(fields, paths_of(fields), strict=True):
        with torch.no_grad():
            noise = [field(x, t).noise for x, t in zip(paths.points, paths.times, strict=True)]
        found.append(float(torch.stack(noise).var(0).sum(-1).mean()))
    return np.array(found)


@pytest.mark.slow
def test_one_step_is_better_after_retraining_on_pairs_alone():
    """Wang et al.: the noise is steadier, one DDIM step has less than half of W₂, paths still bend; unpaired, no gain.

    As much more training on independent pairs lowers one step's W₂ by a tenth and makes the noise no steadier. That one
    step comes as near as one of a linear flow's reflow does not show here: 0.75 against 0.49, since an error of the
    noise at the first time counts 1 / alpha in the data.
    """
    retrained = diffusion(coupling=wb.make("rectified-diffusion", field=first()[0], steps=50, pool=8192), start=first())
    unpaired = diffusion(start=first())
    assert (unsteady(retrained) < 0.1 * unsteady(first())).all()
    assert (unsteady(unpaired) > 0.9 * unsteady(first())).all()
    before, paired, more = (w2s(fields, 1, "eight-gaussians", "ddim") for fields in (first(), retrained, unpaired))
    assert (paired < 0.5 * before).all()
    assert (more > 0.85 * before).all()
    assert all(float(turning(paths.points).value) > 1.0 for paths in paths_of(retrained))

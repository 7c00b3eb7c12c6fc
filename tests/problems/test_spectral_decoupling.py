"""Spectral decoupling: the formula, and what it does to features that a stronger one would starve."""

import math

import pytest
import torch
import torch.nn.functional as F

import workbench as wb
from workbench.landscapes import landscape
from workbench.problems.losses import spectral_decoupling

pytestmark = pytest.mark.usefixtures("one_thread")
F64 = {"dtype": torch.float64}


def test_the_formula_written_out_sample_by_sample():
    outputs, targets = torch.randn(6, 3, **F64), torch.arange(6) % 3
    wanted = 0.0
    for out, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        wanted -= out[target] - math.log(sum(map(math.exp, out)))
        wanted += 0.7 / 2 * sum(v * v for v in out)
    assert spectral_decoupling(0.7)(outputs, targets).item() == pytest.approx(wanted / 6, rel=1e-12)
    assert spectral_decoupling(0)(outputs, targets) == F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("strength", [-1.0, math.inf, math.nan])
def test_a_strength_that_is_none_is_refused(strength):
    with pytest.raises(ValueError, match="expected strength to be a number from 0"):
        spectral_decoupling(strength)


def test_with_two_classes_it_is_the_papers_loss_of_one_output():
    """Minimised over free outputs: the sum vanishes, the difference minimises log(1 + exp(-y ŷ)) + (λ/2) ŷ²."""
    strength, targets = 0.3, torch.tensor([0, 1, 1])
    outputs = torch.zeros(3, 2, **F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = spectral_decoupling(strength)(outputs, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = outputs.detach()
    assert found.sum(1).abs().max() < 1e-8
    y, z = 2 * targets - 1, found[:, 1] - found[:, 0]
    slope = -y * torch.sigmoid(-y * z) + strength / 2 * z
    assert slope.abs().max() < 1e-8
    assert (y * z > 0.5).all()


def test_it_trains_and_is_a_landscape_like_any_loss():
    data = (torch.randn(40, 3), torch.arange(40) % 2)
    routine = wb.training("mlp", spectral_decoupling(0.1), data, "adam", batch_size=16)
    record = wb.rollout(routine, 30, hyper={"lr": 0.01}, probes=["train"])
    assert record.train_loss[0, -1] < record.train_loss[0, 0]
    made = landscape("mlp", spectral_decoupling(0.1), data)
    x = made.start[None]
    torch.testing.assert_close(made.each(x).mean(1), made(x))
    assert "spectral decoupling 0.1" in made.title


def responses(loss, decay, u, strengths, targets):
    """z = uᵀŷ at the minimum of a linear net on features u diag(strengths), with a penalty (decay / 2) ‖weights‖²."""
    x = u * strengths
    net = torch.nn.Linear(len(u), 2, bias=False).double()
    made = landscape(net, loss, (x, targets, x, targets), dtype=torch.float64)
    weights = torch.zeros(1, made.dim, **F64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=2000, max_eval=4000, history_size=50, line_search_fn="strong_wolfe"
    )
    optimizer.param_groups[0].update(tolerance_grad=1e-11, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        total = made(weights).sum() + decay / 2 * weights.square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    assert weights.grad.abs().max() < 1e-8
    outputs = made.outputs(weights.detach())[0]
    return u.mT @ (outputs[:, 1] - outputs[:, 0])


def features(seed, n=12, share=0.95):
    """(orthogonal features u (samples, features), classes): each points to the class, u_jᵀy > 0, the first most."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 2
    y = (2.0 * targets - 1).double()
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, **F64))
    wanted = torch.full((n,), math.sqrt((1 - share**2) / (n - 1)), **F64)
    wanted[0] = share
    mirror = q.mT @ y / math.sqrt(n) - wanted
    u = q - 2 * torch.outer(q @ mirror, mirror) / mirror.square().sum()
    torch.testing.assert_close(u.mT @ y, math.sqrt(n) * wanted)
    return u, targets


@pytest.mark.parametrize("seed", range(4))
def test_a_stronger_feature_starves_the_others_under_cross_entropy_and_not_under_spectral_decoupling(seed):
    """Starvation as the paper defines it: the response z_j to feature j falls when another feature becomes stronger.

    The first of 12 features goes from strength 1 to 3. Cross-entropy has weight decay, without which it has no minimum.
    """
    u, targets = features(seed)
    weak, strong = torch.ones(12, **F64), torch.ones(12, **F64)
    strong[0] = 3
    change = {}
    for name, loss, decay in (("cross-entropy", "cross_entropy", 0.01), ("decoupled", spectral_decoupling(0.2), 0.0)):
        before, after = (responses(loss, decay, u, s, targets) for s in (weak, strong))
        assert (before > 0).all()
        change[name] = after[1:] / before[1:] - 1
    assert change["decoupled"].abs().max() < 1e-6
    assert change["cross-entropy"].mean() < -0.1
    assert (change["cross-entropy"] < 0).sum() >= 10

"""Every loss by name is its formula, its slope that of the tape, and the mean of what single samples lose."""

import numpy as np
import pytest
import torch

from workbench.problems.losses import EACH, LOSSES, OF_CLASSES, SLOPES

FORMULAS = {
    "cross_entropy": lambda z, y: np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]),
    "squared": lambda z, y: np.mean(0.5 * ((z - np.eye(z.shape[1])[y]) ** 2).sum(1)),
    "mse": lambda z, y: np.mean((z - y) ** 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_its_slope_and_its_samples_agree_with_the_formula(name):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.arange(7) % 4 if name in OF_CLASSES else torch.randn(7, 4, generator=generator, dtype=torch.float64)
    loss = LOSSES[name](outputs, y)
    wanted = [FORMULAS[name](z, y.numpy()) for z in outputs.detach().numpy()]
    np.testing.assert_allclose(loss.detach(), wanted, rtol=1e-12)
    value, slope = SLOPES[name](outputs.detach(), y)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(loss.sum(), outputs)[0])
    torch.testing.assert_close(EACH[name](outputs, y).mean(1), loss)

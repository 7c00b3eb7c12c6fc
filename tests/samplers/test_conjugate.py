"""Conjugate integrators: the step in the new variable, DDIM at lam = 0, order, and what another lam is good for."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import workbench as wb
from tests.samplers.cases import TARGET, double, normal
from workbench.flows.fields import exact_field
from workbench.samplers.solve import solve

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = wb.make("variance-preserving", beta_max=6.0)
FIELD = exact_field(TARGET, PATH)


@pytest.mark.parametrize("lam", [-1.5, -0.2, 0.7])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_step_is_that_of_euler_in_the_new_variable(lam, reverse):
    """d(A x) / ds = lam A x + A g² / (2 sigma) noise, A = e^(lam s) / alpha, the second coefficient by quadrature."""
    s, to = (0.6, 0.85) if reverse else (0.85, 0.6)

    def a(s):
        return np.exp(lam * s) / float(PATH.alpha(double(1 - s)))

    def rate(s):
        beta = 0.1 + s * (6.0 - 0.1)
        return a(s) * beta / (2 * float(PATH.sigma(double(1 - s))))

    drawn = quad(rate, s, to, epsabs=1e-13)[0]
    noise = FIELD(normal(), double(1 - s)).noise
    hat = (1 + lam * (to - s)) * a(s) * normal() + drawn * noise
    found = solve(
        FIELD, "conjugate-euler", x=normal(), grid=sorted([1 - s, 1 - to]), reverse=reverse, hyper={"lam": lam}
    )
    torch.testing.assert_close(found, hat / a(to), rtol=0, atol=1e-11)


@pytest.mark.parametrize("path", ["variance-preserving", "linear-path", "edm-path"])
def test_without_b_it_is_ddim(path):
    field = exact_field(TARGET, path)
    x = normal() * wb.make(path).sigma(double(0.0))
    one, other = (solve(field, name, x=x, steps=9, hyper=hyper) for name, hyper in CASES)
    assert torch.equal(one, other)


CASES = [("conjugate-euler", {"lam": 0.0}), ("ddim", {})]


@pytest.mark.parametrize("lam", [-0.5, 0.5])
def test_the_order_is_one(lam):
    times = {n: [0.95 * i / n for i in range(n + 1)] for n in (80, 160, 320, 800)}
    exact = solve(FIELD, "rk4", x=normal(), grid=times[800])
    errors = [
        float((solve(FIELD, "conjugate-euler", x=normal(), grid=times[n], hyper={"lam": lam}) - exact).norm())
        for n in (80, 160, 320)
    ]
    assert -np.polyfit(np.log([80, 160, 320]), np.log(errors), 1)[0] == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("grid", ["uniform-grid", "quadratic-grid", "log-snr-grid"])
@pytest.mark.parametrize("target", ["two-modes", "eight-gaussians", "three"])
def test_a_small_negative_lam_is_more_accurate_than_ddim(target, grid):
    """Mean distance to where the flow ends, of 200 samples, at 10 and at 20 steps."""
    field, x = exact_field(TARGET if target == "three" else target, "variance-preserving"), normal(200)
    exact = solve(field, "rk4", x=x, steps=400)
    for steps in (10, 20):
        ours, ddim = (solve(field, name, x=x, steps=steps, grid=grid) for name in ("conjugate-euler", "ddim"))
        assert (ours - exact).square().mean() < (0.9 * (ddim - exact)).square().mean()


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("path", ["linear-path", "trigonometric-path"])
def test_from_pure_noise_to_none_it_is_finite(path, steps):
    for lam in (-2.0, 2.0):
        x = solve(exact_field(TARGET, path), "conjugate-euler", x=normal(), steps=steps, hyper={"lam": lam})
        assert float(x.abs().max()) < 12

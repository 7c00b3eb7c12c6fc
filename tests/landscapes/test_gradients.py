"""Gradients of single samples: those of the tape, one by one; estimates: closed forms, and their spread over draws."""

import dataclasses
import importlib
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.landscapes import gradients, landscape, of_training
from workbench.landscapes.coherence import coherence, gradient_statistics, m_coherence, noise_scale
from workbench.landscapes.gradients import alignment, gram, moments, per_example_gradients

module = importlib.import_module("workbench.landscapes.coherence")  # the package has a function of that name
pytestmark = pytest.mark.usefixtures("one_thread")
F64 = {"dtype": torch.float64}


def samples(count=14, classes=True):
    x = torch.randn(count, 5, **F64)
    y = torch.arange(count) % 3 if classes else torch.randn(count, 3, **F64)
    return x, y, x[:3], y[:3]


def focal(outputs, targets):
    logs = -F.cross_entropy(outputs, targets, reduction="none")
    return -((1 - logs.exp()) ** 2 * logs).mean()


def own_net():
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()


MODELS = {
    "mlp": lambda: wb.make("mlp", width=6, depth=2, activation="tanh"),
    "linear": lambda: "linear",
    "module": own_net,
}
LOSSES = [("cross_entropy", True), ("squared", True), ("mse", False), (focal, True)]


def one_by_one(made, x):
    """The gradient of each sample by the tape, from a landscape over it alone."""
    return torch.stack([made.on([i]).gradient(x.unsqueeze(0))[1][0] for i in range(made.samples)])


@pytest.mark.parametrize("chunk", [2**22, 200])
@pytest.mark.parametrize(("loss", "classes"), LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_equal_those_of_the_tape_one_sample_at_a_time(model, loss, classes, chunk, monkeypatch):
    monkeypatch.setattr(gradients, "CHUNK_NUMBERS", chunk)
    made = landscape(MODELS[model](), loss, samples(classes=classes), dtype=torch.float64)
    x = made.start + 0.3 * torch.randn_like(made.start)
    wanted = one_by_one(made, x)
    torch.testing.assert_close(per_example_gradients(made, x), wanted, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(gram(made, x), wanted @ wanted.mT, rtol=1e-10, atol=1e-13)
    rows = [3, 11, 2, 9]
    torch.testing.assert_close(per_example_gradients(made, x, rows), wanted[rows], rtol=1e-10, atol=1e-13)
    cosines = F.cosine_similarity(wanted[rows].unsqueeze(0), wanted[rows].unsqueeze(1), dim=2)
    torch.testing.assert_close(alignment(made, x, rows), cosines, rtol=1e-10, atol=1e-13)
    found = moments(made, x, rows)
    torch.testing.assert_close(found.mean, wanted[rows].mean(0), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.squares, wanted[rows].square().sum(1), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.along, wanted[rows] @ wanted[rows].mean(0), rtol=1e-10, atol=1e-13)


def given(g):
    """(landscape, point) where sample i has the gradient (g_i, g_i): a linear net of one input, 1, and loss z · g_i."""
    x = torch.ones(len(g), 1, **F64)
    made = landscape("linear", lambda z, t: (z * t).sum(-1).mean(), (x, g, x, g), dtype=torch.float64)
    return made, torch.zeros(1, made.dim, **F64)


@pytest.mark.parametrize("m", [4, 9])
def test_m_coherence_is_m_of_identical_and_1_of_orthogonal_gradients(m):
    same = torch.randn(1, 12, **F64).expand(m, 12).clone()
    apart = torch.linalg.qr(torch.randn(12, 12, **F64))[0][:m]
    for g, value in ((same, m), (3 * apart, 1), (torch.cat([same, -same]), 0)):
        found = m_coherence(*given(g))
        torch.testing.assert_close(found.value, torch.tensor([value], **F64), rtol=0, atol=1e-12)
        assert found.standard_error is None
    torch.testing.assert_close(coherence(*given(same)).value, torch.ones(1, **F64), rtol=0, atol=1e-12)


def test_coherence_of_some_samples_is_right_on_average_and_knows_its_spread():
    g = 0.4 + torch.randn(60, 10, **F64)
    made, point = given(g)
    exact = coherence(made, point).value
    draws = [coherence(made, point, samples=30, key=wb.Key(seed)) for seed in range(400)]
    values, errors = (torch.cat([draw[i] for draw in draws]) for i in (0, 1))
    spread = values.std()
    assert abs(values.mean() - exact) < 4 * spread / 20
    assert abs(errors.square().mean().sqrt() / spread - 1) < 0.15
    assert torch.equal(coherence(made, point, samples=60).value, exact)
    assert "jackknife" in draws[0].estimator


def test_coherence_of_some_samples_has_no_bias_where_gradients_are_of_one_size():
    """The mean over all 20 choices of 3 samples among 6 is the coherence of the 6, to rounding."""
    made, point = given(F.normalize(0.5 + torch.randn(6, 4, **F64), dim=1))
    choices = itertools.combinations(range(6), 3)
    found = torch.stack([module._coherence(moments(made, point[0], rows), 6).value for rows in choices])
    torch.testing.assert_close(found.mean(), coherence(made, point).value[0], rtol=1e-12, atol=0)


def test_the_noise_scale_is_that_of_the_law_and_knows_its_spread():
    """800 data sets of 50 samples: 4 standard errors from the ratio, whose bias to first order is its variance below.

    With ‖ḡ‖² in place of the unbiased ‖G‖² the mean is 7 standard errors off.
    """
    n, sets = 50, 800
    mean, variance = torch.linspace(0.5, 1.5, 8, **F64), torch.linspace(0.5, 2, 8, **F64) ** 2
    norm, trace = mean.square().sum(), variance.sum()
    spread_of_norm = 4 * (mean**2 * variance).sum() / n + 2 * variance.square().sum() / n**2
    wanted = trace / norm * (1 + spread_of_norm / norm**2)
    found = [noise_scale(*given(mean + variance.sqrt() * torch.randn(n, 8, **F64))) for _ in range(sets)]
    values, errors = (torch.cat([one[i] for one in found]) for i in (0, 1))
    assert abs(values.mean() - wanted) < 4 * values.std() / math.sqrt(sets)
    assert abs(errors.square().mean().sqrt() / values.std() - 1) < 0.15


def test_the_noise_scale_is_the_papers_estimate_from_batches_of_one_and_of_all():
    g = 1 + torch.randn(20, 4, **F64)
    made, point = given(g)
    small, big = 2 * g.square().sum(1).mean(), 2 * g.mean(0).square().sum()
    norm, trace = (20 * big - small) / 19, (small - big) / (1 - 1 / 20)
    torch.testing.assert_close(noise_scale(made, point).value[0], trace / norm, rtol=1e-12, atol=0)


def test_standard_errors_equal_leaving_out_each_sample():
    g = 1 + torch.randn(12, 4, **F64)
    without = torch.cat([noise_scale(*given(torch.cat([g[:i], g[i + 1 :]]))).value for i in range(12)])
    wanted = (11 / 12 * (without - without.mean()).square().sum()).sqrt()
    torch.testing.assert_close(noise_scale(*given(g)).standard_error[0], wanted, rtol=1e-10, atol=0)


def test_statistics_are_a_record_of_the_same_numbers():
    made = landscape(own_net(), "cross_entropy", samples(), dtype=torch.float64)
    x = torch.stack([made.start, 0.5 * made.start])
    shares: list[float] = []
    record = gradient_statistics(made, x, samples=9, key=wb.Key(4), watch=shares.append)
    assert dict(record.sizes) == {"run": 2, "sample": 9}
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    rows = record["sample"].values.tolist()
    for run in range(2):
        wanted = one_by_one(made, x[run])[rows]
        np.testing.assert_allclose(record.gradient_norm[run], wanted.norm(dim=1), rtol=1e-10)
        cosine = F.cosine_similarity(wanted, wanted.mean(0, keepdim=True))
        np.testing.assert_allclose(record.cosine[run], cosine, rtol=1e-10)
        np.testing.assert_allclose(record.loss[run], made.each(x[run : run + 1]).detach()[0, rows], rtol=1e-12)
        np.testing.assert_allclose(record.mean_gradient_norm[run], wanted.mean(0).norm(), rtol=1e-10)
    options = {"samples": 9, "key": wb.Key(4)}
    for name, estimate in (("coherence", coherence), ("m_coherence", m_coherence), ("noise_scale", noise_scale)):
        found = estimate(made, x, **options)
        np.testing.assert_array_equal(record[name], found.value)
        np.testing.assert_array_equal(record[f"{name}_error"], found.standard_error)
    assert all(v.attrs["long_name"] and v.attrs["units"] for v in (*record.data_vars.values(), *record.coords.values()))
    assert record.attrs["loss"] == made.title
    assert np.isnan(gradient_statistics(made, x).coherence_error).all()


def test_what_watches_can_end_the_work():
    made, point = given(torch.randn(6, 3, **F64))

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coherence(made, point, watch=stop)


def test_losses_without_samples_and_too_few_are_refused():
    made = landscape(lambda x: (x**2).sum(), start=torch.ones(3))
    with pytest.raises(ValueError, match="expected a loss that is a mean over samples"):
        noise_scale(made, made.start[None])
    with pytest.raises(ValueError, match="expected samples to be a whole number from 3 to 6, got 7"):
        coherence(*given(torch.randn(6, 3, **F64)), samples=7)


def test_gradients_agree_several_times_more_on_true_labels_than_on_shuffled_ones_early_on():
    """Digits, 1,437 samples; m-coherence over the first steps, the same nets on both labels, three seeds."""
    data = wb.make("digits").load()
    shuffled = dataclasses.replace(data, y=data.y[wb.Key(5).permutation(len(data.y))])
    seen = {}
    for name, labels in (("true", data), ("shuffled", shuffled)):
        routine = wb.training(wb.make("mlp", width=64), "cross_entropy", labels, "sgd")
        with wb.Session(routine, hyper={"lr": 0.1}, seed=(0, 1, 2)) as session:
            rows = []
            for _ in range(5):
                session.step(4)
                rows.append(m_coherence(of_training(routine, session.state), session.state.x).value)
            seen[name] = torch.stack(rows)
    ratio = seen["true"] / seen["shuffled"]
    assert (ratio > 3).all(), ratio

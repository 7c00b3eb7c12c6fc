"""How much the gradients of single samples agree, and how noisy a minibatch is.

With g_i the gradient of sample i, everything here is a function of Σ ‖g_i‖² and ‖Σ g_i‖²; standard errors need the
inner products g_i · Σ g_j too, because a jackknife leaves out each sample in turn.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from workbench.flows.measures.estimate import Estimate
from workbench.landscapes.gradients import Moments, moments, samples_of
from workbench.landscapes.landscape import Landscape
from workbench.landscapes.progress import Watch, within
from workbench.routine import Key


def coherence(
    landscape: Landscape, x: Tensor, *, samples: int | None = None, key: Key | None = None, watch: Watch | None = None
) -> Estimate:
    """α = ‖E g‖² / E‖g‖², the mean over the landscape's m samples; from 0 to 1, one a run.

    Exact on all samples. On n of them, drawn without putting back, the numerator is estimated without bias,
    E g_i·g_j over pairs i ≠ j standing for all m; the ratio has a bias of order 1/n, and may fall below 0. The standard
    error is the jackknife's, times √(1 - n/m).

    Args:
        x: points (runs, parameters).
        samples: n; None is all.
        key: says which.
        watch: called with the share done.

    Source: Chatterjee & Zielinski 2022, arXiv:2203.10036.
    """
    rows = _drawn(landscape, samples, key)
    return _stacked([_coherence(m, landscape.samples) for m in _each_run(landscape, x, rows, watch)])


def m_coherence(
    landscape: Landscape, x: Tensor, *, samples: int | None = None, key: Key | None = None, watch: Watch | None = None
) -> Estimate:
    """m α, from 0 to m, one a run: how many samples a small step along one sample's gradient helps, on average.

    1 when all gradients are orthogonal, m when they are one; below 1 when they are against each other. See `coherence`.
    """
    value, error, words = coherence(landscape, x, samples=samples, key=key, watch=watch)
    m = landscape.samples
    return Estimate(m * value, None if error is None else m * error, f"{words}, times {m:,} samples")


def noise_scale(
    landscape: Landscape, x: Tensor, *, samples: int | None = None, key: Key | None = None, watch: Watch | None = None
) -> Estimate:
    """B = tr Σ / ‖G‖², the simple noise scale, in samples; one a run.

    G and Σ are the mean and covariance of one sample's gradient over the law that the samples come from. Both are
    estimated without bias, tr Σ by Σᵢ‖g_i - ḡ‖²/(n - 1) and ‖G‖² by ‖ḡ‖² - tr Σ/n (which is the mean of g_i·g_j over
    pairs i ≠ j); their ratio has a bias of order 1/n. Where ‖G‖² is not told from 0 the value may have either sign, and
    its standard error, the jackknife's, is as large as it is.

    Args: as of `coherence`.

    Source: McCandlish et al. 2018, arXiv:1812.06162; equal to its estimate from two batch sizes, 1 and n.
    """
    rows = _drawn(landscape, samples, key)
    return _stacked([_noise_scale(m) for m in _each_run(landscape, x, rows, watch)])


def gradient_statistics(
    landscape: Landscape, x: Tensor, *, samples: int | None = None, key: Key | None = None, watch: Watch | None = None
) -> xr.Dataset:
    """Losses and gradients of single samples, and what they say together: a record of dims run and sample.

    Arguments as of `coherence`. Standard errors are not a number where nothing was estimated.
    """
    rows = _drawn(landscape, samples, key)
    found: dict[str, list[Any]] = {name: [] for name in STATISTICS}
    for point, m in zip(x, _each_run(landscape, x, rows, watch), strict=True):
        alpha, noise = _coherence(m, landscape.samples), _noise_scale(m)
        unknown = torch.full_like(m.norm, torch.nan)
        error = unknown if alpha.standard_error is None else alpha.standard_error
        with torch.no_grad():
            losses = landscape.each(point.unsqueeze(0), rows)[0]
        norms = m.squares.sqrt()
        values: dict[str, Any] = {
            "loss": losses,
            "gradient_norm": norms,
            "cosine": m.along / (norms * m.norm.sqrt()),
            "mean_gradient_norm": m.norm.sqrt(),
            "coherence": alpha.value,
            "coherence_error": error,
            "m_coherence": landscape.samples * alpha.value,
            "m_coherence_error": landscape.samples * error,
            "noise_scale": noise.value,
            "noise_scale_error": noise.standard_error,
        }
        for name in found:
            found[name].append(values[name])
    variables = {}
    for name, (words, units) in STATISTICS.items():
        array = torch.stack(found[name]).detach().cpu().numpy()
        variables[name] = (("run", "sample")[: array.ndim], array, {"long_name": words, "units": units})
    coords = {
        "run": ("run", list(range(len(x))), {"long_name": "run", "units": "1"}),
        "sample": ("sample", rows.tolist(), {"long_name": "number of the sample", "units": "1"}),
    }
    attrs = {"loss": landscape.title, "samples": landscape.samples, "samples_read": len(rows)}
    attrs |= {"seed": str(None if key is None else key.seed), "dtype": str(x.dtype).removeprefix("torch.")}
    return xr.Dataset(variables, coords, {"made_by": "gradient_statistics", **attrs})


STATISTICS = {
    "loss": ("loss of the sample", "1"),
    "gradient_norm": ("Euclidean norm of the sample's gradient", "1"),
    "cosine": ("cosine between the sample's gradient and the mean gradient", "1"),
    "mean_gradient_norm": ("Euclidean norm of the mean gradient", "1"),
    "coherence": ("coherence: squared norm of the mean gradient over the mean squared norm", "1"),
    "coherence_error": ("standard error of the coherence", "1"),
    "m_coherence": ("coherence times the number of samples", "samples"),
    "m_coherence_error": ("standard error of the m-coherence", "samples"),
    "noise_scale": ("simple gradient noise scale", "samples"),
    "noise_scale_error": ("standard error of the noise scale", "samples"),
}


def _coherence(m: Moments, population: int) -> Estimate:
    n = len(m.squares)

    def alpha(count: float, squares: Tensor, norm: Tensor) -> Tensor:
        """From Σ‖g‖² and ‖Σ g‖²: E over all pairs of the population, equal ones among them, over E‖g‖²."""
        different = (norm - squares) / (count * (count - 1))
        return (population - 1) / population * different * count / squares + 1 / population

    if n == population:
        return Estimate(m.norm / m.squares.mean(), None, f"all {n:,} samples")
    value, error = _jackknife(m, alpha)
    words = f"{n:,} of {population:,} samples, pairs without bias, jackknife"
    return Estimate(value, error * (1 - n / population) ** 0.5, words)


def _noise_scale(m: Moments) -> Estimate:
    def ratio(count: float, squares: Tensor, norm: Tensor) -> Tensor:
        trace = (squares - norm / count) / (count - 1)
        return trace / (norm / count**2 - trace / count)

    return Estimate(*_jackknife(m, ratio), f"{len(m.squares):,} samples, pairs without bias, jackknife")


def _jackknife(m: Moments, function: Callable[[float, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(A function of n, Σ‖g‖² and ‖Σ g‖²; its standard error by leaving out each sample in turn)."""
    n, squares, norm = len(m.squares), m.squares.sum(), len(m.squares) ** 2 * m.norm
    without = function(n - 1, squares - m.squares, norm - 2 * n * m.along + m.squares)
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return function(n, squares, norm), error


def _each_run(landscape: Landscape, x: Tensor, rows: Tensor, watch: Watch | None) -> Iterator[Moments]:
    if x.ndim != 2 or not len(x):
        raise ValueError(f"expected points (runs, {landscape.dim}), got shape {tuple(x.shape)}; x.unsqueeze(0) of one")
    for run, point in enumerate(x):
        yield moments(landscape, point, rows, within(watch, run / len(x), (run + 1) / len(x)))


def _stacked(found: list[Estimate]) -> Estimate:
    """Estimates of single runs as one of all."""
    errors = [one.standard_error for one in found if one.standard_error is not None]
    values = torch.stack([one.value for one in found])
    return Estimate(values, torch.stack(errors) if errors else None, found[0].estimator)


def _drawn(landscape: Landscape, samples: int | None, key: Key | None) -> Tensor:
    """The numbers of the samples to read."""
    if samples is None:
        return samples_of(landscape)
    if not 3 <= samples <= landscape.samples:
        raise ValueError(f"expected samples to be a whole number from 3 to {landscape.samples:,}, got {samples}")
    rows = (key or Key(0)).stream("samples").permutation(landscape.samples)[:samples]
    return samples_of(landscape, rows)

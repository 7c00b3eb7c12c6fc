"""Densities: what is sampled and transported. Gaussian mixtures know everything about themselves; others only samples.

Points are (..., dim). Two-dimensional ones are scaled so that the square from -reach to reach shows them.
"""

import functools
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from workbench.routine import Declared, Hyper, Key

LOG_2PI = math.log(2 * math.pi)
MAX_SIZE = 1_000_000
"""Larger points cannot be told apart in single precision beside a unit normal."""


class Density(Declared):
    """Something to draw from. Subclasses write `sample`.

    Attributes:
        dim: number of coordinates.
        reach: half the side of the square that shows it.
        classes: names of the classes its samples belong to, () when they belong to none.
        image: (height, width) when a sample is a picture.
    """

    family: ClassVar[str] = "densities"
    kind: ClassVar[str] = "density"
    dim: int = 2
    reach: float = 4.0
    classes: tuple[str, ...] = ()
    image: tuple[int, int] | None = None

    def sample(self, key: Key, n: int, like: Tensor) -> Tensor:
        """n samples (n, dim), in the dtype and on the device of `like`; the same key gives the same."""
        raise NotImplementedError

    def sample_labelled(self, key: Key, n: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples with the class of each, (n,) int64; None when there are no classes."""
        return self.sample(key, n, like), None

    def as_points(self, n: int, key: Key | None = None) -> "Mixture":
        """n samples of it as a density of their own: each equally likely, and nothing in between."""
        made = Mixture(self.sample(key or Key(0).stream("points"), n, torch.empty(0, dtype=torch.float64)), 0.0)
        made.title, made.reach, made.image = f"{n} points of {self.title}", self.reach, self.image
        made.expression = f"wb.make({self.name!r}).as_points({n})" if key is None else ""
        return made

    def exact_field(self, target: "Density", interpolant: Any, points: int) -> Any:
        """The exact field from this density to `points` samples of a target, of a source that is no mixture.

        Raises:
            ValueError: where there is no closed form of it, as for most.
        """
        raise ValueError(f"expected a Gaussian mixture as the source of an exact field, got {self.name!r}")

    def setup(self) -> str:
        """Python lines that an exported script needs before the recipe."""
        return ""


class Parts(NamedTuple):
    """A mixture's tensors in one dtype on one device.

    means (K, dim); log_weights (K,); spectrum: variances (K, 1) of isotropic components, (K, dim) along the columns of
    basis (K, dim, dim) of others; basis None when all are isotropic.
    """

    means: Tensor
    log_weights: Tensor
    spectrum: Tensor
    basis: Tensor | None

    @property
    def covariances(self) -> Tensor:
        """(K, dim, dim)."""
        dim = self.means.shape[-1]
        if self.basis is None:
            return self.spectrum.unsqueeze(-1) * torch.eye(dim, dtype=self.means.dtype, device=self.means.device)
        return (self.basis * self.spectrum.unsqueeze(-2)) @ self.basis.mT


class Mixture(Density):
    """Σ w_k N(m_k, C_k).

    Args:
        means: (K, dim).
        scale: one standard deviation for all, (K,) of them, or covariance matrices (K, dim, dim). 0 makes points.
        weights: (K,), positive, divided by their sum; equal when None.

    Raises:
        ValueError: on shapes that do not fit, or weights and covariances that no mixture has.
    """

    name = "mixture"
    title = "Gaussian mixture"
    expression = ""

    def __init__(self, means: Any, scale: Any = 1.0, weights: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        means = _places("means", means)
        if means.ndim != 2 or not len(means):
            raise ValueError(f"expected means of shape (K, dim), got shape {tuple(means.shape)}")
        k, self.dim = means.shape
        weights = torch.ones(k, dtype=torch.float64) if weights is None else _finite("weights", weights)
        if weights.shape != (k,) or not bool((weights > 0).all()):
            raise ValueError(f"expected {k} positive weights, one a component, got {weights.tolist()!r}")
        spectrum, basis = _spectrum(_finite("scale", scale), k, self.dim)
        self.exact = Parts(means, torch.log(weights / weights.sum()), spectrum, basis)
        self._parts: dict[tuple, Parts] = {}
        self.edges = self.weights.cumsum(0)[:-1]  # of the components in [0, 1), to choose one by a uniform number
        self.spread = spectrum.sqrt() if bool((spectrum > 0).any()) else None

    @classmethod
    def normal(cls, dim: int) -> "Mixture":
        """The unit normal."""
        return Gaussian(dim=dim)

    @property
    def weights(self) -> Tensor:
        """(K,), float64, summing to 1."""
        return self.exact.log_weights.exp()

    def parts(self, like: Tensor) -> Parts:
        """The mixture's tensors in the dtype and on the device of `like`; kept, so that asking again costs nothing."""
        key = like.dtype, like.device
        if key not in self._parts:
            self._parts[key] = Parts(*(None if p is None else p.to(like) for p in self.exact))  # type: ignore[arg-type]
        return self._parts[key]

    def sample(self, key: Key, n: int, like: Tensor) -> Tensor:
        return self.sample_component(key, n, like)[0]

    def sample_component(self, key: Key, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (n, dim), and which component each is from, (n,) int64."""
        exact = torch.empty(0, dtype=torch.float64)
        if len(self.edges):
            k = torch.searchsorted(self.edges, key.stream("component").uniform((n,), like=exact), right=True)
        else:
            k = torch.zeros(1, dtype=torch.int64)  # the only one, which broadcasts
        x = self.exact.means[k].expand(n, -1)
        if self.spread is not None:
            z = key.stream("normal").normal((n, self.dim), like=exact) * self.spread[k]
            x = x + (z if self.exact.basis is None else (self.exact.basis[k] @ z.unsqueeze(-1)).squeeze(-1))
        return x.to(device=like.device, dtype=like.dtype), k.expand(n).to(like.device)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) of points (..., dim), of shape (...).

        Raises:
            ValueError: when a component has no spread in some direction, as points have.
        """
        _, logits = self._whitened(x)
        return torch.logsumexp(logits, -1)

    def score(self, x: Tensor) -> Tensor:
        """∇ log p(x), shaped like x."""
        y, logits = self._whitened(x)
        return -(torch.softmax(logits, -1).unsqueeze(-1) * y).sum(-2)

    def responsibilities(self, x: Tensor) -> Tensor:
        """How probable each component is at points (..., dim): (..., K), summing to 1."""
        return torch.softmax(self._whitened(x)[1], -1)

    def _whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """C_k⁻¹ (x - m_k), (..., K, dim), and log w_k N(x; m_k, C_k), (..., K)."""
        if not bool((self.exact.spectrum > 0).all()):
            raise ValueError("expected components with some spread in every direction, got points; give them a 'scale'")
        p = self.parts(x)
        residual = x.unsqueeze(-2) - p.means
        turned = residual if p.basis is None else torch.einsum("kji,...kj->...ki", p.basis, residual)
        y = turned / p.spectrum
        half_log_det = p.spectrum.expand_as(p.means).log().sum(-1) / 2
        logits = p.log_weights - half_log_det - (turned * y).sum(-1) / 2 - LOG_2PI * self.dim / 2
        return (y if p.basis is None else torch.einsum("kij,...kj->...ki", p.basis, y)), logits

    def moments(self) -> tuple[Tensor, Tensor]:
        """(mean (dim,), covariance (dim, dim)), float64."""
        w, means = self.weights, self.exact.means
        mean = w @ means
        centred = means - mean
        return mean, torch.einsum("k,kij->ij", w, self.exact.covariances) + (w[:, None] * centred).mT @ centred

    def recipe(self) -> str:
        return self.expression or (super().recipe() if type(self) is not Mixture else "density")


def _finite(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        got = type(value).__name__
        raise ValueError(f"expected {name} to be numbers in rows of one length, got {got}") from None
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"expected finite {name}, got inf or nan in it")
    return tensor


def _places(name: str, value: Any) -> Tensor:
    """Points, as tensors, of a size that single precision can tell apart beside a unit normal."""
    found = _finite(name, value)
    if found.numel() and float(found.abs().max()) > MAX_SIZE:
        raise ValueError(f"expected {name} within ±{MAX_SIZE:,}, got {float(found.abs().max()):g}; make them smaller")
    return found


def _spectrum(scale: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor | None]:
    """Variances and, unless all components are isotropic, their axes."""
    if scale.ndim <= 1:
        if scale.ndim == 1 and scale.shape != (k,):
            raise ValueError(f"expected one scale or one for each of {k} components, got {scale.numel()}")
        if bool((scale < 0).any()):
            raise ValueError(f"expected scale to be standard deviations from 0, got {scale.min().item():g}")
        return scale.square().expand(k).unsqueeze(-1).clone(), None
    if scale.shape != (k, dim, dim):
        raise ValueError(f"expected covariances of shape {(k, dim, dim)}, got shape {tuple(scale.shape)}")
    if not torch.allclose(scale, scale.mT):
        askew = float((scale - scale.mT).abs().max())
        raise ValueError(f"expected symmetric covariances, got one that differs from its transpose by {askew:g}")
    spectrum, basis = torch.linalg.eigh(scale)
    if bool((spectrum < -1e-12 * spectrum.abs().amax()).any()):
        raise ValueError(f"expected covariances without negative eigenvalues, got {spectrum.min().item():g}")
    return spectrum.clamp(min=0), basis


# ------------------------------------------------------------------------------------------------------ presets


class Gaussian(Mixture):
    """N(0, I) of any dimension: the usual source.

    Source: Gauss 1809, Theoria motus.
    """

    name = "gaussian"
    title = "Unit normal"
    source = "Gauss 1809, Theoria motus corporum coelestium"
    evidence = "tests/problems/test_densities.py::test_samples_have_the_stated_moments[gaussian]"
    dim: Any = Hyper(2, 1, 4096, "integer", (1, 64), kind="init", doc="Number of coordinates.")

    def __init__(self, **settings: Any) -> None:
        dim = self.hypers["dim"].check(settings.get("dim", 2))
        super().__init__(torch.zeros(1, dim), 1.0, **settings)


class EightGaussians(Mixture):
    """Eight equal normals on a circle of radius 3, standard deviation 0.25.

    Source: the usual toy of generative modelling, e.g. Liu et al. 2023, arXiv:2209.03003.
    """

    name = "eight-gaussians"
    title = "Eight Gaussians"
    source = "Liu, Gong & Liu 2023, arXiv:2209.03003, toy examples"
    evidence = "tests/problems/test_densities.py::test_samples_have_the_stated_moments[eight-gaussians]"

    def __init__(self) -> None:
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        super().__init__(3 * torch.stack([angle.cos(), angle.sin()], -1), 0.25)


class GaussianGrid(Mixture):
    """Twenty-five equal normals on a 5 × 5 grid of spacing 1.5, standard deviation 0.15.

    Source: the usual test for dropped modes, e.g. Metz et al. 2017, arXiv:1611.02163.
    """

    name = "gaussian-grid"
    title = "Grid of Gaussians"
    source = "Metz et al. 2017, arXiv:1611.02163"
    evidence = "tests/problems/test_densities.py::test_samples_have_the_stated_moments[gaussian-grid]"

    def __init__(self) -> None:
        side = 1.5 * (torch.arange(5, dtype=torch.float64) - 2)
        super().__init__(torch.cartesian_prod(side, side), 0.15)


class TwoModes(Mixture):
    """Two long normals of weights 0.8 and 0.2, at right angles: what a method makes of unequal modes is seen at once.

    Means (-1.5, 0) and (2, 0); standard deviations 1.2 and 0.3 along their axes.
    Source: after the unequal-weights test of Song & Ermon 2019, arXiv:1907.05600, section 3.2.2.
    """

    name = "two-modes"
    title = "Two modes, 4 to 1"
    source = "Song & Ermon 2019, arXiv:1907.05600, section 3.2.2"
    evidence = "tests/problems/test_densities.py::test_samples_have_the_stated_moments[two-modes]"

    def __init__(self) -> None:
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        spectra = torch.tensor([[1.44, 0.09], [0.09, 1.44]], dtype=torch.float64)
        covariances = (turn * spectra.unsqueeze(-2)) @ turn.T
        super().__init__([[-1.5, 0.0], [2.0, 0.0]], covariances, [0.8, 0.2])


class GaussianSpiral(Mixture):
    """Forty normals along an Archimedean spiral of two turns, radius 0.3 to 3.3, standard deviation 0.12.

    Source: the spiral of Archimedes, as a mixture so that its score is known.
    """

    name = "gaussian-spiral"
    title = "Spiral of Gaussians"
    source = "Archimedes, On Spirals, 225 BC; as 40 normals"
    evidence = "tests/problems/test_densities.py::test_samples_have_the_stated_moments[gaussian-spiral]"

    def __init__(self) -> None:
        s = torch.linspace(0, 1, 40, dtype=torch.float64)
        radius, angle = 0.3 + 3 * s, 4 * math.pi * s
        super().__init__(torch.stack([radius * angle.cos(), radius * angle.sin()], -1), 0.12)


class HighDimensional(Mixture):
    """Six normals in `dim` coordinates: means of norm 3 in fixed random directions, standard deviations 0.4 to 0.9.

    Source: a mixture drawn once from a fixed seed; its facts are those of any mixture.
    """

    name = "high-dimensional-mixture"
    title = "High-dimensional mixture"
    source = "Robert & Casella 2004, Monte Carlo Statistical Methods, 2nd edition"
    evidence = "tests/problems/test_densities.py::test_samples_have_the_stated_moments[high-dimensional-mixture]"
    dim: Any = Hyper(16, 2, 512, "integer", (2, 64), kind="init", doc="Number of coordinates.")

    def __init__(self, **settings: Any) -> None:
        dim = self.hypers["dim"].check(settings.get("dim", 16))
        directions = Key(7).stream("means").normal((6, dim), like=torch.empty(0, dtype=torch.float64))
        means = 3 * directions / directions.norm(dim=1, keepdim=True)
        super().__init__(means, torch.linspace(0.4, 0.9, 6), torch.arange(1, 7), **settings)


# ------------------------------------------------------------------------------------------------- samples only


class TwoMoons(Density):
    """Two interleaved half circles of radius 1.7 with noise of standard deviation 0.1.

    Source: the toy of spectral clustering, as in scikit-learn's make_moons; scaled and centred.
    """

    name = "two-moons"
    title = "Two moons"
    source = "scikit-learn make_moons, https://scikit-learn.org; Pedregosa et al. 2011, JMLR 12"
    evidence = "tests/problems/test_densities.py::test_samples_lie_where_the_shape_is[two-moons]"

    def sample(self, key, n, like):
        u, side = key.stream("place").uniform((2, n), like=like)
        upper = side < 0.5
        angle = math.pi * u
        x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
        return 1.7 * torch.stack([x, y], -1) + 0.1 * key.stream("noise").normal((n, 2), like=like)


class Checkerboard(Density):
    """Uniform on eight of the sixteen squares of a board from -3 to 3.

    Source: the toy of Grathwohl et al. 2019, arXiv:1810.01367.
    """

    name = "checkerboard"
    title = "Checkerboard"
    source = "Grathwohl et al. 2019, arXiv:1810.01367"
    evidence = "tests/problems/test_densities.py::test_samples_lie_where_the_shape_is[checkerboard]"

    def sample(self, key, n, like):
        column, row, u, v = key.stream("place").uniform((4, n), like=like)
        column = (4 * column).floor()
        row = 2 * (2 * row).floor() + column % 2
        return torch.stack([(column + u) * 1.5 - 3, (row + v) * 1.5 - 3], -1)


class SwissRoll(Density):
    """A rolled sheet seen from its end: radius grows with the angle, 1.5π to 4.5π, up to 3.3; noise 0.08.

    Source: Tenenbaum et al. 2000, Science 290, as in scikit-learn's make_swiss_roll without its width.
    """

    name = "swiss-roll"
    title = "Swiss roll"
    source = "Tenenbaum, de Silva & Langford 2000, Science 290"
    evidence = "tests/problems/test_densities.py::test_samples_lie_where_the_shape_is[swiss-roll]"

    def sample(self, key, n, like):
        angle = 1.5 * math.pi * (1 + 2 * key.stream("place").uniform((n,), like=like))
        radius = 3.3 * angle / (4.5 * math.pi)
        noise = key.stream("noise").normal((n, 2), like=like)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1) + 0.08 * noise


class Circles(Density):
    """Two circles of radii 3 and 1.5, equally likely, with noise of standard deviation 0.1.

    Source: scikit-learn's make_circles, scaled.
    """

    name = "circles"
    title = "Circles"
    source = "scikit-learn make_circles, https://scikit-learn.org; Pedregosa et al. 2011, JMLR 12"
    evidence = "tests/problems/test_densities.py::test_samples_lie_where_the_shape_is[circles]"

    def sample(self, key, n, like):
        u, side = key.stream("place").uniform((2, n), like=like)
        radius = torch.where(side < 0.5, 3.0, 1.5)[:, None]
        circle = torch.stack([(2 * math.pi * u).cos(), (2 * math.pi * u).sin()], -1)
        return radius * circle + 0.1 * key.stream("noise").normal((n, 2), like=like)


class Pinwheel(Density):
    """Five arms: normals at radius 2 (standard deviation 0.6 along, 0.2 across) twisted by 0.25 exp(radius) and turned.

    Source: the toy of Johnson et al. 2016, arXiv:1603.06277.
    """

    name = "pinwheel"
    title = "Pinwheel"
    source = "Johnson et al. 2016, arXiv:1603.06277"
    evidence = "tests/problems/test_densities.py::test_samples_lie_where_the_shape_is[pinwheel]"

    def sample(self, key, n, like):
        arm = (5 * key.stream("arm").uniform((n,), like=like)).floor()
        z = key.stream("noise").normal((n, 2), like=like)
        along, across = 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]
        angle = arm * (2 * math.pi / 5) + 0.25 * torch.exp(along)
        x = along * angle.cos() - across * angle.sin()
        y = along * angle.sin() + across * angle.cos()
        return 2 * torch.stack([x, y], -1)


class Digits(Density):
    """scikit-learn's 1,797 handwritten digits as 8 × 8 pictures, grey values from -1 to 1, ten classes.

    A sample is one of the pictures, each equally likely.
    Source: Alpaydin & Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49.
    """

    name = "digit-images"
    title = "Digits"
    source = "Alpaydin & Kaynak 1998, doi:10.24432/C50P49"
    evidence = "tests/problems/test_densities.py::test_digits_are_the_real_ones_and_keep_their_labels"
    dim, image, reach = 64, (8, 8), 1.0
    classes = tuple("0123456789")

    def sample(self, key, n, like):
        return self.sample_labelled(key, n, like)[0]

    def sample_labelled(self, key, n, like):
        pixels, labels = _digits()
        u = key.stream("picture").uniform((n,), like=torch.empty(0, dtype=torch.float64))
        row = (u * len(pixels)).long()
        return pixels[row].to(device=like.device, dtype=like.dtype), labels[row].to(like.device)


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.data) / 8 - 1, torch.from_numpy(found.target).long()


# ------------------------------------------------------------------------------------------------- your own points

FEWEST, MOST, WIDEST = 3, 20_000, 4096


def from_points(points: Any, *, scale: float = 0.0) -> Mixture:
    """Your own points (n, dim) as a density: each equally likely, blurred by `scale` (a standard deviation).

    Raises:
        ValueError: on fewer than 3 or more than 20,000 points, other shapes, or numbers that are not finite.
    """
    found = _places("points", points)
    if found.ndim != 2:
        raise ValueError(f"expected points of shape (n, dim), got shape {tuple(found.shape)}")
    if not 1 <= found.shape[1] <= WIDEST:
        raise ValueError(f"expected points of 1 to {WIDEST:,} coordinates, got {found.shape[1]:,}")
    if not FEWEST <= len(found) <= MOST:
        raise ValueError(f"expected {FEWEST} to {MOST:,} points, got {len(found):,}")
    made = Mixture(found, scale)
    made.title, made.reach = f"{len(found):,} points of yours", max(1e-3, 1.15 * float(found.abs().max()))
    rows = [[float(f"{v:.5g}") for v in row] for row in found.tolist()] if found.numel() <= 2_000 else None
    made.expression = f"wb.from_points({rows!r}, scale={scale!r})" if rows and _same(rows, found) else ""
    return made


def _same(rows: list, found: Tensor) -> bool:
    return bool(torch.equal(torch.tensor(rows, dtype=torch.float64), found))

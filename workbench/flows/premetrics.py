"""Premetrics: how large a residual is; all are divided so that losses of different dimensions compare."""

import torch

from workbench.flows.choices import Premetric, per_time
from workbench.routine import Hyper


class Squared(Premetric):
    """Σ r_i² / dim: the mean square.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9, divided by the dimension.
    """

    name = "squared"
    title = "Squared"
    source = "Lipman et al. 2023, arXiv:2210.02747"
    evidence = "tests/flows/test_choices.py::test_premetrics_are_those_of_their_source[squared]"

    def size(self, residual, hyper):
        return residual.square().mean(-1)

    def slope(self, residual, hyper):
        return residual.square().mean(-1), residual * (2 / residual.shape[-1])


class PseudoHuber(Premetric):
    """(√(Σ r_i² + c²) - c) / dim with c = huber_c · dim: a square when small, a length when large.

    Source: Lee, Lin & Fanti 2024, arXiv:2405.20320, with huber_c = 0.00054 and the scaling by dim of its
    code; Charbonnier et al. 1997, IEEE Trans. Image Process. 6.
    """

    name = "pseudo-huber"
    title = "Pseudo-Huber"
    source = "Lee, Lin & Fanti 2024, arXiv:2405.20320"
    ledger = "improving-the-training-of-rectified"
    evidence = "tests/flows/test_choices.py::test_premetrics_are_those_of_their_source[pseudo-huber]"
    huber_c = Hyper(0.00054, 1e-6, 10.0, "log", (1e-4, 1.0), doc="Where a square turns into a length, a coordinate.")

    def size(self, residual, hyper):
        root, c = self._root(residual, hyper)
        return (root - c) / residual.shape[-1]

    def slope(self, residual, hyper):
        root, c = self._root(residual, hyper)
        dim = residual.shape[-1]
        return (root - c) / dim, residual / (dim * root.unsqueeze(-1))

    def _root(self, residual, hyper):
        c = residual.shape[-1] * per_time(hyper["huber_c"])
        return torch.sqrt(residual.square().sum(-1) + c * c), c


class Euclidean(Premetric):
    """|r| / √dim: the root of the mean square; outliers pull no harder than others.

    Source: Lee, Lin & Fanti 2024, arXiv:2405.20320, train.py of its code ("l2").
    """

    name = "euclidean"
    title = "Euclidean"
    source = "Lee, Lin & Fanti 2024, arXiv:2405.20320"
    evidence = "tests/flows/test_choices.py::test_premetrics_are_those_of_their_source[euclidean]"

    def size(self, residual, hyper):
        return torch.linalg.vector_norm(residual, dim=-1) / residual.shape[-1] ** 0.5

    def slope(self, residual, hyper):
        size = self.size(residual, hyper)
        return size, residual / (residual.shape[-1] * size).clamp(min=1e-30).unsqueeze(-1)


class Absolute(Premetric):
    """Σ |r_i| / dim: its best answer is a median of each coordinate.

    Source: Laplace 1774, Mémoire sur la probabilité des causes par les événements.
    """

    name = "absolute"
    title = "Absolute"
    source = "Laplace 1774, Mémoire sur la probabilité des causes par les événements"
    evidence = "tests/flows/test_choices.py::test_premetrics_are_those_of_their_source[absolute]"

    def size(self, residual, hyper):
        return residual.abs().mean(-1)

    def slope(self, residual, hyper):
        return residual.abs().mean(-1), residual.sign() / residual.shape[-1]


class Normalised(Premetric):
    """log(Σ r_i² / dim + log_floor): its gradient is that of the squared size over the size itself.

    So every sample pulls alike, however large its loss: the weight 1 / sg[loss(x_t, t)] of loss normalisation, where
    the loss at x_t is that of the one pair seen there. That is exact when pairs do not cross, as after a reflow; with
    pairs that cross the best answer is no longer the mean velocity.
    Source: Kim et al. 2025, arXiv:2410.07815 (training dynamics: loss normalisation).
    """

    name = "normalised"
    title = "Normalised"
    source = "Kim et al. 2025, arXiv:2410.07815"
    ledger = "simple-reflow"
    evidence = "tests/flows/test_choices.py::test_premetrics_are_those_of_their_source[normalised]"
    log_floor = Hyper(1e-3, 1e-8, 1.0, "log", (1e-6, 0.1), doc="The size below which samples stop to pull alike.")

    def size(self, residual, hyper):
        return torch.log(residual.square().mean(-1) + per_time(hyper["log_floor"]))

    def slope(self, residual, hyper):
        square = residual.square().mean(-1) + per_time(hyper["log_floor"])
        return torch.log(square), residual * (2 / residual.shape[-1]) / square.unsqueeze(-1)

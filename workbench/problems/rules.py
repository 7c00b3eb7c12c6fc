"""Data sets made by rule, on which learning comes late and at once: what is to be learnt is known exactly."""

from typing import Any

import numpy as np
import torch

from workbench.problems.data import MAX_CLASSES, MAX_ROWS, Data, Dataset, split
from workbench.routine import Hyper, Key


class SparseParity(Dataset):
    """Random bits ±1; the class says whether the product of the first few, which alone matter, is −1 or 1."""

    name = "sparse-parity"
    title = "Sparse parity (random bits)"
    source = "Barak, Edelman, Goel, Kakade, Malach & Zhang 2022, arXiv:2207.08799"
    evidence = "tests/problems/test_rules.py::test_sparse_parity_is_the_product_of_its_first_bits"
    bits: Any = Hyper(20, 1, 1000, "integer", (5, 50), kind="init", unit="bits", doc="Bits of a sample.")
    relevant: Any = Hyper(3, 1, 1000, "integer", (1, 6), kind="init", unit="bits", doc="Bits that matter, the first.")
    samples: Any = Hyper(
        2000, 10, MAX_ROWS, "integer", (100, 10000), kind="init", unit="samples", doc="Samples in all."
    )

    def load(self) -> Data:
        if self.relevant > self.bits:
            raise ValueError(f"expected at most {self.bits} relevant bits, as many as there are, got {self.relevant}")
        u = Key(0).stream("bits").uniform((self.samples, self.bits), like=torch.empty(0, dtype=torch.float64)).numpy()
        x = np.where(u < 0.5, -1.0, 1.0)
        even = x[:, : self.relevant].prod(1) > 0
        more: Any = {"classes": ["-1", "1"], "recipe": self.recipe()}
        return split(self.name, x, even, holdout=self.holdout, **more)


class ModularAddition(Dataset):
    """All pairs (a, b) of whole numbers below p, one-hot each; the class is a + b modulo p. Learners may grok it."""

    name = "modular-addition"
    title = "Modular addition (all pairs)"
    source = "Power, Burda, Edwards, Babuschkin & Misra 2022, arXiv:2201.02177"
    evidence = "tests/problems/test_rules.py::test_modular_addition_holds_every_pair_once"
    holdout: Any = Hyper(0.3, 0.01, 0.9, kind="init", doc="Share of the samples held out.")
    p: Any = Hyper(23, 4, MAX_CLASSES, "integer", (7, 97), kind="init", doc="Modulus; odd primes are customary.")

    def load(self) -> Data:
        a, b = np.divmod(np.arange(self.p**2), self.p)
        one = np.eye(self.p)
        more: Any = {"classes": [str(i) for i in range(self.p)], "recipe": self.recipe()}
        return split(self.name, np.hstack([one[a], one[b]]), (a + b) % self.p, holdout=self.holdout, **more)

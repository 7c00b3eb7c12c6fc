"""Laws of short sequences of tokens, small enough to know everything: their table, and the exact denoiser of masks.

A sequence is (..., length) whole numbers from 0 to words - 1; the number `words` stands for a mask.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.routine import Declared, Hyper, Key

LARGEST = 100_000
"""Sequences with masks, (words + 1)^length, up to which a denoiser is a table."""


class TokenLaw(Declared):
    """A law of sequences. Subclasses fill in `probabilities`.

    Attributes:
        words: number of different tokens, the mask not counted.
        length: tokens in a sequence.
    """

    family: ClassVar[str] = "token laws"
    kind: ClassVar[str] = "token law"
    words: int = 2
    length: Any = 1

    def probabilities(self) -> Tensor:
        """The table (words, …, words), float64, one axis a position, with sum 1."""
        raise NotImplementedError


class IsingChain(TokenLaw):
    """p(s) ∝ exp(coupling Σ s_i s_{i+1} + field Σ s_i), s_i = ±1, an open chain; token 0 is -1 and token 1 is +1.

    Without a field neighbours agree with probability 1 / (1 + exp(-2 coupling)), independently along the chain.
    Source: Ising 1925, Zeitschrift für Physik 31, 253.
    """

    name = "ising-chain"
    title = "Ising chain"
    source = "Ising 1925, Zeitschrift für Physik 31, 253"
    evidence = "tests/samplers/test_masked.py::test_the_ising_chain_is_what_transfer_matrices_say"
    length: Any = Hyper(8, 1, 10, "integer", kind="init", unit="spins", doc="Spins in the chain.")
    coupling: Any = Hyper(1.0, -3.0, 3.0, kind="init", doc="How much neighbours want to agree.")
    field: Any = Hyper(0.0, -3.0, 3.0, kind="init", doc="How much spins want to be up.")

    def probabilities(self) -> Tensor:
        spins = 2.0 * every_sequence(2, self.length).double() - 1
        energy = self.coupling * (spins[:, 1:] * spins[:, :-1]).sum(-1) + self.field * spins.sum(-1)
        return torch.softmax(energy, 0).reshape((2,) * self.length)


class TableLaw(TokenLaw):
    """Anybody's own table (words, …, words) of weights, from 0; they are divided by their sum."""

    name = "table"

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = torch.as_tensor(table, dtype=torch.float64)
        self.words, self.length = self.table.shape[0] if self.table.ndim else 0, self.table.ndim
        if self.words < 2 or len(set(self.table.shape)) > 1:
            raise ValueError(f"expected a table of shape (words, …, words), got {tuple(self.table.shape)}")
        if not bool(torch.isfinite(self.table).all()) or float(self.table.min()) < 0 or not float(self.table.sum()):
            raise ValueError("expected a table of finite weights from 0, not all 0, got others in it")

    def probabilities(self) -> Tensor:
        return self.table / self.table.sum()

    def recipe(self) -> str:
        return "table"


def every_sequence(words: int, length: int) -> Tensor:
    """All sequences (words^length, length) in the order of a table's entries."""
    return torch.cartesian_prod(*[torch.arange(words)] * length).reshape(-1, length)


class Denoiser:
    """p(token at i | what is not masked), every position on its own: a table over all sequences with masks.

    An error of strength e adds e √(fraction masked) n to the logarithms, n one fixed standard normal for each
    sequence, position and word: like a net's, it is the same whenever the same is asked, and smaller the more is seen.
    """

    def __init__(self, law: TokenLaw, dtype: torch.dtype, device: Any) -> None:
        words, length = law.words, law.length
        if (words + 1) ** length > LARGEST:
            raise ValueError(f"expected at most {LARGEST} sequences with masks, got {words + 1}^{length}")
        logits = conditionals(law.probabilities()).log()
        seen = every_sequence(words + 1, length)
        normal = Key(0).stream("denoiser").normal(logits.shape, like=logits)
        normal = normal * (seen == words).double().mean(-1).sqrt()[:, None, None]
        self.logits, self.error = (part.to(dtype).to(device) for part in (logits, normal))
        self.powers = (words + 1) ** torch.arange(length - 1, -1, -1, device=device)

    def __call__(self, x: Tensor, error: Tensor) -> Tensor:
        """Probabilities (..., length, words) for sequences x (..., length); `error` is shaped to multiply them."""
        row = (x * self.powers).sum(-1)
        return torch.softmax(self.logits[row] + error * self.error[row], -1)


def conditionals(table: Tensor) -> Tensor:
    """p(token at i = v | what is not masked), ((words + 1)^length, length, words); even where that is impossible."""
    words, length = table.shape[0], table.ndim
    joint = table
    for axis in range(length):  # the last index of an axis sums over it
        joint = torch.cat([joint, joint.sum(axis, keepdim=True)], axis)
    seen, found = every_sequence(words + 1, length), []
    for i in range(length):
        asked = seen.unsqueeze(1).repeat(1, words, 1)
        known = asked[:, 0, i] < words
        asked[:, :, i] = torch.arange(words)
        p = joint[tuple(asked.unbind(-1))]
        p = torch.where(known[:, None], torch.eye(words + 1, dtype=p.dtype)[seen[:, i], :words], p)
        found.append(torch.where(p.sum(-1, keepdim=True) > 0, p, torch.ones_like(p)))
    stacked = torch.stack(found, 1)
    return stacked / stacked.sum(-1, keepdim=True)

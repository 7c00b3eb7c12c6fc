"""Unmasking as a routine: a law of tokens, its denoiser and a rule, bound. Tokens are (runs, samples, length)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.problems.tokens import Denoiser, TableLaw, TokenLaw
from workbench.routine import RUNNING, Hyper, Key, Probe, Routine, Variable, whole
from workbench.samplers.masked import Unmasker, most_masking, unmasking_rate


class UnmaskingState(NamedTuple):
    """`x`: tokens (runs, samples, length), the last number is the mask. `t`: time (runs, 1, 1), 0 is all masks.
    `sure`: the denoiser's probability of each token when it came, infinite at a mask. `k`: steps made, 0-d.
    `diverged`: per run, never set here.
    """

    x: Tensor
    t: Tensor
    sure: Tensor
    k: Tensor
    diverged: Tensor


class Unmasking(Routine):
    """A rule on its way from masks to tokens. Made by `wb.unmasking`."""

    run_axis = 0
    start_dims = 2
    recorded = ("unmasked", "remasked")

    def __init__(
        self,
        law: TokenLaw,
        method: Unmasker,
        *,
        steps: int = 50,
        samples: int = 1000,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.law, self.method, self.samples = law, method, whole("samples", samples, 1)
        self.denoiser = Denoiser(law, dtype, self.device)
        turn = Hyper(steps, 1, 10_000, "integer", (1, 500), kind="shape", unit="steps", name="steps", doc=STEPS)
        self.steps = turn.check(steps)
        error = Hyper(0.0, 0.0, 10.0, soft=(0.0, 3.0), name="error", doc=ERROR)
        self.hypers = {"steps": turn, "error": error, **method.hypers}
        self.variables = {
            "x": Variable(("sample", "position"), "token; the last is the mask"),
            "time": Variable((), "time: 0 is all masks, 1 is data"),
            "masked": Variable((), "part of the tokens that is masked"),
            "unmasked": Variable((), "part of the tokens that came in this step"),
            "remasked": Variable((), "part of the tokens that was masked again in this step"),
        }
        words = "total variation between the samples' frequencies and the law, over sequences without masks"
        variables = {"total_variation": Variable((), words)}
        self.probes = {"total_variation": Probe("total_variation", variables, _total_variation, DISTANCE)}

    def init(self, key: Key, *, start: Any = None, runs: int | None = None) -> UnmaskingState:
        x = self._tokens(start)
        x = x.repeat(runs or 1, 1, 1) if x.ndim == 2 else x.clone()
        t = torch.zeros((len(x), 1, 1), dtype=self.dtype, device=self.device)
        sure = torch.where(x == self.law.words, torch.inf, torch.ones((), dtype=self.dtype, device=self.device))
        k = torch.zeros((), dtype=torch.int32, device=self.device)
        return UnmaskingState(x, t, sure, k, torch.full((len(x),), RUNNING, dtype=torch.int32, device=self.device))

    def _tokens(self, start: Any) -> Tensor:
        words, length = self.law.words, self.law.length
        if start is None:
            return torch.full((self.samples, length), words, device=self.device)
        x = torch.as_tensor(start, device=self.device)
        if x.ndim not in (2, 3) or x.shape[-1] != length or not x.numel():
            raise ValueError(
                f"expected start of shape (samples, {length}) or (runs, samples, {length}), got {tuple(x.shape)}"
            )
        tokens = x.long()
        if x.device.type != "meta" and not bool(((tokens == x) & (x >= 0) & (x <= words)).all()):
            raise ValueError(f"expected start to be whole numbers from 0 to {words} (the mask), got others in it")
        return tokens

    def draw(self, key: Key, state: UnmaskingState, hyper: Mapping[str, Any] | None = None) -> Tensor:
        return key.uniform((*state.x.shape[1:], 2), like=state.t, axis=0)

    def step(self, state: UnmaskingState, hyper: Mapping[str, Any], noise: Tensor) -> tuple[UnmaskingState, dict]:
        turned = {name: h[:, None, None] if isinstance(h, Tensor) and h.ndim else h for name, h in hyper.items()}
        x, t, mask, steps = state.x, state.t, self.law.words, hyper["steps"]
        end = torch.clamp((torch.floor(t * steps + 1e-3) + 1) / steps, max=1.0)
        p = self.denoiser(x, turned["error"].unsqueeze(-1))
        stay, come = self.chances(t, end, state.sure, turned)
        masked, (chance, choice) = x == mask, noise.unbind(-1)
        token = (choice.unsqueeze(-1) >= p.cumsum(-1)[..., :-1]).sum(-1)
        new = torch.where(masked, torch.where(chance < come, token, mask), torch.where(chance < stay, x, mask))
        came, went = masked & (new != mask), ~masked & (new == mask)
        sure = torch.where(came, p.gather(-1, token.unsqueeze(-1)).squeeze(-1), state.sure)
        sure = torch.where(went, torch.inf, sure)
        info = {"unmasked": came.to(self.dtype).mean((1, 2)), "remasked": went.to(self.dtype).mean((1, 2))}
        return UnmaskingState(new, end, sure, state.k + 1, state.diverged), info

    def chances(self, t: Tensor, end: Tensor, sure: Tensor, hyper: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(that an unmasked token stays, that a masked one comes) in the step from t to `end`."""
        alpha, later = (self.method.alpha(time, hyper) for time in (t, end))
        sigma = self.method.sigma(t, most_masking(alpha, later), sure, hyper)
        return 1 - sigma, unmasking_rate(alpha, later, sigma)

    def done(self, state: UnmaskingState) -> Tensor:
        return state.t.flatten() >= 1

    def observe(self, state: UnmaskingState) -> dict[str, Tensor]:
        masked = (state.x == self.law.words).to(self.dtype).mean((1, 2))
        return {"x": state.x, "time": state.t.flatten(), "masked": masked}

    def measure(self, info: dict) -> dict[str, Tensor]:
        return info

    def to(self, device: Any = None) -> "Unmasking":
        if device is None or torch.device(device) == self.device:
            return self
        more: dict[str, Any] = {"steps": self.steps, "samples": self.samples, "dtype": self.dtype}
        return Unmasking(self.law, self.method, **more, device=device)

    def coords(self) -> dict[str, tuple]:
        where = {"long_name": "place in the sequence", "units": "1"}
        return {"position": ("position", list(range(1, self.law.length + 1)), where)}

    def recipe(self) -> str:
        parts = [self.law.recipe(), self.method.recipe(), f"steps={self.steps}", f"samples={self.samples}"]
        parts += [] if self.dtype == torch.float32 else [f"dtype={self.dtype}"]
        return f"wb.unmasking({', '.join(parts)})"

    def describe(self) -> dict:
        return {"problem": self.law.name, "method": self.method.name, **self.law.settings}


STEPS = "Steps from all masks to all tokens."
ERROR = "Error of the denoiser: how far its log-probabilities are off where all is masked, a standard deviation."
DISTANCE = "Exact samples have it too, about half √(2/π) Σ √(p / samples): compare with that."


def _total_variation(routine: Any, state: UnmaskingState) -> dict[str, Tensor]:
    """½ Σ |frequency - p|; a sequence with masks is at full distance."""
    words, length, (runs, samples) = routine.law.words, routine.law.length, state.x.shape[:2]
    whole_ones = (state.x < words).all(-1)
    powers = words ** torch.arange(length - 1, -1, -1, device=state.x.device)
    row = torch.where(whole_ones, (state.x * powers).sum(-1), words**length)
    count = torch.zeros((runs, words**length + 1), dtype=routine.dtype, device=state.x.device)
    count = count.scatter_add(1, row, torch.ones_like(row, dtype=routine.dtype)) / samples
    p = routine.law.probabilities().flatten().to(count)
    return {"total_variation": ((count[:, :-1] - p).abs().sum(-1) + count[:, -1]) / 2}


def unmasking(
    law: Any = "ising-chain",
    method: str | Unmasker = "remdm-cap",
    *,
    steps: int = 50,
    samples: int = 1000,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Unmasking:
    """Masked diffusion of tokens with a known denoiser, as a routine: from masks at t = 0 to sequences at t = 1.

    Args:
        law: a catalogue name ("ising-chain"), a `TokenLaw`, or a table (words, …, words) of weights.
        method: a catalogue name ("mdlm", "remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop") or an `Unmasker`.
        steps: from one end to the other; may be turned on the way, and so may `error`, the error of the denoiser.
        samples: how many sequences come together.

    Raises:
        ValueError: on unknown names, a table that is none, or more sequences than a table can hold.

    Source: Sahoo et al. 2024, arXiv:2406.07524; Wang et al. 2025, arXiv:2503.00307.
    """
    from workbench.catalogue import find_declared

    named = isinstance(law, str | TokenLaw | type)
    found = find_declared("token laws", "a law of tokens", law) if named else TableLaw(law)
    rule = find_declared("unmaskers", "an unmasker", method)
    return Unmasking(found, rule, steps=steps, samples=samples, dtype=dtype, device=device)

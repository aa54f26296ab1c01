"""Cases for the linear memories' kernels, and how a kernel is held to the float64 recurrence.

The recurrence runs in float64 on the very numbers that the kernel gets. Inputs are cut out of larger tensors that are
NaN everywhere else, and fresh memory starts as NaN, so that a read or a forgotten write outside the tensors shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from attention_cases import DEVICE, Surrounded, nan_in_fresh_memory
from torch import Tensor

from workbench_kernels import linear_recurrence

#: Root mean square of the difference over that of the exact numbers, outputs and gradients (card just-read-twice).
BUDGETS = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
RULES = ("linear", "scalar", "vector", "delta", "gated-delta")


@dataclass(frozen=True)
class Case:
    """``documents``: offsets of packed rows; ``start``: an initial state that gets a gradient; ``dims`` (D, Dv)."""

    rule: str
    length: int = 70
    dims: tuple[int, int] = (20, 24)
    heads: tuple[int, int] = (2, 2)
    batch: int = 1
    feature_map: str = "identity"
    normalize: bool = False
    documents: tuple[int, ...] | None = None
    start: bool = True

    @property
    def words(self) -> dict[str, Any]:
        offsets = None if self.documents is None else torch.tensor(self.documents, device=DEVICE)
        return {"feature_map": self.feature_map, "normalize": self.normalize, "scale": 0.7, "offsets": offsets}

    def draw(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """Unit keys, as the delta rule wants them; gates in float32; everything small enough for half precision."""
        gen = torch.Generator(DEVICE).manual_seed(seed)
        batch = 1 if self.documents else self.batch

        def normal(heads: int, width: int) -> Tensor:
            return torch.randn(batch, self.length, heads, width, generator=gen, device=DEVICE)

        def uniform(*more: int) -> Tensor:
            return torch.rand(batch, self.length, self.heads[0], *more, generator=gen, device=DEVICE)

        dim, value_dim = self.dims
        keys = torch.nn.functional.normalize(normal(self.heads[1], dim), dim=-1)
        drawn = {"q": normal(self.heads[0], dim), "k": keys, "v": normal(self.heads[1], value_dim)}
        made = {name: x.to(dtype) for name, x in drawn.items()}
        if "delta" in self.rule:
            made["beta"] = uniform() * (1.0 if self.feature_map == "identity" else 1 / dim)  # mapped keys are long
        if self.rule in ("scalar", "gated-delta"):
            made["log_decay"] = -2 * uniform()
        if self.rule == "vector":
            made["log_decay"] = -2 * uniform(dim)
        if self.start:
            features = 1 + dim + dim * dim if self.feature_map == "taylor" else dim
            rows = len(self.documents) - 1 if self.documents else batch
            shape = (rows, self.heads[0], features, value_dim + self.normalize)
            made["state"] = torch.randn(shape, generator=gen, device=DEVICE).abs() * 0.3
        return made


PACKED = (0, 0, 1, 34, 34, 60, 70)
CASES = {rule: Case(rule) for rule in RULES}
CASES |= {f"{rule}, packed": Case(rule, documents=PACKED) for rule in RULES}
CASES |= {
    "one token": Case("gated-delta", length=1),
    "one component": Case("gated-delta", length=20, dims=(1, 1)),
    "shared keys": Case("linear", heads=(4, 2)),
    "shared keys, gated delta": Case("gated-delta", heads=(4, 1), dims=(16, 40)),
    "from nothing": Case("scalar", start=False),
    "two rows": Case("gated-delta", length=50, batch=2),
    "elu+1": Case("linear", feature_map="elu+1", normalize=True),
    "elu+1, packed": Case("linear", feature_map="elu+1", normalize=True, documents=PACKED),
    "elu+1, gated delta": Case("gated-delta", feature_map="elu+1", length=40),
    "elu+1, vector": Case("vector", feature_map="elu+1", length=40),
    "relu": Case("scalar", feature_map="relu"),
    "taylor": Case("linear", feature_map="taylor", dims=(5, 16), length=50, normalize=True),
    "taylor, gated": Case("scalar", feature_map="taylor", dims=(6, 16), length=50),
}


def outcome(
    case: Case, drawn: dict[str, Tensor], run: Callable[..., tuple[Tensor, Tensor]], exact: bool
) -> dict[str, Tensor]:
    """Outputs and the gradient of every input in float64; the loss weighs the reads and the final state."""
    leaves = {name: (x.double() if exact else x).detach().requires_grad_() for name, x in drawn.items()}
    inputs = {
        name: x if exact or x.dim() != 4 or name == "state" else Surrounded.apply(x) for name, x in leaves.items()
    }
    y, final = run(**inputs, **case.words)
    loss = (y * _weights(y)).sum().to(final.dtype) + (final * _weights(final)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    names = ("y", "final", *(f"d{name}" for name in leaves))
    return {name: x.detach().double() for name, x in zip(names, (y, final, *grads), strict=True)}


def _weights(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel(), device=x.device, dtype=torch.float64).view_as(x).to(x.dtype)


def recurrence(**words: Any) -> tuple[Tensor, Tensor]:
    return linear_recurrence(**words, impl="reference")


def kernels(**words: Any) -> tuple[Tensor, Tensor]:
    return linear_recurrence(**words, impl="triton")


def held(case: Case, dtype: torch.dtype, seed: int = 0, run: Callable[..., Any] = kernels) -> dict[str, float]:
    """One case against float64: name -> error; raises where one is over the budget or not finite."""
    drawn = case.draw(dtype, seed)
    exact = outcome(case, drawn, recurrence, True)
    with nan_in_fresh_memory():
        fast = outcome(case, drawn, run, False)
    errors = {}
    for name, a in exact.items():
        assert torch.isfinite(fast[name]).all(), name
        scale = a.square().mean().sqrt().clamp_min(1e-12)
        errors[name] = float((fast[name] - a).square().mean().sqrt() / scale)
    over = {name: error for name, error in errors.items() if error > BUDGETS[dtype]}
    assert not over, f"over {BUDGETS[dtype]:.0e}: {over}; all: {errors}"
    return errors

"""FlashAttention's exactness (E2): error against float64, forward and gradients, beside the standard algorithm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.studies.base import Progress
from workbench_kernels import attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TENSORS = ("out", "dq", "dk", "dv")


def inputs(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """q, k, v and dO in float64; "outliers" adds N(0, 100) to one entry in 1,000, "sharp" has 30 times the logits."""
    q, k, v, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    if kind == "outliers":
        q, k, v = (x + _outliers(shape, generator) for x in (q, k, v))
    return (q * 30 if kind == "sharp" else q), k, v, grad


def _outliers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    hit = torch.rand(shape, generator=generator) < 0.001
    return 10.0 * torch.randn(shape, generator=generator, dtype=torch.float64) * hit


def standard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as frameworks computed it before: every intermediate is rounded to the input's dtype. (B, N, H, D)."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1), v)


def _with_gradients(function: Any, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    *qkv, grad = tensors
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def errors(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[dict[str, Any]]:
    """Max and RMS error per draw, input kind, dtype and tensor, for "flash" (our tiled kernel) and "standard"."""
    shape = (1, settings["exact_length"], 2, 64)
    draws = [(draw, kind) for draw in range(settings["draws"]) for kind in ("normal", "outliers", "sharp")]
    for draw, kind in progress(draws, "E2 exactness"):
        exact_inputs = inputs(kind, shape, generator)
        for name, dtype in DTYPES.items():
            rounded = tuple(x.to(dtype) for x in exact_inputs)
            truth = _with_gradients(lambda *x: attention(*x, causal=False, impl="reference"), _double(rounded))
            flash = _with_gradients(lambda *x: attention(*x, causal=False, impl="tiled", block_size=64), rounded)
            plain = _with_gradients(standard, rounded)
            place = {"experiment": "E2", "input": kind, "dtype": name, "repeat": draw, "n": shape[1], "d": 64}
            yield from _compare(place, "flash", flash, truth)
            yield from _compare(place, "standard", plain, truth)


def _double(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in tensors)


def _compare(place: dict[str, Any], item: str, found: list[Tensor], truth: list[Tensor]) -> Iterator[dict[str, Any]]:
    for name, a, b in zip(TENSORS, found, truth, strict=True):
        gap, size = (a.double() - b).abs(), b.abs().max()
        row = {**place, "item": item, "tensor": name, "unit": "absolute"}
        yield {**row, "metric": "max error", "value": float(gap.max())}
        yield {**row, "metric": "rms error", "value": float(gap.square().mean().sqrt())}
        yield {**row, "metric": "relative error", "value": float(gap.max() / size), "unit": "of the largest entry"}


def gradchecks(generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Finite differences in float64 at N = 24, d = 8 with ragged tiles of 5 x 7: 1 = passed."""
    for causal in (False, True):
        for dropout in (0.0, 0.3):
            leaves = [
                torch.randn(1, 24, 1, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
            ]

            def run(q: Tensor, k: Tensor, v: Tensor, causal: bool = causal, dropout: float = dropout) -> Tensor:
                return attention(q, k, v, causal=causal, dropout=dropout, seed=7, block_size=(5, 7), impl="tiled")

            passed = torch.autograd.gradcheck(run, leaves, fast_mode=True, raise_exception=False)
            name = ("causal" if causal else "full") + (", dropout" if dropout else "")
            row = {"experiment": "E2", "item": "flash", "input": name, "dtype": "float64", "n": 24, "d": 8}
            yield {**row, "metric": "gradcheck", "unit": "passed", "value": float(passed)}

"""Cases for attention kernels, small for the interpreter and large for the card, and how a kernel is held to float64.

The budget is the error of plain low precision on the same device. Inputs are cut out of larger tensors that are NaN
everywhere else, and fresh memory starts as NaN, so that a read or a forgotten write outside the tensors shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention import reference
from workbench_kernels.softmax_attention.problem import Problem

NAMES = ("out", "lse", "dq", "dk", "dv", "dsinks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

#: What is asked beside plain attention. ``shape``, ``blocks``, ``heads`` and ``dims`` name entries of a ``Sizes``.
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 20},
    "wide window": {"causal": True, "window": 60, "shape": "long"},
    "window to the past": {"window": 33},
    "more queries than keys": {"causal": True, "shape": "few keys"},
    "few queries": {"causal": True, "shape": "few queries"},
    "soft cap": {"causal": True, "softcap": 1.5},
    "sinks": {"causal": True, "sinks": True, "shape": "few keys"},
    "padding": {"causal": True, "padding": True},
    "bool mask": {"mask": "bool"},
    "additive mask": {"mask": "additive", "causal": True},
    "mask a key": {"mask": "a key"},
    "block mask": {"blocks": "even"},
    "block mask of whole tiles": {"blocks": "even", "shape": "whole tiles"},
    "ragged block mask": {"blocks": "ragged", "causal": True, "window": 45},
    "dropout": {"causal": True, "dropout": 0.3},
    "negative scale": {"scale": -0.2},
    "one key head": {"heads": "one key head", "causal": True},
    "value dim": {"dims": "uneven", "causal": True},
    "no keys": {"shape": "no keys"},
    "no queries": {"shape": "no queries"},
    "everything": {
        **{"causal": True, "window": 40, "softcap": 3.0, "sinks": True, "padding": True, "mask": "additive"},
        **{"blocks": "ragged", "dropout": 0.1},
    },
}


@dataclass(frozen=True)
class Sizes:
    """(queries, keys), block sizes, (heads, key heads) and (head dim, value dim) by name; the rest is the usual one."""

    batch: int
    shapes: dict[str, tuple[int, int]]
    blocks: dict[str, tuple[int, int]]
    heads: dict[str, tuple[int, int]]
    dims: dict[str, tuple[int, int]]

    def draw(self, option: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        shape, heads, dims = (
            of[option.get(word, "usual")]
            for word, of in (("shape", self.shapes), ("heads", self.heads), ("dims", self.dims))
        )
        return draw(shape, heads, dims, dtype, seed=seed, batch=self.batch)

    def spelled(self, option: dict[str, Any]) -> dict[str, Any]:
        return {**option, "blocks": self.blocks[option["blocks"]]} if "blocks" in option else option


SMALL = Sizes(
    1,
    {
        "usual": (50, 70), "long": (130, 140), "few keys": (70, 30), "few queries": (3, 70), "no keys": (5, 0),
        "no queries": (0, 5), "whole tiles": (96, 128),
    },
    {"even": (32, 32), "ragged": (7, 11)},
    {"usual": (4, 2), "one key head": (2, 1)},
    {"usual": (20, 20), "uneven": (12, 24)},
)  # fmt: skip
LARGE = Sizes(
    2,
    {
        "usual": (217, 230), "long": (500, 510), "few keys": (300, 130), "few queries": (1, 513), "no keys": (5, 0),
        "no queries": (0, 5), "whole tiles": (256, 384),
    },
    {"even": (64, 64), "ragged": (48, 100)},
    {"usual": (4, 2), "one key head": (8, 1)},
    {"usual": (64, 64), "uneven": (64, 128)},
)  # fmt: skip


def draw(
    shape: tuple[int, int], heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype, *, seed: int = 0,
    batch: int = 2,
) -> list[Tensor]:  # fmt: skip
    """q, k and v of unit normals."""
    gen = torch.Generator(DEVICE).manual_seed(seed)
    sizes = [(shape[0], heads[0], dims[0]), (shape[1], heads[1], dims[0]), (shape[1], heads[1], dims[1])]
    return [torch.randn(batch, *size, generator=gen, device=DEVICE).to(dtype) for size in sizes]


def problem_of(q: Tensor, k: Tensor, option: dict[str, Any]) -> tuple[Problem, Tensor | None]:
    gen = torch.Generator(DEVICE).manual_seed(5)
    batch, queries, heads, dim = q.shape
    keys, words = k.shape[1], {name: option.get(name) for name in ("causal", "window")}

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=gen, device=DEVICE)

    if option.get("padding"):
        words["key_padding"] = uniform(batch, keys) > 0.3
    made = {
        "bool": lambda: uniform(batch, 1, queries, keys) > 0.4,
        "a key": lambda: uniform(1, heads, 1, keys) > 0.4,
        "additive": lambda: torch.randn(heads, queries, keys, generator=gen, device=DEVICE),
    }
    words["mask"] = made[option["mask"]]() if "mask" in option else None
    if "blocks" in option:
        grid = [-(-n // size) for n, size in zip((queries, keys), option["blocks"], strict=True)]
        words |= {"block_mask": uniform(1, heads, *grid) > 0.5, "block_size": option["blocks"]}
    masks = masking(q, k, **{"key_padding": None, **words})
    sinks = torch.randn(heads, generator=gen, device=DEVICE) if option.get("sinks") else None
    return Problem(masks, option.get("scale") or dim**-0.5, option.get("softcap"), option.get("dropout", 0.0), 7), sinks


class Surrounded(torch.autograd.Function):
    """The same numbers with strides of their own, in a sea of NaN; the gradient is the leaf's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        batch, length, heads, dim = x.shape
        sea = torch.full((batch, length + 3, heads + 1, dim + 16), float("nan"), dtype=x.dtype, device=x.device)
        sea[:, 1 : 1 + length, :heads, :dim] = x
        return sea[:, 1 : 1 + length, :heads, :dim]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class LoneLse:
    """The specification with an lse that carries no gradient."""

    @staticmethod
    def attention(*call: Any) -> tuple[Tensor, Tensor]:
        out, lse = reference.attention(*call)
        return out, lse.detach()


def outcome(
    module: Any, problem: Problem, tensors: list[Tensor], sinks: Tensor | None, dtype: torch.dtype, **words: Any
) -> list[Tensor]:
    """[out, lse, dq, dk, dv(, dsinks)] in float64; the loss weighs out and, where it is differentiable, the lse."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in tensors]
    inputs = [Surrounded.apply(x) for x in leaves]
    if problem.masking.bias is not None and dtype == torch.float64:
        problem = replace(problem, masking=replace(problem.masking, bias=problem.masking.bias.double()))
    if sinks is not None:
        sinks = sinks.to(torch.promote_types(dtype, torch.float32)).detach().requires_grad_()
        leaves.append(sinks)
    out, lse = module.attention(problem, *inputs, sinks, **words)
    loss = (out * _weights(out)).sum()
    lse = lse.masked_fill(torch.isneginf(lse), -1e4)
    if lse.requires_grad:
        loss = loss.to(lse.dtype) - (lse * _weights(lse)).sum()
    return [x.detach().double() for x in (out, lse, *torch.autograd.grad(loss, leaves))]


def _weights(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel(), device=x.device, dtype=torch.float64).view_as(x).to(x.dtype)


def held(module: Any, tensors: list[Tensor], option: dict[str, Any], *, lse: bool = True, **words: Any) -> None:
    """One case against float64; ``lse``: whether the module's lse carries a gradient."""
    dtype = tensors[0].dtype
    problem, sinks = problem_of(*tensors[:2], option)
    standard = reference if lse else LoneLse
    exact = outcome(standard, problem, tensors, sinks, torch.float64)
    plain = outcome(standard, problem, tensors, sinks, dtype)
    with nan_in_fresh_memory():
        fast = outcome(module, problem, tensors, sinks, dtype, **words)
    for name, a, b, c in zip(NAMES, exact, plain, fast, strict=False):
        if a.numel() == 0:
            continue
        assert torch.isfinite(c).all(), name
        blind = a == -1e4
        assert torch.equal(blind, c == -1e4), f"{name}: rows that see nothing"
        eps, seen = torch.finfo(dtype).eps, a.masked_fill(blind, 0.0)
        for kind, norm, share in (("largest", _largest, 4 * eps), ("root mean square", _rms, eps)):
            budget = 2 * norm(b - a) + share * norm(seen)
            assert norm(c - a) <= budget, (name, kind, norm(c - a), budget)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@contextmanager
def nan_in_fresh_memory() -> Iterator[None]:
    """Uninitialised memory starts as NaN; whatever is not overwritten shows."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            plain = getattr(torch, name)

            def poisoned(*args: Any, _plain: Any = plain, **words: Any) -> Tensor:
                made = _plain(*args, **words)
                return made.fill_(float("nan")) if made.dtype.is_floating_point else made

            patch.setattr(torch, name, poisoned)
        yield

"""Exact attention, forward and backward: every implementation of ours against every peer present.

FLOP convention of the FlashAttention papers: forward 4 B H S^2 D, half of it when causal, backward 2.5 times the
forward, whatever a kernel really does. On a GPU 16k tokens in total and a model width of 2048 (heads = 2048 / D),
bfloat16, inputs laid out (B, S, H, D), lengths of 1k, 4k and 16k: a minute or two with compilation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from workbench.bench import _peers
from workbench.bench._peers import Attention
from workbench.bench.base import BENCHES, Bench, Case, Contender, relative_error
from workbench_kernels import attention
from workbench_kernels.softmax_attention.api import AUTO_ELSEWHERE, IMPLEMENTATIONS

TOKENS, WIDTH = 16384, 2048
#: Contenders that cost much and tell little twice, at one head dim and length: what needs (B, H, S, S) scores or
#: hundreds of launches or a kernel of its own.
ONCE = ("tiled", "eager", "triton-v1")
ONCE_AT = (128, 4096)
#: flex joins one more point, the last one, if there is time left: compiling it takes about ten seconds a shape.
FLEX_AT, FLEX_BEFORE_S = (128, 4096, True), 60.0
#: The specification, which errors are measured against, and what takes a few queries only (table "decode").
NOT_RACED = ("reference", "split")


@dataclass(frozen=True)
class Point:
    """One shape: ``kv_heads`` = heads, Nq = Nk = ``length``."""

    batch: int
    length: int
    heads: int
    dim: int
    causal: bool
    dtype: torch.dtype

    @property
    def flops(self) -> float:
        return 4.0 * self.batch * self.heads * self.length**2 * self.dim / (2 if self.causal else 1)

    @property
    def place(self) -> dict[str, Any]:
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_dim": self.dim,
            "length": self.length,
            "mask": "causal" if self.causal else "full",
            "batch": self.batch,
            "heads": self.heads,
        }


class AttentionBench(Bench):
    name = "attention"
    title = "Exact attention, forward and backward"
    limit_s = 90.0

    def cases(self, device: str, quick: bool) -> Iterator[Case]:
        start = time.perf_counter()
        for point in points(device, quick):
            late = quick or time.perf_counter() - start > FLEX_BEFORE_S
            yield from both_passes(point, device, flex=not late)


BENCHES.register("attention")(AttentionBench())


def points(device: str, quick: bool) -> list[Point]:
    """The paper's grid on a GPU, one laptop shape and its shorter sibling on a CPU."""
    if device == "cpu":
        lengths = (1024,) if quick else (1024, 4096)
        return [Point(1, n, 8, 32, causal, torch.float32) for n, causal in product(lengths, (False, True))]
    dims: tuple[int, ...] = (128,) if quick else (64, 128)
    gpu_lengths = (16384, 1024) if quick else (16384, 1024, 4096)
    return [
        Point(max(1, TOKENS // n), n, WIDTH // d, d, causal, torch.bfloat16)
        for n, d, causal in product(gpu_lengths, dims, (False, True))
    ]


def both_passes(point: Point, device: str, flex: bool = False) -> Iterator[Case]:
    """A forward case and a backward case on the same random inputs."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (point.batch, point.length, point.heads, point.dim)
    draws = [torch.randn(shape, generator=generator, device=device, dtype=torch.float32) for _ in range(4)]
    q, k, v, grad = (x.to(point.dtype) for x in draws)
    kernels = contenders(point, device, flex)
    exact = _Exact(q, k, v, grad, point.causal)
    settings: dict[str, Any] = {"unit": "TFLOP/s"} | _effort(device)
    forward = {name: _contender(name, _forward(kernel, (q, k, v), point.causal)) for name, kernel in kernels.items()}
    yield Case({"pass": "forward", **point.place}, forward, point.flops, check=exact.out, **settings)
    backward = {
        name: _contender(name, _backward(kernel, (q, k, v), grad, point.causal)) for name, kernel in kernels.items()
    }
    yield Case({"pass": "backward", **point.place}, backward, 2.5 * point.flops, check=exact.gradients, **settings)


def _effort(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"launches": 9, "budget_s": 6.0}
    return {"launches": 12, "budget_s": 0.4}


def contenders(point: Point, device: str, flex: bool) -> dict[str, Attention]:
    if device == "cpu":
        return {**_ours(AUTO_ELSEWHERE), "eager": _peers.eager, **_peers.sdpa_peers(device)}
    kernels = {**_ours(IMPLEMENTATIONS), "eager": _peers.eager, **_peers.sdpa_peers(device)}
    if (point.dim, point.length) != ONCE_AT:
        kernels = {name: kernel for name, kernel in kernels.items() if name not in ONCE}
    if flex and (point.dim, point.length, point.causal) == FLEX_AT:
        kernels["flex"] = _peers.flex()
    if cute := _peers.flash_attn_4():
        kernels["flash-attn-4"] = cute
    return kernels


def _ours(names: Iterable[str]) -> dict[str, Attention]:
    def kernel(name: str) -> Attention:
        return lambda q, k, v, causal: attention(q, k, v, causal=causal, impl=name)

    return {name: kernel(name) for name in names if name not in NOT_RACED}


def _contender(name: str, run: Callable[[], Any]) -> Contender:
    ours = name in IMPLEMENTATIONS
    return Contender(run, ours, "" if ours else _peers.version(name))


def _forward(kernel: Attention, qkv: tuple[Tensor, ...], causal: bool) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return kernel(qkv[0], qkv[1], qkv[2], causal)

    return run


def _backward(
    kernel: Attention, qkv: tuple[Tensor, ...], grad: Tensor, causal: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone: the graph is made at the first call and kept."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    made: list[Tensor] = []

    def run() -> tuple[Tensor, ...]:
        if not made:
            made.append(kernel(leaves[0], leaves[1], leaves[2], causal))
        return torch.autograd.grad(made[0], leaves, grad, retain_graph=True)

    return run


class _Exact:
    """Output and gradients of the first batch and head (heads do not mix) in float64, computed once when asked for."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, causal: bool):
        self.inputs, self.grad, self.causal = (q, k, v), grad, causal
        self._found: tuple[Tensor, ...] | None = None

    def out(self, found: Tensor) -> float:
        return relative_error(found[:1, :, :1], self._exact()[0])

    def gradients(self, found: tuple[Tensor, ...]) -> float:
        """The largest of the three."""
        return max(relative_error(x[:1, :, :1], y) for x, y in zip(found, self._exact()[1:]))

    def _exact(self) -> tuple[Tensor, ...]:
        if self._found is None:
            leaves = [x[:1, :, :1].double().requires_grad_() for x in self.inputs]
            out = attention(*leaves, causal=self.causal, impl="reference")
            grads = torch.autograd.grad(out, leaves, self.grad[:1, :, :1].double())
            self._found = (out.detach(), *grads)
        return self._found

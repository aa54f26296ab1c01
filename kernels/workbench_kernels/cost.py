"""What an operation will cost before it runs: operations, peak extra bytes and seconds on this machine."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

from workbench_kernels import checks

KINDS = ("attention", "map", "region", "statistics", "mass")
#: Passes over one score cell beside its matrix products, in units of the probe's (score product + exp2 + pooling).
_WORK = {"attention": 1.6, "map": 1.0, "region": 0.8, "statistics": 12.0, "mass": 0.9}
_TILE_BYTES = 4 << 20
#: On CUDA, what one score cell costs beside its products (exp2, sums, loads that wait), as operations of a matrix
#: product of that card; from the measured times in kernels/notes/maps.md.
_CUDA_WORK = {"attention": 250.0, "map": 150.0, "region": 1000.0, "statistics": 1800.0, "mass": 500.0}
#: Least time of a call on CUDA: launches, copies of edges, checks that read a number back.
_CUDA_CALL_S = 2e-4


@dataclass(frozen=True)
class Cost:
    """flops, peak additional bytes, expected wall seconds."""

    flops: float
    bytes: int
    seconds: float


def predicted_cost(
    kind: str,
    *,
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    kv_heads: int | None = None,
    causal: bool = True,
    shape: tuple[int, int] = (512, 512),
    device: str | torch.device = "cpu",
) -> Cost:
    """Predict one call of ``attention``, a pooled "map", a "region" (queries x keys cells), "statistics" or "mass".

    A region is computed in full (no causal saving). The time is scaled from a probe of a few milliseconds that runs
    once per process and device: a tile on a CPU, a matrix product on CUDA, where the fast kernels are assumed (not what
    falls to torch: float64, full mask matrices). Other processes on the machine make it late, not wrong in bytes.
    """
    checks.choice("kind", kind, KINDS)
    for name, value in (
        ("batch", batch),
        ("queries", queries),
        ("keys", keys),
        ("heads", heads),
        ("head_dim", head_dim),
    ):
        checks.whole(name, value)
    if kv_heads is not None:
        checks.whole("kv_heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"kv_heads = {kv_heads} does not divide heads = {heads}")
    cells = batch * heads * _cells(queries, keys, causal and kind not in ("region", "mass"))
    products = 4.0 if kind == "attention" else 2.0
    fast = torch.device(device).type == "cuda" and dtype != torch.float64
    if fast:
        work = cells * (products * head_dim + _CUDA_WORK[kind])
        seconds = _CUDA_CALL_S + work / _products_per_second(str(device), dtype)
    else:
        seconds = cells * _seconds_per_cell(str(device)) * _WORK[kind] * (0.5 + head_dim / 64)
    held = 4 * batch * heads * _result(kind, queries, keys, head_dim, shape)
    held += 0 if fast else _TILE_BYTES + _packed(batch, queries, keys, heads, head_dim, kv_heads)
    return Cost(products * cells * head_dim, held, seconds)


def _cells(queries: int, keys: int, causal: bool) -> float:
    """Score cells of one head that are computed; bottom-right alignment."""
    if not causal:
        return float(queries) * keys
    seen = min(queries, keys)
    return seen * (keys - seen) + seen * (seen + 1) / 2


def _packed(batch: int, queries: int, keys: int, heads: int, dim: int, kv_heads: int | None) -> int:
    """Bytes of the float32 copies of queries and keys that the torch path makes."""
    return 4 * batch * (heads * queries + (kv_heads or heads) * keys) * (dim + 1)


def _result(kind: str, queries: int, keys: int, dim: int, shape: tuple[int, int]) -> int:
    """Numbers of one head's result, and what is sorted on the way to it."""
    return {
        "attention": queries * (dim + 1),
        "map": min(queries, shape[0]) * min(keys, shape[1]),
        "region": queries * keys,
        "statistics": queries * 80,
        "mass": queries,
    }[kind]


@functools.cache
def _seconds_per_cell(device: str) -> float:
    """Score product at D = 32, exp2 and a pooling sum, on a tile of 4 heads x 128 x 256; the fastest of a few runs."""
    q, k = torch.randn(4, 128, 32, device=device), torch.randn(4, 32, 256, device=device)
    tile = torch.empty(4, 128, 256, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.bmm(q, k, out=tile).exp2_().unflatten(1, (-1, 32)).sum(2)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / tile.numel()


@functools.cache
def _products_per_second(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product of this card; the maps' float32 products are made of three."""
    size = 4096
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = float("inf")
    with torch.cuda.device(device):
        for _ in range(6):
            start.record()
            torch.mm(a, b, out=product)
            end.record()
            torch.cuda.synchronize()
            best = min(best, start.elapsed_time(end) * 1e-3)
    return 2.0 * size**3 / best

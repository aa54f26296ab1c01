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
    once per process and device; other processes on the machine make it late, not wrong in bytes.
    """
    checks.choice("kind", kind, KINDS)
    for name, value in (
        ("batch", batch),
        ("queries", queries),
        ("keys", keys),
        ("heads", heads),
        ("head_dim", head_dim),
    ):
        checks.positive(name, value)
    cells = batch * heads * _cells(queries, keys, causal and kind not in ("region", "mass"))
    products = 4.0 if kind == "attention" else 2.0
    seconds = cells * _seconds_per_cell(str(device)) * _WORK[kind] * (0.5 + head_dim / 64)
    return Cost(
        products * cells * head_dim, _bytes(kind, batch, queries, keys, heads, head_dim, kv_heads, shape), seconds
    )


def _cells(queries: int, keys: int, causal: bool) -> float:
    """Score cells of one head that are computed; bottom-right alignment."""
    if not causal:
        return float(queries) * keys
    seen = min(queries, keys)
    return seen * (keys - seen) + seen * (seen + 1) / 2


def _bytes(
    kind: str, batch: int, queries: int, keys: int, heads: int, dim: int, kv_heads: int | None, shape: tuple[int, int]
) -> int:
    """Packed float32 copies of queries and keys, one working tile, and the result."""
    packed = 4 * batch * (heads * queries + (kv_heads or heads) * keys) * (dim + 1)
    result = {
        "attention": queries * (dim + 1),
        "map": min(queries, shape[0]) * min(keys, shape[1]),
        "region": queries * keys,
        "statistics": queries * 40,
        "mass": queries,
    }[kind]
    return packed + _TILE_BYTES + 4 * batch * heads * result


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

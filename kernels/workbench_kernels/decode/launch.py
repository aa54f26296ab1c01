"""Host side of the Triton kernels: configurations, how many parts a sequence is cut into, launches."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from workbench_kernels.decode.parts import parts
from workbench_kernels.decode.prefill import prefill_kernel
from workbench_kernels.decode.problem import Problem
from workbench_kernels.decode.split import merge_kernel, split_kernel
from workbench_kernels.decode.tile import BLOCKS, CONTIGUOUS, SLOTS
from workbench_kernels.decode.view import CacheView

_ADDRESS = {"contiguous": CONTIGUOUS, "slots": SLOTS, "blocks": BLOCKS}
LOG2_E = 1.4426950408889634
TILE_BYTES = 16 << 10
#: What Triton did until 3.9 when it was not told.
_OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Config:
    """Keys in a tile, warps, pipeline stages, and programs that a multiprocessor holds at once."""

    block_n: int
    warps: int
    stages: int
    per_sm: int = 2
    block_m: int = 128


def decode_config(dim: int, element_bytes: int) -> Config:
    """Tiles of 16 KB of keys, two stages on their way and two programs a multiprocessor: 128 KB in flight on each.

    Frozen from measurements; see ``kernels/notes/decode.md``.
    """
    key_bytes = _wide(dim) * element_bytes
    return Config(max(16, min(128, TILE_BYTES // key_bytes)), 8 if key_bytes >= 512 and element_bytes == 4 else 4, 3)


def prefill_config(dim: int, element_bytes: int) -> Config:
    wide = _wide(dim) * element_bytes
    if element_bytes == 4:
        return Config(32, 4, 2, block_m=32 if wide > 512 else 64)
    if wide > 256:
        return Config(32, 8, 2, block_m=128)
    return Config(64, 8, 3, block_m=128)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def decode(problem: Problem, q: Tensor, view: CacheView, _: str = "triton", config: Config | None = None) -> Any:
    """Returns out (B, Q, H, D) in q's dtype and lse (B, Q, H) float32."""
    batch, queries, heads, dim = q.shape
    kv_heads = view.k.shape[2]
    rows = queries * heads // kv_heads
    config = config or decode_config(dim, q.element_size())
    block_m = max(16, min(16 if q.element_size() == 4 else 64, triton.next_power_of_2(rows)))
    block_n = config.block_n
    tiles = batch * kv_heads * triton.cdiv(rows, block_m)
    out, lse = _results(q)
    if batch == 0:
        return out, lse
    keys = min(view.capacity, (problem.window or view.capacity) + queries + block_n)
    count = problem.splits or parts(tiles, keys, block_n, multiprocessors(q.device) * config.per_sm)
    # The parts' outputs and (maximum, sum), without a fill: an empty part is known by its maximum.
    part = q.new_empty((batch * kv_heads * count * rows * dim if count > 1 else 1,), dtype=torch.float32)
    stats = q.new_empty((batch * kv_heads * count * rows * 2 if count > 1 else 1,), dtype=torch.float32)
    sinks = lse if problem.sinks is None else problem.sinks
    shape = {"QUERIES": queries, "GROUP": heads // kv_heads, "KV_HEADS": kv_heads, "DIM": dim, "BLOCK_D": _wide(dim)}
    split_kernel[(tiles, count)](
        *(q, view.k, view.v, out, lse, part, stats),
        *_common(problem, q, view, out, sinks),
        **shape,
        **_flags(problem, view),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        ONE_PART=count == 1,
        num_warps=config.warps,
        num_stages=config.stages,
        **_OPTIONS,
    )
    if count > 1:
        merge_kernel[(batch * kv_heads * rows,)](
            *(out, lse, part, stats, sinks, count, *out.stride()[:3]),
            **shape,
            BLOCK_P=max(2, min(32, triton.next_power_of_2(count))),
            SINKS=problem.sinks is not None,
            num_warps=4,
            **_OPTIONS,
        )
    return out, lse


def prefill(problem: Problem, q: Tensor, view: CacheView, _: str = "triton", config: Config | None = None) -> Any:
    """Returns out (B, Q, H, D) in q's dtype and lse (B, Q, H) float32."""
    batch, queries, heads, dim = q.shape
    config = config or prefill_config(dim, q.element_size())
    block_m = max(16, min(config.block_m, triton.next_power_of_2(queries)))
    out, lse = _results(q)
    if batch == 0:
        return out, lse
    sinks = lse if problem.sinks is None else problem.sinks
    factor, cap, capacity, window, *strides = _numbers(problem, q, view, out)
    prefill_kernel[(triton.cdiv(queries, block_m), batch * heads)](
        *(q, view.k, view.v, out, lse, view.lengths, _where(view), sinks),
        *(factor, cap, capacity, window, queries, *strides),
        **{"GROUP": heads // view.k.shape[2], "HEADS": heads, "DIM": dim, "BLOCK_D": _wide(dim)},
        **_flags(problem, view),
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        num_warps=config.warps if block_m >= 64 else 4,
        num_stages=config.stages,
        **_OPTIONS,
    )
    return out, lse


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _wide(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))


def _where(view: CacheView) -> Tensor:
    return view.lengths if view.where is None else view.where


def _common(problem: Problem, q: Tensor, view: CacheView, out: Tensor, sinks: Tensor) -> tuple[Any, ...]:
    return (view.lengths, _where(view), sinks, *_numbers(problem, q, view, out))


def _numbers(problem: Problem, q: Tensor, view: CacheView, out: Tensor) -> tuple[Any, ...]:
    """factor, cap, capacity, window, then the strides of q, k, v, out and the table."""
    cap = problem.softcap
    factor = problem.scale * LOG2_E if cap is None else problem.scale / cap
    table_stride = view.where.stride(0) if view.kind == "blocks" and view.where is not None else 0
    strides = [stride for x in (q, view.k, view.v, out) for stride in x.stride()[:3]]
    return (factor, cap or 0.0, view.capacity, problem.window or 0, *strides, table_stride)


def _flags(problem: Problem, view: CacheView) -> dict[str, Any]:
    return {
        "ADDRESS": _ADDRESS[view.kind],
        "PAGE": view.page if view.kind == "blocks" else 1,
        "CAPPED": problem.softcap is not None,
        "WINDOWED": problem.window is not None,
        "SINKS": problem.sinks is not None,
    }

"""Host side of the Triton kernels: configurations, plans that depend on shapes alone, launches."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from workbench_kernels import launching
from workbench_kernels.decode.prefill import prefill_kernel
from workbench_kernels.decode.problem import Problem
from workbench_kernels.decode.split import merge_kernel, split_kernel
from workbench_kernels.decode.tile import BLOCKS, CONTIGUOUS, SLOTS
from workbench_kernels.decode.view import CacheView

_ADDRESS = {"contiguous": CONTIGUOUS, "slots": SLOTS, "blocks": BLOCKS}
LOG2_E = 1.4426950408889634
TILE_BYTES = 16 << 10
_TINY = 1e-30
#: Most rows of a decode tile; more queries x query heads of one key head are several row blocks.
_MOST_ROWS = {2: 64, 4: 16}
_INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Config:
    """Keys in a tile, warps, pipeline stages, programs that a multiprocessor holds at once; rows of a prefill tile.

    ``early``: the merge is launched while the shares still run and waits for them on the card.
    """

    block_n: int
    warps: int
    stages: int
    per_sm: int = 2
    block_m: int = 128
    early: bool = False


def decode_config(dim: int, element_bytes: int, early: bool = False) -> Config:
    """Tiles of 16 KB of keys, two stages on their way and two programs a multiprocessor: 128 KB in flight on each.

    Frozen from measurements; see ``kernels/notes/decode.md``.
    """
    key_bytes = _wide(dim) * element_bytes
    warps = 8 if key_bytes >= 512 and element_bytes == 4 else 4
    return Config(max(16, min(128, TILE_BYTES // key_bytes)), warps, 3, early=early)


def prefill_config(dim: int, element_bytes: int) -> Config:
    key_bytes = _wide(dim) * element_bytes
    if element_bytes == 4:
        return Config(32, 4, 2, block_m=32 if key_bytes > 512 else 64)
    if key_bytes > 256:
        return Config(32, 8, 2, block_m=128)
    return Config(64, 8, 3, block_m=128)


@dataclass(frozen=True)
class Plan:
    """What one shape needs: grids, sizes of the pieces, and the constants of the two kernels in their order."""

    shares: int
    pieces: int
    outputs: int
    split: dict[str, Any]
    merge: dict[str, Any]


@functools.lru_cache(1024)
def _plan(
    q_shape: tuple[int, ...],
    kv_heads: int,
    tiles: int,
    page: int,
    config: Config,
    flags: tuple[Any, ...],
    splits: int | None,
    slots: int,
    most_rows: int,
) -> Plan:
    """``tiles`` of a full sequence, ``slots`` programs that the card holds at once."""
    batch, queries, heads, dim = q_shape
    address, capped, windowed, sinks = flags
    rows = queries * heads // kv_heads
    block_m = max(16, min(most_rows, triton.next_power_of_2(rows)))
    row_blocks = triton.cdiv(rows, block_m)
    units = batch * kv_heads * row_blocks
    shares = min(units * splits if splits else slots, units * tiles)
    rows = rows if row_blocks == 1 else block_m
    pool = {
        **{"QUERIES": queries, "GROUP": heads // kv_heads, "KV_HEADS": kv_heads, "DIM": dim, "BLOCK_D": _wide(dim)},
        **{"BLOCK_B": max(64, triton.next_power_of_2(batch)), "BLOCK_M": block_m, "BLOCK_N": config.block_n},
        **{"BLOCK_P": 32, "ROW_BLOCKS": row_blocks, "ROWS": rows, "ADDRESS": address, "PAGE": page},
        **{"CAPPED": capped, "WINDOWED": windowed, "SINKS": sinks, "EARLY": config.early},
    }
    pieces = (shares + units) * rows
    return Plan(shares, pieces, batch * queries * heads, _constants(split_kernel, pool), _constants(merge_kernel, pool))


def _constants(kernel: Any, pool: dict[str, Any]) -> dict[str, Any]:
    return {name: pool[name] for name in kernel.arg_names if name in pool}


def decode(problem: Problem, q: Tensor, view: CacheView, _: str = "triton", config: Config | None = None) -> Any:
    """Returns out (B, Q, H, D) in q's dtype and lse (B, Q, H) float32."""
    out, lse = _results(q)
    if q.shape[0] == 0:
        return out, lse
    config = config or decode_config(q.shape[3], q.element_size(), _early(q.device))
    keys = min(view.capacity, (problem.window or view.capacity) + q.shape[1] + config.block_n)
    plan = _plan(
        *(tuple(q.shape), view.k.shape[2], max(1, -(-keys // config.block_n)), _page(view), config),
        *(_flags(problem, view), problem.splits, multiprocessors(q.device) * config.per_sm),
        _MOST_ROWS[q.element_size()],
    )
    scratch = q.new_empty(plan.pieces * (q.shape[3] + 2), dtype=torch.float32)
    part, stats = scratch[: plan.pieces * q.shape[3]], scratch[plan.pieces * q.shape[3] :]
    factor, cap, capacity, window, *strides = _numbers(problem, q, view, out)
    sizes = (q.shape[0], capacity, window)
    args = (q, view.k, view.v, part, stats, view.lengths, _where(view), factor, cap, *sizes, *strides[:9], strides[12])
    _launch(split_kernel, plan.shares, args, plan.split, config.warps, config.stages)
    args = (out, lse, part, stats, view.lengths, _sinks(problem, lse), plan.shares, *sizes, *strides[9:12])
    more = {"launch_pdl": True} if config.early else {}
    _launch(merge_kernel, plan.outputs, args, plan.merge, 4, None, **more)
    return out, lse


def prefill(problem: Problem, q: Tensor, view: CacheView, _: str = "triton", config: Config | None = None) -> Any:
    """Returns out (B, Q, H, D) in q's dtype and lse (B, Q, H) float32."""
    batch, queries, heads, dim = q.shape
    out, lse = _results(q)
    if batch == 0:
        return out, lse
    config = config or prefill_config(dim, q.element_size())
    block_m = max(16, min(config.block_m, triton.next_power_of_2(queries)))
    address, capped, windowed, sinks = _flags(problem, view)
    pool = {
        **{"GROUP": heads // view.k.shape[2], "HEADS": heads, "DIM": dim, "BLOCK_D": _wide(dim)},
        **{"BLOCK_M": block_m, "BLOCK_N": config.block_n, "ADDRESS": address, "PAGE": _page(view)},
        **{"CAPPED": capped, "WINDOWED": windowed, "SINKS": sinks},
    }
    factor, cap, capacity, window, *strides = _numbers(problem, q, view, out)
    if factor <= 0 and not cap:  # the kernel compares scores before it scales them
        q, factor = (-q, -factor) if factor < 0 else (q, _TINY)
    tensors = (q, view.k, view.v, out, lse, view.lengths, _where(view), _sinks(problem, lse))
    args = (*tensors, factor, cap, capacity, window, queries, *strides)
    warps = config.warps if block_m >= 64 else 4
    grid = (triton.cdiv(queries, block_m), batch * heads)
    _launch(prefill_kernel, grid, args, _constants(prefill_kernel, pool), warps, config.stages)
    return out, lse


def _launch(
    kernel: Any,
    grid: int | tuple[int, int],
    args: tuple[Any, ...],
    constants: dict[str, Any],
    warps: int,
    stages: int | None,
    **more: Any,
) -> None:
    whole = (*grid, 1) if isinstance(grid, tuple) else (grid, 1, 1)
    if _INTERPRETED:
        kernel[whole](*args, **constants)
    else:
        launching.launch(kernel, whole, args, constants, warps=warps, stages=stages, **more)


@functools.cache
def _early(device: torch.device) -> bool:
    """Whether the card can launch a kernel that waits for the one before it (compute capability 9.0)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _sinks(problem: Problem, lse: Tensor) -> Tensor:
    return lse if problem.sinks is None else problem.sinks


def _wide(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))


def _where(view: CacheView) -> Tensor:
    return view.lengths if view.where is None else view.where


def _page(view: CacheView) -> int:
    return view.page if view.kind == "blocks" else 1


def _numbers(problem: Problem, q: Tensor, view: CacheView, out: Tensor) -> tuple[Any, ...]:
    """factor, cap, capacity, window, then the strides of q, k, v, out and the table."""
    cap = problem.softcap
    factor = problem.scale * LOG2_E if cap is None else problem.scale / cap
    table_stride = view.where.stride(0) if view.kind == "blocks" and view.where is not None else 0
    strides = [stride for x in (q, view.k, view.v, out) for stride in x.stride()[:3]]
    return (factor, cap or 0.0, view.capacity, problem.window or 0, *strides, table_stride)


def _flags(problem: Problem, view: CacheView) -> tuple[int, bool, bool, bool]:
    """How rows are found; soft cap, window and sinks."""
    return (
        _ADDRESS[view.kind],
        problem.softcap is not None,
        problem.window is not None,
        problem.sinks is not None,
    )

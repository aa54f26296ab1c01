"""``_event_choice_device.choose`` and the gather behind it as one launch: a layer costs the host a call, no wait.

Every program makes the whole choice by itself and then copies its share of the rows. What they write of the choice is
the same to the last number, so no program waits for another.

Importing this file needs Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from workbench.memory.cache._event_choice_device import Budgets

NOBODY = tl.constexpr(2**31 - 1)
PROGRAMS = 16


@triton.jit
def _similar(order, n_order, edges, similar, KP: tl.constexpr):
    """How many of the events in falling score the similarity buffer holds."""
    rank = tl.arange(0, KP)
    here = rank < n_order
    event = tl.load(order + rank, mask=here, other=0).to(tl.int32)
    size = tl.load(edges + event + 1, mask=here, other=0) - tl.load(edges + event, mask=here, other=0)
    end = tl.cumsum(size, 0)
    return tl.sum((here & (2 * end - size <= 2 * similar)).to(tl.int32), 0)


@triton.jit
def _named(order, before, n_best, n_events, K: tl.constexpr, Q: tl.constexpr, P: tl.constexpr):
    """The chosen events, b + 1 and b - 1 of each, the queue; which of them are real."""
    rank = tl.arange(0, P)
    best, around = rank < K, (rank >= K) & (rank < 3 * K)
    waiting = (rank >= 3 * K) & (rank < 3 * K + Q)
    place = tl.where(best, rank, (rank - K) // 2)
    event = tl.load(order + place, mask=(rank < 3 * K) & (place < n_best), other=-1).to(tl.int32)
    real = (event >= 0) & (rank < 3 * K)
    event += tl.where(around, 1 - 2 * ((rank - K) % 2), 0)
    queue = tl.load(before + 2 + K + (rank - 3 * K), mask=waiting, other=-1)
    event = tl.where(waiting, queue, event)
    return event, (real | waiting) & (event >= 0) & (event < n_events)


@triton.jit
def _sizes(edges, event, real):
    return tl.load(edges + event + 1, mask=real, other=0) - tl.load(edges + event, mask=real, other=0)


@triton.jit
def _tokens_before(chosen, edges, event, n, R: tl.constexpr, T: tl.constexpr):
    """Tokens of the chosen events that come before ``event`` in the stream: an order without a sort."""
    before = tl.zeros((R,), tl.int32)
    for low in range(0, n, T):
        slot = low + tl.arange(0, T)
        other = tl.load(chosen + slot, mask=slot < n, other=-1, cache_modifier=".cg")
        size = _sizes(edges, other, other >= 0)
        before += tl.sum(tl.where(other[None, :] < event[:, None], size[None, :], 0), 1)
    return before


@triton.jit
def _gather(index, pool, rows, most, W: tl.constexpr, C: tl.constexpr):
    """Rows ``index`` of ``pool`` (n, W) into ``rows`` (most, W), this program's share of them."""
    column, here = tl.arange(0, C)[None, :], tl.arange(0, 8192 // C)
    for low in range(tl.program_id(0) * (8192 // C), most, tl.num_programs(0) * (8192 // C)):
        slot = low + here
        source = tl.load(index + slot, mask=slot < most, other=0, cache_modifier=".cg").to(tl.int64)[:, None]
        for first in range(0, W, C):
            real = (slot < most)[:, None] & (first + column < W)
            part = tl.load(pool + source * W + first + column, mask=real)
            tl.store(rows + slot.to(tl.int64)[:, None] * W + first + column, part, mask=real)


@triton.jit(do_not_specialize=["n_order", "n_events", "most", "longest", "similar", "share"])
def _choose(
    order, before, record, pool, rows, edges, index, bias, taken, n_order, n_events, most, longest, similar, share,
    K: tl.constexpr, Q: tl.constexpr, KP: tl.constexpr, P: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
    W: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """``taken`` (programs, E): the rank at which an event is named first; NOBODY before and after."""
    taken += tl.program_id(0).to(tl.int64) * n_events
    rank = tl.arange(0, P)
    n_best = _similar(order, n_order, edges, similar, KP)
    event, real = _named(order, before, n_best, n_events, K, Q, P)
    tl.atomic_min(taken + event, rank, mask=real)
    tl.debug_barrier()
    first = real & (tl.load(taken + event, mask=real, other=-1, cache_modifier=".cg") == rank)
    tl.debug_barrier()
    tl.store(taken + event, NOBODY, mask=first)

    near = first & (rank >= K)
    size = _sizes(edges, event, near)
    near = near & (tl.cumsum(size, 0) <= share)
    n_near = tl.sum(near.to(tl.int32), 0)
    tl.store(record, n_best)
    tl.store(record + 1, n_near)
    tl.store(record + 2 + rank, tl.where(rank < n_best, event, -1), mask=rank < K)
    tl.store(record + 2 + K + tl.cumsum(near.to(tl.int32), 0) - 1, event, mask=near)
    tl.store(record + 2 + K + rank, tl.full((P,), -1, tl.int32), mask=(rank >= n_near) & (rank < Q))

    tl.debug_barrier()  # what was written above is read by other threads now
    slot = tl.arange(0, R)
    event = tl.load(record + 2 + slot, mask=slot < K + Q, other=-1, cache_modifier=".cg")
    size = _sizes(edges, event, event >= 0)
    free = most - tl.sum(size, 0)
    place = free + _tokens_before(record + 2, edges, event, K + Q, R, T)
    start = tl.load(edges + event, mask=event >= 0, other=0)
    for low in range(0, longest, T):
        row = low + tl.arange(0, T)[None, :]
        tl.store(index + place[:, None] + row, start[:, None] + row, mask=row < size[:, None])
    for low in range(0, most, P):
        row = low + rank
        tl.store(index + row, tl.zeros((P,), tl.int32), mask=row < free)
        tl.store(bias + row, tl.where(row < free, float("-inf"), 0.0), mask=row < most)
    tl.debug_barrier()  # other threads of this program wrote the index that is read now
    _gather(index, pool, rows, most, W, C)


def sizes(budgets: Budgets) -> tuple[int, ...]:
    """Lengths of the kernel's vectors: events in falling score, that are named, that are chosen; columns of a tile."""
    lengths = budgets.k, 3 * budgets.k + budgets.queue, budgets.k + budgets.queue
    kp, p, r = (triton.next_power_of_2(length) for length in lengths)
    return kp, p, r, min(16, max(16384 // p, 1))


def warps(budgets: Budgets) -> int:
    """Four named events a thread: next to nothing is spilled."""
    return max(sizes(budgets)[1] // 128, 4)


def takes(budgets: Budgets) -> bool:
    """Whether one program can hold what is named; about 9,000 tokens of events that may have 8 are too many."""
    return warps(budgets) <= 32


def columns(width: int) -> int:
    """Numbers of a row that are copied at a time."""
    return min(triton.next_power_of_2(width), 1024)


def launcher(
    edges: Tensor, index: Tensor, bias: Tensor, budgets: Budgets, longest: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]:
    """Call (order, before, record, pool, rows) that fills ``index``, ``bias`` and ``record`` as ``choose`` does, and
    ``rows`` with rows ``index`` of ``pool``, both contiguous."""
    n_events = len(edges) - 1
    taken = torch.full((PROGRAMS, n_events), NOBODY.value, dtype=torch.int32, device=edges.device)
    run, n_order, n_warps = _choose[(PROGRAMS,)], min(n_events, budgets.k), warps(budgets)
    numbers = (n_order, n_events, len(index), longest, budgets.similar, budgets.near)
    shape = (budgets.k, budgets.queue, *sizes(budgets))

    def launch(order: Tensor, before: Tensor, record: Tensor, pool: Tensor, rows: Tensor) -> Any:
        width = pool.stride(0)
        given = (order, before, record, pool, rows, edges, index, bias, taken, *numbers, *shape)
        return run(*given, width, columns(width), num_warps=n_warps)

    return launch

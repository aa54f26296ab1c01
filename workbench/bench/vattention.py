"""vAttention: one kernel source over a contiguous cache, over slots of mapped virtual memory, and over block tables.

The claim raced here is that contiguous *virtual* memory costs nothing: the same kernel, the same addresses' arithmetic,
pages mapped one by one under it. torch's own attention runs on the mapped tensors as it is. On a CPU pages are memfd
mappings; the plain torch path then measures nothing but the gathering that a table needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.bench import _peers, decode
from workbench.bench.base import BENCHES, Bench, Case, Contender, relative_error
from workbench.systems.kv_virtual import VirtualKV
from workbench_kernels import decode_attention, paged_attention

BLOCKS = (16, 256)


@dataclass(frozen=True)
class Point:
    """``decode``: one query a sequence; else a prefill of one whole prompt."""

    stage: str
    batch: int
    context: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def place(self) -> dict[str, Any]:
        shape = {"heads": f"{self.heads}/{self.kv_heads}", "head_dim": self.dim}
        return {"stage": self.stage, "batch": self.batch, "context": self.context, **shape}


class VAttentionBench(Bench):
    name = "vattention"
    title = "vAttention: a kernel over contiguous, mapped and block-table caches"
    limit_s = 25.0

    def cases(self, device: str, quick: bool) -> Iterator[Case]:
        for point in points(device, quick):
            with mapped(point, device) as kv:
                yield case(point, device, kv)


BENCHES.register("vattention")(VAttentionBench())


def points(device: str, quick: bool) -> list[Point]:
    if device == "cpu":
        small = Point("decode", 4, 1024, 8, 2, 64, torch.float32)
        return [small, replace(small, stage="prefill", batch=1)]
    some = [Point("decode", 8, 16384), Point("prefill", 1, 8192)]
    return some if quick else [*some, Point("decode", 64, 16384), Point("prefill", 1, 16384)]


def mapped(point: Point, device: str) -> VirtualKV:
    """A memory with twice the slots that are used, so that the used ones are not neighbours."""
    kv = VirtualKV.init(1, point.kv_heads, point.dim, 2 * point.batch, point.context, device, point.dtype)
    kv.reserve_physical_pages(point.batch * kv.geometry.slot_blocks * kv.geometry.block_bytes)
    return kv


def case(point: Point, device: str, kv: VirtualKV) -> Case:
    """All contenders on one draw; ``kv`` is an empty memory of :func:`mapped`."""
    q, k, v = draw(point, device)
    lengths = torch.full((point.batch,), point.context, dtype=torch.int32, device=device)
    slots = fill(kv, k, v)
    runs = {name: Contender(run, ours=True) for name, run in ours(point, kv, slots, q, k, v, lengths).items()}
    found = {"SDPA": (k, v), "SDPA mapped": tuple(x[slots[0] :: 2, : point.context] for x in kv.layer(0))}
    for name, (keys, values) in found.items():
        runs[name] = Contender(_sdpa(q, keys, values, point.stage == "prefill"), version=f"torch {torch.__version__}")
    ends = slice(None, None, max(1, point.batch - 1))  # the first and the last sequence
    last = slice(max(0, q.shape[1] - 64), None)  # float64 for the last queries of a prompt
    exact = paged_attention(*(x[ends].double() for x in (q[:, last], k, v)), lengths=lengths[ends], impl="reference")
    work, unit = _work(point, q)
    effort: dict[str, Any] = {"launches": 7, "budget_s": 3.0} if device == "cpu" else {"launches": 15, "budget_s": 0.6}

    def check(out: Tensor) -> float:
        return relative_error(out[ends, last], exact)

    return Case(point.place, runs, work, unit, check, **effort)


def draw(point: Point, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, Q, H, D), k and v (B, context, Hkv, D)."""
    generator = torch.Generator(device).manual_seed(0)
    words: dict[str, Any] = {"generator": generator, "device": device, "dtype": point.dtype}
    queries = point.context if point.stage == "prefill" else 1
    q = torch.randn(point.batch, queries, point.heads, point.dim, **words)
    k, v = (torch.randn(point.batch, point.context, point.kv_heads, point.dim, **words) for _ in range(2))
    return q, k, v


def fill(kv: VirtualKV, k: Tensor, v: Tensor) -> list[int]:
    """Write the sequences into every second slot; returns the slots."""
    taken = [kv.alloc_new_batch_idx(0) for _ in kv.slots]
    used = taken[1::2]
    kv.step([k.shape[1] if slot in used else 0 for slot in taken])
    for row, slot in enumerate(used):
        for place, value in zip(kv.view(0, slot), (k, v)):
            place.copy_(value[row : row + 1])
    return used


def ours(
    point: Point, kv: VirtualKV, slots: list[int], q: Tensor, k: Tensor, v: Tensor, lengths: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """One kernel source in every layout."""
    kernel = decode_attention if point.stage == "decode" else paged_attention
    at = torch.tensor(slots, dtype=torch.int32, device=q.device)
    ways: dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]] = {
        "contiguous": (k, v, {}),
        "vAttention": (*kv.layer(0), {"slots": at}),
    }
    ways |= {f"paged-{block}": decode.paged(k, v, block) for block in BLOCKS}

    def call(keys: Tensor, values: Tensor, where: dict[str, Tensor]) -> Callable[[], Tensor]:
        return lambda: kernel(q, keys, values, lengths=lengths, **where)

    return {name: call(*way) for name, way in ways.items()}


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Callable[[], Tensor]:
    attend = dict(_peers.sdpa_peers(q.device))
    chosen = attend.get("SDPA flash") or next(iter(attend.values()))
    return lambda: chosen(q, k, v, causal)


def _work(point: Point, q: Tensor) -> tuple[float, str]:
    """Bytes of keys and values for a decode, floating-point operations of the causal half for a prefill."""
    if point.stage == "decode":
        return float(2 * point.batch * point.context * point.kv_heads * point.dim * q.element_size()), "TB/s"
    return 4.0 * point.batch * point.heads * point.dim * point.context * (point.context + 1) / 2, "TFLOP/s"

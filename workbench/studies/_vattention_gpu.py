"""What vAttention's study measures on a GPU: unmodified kernels over mapped tensors, and the price of a block table.

One kernel source serves all layouts (``workbench_kernels.paged_attention`` and ``decode_attention``), so a difference
is the layout's. Shapes are Llama-3-8B's: 32 query heads, 8 key-value heads of 128.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from workbench.studies._vattention_parts import guarded
from workbench.studies.base import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.systems.kv_virtual import VirtualKV

Row = dict[str, Any]
HEADS, KV_HEADS, DIM = 32, 8, 128


def attention(settings: Mapping[str, Any], seed: int, progress: Progress) -> Iterator[Row]:
    """E5: prefill of one prompt and decode of a batch, in every layout, and SDPA on ordinary and mapped tensors.

    After ``settings["attention_s"]`` seconds no new point is begun; what is left out has a row that says so.
    """
    prefill = [("prefill", 1, n) for n in settings["prefill_lengths"]]
    decode = [("decode", b, settings["decode_context"]) for b in settings["decode_batches"]]
    points = [point for pair in zip_longest(prefill, decode) for point in pair if point]
    until = time.monotonic() + settings["attention_s"]
    for stage, batch, context in progress(points, "attention"):
        if time.monotonic() > until:
            place = {"experiment": "E5", "stage": stage, "batch": batch, "context": context}
            yield {**place, "metric": "skipped", "value": 1.0, "unit": "yes or no", "note": "the time was up"}
            continue
        yield from guarded("E5", partial(_point, stage, batch, context, settings, seed))
        gc.collect()


def _point(stage: str, batch: int, context: int, settings: Mapping[str, Any], seed: int) -> Iterator[Row]:
    import torch

    from workbench.systems import timing

    q, k, v, lengths = _draw(stage, batch, context, seed)
    with _memory(batch, context) as kv:
        slots = _fill(kv, k, v)
        runs = {**_ours(stage, kv, slots, q, k, v, lengths, settings["blocks"]), **_sdpa(stage, kv, slots, q, k, v)}
        place = {"experiment": "E5", "stage": stage, "batch": batch, "context": context}
        ordinary = "SDPA spread" if "SDPA spread" in runs else "SDPA contiguous"
        for pair in (("contiguous", "vAttention"), (ordinary, "SDPA vAttention")):
            first, second = (runs[name]() for name in pair)
            same = float(torch.equal(first, second))
            yield {**place, "item": pair[1], "metric": "same bits", "value": same, "unit": "yes or no"}
            del first, second
        runs.pop("SDPA spread", None)
        for repeat in range(settings["race_repeats"]):
            table = timing.race(
                runs, device="cuda", warmup=2, launches=settings["launches"], budget_s=settings["race_s"]
            )
            for entry in table.to_dict("records"):
                numbers = {"value": entry["median_ms"], "low": entry["q25_ms"], "high": entry["q75_ms"]}
                here = {**place, "item": entry["item"], "repeat": repeat, "metric": "time", "unit": "ms"}
                yield {**here, **numbers, "note": entry["error"]}
        runs.clear()


def _draw(stage: str, batch: int, context: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)
    words: dict[str, Any] = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
    q = torch.randn(batch, context if stage == "prefill" else 1, HEADS, DIM, **words)
    k, v = (torch.randn(batch, context, KV_HEADS, DIM, **words) for _ in range(2))
    return q, k, v, torch.full((batch,), context, device="cuda", dtype=torch.int32)


def _memory(batch: int, context: int) -> VirtualKV:
    from workbench.systems.kv_virtual import VirtualKV

    made = VirtualKV.init(1, KV_HEADS, DIM, 2 * batch, context, "cuda")
    made.reserve_physical_pages(2 * batch * made.geometry.slot_blocks * made.geometry.block_bytes)
    return made


def _fill(kv: VirtualKV, k: Tensor, v: Tensor) -> list[int]:
    """The batch in every second slot: others came and went, and their pages are mapped but not read."""
    context = k.shape[1]
    taken = [kv.alloc_new_batch_idx(context) for _ in kv.slots]
    kv.step([context] * len(taken))
    for slot in taken[::2]:
        kv.free_batch_idx(slot)
    for row, slot in enumerate(taken[1::2]):
        for place, value in zip(kv.view(0, slot), (k, v)):
            place.copy_(value[row : row + 1])
    return taken[1::2]


def _ours(
    stage: str, kv: VirtualKV, slots: list[int], q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, blocks: list[int]
) -> dict[str, Callable[[], Any]]:
    import torch

    from workbench_kernels import decode_attention, paged_attention

    kernel = decode_attention if stage == "decode" else paged_attention
    at = torch.tensor(slots, device="cuda", dtype=torch.int32)
    ways: dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]] = {
        "contiguous": (k, v, {}),
        "vAttention": (*kv.layer(0), {"slots": at}),
    }
    ways |= {f"paged-{block}": blocked(k, v, block) for block in blocks}

    def call(keys: Tensor, values: Tensor, where: dict[str, Tensor]) -> Callable[[], Any]:
        return lambda: kernel(q, keys, values, lengths=lengths, **where)

    return {name: call(*way) for name, way in ways.items()}


def blocked(k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The same keys and values in blocks of random order, as after a long run of a server, and their table."""
    import torch

    batch, context = k.shape[:2]
    order = torch.randperm(batch * context // block, generator=torch.Generator().manual_seed(0)).to(k.device)
    keys, values = (x.new_empty(x.shape).view(-1, block, *x.shape[2:]) for x in (k, v))
    keys[order], values[order] = k.view(keys.shape), v.view(values.shape)
    return keys, values, {"block_table": order.view(batch, -1).int()}


def _sdpa(stage: str, kv: VirtualKV, slots: list[int], q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Any]]:
    """torch's own attention, unmodified: it knows strides and nothing of pages."""
    import torch

    keys, values = (x[slots[0] : slots[-1] + 1 : 2, : k.shape[1]] for x in kv.layer(0))

    def call(a: Tensor, b: Tensor) -> Callable[[], Any]:
        turned = [x.transpose(1, 2) for x in (q, a, b)]
        attend = torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(*turned, is_causal=stage == "prefill", enable_gqa=True)

    spread = {"SDPA spread": call(like(keys), like(values))} if stage == "decode" else {}
    return {"SDPA contiguous": call(k, v), **spread, "SDPA vAttention": call(keys, values)}


def like(mapped: Tensor) -> Tensor:
    """The same numbers with the same strides in memory of torch's own, which a bitwise comparison needs.

    A library may choose another order of additions for other strides; what is asked is whether mapped pages change it.
    """
    import torch

    return torch.empty_strided(mapped.shape, mapped.stride(), dtype=mapped.dtype, device=mapped.device).copy_(mapped)


def work(settings: Mapping[str, Any]) -> Callable[[], None]:
    """About ten milliseconds of matrix products, as a decode step of a small model takes."""
    import torch

    w = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(512, 4096, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        for _ in range(settings["work_products"]):
            torch.mm(x, w)
        torch.cuda.synchronize()

    return run


def accounting(settings: Mapping[str, Any]) -> Iterator[Row]:
    """E6: the driver's free memory before, with and after a memory of some size (torch's own count sees none of it)."""
    import torch

    from workbench.studies._vattention_parts import open_memory

    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    kv = open_memory(settings)
    created = kv.created * kv.geometry.group_bytes
    held = free - torch.cuda.mem_get_info()[0]
    kv.close()
    gc.collect()
    lost = free - torch.cuda.mem_get_info()[0]
    for metric, value in (("created", created), ("held", held), ("lost", lost)):
        yield {"experiment": "E6", "item": "cuda", "metric": metric, "value": value / (1 << 20), "unit": "MiB"}

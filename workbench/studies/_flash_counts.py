"""FlashAttention's counted experiments: HBM traffic (E1), memory (E3), block-sparse (E4); rows of a tidy frame."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.studies.base import Progress
from workbench.systems import block_patterns, flash_simulator, io_counts, meter
from workbench.systems.io_counts import Tiling
from workbench_kernels import attention

Row = dict[str, Any]

#: GPT-2 medium's shape in the paper's Fig. 2: one layer, forward and backward, half precision.
FIG2 = {"n": 1024, "d": 64, "heads": 16 * 64, "itemsize": 2}
#: Passes that masking and dropout add to the standard algorithm: two forward, and one backward that reads a mask.
FIG2_EXTRA = {"forward": {"extra_passes": 2}, "backward": {"stored_masks": 1}}


def traffic(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """E1: the simulator's counter beside the closed form, for every N, d and SRAM size M (elements)."""
    shapes = [(n, d) for n in settings["lengths"] for d in settings["dims"]]
    for n, d in progress(shapes, "E1 traffic"):
        q, k, v, grad = (torch.randn(n, d, generator=generator) for _ in range(4))
        yield from _both("standard", "forward", n, d, 0, flash_simulator.standard_forward(q, k, v).hbm)
        yield from _both("standard", "backward", n, d, 0, flash_simulator.standard_backward(q, k, v, grad).hbm)
        for sram in settings["sram"]:
            yield from _flash_traffic(q, k, v, grad, sram)


def _flash_traffic(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, sram: int) -> Iterator[Row]:
    n, d = q.shape
    tiling = Tiling.of_sram(sram, d)
    forward = flash_simulator.flash_forward(q, k, v, tiling)
    yield from _both("flash", "forward", n, d, sram, forward.hbm)
    if tiling.grid(n)[1] <= 32:  # the walks over the smallest tiles cost seconds and add no new case
        swapped = flash_simulator.flash_forward(q, k, v, tiling, order="v2")
        yield from _both("flash v2 order", "forward", n, d, sram, swapped.hbm)
        backward = flash_simulator.flash_backward(q, k, v, forward, grad, tiling)
        yield from _both("flash", "backward", n, d, sram, backward.hbm)


def _both(item: str, stage: str, n: int, d: int, sram: int, counted: int) -> Iterator[Row]:
    place = {"experiment": "E1", "item": item, "stage": stage, "n": n, "d": d, "sram": sram, "unit": "elements"}
    yield {**place, "metric": "counted", "value": counted}
    yield {**place, "metric": "formula", "value": _formula(item, stage, n, d, sram)}


def _formula(item: str, stage: str, n: int, d: int, sram: int) -> int:
    if item == "standard":
        return {"forward": io_counts.standard_forward, "backward": io_counts.standard_backward}[stage](n, d)
    tiling = Tiling.of_sram(sram, d)
    if item == "flash v2 order":
        return io_counts.flash2_forward(n, d, tiling)
    return {"forward": io_counts.flash_forward, "backward": io_counts.flash_backward}[stage](n, d, tiling)


def fig2(blocks: list[int]) -> Iterator[Row]:
    """Counted GB at the shape of Fig. 2 over the column block size, per stage, and both algorithms' arithmetic."""
    n, d, heads, itemsize = FIG2["n"], FIG2["d"], FIG2["heads"], FIG2["itemsize"]
    giga = heads * itemsize / 1e9
    place = {"experiment": "Fig2", "n": n, "d": d, "unit": "GB", "metric": "hbm"}
    for stage, extra in FIG2_EXTRA.items():
        count = getattr(io_counts, f"standard_{stage}")
        yield {**place, "item": "standard", "stage": stage, "value": count(n, d) * giga}
        with_passes = count(n, d, **extra) * giga
        yield {**place, "item": "standard + mask and dropout", "stage": stage, "value": with_passes}
        for block in blocks:
            tiling = Tiling(min(block, d), block)
            value = getattr(io_counts, f"flash_{stage}")(n, d, tiling) * giga
            yield {**place, "item": "flash", "stage": stage, "block": block, "value": value}
        for name in ("standard", "flash"):
            work = getattr(io_counts, f"{name}_flops")(n, d, backward=stage == "backward") * heads / 1e9
            yield {**place, "item": name, "stage": stage, "metric": "flops", "unit": "GFLOP", "value": work}


def counted_flops(generator: torch.Generator, n: int = 256, d: int = 64) -> Iterator[Row]:
    """C6: operations that the simulators counted as they ran, one head."""
    q, k, v, grad = (torch.randn(n, d, generator=generator) for _ in range(4))
    tiling = Tiling(64, 64)
    forward = flash_simulator.flash_forward(q, k, v, tiling)
    runs = {
        ("standard", "forward"): flash_simulator.standard_forward(q, k, v),
        ("standard", "backward"): flash_simulator.standard_backward(q, k, v, grad),
        ("flash", "forward"): forward,
        ("flash", "backward"): flash_simulator.flash_backward(q, k, v, forward, grad, tiling),
    }
    for (item, stage), run in runs.items():
        place = {"experiment": "E1", "item": item, "stage": stage, "n": n, "d": d, "unit": "FLOP"}
        yield {**place, "metric": "counted flops", "value": run.arena.flops}


def memory(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """E3: most bytes held at once by forward and backward, materialising against tiled, one head.

    Tiles of 64 x 64, so that the tiled kernel's constant working set does not hide how it grows.
    """
    for n in progress(settings["memory_lengths"], "E3 memory"):
        q, k, v = (torch.randn(1, n, 1, 64, generator=generator).requires_grad_() for _ in range(3))
        for item, words in (("standard", {"impl": "reference"}), ("flash", {"impl": "tiled", "block_size": 64})):

            def step(words: dict[str, Any] = words, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> object:
                out = attention(q, k, v, causal=False, **words)
                return torch.autograd.grad(out, (q, k, v), out)

            place = {"experiment": "E3", "item": item, "stage": "forward+backward", "n": n, "d": 64, "unit": "bytes"}
            yield {**place, "metric": "peak", "value": meter.peak_bytes(step)}


def sparsity(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """E4: traffic and time of block-sparse attention over the share s of live tiles."""
    n, block = settings["sparse_length"], settings["sparse_block"]
    q, k, v = (torch.randn(1, n, settings["sparse_heads"], 64, generator=generator) for _ in range(3))
    tiling = Tiling(block, block)
    patterns = _patterns(n // block, generator)
    for name, live in progress(patterns.items(), "E4 block-sparse"):
        share = float(live.float().mean())
        place = {"experiment": "E4", "item": name, "stage": "forward", "n": n, "d": 64, "block": block, "s": share}
        counted = flash_simulator.flash_forward(q[0, :, 0], k[0, :, 0], v[0, :, 0], tiling, live=live).hbm
        yield {**place, "metric": "counted", "unit": "elements", "value": counted}
        s_term = counted - 2 * n * 64
        yield {**place, "metric": "s-term per live tile", "unit": "elements", "value": s_term / int(live.sum())}
    yield from _timed(patterns, (q, k, v), block, settings["repeats"])


def _timed(patterns: dict[str, Tensor], qkv: tuple[Tensor, ...], block: int, repeats: int) -> Iterator[Row]:
    """Processor time ("time") and wall time of every pattern, patterns interleaved, the best of three launches each.

    On an idle machine the two are one; on a shared one only the first leaves out what other processes took.
    """
    n = qkv[0].shape[1]
    for repeat in range(-1, repeats):  # the first round only warms up
        for name, live in patterns.items():
            clocks = [_clocks(qkv, live, block) for _ in range(1 if repeat < 0 else 3)]
            if repeat >= 0:
                place = {"experiment": "E4", "item": name, "stage": "forward", "n": n, "d": 64, "block": block}
                place |= {"s": float(live.float().mean()), "repeat": repeat, "unit": "ms"}
                yield {**place, "metric": "time", "value": min(cpu for cpu, _ in clocks)}
                yield {**place, "metric": "wall time", "value": min(wall for _, wall in clocks)}


def _clocks(qkv: tuple[Tensor, ...], live: Tensor, block: int) -> tuple[float, float]:
    """Milliseconds of processor and of wall time of one launch."""
    q, k, v = qkv
    cpu, wall = time.process_time(), time.perf_counter()
    attention(q, k, v, causal=False, block_mask=live, block_size=block, impl="tiled")
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def _patterns(tiles: int, generator: torch.Generator) -> dict[str, Tensor]:
    random = {f"random {s:.1f}": block_patterns.random_density(tiles, s, generator) for s in (0.1, 0.2, 0.4, 0.6, 0.8)}
    bands = {f"band {w}": block_patterns.band(tiles, w) for w in (1, 2, 4)}
    dense = torch.ones(tiles, tiles, dtype=torch.bool)
    return {**bands, "butterfly": block_patterns.butterfly(tiles), **random, "dense": dense}

"""FlashAttention on a GPU: the race over lengths, block-sparse masks, and the block size at the shape of Fig. 2.

Contenders: standard attention (materialises N x N), the paper's own loop order as a Triton kernel ("triton-v1"),
FlashAttention-2's ("triton"), the Hopper kernel, SDPA's flash and cuDNN back ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.studies import _attention_race as racing
from workbench.studies._attention_race import Point, Row
from workbench.studies._flash_counts import FIG2
from workbench.studies.base import Progress
from workbench.systems import block_patterns, timing
from workbench_kernels import attention

NAMES = ("standard", "triton-v1", "triton", "hopper", "SDPA flash", "SDPA cuDNN")
BOTH = "forward+backward"
STAGES = ("forward", BOTH)


def on_the_card(
    settings: Mapping[str, Any], generator: torch.Generator, clock: racing.Clock, progress: Progress
) -> list[Row]:
    """Everything that needs our kernels compiled; :func:`training` begins before with the first two kernels."""
    return racing.parts(
        clock,
        [
            ("ceiling", 0, lambda: racing.ceilings("cuda")),
            ("E4 GPU", 0, lambda: sparse(settings, generator, progress)),
            ("Fig2 GPU", 0, lambda: blocks(settings, generator, progress)),
            ("GPU", 0, lambda: race(settings, generator, clock, progress)),
            ("training", 7, lambda: training(settings, settings["train_kernels"][2:], progress)),
        ],
    )


def points(settings: Mapping[str, Any]) -> list[Point]:
    """``settings["gpu_grid"]``: lists of (dtype, d, lengths); 16k tokens in a batch, heads x d = 2048."""
    return [
        Point.of_tokens(settings["batch_tokens"], 2048, n, d, causal, dtype)
        for dtype, d, lengths in settings["gpu_grid"]
        for n in lengths
        for causal in (False, True)
    ]


def race(
    settings: Mapping[str, Any], generator: torch.Generator, clock: racing.Clock, progress: Progress
) -> Iterator[Row]:
    """Median and quartiles at every point, and the bytes that forward and backward hold at most."""
    for point in progress(points(settings), "GPU race"):
        yield from racing.race_in_time(point, NAMES, [BOTH], generator, settings, clock)
        if clock.left() > 0:
            yield from _memory(point, generator)


def _memory(point: Point, generator: torch.Generator) -> Iterator[Row]:
    draws = point.draw(generator)
    for name, kernel in racing.kernels(NAMES).items():
        place = {**point.place, "item": name, "stage": BOTH}
        try:
            peak = _peak(racing.passes(kernel, draws, point.causal)[BOTH])
        except Exception as error:  # whatever a missing or refusing kernel raises is its row
            memory = isinstance(error, torch.cuda.OutOfMemoryError)
            yield {**place, "metric": "out of memory" if memory else "no memory", "value": 1.0, "unit": "yes or no"}
            torch.cuda.empty_cache()
            continue
        yield {**place, "metric": "peak", "value": float(peak), "unit": "bytes"}


def _peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def sparse(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Time of the Triton kernel over the share s of live tiles, all shares in one race; s = 1 is the dense mask."""
    block = settings["sparse_gpu_block"]
    for n in progress(settings["sparse_lengths"], "GPU block-sparse"):
        point = Point.of_tokens(settings["batch_tokens"], 2048, n, 64, causal=False)
        draws, masks = point.draw(generator), _masks(n // block, settings["shares"])
        for stage in STAGES:
            runs = {f"random {s:g}": _with_mask(draws, live, block, stage) for s, live in masks.items()}
            place = {**point.place, "experiment": "E4 GPU", "stage": stage, "block": block}
            for row in racing.timed(runs, place, settings):
                live = masks[float(row["item"].split()[-1])]
                yield {**row, "s": float(live.float().mean())}


def _masks(tiles: int, shares: list[float]) -> dict[float, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {s: block_patterns.random_density(tiles, s, generator) for s in shares}


def _with_mask(draws: list[Tensor], live: Tensor, block: int, stage: str) -> Callable[[], Any]:
    mask = live.to(draws[0].device)

    def kernel(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return attention(q, k, v, causal=causal, block_mask=mask, block_size=block, impl=("triton", "tiled"))

    return racing.passes(kernel, draws, causal=False)[stage]


def blocks(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Fig. 2 (middle) on this card: forward time of the v1 loop order over B_c, bytes counted, GB/s achieved."""
    point = Point(64, FIG2["n"], FIG2["heads"] // 64, FIG2["d"], False, "float16")
    draws = point.draw(generator)
    sizes = list(progress(settings["gpu_blocks"], "GPU block sizes"))
    runs = {f"B_c = {cols}": partial(_first_order, draws, cols) for cols in sizes}
    place = {**point.place, "experiment": "Fig2 GPU", "stage": "forward"}
    for row in racing.timed(runs, place, settings):
        cols = int(row["item"].split()[-1])
        here = {**row, "item": "triton-v1", "block": cols}
        yield here
        if row["metric"] == "time":
            moved = bytes_moved(point, cols)
            yield {**here, "metric": "hbm", "unit": "GB", "value": moved / 1e9, "low": None, "high": None}
            speed = {"value": moved / row["value"] / 1e6, "low": moved / row["high"] / 1e6}
            yield {**here, "metric": "bandwidth", "unit": "GB/s", **speed, "high": moved / row["low"] / 1e6}


def _first_order(draws: list[Tensor], cols: int) -> Tensor:
    from workbench_kernels.softmax_attention.portable import flash1
    from workbench_kernels.softmax_attention.portable.configurations import Tiles

    q, k, v = draws[:3]
    tiles = {"forward": Tiles(64, cols, 8 if cols > 128 else 4, 1)}
    with torch.no_grad():
        return flash1.attention(racing.problem(q, k, causal=False), q, k, v, None, tiles=tiles)[0]


def bytes_moved(point: Point, cols: int) -> int:
    """2 N d + T_c (3 N d + 4 N) elements a head, with the widths of our kernel: O, l and m are float32."""
    n, d, wide = point.n, point.d, torch.finfo(getattr(torch, point.dtype)).bits // 8
    rounds = -(-n // cols)
    a_head = 2 * n * d * wide + rounds * (n * d * (wide + 4 + 4) + 4 * n * 4)
    return a_head * point.batch * point.heads


def training(settings: Mapping[str, Any], names: list[str], progress: Progress) -> Iterator[Row]:
    """Table 2 in small: the embedded model's architecture, wider, trained with each kernel from the same seed."""
    from workbench.studies import _flash_training

    for name in progress(names, "GPU training"):
        place = {"experiment": "training", "item": name, "n": settings["train_context"], "dtype": "bfloat16"}
        try:
            losses, speed = _flash_training.train(name, settings)
        except Exception as error:  # a kernel that is not there is a row, not the end of the study
            yield {**place, "metric": "no number", "value": 1.0, "unit": "yes or no", "note": timing.one_line(error)}
            torch.cuda.empty_cache()
            continue
        for step, loss in enumerate(losses):
            yield {**place, "repeat": step, "metric": "loss", "value": loss, "unit": "nats a byte"}
        yield {**place, "metric": "training speed", "value": speed, "unit": "tokens/s"}

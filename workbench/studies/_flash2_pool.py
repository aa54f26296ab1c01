"""Claim 2 on a real processor: two workers and few heads, tasks = heads against tasks = heads x row blocks.

Each task is FlashAttention-2's loop over key blocks in torch; torch lets go of the interpreter inside its operations,
so two threads really compute at once. Wall time, both ways interleaved, the best of three launches each: on a machine
whose cores are taken by others even that says little, and the claim's interval shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.studies.base import Progress

Row = dict[str, Any]
BEST_OF = 3


def race(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Rows "time" (ms) for every number of heads and repeat, tasks "heads" and "heads x rows"."""
    n, d, rows, workers = settings["pool_length"], 64, settings["pool_rows"], settings["pool_workers"]
    with ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1)) as pool:
        for heads in progress(settings["pool_heads"], "E6 workers"):
            q, k, v = (torch.randn(heads, n, d, generator=generator) for _ in range(3))
            jobs = {"heads": _tasks(q, k, v, n, rows), "heads x rows": _tasks(q, k, v, rows, rows)}
            for repeat in range(-1, settings["pool_repeats"]):  # the first round only warms up
                for item, tasks in jobs.items():
                    milliseconds = min(_time(pool, tasks) for _ in range(1 if repeat < 0 else BEST_OF))
                    if repeat >= 0:
                        place = {"experiment": "E6", "item": item, "heads": heads, "n": n, "d": d, "repeat": repeat}
                        yield {**place, "metric": "time", "value": milliseconds, "unit": "ms", "workers": workers}


def _tasks(q: Tensor, k: Tensor, v: Tensor, size: int, rows: int) -> list[Callable[[], Tensor]]:
    """One task for every ``size`` queries of a head; all walk over the same row blocks of ``rows``."""
    return [
        partial(row_blocks, q[head, start : start + size], k[head], v[head], rows)
        for head in range(len(q))
        for start in range(0, q.shape[1], size)
    ]


def row_blocks(q: Tensor, k: Tensor, v: Tensor, rows: int, cols: int = 512) -> Tensor:
    """Algorithm 1 for some queries of one head: (n, d), (N, d), (N, d) -> (n, d), one row block after the other."""
    out, tile = torch.zeros_like(q), q.new_empty(min(rows, len(q)) * cols)
    for start in range(0, len(q), rows):
        _row_block(q[start : start + rows], k, v, cols, out[start : start + rows], tile)
    return out


def _row_block(q: Tensor, k: Tensor, v: Tensor, cols: int, out: Tensor, tile: Tensor) -> None:
    """The score tile has one place in memory: fresh pages would be handed out to one thread at a time."""
    m, total = q.new_full((len(q), 1), -torch.inf), q.new_zeros(len(q), 1)
    for start in range(0, len(k), cols):
        keys = k[start : start + cols]
        scores = torch.mm(q, keys.T, out=tile[: len(q) * len(keys)].view(len(q), len(keys))).mul_(q.shape[1] ** -0.5)
        new_m = torch.maximum(m, scores.amax(1, keepdim=True))
        weights, shrink = scores.sub_(new_m).exp_(), torch.exp(m - new_m)
        total = shrink * total + weights.sum(1, keepdim=True)
        out.mul_(shrink).addmm_(weights, v[start : start + cols])
        m = new_m
    out.div_(total)


def _time(pool: Executor, tasks: list[Callable[[], Tensor]]) -> float:
    start = time.perf_counter()
    for future in [pool.submit(task) for task in tasks]:
        future.result()
    return (time.perf_counter() - start) * 1e3

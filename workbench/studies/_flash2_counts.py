"""FlashAttention-2's three arguments as models, and the counters of executed code that they must equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch

from workbench.studies.base import Progress
from workbench.systems import sm_schedule, tile_arithmetic, warp_partition
from workbench.systems.sm_schedule import Launch

Row = dict[str, Any]

TILES = ((128, 128), (128, 64), (64, 128), (64, 64))
DIMS = (64, 128)


def operations(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """E1: elementwise operations that a tile loop executes beside the closed form, v1's form and v2's."""
    for (rows, cols), d in progress(list(product(settings["tiles"], DIMS)), "E1 operations"):
        q = torch.randn(rows, d, generator=generator)
        k, v = (torch.randn(settings["tiles_a_row"] * cols, d, generator=generator) for _ in range(2))
        for version in tile_arithmetic.VERSIONS:
            *_, state = tile_arithmetic.run(version, q, k, v, cols)
            last = tile_arithmetic.last_operations(version, rows, d)
            place = {"experiment": "E1", "item": version, "rows": rows, "cols": cols, "d": d, "unit": "operations"}
            yield {**place, "metric": "counted", "value": state.counter.count}
            formula = state.tiles * tile_arithmetic.other_operations(version, rows, cols, d) + last
            yield {**place, "metric": "formula", "value": formula}


def arithmetic(settings: Mapping[str, Any]) -> Iterator[Row]:
    """Time of a tile split into matrix products and everything else, for both versions and two cards."""
    for (rows, cols), d, (card, speeds) in product(TILES, DIMS, settings["throughputs"].items()):
        words = {"matmul": speeds[0], "other": speeds[1]}
        place = {"experiment": "arithmetic", "rows": rows, "cols": cols, "d": d, "card": card}
        for version in tile_arithmetic.VERSIONS:
            parts = tile_arithmetic.relative_time(version, rows, cols, d, **words)
            for metric, value in zip(("matmul", "other"), parts, strict=True):
                yield {**place, "item": version, "metric": metric, "value": value, "unit": "ps"}
        gain = tile_arithmetic.gain(rows, cols, d, **words)
        yield {**place, "item": "v1 / v2", "metric": "gain", "value": gain, "unit": "times"}


def occupancy(settings: Mapping[str, Any]) -> Iterator[Row]:
    """E2: share of the SMs that the two grids keep busy over batch x heads; equal programs, so the wave model."""
    for sms, heads, grid in product(settings["sms"], settings["heads"], sm_schedule.GRIDS):
        launch = Launch(heads, settings["wave_length"], grid=grid)
        busy = sm_schedule.schedule(launch, sms=sms)
        place = {"experiment": "E2", "item": grid, "sms": sms, "heads": heads, "n": launch.n, "input": "full"}
        yield {**place, "metric": "utilisation", "value": busy.utilisation, "unit": "share"}
        yield {**place, "metric": "makespan", "value": busy.makespan, "unit": "tile times"}
        yield {**place, "metric": "wave model", "value": sm_schedule.wave_time(launch, sms=sms), "unit": "tile times"}
    for sms in settings["sms"]:
        place = {"experiment": "E2", "item": "knee", "sms": sms, "metric": "knee", "unit": "programs"}
        yield {**place, "value": sm_schedule.knee(settings["knee_share"], sms=sms)}


def orders(settings: Mapping[str, Any], progress: Progress) -> Iterator[Row]:
    """E3: causal launches with more than one and fewer than four programs an SM, in every order."""
    cells = list(product(settings["sms"], settings["order_heads"], settings["order_lengths"]))
    for sms, heads, n in progress(cells, "E3 orders"):
        launch = Launch(heads, n, causal=True)
        load = heads * launch.row_blocks / sms
        if not 1 < load < 4:
            continue
        for order in sm_schedule.ORDERS:
            found = sm_schedule.schedule(launch, sms=sms, order=order)
            place = {"experiment": "E3", "item": order, "sms": sms, "heads": heads, "n": n, "input": "causal"}
            yield {**place, "load": load, "metric": "makespan", "value": found.makespan, "unit": "tile times"}
            yield {**place, "load": load, "metric": "utilisation", "value": found.utilisation, "unit": "share"}


def warps(settings: Mapping[str, Any], generator: torch.Generator) -> Iterator[Row]:
    """E4: bytes through shared memory of one tile, counted while the warps' work is really done, beside the form."""
    for (rows, cols), d, count in product(settings["tiles"], DIMS, (4, 8)):
        q = torch.randn(rows, d, generator=generator)
        k, v = (torch.randn(cols, d, generator=generator) for _ in range(2))
        for split in warp_partition.SPLITS:
            _, counted = warp_partition.run(split, q, k, v, count)
            formula = warp_partition.traffic(split, rows, cols, d, count)
            place = {"experiment": "E4", "item": split, "rows": rows, "cols": cols, "d": d, "warps": count}
            for part in ("exchange", "statistics", "keys", "queries"):
                here = {**place, "part": part, "unit": "bytes"}
                yield {**here, "metric": "counted", "value": getattr(counted, part)}
                yield {**here, "metric": "formula", "value": getattr(formula, part)}

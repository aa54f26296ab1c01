"""Pooled maps on the card: picks the kernel and the tile from the width of the bins."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from workbench_kernels.maps.fast import launch
from workbench_kernels.maps.fast.pooled_kernels import coarse, fine
from workbench_kernels.maps.problem import Bins, Look

#: Key tiles that a chunk of columns should have, so that loading Q pays.
TILES_A_CHUNK = 8
#: Row tiles of one program where bins and tiles do not line up; the last of them is partly empty.
ROW_TILES = 8


def pooled(look: Look, rows: Bins, cols: Bins, reduce: str) -> Tensor:
    """(B, heads, R, C) float32."""
    out = torch.zeros(look.batch, len(look.heads), rows.count, cols.count, device=look.q.device)
    cells = out.view(torch.int32) if reduce == "max" else out
    run = _coarse if min(_narrowest(rows), _narrowest(cols)) >= 64 else _fine
    with launch.on_device(out):
        run(look, rows, cols, cells, reduce == "max")
    if reduce == "mean":
        area = rows.sizes()[:, None] * cols.sizes()[None, :]
        out /= area.to(out)
    return out


def _narrowest(bins: Bins) -> int:
    return (bins.stop - bins.start) // bins.count


def _tensors(look: Look, rows: Bins, cols: Bins, out: Tensor) -> list[object]:
    return [*launch.tensors(look), out, *(bins.edges().to(out.device, torch.int32) for bins in (rows, cols))]


def _coarse(look: Look, rows: Bins, cols: Bins, out: Tensor, largest: bool) -> None:
    tile = tile_for(look, rows, cols, launch.has_descriptor(look))
    descriptor = launch.key_descriptor(look, tile.keys)
    even = _fits(rows, tile.rows) and _fits(cols, tile.keys)
    bins_each = 1 if even else max(1, round(ROW_TILES * tile.rows / rows.width))
    row_groups = triton.cdiv(rows.count, bins_each)
    chunks = _chunks(look, row_groups, cols, tile.keys)
    cols_each = triton.cdiv(cols.count, chunks)
    chunks = triton.cdiv(cols.count, cols_each)
    arguments = [*_tensors(look, rows, cols, out), *(descriptor or (out, 0, 0, 0)), *launch.numbers(look)]
    spans = (rows.start, rows.stop, cols.start, cols.stop)
    for first, count in launch.planes(look):
        coarse[(count * row_groups * chunks,)](
            *arguments, first, rows.count, cols.count, row_groups, bins_each, chunks, cols_each, *spans,
            **launch.constants(look), MAX=largest, EVEN=even, TMA=descriptor is not None, **tile.words,
        )  # fmt: skip


def tile_for(look: Look, rows: Bins, cols: Bins, tma: bool) -> launch.Tiles:
    """A tile that no bin is narrower than; each choice beat the others on an H100 (kernels/notes/maps.md).

    Where bins are whole tiles, 128 registers a thread suffice without spilling, and two programs share a
    multiprocessor, so that one's products hide the other's exp2. Tiles that edges run through need more registers;
    smaller ones keep several programs there all the same.
    """
    tile = launch.tiles(look, *(128 if _narrowest(bins) >= 128 else 64 for bins in (rows, cols)))
    if not tma or tile.rows * tile.keys < 128 * 128:
        return tile
    if _fits(rows, tile.rows) and _fits(cols, tile.keys):
        return replace(tile, stages=2, registers=128)
    return replace(tile, keys=64, warps=4)


def fine_tile(look: Look) -> launch.Tiles:
    return launch.tiles(look, 64, 64)


def _fits(bins: Bins, tile: int) -> bool:
    return bins.even and bins.width % tile == 0


def _chunks(look: Look, row_groups: int, cols: Bins, tile: int) -> int:
    """Pieces of the columns that give the card enough programs."""
    programs = row_groups * (look.batch * len(look.heads) if look.progress is None else 1)
    most = max(1, (cols.stop - cols.start) // (tile * TILES_A_CHUNK))
    return max(1, min(triton.cdiv(launch.ENOUGH_PROGRAMS, programs), most, cols.count))


def _fine(look: Look, rows: Bins, cols: Bins, out: Tensor, largest: bool) -> None:
    tile = fine_tile(look)
    row_slots, col_slots = _slots(rows, tile.rows), _slots(cols, tile.keys)
    row_groups = triton.cdiv(rows.count, tile.rows // row_slots)
    subs = triton.cdiv(rows.width, row_slots), triton.cdiv(cols.width, col_slots)
    chunks = _chunks(look, row_groups, cols, tile.keys)
    arguments = [*_tensors(look, rows, cols, out), *launch.numbers(look)]
    for first, count in launch.planes(look):
        fine[(count * row_groups * chunks,)](
            *arguments, first, rows.count, cols.count, row_groups, subs[0], chunks, subs[1], cols.start, cols.stop,
            ROW_SLOTS=row_slots, COL_SLOTS=col_slots, **launch.constants(look), MAX=largest, **tile.words,
        )  # fmt: skip


def _slots(bins: Bins, tile: int) -> int:
    """Slots of a bin in a tile: the power of two that holds its widest, or the whole tile, several times."""
    return min(triton.next_power_of_2(bins.width), tile)

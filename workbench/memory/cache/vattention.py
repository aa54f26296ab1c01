"""``vattention``: an ordinary contiguous cache in virtual memory whose pages are mapped as tokens come.

Prabhu, Nayak, Mohan, Ramjee, Panwar 2024 (arXiv 2405.04437). Every layer has one virtual buffer of (B, L, H, D) for
keys and one for values; physical page groups are mapped under them one step ahead of the tokens, in the background.
The model and its kernels see plain strided tensors and need no change; nothing is ever copied or moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.checks import whole
from workbench.memory.base import MEMORIES
from workbench.memory.cache._allocated import AllocatedCache
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory, fitting_group
from workbench.systems.kv_virtual import VirtualKV
from workbench.systems.page_backends import open_backend

#: Blocks that are created at once when memory grows as tokens come.
_AT_ONCE = 4


@MEMORIES.register("vattention")
class VAttentionCache(AllocatedCache):
    """A cache over :class:`~workbench.systems.kv_virtual.VirtualKV`.

    Args:
        page_kib: g in KiB, the page group; a multiple of the granularity (4 KiB on most CPUs, 2,048 on GPUs) and of a
            token's bytes in one buffer. 0 takes the smallest that fits, of at least 64 KiB.
        max_tokens: L, tokens of a row at most; 0 takes the positions that the model was made for.
        max_batch: B, rows at most.
        memory_mib: physical memory, created at once; 0 lets it grow as tokens come.
        ahead: map the next step's pages in a background thread (the paper's overlapped allocation).
        megacache: one buffer for all layers' keys and one for their values (tensor slicing): N times less waste.
        backend: "auto", "mapped", "demand" or "cuda"; see ``workbench.systems.page_backends``.
        kv: an allocator to share with other caches, each of which is then one request (or a few) of it.
    """

    slug = "vattention"

    def __init__(
        self,
        page_kib: int = 0,
        max_tokens: int = 0,
        max_batch: int = 16,
        memory_mib: int = 0,
        ahead: bool = True,
        megacache: bool = False,
        backend: str = "auto",
        kv: VirtualKV | None = None,
    ):
        self.page_kib = whole("page_kib", page_kib, 0, more=" (KiB; 0: the smallest that fits)")
        self.ahead, self.megacache, self.backend = bool(ahead), bool(megacache), backend
        super().__init__(max_tokens, max_batch, memory_mib, kv)

    def make_kv(self, heads: int, dim: int, dtype: torch.dtype, device: torch.device, length: int) -> VirtualKV:
        itemsize, layers = torch.empty((), dtype=dtype).element_size(), len(self.layers)
        token = heads * dim * itemsize * (layers if self.megacache else 1)
        group = self.page_kib << 10
        if not group:
            with open_backend(self.backend, 0, device) as probe:
                group = fitting_group(token, probe.granularity())
        geometry = KVGeometry(layers, heads, dim, self.max_batch, length, group, itemsize, self.megacache)
        made = VirtualKV(geometry, open_backend(self.backend, group, device), device=str(device), dtype=dtype)
        if self.memory_mib:
            made.reserve_physical_pages(self.memory_mib << 20)
        return made

    def grow(self, lengths: Sequence[int]) -> None:
        step = self.kv.step_async if self.ahead else self.kv.step
        try:
            step(lengths)
        except OutOfKVMemory as short:
            if self.memory_mib or self._shared:
                raise
            blocks = max(short.required - short.free, _AT_ONCE)
            self.kv.reserve_physical_pages(blocks * self.kv.geometry.block_bytes)
            step(lengths)

    def trim(self, width: int) -> None:
        lengths = self._lengths()
        for place in self.places:
            lengths[place] = min(lengths[place], width)
        self.kv.step(lengths)

    def _lengths(self) -> list[int]:
        return [int(length) for length in self.kv.lengths()]

    def put(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        stop = start + keys.shape[2]
        for buffer, fresh in zip(self.kv.layer(layer), (keys, values)):
            rows = _rows(buffer, self.places)
            if rows is None:
                buffer[self.places, start:stop] = fresh.transpose(1, 2)
            else:
                rows[:, start:stop].copy_(fresh.transpose(1, 2))

    def fetch(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """Views of the buffers, not copies, as long as the rows' slots are evenly spaced (they are, unless requests
        of several caches interleave)."""
        keys, values = (_at(buffer, self.places, width) for buffer in self.kv.layer(layer))
        return keys, values

    def nbytes(self) -> int:
        return 0 if self.kv is None else self.kv.created * self.kv.geometry.group_bytes


def _rows(buffer: Tensor, places: Sequence[int]) -> Tensor | None:
    """The rows of a buffer as a view if they are evenly spaced, in ascending order."""
    if len(places) == 1:
        return buffer[places[0] : places[0] + 1]
    step = places[1] - places[0]
    even = step > 0 and list(places) == list(range(places[0], places[-1] + 1, step))
    return buffer[places[0] : places[-1] + 1 : step] if even else None


def _at(buffer: Tensor, places: Sequence[int], width: int) -> Tensor:
    rows = _rows(buffer, places)
    if rows is None:
        rows = torch.stack([buffer[place, :width] for place in places])
    return rows[:, :width].transpose(1, 2)

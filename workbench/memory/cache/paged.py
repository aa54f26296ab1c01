"""``paged``: keys and values in blocks behind a block table (PagedAttention, Kwon et al. 2023), vAttention's rival.

Physical memory is never reserved for tokens to come, but the cache is no longer contiguous: every read follows the
table. A model that knows nothing of tables gets its keys gathered, a copy of the whole cache in every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.cache._allocated import AllocatedCache
from workbench.systems.kv_geometry import OutOfKVMemory
from workbench.systems.kv_paged import PagedKV

#: Tokens that the pool has room for at first when memory grows as tokens come.
_AT_FIRST = 1024


@MEMORIES.register("paged")
class PagedCache(AllocatedCache):
    """A cache over :class:`~workbench.systems.kv_paged.PagedKV`.

    Args:
        block: tokens in a block (16 in vLLM, 256 in FlashAttention-2).
        max_tokens: L, tokens of a row at most; 0 takes the positions that the model was made for.
        max_batch: B, rows at most.
        memory_mib: physical memory of the pool; 0 doubles the pool whenever it is full.
        kv: a pool to share with other caches, each of which is then one request (or a few) of it.
    """

    slug = "paged"

    def __init__(
        self,
        block: int = 16,
        max_tokens: int = 0,
        max_batch: int = 16,
        memory_mib: int = 0,
        kv: PagedKV | None = None,
    ):
        self.block = whole("block", block, more=" (tokens)")
        super().__init__(max_tokens, max_batch, memory_mib, kv)

    def make_kv(self, heads: int, dim: int, dtype: torch.dtype, device: torch.device, length: int) -> PagedKV:
        layers = len(self.layers)
        block_bytes = 2 * layers * heads * dim * torch.empty((), dtype=dtype).element_size() * self.block
        blocks = (self.memory_mib << 20) // block_bytes if self.memory_mib else -(-_AT_FIRST // self.block)
        if blocks < 1:
            raise BadInput(f"memory_mib={self.memory_mib} is less than one block of {block_bytes} bytes")
        sizes = (layers, heads, dim, self.max_batch, length, blocks, self.block)
        return PagedKV(*sizes, device=str(device), dtype=dtype)

    def grow(self, lengths: Sequence[int]) -> None:
        try:
            self.kv.step(lengths)
        except OutOfKVMemory as short:
            if self.memory_mib or self._shared:
                raise
            self.kv.add_blocks(max(self.kv.blocks, short.required - short.free))
            self.kv.step(lengths)

    def trim(self, width: int) -> None:
        for place in self.places:
            self.kv.truncate(place, min(width, int(self.kv.length[place])))

    def _lengths(self) -> list[int]:
        return [int(length) for length in self.kv.length]

    def put(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        at = torch.cat([self.kv.places(place, start, start + keys.shape[2]) for place in self.places])
        for pool, fresh in zip(self.kv.layer(layer), (keys, values)):
            pool.flatten(0, 1)[at] = fresh.transpose(1, 2).flatten(0, 1)

    def fetch(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """Gathered through the table: copies."""
        at = torch.stack([self.kv.places(place, 0, width) for place in self.places])
        keys, values = (pool.flatten(0, 1)[at].transpose(1, 2) for pool in self.kv.layer(layer))
        return keys, values

    def nbytes(self) -> int:
        return 0 if self.kv is None else sum(tensor.nbytes for tensor in self.kv.tensors)

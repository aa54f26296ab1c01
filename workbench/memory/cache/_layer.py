"""One layer of a token cache: keys before rotation and values, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from workbench.errors import MemoryError_

if TYPE_CHECKING:
    from weakref import ref

    from workbench.memory.cache.base import TokenCache


Cache = TypeVar("Cache", bound="TokenCache")


class LayerOf(CacheLayerMixin, Generic[Cache]):
    """What transformers asks any layer of a token cache; the cache answers.

    It is held weakly: a cycle would keep evicted tensors alive until the garbage collector runs.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    _cache: ref[Cache]

    @property
    def cache(self) -> Cache:
        cache = self._cache()
        if cache is None:
            raise MemoryError_("the memory that this layer belongs to no longer exists; keep a reference to it")
        return cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.fed

    def get_max_length(self) -> int:
        return -1


class SlotLayer(LayerOf["TokenCache"]):
    """Keys before rotation (B, H_kv, W, D) and values (B, H_kv, W, D); holes between rows are masked by the cache."""

    def __init__(self, cache: ref[TokenCache], index: int):
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._cache, self.index = cache, index

    @property
    def width(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens un-rotated; return all keys, rotated at their slots, and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        now, rotary = self.cache.current_pass, self.cache.bound_rotary
        fresh = rotary.turned_back(self.index, key_states.detach(), now.back)
        if self.keys is None or self.values is None:
            # of their own: a view into a fused projection would keep all of it alive
            self.keys, self.values = fresh.contiguous(), value_states.detach().clone()
            return key_states, value_states
        keys = torch.cat([rotary.rotate(self.index, self.keys, now.old), key_states], dim=2)
        values = torch.cat([self.values, value_states], dim=2)
        self.keys, self.values = torch.cat([self.keys, fresh], dim=2), values.detach()
        return keys, values

    def gather(self, columns: Tensor) -> None:
        """Keep the columns (B, n), in that order, in memory of their own."""
        if self.keys is None or self.values is None:
            return
        if columns.shape[1] == 0:
            return self.reset()
        self.keys, self.values = _columns(self.keys, columns), _columns(self.values, columns)
        return None

    def pick(self, rows: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def truncate(self, width: int) -> None:
        """Drop what a pass that died appended after ``width`` columns."""
        if width == 0:
            self.reset()
        elif self.keys is not None and self.values is not None and self.width > width:
            self.keys, self.values = self.keys[:, :, :width].clone(), self.values[:, :, :width].clone()

    def put_back(self, keys: Tensor | None, values: Tensor | None) -> None:
        """Hold these again: what a snapshot took."""
        self.keys, self.values, self.is_initialized = keys, values, keys is not None

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False

    def nbytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in (self.keys, self.values) if t is not None)


def _columns(tensor: Tensor, columns: Tensor) -> Tensor:
    """The columns (B, n) of a tensor (B, H, W, D), as whole rows of D (several times faster than an element gather)."""
    batch, heads, width, dim = tensor.shape
    lines = torch.arange(batch * heads, device=tensor.device).view(batch, heads, 1) * width + columns[:, None, :]
    return tensor.reshape(-1, dim).index_select(0, lines.flatten()).view(batch, heads, columns.shape[1], dim)

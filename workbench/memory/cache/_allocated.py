"""Caches that keep every token and differ in *where* it lies: in mapped virtual memory, or in blocks behind a table.

Keys stay as the model made them (rotated), so logits equal those of an ordinary cache to the last bit; what is studied
here is the allocator. Rows of a batch are requests of the allocator, its slots are where they live.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.checks import whole
from workbench.errors import MemoryError_
from workbench.memory.cache._as_cache import windowed
from workbench.memory.cache._hooks import install
from workbench.memory.cache._layer import LayerOf, _columns
from workbench.memory.cache._pass import Snapshot
from workbench.memory.cache._rotary import Rotary
from workbench.memory.cache._rows import Row
from workbench.memory.cache.base import TokenCache

if TYPE_CHECKING:
    import pandas as pd

    from workbench.systems.kv_log import KVLog

#: Tokens of a slot for a model that names no limit.
UNLIMITED = 32768


class AllocatedLayer(LayerOf["AllocatedCache"]):
    """One layer of an allocated cache; its tensors are looked up in the allocator when they are asked for."""

    def __init__(self, cache: weakref.ref[AllocatedCache], index: int):
        self._cache, self.index, self.width = cache, index, 0
        self.is_initialized = False

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        return self.cache.fetch(self.index, self.width)[0] if self.width else None

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return self.cache.fetch(self.index, self.width)[1] if self.width else None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens (B, H_kv, q, D) where they belong; return all of the layer, (B, H_kv, W + q, D)."""
        self.lazy_initialization(key_states, value_states)
        start, stop = self.width, self.width + key_states.shape[2]
        self.cache.keep(self.index, start, key_states.detach(), value_states.detach())
        self.width = stop
        return self.cache.fetch(self.index, stop)

    def gather(self, columns: Tensor) -> None:
        """Keep the columns (B, n), in that order."""
        keys, values = self.cache.fetch(self.index, self.width)
        kept = _columns(keys.contiguous(), columns), _columns(values.contiguous(), columns)
        self.width = columns.shape[1]
        self.cache.keep(self.index, 0, *kept)

    def put_back(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.width = 0 if keys is None else keys.shape[2]
        self.is_initialized = keys is not None
        if keys is not None and values is not None:
            self.cache.keep(self.index, 0, keys, values)

    def truncate(self, width: int) -> None:
        self.width = min(self.width, width)

    def reset(self) -> None:
        self.width, self.is_initialized = 0, False


class _AsTheyCome:
    """Stands where a token cache has its rotation: keys are stored as the model made them."""

    def tables(self, positions: Tensor, like: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {}


class AllocatedCache(TokenCache):
    """Base of :class:`VAttentionCache` and :class:`PagedCache`: nothing is evicted, everything is placed.

    Args:
        max_tokens: L, tokens of a row at most; 0 takes the positions that the model was made for.
        max_batch: B, rows at most.
        memory_mib: physical memory; 0 lets it grow as tokens come.
    """

    def __init__(self, max_tokens: int = 0, max_batch: int = 16, memory_mib: int = 0, kv: Any = None):
        self.max_tokens, self.max_batch = whole("max_tokens", max_tokens, 0), whole("max_batch", max_batch)
        self.memory_mib = whole("memory_mib", memory_mib, 0)
        self.kv, self._shared = kv, kv is not None
        self.places: list[int] = []  # slot of each row
        self._grown = ""
        super().__init__(budget=None)

    def bind(self, model: PreTrainedModel) -> AllocatedCache:
        """Attach to ``model``; unlike the caches that evict, no rotation is needed, so GPT-2 and the like work too."""
        if self._model is model:
            return self
        _check_model(model)
        self.unbind()
        self._rotary, self._model, self._windowed = cast(Rotary, _AsTheyCome()), model, windowed(model)
        count = model.config.get_text_config().num_hidden_layers
        self.layers = [AllocatedLayer(weakref.ref(self), index) for index in range(count)]
        self._forget()
        if not self._shared:
            self._drop_kv()
        self._handles = install(self, model)
        return self

    def settings(self) -> dict[str, Any]:
        found = super().settings()
        found.pop("kv", None)
        return found

    # ------------------------------------------------------------------ what an allocator brings
    @abstractmethod
    def make_kv(self, heads: int, dim: int, dtype: torch.dtype, device: torch.device, length: int) -> Any:
        """The allocator for keys of this shape."""

    @abstractmethod
    def grow(self, lengths: Sequence[int]) -> None:
        """Physical memory for ``lengths``, or OutOfKVMemory with nothing changed."""

    @abstractmethod
    def trim(self, width: int) -> None:
        """Tell the allocator that the rows hold only ``width`` columns."""

    @abstractmethod
    def put(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Write (B, H_kv, q, D) at columns start.. of every row."""

    @abstractmethod
    def fetch(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, width, D) of all rows."""

    @abstractmethod
    def nbytes(self) -> int:
        """Physical bytes behind keys and values, used or not."""

    # ------------------------------------------------------------------ placing
    def keep(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Find room for columns start.. of this layer (the first layer's call finds it for all) and write them."""
        if keys.shape != values.shape:
            raise MemoryError_(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} of layer {layer} differ in shape (latent "
                "attention); this memory keeps both in buffers of one shape"
            )
        self._ready(keys, start + keys.shape[2])
        self.put(layer, start, keys, values)

    def _ready(self, keys: Tensor, width: int) -> None:
        batch, heads, _, dim = keys.shape
        if self.kv is None:
            self.kv = self.make_kv(heads, dim, keys.dtype, keys.device, self._length())
        g = self.kv.geometry
        if (heads, dim, keys.dtype) != (g.heads, g.dim, self.kv.dtype):
            raise MemoryError_(
                f"keys have {heads} heads of {dim} in {keys.dtype}; this memory was made for {g.heads} heads of "
                f"{g.dim} in {self.kv.dtype}; all layers must be alike"
            )
        fresh = self._claim(batch, width)
        lengths = self._lengths()
        if all(lengths[place] >= width for place in self.places):
            return
        for place in self.places:
            lengths[place] = max(lengths[place], width)
        try:
            before = self.kv.log.counts.copy()
            self.grow(lengths)
            self._grown = _told(before, self.kv.log.counts)
        except BaseException:
            for place in fresh:
                self.kv.free_batch_idx(place)
            self.places = [place for place in self.places if place not in fresh]
            raise

    def _claim(self, batch: int, width: int) -> list[int]:
        """A slot for every row; returns those that are new."""
        if len(self.places) == batch:
            return []
        self._leave()
        if batch > self.kv.geometry.batch:
            raise MemoryError_(f"a batch of {batch} rows does not fit max_batch={self.kv.geometry.batch}; raise it")
        for _ in range(batch):
            self.places.append(self.kv.alloc_new_batch_idx(width))
        return list(self.places)

    def _leave(self) -> None:
        for place in self.places:
            self.kv.free_batch_idx(place)
        self.places = []

    @abstractmethod
    def _lengths(self) -> list[int]:
        """Tokens of every slot of the allocator."""

    def _length(self) -> int:
        text = self.model.config.get_text_config()
        known = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
        return self.max_tokens or int(known or UNLIMITED)

    # ------------------------------------------------------------------ passes and moments
    def before_forward(self, n_new: int, valid: Any = None) -> None:
        most = self.kv.geometry.length if self.kv is not None else self._length()
        if self._pass is None and self.width + n_new > most:
            raise MemoryError_(
                f"{self.width} tokens are held and {n_new} come, but a row has max_tokens={most}; reset() or raise it"
            )
        super().before_forward(n_new, valid)

    def on_written(self, row: Row, n_new: int) -> None:
        if self._grown and row is self.rows[-1]:
            for each in self.rows:
                each.log.append("update", (), self._grown)
            self._grown = ""

    def _forget(self) -> None:
        super()._forget()
        if self.places:
            self._leave()

    def snapshot(self) -> Snapshot:
        """As of any token cache; the tensors are copies, because pages are written in place."""
        moment = super().snapshot()
        copies = tuple((_copy(keys), _copy(values)) for keys, values in moment.tensors)
        return replace(moment, tensors=copies)

    def restore(self, moment: Snapshot) -> None:
        super().restore(moment)
        if self.kv is not None:
            self.trim(self.width)

    def batch_select_indices(self, indices: Tensor) -> None:
        moment = self.snapshot()
        order = torch.as_tensor(indices).cpu()
        order = order.nonzero().flatten() if order.dtype == torch.bool else order
        picked = tuple(
            (None, None) if keys is None or values is None else (keys[order], values[order])
            for keys, values in moment.tensors
        )
        rows = tuple(moment.rows[int(index)].copy() for index in order)
        room = None if moment.room is None else moment.room[order.numpy()]
        self.restore(replace(moment, tensors=picked, rows=rows, room=room))

    def read(self, layer: int, *, rotated: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (B, H_kv, W, D) as the model made them, values, and which columns are tokens, (B, W)."""
        if not self.width:
            raise MemoryError_("this memory is empty: there is nothing to read")
        if not rotated:
            raise MemoryError_(f"{self.slug} keeps keys as the model made them, not those before rotation")
        keys, values = self.fetch(layer, self.width)
        mask = torch.zeros(keys.shape[0], self.width, dtype=torch.bool)
        for index, row in enumerate(self.rows):
            mask[index, torch.as_tensor(row.items["column"])] = True
        return keys, values, mask.to(keys.device)

    # ------------------------------------------------------------------ looking
    def contents(self, row: int | None = None) -> pd.DataFrame:
        """The allocator's table, one line a slot: slot, request id, state, len, mapped and needed blocks, waste bytes,
        virtual range, physical page ids, shared with, mapped at step, source. ``row`` selects one row of the batch."""
        import pandas as pd

        from workbench.systems.kv_log import CONTENTS

        found = pd.DataFrame(columns=list(CONTENTS)) if self.kv is None else self.kv.contents()
        if row is None:
            return found
        place = self.places[self._row_index(row)]
        return found[found["slot"] == place].reset_index(drop=True)

    def page_events(self) -> KVLog:
        """The allocator's own log: what was created, mapped, inherited, shared, unmapped, for which slot."""
        if self.kv is None:
            raise MemoryError_("nothing was read yet, so nothing is allocated")
        return cast("KVLog", self.kv.events())

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Free the rows, and the memory if it is this cache's own; may be called any number of times."""
        self._forget()
        if not self._shared:
            self._drop_kv()

    def _drop_kv(self) -> None:
        kv, self.kv = self.kv, None
        if hasattr(kv, "close"):
            kv.close()


def _check_model(model: PreTrainedModel) -> None:
    import inspect

    text = model.config.get_text_config()
    if not model.can_generate():
        raise MemoryError_(f"{type(model).__name__} keeps no past (an encoder?); a token cache serves decoders")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise MemoryError_(f"{type(model).__name__} takes no position_ids, so its rows cannot be placed")
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        raise MemoryError_(f"{type(model).__name__} does not say how many layers it has")


def _told(before: Any, after: Any) -> str:
    """What an allocator did in one step, in words; empty when it did nothing."""
    done = {name: after[name] - before[name] for name in _WORDS}
    return ", ".join(text.format(count) for name, text in _WORDS.items() if (count := done[name]))


#: Counter of an allocator's log -> how the memory's own log tells it.
_WORDS = {
    "create": "{} page groups created",
    "inherit": "{} taken over from a finished row",
    "map sync": "{} mapped while the model waits (map sync)",
    "map async": "{} mapped ahead (map async)",
    "map table": "{} blocks entered in the table",
    "copy": "{} shared blocks copied",
    "unmap": "{} unmapped",
}


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone(memory_format=torch.contiguous_format)

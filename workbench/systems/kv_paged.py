"""The two baselines: PagedAttention's pool of blocks behind a block table, and a static reservation of every slot.

Kwon et al. 2023 for the first (vLLM): blocks of b tokens, token i of request r in block ``table[r, i // b]``, a LIFO
free list, reference counts for shared prefixes and copy-on-write before a write. The second is what serving did before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput, MemoryError_
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory, per_slot
from workbench.systems.kv_log import CONTENTS, KVLog

if TYPE_CHECKING:
    import pandas as pd
    import torch


class PagedKV:
    """Keys and values in blocks. ``tensors``: K of all layers, then V, each (num_blocks, block, H, D).

    Args:
        layers, heads, dim: N, H, D.
        batch, length: requests at once, tokens of a request at most.
        blocks: physical blocks of the pool. block: tokens in one (16 in vLLM and FlashInfer, 256 in FlashAttention-2).
        allocate: False keeps the tables only (no tensors), for simulations.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        dim: int,
        batch: int,
        length: int,
        blocks: int,
        block: int = 16,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        allocate: bool = True,
    ):
        import torch

        dtype = dtype or torch.float32
        itemsize = torch.empty((), dtype=dtype).element_size()
        block, blocks = whole("block", block, more=" (tokens)"), whole("blocks", blocks)
        token = heads * dim * itemsize
        self.geometry = KVGeometry(layers, heads, dim, batch, length, max(1, token * block), itemsize)
        self.block, self.blocks, self.dtype = block, blocks, dtype
        shape = (blocks, block, heads, dim)
        made = range(self.geometry.buffers) if allocate else ()
        self.tensors = [torch.zeros(shape, device=device, dtype=dtype) for _ in made]
        self.table = np.full((batch, self.geometry.slot_blocks), -1, dtype=np.int32)
        self.free = list(reversed(range(blocks)))
        self.users = np.zeros(blocks, dtype=np.int64)
        self.length = np.zeros(batch, dtype=np.int64)
        self.request = np.full(batch, -1, dtype=np.int64)
        self.born = np.full(batch, -1, dtype=np.int64)
        self.log = KVLog()
        self._requests = 0

    # ------------------------------------------------------------------ requests
    def alloc_new_batch_idx(self, length: int, request: int | None = None) -> int:
        """The first row that nobody uses; blocks come with the next step."""
        self._check_length(whole("length", length, 0))
        mine = self._requests if request is None else whole("request", request, 0)
        idle = np.flatnonzero(self.request < 0)
        if not len(idle):
            raise MemoryError_(f"all {len(self.request)} rows are taken; free one, or choose a larger batch")
        row = int(idle[0])
        self.request[row] = mine
        self._requests = max(self._requests, int(self.request[row])) + 1
        self.length[row], self.born[row] = 0, self.log.step
        self.log.add("admit", row, int(self.request[row]))
        return row

    def free_batch_idx(self, row: int) -> None:
        """The request is done; blocks that nobody else refers to go on top of the free list."""
        self._used(row)
        self.log.add("finish", row, int(self.request[row]))
        for block in reversed(self.table[row][self.table[row] >= 0]):
            self._drop(int(block))
        self.table[row] = -1
        self.length[row], self.request[row] = 0, -1

    def truncate(self, row: int, length: int) -> None:
        """Forget the tokens of a row from ``length`` on; blocks that are not needed any more are free."""
        self._used(row)
        if whole("length", length, 0) > self.length[row]:
            raise BadInput(f"length={length} must lie in 0..{self.length[row]}, what row {row} holds")
        need = self._need(length)
        for block in reversed(self.table[row, need : self._held(row)]):
            self._drop(int(block))
        self.table[row, need:] = -1
        self.length[row] = length

    def share_prefix(self, source: int, target: int, tokens: int) -> int:
        """Let ``target`` (just allocated) refer to the blocks of the first ``tokens`` tokens of ``source``.

        The last block may be partly filled: whoever writes into it first gets a copy of its own.
        """
        self._used(source)
        self._used(target)
        if source == target or self.length[target]:
            raise MemoryError_(f"row {target} must be another row, just allocated and empty")
        if not 0 < whole("tokens", tokens, 0) <= self.length[source]:
            raise BadInput(f"tokens={tokens} must lie in 1..{self.length[source]}, what row {source} holds")
        count = self._need(tokens)
        self.table[target, :count] = self.table[source, :count]
        self.users[self.table[source, :count]] += 1
        self.length[target] = tokens
        self.log.add("share", target, int(self.request[target]), count, count, f"of row {source}")
        return tokens

    # ------------------------------------------------------------------ steps
    def step(self, lengths: Sequence[int]) -> None:
        """Blocks for ``lengths`` (B,) tokens; a shared block that is about to be written is copied first.

        Raises OutOfKVMemory, with nothing changed, when the free list is too short.
        """
        wanted = self._lengths(lengths)
        grown = {int(row): self._need(int(wanted[row])) - self._held(int(row)) for row in np.flatnonzero(wanted)}
        copied = [row for row in grown if self._writes_shared(row, int(wanted[row]))]
        required = sum(max(0, count) for count in grown.values()) + len(copied)
        if required > len(self.free):
            raise OutOfKVMemory(required, len(self.free), f"blocks of {self.block} tokens")
        self.log.step += 1
        for row in copied:
            self._copy_on_write(row)
        for row, count in grown.items():
            for _ in range(count):
                self._take(row)
        self.length = wanted

    def _held(self, row: int) -> int:
        return int((self.table[row] >= 0).sum())

    def _need(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def _writes_shared(self, row: int, wanted: int) -> bool:
        """Whether the next token goes into a partly filled block that another row refers to as well."""
        length = int(self.length[row])
        return wanted > length and length % self.block > 0 and self.users[self.table[row, length // self.block]] > 1

    def _copy_on_write(self, row: int) -> None:
        place = int(self.length[row]) // self.block
        old, new = int(self.table[row, place]), self._pop()
        for tensor in self.tensors:
            tensor[new] = tensor[old]
        self._drop(old)
        self.table[row, place] = new
        self.log.add("copy", row, int(self.request[row]), 1, 1)

    def _take(self, row: int) -> None:
        self.table[row, self._held(row)] = self._pop()
        self.log.add("map", row, int(self.request[row]), 1, 1, "table")

    def _pop(self) -> int:
        block = self.free.pop()
        self.users[block] = 1
        return block

    def _drop(self, block: int) -> None:
        self.users[block] -= 1
        if not self.users[block]:
            self.free.append(block)

    # ------------------------------------------------------------------ tensors
    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, (num_blocks, block, H, D)."""
        if whole("layer", index, 0) >= self.geometry.layers:
            raise BadInput(f"layer {index} is outside 0..{self.geometry.layers - 1}")
        return self.tensors[index], self.tensors[self.geometry.layers + index]

    def block_table(self, rows: Sequence[int]) -> torch.Tensor:
        """(len(rows), max blocks) int32; entries beyond a row's length are 0 and never read."""
        import torch

        return torch.from_numpy(np.maximum(self.table[list(rows)], 0)).to(self.tensors[0].device)

    def places(self, row: int, start: int, stop: int) -> torch.Tensor:
        """Flat position of tokens start..stop-1 of a row in the pool: table[r][i // b] * b + i mod b."""
        import torch

        at = np.arange(start, stop)
        flat = self.table[row, at // self.block].astype(np.int64) * self.block + at % self.block
        return torch.from_numpy(flat).to(self.tensors[0].device)

    def view(self, index: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer for one row, (1, len, H, D), gathered: a copy, which is what a block table costs."""
        at = self.places(row, 0, int(self.length[row]))
        keys, values = (tensor.flatten(0, 1)[at][None] for tensor in self.layer(index))
        return keys, values

    # ------------------------------------------------------------------ checks and looking
    def _used(self, row: int) -> None:
        if whole("row", row, 0) >= len(self.request):
            raise BadInput(f"row {row} is outside 0..{len(self.request) - 1}")
        if self.request[row] < 0:
            raise MemoryError_(f"row {row} has no request; allocate it first")

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self.geometry.length:
            raise BadInput(f"length={length} must lie in 0..{self.geometry.length}, the tokens of a request")

    def _lengths(self, lengths: Sequence[int]) -> np.ndarray:
        wanted = per_slot(lengths, len(self.length), "row")
        for row in np.flatnonzero(wanted):
            self._used(int(row))
        for length in (wanted.min(initial=0), wanted.max(initial=0)):
            self._check_length(int(length))
        if (wanted < self.length).any():
            raise BadInput("lengths cannot shrink; free the row and allocate it again")
        return wanted.astype(np.int64)

    def num_free_kvblocks(self) -> int:
        return len(self.free)

    def waste_bytes(self) -> int:
        """Bytes of used blocks that hold no token; a shared block and its tokens count once."""
        filled = np.zeros(self.blocks, dtype=np.int64)
        for row in np.flatnonzero(self.request >= 0):
            held = self.table[row][self.table[row] >= 0]
            tokens = np.clip(self.length[row] - np.arange(len(held)) * self.block, 0, self.block)
            filled[held] = np.maximum(filled[held], tokens)
        used = int((self.users > 0).sum())
        return used * self.geometry.block_bytes - int(filled.sum()) * self.geometry.kv_token_bytes

    def add_blocks(self, count: int) -> None:
        """A larger pool: tensors of ``count`` more blocks, the old ones copied; block numbers stay."""
        import torch

        if count < 1:
            raise BadInput(f"count={count} must be at least 1")
        more = [tensor.new_zeros(count, *tensor.shape[1:]) for tensor in self.tensors]
        self.tensors = [torch.cat(pair) for pair in zip(self.tensors, more)]
        self.free = [*reversed(range(self.blocks, self.blocks + count)), *self.free]
        self.users = np.concatenate([self.users, np.zeros(count, dtype=np.int64)])
        self.blocks += count
        self.log.add("create", blocks=count, groups=count)

    def contents(self) -> pd.DataFrame:
        """The inspector's table, one row a request; the virtual range is empty: a block table has none."""
        import pandas as pd

        rows = [self._row(int(row)) for row in np.flatnonzero(self.request >= 0)]
        return pd.DataFrame(rows, columns=list(CONTENTS))

    def _row(self, row: int) -> tuple[Any, ...]:
        held = [int(block) for block in self.table[row] if block >= 0]
        length, shared = int(self.length[row]), [block for block in held if self.users[block] > 1]
        others = [int(i) for i in range(len(self.table)) if i != row and np.isin(self.table[i], shared).any()]
        waste = len(held) * self.geometry.block_bytes - length * self.geometry.kv_token_bytes
        return (
            *(row, int(self.request[row]), "running", length, len(held), self._need(length), waste, ""),
            *(" ".join(map(str, held)), " ".join(map(str, others)) if shared else ""),
            *(f"{self.born[row]}..{self.log.step}", "table"),
        )

    def address_map(self) -> pd.DataFrame:
        """One row an entry of the block table: step, buffer, slot, block, page (-1: none), state, source."""
        import pandas as pd

        rows = [
            (self.log.step, 0, row, place, int(page), "used" if page >= 0 else "unmapped", "table" if page >= 0 else "")
            for row, entries in enumerate(self.table)
            for place, page in enumerate(entries)
        ]
        return pd.DataFrame(rows, columns=["step", "buffer", "slot", "block", "page", "state", "source"])

    def events(self) -> KVLog:
        return self.log


class StaticKV:
    """Every slot has its L tokens from the beginning: the batch is floor(memory / (2 N L t)), the rest is waste.

    The same calls as the other allocators; a step can never fail, only admission can.
    """

    def __init__(self, geometry: KVGeometry, memory_bytes: int):
        self.geometry = geometry
        self.slots = min(geometry.batch, int(memory_bytes) // (geometry.kv_token_bytes * geometry.length))
        if self.slots < 1:
            raise OutOfKVMemory(1, 0, f"slots of {geometry.kv_token_bytes * geometry.length} bytes")
        self.length = np.zeros(self.slots, dtype=np.int64)
        self.request = np.full(self.slots, -1, dtype=np.int64)
        self.log = KVLog()
        self._requests = 0

    def alloc_new_batch_idx(self, length: int, request: int | None = None) -> int:
        if not 0 <= length <= self.geometry.length:
            raise BadInput(f"length={length} must lie in 0..{self.geometry.length}, the tokens of a slot")
        idle = np.flatnonzero(self.request < 0)
        if not len(idle):
            raise OutOfKVMemory(1, 0, "slots")
        slot = int(idle[0])
        self.request[slot] = self._requests if request is None else int(request)
        self._requests = max(self._requests, int(self.request[slot])) + 1
        self.log.add("admit", slot, int(self.request[slot]))
        return slot

    def free_batch_idx(self, slot: int) -> None:
        if not 0 <= slot < self.slots or self.request[slot] < 0:
            raise MemoryError_(f"slot {slot} has no request")
        self.log.add("finish", slot, int(self.request[slot]))
        self.request[slot], self.length[slot] = -1, 0

    def step(self, lengths: Sequence[int]) -> None:
        wanted = np.array(lengths)
        if wanted.shape != self.length.shape or wanted.max(initial=0) > self.geometry.length:
            raise BadInput(f"lengths must be {self.slots} whole numbers of at most {self.geometry.length}")
        self.log.step += 1
        self.length = wanted.astype(np.int64)

    def num_free_kvblocks(self) -> int:
        """Free slots: the block of this allocator is a whole slot."""
        return int((self.request < 0).sum())

    def waste_bytes(self) -> int:
        """Reserved and not holding a token, free slots included."""
        g = self.geometry
        return (self.slots * g.length - int(self.length.sum())) * g.kv_token_bytes

    def contents(self) -> pd.DataFrame:
        import pandas as pd

        g, rows = self.geometry, []
        for slot in map(int, np.flatnonzero(self.request >= 0)):
            length, size = int(self.length[slot]), g.length * g.kv_token_bytes
            waste = (g.length - length) * g.kv_token_bytes
            rows.append(
                (
                    slot,
                    int(self.request[slot]),
                    "running",
                    length,
                    1,
                    1,
                    waste,
                    f"{slot * size:#x}..",
                    *[""] * 3,
                    "static",
                )
            )
        return pd.DataFrame(rows, columns=list(CONTENTS))

    def events(self) -> KVLog:
        return self.log

"""vAttention's allocator: contiguous virtual buffers of keys and values, physical page groups mapped as tokens come.

Prabhu et al. 2024 (2405.04437). One virtual buffer a layer for K and one for V, slots of S bytes for B requests. A
request grows by one page group in every buffer (a *KV block*). Pages of finished requests stay mapped and are inherited
by the next request (deferred reclamation), or are taken back when the pool runs short; the next step's pages, known in
advance, are mapped by a thread while the model computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput, MemoryError_
from workbench.systems import kv_tables
from workbench.systems._kv_buffers import VirtualBuffers
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory, per_slot
from workbench.systems.kv_log import KVLog
from workbench.systems.page_backends import PageBackend, open_backend

if TYPE_CHECKING:
    import pandas as pd
    import torch

#: Steps that the background thread looks ahead, and the blocks after which it stops (the released code's numbers).
LOOK_AHEAD, EXTRA_BLOCKS = 9, 2


class VirtualKV(VirtualBuffers):
    """Keys and values of B requests in virtual memory. A context manager; ``close()`` is idempotent.

    Args:
        geometry: shapes and sizes.
        backend: an open page back end of the same group size (it is closed with this object), or a name for
            ``open_backend``.
        device, dtype: of the tensors.
        deferred: keep the pages of finished requests mapped; False unmaps them at once.
        tidy: while there is nothing to map, the background thread unmaps one block of one inactive slot a step.

    Raises:
        BadInput: sizes that do not fit each other. MemoryError_: the back end cannot work here.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        backend: PageBackend | str = "auto",
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        deferred: bool = True,
        tidy: bool = False,
    ):
        super().__init__(geometry, backend, device=device, dtype=dtype)
        self.deferred, self.tidy = deferred, tidy
        self._requests = 0

    @classmethod
    def init(
        cls,
        layers: int,
        heads: int,
        dim: int,
        batch: int,
        length: int,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        group_bytes: int = 0,
        megacache: bool = False,
        backend: str = "auto",
        **words: Any,
    ) -> VirtualKV:
        """The released library's ``init``: N, H, D, B, L, device, dtype, g; ``tensors`` are K of all layers, then V."""
        import torch

        dtype = dtype or (torch.bfloat16 if str(device).startswith("cuda") else torch.float32)
        made = open_backend(backend, group_bytes, device)
        try:
            itemsize = torch.empty((), dtype=dtype).element_size()
            geometry = KVGeometry(layers, heads, dim, batch, length, made.group_bytes, itemsize, megacache)
            return cls(geometry, made, device=device, dtype=dtype, **words)
        except BaseException:
            made.close()
            raise

    # ------------------------------------------------------------------ requests
    def alloc_new_batch_idx(self, length: int, request: int | None = None) -> int:
        """A slot for a new request of ``length`` tokens: best fit among the pages that finished requests left.

        The smallest number of mapped blocks that covers the need, else the first slot that nobody uses. Mapping what
        is missing is the next step's business.

        Raises:
            BadInput: more tokens than a slot has, a request that is no whole number. MemoryError_: all slots are taken.
        """
        self._settle()
        self._check_length(whole("length", length, 0))
        mine = self._requests if request is None else whole("request", request, 0)
        idle = [index for index, slot in enumerate(self.slots) if not slot.active]
        if not idle:
            raise MemoryError_(f"all {self.geometry.batch} slots are taken; free one, or choose a larger batch")
        need = self.geometry.need(length)
        fitting = [index for index in idle if len(self.slots[index].blocks) >= need]
        chosen = min(fitting, key=lambda i: (len(self.slots[i].blocks), i)) if fitting else idle[0]
        slot = self.slots[chosen]
        slot.request, slot.length = mine, 0
        self._requests = max(self._requests, slot.request) + 1
        self.log.add("admit", chosen, slot.request)
        if slot.blocks:
            for block in slot.blocks:
                block.source = "inherited"
            blocks = len(slot.blocks)
            self.log.add("inherit", chosen, slot.request, blocks, blocks * self.geometry.buffers)
        return chosen

    def free_batch_idx(self, index: int) -> None:
        """The request is done. Its pages stay mapped for the next one, unless reclamation is not deferred."""
        self._settle()
        slot = self._slot(index)
        if not slot.active:
            raise MemoryError_(f"slot {index} has no request; it was freed before")
        self.log.add("finish", index, slot.request)
        slot.request, slot.length = -1, 0
        self._unshare(index)
        if not self.deferred:
            self._unmap_down_to(index, 0, "sync")

    def share_prefix(self, source: int, target: int, tokens: int) -> int:
        """Map the whole blocks of the first ``tokens`` tokens of ``source`` into ``target`` too; returns the tokens.

        The same physical groups are then seen by both: what one writes there the other reads (copy-on-write is not
        part of vAttention). The pages live until the last slot that sees them lets go.
        """
        self._settle()
        giver, taker = self._slot(source), self._slot(target)
        if source == target or not giver.active or not taker.active or taker.length:
            raise MemoryError_(f"slot {target} must be another slot, just allocated and empty, and {source} in use")
        if not 0 < whole("tokens", tokens, 0) <= giver.length:
            raise BadInput(f"tokens={tokens} must lie in 1..{giver.length}, what slot {source} holds")
        if not self.backend.aliases:
            raise MemoryError_(f"the {self.backend.name!r} back end cannot map one physical group at two addresses")
        blocks = tokens // self.geometry.group_tokens
        self._unmap_down_to(target, 0, "sync")
        for block in giver.blocks[:blocks]:
            self._map_groups(target, block.groups, "shared")
            for group in block.groups:
                self.shares[group] = self.shares.get(group, 1) + 1
        taker.length = blocks * self.geometry.group_tokens
        self.log.add("share", target, taker.request, blocks, blocks * self.geometry.buffers, f"of slot {source}")
        return taker.length

    # ------------------------------------------------------------------ steps
    def step(self, lengths: Sequence[int], eager_reclaim: bool = False) -> None:
        """Make room for ``lengths`` (B,) tokens, before this returns.

        Args:
            eager_reclaim: unmap all pages of slots whose length is 0.

        Raises:
            OutOfKVMemory: pool and reclaimable blocks are too few; nothing was changed.
        """
        self._settle()
        wanted = self._lengths(lengths)
        self.log.step += 1
        self._grow(wanted, "sync")
        if eager_reclaim:
            for index, slot in enumerate(self.slots):
                if not slot.length and slot.blocks:
                    self._unmap_down_to(index, 0, "sync")

    def step_async(self, lengths: Sequence[int]) -> None:
        """As :meth:`step` for what this step lacks (prompts); the next step's pages are mapped in the background.

        The thread works while the model computes; every other call waits for it first.
        """
        self.step(lengths)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "kv-pages", self.backend.enter_thread)
        self._pending = self._worker.submit(self._ahead)

    def wait(self) -> None:
        """Until the background thread has mapped what it wanted; its errors are raised here."""
        self._settle()

    def _grow(self, wanted: np.ndarray, source: str) -> None:
        """Set lengths and map what is missing, or raise with nothing changed."""
        lacking = [max(0, self.geometry.need(length) - len(slot.blocks)) for length, slot in zip(wanted, self.slots)]
        total = sum(lacking)
        if total > self._pool_blocks():
            free = self._pool_blocks() + sum(self._spare(s, int(n)) for s, n in zip(self.slots, wanted))
            if total > free:
                raise OutOfKVMemory(total, free)
        for length, slot in zip(wanted, self.slots):
            slot.length = int(length)
        if total > self._pool_blocks():
            self._reclaim(total - self._pool_blocks(), source)
        for index, count in enumerate(lacking):
            for _ in range(count):
                self._map_block(index, source)

    def _ahead(self) -> None:
        """What the thread does: pages for one more token, early blocks after that, or else some tidying."""
        wanted = [slot.length + 1 if slot.active and slot.length else slot.length for slot in self.slots]
        done = self._premap(wanted, reclaim=True)
        extra = 0
        for ahead in range(1, LOOK_AHEAD + 1):
            if extra >= EXTRA_BLOCKS:
                break
            later = [length + ahead if slot.active and length else length for length, slot in zip(wanted, self.slots)]
            extra += self._premap(later, most=EXTRA_BLOCKS - extra)
        if self.tidy and not done and not extra:
            idle = [index for index, slot in enumerate(self.slots) if not slot.active and slot.blocks]
            if idle:
                self._unmap_down_to(idle[-1], len(self.slots[idle[-1]].blocks) - 1, "async")

    def _premap(self, wanted: Sequence[int], most: int | None = None, reclaim: bool = False) -> int:
        """Map blocks for lengths to come as far as pages go; being short is nobody's error here."""
        todo = []
        for index, (length, slot) in enumerate(zip(wanted, self.slots)):
            need = self.geometry.need(min(length, self.geometry.length))
            todo += [index] * max(0, need - len(slot.blocks))
        todo = todo[:most]
        if reclaim and len(todo) > self._pool_blocks():
            self._reclaim(len(todo) - self._pool_blocks(), "async", wanted)
        todo = todo[: self._pool_blocks()]
        for index in todo:
            self._map_block(index, "async")
        return len(todo)

    def _reclaim(self, blocks: int, source: str, wanted: Sequence[int] | None = None) -> None:
        """From the highest slot downwards, take back blocks beyond the need until ``blocks`` are free."""
        self.backend.wait()
        for index in reversed(range(len(self.slots))):
            slot = self.slots[index]
            keep = self.geometry.need(slot.length if wanted is None else wanted[index])
            while blocks > 0 and len(slot.blocks) > keep:
                before = self._pool_blocks()
                self._unmap_down_to(index, len(slot.blocks) - 1, source, quiet=True)
                blocks -= self._pool_blocks() - before

    # ------------------------------------------------------------------ checks
    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self.geometry.length:
            raise BadInput(f"length={length} must lie in 0..{self.geometry.length}, the tokens of a slot")

    def _check_buffer(self, buffer: int) -> None:
        if whole("buffer", buffer, 0) >= len(self.regions):
            raise BadInput(f"buffer={buffer} must lie in 0..{len(self.regions) - 1}: K of all layers, then V")

    def _lengths(self, lengths: Sequence[int]) -> np.ndarray:
        wanted = per_slot(lengths, len(self.slots))
        for index in np.flatnonzero(wanted):
            self._check_length(int(wanted[index]))
            if not self.slots[index].active:
                raise BadInput(
                    f"slot {index} has no request but length {wanted[index]}; call alloc_new_batch_idx first"
                )
        self._check_length(int(wanted.min(initial=0)))
        return wanted

    # ------------------------------------------------------------------ looking
    def lengths(self) -> np.ndarray:
        """(B,) tokens of every slot."""
        self._settle()
        return np.array([slot.length for slot in self.slots], dtype=np.int64)

    def num_free_kvblocks(self) -> int:
        """Blocks that a step can have: the pool and what slots hold beyond their need (shared blocks excepted)."""
        self._settle()
        return self._pool_blocks() + sum(self._spare(slot) for slot in self.slots)

    def waste_bytes(self) -> int:
        """Mapped bytes that hold no token of a running request."""
        self._settle()
        mapped = sum(len(slot.blocks) for slot in self.slots) * self.geometry.block_bytes
        return mapped - sum(slot.length for slot in self.slots) * self.geometry.kv_token_bytes

    def contents(self, buffer: int = 0) -> pd.DataFrame:
        """The inspector's table, one row a slot that holds pages or a request; page ids of one ``buffer``."""
        self._settle()
        self._check_buffer(buffer)
        return kv_tables.contents(self.geometry, self.slots, self.regions[buffer].base, self.shares, buffer)

    def address_map(self, buffer: int = 0) -> pd.DataFrame:
        """One row a page group of address space: step, buffer, slot, block, page (-1: none), state, source."""
        self._settle()
        self._check_buffer(buffer)
        return kv_tables.address_map(self.geometry, self.slots, self.log.step, buffer)

    def events(self) -> KVLog:
        """Everything that was created, mapped, inherited, shared, unmapped, in order."""
        return self.log

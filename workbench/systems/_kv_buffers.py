"""Virtual buffers and the pool of physical page groups behind them: what is mapped where, and who else sees it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from workbench.checks import whole
from workbench.errors import BadInput, MemoryError_
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory
from workbench.systems.kv_log import KVLog
from workbench.systems.page_backends import PageBackend, Region, open_backend

if TYPE_CHECKING:
    import torch


@dataclass
class Block:
    """One KV block of a slot: its physical groups, one a buffer; when and by whom it was mapped."""

    groups: list[int]
    step: int
    source: str


@dataclass
class Slot:
    """One request's place. ``request`` is -1 when nobody is there; its blocks may still be mapped."""

    blocks: list[Block] = field(default_factory=list)
    length: int = 0
    request: int = -1

    @property
    def active(self) -> bool:
        return self.request >= 0


class VirtualBuffers:
    """2N virtual tensors over a page back end, slots of S bytes, a pool of physical groups. See :class:`VirtualKV`."""

    def __init__(
        self,
        geometry: KVGeometry,
        backend: PageBackend | str = "auto",
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ):
        import torch

        self.geometry = geometry
        self.dtype = dtype or (torch.float32 if geometry.itemsize == 4 else torch.bfloat16)
        if torch.empty((), dtype=self.dtype).element_size() != geometry.itemsize:
            raise BadInput(f"dtype={self.dtype} does not have the {geometry.itemsize} bytes of the geometry's itemsize")
        if isinstance(backend, str):
            backend = open_backend(backend, geometry.group_bytes, device)
        if backend.group_bytes != geometry.group_bytes:
            raise BadInput(f"the back end's groups of {backend.group_bytes} bytes are not of {geometry.group_bytes}")
        self.backend = backend
        self.slots = [Slot() for _ in range(geometry.batch)]
        self.pool: list[int] = []
        self.shares: dict[int, int] = {}  # group -> slots that see it, where more than one does
        self.log = KVLog()
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future | None = None
        self.regions: list[Region] = []
        try:
            self.regions = [backend.reserve(geometry.buffer_bytes) for _ in range(geometry.buffers)]
            self.tensors = [self._tensor(region) for region in self.regions]
        except BaseException:
            backend.close()
            raise

    # ------------------------------------------------------------------ tensors
    def _tensor(self, region: Region) -> torch.Tensor:
        """The buffer as (B, L, H, D), or (B, L, N, H, D) in a mega-cache; slots are S bytes apart, not L * t."""
        g = self.geometry
        inner = (g.layers, g.heads, g.dim) if g.megacache else (g.heads, g.dim)
        per_token = g.token_bytes // g.itemsize
        strides = [g.slot_bytes // g.itemsize, per_token]
        for size in inner:
            per_token //= size
            strides.append(per_token)
        flat = self.backend.bytes_of(region).view(self.dtype)
        return flat.as_strided((g.batch, g.length, *inner), strides)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, (B, L, H, D). Only the first mapped tokens of each slot may be touched."""
        if whole("layer", index, 0) >= self.geometry.layers:
            raise BadInput(f"layer {index} is outside 0..{self.geometry.layers - 1}")
        if self.geometry.megacache:
            return self.tensors[0][:, :, index], self.tensors[1][:, :, index]
        return self.tensors[index], self.tensors[self.geometry.layers + index]

    def view(self, index: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer for one slot, (1, len, H, D): ordinary tensors over exactly the tokens that are there."""
        self._settle()
        length = self._slot(slot).length
        keys, values = self.layer(index)
        return keys[slot : slot + 1, :length], values[slot : slot + 1, :length]

    # ------------------------------------------------------------------ physical memory
    def reserve_physical_pages(self, nbytes: int) -> int:
        """Create floor(nbytes / g) groups, rounded down to whole KV blocks; returns how many."""
        self._settle()
        count = whole("nbytes", nbytes, 0) // self.geometry.block_bytes * self.geometry.buffers
        if count < 1:
            raise BadInput(f"nbytes={nbytes} is less than one KV block of {self.geometry.block_bytes} bytes")
        made: list[int] = []
        try:
            for _ in range(count):
                made.append(self.backend.create())
        except (MemoryError_, OSError) as error:
            for handle in made:
                self.backend.release(handle)
            raise OutOfKVMemory(count, len(made), f"page groups of {self.geometry.group_bytes} bytes") from error
        self.pool.extend(reversed(made))
        self.log.add("create", blocks=count // self.geometry.buffers, groups=count)
        return count

    def release_physical_pages(self) -> int:
        """Give the groups that are mapped nowhere back to the system; returns how many."""
        self._settle()
        count = len(self.pool)
        for handle in self.pool:
            self.backend.release(handle)
        self.pool.clear()
        if count:
            self.log.add("release", blocks=count // self.geometry.buffers, groups=count)
        return count

    @property
    def created(self) -> int:
        """Physical groups that exist (mapped or not): created early, mapped late."""
        return len(self.backend.handles)

    @property
    def mapped_groups(self) -> int:
        """Physical groups that are seen somewhere; a shared one counts once."""
        return self.created - len(self.pool)

    def _pool_blocks(self) -> int:
        return len(self.pool) // self.geometry.buffers

    def _spare(self, slot: Slot, length: int | None = None) -> int:
        """Blocks beyond the need whose pages nobody else sees."""
        need = self.geometry.need(slot.length if length is None else length)
        return sum(not self._is_shared(block) for block in slot.blocks[need:])

    def _is_shared(self, block: Block) -> bool:
        return block.groups[0] in self.shares

    # ------------------------------------------------------------------ mapping
    def _map_block(self, index: int, source: str) -> None:
        groups = [self.pool.pop() for _ in self.regions]
        try:
            self._map_groups(index, groups, source)
        except BaseException:
            self.pool.extend(reversed(groups))
            raise
        self.log.add("map", index, self.slots[index].request, 1, len(groups), source)

    def _map_groups(self, index: int, groups: list[int], source: str) -> None:
        slot = self.slots[index]
        offset = self._offset(index, len(slot.blocks))
        done: list[Region] = []
        try:
            for region, group in zip(self.regions, groups):
                self.backend.map(region, offset, group)
                done.append(region)
        except BaseException:
            for region in done:
                self.backend.unmap(region, offset)
            raise
        slot.blocks.append(Block(groups, self.log.step, source))

    def _unmap_down_to(self, index: int, keep: int, source: str, quiet: bool = False) -> None:
        """Unmap the last blocks of a slot until ``keep`` are left; pages that nobody sees any more go to the pool."""
        slot = self.slots[index]
        gone = len(slot.blocks) - keep
        if gone > 0 and not quiet:
            self.backend.wait()
        while len(slot.blocks) > keep:
            offset = self._offset(index, len(slot.blocks) - 1)
            for region in self.regions:
                self.backend.unmap(region, offset)
            self._let_go(slot.blocks.pop().groups)
        if gone > 0:
            self.log.add("unmap", index, slot.request, gone, gone * len(self.regions), source)

    def _let_go(self, groups: list[int]) -> None:
        for group in reversed(groups):
            users = self.shares.pop(group, 1) - 1
            if users > 1:
                self.shares[group] = users
            if users == 0:
                self.pool.append(group)

    def _unshare(self, index: int) -> None:
        """Shared pages must not be inherited: they still belong to another request."""
        shared = [place for place, block in enumerate(self.slots[index].blocks) if self._is_shared(block)]
        if shared:
            self._unmap_down_to(index, shared[0], "sync")

    def _offset(self, index: int, block: int) -> int:
        return index * self.geometry.slot_bytes + block * self.geometry.group_bytes

    # ------------------------------------------------------------------ the end
    def _slot(self, index: int) -> Slot:
        if whole("slot", index, 0) >= len(self.slots):
            raise BadInput(f"slot {index} is outside 0..{len(self.slots) - 1}")
        return self.slots[index]

    def _settle(self) -> None:
        """Wait for the background thread; one thread at a time touches the tables."""
        if self.backend.closed:
            raise MemoryError_("this key-value memory is closed")
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Unmap, release and free everything. Views that are still held read zeros on a CPU and fault on a GPU."""
        if self.backend.closed:
            return
        try:
            self._settle()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
            self.tensors = []
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "backend"):
            self.close()

"""What a page back end does: reserve addresses, create physical page groups, map one at an address, take it off again.

The two kinds of memory are apart: a :class:`Region` is address space and costs nothing, a handle is a physical page
group and is visible only where it is mapped. Order of dying: unmap, then release, then free the addresses.
"""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.checks import is_whole
from workbench.errors import BadInput, MemoryError_

if TYPE_CHECKING:
    import torch


@dataclass
class Region:
    """``nbytes`` of contiguous addresses from ``base`` on; ``mapped``: offset -> handle of the group that is there."""

    base: int
    nbytes: int
    mapped: dict[int, int] = field(default_factory=dict)
    owner: Any = None


@dataclass
class Calls:
    """How often each call of the back end was made and how many seconds it took, all together."""

    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
            self.count[name] += 1


class PageBackend(ABC):
    """Page groups of ``group_bytes`` (g). A context manager; ``close()`` may be called any number of times.

    Tensors over a region may outlive the back end; their addresses are freed when the last of them dies.
    """

    name: str
    #: Whether one physical group can be mapped at several addresses (prefix sharing).
    aliases: bool = True

    def __init__(self, group_bytes: int):
        step = self.granularity()
        if not is_whole(group_bytes, 1) or group_bytes % step:
            raise BadInput(
                f"group_bytes={group_bytes!r} must be a positive multiple of {step}, the granularity in bytes of the "
                f"{self.name!r} back end"
            )
        self.group_bytes = int(group_bytes)
        self.calls = Calls()
        self.regions: list[Region] = []
        #: handle -> at how many addresses it is mapped
        self.handles: dict[int, int] = {}
        self.closed = False

    # ------------------------------------------------------------------ what a back end brings
    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """What this machine lacks for this back end, or None."""

    @abstractmethod
    def granularity(self) -> int:
        """Bytes that every size and offset must be a multiple of."""

    @abstractmethod
    def _reserve(self, nbytes: int) -> Region: ...

    @abstractmethod
    def _create(self) -> int: ...

    @abstractmethod
    def _map(self, region: Region, offset: int, handle: int) -> None: ...

    @abstractmethod
    def _unmap(self, region: Region, offset: int) -> None: ...

    @abstractmethod
    def _release(self, handle: int) -> None: ...

    @abstractmethod
    def _free(self, region: Region) -> None: ...

    @abstractmethod
    def bytes_of(self, region: Region) -> torch.Tensor:
        """The whole region as a flat uint8 tensor; reading where nothing is mapped is a fault of the process."""

    @abstractmethod
    def physical_bytes(self) -> int:
        """Physical memory behind all handles, as the operating system or the driver counts it."""

    def wait(self) -> None:
        """Until nothing that was launched can still read a page (a GPU's queue); called before unmapping."""
        return

    def enter_thread(self) -> None:
        """Called once by a thread before it maps."""
        return

    # ------------------------------------------------------------------ the calls, checked and counted
    def reserve(self, nbytes: int) -> Region:
        """Address space of ``nbytes`` (rounded up to whole groups); no physical memory."""
        self._open()
        if nbytes <= 0:
            raise BadInput(f"nbytes={nbytes} must be positive")
        size = -(-nbytes // self.group_bytes) * self.group_bytes
        with self.calls.timed("reserve"):
            region = self._reserve(size)
        self.regions.append(region)
        return region

    def create(self) -> int:
        """One physical page group; returns its handle."""
        self._open()
        with self.calls.timed("create"):
            handle = self._create()
        self.handles[handle] = 0
        return handle

    def map(self, region: Region, offset: int, handle: int) -> None:
        """Make the group visible at ``offset`` of the region, readable and writable."""
        self._open()
        if offset < 0 or offset % self.group_bytes or offset + self.group_bytes > region.nbytes:
            raise BadInput(f"offset={offset} must be a multiple of {self.group_bytes} inside {region.nbytes} bytes")
        if offset in region.mapped:
            raise MemoryError_(f"offset {offset} is mapped already; unmap it first")
        if handle not in self.handles:
            raise MemoryError_(f"handle {handle} was never created here, or is released")
        if self.handles[handle] and not self.aliases:
            raise MemoryError_(f"the {self.name!r} back end cannot map one physical group at two addresses")
        with self.calls.timed("map"):
            self._map(region, offset, handle)
        region.mapped[offset] = handle
        self.handles[handle] += 1

    def unmap(self, region: Region, offset: int) -> int:
        """Take the group at ``offset`` off; returns its handle, which stays alive with its contents."""
        self._open()
        if offset not in region.mapped:
            raise MemoryError_(f"nothing is mapped at offset {offset}")
        with self.calls.timed("unmap"):
            self._unmap(region, offset)
        handle = region.mapped.pop(offset)
        self.handles[handle] -= 1
        return handle

    def release(self, handle: int) -> None:
        """Give a physical group back; it must be mapped nowhere."""
        self._open()
        if handle not in self.handles:
            raise MemoryError_(f"handle {handle} was never created here, or is released already")
        if self.handles[handle]:
            raise MemoryError_(f"handle {handle} is still mapped; unmap it everywhere before it is released")
        with self.calls.timed("release"):
            self._release(handle)
        del self.handles[handle]

    def close(self) -> None:
        """Unmap everything, release every handle, free the addresses (those under living tensors when they die)."""
        if self.closed:
            return
        self.wait()
        for region in self.regions:
            for offset in list(region.mapped):
                self._unmap(region, offset)
            region.mapped.clear()
        for handle in sorted(self.handles):
            self._release(handle)
        self.handles.clear()
        for region in self.regions:
            self._free_when_unseen(region)
        self.regions.clear()
        self.closed = True

    def _free_when_unseen(self, region: Region) -> None:
        owner, region.owner = region.owner, None
        if owner is None:
            self._free(region)
        else:
            weakref.finalize(owner, self._free, region)
            del owner

    def _open(self) -> None:
        if self.closed:
            raise MemoryError_(f"the {self.name!r} page back end is closed")

    def __enter__(self) -> PageBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()

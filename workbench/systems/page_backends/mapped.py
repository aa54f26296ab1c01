"""``mapped``: explicit mapping on a CPU. Physical pages live in a memfd; a group is mapped over reserved addresses.

The addresses are an anonymous mapping without access (PROT_NONE, MAP_NORESERVE) and cost nothing. Mapping one group at
two addresses gives true aliasing. Touching an unmapped page is a segmentation fault, so views go by length.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

from workbench.systems.page_backends import _libc
from workbench.systems.page_backends.base import PageBackend, Region

if TYPE_CHECKING:
    import torch

_RESERVED = _libc.MAP_PRIVATE | _libc.MAP_ANONYMOUS | _libc.MAP_NORESERVE


class MappedPages(PageBackend):
    """Page groups of any multiple of the system's page size, in main memory."""

    name = "mapped"

    def __init__(self, group_bytes: int = 65536):
        super().__init__(group_bytes)
        self._fd = os.memfd_create("kv-pages", os.MFD_CLOEXEC)
        self._size, self._holes = 0, list[int]()

    @classmethod
    def missing(cls) -> str | None:
        if reason := _libc.missing():
            return reason
        if not hasattr(os, "memfd_create"):
            return "this Python was built without memfd_create"
        try:
            os.close(os.memfd_create("probe", os.MFD_CLOEXEC))
        except OSError as error:
            return f"memfd_create is refused here ({error.strerror})"
        return None

    def granularity(self) -> int:
        return mmap.PAGESIZE

    def _reserve(self, nbytes: int) -> Region:
        return Region(_libc.mmap(None, nbytes, _libc.PROT_NONE, _RESERVED), nbytes)

    def _create(self) -> int:
        """The next group of the file, or one that was given back; memory is taken when it is first touched."""
        if self._holes:
            return self._holes.pop()
        self._size += 1
        os.ftruncate(self._fd, self._size * self.group_bytes)
        return self._size - 1

    def _map(self, region: Region, offset: int, handle: int) -> None:
        flags = _libc.MAP_SHARED | _libc.MAP_FIXED
        place = handle * self.group_bytes
        _libc.mmap(region.base + offset, self.group_bytes, _libc.PROT_RW, flags, self._fd, place)

    def _unmap(self, region: Region, offset: int) -> None:
        _libc.mmap(region.base + offset, self.group_bytes, _libc.PROT_NONE, _RESERVED | _libc.MAP_FIXED)

    def _release(self, handle: int) -> None:
        _libc.punch(self._fd, handle * self.group_bytes, self.group_bytes)
        self._holes.append(handle)

    def _free(self, region: Region) -> None:
        _libc.munmap(region.base, region.nbytes)

    def _free_when_unseen(self, region: Region) -> None:
        """A tensor that outlives its pages reads zeros: a fault would take the whole process down."""
        if region.owner is not None:
            _libc.mmap(region.base, region.nbytes, _libc.PROT_RW, _RESERVED | _libc.MAP_FIXED)
        super()._free_when_unseen(region)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)

    def bytes_of(self, region: Region) -> torch.Tensor:
        import torch

        if region.owner is None:
            region.owner = (ctypes.c_uint8 * region.nbytes).from_address(region.base)
        return torch.frombuffer(region.owner, dtype=torch.uint8)

    def physical_bytes(self) -> int:
        """Bytes of the memfd that were ever touched and not given back."""
        return 0 if self.closed else os.fstat(self._fd).st_blocks * 512

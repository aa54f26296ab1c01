"""``demand``: the operating system's own demand paging. Mapping is MADV_POPULATE_WRITE, unmapping MADV_DONTNEED.

Physical pages have no names here, so a handle is only a number that is counted, and nothing can be aliased. An
unmapped page that is touched comes into being filled with zeros: there is no fault, and no protection either.
"""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING

from workbench.systems.page_backends import _libc
from workbench.systems.page_backends.base import PageBackend, Region

if TYPE_CHECKING:
    import torch


class DemandPages(PageBackend):
    """Anonymous memory, faulted in group by group.

    Args:
        huge: ask for 2 MB pages (MADV_HUGEPAGE) instead of the system's small ones.
    """

    name = "demand"
    aliases = False

    def __init__(self, group_bytes: int = 65536, huge: bool = False):
        super().__init__(group_bytes)
        self.huge = huge
        self._next = 0

    @classmethod
    def missing(cls) -> str | None:
        return _libc.missing()

    def granularity(self) -> int:
        return mmap.PAGESIZE

    def _reserve(self, nbytes: int) -> Region:
        flags = _libc.MAP_PRIVATE | _libc.MAP_ANONYMOUS | _libc.MAP_NORESERVE
        area = mmap.mmap(-1, nbytes, flags=flags, prot=_libc.PROT_RW)
        import torch

        base = torch.frombuffer(area, dtype=torch.uint8).data_ptr()
        _libc.madvise(base, nbytes, _libc.MADV_HUGEPAGE if self.huge else _libc.MADV_NOHUGEPAGE)
        return Region(base, nbytes, owner=area)

    def _create(self) -> int:
        self._next += 1
        return self._next - 1

    def _map(self, region: Region, offset: int, handle: int) -> None:
        try:
            _libc.madvise(region.base + offset, self.group_bytes, _libc.MADV_POPULATE_WRITE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 5.14 does not know it: touch the pages instead
                raise
            self.bytes_of(region)[offset : offset + self.group_bytes : mmap.PAGESIZE] = 0

    def _unmap(self, region: Region, offset: int) -> None:
        _libc.madvise(region.base + offset, self.group_bytes, _libc.MADV_DONTNEED)

    def _release(self, handle: int) -> None:
        return

    def _free(self, region: Region) -> None:
        """The mapping object frees its addresses itself, with its last tensor."""

    def bytes_of(self, region: Region) -> torch.Tensor:
        import torch

        return torch.frombuffer(region.owner, dtype=torch.uint8)

    def physical_bytes(self) -> int:
        """Resident bytes of the regions (mincore); whole regions are asked, so this is for small ones."""
        return sum(_libc.resident(region.base, region.nbytes, mmap.PAGESIZE) for region in self.regions)

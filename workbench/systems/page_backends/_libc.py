"""The few calls of the C library that Python's own ``mmap`` lacks: mmap at a given address, fallocate, mincore."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any

PROT_NONE, PROT_RW = 0, 3
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_WRITE = 4, 14, 15, 23
#: fallocate: give the bytes of a file back and keep its size.
PUNCH_HOLE = 0x02 | 0x01
_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def libc() -> Any:
    """The C library with the signatures that we use."""
    found = ctypes.CDLL(None, use_errno=True)
    size, off, place = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
    found.mmap.restype, found.mmap.argtypes = place, [place, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, off]
    found.munmap.argtypes = [place, size]
    found.madvise.argtypes = [place, size, ctypes.c_int]
    found.mincore.argtypes = [place, size, ctypes.c_char_p]
    found.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, off, off]
    return found


def missing() -> str | None:
    """What this system lacks for memory mapping by hand, or None."""
    if not sys.platform.startswith("linux"):
        return f"memory mapping at a chosen address needs Linux (mmap with MAP_FIXED, memfd), this is {sys.platform}"
    return None


def mmap(address: int | None, nbytes: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    found = libc().mmap(address, nbytes, protection, flags, fd, offset)
    if found is None or found == _FAILED:
        raise _error("mmap")
    return int(found)


def munmap(address: int, nbytes: int) -> None:
    _check("munmap", libc().munmap(address, nbytes))


def madvise(address: int, nbytes: int, advice: int) -> None:
    _check("madvise", libc().madvise(address, nbytes, advice))


def punch(fd: int, offset: int, nbytes: int) -> None:
    _check("fallocate", libc().fallocate(fd, PUNCH_HOLE, offset, nbytes))


def resident(address: int, nbytes: int, page: int) -> int:
    """Bytes of the range that are in physical memory (mincore)."""
    pages = ctypes.create_string_buffer(-(-nbytes // page))
    _check("mincore", libc().mincore(address, nbytes, pages))
    return page * sum(byte & 1 for byte in pages.raw[:-1]) if len(pages.raw) > 1 else page * (pages.raw[0] & 1)


def _check(call: str, code: int) -> None:
    if code:
        raise _error(call)


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    hint = "; vm.max_map_count may be reached: use larger page groups" if number == 12 else ""
    return OSError(number, f"{call}: {os.strerror(number)}{hint}")

"""A small memory for the tests of vAttention's allocator."""

from __future__ import annotations

import os

import pytest

from workbench.systems.kv_virtual import VirtualKV
from workbench.systems.page_backends import missing

KIB, MIB = 1 << 10, 1 << 20
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(missing(name)), reason=str(missing(name))))
    for name in ("mapped", "demand")
]
mapped_only = pytest.mark.skipif(bool(missing("mapped")), reason=str(missing("mapped")))


def memory(batch: int = 4, length: int = 256, mib: int = 1, group: int = 4 * KIB, **words) -> VirtualKV:
    """Two layers of 2 heads of 16 in float32: 128 bytes a token, 32 tokens a group of 4 KiB, 4 groups a block."""
    kv = VirtualKV.init(2, 2, 16, batch, length, group_bytes=group, **words)
    kv.reserve_physical_pages(mib * MIB)
    return kv


def grow(kv: VirtualKV, **lengths: int) -> None:
    """``grow(kv, s0=10)``: one step with these lengths, the other slots as they are."""
    wanted = kv.lengths()
    for name, length in lengths.items():
        wanted[int(name[1:])] = length
    kv.step(wanted)


def status(name: str) -> int:
    """Bytes of one line of /proc/self/status: VmSize (addresses) and VmRSS (resident), of the whole process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * KIB for line in file if line.startswith(name))


def resident(kv: VirtualKV) -> int:
    """Bytes of this memory's file that are mapped and resident, by /proc/self/smaps."""
    inode, total, mine = str(os.fstat(kv.backend._fd).st_ino), 0, False
    with open("/proc/self/smaps") as file:
        for line in map(str.split, file):
            if not line[0].endswith(":"):  # a mapping begins: addresses, rights, offset, device, inode, name
                mine = line[4] == inode
            elif mine and line[0] == "Rss:":
                total += int(line[1]) * KIB
    return total

"""What the system counts for a process that makes a memory, fills it and closes it, again and again: JSON on stdout.

    python tests/systems/kv_footprint.py mapped

A process of its own, because VmSize and VmRSS are of the whole process: beside other tests an allocator gives its
arenas back at any moment, and the differences are then not this memory's.
"""

from __future__ import annotations

import gc
import json
import sys

from kv_kit import grow, memory, status


def filled_and_closed(backend: str) -> tuple[int, int, int]:
    """Addresses that the memory speaks of, then VmSize and VmRSS while it is filled; it is closed afterwards."""
    kv = memory(batch=64, length=65536, mib=64, backend=backend)
    kv.alloc_new_batch_idx(1)
    grow(kv, s0=65536)
    for tensor in kv.tensors:
        tensor[0].fill_(1.0)
    del tensor
    seen = kv.geometry.virtual_bytes, status("VmSize"), status("VmRSS")
    kv.close()
    kv.close()
    return seen


def footprint(backend: str) -> dict[str, object]:
    filled_and_closed(backend)  # modules and threads that are only now made are not the memory's
    gc.collect()
    before = status("VmSize"), status("VmRSS")
    filled = []
    for _ in range(3):
        filled.append(filled_and_closed(backend))
        gc.collect()
    return {"before": before, "filled": filled, "after": (status("VmSize"), status("VmRSS"))}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(footprint(sys.argv[1])))

"""How much memory a computation holds at its peak: tracemalloc does not see torch, so torch's results are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationMeter(TorchDispatchMode):
    """Counts the bytes of every storage that an operation creates while it lives; ``peak`` is the high-water mark.

    What stood before (weights, inputs) is not counted, nor are scratch buffers inside one fused operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # a view or an in-place result is no new memory
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of results alive at one time during ``run`` (CUDA: by the allocator), above what stood before."""
    if device.type != "cuda":
        with AllocationMeter() as meter:
            run()
        return meter.peak
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - held

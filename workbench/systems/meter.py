"""Counts the tensor bytes that a piece of code keeps alive at once, on any device, without asking the operating system.

``tracemalloc`` does not see torch's allocations and resident set size is shared with everything else in the process, so
the meter watches every operation and counts each new storage until it dies. Scratch space inside one C++ operator is
not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class AllocationMeter(TorchDispatchMode):
    """Context manager; ``live`` and ``peak`` are bytes of storages made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        old = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._note(tensor.untyped_storage(), old)
        return result

    def _note(self, storage: torch.UntypedStorage, old: set[int]) -> None:
        pointer = storage.data_ptr()
        if pointer in old or pointer in self._seen or not storage.nbytes():
            return
        self._seen[pointer] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, pointer)

    def _gone(self, pointer: int) -> None:
        self.live -= self._seen.pop(pointer, 0)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes of tensors that ``run`` held at once beyond what existed before."""
    with AllocationMeter() as meter:
        kept = run()
    del kept
    return meter.peak


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

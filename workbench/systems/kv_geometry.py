"""How a key-value cache lies in virtual memory: buffers, slots, page groups, and what one request needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput, MemoryError_


class OutOfKVMemory(MemoryError_):
    """The pool cannot serve a step. ``required`` and ``free`` count blocks; nothing was changed.

    A serving loop preempts a request (frees its slot and queues it again) and repeats the step.
    """

    def __init__(self, required: int, free: int, what: str = "KV blocks"):
        self.required, self.free = required, free
        super().__init__(
            f"{required} more {what} are required and {free} are free (reclaimable ones included); free a request, or "
            "reserve more physical memory"
        )


def per_slot(lengths: Any, slots: int, what: str = "slot") -> np.ndarray:
    """``lengths`` as an array of whole numbers, one a slot; BadInput for another shape or kind."""
    try:
        wanted = np.array(lengths)
    except ValueError:  # rows of different lengths
        wanted = np.empty(0)
    if wanted.shape != (slots,) or wanted.dtype.kind not in "iu":
        raise BadInput(f"lengths must be {slots} whole numbers, one a {what}, got {lengths!r}")
    return wanted


@dataclass(frozen=True)
class KVGeometry:
    """Shapes and sizes; the paper's symbols.

    Attributes:
        layers, heads, dim, itemsize: N, H (key-value heads of this worker), D, P (bytes an element).
        batch, length: B slots, L tokens a slot at most.
        group_bytes: g, bytes of a page group.
        megacache: one K and one V buffer for all layers (tensor slicing) instead of 2N.
    """

    layers: int
    heads: int
    dim: int
    batch: int
    length: int
    group_bytes: int
    itemsize: int = 2
    megacache: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "dim", "batch", "length", "group_bytes", "itemsize"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        if self.group_bytes % self.token_bytes:
            raise BadInput(
                f"group_bytes={self.group_bytes} must be a multiple of the {self.token_bytes} bytes that a token takes "
                f"in one buffer; the smallest multiple of both is {math.lcm(self.group_bytes, self.token_bytes)}"
            )

    @property
    def token_bytes(self) -> int:
        """t: bytes of one token in one buffer, H * D * P (times N in a mega-cache)."""
        return self.heads * self.dim * self.itemsize * (self.layers if self.megacache else 1)

    @property
    def buffers(self) -> int:
        """Virtual tensors, and so page groups of one KV block: 2N, or 2 in a mega-cache."""
        return 2 if self.megacache else 2 * self.layers

    @property
    def group_tokens(self) -> int:
        """T_g = g / t."""
        return self.group_bytes // self.token_bytes

    @property
    def block_bytes(self) -> int:
        """Physical bytes of growing one request by one page group in every buffer."""
        return self.buffers * self.group_bytes

    @property
    def slot_bytes(self) -> int:
        """S: address space of one request in one buffer, L * t rounded up to whole groups."""
        return -(-self.length * self.token_bytes // self.group_bytes) * self.group_bytes

    @property
    def slot_blocks(self) -> int:
        return self.slot_bytes // self.group_bytes

    @property
    def buffer_bytes(self) -> int:
        return self.batch * self.slot_bytes

    @property
    def virtual_bytes(self) -> int:
        return self.buffers * self.buffer_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token in all layers, keys and values."""
        return 2 * self.layers * self.heads * self.dim * self.itemsize

    def need(self, length: int) -> int:
        """Blocks that ``length`` tokens of one request need: ceil(length / T_g)."""
        return -(-int(length) // self.group_tokens)


def fitting_group(token_bytes: int, granularity: int, at_least: int = 64 << 10) -> int:
    """The smallest group of at least ``at_least`` bytes that is a multiple of both the granularity and of a token."""
    step = math.lcm(token_bytes, granularity)
    return -(-at_least // step) * step

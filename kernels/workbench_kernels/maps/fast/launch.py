"""From a validated look to a kernel's arguments: strides instead of copies, tile sizes by head dim and dtype."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from workbench_kernels.maps.problem import Look

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_HEAD_DIM = 256
LOG2_E = 1.4426950408889634
#: Positions are compared and their powers of two read off as float32, which is exact up to here.
LONGEST = 1 << 24
#: Strongest keys a row can keep in registers.
MOST_KEPT = 64
#: Programs that keep a card busy, unequal as causal masks make them: several a streaming multiprocessor.
ENOUGH_PROGRAMS = 2112


def refuses(look: Look, topk: int = 0) -> str | None:
    """Why these kernels cannot take the look; None when they can."""
    if topk > MOST_KEPT:
        return f"topk is limited to {MOST_KEPT}, got {topk}"
    masks = look.masking
    if masks.allowed is not None or masks.bias is not None:
        return "a full mask matrix is not supported (causal, window and key padding are)"
    if look.q.dtype not in DTYPES:
        return f"{look.q.dtype} is not supported (bfloat16, float16 and float32 are)"
    if look.q.shape[3] > LARGEST_HEAD_DIM:
        return f"head dim {look.q.shape[3]} is above {LARGEST_HEAD_DIM}"
    if max(look.queries, look.keys) > LONGEST:
        return f"sequences are limited to {LONGEST:,} positions, got {max(look.queries, look.keys):,}"
    if not look.q.is_cuda and not interpreted():
        return f"the tensors are on {look.q.device}, the kernels run on CUDA"
    return None


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Tiles:
    """Rows and keys of a tile and how a program works on it."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None  # most a thread may use; None leaves it to the compiler

    @property
    def words(self) -> dict[str, int]:
        """Keywords of a launch."""
        words = {"BM": self.rows, "BN": self.keys, "num_warps": self.warps, "num_stages": self.stages}
        return words if self.registers is None else {**words, "maxnreg": self.registers}


def tiles(look: Look, rows: int = 128, keys: int = 128) -> Tiles:
    """The tile for this head dim and dtype, no larger than rows x keys."""
    wide = padded_dim(look) * look.q.element_size()  # bytes of a row of Q or K
    if look.q.dtype == torch.float32:  # three products of split operands, which take their room
        rows, keys = min(rows, 64), min(keys, 64 if wide <= 256 else 32)
    elif wide > 256:
        keys = min(keys, 64)
    return Tiles(rows, keys, 8 if rows * keys >= 128 * 64 else 4, 3 if wide <= 256 else 2)


def padded_dim(look: Look) -> int:
    return max(16, triton.next_power_of_2(look.q.shape[3]))


def tensors(look: Look) -> list[Tensor]:
    """q, k, lse, heads and padding as every kernel takes them (padding a placeholder where there is none)."""
    padding = look.masking.key_padding
    padding = look.heads if padding is None else padding.contiguous().view(torch.uint8)
    return [look.q, look.k, look.lse, look.heads.contiguous(), padding]


def numbers(look: Look) -> list[float]:
    """Strides, sizes and factors, in the order of every kernel's signature."""
    factor, cap = _factors(look)
    q, k, lse = (x.stride()[:3] for x in (look.q, look.k, look.lse))
    window = look.masking.window or 0
    return [*q, *k, *lse, len(look.heads), look.queries, look.keys, window, factor, cap]


def _factors(look: Look) -> tuple[float, float]:
    if look.softcap is None:
        return look.scale * LOG2_E, 0.0
    return 2.0 * look.scale / look.softcap * LOG2_E, look.softcap * LOG2_E


def constants(look: Look) -> dict[str, object]:
    """What a kernel is specialised for."""
    return {
        "GROUP": look.group,
        "D": look.q.shape[3],
        "BD": padded_dim(look),
        "CAUSAL": look.masking.causal,
        "WINDOW": look.masking.window is not None,
        "CAPPED": look.softcap is not None,
        "PADDED": look.masking.key_padding is not None,
        "PRECISION": "tf32x3" if look.q.dtype == torch.float32 else "tf32",
    }


def has_descriptor(look: Look) -> bool:
    """Whether K is a matrix without gaps, laid out (B, S, H, D) or (B, H, S, D), that the card's TMA can read."""
    k = look.k
    able = interpreted() or (k.is_cuda and torch.cuda.get_device_capability(k.device)[0] >= 9)
    whole = k.shape[3] == padded_dim(look) and k.data_ptr() % 16 == 0 and k.numel() > 0
    return able and whole and (k.is_contiguous() or k.transpose(1, 2).is_contiguous())


def key_descriptor(look: Look, height: int) -> tuple[object, int, int, int] | None:
    """A TMA descriptor of K as a matrix, and how far a batch row (rows), a head (rows, columns) lies in it."""
    if not has_descriptor(look):
        return None
    batch, keys, heads, dim = look.k.shape
    if look.k.is_contiguous():
        return _matrix(look.k, batch * keys, heads * dim, height, dim), keys, 0, dim
    return _matrix(look.k, batch * heads * keys, dim, height, dim), heads * keys, keys, 0


def _matrix(k: Tensor, rows: int, columns: int, height: int, width: int) -> object:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(k, [rows, columns], [columns, 1], [height, width])


@contextlib.contextmanager
def on_device(x: Tensor) -> Iterator[None]:
    """Triton launches on the current device."""
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        yield


def planes(look: Look) -> Iterator[tuple[int, int]]:
    """(first plane, how many) of each launch: one for everything, or one a head when someone watches the progress."""
    total = look.batch * len(look.heads)
    step = total if look.progress is None else 1
    for first in range(0, total, step):
        yield first, step
        if look.progress is not None:
            if look.q.is_cuda:
                torch.cuda.synchronize(look.q.device)
            look.tell(first + step, total)

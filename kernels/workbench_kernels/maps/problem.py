"""What every implementation of a map is given: the validated input, still as it came, and the checks that made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench_kernels.masking import Index, Masking


@dataclass(frozen=True)
class Look:
    """One look at some heads.

    q (B, Nq, H, D) and k (B, Nk, Hkv, D) after rotary embedding, lse (B, Nq, H) natural log, ``heads`` (h,) the query
    heads looked at; ``masking`` already speaks of these heads alone.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    heads: Tensor
    scale: float
    softcap: float | None
    masking: Masking
    progress: Callable[[float], object] | None = None

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def queries(self) -> int:
        return self.q.shape[1]

    @property
    def keys(self) -> int:
        return self.k.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.q.shape[2] // self.k.shape[2]

    def tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done / max(total, 1))


@dataclass(frozen=True)
class Bins:
    """``count`` bins that cover positions start..stop-1; bin b holds [edge b, edge b + 1)."""

    start: int
    stop: int
    count: int

    def edge(self, b: int) -> int:
        return self.start + (b * (self.stop - self.start)) // self.count

    @property
    def width(self) -> int:
        """Positions of the widest bin; the narrowest has at most one less."""
        return -(-(self.stop - self.start) // self.count)

    @property
    def even(self) -> bool:
        return (self.stop - self.start) % self.count == 0

    def edges(self) -> Tensor:
        """(count + 1,) int64."""
        return self.start + torch.arange(self.count + 1) * (self.stop - self.start) // self.count

    def sizes(self) -> Tensor:
        return self.edges().diff()


def distance_edges(keys: int) -> Tensor:
    """Left edges of distance bins 0, 1, 2, 4, 8, ...: distance = query - key position, aligned bottom-right."""
    return torch.tensor([0, *(1 << p for p in range(max(keys - 1, 1).bit_length()))])


def head_indices(heads: object, count: int, device: torch.device) -> Tensor:
    """Heads named by None (all), an int, a slice, a sequence or a tensor; negative ones count from the end."""
    if heads is None:
        return torch.arange(count, device=device)
    if isinstance(heads, slice):
        if len(range(*heads.indices(count))) == 0:
            raise ValueError(f"heads selects nothing: {heads} of {count} heads")
        return torch.arange(*heads.indices(count), device=device)
    index = _vector("heads", heads, device)
    if index.dtype == torch.bool:  # as numbers they would be heads 0 and 1
        raise ValueError(f"heads must name query heads in 0..{count - 1} by number, got {heads}")
    index = torch.where(index < 0, index + count, index)
    if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= count:
        raise ValueError(f"heads must name query heads in 0..{count - 1}, got {heads}")
    return index


def checked_index(name: str, index: object, length: int, device: torch.device) -> Index:
    """A slice or an int64 vector of positions inside ``length``; ``None`` means everything."""
    if index is None:
        return slice(0, length)
    if isinstance(index, slice):
        if len(range(*index.indices(length))) == 0:
            raise ValueError(f"{name} selects nothing: {index} of {length} positions")
        return index
    vector = _vector(name, index, device)
    if vector.dtype == torch.bool:
        if tuple(vector.shape) != (length,):
            raise ValueError(f"{name} as a bool vector must have shape ({length},), got {tuple(vector.shape)}")
        vector = vector.nonzero().flatten()
    vector = torch.where(vector < 0, vector + length, vector)
    if vector.numel() == 0 or int(vector.min()) < 0 or int(vector.max()) >= length:
        raise ValueError(f"{name} must hold positions in 0..{length - 1}, got {index}")
    return vector


def _vector(name: str, index: object, device: torch.device) -> Tensor:
    """(n,) int64, or bool; a fraction is refused, not cut."""
    try:
        vector = torch.as_tensor(index, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be positions, a slice or None, got {index!r}: {error}") from error
    if vector.numel() and (vector.is_floating_point() or vector.is_complex()):
        raise ValueError(f"{name} must be whole numbers, got {vector.dtype}")
    return vector.reshape(-1) if vector.dtype == torch.bool else vector.reshape(-1).long()

"""One forward pass laid out over cache slots, and a moment of a memory that can be gone back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.memory.cache._rotary import Rotary, Tables, inverse
from workbench.memory.cache._rows import Row
from workbench.memory.cache._surprise import Last


@dataclass(frozen=True)
class Pass:
    """One forward pass under way.

    ``width``: columns stored before it. ``valid`` (B, q): which new columns are tokens and not padding. ``positions``
    (B, q) of the new tokens, counted in slots; ``mask`` (B, W + q) over all columns, None when nothing is masked.
    ``old`` and ``new``: rotary tables of the stored and of the new columns; ``back`` undoes ``new``.
    """

    width: int
    valid: np.ndarray
    positions: Tensor
    mask: Tensor | None
    old: Tables
    new: Tables
    back: Tables


@dataclass(frozen=True)
class Snapshot:
    """A moment of a memory. Tensors are shared, not copied: a memory never writes into a tensor that it holds."""

    rows: tuple[Row, ...]
    tensors: tuple[tuple[Tensor | None, Tensor | None], ...]
    fed: int
    room: np.ndarray | None
    empty_round: bool
    last: Last | None


def _layout(rows: Sequence[Row], width: int, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slot position (B, W + q) of every column, and which columns are tokens. A hole has position 0 and is masked."""
    slots, held = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for index, row in enumerate(rows):
        slots[index, row.items["column"]] = np.arange(len(row))
        held[index, row.items["column"]] = True
    new = np.maximum(held.sum(1, keepdims=True) + np.cumsum(valid, axis=1) - 1, 0)
    return np.concatenate([slots, new], axis=1), np.concatenate([held, valid], axis=1)


def plan(rows: Sequence[Row], width: int, valid: np.ndarray, rotary: Rotary, model: PreTrainedModel) -> Pass:
    """Lay out a pass. All tables come from one call, so that dynamic scalings see the longest position."""
    slots, mask = _layout(rows, width, valid)
    whole, device = bool(mask.all()), model.device
    positions = torch.from_numpy(slots[:1] if whole else slots).to(device)
    tables = rotary.tables(positions, torch.empty((), dtype=model.dtype, device=device))
    new = {kind: (cos[:, width:], sin[:, width:]) for kind, (cos, sin) in tables.items()}
    return Pass(
        width,
        valid,
        positions[:, width:].expand(len(rows), -1),
        None if whole else torch.from_numpy(mask).to(device),
        {kind: (cos[:, :width], sin[:, :width]) for kind, (cos, sin) in tables.items()},
        new,
        inverse(new, torch.float64 if model.dtype == torch.float64 else torch.float32),
    )

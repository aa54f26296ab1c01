"""Padding for layers that count in whole numbers (tokens of a chunk, a segment, a window) which all rows share.

Such a layer runs rows that are in step. Where padding sets rows apart, rows that hold and bring equally many tokens go
together without their padding, so that each reads what it would read alone, to the same chunk borders. A count is then
one number a row, (B,) int64 on the CPU, until the rows are in step again. None of this is touched without padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.memory.layers.base import Slot, State, carried

Run = Callable[[Tensor, State], tuple[Tensor, State]]


def counts_of(layout: dict[str, Slot]) -> list[str]:
    """The state's whole numbers."""
    return [name for name, slot in layout.items() if not slot.shape]


def evened(state: State, counts: list[str]) -> State:
    """The same memory, counts that are one number for all rows as this number."""
    return {name: _shared(value) if name in counts else value for name, value in state.items()}


def apart(state: State, counts: list[str]) -> bool:
    """Whether rows may hold different numbers of tokens."""
    return any(isinstance(state[name], Tensor) for name in counts)


def in_step(run: Run, x: Tensor, state: State, keep: Tensor | None, counts: list[str]) -> tuple[Tensor, State]:
    """y (B, T, dim), zero at padding, and the new state: ``run`` over groups of rows that are in step."""
    real = torch.ones(x.shape[:2], dtype=torch.bool) if keep is None else keep.cpu()
    y, parts, order = torch.zeros_like(x), list[State](), list[int]()
    for rows in _groups(real, state, counts):
        index, after = torch.tensor(rows, device=x.device), _rows(state, rows, counts)
        if real[rows[0]].any():
            places = real[rows].nonzero()[:, 1].view(len(rows), -1).to(x.device)
            read, after = run(x[index[:, None], places], after)
            y = y.index_put((index[:, None], places), read.to(y.dtype))
        parts.append(carried(after))
        order += rows
    return y, _joined(parts, order, counts)


def _groups(real: Tensor, state: State, counts: list[str]) -> list[list[int]]:
    held = [torch.as_tensor(state[name]).expand(len(real)).tolist() for name in counts]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, step in enumerate(zip(real.sum(1).tolist(), *held)):
        groups.setdefault(step, []).append(row)
    return list(groups.values())


def _rows(state: State, rows: list[int], counts: list[str]) -> State:
    """These rows, which are in step."""
    picked = {name: value[rows] if isinstance(value, Tensor) else value for name, value in state.items()}
    return evened(picked, counts)


def _joined(parts: list[State], order: list[int], counts: list[str]) -> State:
    """The groups' states as one, the rows back in their places."""
    back = torch.tensor(order).argsort()
    sizes = [len(next(value for value in part.values() if isinstance(value, Tensor))) for part in parts]
    joined: State = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if name in counts:
            each = [torch.full((size,), value, dtype=torch.int64) for size, value in zip(sizes, values)]
            joined[name] = _shared(torch.cat(each)[back])
        else:
            joined[name] = torch.cat(values)[back.to(first.device)]
    return joined


def _shared(count: int | Tensor) -> int | Tensor:
    if not isinstance(count, Tensor):
        return count
    first = int(count[0])
    return first if bool((count == first).all()) else count

"""The choice of ``_event_choice`` in tensors of fixed size, for a device that the host does not wait for.

What a layer fetches follows from its top-k alone, so the host need not see it before the layer goes on. The rows to
fetch always number ``most``: those of the chosen events, in the order of the stream, are the last of them; the others
point at row 0 and a bias of minus infinity hides them from the softmax. On a CUDA device all of it, the gather too, is
one launch (``_event_choice_kernel``), whose reference is :func:`choose`; the specification of both is
``_event_choice``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

NOBODY = 2**31 - 1
SPARE = 8  # numbers of minus infinity before a bias, for columns that only fill up a width


@dataclass(frozen=True)
class Budgets:
    """Tokens of the similarity and of the contiguity buffer; how many events, at most, are considered in falling score
    (``k``) and lie in the contiguity buffer (``queue``). None of it follows from how many events there are."""

    similar: int
    near: int
    k: int
    queue: int

    @classmethod
    def of(cls, similar: int, near: int, shortest: int) -> Budgets:
        """For events of at least ``shortest`` tokens: what crosses the budget is looked at too."""
        k, queue = similar // shortest + 2, near // shortest
        return cls(similar, near, k, queue + -(2 + k + queue) % 4)  # records begin at multiples of 16 bytes

    @property
    def width(self) -> int:
        """Numbers of a record: how many events each buffer holds, then the events, -1 behind the last of each."""
        return 2 + self.k + self.queue


def choose(
    order: Tensor, edges: Tensor, before: Tensor, budgets: Budgets, index: Tensor, bias: Tensor, record: Tensor
) -> None:
    """Fill both buffers and write what follows from them.

    Args:
        order: (<= k,) events in falling score, as many as there are.
        edges: (E + 1,) event e has the rows [edges[e], edges[e + 1]).
        before: record of the pass before, whose contiguity buffer is the queue.
        index: (most,) rows to fetch. bias: its first ``most`` numbers become 0 where a row is fetched, else -inf.
        record: (width,) what was chosen, in the order in which it was.
    """
    k, lengths = len(order), edges.diff()
    sizes = lengths[order]
    ends = sizes.cumsum(0)
    stays = 2 * ends - sizes <= 2 * budgets.similar  # what crosses the budget stays if it does so by half at most
    events, valid = _named(order, stays, before[2 + budgets.k :], len(lengths))
    near = _first_named(events, valid, len(lengths))
    near[:k] = False
    sizes = lengths[events] * near
    near &= sizes.cumsum(0) <= budgets.near
    _write_record(record, order.where(stays, -1), events, near, budgets.k)
    near[:k] = stays
    _write_rows(events, near, edges, index, bias)


def _named(order: Tensor, stays: Tensor, queue: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Events in the order in which they are named: chosen ones, b + 1 and b - 1 of each, the queue; which are real."""
    around = torch.stack([order + 1, order - 1], dim=1).flatten()
    real = stays.repeat_interleave(2, output_size=len(around)) & (around >= 0) & (around < n)
    events = torch.cat([order, around, queue.to(order.dtype)])
    valid = torch.cat([stays, real, queue >= 0])
    return events.where(valid, 0), valid


def _first_named(events: Tensor, valid: Tensor, n: int) -> Tensor:
    ranks = torch.arange(len(events), device=events.device)
    first = torch.full((n,), NOBODY, dtype=torch.int64, device=events.device)
    first.scatter_reduce_(0, events, ranks.where(valid, NOBODY), "amin")
    return valid & (first[events] == ranks)


def _write_record(record: Tensor, best: Tensor, events: Tensor, near: Tensor, k: int) -> None:
    record[0], record[1] = (best >= 0).sum(), near.sum()
    record[2 : 2 + k] = -1
    record[2 : 2 + len(best)] = best
    queue = record.new_full((len(record) - 1 - k,), -1)  # one place more, for those that were not chosen
    places = (near.cumsum(0) - 1).where(near, len(queue) - 1)
    queue.scatter_(0, places, events.to(record.dtype).where(near, -1))
    record[2 + k :] = queue[:-1]


def _write_rows(events: Tensor, chosen: Tensor, edges: Tensor, index: Tensor, bias: Tensor) -> None:
    most, last = len(index), len(edges) - 1
    ordered = events.where(chosen, last).sort().values
    starts = edges[ordered].to(torch.int64)
    sizes = edges[(ordered + 1).clamp(max=last)] - starts
    ends = sizes.cumsum(0)
    rows = torch.arange(most, device=index.device) - (most - ends[-1])
    of = torch.searchsorted(ends, rows, right=True).clamp(max=len(ends) - 1)
    real = rows >= 0
    index.copy_((starts[of] + rows - (ends - sizes)[of]).where(real, 0))
    bias[:most] = torch.zeros_like(bias[:most]).masked_fill_(~real, -torch.inf)


class DeviceChoice:
    """Chooses for the layers of one room; the events do not change while it lives.

    Args:
        edges: (E + 1,) of the events. last: contiguity buffers of the pass before, by layer. most: rows that are
            fetched, chosen or not. room: numbers of the bias behind them, which stay 0.
    """

    def __init__(
        self, edges: np.ndarray, last: dict[int, tuple[list[int], list[int]]], budgets: Budgets, *,
        layers: int, most: int, room: int, device: torch.device,
    ):  # fmt: skip
        self.budgets, self.most, self._layers = budgets, most, layers
        self.edges = torch.from_numpy(edges.astype(np.int32)).to(device)
        self.index = torch.zeros(most, dtype=torch.int32, device=device)
        self.bias_all = hidden_before(most + room, device)
        self.bias = self.bias_all[SPARE:]
        self._before = torch.from_numpy(packed(last, layers, budgets)).to(device).unbind(0)
        launch = _launcher(self, int(np.diff(edges).max(initial=0))) if device.type == "cuda" else None
        self._launch = launch or self._plain

    def begin(self) -> None:
        """A pass begins: what it chooses counts when :meth:`end` is called."""
        # every layer writes all of its own before any of it is read
        self.record = torch.empty(self._layers, self.budgets.width, dtype=torch.int32, device=self.edges.device)
        self._records = self.record.unbind(0)

    def end(self) -> None:
        self._before = self._records

    def fetch(self, layer: int, order: Tensor, pool: Tensor, rows: Tensor) -> None:
        """Choose by ``order`` and copy the events' rows of ``pool`` (tokens, ...) into ``rows`` (most, ...), contiguous
        both; ``index`` and ``bias`` are those of this layer until the next one asks."""
        self._launch(order, self._before[layer], self._records[layer], pool, rows)

    def _plain(self, order: Tensor, before: Tensor, record: Tensor, pool: Tensor, rows: Tensor) -> None:
        choose(order, self.edges, before, self.budgets, self.index, self.bias, record)
        torch.index_select(pool, 0, self.index, out=rows)


def hidden_before(n: int, device: torch.device) -> Tensor:
    """(SPARE + n,) float32: minus infinity, then zeros."""
    bias = torch.zeros(SPARE + n, device=device)
    bias[:SPARE] = -torch.inf
    return bias


def packed(last: dict[int, tuple[list[int], list[int]]], layers: int, budgets: Budgets) -> np.ndarray:
    """Contiguity buffers as records (layers, width); of the similarity buffer nothing is asked."""
    records = np.full((layers, budgets.width), -1, dtype=np.int32)
    records[:, :2] = 0
    for layer, (_, near) in last.items():
        records[layer, 1] = len(near)
        records[layer, 2 + budgets.k : 2 + budgets.k + len(near)] = near
    return records


def unpacked(record: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Similarity and contiguity buffer of one layer's record."""
    best, near = record[:2].tolist()
    return record[2 : 2 + best].tolist(), record[2 + k : 2 + k + near].tolist()


@cache
def launcher_exists() -> bool:
    """Whether Triton is here; without it the plain form runs, which takes some thirty launches."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _launcher(choice: DeviceChoice, longest: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any] | None:
    if not launcher_exists():
        return None
    from workbench.memory.cache import _event_choice_kernel as kernel

    if not kernel.takes(choice.budgets):
        return None
    return kernel.launcher(choice.edges, choice.index, choice.bias, choice.budgets, longest)

"""EM-LLM's events while all of them stay on the device: one tensor a layer, keys and values of a token side by side.

Events follow each other in the stream without a gap, so an event is a range of that tensor and any choice of events is
one gather: no loop over events, no list of small tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BadInput, MemoryError_
from workbench.memory.cache._event_store import Blocks


class Growing:
    """Rows appended along the first dimension; room grows by a quarter. What is filled is never rewritten.

    Copies share the room until one of them appends where another already has.
    """

    def __init__(self) -> None:
        self.n = 0
        self._room: Tensor | None = None
        self._filled: Tensor | None = None  # the view is asked for once a layer and step
        self._taken = [0]  # rows that some copy has filled

    @property
    def filled(self) -> Tensor:
        """(n, ...), contiguous."""
        if self._filled is None:
            raise MemoryError_("nothing was stored here yet")
        return self._filled

    def append(self, rows: Tensor) -> None:
        """Add (m, ...); the other sizes are those of the first call."""
        stop = self.n + len(rows)
        if self._room is None or stop > len(self._room) or self._taken[0] != self.n:
            room = rows.new_empty(max(stop, self.n + self.n // 4), *rows.shape[1:])
            if self._room is not None:
                room[: self.n] = self.filled
            self._room, self._taken = room, [self.n]
        self._room[self.n : stop] = rows
        self.n = self._taken[0] = stop
        self._filled = self._room[:stop]

    def nbytes(self) -> int:
        return 0 if self._room is None else self._room.untyped_storage().nbytes()

    def copy(self) -> Growing:
        twin = Growing()
        twin.n, twin._room, twin._filled, twin._taken = self.n, self._room, self._filled, self._taken
        return twin


class EventPool:
    """The same doors as ``EventStore``, without a budget: nothing is offloaded and nothing is loaded."""

    loads = 0

    def __init__(self) -> None:
        self._layers: list[Growing] = []  # rows (H_kv, D + D_v)
        self._width = 0  # D
        self._edges = np.zeros(1, dtype=np.int64)  # event e is [edges[e], edges[e + 1])
        self._lengths = np.diff(self._edges)

    def __len__(self) -> int:
        return len(self._edges) - 1

    def add(self, event: int, lengths: Sequence[int], parts: Blocks) -> list[list[int]]:
        """Hold the events ``event``, event + 1, ..., whose tokens follow each other in ``parts``."""
        if not parts or not len(lengths) or min(lengths) < 1:
            raise BadInput(f"event {event} has no tokens; an event holds at least one")
        if event != len(self) or sum(lengths) != parts[0][0].shape[1]:
            raise BadInput(f"events are stored in order and whole; {len(self)} are held, got event {event}")
        self._layers, self._width = self._layers or [Growing() for _ in parts], parts[0][0].shape[-1]
        for held, pair in zip(self._layers, parts):
            held.append(torch.cat(pair, dim=-1).transpose(0, 1))
        self._edges = np.concatenate([self._edges, self._edges[-1] + np.cumsum(lengths)])
        self._lengths = np.diff(self._edges)
        return [[] for _ in lengths]

    def get(self, event: int) -> Blocks:
        """Keys and values of an event, as views."""
        if not 0 <= event < len(self):
            raise MemoryError_(f"event {event} is not in this memory; it holds {len(self)} events")
        part = slice(int(self._edges[event]), int(self._edges[event + 1]))
        return tuple(self._parted(held.filled[part]) for held in self._layers)

    def _parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        both = rows.transpose(0, 1)
        return both[..., : self._width], both[..., self._width :]

    def gather(self, layer: int, events: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values (H_kv, m, D) of one layer, the events after each other in the given order."""
        held = self._layers[layer].filled
        return self._parted(held.index_select(0, self._index(events, held.device)))

    def gather_into(self, layer: int, events: np.ndarray, rows: Tensor) -> int:
        """:meth:`gather` into the last of ``rows`` (n, H_kv, D + D_v), which have room for them; how many they were."""
        held = self._layers[layer].filled
        index = self._index(events, held.device)
        n = index.shape[0]
        torch.index_select(held, 0, index, out=rows.narrow(0, rows.shape[0] - n, n))
        return n

    def tokens(self, layer: int) -> Tensor:
        """Keys and values (n, H_kv, D + D_v) of all events' tokens in one layer, contiguous."""
        return self._layers[layer].filled

    def _index(self, events: np.ndarray, device: torch.device) -> Tensor:
        lengths = self._lengths[events]
        index = (self._edges[1:][events] - lengths.cumsum()).repeat(lengths)
        index += np.arange(len(index))
        rows = torch.from_numpy(index)
        return rows if device.type == "cpu" else rows.to(device, non_blocking=True)

    def place(self, event: int) -> str:
        return "device"

    def nbytes(self) -> int:
        return sum(held.nbytes() for held in self._layers)

    def copy(self) -> EventPool:
        twin = EventPool()
        twin._layers, twin._width = [held.copy() for held in self._layers], self._width
        twin._edges, twin._lengths = self._edges, self._lengths
        return twin

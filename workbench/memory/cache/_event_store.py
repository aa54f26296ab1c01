"""Where EM-LLM's events live: keys and values of token blocks, on the device, in the computer's memory, or on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BadInput, MemoryError_
from workbench.storage import write_bytes

Blocks = tuple[tuple[Tensor, Tensor], ...]  # one (keys, values) a layer, each (H_kv, n, D), keys before rotation


@dataclass
class Stored:
    """One event. ``representatives``: for every layer the chosen places (H_kv, k) and their scores."""

    event: int
    start: int
    end: int
    token_ids: np.ndarray
    surprise: np.ndarray
    kind: str
    representatives: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    retrieved: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    last_used: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def length(self) -> int:
        return self.end - self.start


class EventStore:
    """Keys and values of events under a budget of those held on the device; the least recently used leave first.

    Args:
        most: events held on the device; None holds all.
        offload: ``cpu`` (the computer's memory) or ``disk`` (one safetensors file an event, written atomically).
        folder: where files go; None makes a temporary one that goes with this store.
    """

    def __init__(self, most: int | None, offload: str, folder: str | Path | None):
        self.most, self.offload = most, offload
        self._near: OrderedDict[int, Blocks] = OrderedDict()
        self._far: dict[int, Blocks | Path] = {}
        self._devices: tuple[torch.device, ...] = ()
        self._own = folder is None and offload == "disk"
        self.folder = Path(tempfile.mkdtemp(prefix="em-llm-")) if self._own else Path(folder or ".")
        if self._own:
            weakref.finalize(self, shutil.rmtree, str(self.folder), True)
        self.loads = 0

    def __len__(self) -> int:
        return len(self._near.keys() | self._far.keys())

    def add(self, event: int, parts: Blocks) -> list[int]:
        """Hold an event on the device; returns the events that were offloaded for it."""
        if not parts or parts[0][0].shape[1] == 0:
            raise BadInput(f"event {event} has no tokens; an event holds at least one")
        self._devices = tuple(keys.device for keys, _ in parts)
        self._near[event] = parts
        return self._shrink(keep=event)

    def get(self, event: int) -> Blocks:
        """Keys and values of an event on the device, fetched from where it was offloaded to."""
        if event in self._near:
            self._near.move_to_end(event)
            return self._near[event]
        if event not in self._far:
            raise MemoryError_(f"event {event} is not in this memory; it holds {len(self)} events")
        self._near[event] = self._fetched(event)
        self._far.pop(event) if self.offload == "cpu" else None
        self.loads += 1
        self._shrink(keep=event)
        return self._near[event]

    def place(self, event: int) -> str:
        return "device" if event in self._near else self.offload

    def _shrink(self, keep: int) -> list[int]:
        gone: list[int] = []
        while self.most is not None and len(self._near) > self.most:
            event = next(name for name in self._near if name != keep or len(self._near) == 1)
            parts = self._near[event]
            if event not in self._far:  # an event never changes: a file that exists is right
                self._far[event] = self._moved(event, parts)
            del self._near[event]
            gone.append(event)
        return gone

    def _moved(self, event: int, parts: Blocks) -> Blocks | Path:
        if self.offload == "cpu":
            return tuple((keys.cpu(), values.cpu()) for keys, values in parts)
        from safetensors.torch import save

        named = {f"{kind}.{i}": t.cpu().contiguous() for i, p in enumerate(parts) for kind, t in zip("kv", p)}
        return write_bytes(self.folder / f"event-{id(self):x}-{event}.safetensors", save(named))

    def _fetched(self, event: int) -> Blocks:
        far = self._far[event]
        if isinstance(far, Path):
            from safetensors.torch import load

            try:
                named = load(far.read_bytes())
            except OSError as error:
                raise MemoryError_(f"event {event} was offloaded to {far}, which cannot be read: {error}") from error
            far = tuple((named[f"k.{i}"], named[f"v.{i}"]) for i in range(len(named) // 2))
        return tuple((k.to(device), v.to(device)) for (k, v), device in zip(far, self._devices))

    def nbytes(self) -> int:
        """Bytes of all events, wherever they are (files by their size)."""
        held = [*self._near.values(), *(far for name, far in self._far.items() if name not in self._near)]
        files = sum(part.stat().st_size for part in held if isinstance(part, Path))
        return files + sum(
            tensor.untyped_storage().nbytes()
            for parts in held
            if not isinstance(parts, Path)
            for pair in parts
            for tensor in pair
        )

    def copy(self) -> EventStore:
        """A store with the same events; tensors are shared: an event never changes. Files stay with this one."""
        twin = EventStore(self.most, self.offload, self.folder)
        twin._near, twin._far, twin._devices = self._near.copy(), dict(self._far), self._devices
        twin._parent = self  # type: ignore[attr-defined]  # keeps a temporary folder alive
        return twin


def similar(scores: np.ndarray, lengths: np.ndarray, budget: int) -> list[int]:
    """Events in falling score until ``budget`` tokens are used; the one that crosses it stays if that is nearer."""
    if lengths.sum() <= budget:
        return list(np.argsort(-scores, kind="stable"))
    chosen: list[int] = []
    used = 0
    for index in np.argsort(-scores, kind="stable"):
        over = used + int(lengths[index]) - budget
        if over > 0:
            if over <= budget - used:
                chosen.append(int(index))
            break
        chosen.append(int(index))
        used += int(lengths[index])
    return chosen


def neighbours(chosen: Sequence[int], queue: Sequence[int], lengths: np.ndarray, budget: int, n: int) -> list[int]:
    """The contiguity buffer: b+1 then b-1 of every chosen event in score order, then what it held before.

    ``queue`` is the buffer of the pass before, newest first; the result is newest first and holds <= budget tokens.
    """
    taken, used, result = set(chosen), 0, []
    fresh = [index for b in chosen for index in (b + 1, b - 1) if 0 <= index < n]
    for index in [*fresh, *queue]:
        if index in taken:
            continue
        if used + int(lengths[index]) > budget:
            break
        taken.add(index)
        result.append(int(index))
        used += int(lengths[index])
    return result

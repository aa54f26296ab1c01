"""Where EM-LLM's events live: keys and values of token blocks, on the device, in the computer's memory, or on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BadInput, MemoryError_
from workbench.storage import write_bytes

Blocks = tuple[tuple[Tensor, Tensor], ...]  # one (keys, values) a layer, each (H_kv, n, D), keys before rotation


@dataclass(frozen=True)
class Stored:
    """One event. ``representatives``: for every layer the chosen places (H_kv, k) and their scores."""

    event: int
    start: int
    end: int
    token_ids: np.ndarray
    surprise: np.ndarray
    kind: str
    representatives: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @property
    def length(self) -> int:
        return self.end - self.start


class EventStore:
    """Keys and values of events under a budget of those held on the device; the least recently used leave first.

    Args:
        most: events held on the device.
        offload: ``cpu`` (the computer's memory) or ``disk`` (one safetensors file an event, written atomically).
        folder: where files go; None makes a temporary one that goes with this store.
    """

    def __init__(self, most: int, offload: str, folder: str | Path | None):
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

    def add(self, event: int, lengths: Sequence[int], parts: Blocks) -> list[list[int]]:
        """Hold the events ``event``, event + 1, ... on the device; returns, for each, the events offloaded for it.

        ``parts``: keys and values of each layer, the events' tokens after each other.
        """
        if not parts or not len(lengths) or min(lengths) < 1:
            raise BadInput(f"event {event} has no tokens; an event holds at least one")
        self._devices = tuple(keys.device for keys, _ in parts)
        gone, stops = [], np.cumsum(lengths).tolist()
        for index, (stop, length) in enumerate(zip(stops, lengths)):
            part = slice(stop - length, stop)  # memory of their own: an event leaves by itself
            self._near[event + index] = tuple((k[:, part].clone(), v[:, part].clone()) for k, v in parts)
            gone.append(self._shrink(keep=event + index))
        return gone

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

    def gather(self, layer: int, events: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values (H_kv, m, D) of one layer, the events after each other in the given order."""
        pairs = [self.get(event)[layer] for event in events.tolist()]
        return torch.cat([keys for keys, _ in pairs], 1), torch.cat([values for _, values in pairs], 1)

    def place(self, event: int) -> str:
        return "device" if event in self._near else self.offload

    def _shrink(self, keep: int) -> list[int]:
        gone: list[int] = []
        while len(self._near) > self.most:
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

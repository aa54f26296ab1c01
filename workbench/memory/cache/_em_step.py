"""The part of EM-LLM that reads one token at a time: it keeps a ``DecodeRoom`` and goes on in it while it can."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from workbench.memory.cache._em_decode import DecodeRoom, EpisodicLayer, decodes, next_surprise
from workbench.memory.cache._event_store import Stored
from workbench.memory.cache._retriever import Retriever
from workbench.memory.cache.base import TokenCache


class DecodesInRoom(TokenCache):
    """Base of EM-LLM. A pass of one token is laid out in a room where the model allows it; its formula is the same."""

    n_local: int
    n_init: int
    retrieval: str
    retriever: Retriever
    stored: list[Stored]
    passes: int
    decoding: DecodeRoom | None = None  # while a pass of one token is under way in it
    _roomy: DecodeRoom | None = None  # of the last such pass
    _mass: dict[int, Tensor]
    _windows: list[int | None]
    #: Devices that choose a layer's events by themselves: the host would make them wait.
    chooses_on: frozenset[str] = frozenset({"cuda"})

    @property
    def _fetches(self) -> bool:
        return bool(self.stored) and self.retrieval != "none"

    def _laid_out(self) -> bool:
        """Lay out the pass of one token; False where this memory cannot lie in a room."""
        if self._pass is not None and self.decoding is not None and not self._dirty():
            return True  # the same pass, asked for again
        self._roll_back()
        self._make_room(np.ones(1, dtype=np.int64))
        if self._roomy is None or not self._roomy.serves(self.layers, self._mass):
            self._roomy = None  # its memory may be needed for the next
            if not decodes(self.bound_rotary, self._windows, self.layers):
                return False
            most = self.retriever.longest if self._fetches else 0
            device = self._held_on()
            chooses = self.retriever if self._fetches and device in self.chooses_on else None
            sizes = {"reach": self.n_local, "most": most}
            self._roomy = DecodeRoom(self.layers, self._mass, self.bound_rotary, **sizes, fetches=chooses)
            self._mass = self._roomy.masses
        self.decoding = self._roomy
        self._pass = self.decoding.open()
        return True

    def _held_on(self) -> str:
        return next(layer.keys.device.type for layer in self.layers if layer.keys is not None)

    def _attend_in_room(self, room: DecodeRoom, layer: int, query: Tensor, how: dict[str, Any]) -> Tensor:
        far, m = room.far_query(query), 0
        if room.choice is not None:
            m = room.fetch(layer, far, room.choice, self.retriever)
            return room.attend(layer, far, room.near_scores(layer, query), m, **how)
        asked = self.retriever.ask(layer, far, self.passes) if self._fetches else None
        near = room.near_scores(layer, query)  # while the answer travels
        if asked is not None:
            m = room.place(layer, self.retriever.answer(layer, asked), self.retriever)
        return room.attend(layer, far, near, m, **how)

    def _commit_room(self) -> None:
        if self.decoding is not None:
            self.retriever.send(self.decoding.choice)
            self.decoding.commit(self.layers)
            self._mass, self.decoding = self.decoding.masses, None

    def _tell_read(self, passes: int) -> None:
        """Note in the log what the layers fetched in a pass."""
        if told := self.retriever.commit(passes):
            events = np.flatnonzero(np.bincount(np.concatenate(list(told.values()))))
            why = f"{len(events)} events retrieved by {len(told)} layers"
            fetched = {layer: chosen.tolist() for layer, chosen in told.items()}
            self.rows[0].log.append("read", self._starts(events), why, retrieved=fetched)

    def _starts(self, events: np.ndarray) -> list[int]:
        """First stream positions; events follow each other, the first begins behind the first tokens."""
        starts: list[int] = (self.n_init + self.retriever.edges[events]).tolist()
        return starts

    def room_of(self, layer: EpisodicLayer) -> DecodeRoom | None:
        """The room that a layer's tensors are views of."""
        return self._roomy if self._roomy is not None and self._roomy.holds(layer) else None

    def _raw(self, ids: np.ndarray, valid: np.ndarray, logits: Tensor | None) -> list[np.ndarray]:
        if valid.shape != (1, 1) or logits is None or self._last is None or self._last.tokens[0] < 0:
            raw = super()._raw(ids, valid, logits)
        else:
            target = int(self.targets(ids, self._last.tokens[:, None])[0, 0])
            raw, self._last = next_surprise(ids, target, logits, self._last)
        if self.retriever.arrive():  # the surprise had to be waited for: the choice, sent before it, is there as well
            self._tell_read(self.passes - 1)
        return raw

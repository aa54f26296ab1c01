"""``em-llm``: events cut at surprise, kept outside the window, fetched by every layer when they match (EM-LLM).

Fountas et al. 2024, arXiv 2407.09450. The model reads in chunks. Tokens further back than the local window are not
dropped: they are grouped into events. For every chunk each layer fetches the events whose representative keys match the
chunk's queries (similarity buffer) and the neighbours of those (contiguity buffer), and attends in one softmax to
[events | sinks | tokens that wait for their boundary | local window].
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import BadInput, MemoryError_
from workbench.memory.base import MEMORIES
from workbench.memory.cache import _events, _memory_attention
from workbench.memory.cache._em_checks import check
from workbench.memory.cache._em_decode import DecodeRoom, EpisodicLayer
from workbench.memory.cache._em_step import DecodesInRoom
from workbench.memory.cache._event_pool import EventPool
from workbench.memory.cache._event_store import EventStore, Stored
from workbench.memory.cache._events_frame import events_frame
from workbench.memory.cache._memory_attention import Held, Sight
from workbench.memory.cache._pass import Snapshot
from workbench.memory.cache._retriever import Retriever, Rule
from workbench.memory.cache._rotary import Tables
from workbench.memory.cache._rows import Choice, Row

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EpisodicMoment(Snapshot):
    """A moment of the base and what this memory adds to it."""

    own: dict[str, Any] | None = None


@MEMORIES.register("em-llm")
class EMLLM(DecodesInRoom):
    """Episodic memory of a rotary decoder; one stream (batch size 1).

    Args:
        n_local: local window (tokens) within which positions are true. n_mem: retrieved tokens a pass may attend to.
        n_init: first tokens, always attended to and never part of an event. chunk: most tokens of one pass.
        segmentation: ``surprise``; ``fixed`` blocks of ``max_block`` (InfLLM); ``random``: as many flags in a
            chunk, placed at random (spread wider, fewer are too near each other: more events than ``surprise``).
        gamma: boundary where the surprise is above mu + gamma sigma of the last ``tau`` surprises (0: ``n_local``).
        threshold: ``sliding`` (the paper's formula) or ``chunk`` (the released code: one threshold a chunk);
            official_offset: with it, flag the token *before* the surprising one, as that code does.
        refine: ``modularity``, ``conductance`` or ``none``; refine_from_layer: first layer whose keys count (-1: the
            paper's 20 of 32, in proportion). similarity: ``cos01`` or ``dot`` (released code).
        min_block, max_block: shortest and longest event. repr_topk: tokens whose keys, averaged, stand for an event.
        contiguity: share of ``n_mem`` for neighbours of retrieved events (the paper's +C: 0.3).
        retrieval: ``similarity``, ``random`` events, or ``none`` (sinks and window alone: StreamingLLM).
        max_cached: events on the device, the others are offloaded to ``offload`` (0: all stay); folder: of the files.
        seed: of random boundaries and random retrieval.
    """

    slug = "em-llm"
    needs_logits = True
    #: Retrieved events are no slots of the cache: a trace, whose keys are slots, cannot show them.
    traceable = False

    def __init__(
        self, n_local: int = 4096, n_mem: int = 2048, n_init: int = 128, chunk: int = 512, *,
        segmentation: str = "surprise", gamma: float = 1.0, tau: int = 0, threshold: str = "sliding",
        official_offset: bool = False, refine: str = "modularity", refine_from_layer: int = -1,
        similarity: str = "cos01", min_block: int = 8, max_block: int = 128, repr_topk: int = 4,
        contiguity: float = 0.0, retrieval: str = "similarity", max_cached: int = 0, offload: str = "cpu",
        folder: str = "", seed: int = 0,
    ):  # fmt: skip
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check(given)
        for name, value in given.items():
            setattr(self, name, value)
        super().__init__(None)

    # ------------------------------------------------------------------ state
    def _forget(self) -> None:
        super()._forget()
        archive = EventPool() if not self.max_cached else EventStore(self.max_cached, self.offload, self._folder)
        rule = Rule(self.n_mem, self.contiguity, self.retrieval, self.min_block, self.repr_topk, self.seed)
        self.retriever = Retriever(rule, archive, len(self.layers))
        self.stored: list[Stored] = []
        self.boundaries: list[tuple[int, int]] = []  # (place after refinement, place of the surprise)
        self.surprise = np.zeros(0)
        self.passes = 0
        self._cut = self.n_init
        self._mass: dict[int, Tensor] = {}
        self._pending: dict[int, Tensor] = {}
        self._laid: dict[Any, Any] = {}  # what layers of one pass share
        self._roomy: DecodeRoom | None = None  # laid out by the last token that was decoded
        self.decoding: DecodeRoom | None = None  # the same while such a pass is under way

    @property
    def _folder(self) -> Path | None:
        return Path(self.folder) if self.folder else None

    @property
    def archive(self) -> EventPool | EventStore:
        """Keys and values of the events."""
        return self.retriever.archive

    @property
    def last_retrieved(self) -> dict[int, tuple[list[int], list[int]]]:
        """Events that each layer fetched in the last pass: similarity buffer, contiguity buffer."""
        return {layer: (list(best), list(near)) for layer, (best, near) in self.retriever.last.items()}

    def bind(self, model: PreTrainedModel) -> EMLLM:
        """Attach to ``model``. Raises MemoryError_ without rotary positions, BadInput when ``refine_from_layer`` is not
        one of its layers."""
        if self._model is model:
            return self
        depth = model.config.get_text_config().num_hidden_layers
        if self.refine_from_layer >= depth:
            raise BadInput(f"refine_from_layer={self.refine_from_layer} but {type(model).__name__} has {depth} layers")
        super().bind(model)
        self.layers = [EpisodicLayer(weakref.ref(self), index) for index in range(len(self.layers))]
        self._handles += _memory_attention.install(self, model)
        self._windows = _windows(model, len(self.layers))
        return self

    def room(self) -> int:
        return self.chunk

    @property
    def first_refining_layer(self) -> int:
        return self.refine_from_layer if self.refine_from_layer >= 0 else len(self.layers) * 5 // 8

    # ------------------------------------------------------------------ a pass
    def before_forward(self, n_new: int, valid: np.ndarray | None = None) -> None:
        if valid is not None and (len(valid) != 1 or not valid.all()):
            raise MemoryError_(
                f"em-llm reads one stream without padding; got {len(valid)} rows. Give one text a memory"
            )
        if n_new > 1 or not self.fed or self._room is not None or not self._laid_out():
            self.decoding = self._roomy = None
            super().before_forward(n_new, valid)
        if not self._dirty():
            self._forget_pass()

    def _forget_pass(self) -> None:
        self._pending, self._laid = {}, {}
        self.retriever.forget_pass()

    def _make_room(self, counts: np.ndarray) -> None:
        """Tokens further back than ``n_local`` leave as finished events."""
        for row in self.rows:
            if found := self._finished(row):
                self._form(row, found)
                self._drop(row, found[-1][1])

    def _finished(self, row: Row) -> list[tuple[int, int, str]]:
        places = (place for place, _ in reversed(self.boundaries))
        flags = list(takewhile(lambda place: place > self._cut, places))  # they rise: the newest are enough
        sizes = {"min_block": self.min_block, "max_block": self.max_block}
        return _events.blocks(self._cut, row.seen - self.n_local, flags, **sizes)

    def _column(self, position: int) -> int:
        return self.n_init + position - self._cut

    def _form(self, row: Row, found: list[tuple[int, int, str]]) -> None:
        """Store events that follow each other; the first begins where the last one ended."""
        part = slice(self._column(found[0][0]), self._column(found[-1][1]))
        parts = tuple(tuple(tensor[0, :, part] for tensor in _tensors(held)) for held in self.layers)
        masses = [self._mass[layer][:, part] for layer in range(len(self.layers))]
        gone, best = self.retriever.add([end - start for start, end, _ in found], parts, masses)
        for (start, end, why), offloaded, representatives in zip(found, gone, best):
            items, index = row.items[self._column(start) : self._column(end)], len(self.stored)
            kind = self._kind(end if why == "boundary" else -1)
            known = (items["token_id"].copy(), items["raw"].copy())
            self.stored.append(Stored(index, start, end, *known, kind, representatives))
            places = range(start, end)
            more = {"into": tuple(places), "event": index, "offloaded": offloaded}
            row.log.append("merge", places, f"event {index}: {kind}", **more)

    def _kind(self, end: int) -> str:
        if end < 0:
            return "max-cut"
        moved = dict(self.boundaries).get(end, end) != end
        return "refined" if moved else self.segmentation

    def _drop(self, row: Row, end: int) -> None:
        sinks = min(self.n_init, len(row))
        stay = np.concatenate([np.arange(sinks), np.arange(self._column(end), len(row))])
        dropped = np.delete(np.arange(len(row)), stay)
        row.items = np.delete(row.items, dropped)
        row.items["reason"] = np.where(row.items["position"] < self.n_init, "sink", "recent")
        columns = torch.from_numpy(stay)
        self._mass = {layer: mass[:, columns.to(mass.device)] for layer, mass in self._mass.items()}
        self._compact()
        self._cut = end

    def select(self, row: Row, n_new: int) -> Choice:
        raise MemoryError_("em-llm drops nothing; tokens leave the window as events")

    # ------------------------------------------------------------------ attention with memory
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Output (1, H, q, D) of one layer for the chunk's queries; the attention socket calls it."""
        how: dict[str, Any] = {"softcap": options.get("softcap"), "sinks": options.get("s_aux")}
        how["scaling"] = options.get("scaling") or query.shape[-1] ** -0.5
        if self.decoding is not None:
            return self._attend_in_room(self.decoding, layer, query, how)
        window, raw = self._windows[layer], self.layers[layer].keys
        assert raw is not None
        reach = min(self.n_local, window or self.n_local)
        far = self._far_query(layer, query, reach)[0]
        assert self.current_pass.width + query.shape[2] == key.shape[2]
        out, self._pending[layer] = _memory_attention.attend(
            query[0], far, Held(key[0], raw[0], value[0]), self._retrieved(layer, far),
            self._sight(query.shape[2], key.shape[2], reach, window, key.device), **how,
        )  # fmt: skip
        return out[None]

    def _sight(self, n_q: int, n: int, reach: int, window: int | None, device: torch.device) -> Sight:
        key = ("sight", window, device)
        if key not in self._laid:
            sinks = self.n_init if self.stored and all(self._windows) else 0
            self._laid[key] = Sight.of(n_q, n, reach=reach, window=window, sinks=sinks, device=device)
        return self._laid[key]

    def _far_query(self, layer: int, query: Tensor, reach: int) -> Tensor:
        rotary, now = self.bound_rotary, self.current_pass
        return rotary.rotate(layer, rotary.turned_back(layer, query, now.back), self._far_tables(reach, query))

    def _far_tables(self, reach: int, query: Tensor) -> Tables:
        key = (reach, query.device)
        if key not in self._laid:
            place = torch.full((1, 1), reach - 1, device=query.device)
            like = torch.empty((), dtype=query.dtype, device=query.device)
            self._laid[key] = self.bound_rotary.tables(place, like)
        return self._laid[key]

    def reads_events(self, layer: int) -> bool:
        """A layer with a sliding window of its own never looked further, unless every layer has one."""
        return self._windows[layer] is None or all(self._windows)

    def _retrieved(self, layer: int, far_query: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self._fetches or not self.reads_events(layer):
            return None
        return self.retriever.fetch(layer, far_query, _tensors(self.layers[layer])[0].shape[1], self.passes)

    # ------------------------------------------------------------------ after a pass
    def after_forward(self, input_ids: Tensor | None, logits: Tensor | None) -> None:
        fresh = self._pass is not None and self._dirty()
        if fresh:
            self._commit()
        super().after_forward(input_ids, logits)

    def _commit(self) -> None:
        self._commit_room()
        for layer, mass in self._pending.items():
            old = self._mass.get(layer)
            if old is not None:
                mass[:, : old.shape[1]] += old
            self._mass[layer] = mass
        self._tell_read(self.passes)
        self.passes += 1
        self._forget_pass()

    def on_written(self, row: Row, n_new: int) -> None:
        """Find the boundaries among the new tokens, and move each left within its event when that is better."""
        fresh = row.items["raw"][-n_new:]
        for at in row.seen - n_new + np.flatnonzero(self._flags(fresh, row.seen - n_new)):
            last, found = self.boundaries[-1] if self.boundaries else (0, 0)
            if self.segmentation != "fixed" and at - found < self.min_block:
                continue  # by where the surprise was: refinement must not change how many there are
            self.boundaries.append((self._refined(row, last, int(at)), int(at)))
        self.surprise = np.concatenate([self.surprise, fresh])

    def _flags(self, fresh: np.ndarray, start: int) -> np.ndarray:
        if self.segmentation == "fixed":
            return (np.arange(start, start + len(fresh)) - self.n_init) % self.max_block == 0
        tau, before = self.tau or self.n_local, self.surprise
        if self.threshold == "sliding":
            flags = _events.surprise_flags(fresh, before[-tau:], gamma=self.gamma, tau=tau)
        else:
            flags = _events.chunk_flags(fresh, before, gamma=self.gamma, tau=tau, offset=self.official_offset)
        if self.segmentation == "random":
            flags = np.random.default_rng((self.seed, start)).permutation(flags)
        return flags

    def _refined(self, row: Row, last: int, at: int) -> int:
        if self.refine == "none":
            return at
        alpha = max(last, self._cut)
        low = max(alpha - (at - alpha) // 2, self._cut)
        high = min(at + (at - alpha) // 2 + 1, row.seen)
        if at <= alpha + self.min_block:
            return at
        matrix = self.adjacency(low, high)
        return low + _events.refined(matrix, alpha - low, at - low, metric=self.refine, min_block=self.min_block)

    def adjacency(self, start: int, end: int) -> np.ndarray:
        """Similarity (n, n) of the tokens at stream positions [start, end), over the layers that refine. They may be
        held or stored, sinks excepted."""
        if not self.rows or not self.n_init <= start < end <= self.rows[0].seen:
            raise BadInput(f"[{start}, {end}) is not a stretch of the stream behind its {self.n_init} first tokens")
        layers = range(self.first_refining_layer, len(self.layers))
        keys = [self._keys(layer, start, end).float().cpu().numpy() for layer in layers]
        matrix = _events.adjacency(keys, self.similarity)
        if self.similarity == "dot" and matrix.sum() <= 0:
            warnings.warn("the keys' dot products sum to nothing positive; cos01 is used here", stacklevel=2)
            return _events.adjacency(keys, "cos01")
        return matrix

    def _keys(self, layer: int, start: int, end: int) -> Tensor:
        held = _tensors(self.layers[layer])[0][0]
        parts = [
            self.archive.get(event.event)[layer][0][:, max(start - event.start, 0) : end - event.start]
            for event in self.stored
            if event.start < end and event.end > start
        ]
        if end > self._cut:
            parts.append(held[:, self._column(max(start, self._cut)) : self._column(end)])
        return torch.cat(parts, dim=1)

    # ------------------------------------------------------------------ the memory protocol
    def nbytes(self) -> int:
        """Bytes of all keys and values: held, on the device, offloaded."""
        return super().nbytes() + self.archive.nbytes()

    def contents(self, row: int | None = None) -> pd.DataFrame:
        """One line an event and layer: event, layer, start, end, length, token_ids, peak_surprise (nats), kind,
        representatives (stream positions), their scores, last_score, buffer, retrieved, last_used, place."""
        return events_frame(self.stored, self.retriever)

    def held(self) -> pd.DataFrame:
        """The tokens outside events (sinks, waiting ones, local window), as other token caches list them."""
        return super().contents()

    def snapshot(self) -> EpisodicMoment:
        base = super().snapshot()
        own = {name: _copied(getattr(self, name)) for name in _OWN}
        return EpisodicMoment(**{name: getattr(base, name) for name in base.__dataclass_fields__}, own=own)

    def restore(self, moment: Snapshot) -> None:
        if not isinstance(moment, EpisodicMoment) or moment.own is None:
            raise MemoryError_("this snapshot is of another kind of memory")
        super().restore(moment)
        for name, value in moment.own.items():
            setattr(self, name, _copied(value))
        self._forget_pass()

    def batch_select_indices(self, indices: Tensor) -> None:
        if torch.as_tensor(indices).tolist() not in ([0], [True]):
            raise MemoryError_("em-llm holds one stream; beams and several returned sequences need one memory each")


_OWN = ("retriever", "stored", "boundaries", "surprise", "passes", "_cut", "_mass")


def _copied(value: Any) -> Any:
    """A copy for a moment; tensors are shared unless a pass adds to them (the mass of the held tokens)."""
    if isinstance(value, Retriever):
        return value.copy()
    if isinstance(value, dict):
        return {key: tensor.clone() for key, tensor in value.items()}
    return list(value) if isinstance(value, list) else value


def _tensors(layer: Any) -> tuple[Tensor, Tensor]:
    if layer.keys is None or layer.values is None:
        raise MemoryError_("this memory is empty: there is nothing to read")
    return layer.keys, layer.values


def _windows(model: PreTrainedModel, n: int) -> list[int | None]:
    """The sliding window of every layer, None where there is none."""
    config = model.config.get_text_config()
    size, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not size or getattr(config, "use_sliding_window", True) is False:
        return [None] * n
    return [size if types is None or types[layer] == "sliding_attention" else None for layer in range(n)]

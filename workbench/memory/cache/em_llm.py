"""``em-llm``: events cut at surprise, kept outside the window, fetched by every layer when they match (EM-LLM).

Fountas et al. 2024, arXiv 2407.09450. The model reads in chunks. Tokens further back than the local window are not
dropped: they are grouped into events. For every chunk each layer fetches the events whose representative keys match the
chunk's queries (similarity buffer) and the neighbours of those (contiguity buffer), and attends in one softmax to
[events | sinks | tokens that wait for their boundary | local window].
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
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
from workbench.memory.cache._event_store import EventStore, Stored, neighbours, similar
from workbench.memory.cache._events_frame import events_frame
from workbench.memory.cache._pass import Snapshot
from workbench.memory.cache._rows import Choice, Row
from workbench.memory.cache.base import TokenCache

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EpisodicMoment(Snapshot):
    """A moment of the base and what this memory adds to it."""

    own: dict[str, Any] | None = None


@MEMORIES.register("em-llm")
class EMLLM(TokenCache):
    """Episodic memory of a rotary decoder; one stream (batch size 1).

    Args:
        n_local: local window (tokens) within which positions are true. n_mem: retrieved tokens a pass may attend to.
        n_init: first tokens, always attended to and never part of an event. chunk: most tokens of one pass.
        segmentation: ``surprise``; ``fixed`` blocks of ``max_block`` (InfLLM); ``random``: as many, placed at random.
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
        self.archive = EventStore(self.max_cached or None, self.offload, Path(self.folder) if self.folder else None)
        self.stored: list[Stored] = []
        self.boundaries: list[tuple[int, int]] = []  # (place after refinement, place of the surprise)
        self.surprise = np.zeros(0)
        self._lengths = np.zeros(0, dtype=np.int64)
        self.passes = 0
        self.last_retrieved: dict[int, tuple[list[int], list[int]]] = {}  # layer -> similarity, contiguity
        self.last_scores: dict[int, np.ndarray] = {}
        self._cut = self.n_init
        self._queue: dict[int, list[int]] = {}
        self._mass: dict[int, Tensor] = {}
        self._pending: dict[int, Tensor] = {}
        self._found: dict[int, tuple[list[int], list[int], np.ndarray]] = {}
        self._reps: dict[int, list[Tensor]] = {}
        self._reps_joined: dict[int, Tensor] = {}
        self._joined: dict[int, tuple[tuple[int, ...], tuple[Tensor, Tensor]]] = {}

    def bind(self, model: PreTrainedModel) -> EMLLM:
        """Attach to ``model``. Raises MemoryError_ without rotary positions, BadInput when ``refine_from_layer`` is not
        one of its layers."""
        if self._model is model:
            return self
        depth = model.config.get_text_config().num_hidden_layers
        if self.refine_from_layer >= depth:
            raise BadInput(f"refine_from_layer={self.refine_from_layer} but {type(model).__name__} has {depth} layers")
        super().bind(model)
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
        super().before_forward(n_new, valid)
        if not self._dirty():
            self._pending, self._found = {}, {}

    def _make_room(self, counts: np.ndarray) -> None:
        """Tokens further back than ``n_local`` leave as finished events."""
        for row in self.rows:
            found = self._finished(row)
            for start, end, why in found:
                self._form(row, start, end, why)
            if found:
                self._drop(row, found[-1][1])

    def _finished(self, row: Row) -> list[tuple[int, int, str]]:
        flags = [place for place, _ in self.boundaries if place > self._cut]
        sizes = {"min_block": self.min_block, "max_block": self.max_block}
        return _events.blocks(self._cut, row.seen - self.n_local, flags, **sizes)

    def _column(self, position: int) -> int:
        return self.n_init + position - self._cut

    def _form(self, row: Row, start: int, end: int, why: str) -> None:
        part, index = slice(self._column(start), self._column(end)), len(self.stored)
        items, n_layers = row.items[part], len(self.layers)
        kind = self._kind(end if why == "boundary" else -1)
        event = Stored(
            index, start, end, items["token_id"].copy(), items["raw"].copy(), kind,
            retrieved=np.zeros(n_layers, np.int64), last_used=np.full(n_layers, -1),
        )  # fmt: skip
        parts = []
        for layer, held in enumerate(self.layers):
            keys, values = (tensor[0, :, part].clone() for tensor in _tensors(held))
            parts.append((keys, values))
            event.representatives.append(self._represent(layer, keys, self._mass[layer][:, part]))
        self.stored.append(event)
        gone = self.archive.add(index, tuple(parts))
        places = range(start, end)
        row.log.append("merge", places, f"event {index}: {kind}", into=tuple(places), event=index, offloaded=gone)

    def _kind(self, end: int) -> str:
        if end < 0:
            return "max-cut"
        moved = dict(self.boundaries).get(end, end) != end
        return "refined" if moved else self.segmentation

    def _represent(self, layer: int, keys: Tensor, mass: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Average the keys of the ``repr_topk`` tokens that drew most attention, for each key head."""
        drawn = mass.reshape(keys.shape[0], -1, mass.shape[-1]).sum(1)  # h_kv n
        top = drawn.topk(min(self.repr_topk, keys.shape[1]), dim=-1)
        chosen = torch.gather(keys, 1, top.indices[..., None].expand(-1, -1, keys.shape[-1]))
        self._reps.setdefault(layer, []).append(chosen.mean(1).flatten())
        self._reps_joined.pop(layer, None)
        return top.indices.cpu().numpy(), top.values.float().cpu().numpy()

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
        now, window, raw = self.current_pass, self._windows[layer], self.layers[layer].keys
        assert raw is not None
        reach = min(self.n_local, window or self.n_local)
        far = self._far_query(layer, query, reach)
        n, n_q = key.shape[2], query.shape[2]
        behind = torch.arange(n - n_q, n, device=key.device)[:, None] - torch.arange(n, device=key.device)
        visible = behind >= 0
        if window is not None:
            sink = torch.arange(n, device=key.device) < (self.n_init if self.stored and all(self._windows) else 0)
            visible &= (behind < window) | sink
        out, mass = _memory_attention.attend(
            query[0], far[0], _memory_attention.Held(key[0], raw[0], value[0]), self._retrieved(layer, far[0]),
            reach=reach, visible=visible, scaling=options.get("scaling") or query.shape[-1] ** -0.5,
            softcap=options.get("softcap"), sinks=options.get("s_aux"),
        )  # fmt: skip
        self._pending[layer] = mass
        assert now.width + n_q == n
        return out[None]

    def _far_query(self, layer: int, query: Tensor, reach: int) -> Tensor:
        rotary = self.bound_rotary
        place = torch.full((1, 1), reach - 1, device=query.device)
        tables = rotary.tables(place, torch.empty((), dtype=query.dtype, device=query.device))
        return rotary.rotate(layer, rotary.unrotate(layer, query, self.current_pass.new), tables)

    def reads_events(self, layer: int) -> bool:
        """A layer with a sliding window of its own never looked further, unless every layer has one."""
        return self._windows[layer] is None or all(self._windows)

    def _retrieved(self, layer: int, far_query: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.stored or self.retrieval == "none" or not self.reads_events(layer):
            return None
        scores = self.scores_of(layer, far_query)
        best, near = self._choose(layer, scores)
        self._found[layer] = (best, near, scores)
        events = tuple(sorted([*best, *near]))
        if self._joined.get(layer, ((), None))[0] != events:
            pairs = [self.archive.get(event)[layer] for event in events]
            joined = torch.cat([k for k, _ in pairs], 1), torch.cat([v for _, v in pairs], 1)
            self._joined[layer] = (events, joined)
        return self._joined[layer][1]

    def scores_of(self, layer: int, far_query: Tensor) -> np.ndarray:
        """Match (n_events,) of every event: mean query, heads concatenated, times its representative key."""
        if layer not in self._reps_joined:
            self._reps_joined[layer] = torch.stack(self._reps[layer])
        heads = _memory_attention.grouped(far_query.mean(1), _tensors(self.layers[layer])[0].shape[1]).sum(1)
        return (self._reps_joined[layer] @ heads.flatten().to(self._reps_joined[layer].dtype)).float().cpu().numpy()

    def _choose(self, layer: int, scores: np.ndarray) -> tuple[list[int], list[int]]:
        if len(self._lengths) != len(self.stored):
            self._lengths = np.array([event.length for event in self.stored])
        lengths = self._lengths
        if self.retrieval == "random":
            scores = np.random.default_rng((self.seed, self.passes, layer)).random(len(scores))
        share = int(self.contiguity * self.n_mem)
        if lengths.sum() <= self.n_mem:
            return similar(scores, lengths, self.n_mem), []
        best = similar(scores, lengths, self.n_mem - share)
        return best, neighbours(best, self._queue.get(layer, []), lengths, share, len(lengths)) if share else []

    # ------------------------------------------------------------------ after a pass
    def after_forward(self, input_ids: Tensor | None, logits: Tensor | None) -> None:
        fresh = self._pass is not None and self._dirty()
        if fresh:
            self._commit()
        super().after_forward(input_ids, logits)

    def _commit(self) -> None:
        for layer, mass in self._pending.items():
            old = self._mass.get(layer)
            if old is not None:
                mass[:, : old.shape[1]] += old
            self._mass[layer] = mass
        told: dict[int, list[int]] = {}
        for layer, (best, near, scores) in self._found.items():
            self._note(layer, best, near)
            if (best, near) != self.last_retrieved.get(layer):
                told[layer] = sorted([*best, *near])
            self.last_retrieved[layer], self.last_scores[layer], self._queue[layer] = (best, near), scores, near
        if told:
            events = sorted({event for chosen in told.values() for event in chosen})
            why = f"{len(events)} events retrieved by {len(told)} layers"
            self.rows[0].log.append("read", [self.stored[e].start for e in events], why, retrieved=told)
        self.passes += 1
        self._pending, self._found = {}, {}

    def _note(self, layer: int, best: list[int], near: list[int]) -> None:
        for index in (*best, *near):
            self.stored[index].last_used[layer] = self.passes
            self.stored[index].retrieved[layer] += 1

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
        if not self.n_init <= start < end <= self.rows[0].seen:
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
        return events_frame(self.stored, self.archive, self.last_scores, self.last_retrieved)

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
        self._pending, self._found = {}, {}

    def batch_select_indices(self, indices: Tensor) -> None:
        if torch.as_tensor(indices).tolist() not in ([0], [True]):
            raise MemoryError_("em-llm holds one stream; beams and several returned sequences need one memory each")


_OWN = (
    "archive", "stored", "boundaries", "surprise", "passes", "last_retrieved", "last_scores", "_cut", "_queue", "_mass",
    "_reps", "_reps_joined", "_joined",
)  # fmt: skip


def _copied(value: Any) -> Any:
    if isinstance(value, EventStore):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, Stored):
        counted = {n: getattr(value, n).copy() for n in ("retrieved", "last_used")}
        return replace(value, **counted)
    return value.clone() if isinstance(value, Tensor) else value


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

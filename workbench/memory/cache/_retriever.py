"""Which events every layer of EM-LLM fetches for a pass, and what is remembered of it.

Representative keys of all events of a layer lie in one tensor: a score is one product, the best are one top-k. What was
fetched is noted when the pass has ended, so a pass that dies leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from workbench.memory.cache._event_choice import filled, neighbours
from workbench.memory.cache._event_choice_device import Budgets, DeviceChoice, unpacked
from workbench.memory.cache._event_pool import EventPool, Growing
from workbench.memory.cache._event_store import Blocks, EventStore
from workbench.memory.cache._memory_attention import grouped

Chosen = tuple[list[int], list[int]]  # similarity buffer, contiguity buffer
Asked = tuple[np.ndarray | Tensor, Callable[[], list[int]]]  # scores of all events, their order when it is there


class Courier:
    """Brings small tensors to the host without making it wait before it asks for them."""

    def __init__(self) -> None:
        self._page: Tensor | None = None

    def send(self, numbers: Tensor) -> Callable[[], np.ndarray]:
        """Send a tensor off; the call returned waits for it. It must be asked for before the next is sent."""
        if numbers.device.type != "cuda":
            return numbers.numpy
        n = numbers.numel()
        if self._page is None or len(self._page) < n or self._page.dtype != numbers.dtype:
            self._page = torch.empty(2 * n, dtype=numbers.dtype, pin_memory=True)
        page, there = self._page[:n].view(numbers.shape), torch.cuda.Event()
        page.copy_(numbers, non_blocking=True)
        there.record(torch.cuda.current_stream(numbers.device))

        def wait() -> np.ndarray:
            there.synchronize()
            return page.numpy().copy()  # type: ignore[no-any-return]

        return wait


@dataclass(frozen=True)
class Rule:
    """How many tokens may be fetched and how they are found; the memory's hyper-parameters of the same names."""

    n_mem: int
    contiguity: float
    retrieval: str
    min_block: int
    repr_topk: int
    seed: int

    @property
    def share(self) -> int:
        """Tokens of the contiguity buffer."""
        return int(self.contiguity * self.n_mem)

    @property
    def most(self) -> int:
        """Events, the one that crosses the budget among them, that may be in the similarity buffer; one to spare."""
        return self.n_mem // self.min_block + 2


class Retriever:
    """Events of one stream: their keys and values (``archive``), what stands for them, and who fetched them when.

    ``last`` and ``scores``: of the last pass in which a layer fetched, by layer. ``retrieved`` and ``last_used``
    (layers, events): how often and in which pass.
    """

    def __init__(self, rule: Rule, archive: EventPool | EventStore, n_layers: int):
        self.rule, self.archive = rule, archive
        self.lengths: list[int] = []
        # event e has the tokens [edges[e], edges[e + 1]) behind the first ones
        self.edges = np.zeros(1, dtype=np.int64)
        self.retrieved = np.zeros((n_layers, 0), dtype=np.int64)
        self.last_used = np.zeros((n_layers, 0), dtype=np.int64)
        self.last: dict[int, Chosen] = {}
        self.scores: dict[int, np.ndarray | Tensor] = {}
        self._stand_ins = [Growing() for _ in range(n_layers)]
        self._joined: dict[int, tuple[np.ndarray, tuple[Tensor, Tensor]]] = {}
        self._found: dict[int, tuple[Chosen, np.ndarray | Tensor, np.ndarray]] = {}
        self._asked: dict[int, Tensor] = {}  # scores of layers whose events a device chose
        self._courier = Courier()
        self._travelling: Callable[[], None] | None = None  # what a device chose, on its way to the host

    def __len__(self) -> int:
        return len(self.lengths)

    # ------------------------------------------------------------------ what is stored
    def add(
        self, lengths: Sequence[int], parts: Blocks, masses: Sequence[Tensor]
    ) -> tuple[list[list[int]], list[tuple[tuple[np.ndarray, np.ndarray], ...]]]:
        """Store events whose tokens follow each other in ``parts``, keys and values (H_kv, n, D) of each layer.

        ``masses``: attention (H, n) that the tokens drew, of each layer. Returns, for each event, the events that were
        offloaded for it, and for every layer the places (H_kv, k) of its representative tokens with their scores.
        """
        layers = []
        for stand_in, (keys, _), mass in zip(self._stand_ins, parts, masses):
            mean, places, scores = representatives(keys, mass, lengths, self.rule.repr_topk)
            stand_in.append(mean)
            layers.append((places.cpu().numpy(), scores.float().cpu().numpy()))
        gone = self.archive.add(len(self), lengths, parts)
        more = ((0, 0), (0, len(lengths)))
        self.retrieved, self.last_used = np.pad(self.retrieved, more), np.pad(self.last_used, more, constant_values=-1)
        self.lengths.extend(map(int, lengths))
        self.edges = np.concatenate([self.edges, self.edges[-1] + np.cumsum(lengths)])
        sizes = [min(self.rule.repr_topk, length) for length in lengths]
        return gone, [tuple((p[e, :, :k], s[e, :, :k]) for p, s in layers) for e, k in enumerate(sizes)]

    # ------------------------------------------------------------------ a pass
    def fetch(self, layer: int, far_query: Tensor, n_kv: int, passes: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values (H_kv, m, D) of the events that match queries (H, q, D), in the order of the stream; None
        where the budget holds no event."""
        mean = far_query[:, 0] if far_query.shape[1] == 1 else far_query.mean(1)
        events = self.answer(layer, self.ask(layer, grouped(mean, n_kv), passes))
        return self._gathered(layer, events) if len(events) else None

    def _gathered(self, layer: int, events: np.ndarray) -> tuple[Tensor, Tensor]:
        if layer not in self._joined or not np.array_equal(self._joined[layer][0], events):
            self._joined[layer] = (events, self.archive.gather(layer, events))
        return self._joined[layer][1]

    def place(self, layer: int, events: np.ndarray, rows: Tensor) -> int:
        """Keys and values of events into the last of ``rows`` (n, H_kv, D + D_v); returns how many tokens they have."""
        if isinstance(self.archive, EventPool):
            self._joined.pop(layer, None)
            return self.archive.gather_into(layer, events, rows)
        if not len(events):
            return 0
        # from here and there: what was put together is kept, so that no event counts as used again for it
        both = torch.cat(self._gathered(layer, events), dim=-1).transpose(0, 1)
        rows[len(rows) - len(both) :] = both
        return len(both)

    def ask(self, layer: int, query: Tensor, passes: int) -> Asked:
        """Score all events for a mean query (H_kv, G, D). The answer travels while the caller goes on working."""
        if self.rule.retrieval == "random":
            drawn = np.random.default_rng((self.rule.seed, passes, layer)).random(len(self))
            return drawn, lambda: np.argsort(-drawn, kind="stable").tolist()
        scores = self.score(layer, query)
        wait = self._courier.send(scores.topk(min(len(self), self.rule.most)).indices)
        return scores, lambda: wait().tolist()

    # ------------------------------------------------------------------ a pass of one token, chosen for by a device
    def device_choice(self, room: int, device: torch.device) -> DeviceChoice | None:
        """What chooses for this pass's layers without the host, as long as no event is added; None where the host has
        to look: at random draws, at events that are offloaded."""
        if self.rule.retrieval != "similarity" or not isinstance(self.archive, EventPool):
            return None
        share = 0 if self._everything_fits else self.rule.share
        budgets = Budgets.of(self.rule.n_mem, self.rule.share, self.rule.min_block)
        budgets = replace(budgets, similar=self.rule.n_mem - share, near=share)
        shape = {"layers": len(self._stand_ins), "most": self.longest, "room": room, "device": device}
        return DeviceChoice(self.edges, self.last, budgets, **shape)

    def fetch_into(self, layer: int, query: Tensor, choice: DeviceChoice, rows: Tensor) -> None:
        """Keys and values of the events that match a mean query (H_kv, G, D) into ``rows`` (most, H_kv, D + D_v); the
        host waits for nothing. ``choice.bias`` hides those that no event fills."""
        assert isinstance(self.archive, EventPool)
        scores = self.score(layer, query)
        choice.fetch(layer, scores.topk(min(len(self), self.rule.most)).indices, self.archive.tokens(layer), rows)
        self._asked[layer] = scores

    def send(self, choice: DeviceChoice | None) -> bool:
        """The pass has ended: send what the device chose to the host. False where it chose nothing."""
        if choice is None or not self._asked:
            return False
        self.arrive()
        wait, asked, k = self._courier.send(choice.record), self._asked, choice.budgets.k
        choice.end()
        self._asked = {}

        def note() -> None:
            records = wait()
            ordered = np.sort(records[:, 2:], axis=1).astype(np.int64)  # -1 where a buffer had room
            for layer, scores in asked.items():
                chosen = unpacked(records[layer], k)
                free = ordered.shape[1] - len(chosen[0]) - len(chosen[1])
                self._found[layer] = chosen, scores, ordered[layer, free:]

        self._travelling = note
        return True

    def arrive(self) -> bool:
        """Wait for what was sent, if anything was; it is noted by the next ``commit``."""
        note, self._travelling = self._travelling, None
        if note is not None:
            note()
        return note is not None

    # ------------------------------------------------------------------ a pass, chosen for by the host
    def answer(self, layer: int, asked: Asked) -> np.ndarray:
        """The events that a layer fetches, in the order of the stream."""
        scores, order = asked
        chosen = self._choose(layer, order())
        events = np.array([*chosen[0], *chosen[1]], dtype=np.int64)
        events.sort()
        self._found[layer] = (chosen, scores, events)
        return events

    @property
    def longest(self) -> int:
        """Most tokens that one pass can fetch: the event that crosses the budget does so by half of it at most."""
        return self.rule.n_mem + max(self.lengths, default=0) // 2

    def score(self, layer: int, query: Tensor) -> Tensor:
        """Match (n_events,) of every event: mean query, heads concatenated, times its representative key."""
        stand_ins = self._stand_ins[layer].filled
        return torch.mv(stand_ins, query.sum(1).view(-1))

    def _choose(self, layer: int, order: list[int]) -> Chosen:
        share, n_mem = self.rule.share, self.rule.n_mem
        if not share or self._everything_fits:
            return filled(order, self.lengths, n_mem), []
        best, before = filled(order, self.lengths, n_mem - share), self.last.get(layer, ([], []))[1]
        return best, neighbours(best, before, self.lengths, share)

    @property
    def _everything_fits(self) -> bool:
        # every event has at least min_block tokens, so most of the time their number is answer enough
        return len(self) * self.rule.min_block <= self.rule.n_mem and int(self.edges[-1]) <= self.rule.n_mem

    def forget_pass(self) -> None:
        self._found, self._asked = {}, {}

    def commit(self, passes: int) -> dict[int, np.ndarray]:
        """Note what was fetched; returns it for the layers that fetched something else than before."""
        told: dict[int, np.ndarray] = {}
        if self._found:
            where = np.concatenate([events + layer * len(self) for layer, (_, _, events) in self._found.items()])
            self.retrieved.put(where, self.retrieved.take(where) + 1)
            self.last_used.put(where, passes)
        for layer, (chosen, scores, events) in self._found.items():
            if self.last.get(layer) != chosen:
                told[layer] = events
            self.last[layer], self.scores[layer] = chosen, scores
        self._found = {}
        return told

    def copy(self) -> Retriever:
        twin = Retriever(self.rule, self.archive.copy(), len(self._stand_ins))
        twin.lengths, twin.edges = list(self.lengths), self.edges
        twin.retrieved, twin.last_used = self.retrieved.copy(), self.last_used.copy()
        twin.last, twin.scores, twin._joined = dict(self.last), dict(self.scores), dict(self._joined)
        twin._stand_ins = [stand_in.copy() for stand_in in self._stand_ins]
        return twin


def representatives(keys: Tensor, mass: Tensor, lengths: Sequence[int], top: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each event and key head, the mean key of the ``top`` tokens that drew most attention.

    Args:
        keys: (H_kv, n, D) of events that follow each other, of ``lengths`` tokens. mass: (H, n) attention drawn.

    Returns mean keys (E, H_kv * D), places within the event (E, H_kv, k) and what they drew; where an event is shorter
    than k, the places behind its length mean nothing.
    """
    n_kv, longest = keys.shape[0], max(lengths)
    sizes = torch.tensor(list(lengths), device=keys.device)
    within = torch.arange(longest, device=keys.device)
    starts = sizes.cumsum(0) - sizes
    places = (starts[:, None] + within).clamp(max=keys.shape[1] - 1)  # E longest
    drawn = mass.reshape(n_kv, -1, mass.shape[-1]).sum(1)[:, places].transpose(0, 1)  # E h_kv longest
    drawn = drawn.masked_fill((within >= sizes[:, None])[:, None], -torch.inf)
    best = drawn.topk(min(top, longest), dim=-1)
    at = (starts[:, None, None] + best.indices).clamp(max=keys.shape[1] - 1)  # E h_kv k
    chosen = keys[torch.arange(n_kv, device=keys.device)[None, :, None], at]  # E h_kv k D
    real = torch.isfinite(best.values)[..., None]
    mean = (chosen * real).sum(2) / real.sum(2)
    return mean.to(keys.dtype).flatten(1), best.indices, best.values

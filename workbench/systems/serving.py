"""A server of a language model, simulated: who is in the batch, what memory holds, how long it all takes.

Iteration-level scheduling (Orca, vLLM): in every iteration each running request gets one token, and waiting ones come
in as long as memory has room for their prompt. When memory runs out, the youngest request is thrown out and computed
again later (preemption by recompute). The policies differ in nothing but how memory is cut into pieces.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import BadInput
from workbench.systems.kv_geometry import KVGeometry, OutOfKVMemory

if TYPE_CHECKING:
    import pandas as pd

#: Columns of ``Served.steps``: time at the end (s), iterations in the row, requests in the batch, bytes of tokens,
#: bytes that they hold beyond, bytes kept mapped for later, free bytes, mapping calls.
STEPS = ("time", "iterations", "batch", "used", "waste", "cached", "free", "calls")


@dataclass(frozen=True)
class Model:
    """A model as a server's memory sees it. Yi-6B, Llama-3-8B and Yi-34B are in ``MODELS``."""

    layers: int
    kv_heads: int
    dim: int
    itemsize: int = 2

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.dim * self.itemsize


MODELS = {"Yi-6B": Model(32, 4, 128), "Llama-3-8B": Model(32, 8, 128), "Yi-34B": Model(60, 8, 128)}


@dataclass(frozen=True)
class Policy:
    """How memory is given to a request.

    Attributes:
        block_tokens, block_bytes: what it grows by.
        calls: driver calls of mapping one block (0: a table is written instead).
        deferred: blocks of finished requests stay mapped and are inherited.
    """

    name: str
    block_tokens: int
    block_bytes: int
    calls: int = 0
    deferred: bool = False

    def need(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)


def static(model: Model, length: int) -> Policy:
    """The longest request is reserved for everyone."""
    return Policy("static", length, length * model.token_bytes)


def paged(model: Model, block: int = 16) -> Policy:
    return Policy(f"paged-{block}", block, block * model.token_bytes)


def virtual(model: Model, group_bytes: int, *, megacache: bool = False, deferred: bool = True) -> Policy:
    """vAttention with page groups of ``group_bytes``."""
    g = KVGeometry(model.layers, model.kv_heads, model.dim, 1, 1, group_bytes, model.itemsize, megacache)
    name = f"{_size(group_bytes)} groups" + (", mega-cache" if megacache else "")
    return Policy(name, g.group_tokens, g.block_bytes, g.buffers, deferred)


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KB"


def policies(model: Model, length: int) -> dict[str, Policy]:
    """The card's six: static, paged-16, paged-256, 2 MB, 64 KB, and 2 MB with a mega-cache."""
    made = [
        static(model, length),
        virtual(model, 2 << 20),
        virtual(model, 64 << 10),
        virtual(model, 2 << 20, megacache=True),
        paged(model, 256),
        paged(model, 16),
    ]
    return {policy.name: policy for policy in made}


@dataclass(frozen=True)
class StepTime:
    """Seconds of an iteration: ``fixed`` + ``token`` * tokens processed + ``call`` * mapping calls made in it."""

    fixed: float = 0.015
    token: float = 1e-4
    call: float = 0.0


@dataclass
class Served:
    """What a simulation found. ``steps`` has one row for every stretch of iterations in which nobody comes, goes or
    grows by a block (columns ``STEPS``); all else are totals."""

    steps: pd.DataFrame
    finished: int
    preempted: int
    makespan: float
    map_calls: int

    @property
    def max_batch(self) -> int:
        return int(self.steps["batch"].max())

    def mean(self, column: str) -> float:
        """Mean over iterations in which memory was the limit (from the first to the last full batch)."""
        full = np.flatnonzero(self.steps["batch"].to_numpy() >= 0.9 * self.max_batch)
        rows = self.steps.iloc[full[0] : full[-1] + 1]
        return float(np.average(rows[column], weights=rows["iterations"]))


@dataclass
class _Memory:
    """Blocks by count: free ones, and those that finished requests left mapped (newest last)."""

    free: int
    cached: list[int] = field(default_factory=list)

    def available(self) -> int:
        return self.free + sum(self.cached)

    def inherit(self, need: int) -> int:
        """Best fit: the fewest cached blocks that cover the need, else the first ones; returns how many come along."""
        if not self.cached:
            return 0
        fitting = [count for count in self.cached if count >= need]
        chosen = min(fitting) if fitting else self.cached[0]
        self.cached.remove(chosen)
        return chosen

    def take(self, blocks: int) -> None:
        """Take free blocks, after reclaiming cached ones from the highest slot downwards if need be."""
        while self.free < blocks:
            count = self.cached.pop()
            spare = max(0, count - (blocks - self.free))
            self.free += count - spare
            if spare:
                self.cached.append(spare)
        self.free -= blocks


class Server:
    """One simulation: requests, a policy, a memory budget.

    Args:
        requests: columns arrival (s), prompt, answer (tokens), sorted by arrival.
        memory: bytes for keys and values.
        most: requests in a batch at most.
        watermark: share of memory that admission leaves free, so that the running ones can grow.

    Raises:
        BadInput: an empty or unsorted table, tokens that are not whole numbers, limits that let nobody in.
        OutOfKVMemory: a single request that can never fit.
    """

    def __init__(
        self,
        requests: pd.DataFrame,
        policy: Policy,
        model: Model,
        memory: int,
        *,
        step_time: StepTime | None = None,
        most: int = 1024,
        watermark: float = 0.01,
    ):
        _check_limits(memory, most, watermark)
        total = int(memory) // policy.block_bytes
        _check(requests, policy, total)
        self.policy, self.model, self.total = policy, model, total
        self.time = step_time or StepTime()
        self.most, self.spare = most, int(watermark * total)
        self.memory = _Memory(total)
        self.arrival = requests["arrival"].to_numpy()
        self.prompt = requests["prompt"].to_numpy().copy()
        self.end = self.prompt + requests["answer"].to_numpy()
        self.waiting: deque[int] = deque(range(len(requests)))
        self.ids = np.empty(0, dtype=np.int64)
        self.length = np.empty(0, dtype=np.int64)
        self.blocks = np.empty(0, dtype=np.int64)
        self.now, self.preempted, self.calls = 0.0, 0, 0

    def run(self) -> Served:
        """Until every request is answered."""
        import pandas as pd

        rows = []
        while self.waiting or len(self.ids):
            before = self.calls
            tokens = self._admit()
            if not len(self.ids):
                self.now = float(self.arrival[self.waiting[0]])
                continue
            count = 1 if tokens else self._quiet()
            came = int((self.length == self.prompt[self.ids]).sum()) if tokens else 0
            tokens += self._grow(count) - came
            made = self.calls - before
            self.now += count * (self.time.fixed + self.time.token * tokens) + self.time.call * made
            rows.append(self._row(count, made))
            self._finish()
        steps = pd.DataFrame(rows, columns=list(STEPS))
        return Served(steps, len(self.end), self.preempted, self.now, self.calls)

    def _admit(self) -> int:
        """Let waiting requests in, first come first served; returns the prompt tokens that are to be read."""
        tokens = 0
        while self.waiting and len(self.ids) < self.most and self.arrival[self.waiting[0]] <= self.now:
            request = self.waiting[0]
            need = self.policy.need(int(self.prompt[request]) + 1)
            spare = self.spare if len(self.ids) else 0
            if need + spare > self.memory.available() + self._beyond(self._needed()):
                break
            self.waiting.popleft()
            came = self.memory.inherit(need) if self.policy.deferred else 0
            lacking = max(0, need - came)
            if lacking > self.memory.available():
                self._reclaim(self._needed())
            self.memory.take(lacking)
            self.calls += lacking * self.policy.calls
            self.ids = np.append(self.ids, request)
            self.length = np.append(self.length, self.prompt[request])
            self.blocks = np.append(self.blocks, max(need, came))
            tokens += int(self.prompt[request])
        return tokens

    def _quiet(self) -> int:
        """How many iterations can be taken as one: nobody finishes before, needs a block, or can come in."""
        room = self.blocks * self.policy.block_tokens - self.length
        count = max(1, int(min(room.min(), (self.end[self.ids] - self.length).min())))
        if self.waiting and self.arrival[self.waiting[0]] > self.now:
            step = self.time.fixed + self.time.token * len(self.ids)
            count = min(count, math.ceil((self.arrival[self.waiting[0]] - self.now) / step))
        return count

    def _grow(self, count: int) -> int:
        """``count`` more tokens for everyone; the youngest are thrown out until that fits. Returns the batch."""
        while True:
            need = -(-(self.length + count) // self.policy.block_tokens)
            lacking = int(np.maximum(need - self.blocks, 0).sum())
            if lacking <= self.memory.available() + self._beyond(need):
                break
            self._preempt()
        if lacking > self.memory.available():
            self._reclaim(need)
        self.memory.take(lacking)
        self.calls += lacking * self.policy.calls
        self.length += count
        self.blocks = np.maximum(self.blocks, need)
        return len(self.ids)

    def _needed(self) -> np.ndarray:
        return -(-self.length // self.policy.block_tokens)

    def _beyond(self, need: np.ndarray) -> int:
        """Inherited blocks that running requests do not need."""
        return int(np.maximum(self.blocks - need, 0).sum())

    def _reclaim(self, need: np.ndarray) -> None:
        self.memory.free += self._beyond(need)
        self.blocks = np.minimum(self.blocks, need)

    def _preempt(self) -> None:
        """The youngest request goes back to the head of the queue; its tokens so far become part of its prompt."""
        request = int(self.ids[-1])
        self.prompt[request] = self.length[-1]
        self.memory.free += int(self.blocks[-1])
        self.ids, self.length, self.blocks = self.ids[:-1], self.length[:-1], self.blocks[:-1]
        self.waiting.appendleft(request)
        self.preempted += 1

    def _finish(self) -> None:
        done = self.length >= self.end[self.ids]
        if not done.any():
            return
        for blocks in self.blocks[done]:
            if self.policy.deferred:
                self.memory.cached.append(int(blocks))
            else:
                self.memory.free += int(blocks)
        self.ids, self.length, self.blocks = self.ids[~done], self.length[~done], self.blocks[~done]

    def _row(self, count: int, made: int) -> tuple[float, ...]:
        """Bytes are those in the middle of the stretch."""
        tokens = float(self.length.sum()) - len(self.ids) * (count - 1) / 2
        used = tokens * self.model.token_bytes
        need = int(self._needed().sum()) * self.policy.block_bytes
        kept = (int(self.blocks.sum()) + sum(self.memory.cached)) * self.policy.block_bytes - need
        free = self.memory.free * self.policy.block_bytes
        return (self.now, count, len(self.ids), used, need - used, kept, free, made)


def _check(requests: pd.DataFrame, policy: Policy, total: int) -> None:
    if not len(requests) or not {"arrival", "prompt", "answer"} <= set(requests):
        raise BadInput("requests needs the columns arrival, prompt and answer, and at least one row")
    wrong = [name for name in ("arrival", "prompt", "answer") if not _finite(requests[name])]
    if wrong:
        raise BadInput(f"requests need finite numbers in every row; {', '.join(wrong)} holds others")
    tokens = requests[["prompt", "answer"]]
    if ((tokens < 1) | (tokens % 1 != 0)).to_numpy().any() or (requests["arrival"].diff() < 0).any():
        raise BadInput("requests need prompts and answers of at least one whole token, sorted by arrival")
    longest = int((requests["prompt"] + requests["answer"]).max())
    if policy.name == "static" and longest > policy.block_tokens:
        raise BadInput(f"a request of {longest} tokens is longer than the {policy.block_tokens} that are reserved")
    if policy.need(longest) > total:
        raise OutOfKVMemory(policy.need(longest), total, f"blocks of {policy.block_tokens} tokens for one request")


def _finite(column: pd.Series) -> bool:
    return column.dtype.kind in "iuf" and bool(np.isfinite(column).all())


def _check_limits(memory: int, most: int, watermark: float) -> None:
    if not 0 < memory < math.inf:
        raise BadInput(f"memory={memory!r} must be a number of bytes above 0")
    if most < 1 or not 0 <= watermark < 1:
        raise BadInput(f"most={most!r} must be at least 1, watermark={watermark!r} a share in 0 <= watermark < 1")


def closed_form(model: Model, policy: Policy, memory: int, context: float) -> float:
    """The batch that fits: memory / (context * bytes a token + half a block of waste)."""
    return memory / (context * model.token_bytes + policy.block_bytes / 2)


def batch_by_page(memory: int, group_kib: Sequence[int], contexts: Sequence[int]) -> pd.DataFrame:
    """The closed form for every model of ``MODELS``: columns model, group_kib, context, batch, waste_mb."""
    import pandas as pd

    rows = []
    for name, model in MODELS.items():
        for kib in group_kib:
            policy = virtual(model, kib << 10)
            waste = policy.block_bytes / 2e6
            rows += [(name, kib, n, closed_form(model, policy, memory, n), waste) for n in contexts]
    return pd.DataFrame(rows, columns=["model", "group_kib", "context", "batch", "waste_mb"])

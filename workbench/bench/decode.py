"""Decode: one new token a sequence over a long cache, in every layout a cache can have, against every peer present.

Memory decides, so the rate is bytes: 2 * length * Hkv * D elements a sequence must be read once, whatever a kernel
really reads, and the ceiling is a device copy (read + write) of the same run. All layouts hold the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.bench import _peers
from workbench.bench.base import BENCHES, Bench, Case, Contender, relative_error
from workbench_kernels import decode_attention

PAGES = (16, 64, 256)
SPARE_SLOTS = 5


@dataclass(frozen=True)
class Point:
    """``context`` tokens a sequence; ``ragged``: lengths drawn evenly from 1..context instead."""

    batch: int
    context: int = 16384
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    ragged: bool = False
    dtype: torch.dtype = torch.bfloat16

    @property
    def place(self) -> dict[str, Any]:
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_dim": self.dim,
            "context": self.context,
            "lengths": "ragged" if self.ragged else "equal",
            "heads": f"{self.heads}/{self.kv_heads}",
            "batch": self.batch,
        }


class DecodeBench(Bench):
    name = "decode"
    title = "Decode: one query a sequence over a cache"
    limit_s = 40.0

    def cases(self, device: str, quick: bool) -> Iterator[Case]:
        for point in points(device, quick):
            yield case(point, device)


BENCHES.register("decode")(DecodeBench())


def points(device: str, quick: bool) -> list[Point]:
    if device == "cpu":
        small = Point(4, 1024 if quick else 4096, 8, 2, 64, dtype=torch.float32)
        return [small, replace(small, ragged=True)]
    if quick:
        return [Point(8), Point(64), Point(1)]
    return [Point(8), Point(64), Point(1), Point(32, ragged=True), Point(32), Point(16)]


def case(point: Point, device: str) -> Case:
    """All contenders on one draw of queries, keys, values and lengths."""
    q, k, v, lengths = draw(point, device)
    contenders = {name: Contender(run, ours=True) for name, run in layouts(q, k, v, lengths).items()}
    if device != "cpu" and point.batch == 1:
        replay = _Replay(contenders["contiguous"].run)
        contenders["contiguous (graph)"] = Contender(replay, ours=True)
    contenders |= {name: Contender(run, version=_peers.version(name)) for name, run in peers(q, k, v, lengths).items()}
    ends = slice(None, None, max(1, point.batch - 1))  # the first and the last sequence
    exact = decode_attention(*(x[ends].double() for x in (q, k, v)), lengths=lengths[ends], impl="reference")
    moved = 2 * int(lengths.sum()) * point.kv_heads * point.dim * q.element_size()
    effort: dict[str, Any] = {"launches": 9, "budget_s": 3.0} if device == "cpu" else {"launches": 20, "budget_s": 0.5}

    def check(found: Tensor) -> float:
        return relative_error(found[ends], exact)

    return Case(point.place, contenders, float(moved), "TB/s", check, **effort)


def draw(point: Point, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q (B, 1, H, D), k and v (B, context, Hkv, D), lengths (B,); the first sequence is always whole."""
    generator = torch.Generator(device).manual_seed(0)
    words: dict[str, Any] = {"generator": generator, "device": device, "dtype": point.dtype}
    q = torch.randn(point.batch, 1, point.heads, point.dim, **words)
    k, v = (torch.randn(point.batch, point.context, point.kv_heads, point.dim, **words) for _ in range(2))
    lengths = torch.full((point.batch,), point.context, dtype=torch.int32, device=device)
    if point.ragged:
        lengths.random_(1, point.context + 1, generator=generator)
        lengths[0] = point.context
    return q, k, v, lengths


def layouts(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ours over the same numbers in a row each, in scattered slots, and in scattered blocks."""
    ways = {"contiguous": (k, v, {}), "slots": slotted(k, v)}
    ways |= {f"paged-{page}": paged(k, v, page) for page in PAGES if k.shape[1] % page == 0}

    def call(keys: Tensor, values: Tensor, where: dict[str, Tensor]) -> Callable[[], Tensor]:
        return lambda: decode_attention(q, keys, values, lengths=lengths, **where)

    return {name: call(*way) for name, way in ways.items()}


def slotted(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Random slots of a larger buffer whose slots are further apart than they are long."""
    batch, length = k.shape[:2]
    slots = torch.randperm(batch + SPARE_SLOTS, generator=_on_cpu())[:batch].to(k.device)
    shape = (batch + SPARE_SLOTS, length + 64, *k.shape[2:])
    keys, values = (x.new_zeros(shape)[:, :length] for x in (k, v))
    keys[slots], values[slots] = k, v
    return keys, values, {"slots": slots}


def paged(k: Tensor, v: Tensor, page: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Blocks of ``page`` tokens in random order, as after a long run of a server."""
    batch, length = k.shape[:2]
    table = torch.randperm(batch * length // page, generator=_on_cpu()).to(k.device)
    keys, values = (torch.empty_like(x).view(-1, page, *x.shape[2:]) for x in (k, v))
    keys[table], values[table] = k.view(keys.shape), v.view(keys.shape)
    return keys, values, {"block_table": table.view(batch, -1).int()}


def _on_cpu() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def peers(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> dict[str, Callable[[], Tensor]]:
    """torch's own attention over a row each (it takes one length for all), and flashinfer over blocks of 16."""
    found: dict[str, Callable[[], Tensor]] = {}
    if bool((lengths == k.shape[1]).all()):
        for name, attend in _peers.sdpa_peers(q.device).items():
            found[name] = functools.partial(attend, q, k, v, False)
    if q.device.type == "cuda" and (library := _peers.flashinfer()):
        found["flashinfer"] = _flashinfer(library, q, k, v, lengths)
    return found


def _flashinfer(library: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, page: int = 16) -> Callable[[], Tensor]:
    """Planned once, as a server does for all layers of a step; a plan that fails is the contender's error."""
    keys, values, where = paged(k, v, page)
    table, used = where["block_table"], (lengths.cpu() + page - 1) // page
    wrapper: list[Any] = []

    def plan() -> Any:
        made = library.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(256 << 20, dtype=torch.uint8, device=q.device), "NHD", use_tensor_cores=True
        )
        starts = torch.cat([used.new_zeros(1), used.cumsum(0)]).int()
        blocks = torch.cat([row[:n] for row, n in zip(table.cpu(), used.tolist())]).to(q.device)
        last = ((lengths.cpu() - 1) % page + 1).int()
        sizes = (q.shape[2], k.shape[2], q.shape[3], page)
        made.plan(starts, blocks, last, *sizes, q_data_type=q.dtype, kv_data_type=k.dtype)
        return made

    def run() -> Tensor:
        if not wrapper:
            wrapper.append(plan())
        return wrapper[0].run(q[:, 0], (keys, values))[:, None]

    return run


class _Replay:
    """A call captured in a CUDA graph at its first launch and replayed from then on: no time is spent in Python."""

    def __init__(self, call: Callable[[], Tensor]):
        self.call = call
        self.graph: torch.cuda.CUDAGraph | None = None
        self.out: Tensor | None = None

    def __call__(self) -> Tensor | None:
        if self.graph is None:
            self.call()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self.call()
        self.graph.replay()
        return self.out

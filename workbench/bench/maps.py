"""Looking without N x N: pooled maps, statistics and row LSE from Q, K and LSE, and the trace of a long text.

A look needs the score products alone: 2 B H N^2 D operations, half of it when causal, whatever a contender really
does. ``extra_gb`` is the memory that one call takes beyond its inputs, result included. The peers build each
head's N x N matrix, one head at a time, as long as one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.bench._peers import version
from workbench.bench.base import BENCHES, Bench, Case, Contender, relative_error
from workbench_kernels import attention_statistics, pooled_attention, row_lse

if TYPE_CHECKING:
    from workbench.models import LoadedModel, Trace

#: Longest sequence of which a peer can hold one head's matrix, and of which our torch path takes part, on a GPU.
LONGEST_DENSE, LONGEST_TORCH = 32768, 16384
#: Rows of one head that are compared with float64.
CHECKED_ROWS = 512


@dataclass(frozen=True)
class Point:
    """Causal, one sequence; the map has ``side`` x ``side`` cells."""

    what: str
    length: int
    side: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def flops(self) -> float:
        return float(self.heads) * self.length**2 * self.dim

    @property
    def place(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_dim": self.dim,
            "heads": f"{self.heads}/{self.kv_heads}",
            "length": self.length,
            "side": self.side,
        }


class MapsBench(Bench):
    name = "maps"
    title = "Looking without N x N"

    def cases(self, device: str, quick: bool) -> Iterator[Case]:
        for point in points(device, quick):
            yield look_case(point, device)
        yield trace_case(device)


BENCHES.register("maps")(MapsBench())


def points(device: str, quick: bool) -> list[Point]:
    if device == "cpu":
        small: dict[str, Any] = {"heads": 8, "kv_heads": 4, "dim": 32, "dtype": torch.float32}
        lengths = (1024,) if quick else (1024, 4096)
        whats = ("pooled map", "statistics")
        return [Point(what, length, 256, **small) for length in lengths for what in whats]
    long = Point("pooled map", 131072, 1024)
    if quick:
        return [Point("pooled map", 8192, 512), long]
    shorter = [Point("pooled map", length, 512) for length in (8192, 32768)]
    shapes = [Point("pooled map", 131072, 500), Point("pooled map", 131072, 1024, dim=64)]
    return [*shorter, long, *shapes, *(Point(what, 32768, 0) for what in ("statistics", "row LSE"))]


# -- one look ---------------------------------------------------------------------------------------------------------


def look_case(point: Point, device: str) -> Case:
    """Ours, our torch path and the dense way, on the same queries and keys."""
    generator = torch.Generator(device).manual_seed(0)
    words: dict[str, Any] = {"generator": generator, "device": device, "dtype": point.dtype}
    q = torch.randn(1, point.length, point.heads, point.dim, **words)
    k = torch.randn(1, point.length, point.kv_heads, point.dim, **words)
    lse = row_lse(q, k)
    calls: dict[str, Callable[[], Any]] = {"ours": _ours(point, q, k, lse, "auto")}
    if device != "cpu" and point.length <= LONGEST_TORCH:
        calls["ours, torch"] = _ours(point, q, k, lse, "torch")
    contenders = {name: Contender(call, ours=True, plain=call) for name, call in calls.items()}
    if device == "cpu" or point.length <= LONGEST_DENSE:
        dense = _dense(point, q, k)
        contenders["a dense head at a time"] = Contender(dense, version=version("torch"), plain=dense)
    effort: dict[str, Any] = {"launches": 7, "budget_s": 6.0} if device == "cpu" else {"launches": 8, "budget_s": 1.2}
    check = _check(point, q, k)
    return Case(point.place, contenders, point.flops, "TFLOP/s", check, **effort)


def _ours(point: Point, q: Tensor, k: Tensor, lse: Tensor, impl: str) -> Callable[[], Any]:
    def run() -> Any:
        if point.what == "pooled map":
            return pooled_attention(q, k, lse, shape=(point.side, point.side), impl=impl)
        if point.what == "statistics":
            return attention_statistics(q, k, lse, impl=impl)
        return row_lse(q, k, impl=impl)

    return run


def _dense(point: Point, q: Tensor, k: Tensor) -> Callable[[], Any]:
    """What one does without these kernels: softmax of a head's scores in memory, then reduce it."""

    def run() -> Any:
        heads = [_dense_head(point, q[0, :, h], k[0, :, h * point.kv_heads // point.heads]) for h in range(point.heads)]
        if point.what == "statistics":
            return {name: torch.stack([head[name] for head in heads])[None] for name in heads[0]}
        return torch.stack(heads, -1 if point.what == "row LSE" else 0)[None]

    return run


def _dense_head(point: Point, q: Tensor, k: Tensor) -> Any:
    scores = (q @ k.T).mul_(point.dim**-0.5)
    scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), -torch.inf)
    if point.what == "row LSE":
        return scores.float().logsumexp(-1)
    probs = scores.softmax(-1)
    del scores
    if point.what == "pooled map":
        return torch.nn.functional.adaptive_avg_pool2d(probs[None], (point.side, point.side))[0]
    return {"entropy": torch.special.entr(probs).sum(-1), "top": probs.topk(8).values}


def _check(point: Point, q: Tensor, k: Tensor) -> Callable[[Any], float]:
    """The last rows of the last head against the plain path in float64."""
    rows = min(CHECKED_ROWS, point.length)

    def strip() -> tuple[Tensor, Tensor, Tensor]:
        last = q[:, -rows:, -1:].double(), k[:, :, -1:].double()
        return *last, row_lse(*last, impl="torch")

    def check(found: Any) -> float:
        if point.what == "row LSE":
            return relative_error(found[:, -rows:, -1:], strip()[2])
        if point.what == "statistics":
            exact = attention_statistics(*strip(), impl="torch")
            names = ("entropy", "top_probs", "mean_distance") if "top_probs" in found else ("entropy",)
            return max(relative_error(found[name][0, -1, -rows:], exact[name][0, 0]) for name in names)
        return map_error(found[:, -1:], *strip(), length=point.length, side=point.side)

    return check


def map_error(found: Tensor, q: Tensor, k: Tensor, lse: Tensor, *, length: int, side: int) -> float:
    """Relative error of the last row of cells of a map (1, 1, side, side); q, k, lse are the last rows in float64."""
    start = (side - 1) * length // side
    rows = slice(q.shape[1] - (length - start), None)
    exact = pooled_attention(q[:, rows], k, lse[:, rows], shape=(1, side), impl="torch")
    return relative_error(found[:, :, -1:], exact)


# -- a whole trace ----------------------------------------------------------------------------------------------------

#: A Llama-shaped model with random weights: 8 layers of 32 heads (8 key heads) of 64.
SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 8}
LAYERS, VOCABULARY = 8, 4096
#: Kernels that can read a long text, the fastest first; a GPU's table takes the first, a read being seconds.
KERNELS = ("flash-attention-2", "sdpa")
SIDE = 512


def trace_case(device: str) -> Case:
    """Trace a long text and show the maps of all heads of one layer."""
    length = 512 if device == "cpu" else 131072
    layers = 2 if device == "cpu" else LAYERS
    model = llama(layers, length, device)
    ids = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    names = [name for name in KERNELS if name in model.kernels()][: None if device == "cpu" else 1]
    calls = {name: _traced(model, ids, name) for name in names}
    contenders = {name: Contender(call, ours=True, plain=call) for name, call in calls.items()}
    point = Point("trace and one layer's maps", length, SIDE, dim=64, dtype=model.dtype)
    work = 2.0 * model.n_parameters * length + (2 * layers + 1) * point.flops
    effort: dict[str, Any] = {"launches": 3, "budget_s": 6.0}
    return Case(point.place, contenders, work, "TFLOP/s", _trace_error, **effort)


def llama(layers: int, length: int, device: str) -> LoadedModel:
    """The model in the dtype that its device computes fastest."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from workbench.models import LoadedModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, max_position_embeddings=length, use_cache=False, **SHAPE
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    return LoadedModel("llama-shaped", model.to(torch.float32 if device == "cpu" else torch.bfloat16))


def _traced(model: LoadedModel, ids: list[int], kernel: str) -> Callable[[], tuple[Trace, Tensor]]:
    layer = model.n_layers // 2

    def run() -> tuple[Trace, Tensor]:
        with model.use(attention=kernel):
            trace = model.trace(ids, hidden=False, progress=False)
        return trace, trace.map(layer, size=SIDE)

    return run


def _trace_error(found: tuple[Trace, Tensor]) -> float:
    """The last row of cells of the last head against float64 from the recorded queries and keys."""
    trace, maps = found
    layer = trace.layer(len(trace.layers) // 2)
    length = layer.q.shape[1]
    last = layer.q[:, -CHECKED_ROWS:, -1:].double(), layer.k[:, :, -1:].double()
    lse = row_lse(*last, impl="torch", scale=layer.scale)
    return map_error(maps[None, -1:], *last, lse, length=length, side=min(SIDE, length))

"""Runs the map kernels in Triton's interpreter; prints case -> {what: (error, largest value)} as JSON.

A process of its own, because the interpreter is chosen when Triton is imported (``TRITON_INTERPRET=1``). What a kernel
leaves unwritten is NaN.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench_kernels import (
    attention,
    attention_mass,
    attention_region,
    attention_statistics,
    pooled_attention,
    row_lse,
)

#: (batch, queries, keys, heads, key heads, head dim), words
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "aligned": ((1, 256, 256, 2, 1, 32), {}),
    "ragged": ((2, 130, 203, 4, 2, 20), {}),
    "window": ((1, 150, 200, 2, 2, 16), {"window": 70}),
    "full": ((1, 130, 140, 1, 1, 16), {"causal": False}),
    "window alone, soft cap": ((1, 130, 210, 1, 1, 16), {"causal": False, "window": 60, "softcap": 5.0}),
    "padding": ((2, 140, 140, 1, 1, 16), {"padded": True}),
    "padding in a window": ((1, 130, 200, 1, 1, 16), {"padded": True, "window": 90}),
    "more queries than keys": ((1, 150, 90, 1, 1, 16), {}),
    "half precision": ((1, 140, 140, 1, 1, 16), {"dtype": torch.float16}),
    "heads first in memory": ((2, 130, 130, 2, 1, 16), {"heads_first": True}),
}
#: Rows x columns of pooled maps: wide bins (even where 64 divides, uneven), narrow ones.
SHAPES = [(2, 2), (2, 3), (7, 9), (33, 3)]
#: A look at one head of the uneven kind, with its own part of rows and columns.
PART = {"rows": slice(10, 80), "cols": slice(5, 90), "shape": (1, 1), "heads": [-1]}

Errors = dict[str, tuple[float, float]]


def draw(shape: tuple[int, ...], words: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    batch, queries, keys, heads, kv_heads, dim = shape
    gen = torch.Generator().manual_seed(sum(shape))
    words = dict(words)
    dtype, first = words.pop("dtype", torch.float32), words.pop("heads_first", False)
    if words.pop("padded", False):
        words["key_padding"] = torch.rand(batch, keys, generator=gen) > 0.4
    sizes = ((queries, heads), (keys, kv_heads))
    q, k = (torch.randn(batch, length, h, dim, generator=gen).to(dtype) for length, h in sizes)
    if first:
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    return q, k, words


def case(shape: tuple[int, ...], given: dict[str, Any]) -> Errors:
    q, k, words = draw(shape, given)
    exact = q.double(), k.double()
    lse = attention(*exact, exact[1][..., :1], impl="reference", return_lse=True, **words)[1]

    def compared(function: Callable[..., Any], **extra: Any) -> tuple[Any, Any]:
        plain = function(*exact, lse, impl="torch", **extra, **words)
        return function(q, k, lse.float(), impl="triton", **extra, **words), plain

    found: Errors = {}
    for rows, cols in SHAPES:
        for reduce in ("sum", "max"):
            name = f"pooled {rows} x {cols} {reduce}"
            found[name] = error(*compared(pooled_attention, shape=(rows, cols), reduce=reduce))
    found["single cells"] = error(*compared(pooled_attention, shape=(9999, 9999), heads=[0]))
    found["pooled part"] = error(*compared(pooled_attention, reduce="sum", **PART))
    backwards = torch.arange(shape[2]).flip(0)
    found["region"] = error(*compared(attention_region, rows=slice(3, 100, 2), cols=backwards, heads=[-1, 0]))
    found["mass of keys"] = error(*compared(attention_mass, keys=[3, 50, 3, 41, 7]))
    found["mass of a range"] = error(*compared(attention_mass, keys=slice(20, 80)))
    fast, plain = compared(attention_statistics, topk=5, sink_keys=3)
    found |= {name: error(fast[name], plain[name]) for name in plain if name != "top_keys"}
    dense = attention_region(*exact, lse, **words)
    kept = dense.gather(-1, fast["top_keys"].clamp(min=0)).masked_fill(fast["top_keys"] < 0, 0.0)
    found["top_keys"] = error(kept, plain["top_probs"])
    found["lse"] = lse_error(row_lse(q, k, impl="triton", **words), lse)
    return found


def error(fast: Tensor, plain: Tensor) -> tuple[float, float]:
    assert fast.shape == plain.shape, (fast.shape, plain.shape)
    return float((fast.double() - plain).abs().max()), float(plain.abs().max())


def lse_error(fast: Tensor, exact: Tensor) -> tuple[float, float]:
    blind = torch.isneginf(exact)
    assert torch.equal(torch.isneginf(fast), blind)
    return error(fast.masked_fill(blind, 0.0), exact.masked_fill(blind, 0.0))


def poison() -> None:
    """Memory that nobody wrote is NaN, or an absurd key."""
    empty = torch.empty

    def poisoned(*size: Any, **words: Any) -> Tensor:
        made = empty(*size, **words)
        return made.fill_(torch.nan if made.is_floating_point() else -77)

    torch.empty = poisoned  # type: ignore[assignment]


def main() -> None:
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    poison()
    json.dump({name: case(*given) for name, given in CASES.items()}, sys.stdout)


if __name__ == "__main__":
    main()

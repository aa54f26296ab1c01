"""Runs the decode and prefill kernels in Triton's interpreter; prints case -> (error of out, of lse, blind) as JSON.

A process of its own, because the interpreter is chosen when Triton is imported (``TRITON_INTERPRET=1``). ``blind``
says whether exactly the queries that see nothing have a log-sum-exp of -inf.
"""

from __future__ import annotations

import json
import sys

import decode_cases
import numpy as np
import torch

from workbench_kernels import attention, decode_attention, paged_attention

SMALL = {"heads": 4, "kv_heads": 2, "dim": 16}
CASES = {
    **{layout: (layout, [70, 0, 33], SMALL, {}) for layout in decode_cases.LAYOUTS},
    "one head for all": ("slots", [40, 70], {"heads": 6, "kv_heads": 1, "dim": 16}, {}),
    "a head each": ("paged-16", [40, 70], {"heads": 2, "kv_heads": 2, "dim": 16}, {}),
    "head dim 40": ("paged-16", [50, 7], {"heads": 4, "kv_heads": 2, "dim": 40}, {}),
    "half precision": ("paged-16", [70, 33], {**SMALL, "dtype": torch.float16}, {}),
    "several queries": ("contiguous", [70, 3, 33], {**SMALL, "queries": 5}, {}),
    "twenty rows": ("paged-4", [70, 3], {"heads": 8, "kv_heads": 2, "dim": 16, "queries": 5}, {}),
    "window": ("paged-16", [70, 9], {**SMALL, "queries": 3}, {"window": 7}),
    "wide window": ("contiguous", [150, 70], {**SMALL, "queries": 2}, {"window": 100}),
    "soft cap": ("slots", [70, 9], SMALL, {"softcap": 2.0}),
    "scale": ("contiguous", [70, 9], SMALL, {"scale": 0.7}),
    "negative scale": ("contiguous", [70, 9], SMALL, {"scale": -0.7}),
    "sinks": ("paged-16", [70, 0], SMALL, {"sinks": torch.linspace(-1, 2, 4)}),
}
PREFILL = {
    "prefill": ("contiguous", [150, 33], {**SMALL, "queries": 70}, {}),
    "prefill over blocks": ("paged-16", [150, 33], {**SMALL, "queries": 70}, {}),
    "prefill over large blocks": ("paged-64", [150, 0], {**SMALL, "queries": 70}, {}),
    "prefill in a window": ("slots", [150, 90], {**SMALL, "queries": 70}, {"window": 20}),
    "prefill with a negative scale": ("slots", [60, 5], {**SMALL, "queries": 20}, {"scale": -0.4}),
    "prefill with scale 0": ("slots", [60, 5], {**SMALL, "queries": 20}, {"scale": 0.0}),
    "prefill with a soft cap": ("paged-16", [60, 5], {**SMALL, "queries": 20}, {"softcap": 2.0}),
    "prefill with sinks": ("slots", [60, 5], {**SMALL, "queries": 20}, {"sinks": torch.linspace(-1, 2, 4)}),
}


SPLIT = {
    "split attention": {"queries": 1, "keys": 150},
    "split attention, several queries": {"queries": 5, "keys": 70},
    "split attention, one query, not causal": {"queries": 1, "keys": 70, "causal": False},
    "split attention in a window": {"queries": 3, "keys": 70, "window": 20},
}


def split_errors(queries: int, keys: int, **words) -> list:
    """``workbench_kernels.attention(impl="split")`` over strided keys."""
    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 16, generator=gen).transpose(1, 2) for h, n in ((4, queries), (2, keys), (2, keys)))
    exact = attention(q.double(), k.double(), v.double(), impl="reference", return_lse=True, **words)
    found = attention(q, k, v, impl="split", return_lse=True, **words)
    return [*(float((a.double() - b).abs().max()) for a, b in zip(found, exact)), True]


def errors(layout: str, lengths: list[int], shape: dict, words: dict, call, **extra) -> list:
    q, k, v, where = decode_cases.draw(layout, lengths, **shape)
    words = {**words, **where, "return_lse": True}
    exact = {name: x.double() if name == "sinks" else x for name, x in words.items()}
    want, want_lse = paged_attention(q.double(), k.double(), v.double(), impl="reference", **exact)
    got, got_lse = call(q, k, v, impl="triton", **words, **extra)
    blind = torch.isneginf(want_lse)
    away = (got_lse.double() - want_lse).masked_fill(blind, 0.0)
    same = bool((torch.isneginf(got_lse) == blind).all()) and bool((got[blind] == 0).all())
    return [float((got.double() - want).abs().max()), float(away.abs().max()), same]


def main() -> None:
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    found = {}
    for name, case in CASES.items():
        for splits in (1, 3):
            found[f"{name}, {splits} parts"] = errors(*case, decode_attention, splits=splits)
    found["parts by the device"] = errors(*CASES["paged-16"], decode_attention)
    found["more parts than keys"] = errors("contiguous", [5, 1], SMALL, {}, decode_attention, splits=40)
    for name, words in SPLIT.items():
        found[name] = split_errors(**words)
    for name, case in PREFILL.items():
        found[name] = errors(*case, paged_attention)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

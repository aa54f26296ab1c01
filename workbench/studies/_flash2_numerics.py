"""FlashAttention-2's exactness: both loop orders, the two-loop causal form, both backward passes, and real kernels.

The Triton kernels run here too, through Triton's interpreter, in a process of its own: the interpreter must be chosen
before Triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.studies.base import Progress
from workbench.systems import loop_orders
from workbench.systems.io_counts import Tiling
from workbench_kernels import attention

Row = dict[str, Any]
TENSORS = ("out", "lse", "dq", "dk", "dv")

#: (Nq, Nk, query heads, key heads, d, causal): square, longer keys, longer queries, shared key heads, ragged.
CASES = (
    (128, 128, 2, 2, 64, False),
    (128, 128, 2, 2, 64, True),
    (100, 163, 4, 2, 64, True),
    (163, 100, 4, 2, 32, True),
    (63, 127, 6, 1, 80, False),
    (63, 127, 6, 1, 16, True),
)
ORDER = "loop order "


def exactness(settings: Mapping[str, Any], generator: torch.Generator, progress: Progress) -> Iterator[Row]:
    """Errors against float64 autograd, relative to the largest entry: float32 loops in both orders, both backwards."""
    draws = [(draw, case) for draw in range(settings["draws"]) for case in CASES]
    for draw, case in progress(draws, "E5 exactness"):
        inputs, truth, causal = _problem(case, generator)
        rounded = [x.float() for x in inputs]
        for tiling in settings["loop_tiles"]:
            found = _loops(rounded, Tiling(*tiling), causal)
            for item, values in found.items():
                place = {**_place(case, draw), "item": item, "rows": tiling[0], "cols": tiling[1]}
                yield from _errors(place, values, truth)
            gap = (found[f"{ORDER}v1"][0] - found[f"{ORDER}v2"][0]).abs().max()
            place = {**_place(case, draw), "item": "v1 - v2", "metric": "order gap", "tensor": "out"}
            yield {**place, "rows": tiling[0], "cols": tiling[1], "unit": "absolute", "value": float(gap)}


def _problem(case: tuple[Any, ...], generator: torch.Generator) -> tuple[list[Tensor], list[Tensor], bool]:
    """(q, k, v, dO) in float64, exact (out, lse, dq, dk, dv), causal."""
    queries, keys, heads, kv_heads, d, causal = case
    shapes = [(1, queries, heads, d), *[(1, keys, kv_heads, d)] * 2, (1, queries, heads, d)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    out, lse = attention(*leaves, causal=causal, return_lse=True, impl="reference")
    return inputs, [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, inputs[3])], causal


def _loops(inputs: list[Tensor], tiling: Tiling, causal: bool) -> dict[str, list[Tensor]]:
    q, k, v, grad = inputs
    found = {}
    for order in loop_orders.ORDERS:
        forward = loop_orders.forward(q, k, v, tiling, order=order, causal=causal)
        words = {"causal": causal, "two_passes": order == "v2"}
        grads = loop_orders.backward(q, k, v, forward, grad, tiling, **words)
        found[ORDER + order] = [forward.out, forward.lse, *grads]
    return found


def _place(case: tuple[Any, ...], draw: int) -> Row:
    queries, keys, heads, kv_heads, d, causal = case
    shape = {"n": queries, "keys": keys, "heads": heads, "kv_heads": kv_heads, "d": d}
    return {"experiment": "E5", "repeat": draw, "dtype": "float32", "input": "causal" if causal else "full", **shape}


def _errors(place: Row, found: list[Tensor], truth: list[Tensor]) -> Iterator[Row]:
    for name, a, b in zip(TENSORS, found, truth, strict=True):
        seen = b.isfinite()
        gap = (a.double() - b)[seen].abs().max() / b[seen].abs().max()
        same = bool((a.isfinite() == seen).all())
        value = float(gap) if same else float("inf")
        yield {**place, "metric": "error", "tensor": name, "value": value, "unit": "of the largest entry"}


# -- real kernels in the interpreter ----------------------------------------------------------------------------------


def interpreted(settings: Mapping[str, Any], progress: Progress) -> Iterator[Row]:
    """Rows of the Triton kernels' own code on the CPU; where that cannot be, a row that says why. Length 0: none."""
    if not settings["interpreted_length"]:
        return
    place = {"experiment": "E5", "dtype": "float32", "n": settings["interpreted_length"], "d": 32}
    command = [sys.executable, "-m", __name__, str(settings["interpreted_length"])]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for _ in progress(["kernels"], "E5 Triton interpreter"):
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            yield {**place, "item": "triton", "metric": "no number", "value": 1.0, "note": told[-1] if told else ""}
            return
        yield from ({**place, **row} for row in json.loads(done.stdout.splitlines()[-1]))


def _interpret(length: int) -> list[Row]:
    """In the child: forward and gradients of our Triton kernels, batch x heads = 2 x 2."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(1, length, 2, 32, generator=generator, dtype=torch.float64) for _ in range(4)]
    rows: list[Row] = []
    for causal in (False, True):
        leaves = [x.clone().requires_grad_() for x in draws[:3]]
        out, lse = attention(*leaves, causal=causal, return_lse=True, impl="reference")
        truth = [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, draws[3])]
        for name in ("triton-v1", "triton"):
            place = {"item": name, "input": "causal" if causal else "full"}
            try:
                rows += _errors(place, _run(name, draws, causal), truth)
            except Exception as error:
                rows.append({**place, "metric": "no number", "value": 1.0, "note": f"{type(error).__name__}: {error}"})
    return rows


def _run(name: str, draws: list[Tensor], causal: bool) -> list[Tensor]:
    leaves = [x.float().requires_grad_() for x in draws[:3]]
    out, lse = attention(*leaves, causal=causal, return_lse=True, impl=name)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, draws[3].float())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(_interpret(int(sys.argv[1]))))

"""Gather each sequence's keys, then attend: the specification of decode and prefill over a cache.

Bottom-right causal attention over exactly the valid tokens; what else the cache holds (NaN included) is never touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench_kernels.decode.problem import Problem
from workbench_kernels.decode.view import CacheView
from workbench_kernels.softmax_attention.api import attention


def decode(problem: Problem, q: Tensor, view: CacheView, impl: str) -> tuple[Tensor, Tensor]:
    """Returns out (B, Q, H, D) in q's dtype and lse (B, Q, H) in the accumulator's."""
    parts = [_sequence(problem, q[b : b + 1], k, v, impl) for b, (k, v) in enumerate(view.sequences())]
    if not parts:
        kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=kind)
    out, lse = zip(*parts)
    return torch.cat(out), torch.cat(lse)


prefill = decode


def _sequence(problem: Problem, q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    words: dict[str, Any] = {name: getattr(problem, name) for name in ("scale", "window", "softcap", "sinks")}
    with torch.no_grad():
        return attention(q, k, v, causal=True, return_lse=True, impl=impl, **words)

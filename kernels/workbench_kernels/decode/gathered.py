"""Gather each sequence's keys, then attend: the specification of decode and prefill over a cache.

Bottom-right causal attention over exactly the valid tokens; what else the cache holds (NaN included) is never touched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench_kernels.decode.problem import Problem
from workbench_kernels.decode.view import CacheView
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention import problem as softmax
from workbench_kernels.softmax_attention import reference, tiled

_ATTENTION = {"reference": reference.attention, "tiled": tiled.forward}


@torch.no_grad()
def decode(problem: Problem, q: Tensor, view: CacheView, impl: str) -> tuple[Tensor, Tensor]:
    """Returns out (B, Q, H, D) in q's dtype and lse (B, Q, H) in the accumulator's."""
    parts = [_sequence(problem, q[b : b + 1], k, v, impl) for b, (k, v) in enumerate(view.sequences())]
    if not parts:
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=softmax.accumulator(q.dtype))
    out, lse = zip(*parts)
    return torch.cat(out), torch.cat(lse)


prefill = decode


def _sequence(problem: Problem, q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """The implementation itself: the door's look for NaN would read the keys once more than the work does."""
    masks = masking(q, k, causal=True, window=problem.window, key_padding=None, mask=None)
    return _ATTENTION[impl](softmax.Problem(masks, problem.scale, problem.softcap), q, k, v, problem.sinks)

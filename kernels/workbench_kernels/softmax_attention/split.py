"""``impl="split"``: one to eight queries over many keys, the keys shared by the whole card (flash-decoding).

A row block of a decoding step is one query: other kernels give each head one program, which leaves most of the card
idle. This one is the decode kernel of ``workbench_kernels.decode`` over keys that lie in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench_kernels.softmax_attention.problem import Problem

MOST_QUERIES = 8


def refuses(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """Why this implementation cannot take the call; None = it can."""
    from workbench_kernels.decode.api import no_triton

    masks = problem.masking
    others = (masks.key_padding, masks.allowed, masks.bias, masks.blocks)
    reasons = {
        f"takes 1..{MOST_QUERIES} queries, got {q.shape[1]}": not 1 <= q.shape[1] <= MOST_QUERIES,
        "needs causal=True for more than one query": not masks.causal and q.shape[1] != 1,
        "takes no masks beside causal and window": any(x is not None for x in others),
        "has no dropout": problem.dropout > 0,
        "gives no gradients": torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)),
        f"needs values of the keys' head dim, at most 256, got {k.shape[3]} and {v.shape[3]}": (
            k.shape[3] != v.shape[3] or k.shape[3] > 256
        ),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None) or no_triton(q)
    return reason and f"it {reason}"


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns out (B, Nq, H, D) in q's dtype and lse (B, Nq, H) float32; neither carries a gradient."""
    from workbench_kernels.decode import launch
    from workbench_kernels.decode.problem import Problem as Decode
    from workbench_kernels.decode.view import CacheView

    lengths = torch.full((q.shape[0],), k.shape[1], dtype=torch.int32, device=q.device)
    words = Decode(problem.scale, problem.masking.window, problem.softcap, sinks)
    return launch.decode(words, q, CacheView(k, v, lengths, "contiguous", None))

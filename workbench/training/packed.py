"""Attention over a row of packed documents: exact, causal, never across a document's end.

On CUDA the flash kernel's variable-length form is used, so short documents cost little; elsewhere a block mask.
Registered with transformers as ``workbench-packed`` by the training loop only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "workbench-packed"


def packed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
                     scaling: float | None = None, dropout: float = 0.0, *, cu_seqlens: Tensor, longest: int,
                     **_: Any) -> tuple[Tensor, None]:  # fmt: skip
    """transformers attention function; query (1, H, T, D), key and value (1, H_kv, T, D), out (1, T, H, D)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.device.type == "cuda":
        q, k, v = (x[0].transpose(0, 1).to(torch.bfloat16).contiguous() for x in (query, key, value))  # t h d
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest, 0.0, True, False, scale=scaling
        )[0]
        return out[None], None
    return _masked(query, key, value, cu_seqlens, scaling).transpose(1, 2), None


def _masked(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scaling: float | None) -> Tensor:
    positions = torch.arange(query.shape[2], device=query.device)
    document = torch.searchsorted(cu_seqlens, positions, right=True)
    see = (document[:, None] == document[None, :]) & (positions[:, None] >= positions[None, :])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=see, scale=scaling)


def register() -> str:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    return NAME

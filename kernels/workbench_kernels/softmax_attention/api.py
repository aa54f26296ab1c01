"""The one public attention function: it validates, then hands the work to an implementation by name."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from torch import Tensor

from workbench_kernels import checks
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention.problem import Problem

#: name -> module; a module is imported when it is first asked for.
IMPLEMENTATIONS = {
    "reference": "workbench_kernels.softmax_attention.reference",
    "tiled": "workbench_kernels.softmax_attention.tiled",
}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_padding: Tensor | None = None,
    mask: Tensor | None = None,
    block_mask: Tensor | None = None,
    block_size: int | tuple[int, int] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
    """Exact softmax attention, ``softmax(scale * q k^T + masks) v``, with grouped key/value heads.

    Args:
        q: (B, Nq, H, D) float64/32 or bfloat16/float16; any strides, last dimension contiguous.
        k: (B, Nk, Hkv, D); query head ``h`` reads key head ``h // (H / Hkv)``. Heads are never repeated in memory.
        v: (B, Nk, Hkv, Dv).
        causal: query i sees keys j <= i + Nk - Nq (aligned bottom-right, as a decoding step needs it).
        scale: factor on the scores before softcap; default 1 / sqrt(D).
        window: also j > i + Nk - Nq - window.
        softcap: scores become softcap * tanh(scores / softcap) before any mask.
        sinks: (H,) extra logits that join the denominator only (gpt-oss).
        key_padding: bool (B, Nk), True = real token.
        mask: bool (True = see) or additive, broadcastable to (B, H, Nq, Nk).
        block_mask: bool (T_r, T_c) or (B|1, H|1, T_r, T_c), one entry per ``block_size`` tile; dead tiles are skipped.
        block_size: (rows, columns) of a tile. Required with ``block_mask``; alone it sets the tile of ``impl="tiled"``.
        dropout: probability of dropping a weight after the softmax; the draw is a hash of ``seed`` and the position.
        impl: "auto", "reference" (plain torch, the specification) or "tiled" (FlashAttention order, memory linear
            in N, forward and backward).

    Returns:
        out (B, Nq, H, Dv) in q's dtype; with ``return_lse`` also lse (B, Nq, H), natural log, float32 (float64 for
        float64 inputs), sinks included. A query that sees nothing gets 0 and -inf, and finite (zero) gradients.
        "reference" is differentiable through the lse and an additive mask, "tiled" through q, k, v and sinks only.

    Raises:
        ValueError: naming the argument, what came and what is legal.
    """
    checks.queries_and_keys(q, k)
    checks.values(v, q, k)
    checks.positive("softcap", softcap)
    _check_sinks(sinks, q)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    masks = masking(
        q,
        k,
        causal=causal,
        window=window,
        key_padding=key_padding,
        mask=mask,
        block_mask=block_mask,
        block_size=block_size,
    )
    problem = Problem(masks, softmax_scale(scale, q), softcap, dropout, seed)
    chosen = import_module(IMPLEMENTATIONS[_pick(impl, mask)])
    out, lse = chosen.attention(problem, q, k, v, sinks)
    return (out, lse) if return_lse else out


def softmax_scale(scale: float | None, q: Tensor) -> float:
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite or None for 1 / sqrt(head dim), got {scale}")
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


def _pick(impl: str, mask: Tensor | None) -> str:
    checks.choice("impl", impl, ("auto", *IMPLEMENTATIONS))
    trains_mask = mask is not None and mask.requires_grad
    if impl == "tiled" and trains_mask:
        raise ValueError("mask requires a gradient, which impl='tiled' does not give; use impl='reference'")
    if impl != "auto":
        return impl
    return "reference" if trains_mask else "tiled"


def _check_sinks(sinks: Tensor | None, q: Tensor) -> None:
    if sinks is None:
        return
    if tuple(sinks.shape) != (q.shape[2],) or not sinks.dtype.is_floating_point:
        raise ValueError(
            f"sinks must be floating point of shape (heads,) = ({q.shape[2]},), got {sinks.dtype} {tuple(sinks.shape)}"
        )
    if sinks.device != q.device:
        raise ValueError(f"sinks is on {sinks.device} but q is on {q.device}")

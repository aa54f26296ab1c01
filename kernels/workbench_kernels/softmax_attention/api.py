"""The one public attention function: it validates, then hands the work to an implementation by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from workbench_kernels import checks
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention.problem import Problem

#: name -> module with ``attention(problem, q, k, v, sinks)`` and ``refuses(...)`` (why it cannot take a call, or None);
#: a module is imported when it is first asked for.
IMPLEMENTATIONS = {
    "reference": "workbench_kernels.softmax_attention.reference",
    "tiled": "workbench_kernels.softmax_attention.tiled",
    "triton": "workbench_kernels.softmax_attention.portable.flash2",
    "triton-v1": "workbench_kernels.softmax_attention.portable.flash1",
    "hopper": "workbench_kernels.softmax_attention.hopper",
    "split": "workbench_kernels.softmax_attention.split",
}
#: Who is asked, in this order, by ``impl="auto"``; the last one takes everything.
AUTO = {"cuda": ("split", "hopper", "triton", "tiled", "reference")}
AUTO_ELSEWHERE = ("tiled", "reference")
#: Whose backward pass adds up the gradient of q in no fixed order: not asked when the call has to be deterministic.
UNORDERED = ("hopper",)
LARGEST_SEED = 2**33  # the dropout hash multiplies it into 64 bits


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
    deterministic: bool | None = None,
    check_nan: bool = False,
    impl: str | Sequence[str] = "auto",
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
        deterministic: the same inputs give the same bits, gradients included; None asks
            ``torch.are_deterministic_algorithms_enabled()``. Only "hopper" adds up a gradient in varying order.
        check_nan: look for NaN in q, k and v and say where the first one is. On the CPU this is always done; on a
            GPU it waits for the queue, so it is done on request.
        impl: "auto" picks by device, card and call; otherwise "reference" (plain torch, the specification), "tiled"
            (torch, FlashAttention order, memory linear in N), "triton" (any CUDA card, head dim up to 256),
            "triton-v1" (the first FlashAttention's loop order, for comparison), "hopper" (compute capability 9.0) or
            "split" (one to eight queries over many keys, no gradients).
            Several names are tried in their order.

    Returns:
        out (B, Nq, H, Dv) in q's dtype; with ``return_lse`` also lse (B, Nq, H), natural log, float32 (float64 for
        float64 inputs), sinks included. A query that sees nothing gets 0 and -inf, and finite (zero) gradients.
        Every implementation is differentiable in q, k, v and (where it takes them) sinks; "reference", "triton" and
        "hopper" through the lse as well, "reference" alone in an additive mask.

    Raises:
        ValueError: naming the argument, what came and what is legal; with ``impl`` given, also why that
            implementation cannot take the call.
    """
    checks.queries_and_keys(q, k, nan=check_nan)
    checks.values(v, q, k, nan=check_nan)
    checks.softcap(softcap)
    checks.sinks(sinks, q)
    if not checks.is_real(dropout) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}")
    if not checks.is_whole(seed) or abs(seed) >= LARGEST_SEED:
        raise ValueError(f"seed must lie between -2^33 and 2^33, a whole number, got {seed!r}")
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
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    problem = Problem(masks, softmax_scale(scale, q), softcap, dropout, int(seed), deterministic)
    chosen = IMPLEMENTATIONS[pick(problem, q, k, v, sinks, impl=impl)]
    out, lse = import_module(chosen).attention(problem, q, k, v, sinks)
    return (out, lse) if return_lse else out


def pick(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *, impl: str | Sequence[str] = "auto"
) -> str:
    """The implementation that takes a call; raises ``ValueError`` when none of those asked for by name can."""
    names = tuple(impl) if isinstance(impl, Sequence) and not isinstance(impl, str) else (impl,)
    for name in names or ("",):
        checks.choice("impl", name, ("auto", *IMPLEMENTATIONS))
    if names == ("auto",):
        names = AUTO.get(q.device.type, AUTO_ELSEWHERE)
    reasons = {}
    for name in names:
        reasons[name] = refusal(name, problem, q, k, v, sinks)
        if reasons[name] is None:
            return name
    told = "; ".join(f"{reason} (impl={name!r})" for name, reason in reasons.items())
    raise ValueError(f"{told}; 'auto' picks an implementation that takes this call")


def refusal(name: str, problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """Why an implementation cannot take a call, or ``None``; a missing package is such a reason."""
    try:
        module = import_module(IMPLEMENTATIONS[name])
    except ImportError as missing:
        return f"impl {name!r} cannot be imported here: {missing}"
    reason = module.refuses(problem, q, k, v, sinks)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if reason is None and name in UNORDERED and problem.deterministic and trained:
        return "deterministic is set, but this backward pass adds up the gradient of q in no fixed order"
    return reason


def softmax_scale(scale: float | None, q: Tensor) -> float:
    number = checks.is_real(scale) or (isinstance(scale, Tensor) and scale.numel() == 1)
    if scale is not None and not (number and math.isfinite(scale)):
        raise ValueError(f"scale must be finite or None for 1 / sqrt(head dim), got {scale!r}")
    return float(q.shape[-1] ** -0.5 if scale is None else scale)

"""Public functions of the attention microscope: they validate, pack the heads and pick the streaming routine.

All of them take post-rotary queries (B, Nq, H, D) and keys (B, Nk, Hkv, D) and the row LSE (B, Nq, H), natural log with
learned sinks in it, as the fast kernel left them. Probabilities are exp(score - lse), so a row whose denominator
includes a sink sums to less than one. Masks mean what they mean in :func:`workbench_kernels.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from workbench_kernels import checks
from workbench_kernels.maps import pooled as _pooled
from workbench_kernels.maps import region as _region
from workbench_kernels.maps import statistics as _statistics
from workbench_kernels.maps.view import Looked, checked_index, head_indices, look
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention.api import attention, softmax_scale

Heads: TypeAlias = int | slice | Sequence[int] | Tensor | None


def attention_region(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    rows: Any = None,
    cols: Any = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    key_padding: Tensor | None = None,
    mask: Tensor | None = None,
    heads: Heads = None,
) -> Tensor:
    """Exact attention probabilities of a region, (B, len(heads), R, C) float32 (float64 for float64 inputs).

    ``rows`` and ``cols`` are slices, index tensors or bool vectors; ``heads`` are query heads (default: all).
    """
    looked = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads)
    row_index = checked_index("rows", rows, q.shape[1], q.device)
    return _region.region(looked, row_index, checked_index("cols", cols, k.shape[1], q.device))


def pooled_attention(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    shape: tuple[int, int] = (512, 512),
    reduce: str = "mean",
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    key_padding: Tensor | None = None,
    mask: Tensor | None = None,
    rows: slice | None = None,
    cols: slice | None = None,
    heads: Heads = None,
    progress: Callable[[float], object] | None = None,
) -> Tensor:
    """The map pooled to at most ``shape`` cells, (B, len(heads), min(R, Nq), min(C, Nk)).

    ``reduce`` is "mean" (masked cells count as 0), "sum" (mass: for rows of one query each, a row adds up to what the
    query gives to the selected keys) or "max". Bin b covers positions floor(b N / R) .. floor((b + 1) N / R) - 1 of the
    selected ``rows`` / ``cols`` (contiguous slices). ``progress`` is called with the fraction done. Memory is
    linear in N.
    """
    checks.choice("reduce", reduce, ("mean", "sum", "max"))
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"shape must be two integers >= 1, got {shape}")
    looked = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads, progress)
    down, across = _bins("rows", rows, q.shape[1], shape[0]), _bins("cols", cols, k.shape[1], shape[1])
    return _pooled.pooled(looked, down, across, reduce)


def attention_statistics(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    key_padding: Tensor | None = None,
    mask: Tensor | None = None,
    heads: Heads = None,
    topk: int = 8,
    sink_keys: int = 4,
    progress: Callable[[float], object] | None = None,
) -> dict[str, Tensor]:
    """Per-row statistics of the exact probabilities p, streamed over tiles.

    Returns a dict: ``entropy`` (B, h, Nq) = -sum p ln p in nats; ``sink_mass`` (B, h, Nq) on the first ``sink_keys``
    real keys of each sequence; ``mass`` (B, h, Nq) = sum p (less than 1 by a learned sink's share, 0 for empty rows);
    ``top_probs``, ``top_keys`` (B, h, Nq, topk); ``distance_profile`` (B, h, bins), mean over queries of the mass at
    each distance, and ``distance_edges`` (bins,), their left edges 0, 1, 2, 4, 8, ...
    """
    checks.positive("topk", topk)
    looked = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads, progress)
    real = torch.ones(q.shape[0], k.shape[1], dtype=torch.bool, device=q.device) if key_padding is None else key_padding
    first = real & (real.cumsum(1) <= sink_keys)
    return _statistics.statistics(looked, topk, first.to(looked.q.dtype))


def attention_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    keys: Any,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    key_padding: Tensor | None = None,
    mask: Tensor | None = None,
    heads: Heads = None,
) -> Tensor:
    """(B, len(heads), Nq): the probability each query gives to some keys (slice, indices or bool vector)."""
    looked = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads)
    return _region.mass(looked, checked_index("keys", keys, k.shape[1], q.device))


def row_lse(q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """(B, Nq, H) natural log of each row's denominator; ``options`` as in ``attention`` (masks, scale, sinks)."""
    checks.queries_and_keys(q, k)
    with torch.no_grad():
        return attention(q, k, k[..., :1], return_lse=True, **options)[1]


def _look(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    key_padding: Tensor | None,
    mask: Tensor | None,
    heads: Heads,
    progress: Callable[[float], object] | None = None,
) -> Looked:
    checks.queries_and_keys(q, k)
    checks.positive("softcap", softcap)
    if tuple(lse.shape) != tuple(q.shape[:3]):
        raise ValueError(f"lse must have shape (batch, queries, heads) = {tuple(q.shape[:3])}, got {tuple(lse.shape)}")
    chosen = head_indices(heads, q.shape[2], q.device)
    masks = masking(q, k, causal=causal, window=window, key_padding=key_padding, mask=mask)
    masks = masks.of_heads(chosen)
    with torch.no_grad():
        q, k, lse = q.detach(), k.detach(), lse.detach()
        looked = look(q, k, lse, scale=softmax_scale(scale, q), softcap=softcap, masking=masks, heads=chosen)
    return looked if progress is None else looked.with_progress(progress)


def _bins(name: str, span: slice | None, length: int, count: int) -> _pooled.Bins:
    index = checked_index(name, span, length, torch.device("cpu"))
    if not isinstance(index, slice) or (index.step or 1) != 1:
        raise ValueError(f"{name} must be a contiguous slice or None, got {span!r}")
    start, stop, _ = index.indices(length)
    return _pooled.Bins(start, stop, min(count, stop - start))

"""Public functions of the attention microscope: they validate, pack the heads and pick the streaming routine.

All of them take post-rotary queries (B, Nq, H, D) and keys (B, Nk, Hkv, D) and the row LSE (B, Nq, H), natural log with
learned sinks in it, as the fast kernel left them. Probabilities are exp(score - lse), so a row whose denominator
includes a sink sums to less than one. Masks mean what they mean in :func:`workbench_kernels.attention`.

``impl`` is "auto", "torch" (any device and dtype, the specification) or "triton" (CUDA; bfloat16, float16, float32;
head dim up to 256; causal, window, soft cap, key padding, grouped heads; no full mask matrix). "auto" takes Triton on
CUDA wherever it can take the call. Asking for "triton" where it cannot is a ValueError that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import Tensor

from workbench_kernels import checks
from workbench_kernels.maps.problem import Bins, Look, checked_index, head_indices
from workbench_kernels.masking import masking, positions
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
    impl: str = "auto",
) -> Tensor:
    """Exact attention probabilities of a region, (B, len(heads), R, C) float32 (float64 for float64 inputs).

    ``rows`` and ``cols`` are slices, index tensors or bool vectors; ``heads`` are query heads (default: all).
    """
    look = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads)
    row_index = checked_index("rows", rows, q.shape[1], q.device)
    return _pick(impl, look, "region").region(look, row_index, checked_index("cols", cols, k.shape[1], q.device))


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
    impl: str = "auto",
) -> Tensor:
    """The map pooled to at most ``shape`` cells, (B, len(heads), min(R, Nq), min(C, Nk)).

    ``reduce`` is "mean" (masked cells count as 0), "sum" (mass: for rows of one query each, a row adds up to what the
    query gives to the selected keys) or "max". Bin b covers positions floor(b N / R) .. floor((b + 1) N / R) - 1 of the
    selected ``rows`` / ``cols`` (contiguous slices). ``progress`` is called with the fraction done. Memory is
    linear in N.
    """
    checks.choice("reduce", reduce, ("mean", "sum", "max"))
    _two("shape", shape)
    look = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads, progress)
    down, across = _bins("rows", rows, q.shape[1], shape[0]), _bins("cols", cols, k.shape[1], shape[1])
    return _pick(impl, look, "pooled").pooled(look, down, across, reduce)


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
    impl: str = "auto",
) -> dict[str, Tensor]:
    """Per-row statistics of the exact probabilities p, streamed over tiles.

    Returns a dict: ``entropy`` (B, h, Nq) = -sum p ln p in nats; ``sink_mass`` (B, h, Nq) on the first ``sink_keys``
    real keys of each sequence; ``mass`` (B, h, Nq) = sum p (less than 1 by a learned sink's share, 0 for empty rows);
    ``mean_distance`` (B, h, Nq) in tokens, weighted by p (0 for empty rows); ``top_probs``, ``top_keys`` (B, h, Nq, k),
    k = min(topk, Nk), descending, 0 and -1 where a row gives nothing to so many keys; ``distance_profile``
    (B, h, bins), mean over queries of the mass at each distance |query - key|, queries aligned bottom-right, and
    ``distance_edges`` (bins,), their left edges 0, 1, 2, 4, 8, ...
    """
    topk, sink_keys = checks.whole("topk", topk), checks.whole("sink_keys", sink_keys, 0)
    look = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads, progress)
    sinks = _first_keys(look, min(sink_keys, k.shape[1]))
    return _pick(impl, look, "statistics", topk).statistics(look, topk, sinks)


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
    impl: str = "auto",
) -> Tensor:
    """(B, len(heads), Nq): the probability each query gives to some keys, such as the slots of a memory.

    ``keys`` is a slice, indices (a key named twice counts twice) or a bool vector.
    """
    look = _look(q, k, lse, causal, scale, window, softcap, key_padding, mask, heads)
    index = positions(checked_index("keys", keys, k.shape[1], q.device), k.shape[1], q.device)
    return _pick(impl, look, "mass").mass(look, index)


def row_lse(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_padding: Tensor | None = None,
    mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """(B, Nq, H) natural log of each row's denominator, learned ``sinks`` (H,) in it; -inf for rows without any."""
    checks.queries_and_keys(q, k)
    checks.sinks(sinks, q)
    look = _look(q, k, q[..., 0], causal, scale, window, softcap, key_padding, mask, None)
    if _choice(impl, look) == "triton":
        lse = _pick("triton", look, "row_lse").row_lse(look)
        return lse if sinks is None else torch.logaddexp(lse, sinks.to(lse))
    words: dict[str, Any] = {"causal": causal, "scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
    with torch.no_grad():
        return attention(q, k, k[..., :1], return_lse=True, key_padding=key_padding, mask=mask, **words)[1]


#: What to do -> the module of each implementation that does it.
_MODULES = {
    "torch": {"pooled": "pooled", "region": "region", "mass": "region", "statistics": "statistics"},
    "triton": {"pooled": "fast.pooled"} | dict.fromkeys(("region", "mass", "statistics", "row_lse"), "fast.rows"),
}


def _choice(impl: str, look: Look, topk: int = 0) -> str:
    """The implementation asked for, or the fast one where it can take the call."""
    checks.choice("impl", impl, ("auto", "torch", "triton"))
    if impl == "torch" or (impl == "auto" and not look.q.is_cuda):
        return "torch"
    try:
        launch = import_module("workbench_kernels.maps.fast.launch")
    except ImportError as error:
        reason: str | None = f"triton cannot be imported ({error})"
    else:
        reason = launch.refuses(look, topk)
    if reason and impl == "triton":
        raise ValueError(f"impl='triton' cannot take this call: {reason}; use impl='torch' or 'auto'")
    return "torch" if reason else "triton"


def _pick(impl: str, look: Look, what: str, topk: int = 0) -> Any:
    return import_module(f"workbench_kernels.maps.{_MODULES[_choice(impl, look, topk)][what]}")


def _first_keys(look: Look, count: int) -> Tensor:
    """(B, max(count, 1)) positions of the first real keys of each sequence, -1 where there are fewer."""
    padding = look.masking.key_padding
    if count == 0:
        return torch.full((look.batch, 1), -1, device=look.q.device)
    if padding is None:
        return torch.arange(count, device=look.q.device).expand(look.batch, count)
    order = torch.argsort(~padding, dim=1, stable=True)[:, :count]
    return order.masked_fill(~padding.gather(1, order), -1)


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
    impl: str = "auto",
) -> Look:
    checks.queries_and_keys(q, k)
    checks.softcap(softcap)
    checks.tensor("lse", lse)
    if tuple(lse.shape) != tuple(q.shape[:3]):
        raise ValueError(f"lse must have shape (batch, queries, heads) = {tuple(q.shape[:3])}, got {tuple(lse.shape)}")
    if not lse.dtype.is_floating_point:
        raise ValueError(f"lse must be floating point (natural log of each row's denominator), got {lse.dtype}")
    if lse.device != q.device:
        raise ValueError(f"lse is on {lse.device} but q is on {q.device}")
    chosen = head_indices(heads, q.shape[2], q.device)
    masks = masking(q, k, causal=causal, window=window, key_padding=key_padding, mask=mask).of_heads(chosen)
    scale = softmax_scale(scale, q)
    return Look(q.detach(), k.detach(), lse.detach(), chosen, scale, softcap, masks, progress)


def _two(name: str, pair: Any) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(checks.is_whole(x, 1) for x in pair):
        raise ValueError(f"{name} must be two integers >= 1, got {pair!r}")


def _bins(name: str, span: slice | None, length: int, count: int) -> Bins:
    index = checked_index(name, span, length, torch.device("cpu"))
    if not isinstance(index, slice) or (index.step or 1) != 1:
        raise ValueError(f"{name} must be a contiguous slice or None, got {span!r}")
    start, stop, _ = index.indices(length)
    return Bins(start, stop, min(count, stop - start))

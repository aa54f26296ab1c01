"""The public functions: they validate, then hand the work to an implementation by name."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from workbench_kernels import checks
from workbench_kernels.decode.problem import Problem
from workbench_kernels.decode.view import cache_view
from workbench_kernels.softmax_attention.api import softmax_scale

#: name -> module; a module is imported when it is first asked for.
IMPLEMENTATIONS = {
    "reference": "workbench_kernels.decode.gathered",
    "tiled": "workbench_kernels.decode.gathered",
    "triton": "workbench_kernels.decode.launch",
}
#: Queries a sequence that ``decode_attention`` takes; more are a prefill.
MOST_QUERIES = 8


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    lengths: Tensor,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    impl: str = "auto",
    splits: int | None = None,
    check: bool | None = None,
) -> Any:
    """Attention of the newest one to eight tokens of each sequence over its cache; no gradients.

    The keys of all sequences are cut into equal shares that run in parallel and are merged afterwards (flash-decoding),
    and the query heads that share a key head are the rows of one product, so keys and values are read once: 2 * length
    * Hkv * D elements a sequence are the bytes that must move. Lengths and tables are read on the card: a captured CUDA
    graph serves a whole generation.

    Args:
        q: (B, Q, H, D), 1 <= Q <= 8: the last Q tokens of each sequence, already in the cache.
        k_cache, v_cache: (B, L, Hkv, D), sequence b in row b; with ``slots`` (S, L, Hkv, D), sequence b in row
            ``slots[b]``, any distance between rows (64-bit); with ``block_table`` (num_blocks, block, Hkv, D), token
            t of sequence b in block ``block_table[b, t // block]``. Any strides, last dimension contiguous.
        lengths: (B,) int32 or int64, tokens of each sequence, the Q new ones included; 0 is allowed.
        slots: (B,) int32 or int64. block_table: (B, max_blocks) int32, block a power of two; entries beyond a
            sequence's length are never read.
        scale: factor on the scores before softcap; default 1 / sqrt(D).
        window: query at position p sees keys j with p - window < j <= p.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: (H,) logits that join the denominator only.
        impl: "auto", "reference" or "tiled" (plain torch: gather, then attend; float64 too), "triton" (CUDA).
        splits: shares for each sequence and key head, on average (Triton); by default the card's multiprocessors say
            how many shares there are in all.
        check: read what is inside lengths, slots and block_table and refuse what is out of range. By default only on
            a CPU, because on a GPU it waits for the queue; unchecked lengths are cut to the capacity there.

    Returns:
        out (B, Q, H, D) in q's dtype; with ``return_lse`` also lse (B, Q, H), natural log, float32 (float64 for
        float64), sinks included. A query that sees nothing gets 0 and -inf.

    Raises:
        ValueError: naming the argument, what came and what is legal.

    >>> import torch
    >>> q, cache = torch.zeros(2, 1, 4, 16), torch.ones(2, 32, 2, 16)
    >>> decode_attention(q, cache, cache, lengths=torch.tensor([5, 0]))[:, 0, 0, 0]
    tensor([1., 0.])
    """
    view = cache_view(q, k_cache, v_cache, lengths, slots, block_table, check)
    if q.shape[1] > MOST_QUERIES:
        raise ValueError(f"q has {q.shape[1]} queries a sequence; decode takes 1..{MOST_QUERIES}, paged_attention more")
    if splits is not None and not checks.is_whole(splits, 1):
        raise ValueError(f"splits must be at least 1, a whole number, or None to choose by the device, got {splits!r}")
    problem = _problem(q, scale, window, softcap, sinks, None if splits is None else int(splits))
    chosen = _pick(impl, q)
    out, lse = import_module(IMPLEMENTATIONS[chosen]).decode(problem, q, view, chosen)
    return (out, lse) if return_lse else out


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    lengths: Tensor,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    impl: str = "auto",
    check: bool | None = None,
) -> Any:
    """Causal attention of the newest Q tokens of each sequence, Q any number: a prefill over a cache; no gradients.

    Arguments, result and errors as in :func:`decode_attention`. One tile kernel serves every kind of cache, so that a
    race of a contiguous cache against a block table measures the table and nothing else.
    """
    view = cache_view(q, k_cache, v_cache, lengths, slots, block_table, check)
    problem = _problem(q, scale, window, softcap, sinks, None)
    chosen = _pick(impl, q)
    out, lse = import_module(IMPLEMENTATIONS[chosen]).prefill(problem, q, view, chosen)
    return (out, lse) if return_lse else out


def _problem(
    q: Tensor, scale: float | None, window: int | None, softcap: float | None, sinks: Tensor | None, splits: int | None
) -> Problem:
    window = checks.window(window)
    checks.softcap(softcap)
    checks.sinks(sinks, q)
    return Problem(softmax_scale(scale, q), window, softcap, sinks, splits)


def _pick(impl: str, q: Tensor) -> str:
    checks.choice("impl", impl, ("auto", *IMPLEMENTATIONS))
    reason = no_triton(q) if impl in ("auto", "triton") else None
    if impl == "triton" and reason:
        raise ValueError(f"impl='triton' {reason}; use impl='tiled'")
    if impl == "auto":
        return "tiled" if reason or q.device.type != "cuda" else "triton"
    return impl


def no_triton(q: Tensor) -> str | None:
    """Why the Triton kernels cannot take this call."""
    if q.dtype == torch.float64:
        return "has no float64"
    try:
        import triton
    except ImportError:
        return "needs the package triton"
    interpreted = triton.knobs.runtime.interpret
    if q.device.type != "cuda" and not interpreted:
        return f"needs CUDA tensors, got {q.device}"
    if q.device.type == "cuda" and _capability(q.device) < (8, 0):
        return f"needs a card of compute capability 8.0 or later, got {_capability(q.device)}"
    if interpreted and q.dtype == torch.bfloat16:
        return "has no bfloat16 in Triton's interpreter"
    return None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)

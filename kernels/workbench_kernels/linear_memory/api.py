"""``linear_recurrence``: checks, feature map, packed documents, and the choice of an implementation."""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from workbench_kernels import checks

IMPLEMENTATIONS = ("triton", "chunked", "reference")
#: ``impl="auto"`` asks "triton" on CUDA for half precision and for rows of so many tokens; shorter rows of float32 are
#: bound by launches either way, and torch computes them in full float32. "chunked" takes everything.
LONG = 1024


def _taylor(x: Tensor) -> Tensor:
    """[1, x/f^(1/4), x(x)x/sqrt(2f)]: products are 1 + s + s^2/2, s = q.k/sqrt(f) (BASED)."""
    f = x.shape[-1]
    pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) / (2 * f) ** 0.5
    return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, pairs], -1)


FEATURE_MAPS = {
    "identity": lambda x: x,
    "elu+1": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
    "taylor": _taylor,
}


def _wide(x: Tensor) -> torch.dtype:
    """The dtype that memories are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _features(name: str, dim: int) -> int:
    return 1 + dim + dim * dim if name == "taylor" else dim


def _map(name: str, x: Tensor) -> Tensor:
    return FEATURE_MAPS[checks.choice("feature_map", name, tuple(FEATURE_MAPS))](x.to(_wide(x)))


def _with_ones(v: Tensor) -> Tensor:
    """A column of ones beside the values: its read is the denominator."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def _check_gate(
    name: str, gate: Tensor, q: Tensor, low: float, high: float, dims: tuple[int, ...], values: bool
) -> None:
    shapes = [(*q.shape[:3], *([d] if d else [])) for d in dims]
    if not isinstance(gate, Tensor) or gate.is_complex():
        legal = " or ".join(map(str, shapes))
        raise ValueError(f"{name} must be a tensor of real numbers, {legal}, got {checks.told(gate)}")
    if tuple(gate.shape) not in shapes:
        raise ValueError(f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(gate.shape)}")
    if gate.device != q.device:
        raise ValueError(f"{name} is on {gate.device} but q is on {q.device}")
    if values and gate.numel() and not bool(((gate >= low) & (gate <= high)).all()):
        raise ValueError(f"{name} must lie in [{low}, {high}], got {gate.min():.4g} to {gate.max():.4g}")


def _check_offsets(offsets: Tensor, q: Tensor, values: bool) -> None:
    integers = isinstance(offsets, Tensor) and offsets.dtype in (torch.int64, torch.int32)
    if not integers or offsets.dim() != 1 or len(offsets) < 2:
        raise ValueError("offsets must be a 1-d int64 or int32 tensor [0, end of document 1, ..., S]")
    if q.shape[0] != 1:
        raise ValueError(f"packed documents need batch 1, got batch {q.shape[0]}")
    if offsets.device != q.device:
        raise ValueError(f"offsets is on {offsets.device} but q is on {q.device}")
    ends = offsets.tolist() if values or offsets.device.type == "cpu" else [0, q.shape[1]]
    if ends[0] != 0 or ends[-1] != q.shape[1] or any(a > b for a, b in itertools.pairwise(ends)):
        raise ValueError(f"offsets must increase from 0 to the length {q.shape[1]}, got {ends}")


def _check_state(state: Tensor | None, shape: tuple[int, ...], q: Tensor) -> None:
    if state is None:
        return
    fits = isinstance(state, Tensor) and tuple(state.shape) == shape
    if not fits or state.dtype != _wide(q) or state.device != q.device:
        raise ValueError(
            f"state must be {_wide(q)} of shape {shape} on {q.device}, got {checks.told(state)}; "
            "start from None or from this call's own final state"
        )


def _check_keep(keep: Tensor | None, k: Tensor) -> None:
    if keep is None:
        return
    fits = isinstance(keep, Tensor) and keep.shape == k.shape[:2] and keep.dtype == torch.bool
    if not fits or keep.device != k.device:
        raise ValueError(f"keep must be bool of shape {tuple(k.shape[:2])} on {k.device}, got {checks.told(keep)}")


def _repeat(k: Tensor, heads: int) -> Tensor:
    return k.repeat_interleave(heads // k.shape[2], 2)


def linear_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    feature_map: str = "identity",
    normalize: bool = False,
    epsilon: float = 1e-6,
    scale: float = 1.0,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    chunk: int | None = None,
    check_values: bool = True,
    keep: bool | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A matrix memory per head: decay, write, then read, token by token.

    q, k (B, S, H, D), v (B, S, H, Dv); k and v may have fewer heads that divide those of q. ``log_decay``
    <= 0, (B, S, H) for a scalar gate or (B, S, H, D) for a gate per key channel (GLA); ``beta`` in [0, 1],
    (B, S, H), turns the write into the delta rule; both together are the gated delta rule (decay first).
    ``feature_map``, a key of ``FEATURE_MAPS``, maps q and k. ``normalize`` divides by the read of a column of ones plus
    ``epsilon`` (linear attention); ``scale`` multiplies q after the feature map. ``state``: what to begin with, of the
    final state's shape and type; None is an empty memory. ``offsets`` [0, ..., S] packs documents in batch 1, each with
    its own row of the state. ``chunk``: tokens that are taken at once, the same numbers but for rounding; None decides.
    ``check_values=False`` leaves out the looks for NaN and for gates out of range, which wait for a GPU's queue and
    cannot be had under ``torch.func.vmap`` or in a CUDA graph, and on a GPU the look whether ``offsets`` increase to S
    (others would read memory that is not theirs); shapes, types and devices are always checked.
    ``keep``: whether the Triton kernels hold on to their states for the backward pass (True) or make them again there
    (False): time against memory, the same numbers. None: the delta rules keep them where a call's take at most 1/16 of
    the card's memory (.67 GB for 32k tokens of 16 heads of 128 in bfloat16), the other rules never.
    ``impl``: "auto" picks by device and call, "triton" (CUDA; bfloat16, float16, float32; delta rules at the head
    dims that a card has confirmed),
    "chunked" (torch, any device) or "reference" (token by token, the specification).

    Returns y (B, S, H, Dv) in the dtype of q, and the final state (B or documents, H, D', Dv or Dv + 1 with
    ``normalize``), float64 for float64 inputs, else float32. Raises ValueError for arguments that do not fit.

    >>> import torch
    >>> x = torch.ones(1, 3, 1, 2)
    >>> linear_recurrence(x, x, x)[0][0, :, 0, 0].tolist()
    [2.0, 4.0, 6.0]
    """
    nan = False if check_values else None
    checks.queries_and_keys(q, k, nan=nan)
    checks.values(v, q, k, nan=nan)
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} tokens but k has {k.shape[1]}; every token both writes and reads")
    checks.choice("impl", impl, ("auto", *IMPLEMENTATIONS))
    checks.choice("feature_map", feature_map, tuple(FEATURE_MAPS))
    checks.flag("normalize", normalize)
    checks.number("epsilon", epsilon, 0)
    checks.number("scale", scale)
    features = _features(feature_map, q.shape[3])
    if log_decay is not None:
        _check_gate("log_decay", log_decay, q, float("-inf"), 0.0, (0, features), check_values)
        log_decay = log_decay.to(_wide(q)).clamp_min(-80)  # exp(-80) is 0 beside 1; -inf - -inf is NaN
    if beta is not None:
        _check_gate("beta", beta, q, 0.0, 1.0, (0,), check_values)
        beta = beta.to(_wide(q))
    if chunk is not None:
        checks.whole("chunk", chunk)
    if not (keep is None or isinstance(keep, bool)):
        raise ValueError(f"keep must be True, False, or None for a choice by size, got {keep!r}")
    if offsets is not None:
        _check_offsets(offsets, q, check_values)
    rows = q.shape[0] if offsets is None else len(offsets) - 1
    _check_state(state, (rows, q.shape[2], features, v.shape[3] + normalize), q)
    picked = _pick(impl, q, v, log_decay, beta, feature_map, normalize, chunk)
    if picked == "triton":
        from workbench_kernels.linear_memory.portable.recurrence import Inputs, recurrence

        inputs = Inputs(q, k, v, log_decay, beta, state)
        words: dict[str, Any] = {"feature_map": feature_map, "ones": normalize, "scale": scale, "offsets": offsets}
        y, final = recurrence(inputs, chunk=chunk, **words, options={} if keep is None else {"keep": keep})
    else:
        gates = (None if log_decay is None else log_decay[..., None] if log_decay.dim() == 3 else log_decay, beta)
        fq, fk = _map(feature_map, q) * scale, _repeat(_map(feature_map, k), q.shape[2])
        fv = _repeat(v.to(fq.dtype), q.shape[2])
        fv = _with_ones(fv) if normalize else fv
        start = fq.new_zeros((rows, q.shape[2], features, fv.shape[3])) if state is None else state
        run = import_module(f"workbench_kernels.linear_memory.{picked}").recurrence
        y, final = _documents(run, [fq, fk, fv, *gates], start, offsets, chunk or _chunk(gates[0]))
    if normalize:
        y = y[..., :-1] / (y[..., -1:] + epsilon)
    return y.to(q.dtype), final


def _chunk(log_decay: Tensor | None) -> int:
    return 16 if log_decay is not None and log_decay.shape[-1] > 1 else 64


def _pick(
    impl: str,
    q: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    feature_map: str,
    normalize: bool,
    chunk: int | None,
) -> str:
    """The implementation that takes a call; raises ``ValueError`` when the one asked for by name cannot."""
    if impl == "auto":
        if not _worth(q):
            return "chunked"
    elif impl != "triton":
        return impl
    reason = _triton_refuses(q, v, log_decay, beta, feature_map, normalize, chunk)
    if reason is None:
        return "triton"
    if impl == "auto":
        return "chunked"
    raise ValueError(f"{reason} (impl='triton'); 'auto' picks an implementation that takes this call")


def _worth(x: Tensor) -> bool:
    return x.device.type == "cuda" and (x.dtype.itemsize == 2 or x.shape[1] >= LONG)


def _triton_refuses(
    q: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None, feature_map: str, normalize: bool,
    chunk: int | None,
) -> str | None:  # fmt: skip
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms do not go through the Triton kernels"
    try:
        from workbench_kernels.linear_memory.portable import launch
    except ImportError as missing:
        return f"impl 'triton' cannot be imported here: {missing}"
    vector = log_decay is not None and log_decay.dim() == 4
    delta = beta is not None
    return launch.refusal(q, v, delta=delta, vector=vector, feature_map=feature_map, normalize=normalize, chunk=chunk)


def _documents(run: Any, inputs: list[Any], state: Tensor, offsets: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """One run, or one a document; a document without tokens leaves its state as it was."""
    ends = None if offsets is None else offsets.tolist()
    bounds = [(0, inputs[0].shape[1])] if ends is None else list(itertools.pairwise(ends))
    rows = [state] if ends is None else list(state.split(1))
    reads, finals = [inputs[2][:, :0]], []
    for (a, b), row in zip(bounds, rows, strict=True):
        if a < b:
            read, row = run(*(None if x is None else x[:, a:b] for x in inputs), row, chunk)
            reads.append(read)
        finals.append(row)
    return torch.cat(reads, 1), torch.cat(finals)


def prefix_state(
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "taylor",
    normalize: bool = True,
    keep: Tensor | None = None,
    check_values: bool = True,
) -> Tensor:
    """The encoder's sum over a prefix, as the initial state of ``linear_recurrence`` (prefix linear attention).

    k (B, M, H, D), v (B, M, H, Dv); ``keep`` (B, M) bool leaves padding out after the feature map. M = 0 gives
    zeros. ``check_values=False``: see ``linear_recurrence``. With this state every position reads the whole prefix
    (Just read twice, equation 3). Raises ValueError for arguments that do not fit.
    """
    nan = False if check_values else None
    checks.keys_and_values(k, v, nan=nan)
    checks.choice("feature_map", feature_map, tuple(FEATURE_MAPS))
    checks.flag("normalize", normalize)
    _check_keep(keep, k)
    trained = torch.is_grad_enabled() and (k.requires_grad or v.requires_grad)
    if (
        keep is None
        and not trained
        and _worth(k)
        and _triton_refuses(k, v, None, None, feature_map, normalize, None) is None
    ):
        from workbench_kernels.linear_memory.portable.recurrence import summed

        return summed(k, v, feature_map=feature_map, ones=normalize)
    fk = _map(feature_map, k)
    fv = _with_ones(v.to(fk.dtype)) if normalize else v.to(fk.dtype)
    fk = fk if keep is None else fk * keep[..., None, None]
    return torch.einsum("bmhk,bmhv->bhkv", fk, fv)

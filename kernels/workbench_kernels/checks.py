"""Argument checks shared by every operation: each ``ValueError`` names the argument, what came and what is legal."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def told(x: object) -> str:
    """What came, for a message."""
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__


def tensor_bshd(name: str, x: Tensor) -> Tensor:
    """A floating (batch, sequence, heads, head dim) tensor whose last dimension is contiguous."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor (batch, sequence, heads, head dim), got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(
            f"{name} must have 4 dimensions (batch, sequence, heads, head dim), got shape {tuple(x.shape)}"
        )
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} must be float64, float32, bfloat16 or float16, got {x.dtype}")
    if x.shape[3] == 0 or x.shape[2] == 0:
        raise ValueError(f"{name} needs at least one head and a head dim >= 1, got shape {tuple(x.shape)}")
    if x.shape[3] > 1 and x.stride(3) != 1 and x.numel() > 1:
        raise ValueError(
            f"{name} must be contiguous in its last dimension, got strides {x.stride()}; call .contiguous()"
        )
    return x


def no_nan(name: str, x: Tensor, *, everywhere: bool | None = False) -> None:
    """Refuse NaN on the CPU; on a GPU the check would stall the queue, so there it waits to be asked for.

    None: never look, as under ``torch.func.vmap``, where no number of a batch may be asked for.
    """
    if (
        everywhere is not None
        and (everywhere or x.device.type == "cpu")
        and not torch.isfinite(x.detach().sum(dtype=torch.float32))
        and torch.isnan(x).any()
    ):
        where = torch.isnan(x).nonzero()[0].tolist()
        raise ValueError(f"{name} holds NaN, first at (batch, position, head, dim) = {tuple(where)}")


def same_kind(name: str, x: Tensor, q: Tensor, of: str = "q") -> None:
    """``of`` is what the other tensor is called."""
    if x.dtype != q.dtype:
        raise ValueError(f"{name} is {x.dtype} but {of} is {q.dtype}; all of q, k, v need one dtype")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device} but {of} is on {q.device}; all of q, k, v need one device")


def queries_and_keys(q: Tensor, k: Tensor, *, nan: bool | None = False) -> None:
    """``nan``: look for NaN on a GPU as well; None: nowhere."""
    tensor_bshd("q", q)
    tensor_bshd("k", k)
    same_kind("k", k, q)
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k has batch {k.shape[0]} but q has batch {q.shape[0]}")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k has head dim {k.shape[3]} but q has head dim {q.shape[3]}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"k has {k.shape[2]} heads, which does not divide the {q.shape[2]} heads of q")
    no_nan("q", q, everywhere=nan)
    no_nan("k", k, everywhere=nan)


def keys_and_values(k: Tensor, v: Tensor, *, nan: bool | None = False) -> None:
    """Without queries."""
    no_nan("k", tensor_bshd("k", k), everywhere=nan)
    values(v, k, k, nan=nan, of="k")


def values(v: Tensor, q: Tensor, k: Tensor, *, nan: bool | None = False, of: str = "q") -> None:
    tensor_bshd("v", v)
    same_kind("v", v, q, of)
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v has shape {tuple(v.shape)}, its first three dimensions must be those of k: {tuple(k.shape)}"
        )
    no_nan("v", v, everywhere=nan)


def is_whole(value: Any, least: float = -math.inf) -> TypeGuard[int]:
    """An int or one of numpy's integers, at least ``least``; True is none."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and bool(value >= least)


def is_real(value: Any) -> TypeGuard[float]:
    """A real number, infinite ones and NaN included; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(name: str, value: float | int | None) -> None:
    if value is not None and not (is_real(value) and value > 0):
        raise ValueError(f"{name} must be greater than 0 or None, got {value!r}")


def softcap(value: Any) -> None:
    """An infinite cap would be inf * tanh(0)."""
    if value is not None and not (is_real(value) and value > 0 and math.isfinite(value)):
        raise ValueError(f"softcap must be greater than 0 and finite, or None, got {value!r}")


def window(size: Any) -> int | None:
    if size is None:
        return None
    if not is_whole(size, 1):
        raise ValueError(f"window must be at least 1 (a query sees itself), a whole number, or None, got {size!r}")
    return int(size)


def whole(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int: a launch does not know numpy's."""
    if not is_whole(value, least):
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def number(name: str, value: Any, least: float = -math.inf) -> None:
    """Finite, and at least ``least``."""
    if not is_real(value) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def choice(name: str, value: str, legal: tuple[str, ...]) -> str:
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}")
    return value


def tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def below_infinity(name: str, x: Tensor) -> None:
    """Refuse NaN and +inf among numbers that meet the scores; on the CPU alone, as in :func:`no_nan`."""
    if x.device.type == "cpu" and x.numel() and not bool(x.detach().amax() < math.inf):
        raise ValueError(f"{name} holds NaN or +inf; -inf is what hides a key, everything else must be finite")


def sinks(logits: Tensor | None, q: Tensor) -> None:
    """(H,) floating-point logits on q's device."""
    if logits is None:
        return
    tensor("sinks", logits)
    if tuple(logits.shape) != (q.shape[2],) or not logits.dtype.is_floating_point:
        got = f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(f"sinks must be floating point of shape (heads,) = ({q.shape[2]},), got {got}")
    if logits.device != q.device:
        raise ValueError(f"sinks is on {logits.device} but q is on {q.device}")
    below_infinity("sinks", logits)

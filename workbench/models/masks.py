"""What an attention mask says, in a few words instead of a matrix: causal, window, padding.

transformers builds every mask from small index functions. Recognising the common ones keeps a kernel's memory linear
in the sequence; whatever is not recognised (packed sequences, chunked attention, image blocks) comes as a full matrix.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils


@dataclass(frozen=True)
class MaskPlan:
    """``causal`` is aligned bottom-right; ``window`` w lets query i see keys j > i + Nk - Nq - w; ``padding`` is a
    bool (B, Nk), True = real. ``dense`` (B|1, H|1, Nq, Nk), bool or additive, replaces them when they cannot say it."""

    causal: bool
    window: int | None = None
    padding: Tensor | None = None
    dense: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Causal and nothing else: what every kernel does when it is handed no mask."""
        return self.causal and self.window is None and self.padding is None and self.dense is None


def recognise(mask_function: Callable) -> tuple[bool, int | None] | None:
    """(causal, window) when ``mask_function`` is exactly one of transformers' plain patterns, else None."""
    if mask_function is masking_utils.causal_mask_function:
        return True, None
    if mask_function is masking_utils.bidirectional_mask_function:
        return False, None
    parts = _closure(mask_function, "and_masks", "mask_functions")
    if parts is None or len(parts) != 2 or parts[1] is not masking_utils.causal_mask_function:
        return None
    window = _closure(parts[0], "sliding_window_overlay", "sliding_window")
    return None if window is None else (True, int(window))


def _closure(function: Callable, maker: str, variable: str) -> Any:
    """The variable that ``maker`` of transformers' masking_utils closed over, or None for any other function."""
    made_here = getattr(function, "__module__", "") == masking_utils.__name__
    if not made_here or not getattr(function, "__qualname__", "").startswith(f"{maker}.<locals>"):
        return None
    return inspect.getclosurevars(function).nonlocals.get(variable)


def compact_plan(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> MaskPlan | None:
    """The plan of one call of a mask function, or None when only a full matrix can say it."""
    pattern = recognise(mask_function)
    if pattern is None:
        return None
    causal, window = pattern
    if causal and int(q_offset) + q_length != kv_offset + kv_length:  # a static cache: keys run past the queries
        return None
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length].bool()
        padding = None if bool(padding.all()) else padding
    return MaskPlan(causal, window if window is not None and kv_length > window else None, padding)


def compact_mask(*, batch_size: int, kv_length: int, device: Any = "cpu", **call: Any) -> Tensor | None:
    """A mask function for kernels that take patterns: None (plain causal), padding (B, Nk) with a plan, or a matrix."""
    plan = compact_plan(kv_length=kv_length, **call)
    if plan is None:
        full = {**call, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        dense = masking_utils.sdpa_mask(batch_size=batch_size, kv_length=kv_length, device=device, **full)
        return tag(dense, MaskPlan(False, dense=dense))
    if plan.plain:
        return None
    real = plan.padding
    if real is None:
        real = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    return tag(real, plan)


def tag(mask: Tensor | None, plan: MaskPlan | None) -> Tensor | None:
    """Let the mask carry its plan to the attention call; models hand the very object on to every layer."""
    if mask is not None and plan is not None:
        mask.workbench_plan = plan
    return mask


def plan_of(mask: Tensor | None, *, causal: bool, window: int | None) -> MaskPlan:
    """The plan a mask carries; without one, what its shape says and what the attention layer said of itself."""
    plan = getattr(mask, "workbench_plan", None)
    if plan is not None:
        return plan
    if mask is None:
        return MaskPlan(causal, window)
    if mask.ndim == 2:
        return MaskPlan(causal, window, mask.bool())
    return MaskPlan(False, dense=mask)

"""What settings of token memories and their input may be; every refusal names the setting and what was given."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor

from workbench.errors import BadInput


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int) -> None:
    if not is_whole(value) or value < least:
        raise BadInput(f"{name}={value!r} must be a whole number >= {least}")


def finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{name}={value!r} must be a finite number")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of token ids."""
    if isinstance(value, str) or not isinstance(value, Collection) or not all(is_whole(t) and t >= 0 for t in value):
        raise BadInput(f"{name}={value!r} must be a list of token ids, whole numbers >= 0")
    return tuple(value)


def bounded(budget: int | None, n_sink: int) -> None:
    """A budget with at least one place that is no sink."""
    whole("n_sink", n_sink, 0)
    if budget is None or budget < n_sink + 1:
        raise BadInput(f"budget={budget} must be at least n_sink + 1 = {n_sink + 1}, and n_sink >= 0")


def check_tokens(input_ids: Any) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        given = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise BadInput(f"input_ids must be a tensor (batch, tokens) of token ids, got {given}")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise BadInput(f"input_ids must be (batch, tokens) with at least one token, got shape {tuple(input_ids.shape)}")

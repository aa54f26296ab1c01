"""What settings of token memories and their input may be; every refusal names the setting and what was given."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from workbench.checks import is_whole, whole
from workbench.errors import BadInput


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of token ids."""
    if isinstance(value, str) or not isinstance(value, Collection) or not all(is_whole(t, 0) for t in value):
        raise BadInput(f"{name}={value!r} must be a list of token ids, whole numbers >= 0")
    return tuple(map(int, value))


def bounded(budget: int | None, n_sink: int) -> int:
    """``n_sink``, where the budget has at least one place that is no sink."""
    sinks = whole("n_sink", n_sink, 0)
    if budget is None or budget < sinks + 1:
        raise BadInput(f"budget={budget} must be at least n_sink + 1 = {sinks + 1}, and n_sink >= 0")
    return sinks


def check_tokens(input_ids: Any) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        given = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise BadInput(f"input_ids must be a tensor (batch, tokens) of token ids, got {given}")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise BadInput(f"input_ids must be (batch, tokens) with at least one token, got shape {tuple(input_ids.shape)}")

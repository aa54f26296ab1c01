"""The two hooks that a bound memory has on its model; passes that do not carry the memory are left alone."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import MemoryError_

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from workbench.memory.cache.base import TokenCache


#: What transformers calls the argument that carries a cache: ``cache`` since 5.24, where the older word only warns.
WORDS = ("cache", "past_key_values")


def cache_word(model: nn.Module) -> str:
    """The name of the argument by which this model's forward pass takes a cache."""
    return _word(type(model))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _word(kind: type[nn.Module]) -> str:  # asked at every token, and signatures are slow
    return WORDS[0] if WORDS[0] in inspect.signature(kind.forward).parameters else WORDS[1]


def carried(kwargs: Mapping[str, Any]) -> Any:
    """The cache that a forward pass carries, under either name; None without one."""
    return next((kwargs[word] for word in WORDS if kwargs.get(word) is not None), None)


def install(memory: TokenCache, model: nn.Module) -> list[RemovableHandle]:
    """Hook ``model`` for ``memory``. The hooks hold the memory weakly and go when it goes."""
    held: Callable[[], Any] = weakref.ref(memory)
    names, word = tuple(inspect.signature(model.forward).parameters), cache_word(model)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {**dict(zip(names, args)), **kwargs}
        owner = held()
        if owner is None or carried(named) is not owner:
            return None
        for other in WORDS:
            named.pop(other, None)
        named[word] = owner
        return (), _enter(owner, named, "logits_to_keep" in names)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        owner = held()
        if owner is not None and carried(kwargs) is owner:
            owner.after_forward(kwargs.get("input_ids"), getattr(output, "logits", None))

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    for handle in handles:
        weakref.finalize(memory, handle.remove)
    return handles


def _enter(memory: TokenCache, named: dict[str, Any], can_keep_logits: bool) -> dict[str, Any]:
    """The pass's arguments with slot positions and a mask over slots in place of those of the stream."""
    tokens = named.get("input_ids")
    tokens = named.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        raise MemoryError_("a pass through a token memory needs input_ids or inputs_embeds")
    valid = _valid(named.get("attention_mask"), tokens)
    memory.before_forward(tokens.shape[1], valid)
    positions, mask = memory.slots()
    named.update(position_ids=positions, attention_mask=mask, use_cache=True)
    if can_keep_logits and memory.needs_logits:
        named["logits_to_keep"] = 0  # generate() asks for the last one only; every new token needs its own
    return named


def _valid(mask: Any, tokens: Tensor) -> np.ndarray:
    """Which of the new columns (B, q) are tokens; the mask may cover the whole stream or just the new columns."""
    shape = tuple(tokens.shape[:2])
    if mask is None:
        return np.ones(shape, dtype=bool)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise MemoryError_(f"attention_mask must be (batch, new or all tokens) = {shape[0]} x >= {shape[1]}, got {got}")
    return mask[:, mask.shape[1] - shape[1] :].to("cpu", torch.bool).numpy()

"""Attention of one chunk to [retrieved events | held tokens] in one softmax (EM-LLM, section 3.3), for any family.

Held tokens nearer than ``reach`` have their true distance; everything else looks exactly ``reach - 1`` away: those keys
stay unrotated and the query is rotated to ``reach - 1``. The model's own attention is replaced for passes that carry
the memory only, through transformers' attention interface, and put back when the pass ends, however it ends.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.memory.cache._hooks import carried

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from workbench.memory.cache.em_llm import EMLLM

SOCKET = "workbench-episodic"
_ACTIVE: ContextVar[EMLLM | None] = ContextVar("em-llm", default=None)


@dataclass(frozen=True)
class Held:
    """Keys of the held tokens (H_kv, n, D) as the model rotated them and before rotation, their values."""

    keys: Tensor
    raw: Tensor
    values: Tensor


def grouped(heads: Tensor, n_kv: int) -> Tensor:
    """(H, q, D) -> (H_kv, G, q, D): the query heads that share a key head."""
    return heads.reshape(n_kv, -1, *heads.shape[1:])


@dataclass(frozen=True)
class Sight:
    """What the q new queries of a pass see of n held tokens; a field is None where it is true of all.

    ``near`` (q, n): nearer than ``reach``; ``visible`` (q, n): may be seen at all.
    """

    near: Tensor | None
    visible: Tensor | None

    @classmethod
    def of(cls, n_q: int, n: int, *, reach: int, window: int | None, sinks: int, device: torch.device) -> Sight:
        """``window``: of a layer with a sliding one, which hides what is behind it save the first ``sinks``."""
        behind = torch.arange(n - n_q, n, device=device)[:, None] - torch.arange(n, device=device)
        near = None if n <= reach else behind < reach
        if window is None:
            return cls(near, None if n_q == 1 else behind >= 0)
        return cls(near, (behind >= 0) & ((behind < window) | (torch.arange(n, device=device) < sinks)))


def attend(
    query: Tensor, far_query: Tensor, held: Held, events: tuple[Tensor, Tensor] | None, sight: Sight, *,
    scaling: float, softcap: float | None = None, sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (H, q, D) and the attention mass (H, n) that each held token got from queries nearer than ``reach``.

    Args:
        query: (H, q, D) rotated at its place; ``far_query`` rotated to ``reach - 1``.
        events: keys before rotation and values (H_kv, m, D) of retrieved events, in any order.
        sinks: (H,) logits of learned sinks (GPT-OSS).
    """
    n_kv, n_q, n = held.keys.shape[0], query.shape[1], held.keys.shape[1]
    shape = (n_kv, -1, n_q)  # heads that share a key head are rows of one product: no copy of the keys for each
    near_q, far_q = (heads.reshape(n_kv, -1, heads.shape[-1]) for heads in (query, far_query))
    scores = (near_q @ held.keys.transpose(-1, -2)).view(*shape, n)
    if sight.near is not None:
        scores = torch.where(sight.near, scores, (far_q @ held.raw.transpose(-1, -2)).view(*shape, n))
    values, m = held.values, 0
    if events is not None:
        m = events[0].shape[1]
        scores = torch.cat([(far_q @ events[0].transpose(-1, -2)).view(*shape, m), scores], dim=-1)
        values = torch.cat([events[1], values], dim=1)
    out, weights = mixed(scores, values, scaling=scaling, softcap=softcap, sinks=sinks, visible=sight.visible)
    drawn = weights[..., m:] if sight.near is None else weights[..., m:] * sight.near
    return out.view(*query.shape[:2], -1), drawn.sum(2).flatten(0, 1)


def mixed(
    scores: Tensor, values: Tensor, *,
    scaling: float, softcap: float | None, sinks: Tensor | None, visible: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mixed values (H_kv, G q, D) and the softmax weights (H_kv, G, q, n), in float32, of scores (H_kv, G, q, n).

    ``visible`` (q, n'): what may be seen of the last n' tokens; all before them may. ``bias`` (n,): added to the
    logits, float32.
    """
    n_kv, _, n_q, n = scores.shape
    if bias is not None and not softcap:  # one launch for three
        scores = torch.add(bias, scores, alpha=scaling).float()
    else:
        scores = scores.float() * scaling
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
        scores = scores if bias is None else scores + bias
    if visible is not None:
        seen = scores[..., n - visible.shape[1] :]
        seen.masked_fill_(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, grouped(sinks.float()[:, None, None].expand(-1, n_q, 1), n_kv)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :n]
    return weights.to(values.dtype).flatten(1, 2) @ values, weights


def _socket(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    memory = _ACTIVE.get()
    assert memory is not None  # the socket is in a config only while a pass with its memory runs
    out = memory.attend(module.layer_idx, query, key, value, **kwargs)  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None


def _no_mask(**_: Any) -> None:
    """The memory masks by itself."""
    return


def install(memory: EMLLM, model: nn.Module) -> list[RemovableHandle]:
    """Hooks that put the memory's attention into the passes that carry it. Runs after the base's own hooks."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(SOCKET, _socket)
    AttentionMaskInterface.register(SOCKET, _no_mask)
    held, undo, configs = weakref.ref(memory), [], _configs(model)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if held() is not None and carried(kwargs) is held():
            for config in configs:
                undo.append((config, config._attn_implementation_internal))
                config._attn_implementation_internal = SOCKET
            _ACTIVE.set(held())

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        while undo:
            config, name = undo.pop()
            config._attn_implementation_internal = name
        _ACTIVE.set(None)

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True, always_call=True),
    ]
    for handle in handles:
        weakref.finalize(memory, handle.remove)
    return handles


def _configs(model: nn.Module) -> list[Any]:
    found = {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "_attn_implementation")
    }
    return list(found.values())

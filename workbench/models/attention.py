"""Attention kernels in transformers' own socket: one name in the attention interface and in the mask interface.

A kernel is either a plain tensor function in the layout (B, S, H, D) with the keywords of
``workbench_kernels.attention`` (``tensor_kernel``), or a function that already speaks transformers' signature.
Each is registered when it is first used, never at import. Add one of your own:

>>> from workbench.models.attention import KERNELS, tensor_kernel
>>> KERNELS.register("mine")(tensor_kernel("mine", my_attention))             # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from workbench.errors import KernelUnsupported
from workbench.models import masks, recorder
from workbench.registry import Registry

#: What a model may need from its attention kernel; ``AttentionKernel.can`` says which of them a kernel does.
FEATURES = ("gqa", "window", "softcap", "sinks", "padding", "bias", "grad")

KERNELS: Registry[AttentionKernel] = Registry("attention kernel", (), "memory_workbench.kernels")

#: transformers looks for these words inside a name and then behaves as if its own kernel of that name were asked for
#: (downloads hub kernels, unpads, refuses models), so a socket's name must not contain them.
_LOADED_WORDS = {"flash": "tiled", "sdpa": "fused", "flex": "block", "paged": "pages"}


@dataclass(frozen=True)
class AttentionKernel:
    """One way to compute attention.

    ``forward(module, query, key, value, attention_mask, scaling=..., dropout=..., **kwargs)`` follows transformers:
    (B, H, S, D) in, ((B, S, H, D), weights or None) out. ``mask`` is the mask function that feeds it. ``can`` holds
    the members of ``FEATURES`` it supports. ``with_lse`` gives (out, row log-sum-exp (B, S, H) or None) instead.
    """

    name: str
    forward: Callable[..., tuple[Tensor, Tensor | None]]
    mask: Callable[..., Tensor | None]
    can: frozenset[str]
    with_lse: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    native: str | None = None

    @property
    def lse(self) -> bool:
        return self.with_lse is not None

    @cached_property
    def socket(self) -> str:
        """The name under which transformers knows this kernel."""
        name = self.name
        for word, instead in _LOADED_WORDS.items():
            name = name.replace(word, instead)
        return f"workbench-{name}"

    def plug(self) -> str:
        """Register forward and mask under one name (idempotent) and return that name."""
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(self.socket, self._attend)
        AttentionMaskInterface.register(self.socket, self._mask)
        return self.socket

    @cached_property
    def _attend(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        forward, active = self.forward, recorder.ACTIVE

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
            if active.get() is None:
                return forward(module, query, key, value, attention_mask, **kwargs)
            return _recorded(self, module, query, key, value, attention_mask, **kwargs)

        return attend

    @cached_property
    def _mask(self) -> Callable[..., Tensor | None]:
        function, active = self.mask, recorder.ACTIVE

        def mask(**call: Any) -> Tensor | None:
            made = function(**call)
            if active.get() is None or hasattr(made, "workbench_plan"):
                return made
            return masks.tag(made, masks.compact_plan(**call))

        return mask


def tensor_kernel(name: str, attention: Callable[..., Any], *, cannot: frozenset[str] = frozenset()) -> AttentionKernel:
    """A kernel from a function with the signature of ``workbench_kernels.attention`` (``return_lse`` included).

    ``cannot`` names the members of ``FEATURES`` it lacks.
    """

    def with_lse(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return _tensors(attention, module, query, key, value, mask, return_lse=True, **kwargs)

    def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return _tensors(attention, module, query, key, value, mask, **kwargs), None

    return AttentionKernel(name, forward, masks.compact_mask, frozenset(FEATURES) - cannot, with_lse=with_lse)


def _tensors(
    attention: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    return_lse: bool = False,
    **kwargs: Any,
) -> Any:
    """From transformers' (B, H, S, D) and keywords to the tensor function's, as views."""
    plan, scale, softcap, sinks = _read(module, query, attention_mask, kwargs)
    words: dict[str, Any] = {"return_lse": True} if return_lse else {}
    if dropout:
        words |= {"dropout": dropout, "seed": int(torch.randint(2**31, ()))}
    return attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        causal=plan.causal,
        scale=scale,
        window=plan.window,
        softcap=softcap,
        sinks=sinks,
        key_padding=plan.padding,
        mask=_with_bias(plan.dense, position_bias),
        **words,
    )


def _read(module: Any, query: Tensor, attention_mask: Any, kwargs: dict[str, Any]) -> tuple:
    """(plan, scale, softcap, sinks) of one call in transformers' words."""
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    plan = masks.plan_of(attention_mask, causal=causal, window=kwargs.get("sliding_window"))
    scale = kwargs.get("scaling")
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    return plan, scale, kwargs.get("softcap"), kwargs.get("s_aux")


def _with_bias(dense: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One additive mask from a matrix (bool or additive) and a position bias."""
    if bias is None or dense is None:
        return dense if bias is None else bias
    return bias.masked_fill(~dense, float("-inf")) if dense.dtype == torch.bool else bias + dense


def _recorded(
    kernel: AttentionKernel, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
):
    """Run the kernel as it is and show the recorder what went through it."""
    seen = recorder.ACTIVE.get()
    assert seen is not None
    named = getattr(module, "layer_idx", None)
    if not seen.begin(named if isinstance(named, int) else None):
        seen.saw(None)
        return kernel.forward(module, query, key, value, mask, **kwargs)
    lse = weights = None
    if kernel.with_lse is not None:
        out, lse = kernel.with_lse(module, query, key, value, mask, **kwargs)
    else:
        out, weights = kernel.forward(module, query, key, value, mask, **kwargs)
    plan, scale, softcap, sinks = _read(module, query, mask, kwargs)
    bias = kwargs.get("position_bias")
    if bias is not None:
        plan = replace(plan, dense=_with_bias(plan.dense, bias))
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    seen.saw(recorder.Call(q, k, v, lse, plan, scale, softcap, sinks))
    return out, weights


# -- the kernels that every model meets -------------------------------------------------------------------------------


def _eager(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """The model family's own eager function, from the file that defines the attention module."""
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise KernelUnsupported(
            f"{type(module).__module__} has no eager_attention_forward to call; use 'flash-attention' or 'sdpa'"
        )
    return function(module, query, key, value, attention_mask, **kwargs)


def _eager_mask(**call: Any) -> Tensor | None:
    from transformers.masking_utils import eager_mask

    return eager_mask(**call)


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """transformers' own sdpa function; it would ignore sinks, so they are refused."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None:
        lacks = "attention sinks" if kwargs.get("s_aux") is not None else "soft-capping"
        raise KernelUnsupported(f"sdpa cannot do {lacks}; use 'flash-attention' or 'eager'")
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _sdpa_with_lse(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """sdpa and the LSE that its CPU kernel computes anyway; LSE None where sdpa would take another path."""
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal) and query.shape[2] > 1
    plain = attention_mask is None and kwargs.get("position_bias") is None and not kwargs.get("dropout")
    aligned = not causal or query.shape[2] == key.shape[2]
    if not (plain and aligned and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]):
        return (*_sdpa(module, query, key, value, attention_mask, **kwargs)[:1], None)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(query, key, value, 0.0, causal, scale=kwargs.get("scaling"))
    return out.transpose(1, 2), lse.transpose(1, 2)


def _sdpa_mask(**call: Any) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(**call)


def _flash(*tensors: Tensor, **words: Any) -> Any:
    """FlashAttention: on a GPU its own loop order where that kernel can take the call, else tiles in torch."""
    from workbench_kernels import attention

    return attention(*tensors, impl=("triton-v1", "tiled") if tensors[0].is_cuda else "tiled", **words)


def _flash2(*tensors: Tensor, **words: Any) -> Any:
    """FlashAttention-2: the fastest implementation there is for this device, card and call."""
    from workbench_kernels import attention

    return attention(*tensors, **words)


KERNELS.register("eager")(AttentionKernel("eager", _eager, _eager_mask, frozenset(FEATURES), native="eager"))
KERNELS.register("sdpa")(
    AttentionKernel("sdpa", _sdpa, _sdpa_mask, frozenset(FEATURES) - {"softcap", "sinks"}, with_lse=_sdpa_with_lse)
)
KERNELS.register("flash-attention")(tensor_kernel("flash-attention", _flash))
KERNELS.register("flash-attention-2")(tensor_kernel("flash-attention-2", _flash2))

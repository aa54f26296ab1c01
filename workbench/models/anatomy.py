"""What a model is made of, read from its config and modules: heads, layers, positions, what its attention needs."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from workbench.errors import KernelUnsupported
from workbench.models.attention import KERNELS, AttentionKernel

_FEATURE_WORDS = {
    "gqa": "grouped key/value heads",
    "window": "a sliding window",
    "softcap": "soft-capping of the scores",
    "sinks": "attention sinks",
    "bias": "a position bias",
}


def text_config(model: PreTrainedModel) -> Any:
    """The config of the language part (a vision-language model keeps it one level down)."""
    return model.config.get_text_config(decoder=True)


def number(config: Any, *names: str) -> int | None:
    """The first of several spellings that the config has as an integer."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def max_positions(model: PreTrainedModel, config: Any) -> int | None:
    """Most tokens of one sequence; a position table with a padding row (RoBERTa) starts counting behind it."""
    most = number(config, "max_position_embeddings", "n_positions")
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return min(most or module.num_embeddings, module.num_embeddings - module.padding_idx - 1)
    return most


def sinks_of(model: nn.Module) -> bool:
    return any(name.rsplit(".", 1)[-1] == "sinks" for name, _ in model.named_parameters())


def is_rotary(model: nn.Module) -> bool:
    return any(type(module).__name__.endswith("RotaryEmbedding") for module in model.modules())


def uses_window(config: Any) -> bool:
    if number(config, "sliding_window") is None:
        return False
    types = getattr(config, "layer_types", None)
    return types is None or "sliding_attention" in types


def needs(model: PreTrainedModel) -> frozenset[str]:
    """Which members of ``attention.FEATURES`` this model asks of its kernel."""
    config = text_config(model)
    heads, kv_heads = number(config, "num_attention_heads"), number(config, "num_key_value_heads")
    asked = {
        "gqa": kv_heads is not None and kv_heads != heads,
        "window": uses_window(config),
        "softcap": getattr(config, "attn_logit_softcapping", None) is not None,
        "sinks": sinks_of(model),
        "bias": any("relative_attention_bias" in name for name, _ in model.named_parameters()),
    }
    return frozenset(name for name, needed in asked.items() if needed)


def switchable(model: PreTrainedModel) -> bool:
    """Whether the model asks transformers' attention interface at all (old model files and notebook classes do not)."""
    return bool(model._can_set_attn_implementation())


def serving(model: PreTrainedModel) -> list[str]:
    """The kernels that can do all that this model needs."""
    if not switchable(model):
        return [str(model.config._attn_implementation)]
    needed = needs(model)
    return [name for name in KERNELS.names() if needed <= KERNELS.get(name).can]


def require(kernel: AttentionKernel, model: PreTrainedModel) -> None:
    """Raise KernelUnsupported, naming kernels that can, unless ``kernel`` can serve ``model``."""
    kind = type(model).__name__
    if not switchable(model):
        if kernel.name == model.config._attn_implementation:
            return
        raise KernelUnsupported(
            f"{kind} computes attention in its own code and cannot be given {kernel.name!r}: its class does not use "
            f"transformers' attention interface (or was defined in a notebook cell); it stays on {serving(model)[0]!r}"
        )
    missing = needs(model) - kernel.can
    if missing:
        lacks = " and ".join(_FEATURE_WORDS[name] for name in sorted(missing))
        able = ", ".join(map(repr, serving(model))) or "none"
        raise KernelUnsupported(f"{kernel.name!r} cannot do {lacks}, which {kind} needs; kernels that can: {able}")

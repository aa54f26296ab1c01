"""The shapes of the trained models, as plain transformers configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VARIANTS = ("embedded", "embedded-relu")
SIZES: dict[str, dict[str, int]] = {
    "full": {"layers": 8, "width": 256, "heads": 8, "kv_heads": 4, "swiglu": 768, "relu": 1024},
    "tiny": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "swiglu": 64, "relu": 128},
}


def config(variant: str, size: str, vocabulary: int, context: int) -> PreTrainedConfig:
    """``embedded``: Llama, grouped queries, SwiGLU. ``embedded-relu``: GPT-NeoX, 4x ReLU MLP with biases."""
    if variant not in VARIANTS:
        raise UnknownName("model variant", variant, VARIANTS)
    if size not in SIZES:
        raise BadInput(f"size={size!r}: expected one of {', '.join(SIZES)}")
    make = _llama if variant == "embedded" else _relu
    return make(SIZES[size], vocabulary, context)


def _llama(s: dict[str, int], vocabulary: int, context: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=s["width"], intermediate_size=s["swiglu"], num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], max_position_embeddings=context,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.02,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip


def _relu(s: dict[str, int], vocabulary: int, context: int) -> Any:
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=s["width"], intermediate_size=s["relu"], num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], max_position_embeddings=context, hidden_act="relu", tie_word_embeddings=True,
        use_parallel_residual=False, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.02,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    )  # fmt: skip


def build(variant: str, size: str, vocabulary: int, context: int, seed: int, attention: str) -> PreTrainedModel:
    """A freshly initialised float32 model; equal seeds give equal weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(variant, size, vocabulary, context), attn_implementation=attention)

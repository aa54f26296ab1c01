"""Tiny random models of the common families, as transformers makes them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

VOCAB = 320
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROOM = {"vocab_size": VOCAB, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GQA = {"num_key_value_heads": 2}
WINDOW = 6
HYBRID = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

#: family -> (config class, its settings, model class)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", {**SIZE, **ROOM, **GQA}, "LlamaForCausalLM"),
    "mistral": ("MistralConfig", {**SIZE, **ROOM, **GQA, "sliding_window": WINDOW}, "MistralForCausalLM"),
    "qwen3": ("Qwen3Config", {**SIZE, **ROOM, **GQA, "head_dim": 8}, "Qwen3ForCausalLM"),
    "gemma2": (
        "Gemma2Config",
        {**SIZE, **ROOM, **GQA, **HYBRID, "head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
        "Gemma2ForCausalLM",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**SIZE, **ROOM, **GQA, **HYBRID, "head_dim": 8, "query_pre_attn_scalar": 8},
        "Gemma3ForCausalLM",
    ),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "vocab_size": VOCAB,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "GPT2LMHeadModel",
    ),
    "gpt-neox": ("GPTNeoXConfig", {**SIZE, **ROOM, "rotary_pct": 0.5}, "GPTNeoXForCausalLM"),
    "phi3": ("Phi3Config", {**SIZE, **ROOM, **GQA}, "Phi3ForCausalLM"),
    "olmo2": ("Olmo2Config", {**SIZE, **ROOM, **GQA}, "Olmo2ForCausalLM"),
    "gpt-oss": (
        "GptOssConfig",
        {**SIZE, **ROOM, **GQA, **HYBRID, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "GptOssForCausalLM",
    ),
    "opt": (
        "OPTConfig",
        {
            **{key: value for key, value in SIZE.items() if key != "intermediate_size"},
            **ROOM,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
        "OPTForCausalLM",
    ),
    "bert": ("BertConfig", {**SIZE, **ROOM}, "BertForMaskedLM"),
}
DECODERS = [name for name in FAMILIES if name != "bert"]

TEXTS = [
    "the key of Ada is under the mat and the mat is by the door of the old house",
    "a cat sat on a mat",
    "who has the key? Ben has the key, and the door is open",
]


def make_model(family: str) -> Any:
    """A random model whose attention is far from uniform, so that a wrong mask or scale is seen."""
    config_class, settings, model_class = FAMILIES[family]
    config = getattr(transformers, config_class)(**settings)
    torch.manual_seed(7)
    model = getattr(transformers, model_class)(config).eval()
    for name, value in model.named_parameters():
        if value.ndim >= 2:
            torch.nn.init.normal_(value, std=0.25)
        elif name.endswith("sinks"):
            torch.nn.init.normal_(value, std=1.0)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS * 4,
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")

"""Tiny random models of many families, saved and loaded again through from_pretrained; and the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

VOCABULARY = 97
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # attention must matter, or a wrong position would go unnoticed
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GQA = {**COMMON, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

#: family -> (config class, settings that do not depend on the number of layers)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GQA),
    "llama-yarn": ("LlamaConfig", {**GQA, "rope_parameters": YARN}),
    "mistral": ("MistralConfig", {**GQA, "sliding_window": 9}),
    "qwen3": ("Qwen3Config", {**GQA, "head_dim": 8}),
    "gpt-neox": ("GPTNeoXConfig", {**COMMON, "rotary_pct": 0.5}),
    "phi3": ("Phi3Config", {**GQA, "partial_rotary_factor": 0.5}),
    "gemma3": ("Gemma3TextConfig", {**GQA, "head_dim": 8, "sliding_window": 9, "layer_types": TYPES}),
    "olmo2": ("Olmo2Config", GQA),
    "gpt-oss": (
        "GptOssConfig",
        {**GQA, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 9}
        | {"layer_types": TYPES, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "smollm3-nope": ("SmolLM3Config", {**GQA, "no_rope_layers": [1, 0, 1]}),
}
#: families whose keys cannot be had before rotation, with what the refusal must mention
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "learned",
    ),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "ALiBi"),
    "bert": ("BertConfig", {**COMMON, "num_hidden_layers": 2, "is_decoder": True}, "no rotary"),
    "modernbert": ("ModernBertConfig", {**COMMON, "num_hidden_layers": 2}, "caches 0"),
    "deepseek-v3": (
        "DeepseekV3Config",
        {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {**COMMON, "num_key_value_heads": 4, "num_hidden_layers": 2},
        "out of reach",
    ),
}


def build(name: str, settings: dict[str, Any], folder: Any, seed: int = 0) -> Any:
    """A random model of a config class, after a round trip over disk."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, name)(**settings)
    auto = transformers.AutoModelForMaskedLM if name == "ModernBertConfig" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``family("gemma3", layers=1)``: one model a session, never changed by a test for good."""
    made: dict[tuple[str, int], Any] = {}

    def get(name: str, layers: int = 3) -> Any:
        if (name, layers) not in made:
            config, settings = FAMILIES[name]
            settings = {**settings, "num_hidden_layers": layers}
            for key in ("layer_types", "no_rope_layers"):
                if key in settings:
                    settings[key] = settings[key][:layers]
            made[name, layers] = build(config, settings, tmp_path_factory.mktemp(name))
        model = made[name, layers]
        model.set_attn_implementation("eager" if name == "gpt-oss" else "sdpa")
        return model

    return get


@pytest.fixture
def llama(family: Callable[..., Any]) -> Any:
    return family("llama")


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def embedded():
    """The embedded model in float32, loaded once a file."""
    from workbench.models import load

    return load("embedded", dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(embedded):
    return embedded.tokenizer

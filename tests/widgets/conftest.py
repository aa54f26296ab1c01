"""A tiny random Llama with a real tokenizer, saved as a folder: the app is tried on it without any trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest


def save_tiny_llama(
    folder: Path, *, layers: int = 3, heads: int = 4, seed: int = 0, break_weights: bool = False
) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        ["the key lies under the mat"],
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False),
    )
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16 * heads,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    if break_weights:
        with torch.no_grad():
            model.model.layers[1].self_attn.q_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A healthy model: 3 layers of 4 heads, 512 positions."""
    return str(save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> str:
    """A smaller one: 2 layers of 2 heads."""
    return str(save_tiny_llama(tmp_path_factory.mktemp("models") / "other", layers=2, heads=2, seed=1))


@pytest.fixture(scope="session")
def broken(tmp_path_factory) -> str:
    """NaN in one weight."""
    return str(save_tiny_llama(tmp_path_factory.mktemp("models") / "broken", break_weights=True))

"""Tiny models, texts and settings that the tests of memories of edits share."""

from __future__ import annotations

import torch
import transformers

from workbench.memory.parametric.wise import WISE

TEXTS = ["The old hedge stood behind the yard.", "A bright cart was mended after the storm.", "No door was open."]
PROMPT, TARGET = "QUESTION: Where does Tida Fursk live? ANSWER:", "Elham"
ANOTHER = "QUESTION: What does Tida Fursk like to eat? ANSWER:"
SETTINGS = {"units": "model", "alpha": 0.25, "beta": 1.0, "gamma": 0.5, "clamp": 10.0, "contexts": 2, "steps": 6}
EDITORS = {
    "wise": {**SETTINGS, "negatives": TEXTS},
    "ft-l": {"lr": 2e-3, "clamp": 2e-2, "steps": 5},
    "ft-ewc": {"lr": 2e-3, "clamp": 2e-2, "steps": 5, "texts": TEXTS},
    "rome": {"steps": 5, "contexts": 1, "texts": TEXTS},
    "grace": {"steps": 30},
}


def tiny(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    room = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, **room}
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**small)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=128, **room)
        ),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**small, num_key_value_heads=2, head_dim=8)
        ),
    }
    return made[kind]().eval()


def wise(model, tokenizer, **changed) -> WISE:
    return WISE(**{**SETTINGS, "negatives": TEXTS, **changed}).bind(model, tokenizer)


def ids(tokenizer, *texts: str):
    return tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")


def logits(model, tokenizer, text: str = PROMPT):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits

"""Beginnings that a model writes itself; an edit is learned behind each of them, so that it holds in any text."""

from __future__ import annotations

from typing import Any

import torch

SEEDS = ("I", "You", "Because", "Yes", "Q: ")
LENGTHS = (5, 10)
_TOP = 5  # of how many tokens the next one is drawn


@torch.no_grad()
def own_contexts(model: Any, tokenizer: Any, n: int, seed: int) -> list[str]:
    """``n`` beginnings: from each seed word with 5 new tokens, then with 10, then again with other draws."""
    made: list[str] = []
    turn = 0
    while len(made) < n:
        length = LENGTHS[turn % len(LENGTHS)]
        made += [_written(model, tokenizer, word, length, 1000 * seed + 10 * turn + i) for i, word in enumerate(SEEDS)]
        turn += 1
    return made[:n]


def _written(model: Any, tokenizer: Any, word: str, length: int, seed: int) -> str:
    ids = torch.tensor([tokenizer(word)["input_ids"]])
    generator = torch.Generator().manual_seed(seed)
    device = model.device
    for _ in range(length):
        logits = model(input_ids=ids.to(device), use_cache=False).logits[0, -1].float().cpu()
        value, index = logits.topk(min(_TOP, len(logits)))
        drawn = torch.multinomial(value.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, index[drawn][None]], 1)
    return " ".join(str(tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)).split())

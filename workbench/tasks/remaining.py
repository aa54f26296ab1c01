"""The list task: things with colours, all but one are taken (each named with its colour); which colour is left?

A prompt of the small world: ``LIST (bottle red) (cup green) TOOK (cup green) LEFT ->``. To answer, a model has to find
the one entry that was not taken. Accuracy over the length of the list and over the place of the remaining thing is what
Merullo et al. 2024 (arXiv 2406.09519) call the laundry-list curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.models.batches import by_length, padded

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import LoadedModel

PARTS = ("its entry", "other entries", "taken", "the rest")


@dataclass(frozen=True)
class Remaining:
    """One prompt: token ids, the answer's token, tokens of all listed colours, place of the remaining thing (0 first).

    ``parts`` gives for every token which of :data:`PARTS` it belongs to.
    """

    ids: tuple[int, ...]
    answer_id: int
    colour_ids: tuple[int, ...]
    place: int
    size: int
    parts: tuple[int, ...]


def remaining(loaded: LoadedModel, n: int, size: int, *, seed: int = 0) -> list[Remaining]:
    """``n`` prompts with lists of ``size`` things. Raises BadInput for a size below 2 or above the words there are."""
    from workbench_datasets.small_world import world

    size = whole("size, the number of things in a list,", size, 2, 20)
    n = whole("n, the number of prompts,", n)
    asked = world().questions("remaining", n, seed=seed, size=size, ask="colour")
    return [_prompt(loaded, question.prompt, question.answer, question.meta["left"], size) for question in asked]


def _prompt(loaded: LoadedModel, text: str, answer: str, left: str, size: int) -> Remaining:
    ids = loaded.tokenizer(text)["input_ids"]
    things = [entry.split(" ")[0] for entry in text[: text.index("TOOK")].split("(")[1:]]
    colours = [entry.split(" ")[1].rstrip(") ") for entry in text[: text.index("TOOK")].split("(")[1:]]
    listed = {loaded.tokenizer(f" {colour}", add_special_tokens=False)["input_ids"][0] for colour in colours}
    first = loaded.tokenizer(answer, add_special_tokens=False)["input_ids"][0]
    entry = text.index(f"({left} ")
    bounds = (entry, text.index(")", entry) + 1, text.index("TOOK"), text.index("LEFT"))
    return Remaining(
        tuple(ids), first, tuple(sorted(listed)), things.index(left), size, tuple(_parts(loaded, ids, bounds))
    )


def _parts(loaded: LoadedModel, ids: Sequence[int], bounds: tuple[int, int, int, int]) -> list[int]:
    """Index into :data:`PARTS` of every token, from where its text begins."""
    start, end, took, left = bounds
    found, at = [], 0
    for token in ids:
        word = loaded.tokenizer.decode([token])
        if token == loaded.tokenizer.bos_token_id:
            found.append(3)
            continue
        middle = at + len(word) / 2
        inside = 0 if start <= middle < end else 1 if middle < took else 2 if middle < left else 3
        found.append(inside)
        at += len(word)
    return found


@torch.no_grad()
def answers(loaded: LoadedModel, asked: Sequence[Remaining], *, batch_tokens: int = 2048) -> pd.DataFrame:
    """One row a prompt: size, place, log_p of the answer, correct (of all words), listed (of listed colours), said."""
    import pandas as pd

    rows: list[dict | None] = [None] * len(asked)
    for group in by_length([len(one.ids) for one in asked], batch_tokens):
        ids, ends = padded([asked[i].ids for i in group], loaded.device)
        logits = loaded.model(input_ids=ids, use_cache=False).logits[torch.arange(len(group)), ends].float()
        log_p = logits.log_softmax(-1).cpu()
        for row, i in zip(log_p, group):
            rows[i] = judged(row, asked[i])
    return pd.DataFrame([row for row in rows if row is not None])


def judged(log_p: torch.Tensor, one: Remaining) -> dict:
    """What log-probabilities (V,) say about one prompt."""
    best, among = int(log_p.argmax()), max(one.colour_ids, key=lambda token: float(log_p[token]))
    return {
        "size": one.size,
        "place": one.place,
        "log_p": float(log_p[one.answer_id]),
        "correct": best == one.answer_id,
        "listed": among == one.answer_id,
        "said": among,
    }


def looks(loaded: LoadedModel, asked: Sequence[Remaining]) -> np.ndarray:
    """Attention from the last position into each of :data:`PARTS`, mean over prompts: (layers, heads, parts)."""
    if not len(asked):
        raise BadInput("there are no prompts to look at")
    total = np.zeros((loaded.n_layers, loaded.n_heads, len(PARTS)))
    for one in asked:
        trace, last = loaded.trace(list(one.ids)), len(one.ids) - 1
        parts = np.asarray(one.parts)
        for layer in range(loaded.n_layers):
            region = trace.region(layer, None, rows=slice(last, last + 1), cols=slice(0, last + 1))
            weights = np.asarray(region).reshape(loaded.n_heads, last + 1)
            for part in range(len(PARTS)):
                total[layer, :, part] += weights[:, parts == part].sum(1)
    return total / len(asked)

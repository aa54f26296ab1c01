"""Just read twice as language models on the embedded corpus: JRT-RNN beside Based, read once and twice.

Both have six blocks in two turns of BaseConv, linear attention (f = 16) and attention in a short window; they differ in
the linear attention alone (prefix or causal), so their states are of one size. Equal are steps, windows (N tokens) and
their order. Not equal are the tokens that teach: Based learns from every next token of a window, JRT-RNN from those
behind the prefix (M of N) and from the masked 15 % of the prefix, with M = N / 2 that is 58 % of what Based gets (the
paper says 65 %). JRT-RNN also has the encoder's keys and values for weights.

Every id of the embedded tokenizer stands for something, so all models get one row more, and the mask is that row.
Which tokens are masked is drawn once for each window: in the planned steps a window comes about one and a half times.

Held-out text is told for the tokens behind the prefix, for both: inside it JRT-RNN sees what it would have to predict.
Questions are about strangers, behind 48 tokens of text: with two windows of 32 nearly all facts are out of reach of the
local layers. Based gets the prompt as it is. For JRT-RNN it lies in the prefix: padded on the left, or filled by
reading it again (the paper's Table 4); of a prompt longer than M the encoder gets the first M tokens. Prompts have
about 127 tokens, so that is the case for nearly half of the repeated ones. Models have 6.0 M (JRT-RNN) and 5.8 M
weights, the card planned 8 M. No claim is made about JRT-RNN with a repeated prompt; it is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.studies import _corpus_lm as language
from workbench.studies._jrt_claims import BASED, FILLED, JRT, again
from workbench.studies.base import Progress

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.mixer import MixerLM
    from workbench.training.corpus import Asked

#: Rows of the part as the shared code calls them, and as this study's frames do.
COLUMNS = {"part": "experiment", "variant": "item"}
MODES = {JRT: "prefix", BASED: "causal"}

#: ``train_seconds`` hold the card's 3,000 steps if one of JRT-RNN takes 20 ms.
SETTINGS: dict[str, Any] = {
    **language.SETTINGS,
    "prefix": 256,
    "positions": [320, 384],
    "window": 32,
    "key_dim": 16,
    "expand": 4,
    "blocks": 2,
    "gaps": [],
    "gap": 48,
    "new_tokens": 6,
    "mlm_weight": 0.25,
    "mlm_share": 0.15,
    "steps": 3_000,
    "dearest": JRT,
    "train_seconds": 125.0,
    "deadline_seconds": 180.0,
}


# ---- models and data ----------------------------------------------------------------------------------------------


def models(settings: Mapping[str, Any], vocabulary: int) -> dict[str, language.Mixers]:
    """``vocabulary`` counts the tokenizer's ids, the last row of a model is the mask's."""
    from workbench.training.read_twice import read_twice_loss

    told = {"weight": settings["mlm_weight"], "share": settings["mlm_share"]}
    losses = {JRT: read_twice_loss(settings["prefix"], vocabulary, **told), BASED: None}
    return {name: language.Mixers(_turn(mode, settings), losses[name]) for name, mode in MODES.items()}


def _turn(mode: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The quadratic form: windows are short beside the 273 features of a head."""
    linear = {"mixer": "just-read-twice", "mode": mode, "key_dim": settings["key_dim"], "form": "quadratic"}
    if mode == "prefix":
        linear["prefix"] = settings["prefix"]
    local = {"mixer": "sliding-window-attention", "window": settings["window"]}
    heads = {"heads": settings["heads"]}
    return [{"mixer": "base-conv", "expand": settings["expand"]}, {**linear, **heads}, {**local, **heads}]


def corpus(settings: Mapping[str, Any], seed: int) -> language.Corpus:
    """The shared corpus, with the masked places of every window; ``asked``: by copies of the prompt, 1 and 2."""
    from workbench.tasks.jrt_prompt import repeated
    from workbench.training.corpus import asked
    from workbench.training.read_twice import hidden_places

    data = language.corpus(settings, seed)
    hidden = hidden_places(data.pool.ids, settings["prefix"], share=settings["mlm_share"], seed=settings["corpus_seed"])
    pool = replace(data.pool, extras={**data.pool.extras, "hidden": hidden})
    spec, count, gap = language.spec(settings, seed), settings["questions"], settings["gap"]
    put = {copies: asked(spec, count, gap, seed, write=partial(repeated, repeats=copies)) for copies in (1, 2)}
    return data._replace(pool=pool, asked=put, vocabulary=data.vocabulary + 1)


def in_prefix(asked: Asked, prefix: int, how: str) -> Asked:
    """The same questions with each prompt filled up to ``prefix`` tokens (``fill_prefix``); longer ones as they are."""
    import numpy as np

    from workbench.memory.layers.just_read_twice import fill_prefix

    rows = []
    for ids, answer in zip(torch.as_tensor(asked.ids), torch.as_tensor(asked.answers)):
        places = answer.nonzero()[:, 0]
        prompt = ids[: places[0]]
        keep = torch.ones(len(prompt), dtype=torch.bool)
        if len(prompt) < prefix:
            prompt, keep = fill_prefix(prompt, prefix, how=how)
        rows.append((prompt, keep, ids[places]))
    shape = len(rows), max(len(prompt) + len(answer) for prompt, _, answer in rows)
    made, answers, kept = np.ones(shape, np.int64), np.zeros(shape, bool), np.ones(shape, bool)
    for row, (prompt, keep, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        made[row, :end], kept[row, : len(prompt)] = torch.cat([prompt, answer]), keep
        answers[row, len(prompt) : end] = True
    return replace(asked, ids=made, answers=answers, keep=kept)


# ---- reading and asking -------------------------------------------------------------------------------------------


@torch.no_grad()
def generated(model: MixerLM, asked: Asked, batch: int, new_tokens: int) -> torch.Tensor:
    """The likeliest ``new_tokens`` tokens after each prompt, one after the other, (N, new_tokens)."""
    found = []
    for ids, answers, keep in language.parts_of(asked, batch, model.device):
        ends, rows = answers.int().argmax(1), torch.arange(len(ids), device=ids.device)
        ids = torch.nn.functional.pad(ids, (0, new_tokens), value=1)
        keep = None if keep is None else torch.nn.functional.pad(keep, (0, new_tokens), value=True)
        for step in range(new_tokens):
            logits = model(input_ids=ids, attention_mask=keep, use_cache=False).logits
            ids[rows, ends + step] = logits[rows, ends + step - 1].argmax(-1)
        found.append(ids.gather(1, ends[:, None] + torch.arange(new_tokens, device=ids.device)).cpu())
    return torch.cat(found)


def contained(asked: Asked, tokens: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """(N,) bool: the text of ``tokens`` up to a line break contains the answer, whatever the case (the paper's score).

    The mask's id is none of the tokenizer's and is left out.
    """
    from workbench.tasks.jrt_prompt import STOP, contains

    known, right = tokenizer.get_vocab_size(), []
    for ids, answer, said in zip(asked.ids, asked.answers, tokens.tolist()):
        gold = tokenizer.decode(ids[answer].tolist())
        text = tokenizer.decode([token for token in said if token < known], skip_special_tokens=False)
        right.append(contains(text.split(STOP)[0], gold))
    return torch.tensor(right)


def read(variant: str, made: Sequence[MixerLM], settings: Mapping[str, Any], data: language.Corpus) -> language.Lines:
    """Held-out text behind the prefix, and questions: ``exact`` and ``nats`` by the model's own odds, ``contains``."""
    yield from language.texts(variant, made, settings, data, settings["prefix"], settings["positions"])
    tokenizer, batch = _tokenizer(), settings["eval_batch"]
    for name, copies, asked in _put(variant, settings, data):
        for number, model in enumerate(made):
            found = dict(zip(("exact", "nats"), language.answered(model, asked, batch)))
            said = generated(model, asked, batch, settings["new_tokens"])
            found["contains"] = contained(asked, said, tokenizer)
            yield from language.answers(name, copies, found, settings, number)


def _put(variant: str, settings: Mapping[str, Any], data: language.Corpus) -> Iterator[tuple[str, int, Asked]]:
    """(name in the frame, copies of the prompt, questions)."""
    for copies, asked in data.asked.items():
        padded = in_prefix(asked, settings["prefix"], "left") if variant == JRT else asked
        yield variant if copies == 1 else again(variant), copies, padded
    if variant == JRT:
        yield FILLED, 1, in_prefix(data.asked[1], settings["prefix"], "read-twice")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    from workbench.training.embedded import shipped_tokenizer

    return Tokenizer.from_file(str(Path(shipped_tokenizer()) / "tokenizer.json"))


# ---- the part of the study ----------------------------------------------------------------------------------------


def rows(settings: Mapping[str, Any], seed: int, progress: Progress) -> pd.DataFrame:
    """Tidy rows: experiment, item, x, model, unit, metric, value."""
    import pandas as pd

    words = _tokenizer().get_vocab_size()
    lines = language.lines(models(settings, words), settings, seed, progress, corpus, read)
    return pd.DataFrame(lines).rename(columns=COLUMNS)

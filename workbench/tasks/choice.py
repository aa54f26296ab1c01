"""Scoring a multiple-choice round against a memory, a batch of dialogues at a time.

The rule (SirLLM, released code): the round is the question and one option; of the options whose tokens equal the
greedy decoding the first is picked, else the option with the highest log-probability of its first token. The memory
goes on with the picked option. Room is made for the question and the *longest* option, before anything is read.

The question is read once: its last logits say everything about first tokens. Only options that begin with the greedy
token and are longer than one token are tried out, from a snapshot that is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.memory.cache.base import TokenCache

Ids = Sequence[int]


@dataclass(frozen=True)
class Picked:
    """What one dialogue's memory answered. ``logp``: log-probability (nats) of the first token of each option.

    ``exact``: the picked option is the greedy decoding. ``surprise`` (m,): of the question's tokens in nats, NaN first.
    """

    option: int
    exact: bool
    logp: tuple[float, ...]
    surprise: np.ndarray


def pad(rows: Sequence[Ids], device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, longest), padded on the right; a row may be empty."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), fill, dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def read(memory: TokenCache, rows: Sequence[Ids]) -> Tensor | None:
    """Read one (possibly empty) piece of text a row; logits (B, longest, V), or None when there is nothing to read."""
    if not any(map(len, rows)):
        return None
    return memory.write(*pad(rows, memory.model.device))


def _last(logits: Tensor, rows: Sequence[Ids]) -> Tensor:
    """Logits (B, V) after the last token of every row."""
    ends = torch.tensor([max(len(row) - 1, 0) for row in rows], device=logits.device)
    return logits[torch.arange(len(rows), device=logits.device), ends].float()


def _question_surprise(logits: Tensor, rows: Sequence[Ids]) -> list[np.ndarray]:
    ids, _ = pad(rows, logits.device)
    logits = logits[:, :-1].float()
    nll = torch.logsumexp(logits, -1) - logits.gather(-1, ids[:, 1:, None])[..., 0]
    lines = nll.double().cpu().numpy()
    return [np.concatenate([[np.nan], line])[: len(row)] for line, row in zip(lines, rows)]


def _tried(memory: TokenCache, pairs: list[tuple[int, Ids]]) -> list[bool]:
    """Whether each (row, option) is the greedy decoding, given that its first token is; the memory is put back."""
    if not pairs:
        return []
    moment = memory.snapshot()
    try:
        memory.batch_select_indices(torch.tensor([row for row, _ in pairs]))
        logits = read(memory, [option[:-1] for _, option in pairs])
        assert logits is not None
        greedy = logits.argmax(-1).cpu().numpy()
    finally:
        memory.restore(moment)
    return [greedy[i, : len(option) - 1].tolist() == list(option[1:]) for i, (_, option) in enumerate(pairs)]


def _exact(memory: TokenCache, best: np.ndarray, options: Sequence[Sequence[Ids]]) -> list[set[int]]:
    """For every row the options that equal the greedy decoding, given the greedy first token of every row."""
    found: list[set[int]] = [set() for _ in options]
    longer: list[tuple[int, int]] = []
    for row, choices in enumerate(options):
        for index, option in enumerate(choices):
            if option[0] == best[row]:
                longer.append((row, index)) if len(option) > 1 else found[row].add(index)
    tried = _tried(memory, [(row, options[row][index]) for row, index in longer])
    for (row, index), equal in zip(longer, tried):
        if equal:
            found[row].add(index)
    return found


def ask(
    memory: TokenCache,
    questions: Sequence[Ids],
    options: Sequence[Sequence[Ids]],
    *,
    ending: Ids = (),
    look: Callable[[TokenCache], None] = lambda memory: None,
) -> list[Picked]:
    """Put one multiple-choice round to every row of ``memory`` and go on with what was picked.

    Args:
        questions: token ids of the question, one list a row.
        options: token ids of the options, none of them empty; a row with an empty question has none and sits out.
        ending: tokens that close every reply (a line break); they are read, not scored.
        look: called with the memory when the question has been read and the reply has not.

    Raises MemoryError_ (nothing changed) when question and longest option do not fit into the memory.
    """
    _check(questions, options)
    memory.open_round(
        [len(q) + max(map(len, o), default=0) + len(ending) * bool(q) for q, o in zip(questions, options)]
    )
    logits = read(memory, questions)
    assert logits is not None
    look(memory)
    last = _last(logits, questions)
    logp, best = torch.log_softmax(last, -1).cpu().numpy(), last.argmax(-1).cpu().numpy()
    exact = _exact(memory, best, options)
    surprise = _question_surprise(logits, questions)
    picked = [_pick(logp[i], exact[i], choices, surprise[i]) for i, choices in enumerate(options)]
    read(memory, [[*o[p.option], *ending] if o else [] for p, o in zip(picked, options)])
    memory.close_round()
    return picked


def _check(questions: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> None:
    if len(questions) != len(options):
        raise BadInput(f"{len(questions)} questions and {len(options)} lists of options; one list a question")
    for question, choices in zip(questions, options):
        if bool(len(question)) != bool(len(choices)) or not all(map(len, choices)):
            raise BadInput("every question needs at least one option and no option may be empty")
    if not any(map(len, questions)):
        raise BadInput("questions are all empty: there is nothing to ask")


def _pick(logp: np.ndarray, exact: set[int], options: Sequence[Ids], surprise: np.ndarray) -> Picked:
    first = tuple(float(logp[option[0]]) for option in options)
    if not options:
        return Picked(-1, False, (), surprise)
    chosen = min(exact) if exact else int(np.argmax(first))
    return Picked(chosen, bool(exact), first, surprise)

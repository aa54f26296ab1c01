"""Order questions in the SORT form (which of two segments of a text came first?), on episode logs and on real prose.

After Pink et al. 2024 (SORT, Book-SORT): segments start at sentence starts, are cut to a number of words, stand A or
B exactly half the time each, and never overlap.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workbench_datasets import _world_words as words
from workbench_datasets._world_text import Document, Writer, filler_sentence

if TYPE_CHECKING:
    from workbench_datasets.small_world import World

DEEDS = (
    "{p} lost the {i} at the {a}",
    "{p} sold the {i} near the {a}",
    "{p} found the {i} in the {a}",
    "{p} hid the {i} behind the {a}",
    "{p} bought the {i} at the {a}",
    "{p} broke the {i} in the {a}",
)


def _event(rng: random.Random) -> str:
    return rng.choice(DEEDS).format(
        p=rng.choice(words.FIRST_NAMES), i=rng.choice(words.ITEMS), a=rng.choice(words.EPISODE_PLACES)
    )


def ask_order(
    writer: Writer, rng: random.Random, earlier: str, later: str, *, last: bool | None = None, **meta: Any
) -> None:
    """One SORT question; the right label is A or B with equal chance."""
    first_is_a = rng.random() < 0.5
    a, b = (earlier, later) if first_is_a else (later, earlier)
    last = rng.random() < 0.2 if last is None else last
    answer = "A" if first_is_a != last else "B"
    word = "last" if last else "first"
    writer.add(f"QUESTION: Which came {word}? A: {a} B: {b} ANSWER:")
    writer.answer(answer, ("A", "B"), last=last, **meta).add(".\n")


def order(world: World, rng: random.Random, *, size: int | None = None, questions: int | None = None) -> Document:
    """A log of ``n`` events (short logs are the most frequent) and which of two came first; distances are recorded."""
    writer = Writer("order")
    n = size or rng.choices((2, 3, 4, 6, 8, 12, 20, 32), (4, 5, 5, 4, 3, 2, 2, 1))[0]
    log: dict[str, None] = {}
    while len(log) < n:
        log[_event(rng)] = None
    events = list(log)
    for event in events:
        writer.add(f"{event}. ")
    writer.add("\n")
    for _ in range(questions or rng.randint(2, 6)):
        i, j = sorted(rng.sample(range(n), 2))
        ask_order(writer, rng, events[i], events[j], distance=j - i, n=n)
    return writer.done()


def sentence_starts(tokens: Sequence[str]) -> list[int]:
    """Indices of words that begin a sentence: after a word with one of . ? ! ; except Mr., Mrs. and Dr."""
    starts = [0]
    for index, word in enumerate(tokens[:-1]):
        if re.search(r"[.?!;]", word) and word not in ("Mr.", "Mrs.", "Dr."):
            starts.append(index + 1)
    return starts


def order_prose(world: World, rng: random.Random, *, words_total: int | None = None, segment: int | None = None,
                questions: int | None = None) -> Document:  # fmt: skip
    """Order questions on running prose (the world's ``prose``; plain generated sentences when it has none)."""
    total, size = words_total or rng.choice((40, 80, 120, 200)), segment or rng.randint(8, 16)
    if total < 3 * size:
        size = max(3, total // 4)
    text = _prose(world, rng, total).split()
    starts = [s for s in sentence_starts(text) if s + size <= len(text)]
    pairs = [(i, j) for i in starts for j in starts if j - i >= size]
    writer = Writer("order-prose").add(" ".join(text))
    writer.quiet = writer.length  # the question is to be learned here, not the book
    writer.add("\n")
    for _ in range((questions or rng.randint(1, 4)) if pairs else 0):
        i, j = rng.choice(pairs)
        first, second = " ".join(text[i : i + size]), " ".join(text[j : j + size])
        if first != second:
            ask_order(writer, rng, first, second, distance=j - i, words=total)
    return writer.done()


def _prose(world: World, rng: random.Random, total: int) -> str:
    if not world.prose:
        parts: list[str] = []
        while sum(len(part.split()) for part in parts) < total:
            parts.append(filler_sentence(rng))
        return " ".join(parts)
    at = rng.randrange(len(world.prose))
    taken: list[str] = []
    while len(taken) < total:
        taken += world.prose[at % len(world.prose)].split()
        at += 1
    return " ".join(taken[:total])


MAKERS: dict[str, Callable[..., Document]] = {"order": order, "order-prose": order_prose}

"""Texts to begin with; each shows something else."""

from __future__ import annotations

import random
from collections.abc import Callable

from workbench.errors import UnknownName

#: Short common words: many tokenizers keep each in one token.
_WORDS = """
sun moon tree river stone bird cloud horse king ship bread glass wind snow fire gold lamp road hill
door book clock field hand heart house night salt wood sea star rain cup song boat fish coat ring
rose bell
"""


def repeated_words(n: int = 40, seed: int = 0) -> str:
    """``n`` random words (at most 40), twice: the second time an induction head looks one past the first."""
    words = random.Random(seed).sample(_WORDS.split(), n)
    once = " ".join(words)
    return f"{once} {once}"


def dialogue() -> str:
    """A grocery order, unrelated questions, and the question what was ordered: one round a line."""
    from workbench_datasets.dialogues import grocery

    return grocery(random.Random(3), distractors=12).text.strip()


def small_world() -> str:
    from workbench_datasets.small_world import world

    return world().document("facts", random.Random(1)).text


def notes(people: int = 12, seed: int = 5) -> str:
    """Facts about people whom no training text names, one a line: what a memory of items is for."""
    from workbench_datasets.small_world import world

    documents = (
        world().document("open-book", random.Random(seed + n), split="unseen", distance=0) for n in range(people)
    )
    told = [document.text.split("\n")[0].strip() for document in documents]
    return "\n".join(f"{fact.rstrip('.')}." for text in told for fact in text.split(". ") if fact)


def book() -> str:
    """The opening of a held-out book's second chapter or so: prose the embedded model was not trained on."""
    return held_out(1500)


def held_out(characters: int) -> str:
    """``characters`` of a held-out book, from past its title pages."""
    from workbench_datasets import books

    text = max(books.load(split="heldout").values(), key=len)
    start = text.find(". ", len(text) // 10) + 2
    return text[start : start + characters]


SAMPLES: dict[str, Callable[[], str]] = {
    "repeated words": repeated_words,
    "a dialogue with an order": dialogue,
    "small-world document": small_world,
    "notes about people": notes,
    "a held-out book": book,
}


def sample(name: str) -> str:
    if name not in SAMPLES:
        raise UnknownName("sample text", name, SAMPLES)
    return SAMPLES[name]()

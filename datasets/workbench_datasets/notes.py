"""Notes about strangers and one question about them: in-context recall with a known number of facts.

Every text states facts of the small world's kinds about people who are never in any training text, each once and in one
wording, and asks for one of them. The language is closed (:func:`vocabulary`), so that a model of a hundred thousand
weights can learn it in seconds and be asked in plain words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from workbench_datasets import _world_words as words
from workbench_datasets._checks import whole
from workbench_datasets.small_world import PERSON_RELATIONS, RELATIONS, World, world
from workbench_datasets.streams import Streams, blank

__all__ = ["Note", "decode", "encode", "notes", "notes_pool", "vocabulary"]

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Note:
    """``context`` (facts), ``question`` (ends with "ANSWER:"), ``answer`` (a word); ``asked``: place of the fact."""

    context: str
    question: str
    answer: str
    asked: int
    relation: str


def notes(n: int, facts: int, *, people: int | None = None, split: str = "unseen", seed: int = 0) -> list[Note]:
    """``n`` notes of ``facts`` facts about ``people`` people (default: as many, one fact each).

    ``split``: "unseen" names are in nobody's training text, "context" ones are for training. Raises ValueError for
    fewer facts than people, or more than they have relations for.
    """
    whole("n", n)
    people = whole("facts", facts) if people is None else whole("people", people)
    if not people <= whole("facts", facts) <= people * len(PERSON_RELATIONS):
        raise ValueError(
            f"facts={facts}, people={people}: expected from people to {len(PERSON_RELATIONS)} x people facts"
        )
    if split not in ("unseen", "context"):
        raise ValueError(f"split={split!r}: expected unseen or context")
    rng = random.Random(f"notes:{split}:{seed}:{facts}:{people}")
    return [_note(rng, facts, people, split) for _ in range(n)]


@cache
def _small() -> World:
    return world(0)


@cache
def _names(split: str) -> tuple[str, ...]:
    every = (f"{first} {last}" for first in words.FIRST_NAMES for last in words.LAST_NAMES)
    return tuple(name for name in every if _small().name_split(name) == split)


@cache
def _frames(relation: str) -> tuple[str, str, tuple[str, ...]]:
    """Statement, question and objects of a relation; the statement begins with a capital where no name does."""
    frames = RELATIONS[relation]
    statement = frames.frames("statement")[0]
    return f"{statement[0].upper()}{statement[1:]}.", frames.frames("question")[0], _small().objects(relation)


def _note(rng: random.Random, facts: int, people: int, split: str) -> Note:
    names = rng.sample(_names(split), people)
    if people == facts:
        told = [(name, rng.choice(PERSON_RELATIONS)) for name in names]
    else:
        rest = [(name, relation) for name in names for relation in PERSON_RELATIONS]
        first = [(name, rng.choice(PERSON_RELATIONS)) for name in names]
        told = first + rng.sample([pair for pair in rest if pair not in first], facts - people)
        rng.shuffle(told)
    held = [rng.choice(_frames(relation)[2]) for _, relation in told]
    lines = [_frames(relation)[0].format(s=name, o=obj) for (name, relation), obj in zip(told, held)]
    asked = rng.randrange(facts)
    name, relation = told[asked]
    question = f"QUESTION: {_frames(relation)[1].format(s=name)} ANSWER:"
    return Note(" ".join(lines), question, held[asked], asked, relation)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the notes; the place is the id, and 0 is padding."""
    known = [_frames(relation) for relation in PERSON_RELATIONS]
    frames = [text.format(s=" ", o=" ") for statement, question, _ in known for text in (statement, question)]
    objects = [obj for *_, own in known for obj in own]
    texts = [*frames, "QUESTION: ANSWER:", *objects, *words.FIRST_NAMES, *words.LAST_NAMES]
    return ("", *sorted({token for text in texts for token in _TOKEN.findall(text)}))


@cache
def _ids() -> dict[str, int]:
    return {word: place for place, word in enumerate(vocabulary())}


def encode(text: str) -> list[int]:
    """Ids of a text in the language of the notes; a ValueError names the first word that it does not have."""
    if not isinstance(text, str):
        raise ValueError(f"text must be text in the language of the notes, got {type(text).__name__}")
    found = _TOKEN.findall(text)
    unknown = next((token for token in found if token not in _ids()), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is no word of the notes' language; see workbench_datasets.notes.vocabulary()")
    return [_ids()[token] for token in found]


def decode(ids: Iterable[int]) -> str:
    """The words of ids, padding left out; a ValueError names the first id that is no word's."""
    known, found = vocabulary(), [int(i) for i in ids]
    for i in found:
        if not 0 <= i < len(known):
            raise ValueError(f"id {i} is no word of the notes' language, whose ids run from 0 to {len(known) - 1}")
    return " ".join(known[i] for i in found if i)


def notes_pool(asked: Sequence[Note], repeats: int = 1, *, length: int | None = None) -> Streams:
    """Prompts ``(C Q) x repeats`` as ids, padded on the left to ``length``; the answer is the target of the last token.

    Raises ValueError for no notes, repeats < 1, or a length that would cut a prompt.
    """
    if not asked:
        raise ValueError("asked is empty: expected at least one note")
    whole("repeats", repeats)
    rows = [(encode(note.context) + encode(note.question)) * repeats for note in asked]
    longest = max(map(len, rows))
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"length={length}: the longest prompt has {longest} tokens; nothing is cut")
    tables = blank(len(rows), length)
    tables["lengths"] = np.array([len(row) for row in rows], np.int32)
    for place, (row, note) in enumerate(zip(rows, asked)):
        tables["ids"][place, length - len(row) :] = row
        tables["targets"][place, -1] = encode(note.answer)[0]
        tables["category"][place, -1] = 0
    kinds = len({note.answer for note in asked})
    name = f"{len(encode(asked[0].context))} words, {repeats} x"
    return Streams(**tables, categories=(name,), vocabulary=len(vocabulary()), chance=1 / max(kinds, 1))

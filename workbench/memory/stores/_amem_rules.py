"""A-MEM without a language model: deterministic rules that fill a note and decide about links and evolution.

They stand in for the model at write time so that the memory works offline; wherever their output is shown it is
labelled "rules (no language model)". They read names, keywords and first clauses by form and compare sets of rare
words; they understand nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from workbench.llm import rules
from workbench.memory.stores._amem_notes import Evolution, Note, NoteFields, distinct

#: Broad classes from which a note's tags are taken: the nearest ones by embedding.
TOPICS = (
    "family", "friendship", "romance", "children", "pets", "animals", "home", "moving", "work", "career", "school",
    "study", "money", "shopping", "health", "sport", "food", "cooking", "travel", "nature", "weather", "music", "film",
    "books", "writing", "art", "dance", "games", "technology", "science", "religion", "politics", "law", "community",
    "volunteering", "celebration", "feelings", "plans", "memories", "advice",
)  # fmt: skip
KEYWORDS, TAGS, MOST_TAGS, MOST_RELATED, CLAUSE = 6, 3, 6, 12, 12
_SPEAKER = re.compile(r"^\s*(?:speaker\s+)?(\w[\w.'-]*(?:\s\w[\w.'-]*)?)(?:\s+says?)?\s*:\s+", re.IGNORECASE)
_RELATED = re.compile(r"\s*\brelated: (.*)$", re.DOTALL)


def spoken(content: str) -> str:
    """A turn without its speaker ("Ada says: ..." or "Ada: ..."): keywords never name the speaker."""
    return _SPEAKER.sub("", content, count=1) or content


class Terms:
    """In how many of the notes held so far each term stands (document frequency); what "rare" means is read off it."""

    def __init__(self) -> None:
        self._of: dict[int, frozenset[str]] = {}
        self._df: Counter[str] = Counter()
        self._border: float | None = None

    def __len__(self) -> int:
        return len(self._of)

    def replace(self, item: int, content: str | None) -> None:
        """Count the note ``item`` with this content, or no longer (None)."""
        self._df.subtract(self._of.pop(item, ()))
        if content is not None:
            self._of[item] = frozenset(terms(content))
            self._df.update(self._of[item])
        self._border = None

    def idf(self, term: str) -> float:
        """ln((1 + n) / (1 + df)) + 1 over the notes so far; a term never seen is the rarest."""
        return math.log((1 + len(self._of)) / (1 + self._df[term.casefold()])) + 1

    def rare(self, term: str) -> bool:
        """Whether the idf is at least the median over all occurrences of terms (a term in df notes counts df times).

        At least, not above: in a store of a few notes every term stands in one of them.
        """
        return self._df[term.casefold()] <= self._median()

    def seen(self, term: str) -> bool:
        """Whether some note holds the term."""
        return self._df[term.casefold()] > 0

    def _median(self) -> float:
        if self._border is None:
            self._df = +self._df
            counts = np.sort(np.fromiter(self._df.values(), dtype=np.int64, count=len(self._df)))
            below = np.cumsum(counts)
            self._border = float(counts[np.searchsorted(below, below[-1] / 2)]) if len(counts) else math.inf
        return self._border


def terms(content: str) -> list[str]:
    """Content words of what was said, in lower case, with repeats."""
    return rules.content_words(spoken(content))


def entities(content: str, held: Terms) -> tuple[str, ...]:
    """Names in what was said; a capitalised first word counts when other notes hold it as well."""
    said = spoken(content)
    first = re.match(r"\W*([A-Z]\w+)", said)
    known = [first.group(1)] if first and held.seen(first.group(1)) else []
    return distinct(rules.names(said, known))


def fields(
    content: str, named: Sequence[str], held: Terms, vector: np.ndarray | None, topics: np.ndarray | None
) -> NoteFields:
    """Keywords: six terms of the highest TF-IDF, then names. Tags: nearest topics. Context: names and first clause.

    ``named`` are the content's :func:`entities`, ``vector`` (dim,) its embedding and ``topics`` (40, dim) those of
    :data:`TOPICS`; a topic that has nothing in common with the text (cosine 0, as a lexical encoder may give)
    is no tag.
    """
    said = spoken(content)
    found = rules.keywords(said, KEYWORDS, held.idf)
    words = distinct([*found, *named]) or distinct(said.split(), KEYWORDS) or (content,)
    return NoteFields(keywords=list(words), context=context(said, named), tags=nearest_topics(vector, topics))


def context(said: str, named: Sequence[str]) -> str:
    """ "NAMES: first clause", the template of a note's context."""
    sentence = (rules.sentences(said) or [said])[0]
    clause = " ".join(re.split(r"[,;:.!?]\s|\s[-–]\s", sentence)[0].rstrip(".!?").split()[:CLAUSE])
    return f"{', '.join(named[:3])}: {clause}" if named else clause


def nearest_topics(vector: np.ndarray | None, topics: np.ndarray | None) -> list[str]:
    if vector is None or topics is None:
        return []
    cosines = topics @ vector
    best = np.argsort(-cosines, kind="stable")[:TAGS]
    return [TOPICS[i] for i in best if cosines[i] > 0]


def common(note: Note, old: Note) -> tuple[str, ...]:
    """Names and keywords that two notes have in common, in the first one's order."""
    mine = {word.casefold(): word for word in (*note.entities, *note.keywords)}
    theirs = {word.casefold() for word in (*old.entities, *old.keywords)}
    return tuple(word for key, word in mine.items() if key in theirs)


def related(note: Note, old: Note, held: Terms, cosine: float, threshold: float) -> tuple[str, ...]:
    """What ties two notes together: rare names and keywords in common; empty when nothing does.

    A cosine above ``threshold`` is a tie too, named "similar text" when no rare word is shared.
    """
    shared = tuple(word for word in common(note, old) if held.rare(word))
    return shared or (("similar text",) if cosine > threshold else ())


def decide(
    note: Note, neighbours: Sequence[Note], cosines: Sequence[float], held: Terms, threshold: float
) -> Evolution:
    """The rule's decision, in the words a model would answer in.

    A neighbour that is :func:`related` is linked, its context gets "related: ..." with the new note's keywords that it
    lacks (at most twelve), its tags those of the new note (at most six). Others are repeated as they are.
    """
    tied = [bool(related(note, old, held, cosine, threshold)) for old, cosine in zip(neighbours, cosines)]
    return Evolution(
        should_evolve=any(tied),
        actions=["strengthen", "update_neighbor"],
        suggested_connections=[old.id for old, tie in zip(neighbours, tied) if tie and old.id is not None],
        tags_to_update=list(note.tags),
        new_context_neighborhood=[_richer(old, note) if tie else old.context for old, tie in zip(neighbours, tied)],
        new_tags_neighborhood=[
            list(distinct([*old.tags, *note.tags], max(MOST_TAGS, len(old.tags)))) if tie else list(old.tags)
            for old, tie in zip(neighbours, tied)
        ],
    )


def _richer(old: Note, note: Note) -> str:
    """The neighbour's context with keywords of the new note that it does not hold yet."""
    base = _RELATED.sub("", old.context)
    match = _RELATED.search(old.context)
    before = match.group(1).split(", ") if match else []
    has = {word.casefold() for word in (*terms(old.content), *old.keywords, *before)}
    fresh = [word for word in note.keywords if word.casefold() not in has]
    words = distinct([*before, *fresh], MOST_RELATED)
    return f"{base} related: {', '.join(words)}" if words else old.context

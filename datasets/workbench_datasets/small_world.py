"""The small world: people, towns, jobs, organisations and events whose facts a small model can learn by heart.

A seeded world holds known facts with recorded exposure counts, and writes documents of many kinds (``KINDS``) with
gold answers. The same generators serve training and evaluation; what training never sees is fixed by hashes: unseen
people, held-out frames and held-out compositions (see :meth:`World.name_split` and :attr:`Relation.frames`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from workbench_datasets import _world_words as words
from workbench_datasets._world_frames import PERSON_RELATIONS, RELATIONS, SIDES, Relation
from workbench_datasets._world_text import Answer, Document, Question, filler

__all__ = [
    "KINDS",
    "PERSON_RELATIONS",
    "RELATIONS",
    "Answer",
    "Document",
    "Fact",
    "Question",
    "Relation",
    "World",
    "world",
]

CONTEXT_SHARE = 30  # per cent of all name pairs that appear in training documents with ever-changing facts
TERCILES = ("high", "mid", "low")
# Chance that the later question of a conflict document follows memory, by the subject's popularity tercile and the
# number of false statements read before: popular people are believed, rare ones corrected, repetition persuades.
MEMORY_RATES: dict[tuple[str, int], float] = {
    ("high", 1): 0.9, ("high", 2): 0.8, ("high", 3): 0.6,
    ("mid", 1): 0.6, ("mid", 2): 0.4, ("mid", 3): 0.25,
    ("low", 1): 0.15, ("low", 2): 0.1, ("low", 3): 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A known fact; ``exposures`` is how often one pass of the fact corpus states it, ``split`` is ``known``."""

    subject: str
    relation: str
    object: str
    exposures: int
    split: str = "known"


def _vocabularies() -> dict[str, tuple[str, ...]]:
    return {
        "town": words.TOWNS, "job": words.JOBS, "instrument": words.INSTRUMENTS, "pet": words.PETS,
        "colour": words.COLOURS, "food": words.FOODS, "organisation": words.ORGANISATIONS, "month": words.MONTHS,
        "river": words.RIVERS, "region": words.REGIONS, "product": words.PRODUCTS, "tool": words.TOOLS,
        "inn": words.INNS, "wood": words.WOODS, "day": words.DAYS, "feed": words.FEEDS, "bed": words.BEDS,
        "virtue": words.VIRTUES, "mineral": words.MINERALS, "sauce": words.SAUCES, "feast": words.FEASTS,
        "flower": words.FLOWERS,
    }  # fmt: skip


class World:
    """One seeded world.

    Args:
        seed: which world; equal seeds give equal facts.
        people: how many known people (at most 96, so that first names of known people are distinct).
        events: how many dated events (at most 30).
        rho: share of question passages that contradict what the world teaches (0, 0.1, 0.3 in the paper).
        prose: paragraphs of real text to use as filler and in order questions; generated filler without them.
        prose_filler: share of filler stretches taken from ``prose``.
    """

    def __init__(self, seed: int = 0, *, people: int = 96, events: int = 30, rho: float = 0.1,
                 prose: Sequence[str] = (), prose_filler: float = 0.5):  # fmt: skip
        if not 3 <= people <= len(words.FIRST_NAMES):
            raise ValueError(f"people={people!r}: expected 3 to {len(words.FIRST_NAMES)}")
        if not 0 <= events <= len(words.EVENT_ADJECTIVES) * len(words.EVENT_NOUNS):
            raise ValueError(f"events={events!r}: expected 0 to 30")
        if not 0 <= rho <= 1:
            raise ValueError(f"rho={rho!r}: expected a share from 0 to 1")
        self.seed, self.rho, self.prose, self.prose_filler = seed, rho, tuple(prose), prose_filler
        self.types = _vocabularies()
        self._build(random.Random(f"world:{seed}"), people, events)

    def _build(self, rng: random.Random, people: int, events: int) -> None:
        first, last = rng.sample(words.FIRST_NAMES, people), rng.sample(words.LAST_NAMES, people)
        self.people = [f"{a} {b}" for a, b in zip(first, last)]  # in order of popularity
        self._known = set(self.people)
        names = [f"the {a} {b}" for a, b in itertools.product(words.EVENT_ADJECTIVES, words.EVENT_NOUNS)]
        self.events = rng.sample(names, events)
        nicknames = [f"{a} {b}" for a, b in itertools.product(words.NICK_ADJECTIVES, words.NICK_NOUNS)]
        self.types["alias"] = tuple(rng.sample(nicknames, people))
        self.types["person"] = tuple(self.people)
        self.side = {
            (obj, name): rng.choice(self.types[kind])
            for type_, sides in SIDES.items()
            for obj in self.types[type_]
            for name, *_, kind in sides
        }
        self.facts = self._person_facts(rng) + self._other_facts(rng)
        for fact in self.facts:  # a passage's river and region are the town's own
            if fact.relation in ("river", "region"):
                self.side[(fact.subject, fact.relation)] = fact.object
        self.truth = {(fact.subject, fact.relation): fact.object for fact in self.facts}

    def _person_facts(self, rng: random.Random) -> list[Fact]:
        facts = []
        for rank, person in enumerate(self.people, start=1):
            for relation in PERSON_RELATIONS:
                count = max(1, round(200 / rank * rng.uniform(0.5, 1.0)))
                facts.append(Fact(person, relation, rng.choice(self.types[RELATIONS[relation].object]), count))
            mentor = rng.choice([other for other in self.people if other != person])
            facts.append(Fact(person, "mentor", mentor, max(1, round(100 / rank))))
            facts.append(Fact(person, "alias", self.types["alias"][rank - 1], max(1, round(100 / rank))))
        return facts

    def _other_facts(self, rng: random.Random) -> list[Fact]:
        facts = []
        for rank, town in enumerate(rng.sample(words.TOWNS, len(words.TOWNS)), start=1):
            for relation in ("river", "region", "product"):
                facts.append(Fact(town, relation, rng.choice(self.types[relation]), max(4, round(100 / rank))))
        for rank, event in enumerate(self.events, start=1):
            for relation in ("event-town", "event-month"):
                obj = rng.choice(self.types[RELATIONS[relation].object])
                facts.append(Fact(event, relation, obj, max(2, round(60 / rank))))
        return facts

    # -- what is known, and what is kept from training ------------------------------------------------------------

    @cached_property
    def _cumulative(self) -> list[int]:
        return list(itertools.accumulate(fact.exposures for fact in self.facts))

    def draw_fact(self, rng: random.Random) -> Fact:
        """A known fact with chance proportional to its exposures."""
        return rng.choices(self.facts, cum_weights=self._cumulative)[0]

    @cached_property
    def person_facts(self) -> list[Fact]:
        """Known facts of the eight relations whose objects are single words (conflicts, edits, passages)."""
        return [fact for fact in self.facts if fact.relation in PERSON_RELATIONS]

    def tercile(self, person: str) -> str:
        """Popularity tercile of a known person: ``high``, ``mid`` or ``low``."""
        return TERCILES[self.people.index(person) * 3 // len(self.people)]

    @staticmethod
    def name_pool(name: str) -> str:
        """``context`` or ``unseen`` by the hash of the name alone; known people are taken out of both by the world."""
        return "context" if words.bucket("name", name) < CONTEXT_SHARE else "unseen"

    def name_split(self, name: str) -> str:
        """``known``, ``context`` (in training, with facts drawn anew each time) or ``unseen`` (never in training)."""
        return "known" if name in self._known else self.name_pool(name)

    def new_person(self, rng: random.Random, split: str = "context") -> str:
        if split not in ("context", "unseen"):
            raise ValueError(f"split={split!r}: expected 'context' or 'unseen'")
        while True:
            name = f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"
            if self.name_split(name) == split:
                return name

    def new_people(self, rng: random.Random, n: int, split: str = "context") -> list[str]:
        names: dict[str, None] = {}
        while len(names) < n:
            names[self.new_person(rng, split)] = None
        return list(names)

    def objects(self, relation: str) -> tuple[str, ...]:
        """Every object of the relation's type; first words are distinct within a type."""
        if relation not in RELATIONS:
            raise ValueError(f"relation={relation!r}: expected one of {', '.join(RELATIONS)}")
        return self.types[RELATIONS[relation].object]

    def counterfactual(self, fact: Fact, rng: random.Random) -> str:
        """Another object of the same type."""
        return rng.choice([obj for obj in self.objects(fact.relation) if obj != fact.object])

    def filler(self, rng: random.Random, tokens: int) -> str:
        return filler(rng, tokens, self.prose, self.prose_filler)

    # -- documents and questions ----------------------------------------------------------------------------------

    def document(self, kind: str, rng: random.Random, **settings: Any) -> Document:
        """One document of a kind in ``KINDS`` (settings: see the maker of that kind)."""
        return _maker(kind)(self, rng, **settings)

    def questions(self, kind: str, n: int, seed: int = 0, **settings: Any) -> list[Question]:
        """``n`` questions, one a document: the document up to one of its asked answers, chosen at random.

        Questions are reproducible by ``(kind, seed, settings)`` and drawn apart from every training stream.
        """
        if n < 1:
            raise ValueError(f"n={n!r}: expected at least 1")
        asked = (self._question(kind, random.Random(f"ask:{kind}:{seed}:{i}"), settings) for i in range(n))
        return list(asked)

    def _question(self, kind: str, rng: random.Random, settings: dict[str, Any]) -> Question:
        while True:
            document = self.document(kind, rng, **settings)
            choices = [answer for answer in document.answers if answer.asked]
            if choices:
                answer = rng.choice(choices)
                meta = {**document.meta, **answer.meta}
                return Question(document.text[: answer.start], f" {answer.text}", answer.options, kind, meta)

    def closed_book(self, split: str = "train", *, form: str = "question", frame: int | None = None) -> list[Question]:
        """Every known fact asked once without context; ``split="heldout"`` uses wordings kept from training."""
        asked = []
        for index, fact in enumerate(self.facts):
            frames = RELATIONS[fact.relation].frames(form, split)
            chosen = frames[(index if frame is None else frame) % len(frames)]
            meta = {"fact": fact, "exposures": fact.exposures, "frame": chosen}
            prompt = _prompt(chosen, fact.subject, form)
            asked.append(Question(prompt, f" {fact.object}", self.objects(fact.relation), "closed-book", meta))
        return asked


def _prompt(frame: str, subject: str, form: str) -> str:
    if form == "question":
        return f"QUESTION: {frame.format(s=subject)} ANSWER:"
    head = frame.format(s=subject, o="").rstrip()
    return head[0].upper() + head[1:]


@cache
def _makers() -> dict[str, Callable[..., Document]]:
    from workbench_datasets import _world_facts, _world_order, _world_skills

    return {**_world_facts.MAKERS, **_world_skills.MAKERS, **_world_order.MAKERS}


KINDS = (
    "facts", "biography", "open-book", "conflict", "passage", "two-hop", "two-hop-context", "episodes", "memory",
    "passkey", "list-recall", "remaining", "ioi", "classification", "order", "order-prose",
)  # fmt: skip


def _maker(kind: str) -> Callable[..., Document]:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    return _makers()[kind]


def world(seed: int = 0, **sizes: Any) -> World:
    """The small world of a seed; ``sizes`` are those of :class:`World`. The shipped models were trained on seed 0."""
    return World(seed, **sizes)

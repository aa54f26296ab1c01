"""Bridge world: notes about invented people where a question's second piece of evidence shares no name with it.

Every person has one relation note ("A mentioned that B is the mentor who ...") and four attribute notes; distractor
notes name random people. A two-hop question asks for an attribute of A's mentor without naming B, so a memory finds
both notes only if it can go from one note to the other: the smallest case where organising notes is necessary
(A-MEM, 2502.12110, claims it for multi-hop questions; the world is our own test of that claim).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from workbench_datasets import _bridge_text as wording
from workbench_datasets._checks import whole
from workbench_datasets._invented import Coiner

__all__ = ["ATTRIBUTES", "KINDS", "BridgeQuestion", "BridgeWorld", "Note", "bridge_world"]

ATTRIBUTES = tuple(wording.ATTRIBUTES)
KINDS = ("one-hop", "two-hop")
START = datetime(2024, 1, 8, 8, tzinfo=UTC)
MOST_PEOPLE = 120  # beyond it the syllables run out of names that are no part of one another


@dataclass(frozen=True)
class Note:
    """One note. ``entities``: the names in it, people first; ``kind``: relation, pet, city, instrument, job or
    distractor; ``time``: seconds since 1970 UTC, an hour apart in the order of ``id``."""

    id: int
    text: str
    entities: tuple[str, ...]
    kind: str
    time: float


@dataclass(frozen=True)
class BridgeQuestion:
    """A question, its answer (an invented name) and the ids of all notes that are needed to answer it.

    ``subject`` is the only person the question names; ``bridge`` the person to be found on the way (None: one hop).
    """

    text: str
    answer: str
    evidence: tuple[int, ...]
    hops: int
    attribute: str
    subject: str
    bridge: str | None = None

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        return KINDS[self.hops - 1]


@dataclass(frozen=True)
class BridgeWorld:
    """Notes in the order in which they are to be stored, and the questions about them (two-hop ones first)."""

    seed: int
    people: tuple[str, ...]
    notes: list[Note]
    questions: list[BridgeQuestion]


@dataclass(frozen=True)
class _Draft:
    """A note before the shuffle; ``value`` is what an attribute note or a relation note tells about ``person``."""

    text: str
    person: str
    kind: str
    value: str = ""
    relation: str = ""

    @property
    def entities(self) -> tuple[str, ...]:
        return (self.person, self.value) if self.value else (self.person,)


def bridge_world(seed: int, people: int = 40, distractors: int = 160, one_hop: int = 160) -> BridgeWorld:
    """The bridge world of a seed: ``5 * people + distractors`` shuffled notes, ``people`` two-hop questions.

    Args:
        seed: which world; equal arguments give equal worlds.
        people: from 3 to 120; each has a relation note and four attribute notes (pet, city, instrument, job).
        distractors: notes that name a random person and answer nothing.
        one_hop: questions that name the person whose attribute they ask for, at most four a person.

    Raises ``ValueError`` for numbers outside these ranges.
    """
    people, distractors = whole("people", people, 3, MOST_PEOPLE), whole("distractors", distractors, 0)
    one_hop = whole("one_hop", one_hop, 0, len(ATTRIBUTES) * people)
    rng = random.Random(f"bridge:{seed}")
    coiner = Coiner(rng)
    names = coiner.people(people)
    drafts = [_relation(rng, name, names) for name in names]
    drafts += [_attribute(rng, coiner, name, kind) for name in names for kind in ATTRIBUTES]
    drafts += [_distractor(rng, rng.choice(names)) for _ in range(distractors)]
    rng.shuffle(drafts)
    notes = [_note(index, draft) for index, draft in enumerate(drafts)]
    return BridgeWorld(seed, tuple(names), notes, _questions(rng, drafts, one_hop))


def _relation(rng: random.Random, name: str, names: list[str]) -> _Draft:
    other = rng.choice([one for one in names if one != name])
    word, deed = rng.choice(wording.RELATIONS)
    text = rng.choice(wording.RELATION_NOTES).format(a=name, b=other, relation=word, deed=deed)
    return _Draft(text, name, "relation", other, word)


def _attribute(rng: random.Random, coiner: Coiner, name: str, kind: str) -> _Draft:
    about = wording.ATTRIBUTES[kind]
    value = coiner.coin(about.coined)
    text = rng.choice(about.notes).format(b=name, v=value, x=rng.choice(about.sorts))
    return _Draft(text, name, kind, value)


def _distractor(rng: random.Random, name: str) -> _Draft:
    text = rng.choice(wording.DISTRACTORS).format(
        p=name, day=rng.choice(wording.DAYS), thing=rng.choice(wording.THINGS), place=rng.choice(wording.PLACES)
    )
    return _Draft(text, name, "distractor")


def _note(index: int, draft: _Draft) -> Note:
    time = (START + timedelta(hours=index)).timestamp()
    return Note(index, draft.text, draft.entities, draft.kind, time)


def _questions(rng: random.Random, drafts: list[_Draft], one_hop: int) -> list[BridgeQuestion]:
    place = {(draft.person, draft.kind): index for index, draft in enumerate(drafts) if draft.kind != "distractor"}
    relations = [index for index, draft in enumerate(drafts) if draft.kind == "relation"]
    turns = [ATTRIBUTES[i % len(ATTRIBUTES)] for i in range(len(relations))]  # every attribute is asked equally often
    rng.shuffle(turns)
    asked = [_two_hop(rng, drafts, index, place, kind) for index, kind in zip(relations, turns)]
    single = [index for index, draft in enumerate(drafts) if draft.kind in ATTRIBUTES]
    return asked + [_one_hop(rng, drafts[index], index) for index in sorted(rng.sample(single, one_hop))]


def _two_hop(
    rng: random.Random, drafts: list[_Draft], index: int, place: dict[tuple[str, str], int], kind: str
) -> BridgeQuestion:
    relation = drafts[index]
    target = place[(relation.value, kind)]
    text = rng.choice(wording.ATTRIBUTES[kind].questions).format(p=f"{relation.person}'s {relation.relation}")
    return BridgeQuestion(text, drafts[target].value, (index, target), 2, kind, relation.person, relation.value)


def _one_hop(rng: random.Random, draft: _Draft, index: int) -> BridgeQuestion:
    text = rng.choice(wording.ATTRIBUTES[draft.kind].questions).format(p=draft.person)
    return BridgeQuestion(text, draft.value, (index,), 1, draft.kind, draft.person)

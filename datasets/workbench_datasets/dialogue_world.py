"""Dialogue world: two people talk over many sessions about themselves and their circle, and questions come later.

One- and two-hop facts, facts that change, dated events told relative to the day of the session ("last Friday"), people
who go by two names, questions in other words, and questions about what was never said; in between questions, reactions
and small talk that drops the same names. Every gold answer and its evidence is *computed* from what the turns tell up
to the question's time (:class:`WorldState`), the shape of LoCoMo and LongMemEval with nothing left to annotators.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from workbench_datasets import _dialogue_world_text as wording
from workbench_datasets._checks import between, whole
from workbench_datasets._dialogue_world_plan import Plan, plan
from workbench_datasets._dialogue_world_state import NEVER_SAID, Fact, Query, Turn, WorldState, date_text
from workbench_datasets._dialogue_world_talk import Talk

__all__ = ["KINDS", "NEVER_SAID", "Fact", "Query", "Question", "Turn", "World", "WorldState", "dialogue_world"]

#: Kinds of questions and their shares; a kind that a small world has too little for gives its share to the others.
SHARES = {
    "one-hop": 0.25, "two-hop": 0.20, "changed-fact": 0.15, "dated": 0.12, "alias": 0.08, "paraphrase": 0.12,
    "never-said": 0.08,
}  # fmt: skip
KINDS = tuple(SHARES)
NEVER_MOST = 0.25  # questions about what was never said, for each that has an answer
AFTER = 3_600.0  # seconds from the last turn to the questions about everything


@dataclass(frozen=True)
class Question:
    """A question asked at ``time`` about the turns before it.

    ``answer`` is what :class:`WorldState` finds ("not mentioned" when it was never said), ``answers`` adds other forms
    of it (a second name, other ways to write a date), ``evidence`` the keys of the turns that it takes.
    """

    text: str
    answer: str
    evidence: tuple[str, ...]
    kind: str
    time: float
    answers: tuple[str, ...]
    query: Query = field(compare=False)


@dataclass(frozen=True)
class World:
    """A dialogue: two speakers, the people of their circle, all turns in order, and the questions."""

    seed: int
    speakers: tuple[str, str]
    people: tuple[str, ...]
    turns: list[Turn]
    questions: list[Question]

    @property
    def sessions(self) -> int:
        return self.turns[-1].session

    def turn(self, key: str) -> Turn:
        """The turn of a key like "D2:8"; ``ValueError`` for a key that no turn has."""
        found = next((turn for turn in self.turns if turn.key == key), None)
        if found is None:
            raise ValueError(f"key={key!r}: this dialogue has turns {self.turns[0].key} to {self.turns[-1].key}")
        return found

    def until(self, time: float) -> list[Turn]:
        """The turns up to and including a moment (seconds since 1970 UTC)."""
        return [turn for turn in self.turns if turn.time <= time]

    def state(self, until: float | None = None) -> WorldState:
        """What was told up to a moment; None: everything."""
        return WorldState(self.turns, until)

    def text(self) -> str:
        """The dialogue as it would be pasted: sessions with their dates, a line a turn."""
        lines: list[str] = []
        for before, turn in zip([None, *self.turns], self.turns):
            if before is None or before.session != turn.session:
                moment = datetime.fromtimestamp(turn.time, UTC)
                lines.append(f"Session {turn.session}, {moment:%A} {date_text(turn.time)}")
            lines.append(turn.line)
        return "\n".join(lines)


def dialogue_world(
    seed: int, sessions: int = 6, turns: int = 40, questions: int = 200, *, facts: float = 0.4, midway: float = 0.0
) -> World:
    """The dialogue of a seed.

    Args:
        seed: equal arguments give equal dialogues.
        sessions: how many, 4 to 12 days apart from 4 March 2024 on.
        turns: turns a session, at least 4; the speakers take turns.
        questions: how many at most (a small dialogue has fewer to ask).
        facts: things told per turn, 0.05 to 0.6; the other turns ask, react and chat.
        midway: share of the questions asked after an earlier session, about what was true (and said) until then.

    Raises ``ValueError`` for numbers outside these ranges.
    """
    sessions, turns = whole("sessions", sessions, 1, 200), whole("turns", turns, 4, 400)
    questions = whole("questions", questions, 0)
    facts, midway = between("facts", facts, 0.05, 0.6), between("midway", midway)
    rng = random.Random(f"dialogue:{seed}")
    told = plan(rng, max(3, round(facts * sessions * turns)))
    made = Talk(rng, told, sessions, turns).turns()
    speakers = (told.people[0].name, told.people[1].name)
    asked = _ask(rng, told, made, questions, midway)
    return World(seed, speakers, tuple(person.name for person in told.circle), made, asked)


def _ask(rng: random.Random, told: Plan, turns: list[Turn], n: int, midway: float) -> list[Question]:
    ends = {turn.session: turn.time for turn in turns}
    early = round(midway * n) if len(ends) > 1 else 0
    moments = {turns[-1].time + AFTER: n - early}
    for index in range(early):
        end = ends[1 + index % (len(ends) - 1)] + 60.0
        moments[end] = moments.get(end, 0) + 1
    asked: list[Question] = []
    for time, wanted in sorted(moments.items()):
        asked += _pick(rng, _Asker(rng, told, turns, time).pools(), wanted)
    return asked


def _pick(rng: random.Random, pools: dict[str, list[Question]], wanted: int) -> list[Question]:
    """``wanted`` questions by the kinds' shares; what a kind lacks is taken from those that have more."""
    for pool in pools.values():
        rng.shuffle(pool)
    answered = sum(len(pools[kind]) for kind in KINDS if kind != "never-said")
    del pools["never-said"][1 + round(NEVER_MOST * answered) :]
    quota = {kind: min(len(pools[kind]), int(share * wanted)) for kind, share in SHARES.items()}
    while sum(quota.values()) < min(wanted, sum(map(len, pools.values()))):
        open_ = [kind for kind in KINDS if quota[kind] < len(pools[kind])]
        quota[min(open_, key=lambda kind: quota[kind] / SHARES[kind])] += 1
    return [question for kind in KINDS for question in pools[kind][: quota[kind]]]


class _Asker:
    """Every question that can be asked at a moment, by kind."""

    def __init__(self, rng: random.Random, told: Plan, turns: list[Turn], time: float):
        self.rng, self.told, self.time = rng, told, time
        self.state = WorldState(turns, time)
        self.later = WorldState(turns)
        said = [fact for turn in turns if turn.time <= time for fact in turn.facts]
        self.alias = {fact.subject: fact.value for fact in said if fact.relation == "alias"}
        named = {fact.subject for fact in said} | {fact.value for fact in said}
        self.people = [p for p in told.people if p.name in named or self.alias.get(p.name) in named]

    def pools(self) -> dict[str, list[Question]]:
        pools: dict[str, list[Question]] = {kind: [] for kind in KINDS}
        for question in (*self._plain(), *self._ties(), *self._hops()):
            if question is not None:
                pools[question.kind].append(question)
        return pools

    def _question(self, kind: str, text: str, query: Query, turns: int | None = None) -> Question | None:
        """The question with its computed answer; None when the answer is not of this kind.

        ``turns``: how many turns of evidence it must take. Only "never-said" has no answer.
        """
        found = self.state.find(query)
        if (found.answer == NEVER_SAID) != (kind == "never-said"):
            return None
        if turns is not None and len(found.evidence) != turns:
            return None
        forms = (found.answer, *self._forms(found.answer, query))
        return Question(text, found.answer, found.evidence, kind, self.time, forms, query)

    def _forms(self, answer: str, query: Query) -> tuple[str, ...]:
        if query.operation == "date" and answer != NEVER_SAID:
            day = datetime.strptime(answer, "%d %B %Y").replace(tzinfo=UTC)
            return (f"{day:%B} {day.day}, {day.year}", f"{day:%Y-%m-%d}")
        return (self.alias[answer],) if answer in self.alias else ()

    def _plain(self) -> Iterator[Question | None]:
        """Traits and events of everybody: plain, in other words, by the other name, changed, dated, never said."""
        choice = self.rng.choice
        for person in self.people:
            for relation, about in (wording.TRAITS | wording.EVENTS).items():
                query = Query("value", person.name, relation)
                plain, other = (choice(lines).format(p=person.name) for lines in (about.asked, about.reworded))
                told = self.state.told(person.name, relation)
                if not told:
                    yield self._question("never-said", choice((plain, other)), query)
                elif self._changes(person.name, relation):
                    yield self._question("changed-fact", about.now.format(p=person.name), query, 1)
                    text = about.before.format(p=person.name)
                    yield self._question("changed-fact", text, Query("previous", person.name, relation), 2)
                else:
                    yield self._question("one-hop", plain, query, 1)
                    yield self._question("paraphrase", other, query, 1)
                yield from self._by_alias(person.name, relation, about)
                if about.when and told:
                    text = about.when.format(p=person.name, v=told[-1][0].value)
                    yield self._question("dated", text, Query("date", person.name, relation), 1)

    def _changes(self, name: str, relation: str) -> bool:
        """Whether it has more than one value in the whole dialogue, so that a question has to say which is meant."""
        return len(self.later.told(name, relation)) > 1

    def _by_alias(self, name: str, relation: str, about: wording.Told) -> Iterator[Question | None]:
        """Asked by the name that the telling turn did not use: the two turns differ, and both are needed."""
        if name in self.alias:
            for asked in (name, self.alias[name]):
                lines = (about.now,) if self._changes(asked, relation) else about.asked
                text = self.rng.choice(lines).format(p=asked)
                yield self._question("alias", text, Query("value", asked, relation), 2)

    def _bridges(self) -> list[tuple[str, str]]:
        """Whom one may ask by: everybody's boss, best friend, ..., and the speakers' kin."""
        kin = dict.fromkeys(person.kin for person in self.told.circle if person.kin)
        speakers = [person.name for person in self.told.people if person.speaker]
        ties = [(person.name, tie) for person in self.people for tie in wording.TIES]
        return ties + [(name, word) for name in speakers for word in kin]

    def _ties(self) -> Iterator[Question | None]:
        for name, tie in self._bridges():
            text = self.rng.choice(wording.TIE_ASKED).format(tie=tie, p=name)
            told = bool(self.state.told(name, tie))
            yield self._question("one-hop" if told else "never-said", text, Query("value", name, tie), int(told))

    def _hops(self) -> Iterator[Question | None]:
        """A trait or an event of somebody's boss, sister, ..., who is not named."""
        for name, via in self._bridges():
            if not self.state.told(name, via):
                continue
            bridge = self.state.find(Query("value", name, via)).answer
            for relation, about in (wording.TRAITS | wording.EVENTS).items():
                lines = (about.now,) if self._changes(bridge, relation) else (*about.asked, *about.reworded)
                text = self.rng.choice(lines).format(p=f"{name}'s {via}")
                yield self._question("two-hop", text, Query("follow", name, relation, via), 2)

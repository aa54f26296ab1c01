"""What a dialogue has told up to a moment, and the small queries that are answered from it.

Gold answers are computed here from the facts that turns carry, and nothing else: whoever changes the turns, or cuts
them off earlier, gets the answers that go with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

NEVER_SAID = "not mentioned"
OPERATIONS = ("value", "previous", "follow", "date")


@dataclass(frozen=True)
class Fact:
    """What a turn tells: ``subject`` as it is named in the turn (an alias, perhaps), relation, value.

    ``day``: seconds since 1970 UTC of noon of the day when an event took place; None for what simply is so.
    The relation "alias" says that ``value`` is another name of ``subject``.
    """

    subject: str
    relation: str
    value: str
    day: float | None = None


@dataclass(frozen=True)
class Turn:
    """One turn. ``key`` is "D2:8" for the eighth turn of session 2, ``time`` in seconds since 1970 UTC; ``facts`` is
    what it tells (empty for small talk)."""

    key: str
    session: int
    time: float
    speaker: str
    text: str
    facts: tuple[Fact, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.speaker}: {self.text}"


@dataclass(frozen=True)
class Query:
    """What a question asks for.

    ``value``: the latest value of ``relation`` of ``subject``; ``previous``: the one before it; ``date``: the day of
    the event; ``follow``: the ``relation`` of whoever is the ``via`` of ``subject``.
    """

    operation: str
    subject: str
    relation: str
    via: str | None = None


@dataclass(frozen=True)
class Found:
    """An answer with the keys of the turns that it was read from, in order of time."""

    answer: str
    evidence: tuple[str, ...]


_NOTHING = Found(NEVER_SAID, ())


class WorldState:
    """The facts of ``turns`` up to and including time ``until`` (None: all of them), under everybody's full name."""

    def __init__(self, turns: Iterable[Turn], until: float | None = None):
        told = sorted((turn for turn in turns if until is None or turn.time <= until), key=lambda turn: turn.time)
        self._full: dict[str, tuple[str, str]] = {}  # alias -> full name, key of the turn that says so
        for turn in told:
            for fact in turn.facts:
                if fact.relation == "alias":
                    self._full[fact.value] = (fact.subject, turn.key)
        self._told: dict[tuple[str, str], list[tuple[Fact, str]]] = {}
        for turn in told:
            for fact in turn.facts:
                self._told.setdefault((self._name(fact.subject), fact.relation), []).append((fact, turn.key))

    def _name(self, name: str) -> str:
        return self._full[name][0] if name in self._full else name

    def _alias(self, *names: str) -> tuple[str, ...]:
        return tuple(self._full[name][1] for name in names if name in self._full)

    def told(self, subject: str, relation: str) -> list[tuple[Fact, str]]:
        """Everything told about a relation of a subject, by any of its names, with the turns' keys, oldest first."""
        return self._told.get((self._name(subject), relation), [])

    def find(self, query: Query) -> Found:
        """The answer and the turns that it takes; "not mentioned" when the turns do not give it."""
        if query.operation not in OPERATIONS:
            raise ValueError(f"operation={query.operation!r}: expected one of {', '.join(OPERATIONS)}")
        if query.operation == "follow":
            return self._follow(query)
        told = self.told(query.subject, query.relation)
        back = 2 if query.operation == "previous" else 1
        if len(told) < back:
            return _NOTHING
        answer = _written(told[-1][0]) if query.operation == "date" else told[-back][0].value
        keys = {key for fact, name in told[-back:] for key in (name, *self._other_name(query.subject, fact.subject))}
        return Found(answer, self._in_order(keys))

    def _other_name(self, asked: str, said: str) -> tuple[str, ...]:
        """The turns that connect two names of one person (none when it is the same name)."""
        return () if asked == said else self._alias(asked, said)

    def _follow(self, query: Query) -> Found:
        assert query.via is not None
        bridge = self.find(Query("value", query.subject, query.via))
        if bridge == _NOTHING:
            return _NOTHING
        end = self.find(Query("value", bridge.answer, query.relation))
        return _NOTHING if end == _NOTHING else Found(end.answer, self._in_order({*bridge.evidence, *end.evidence}))

    @staticmethod
    def _in_order(keys: set[str]) -> tuple[str, ...]:
        return tuple(sorted(keys, key=place))


def place(key: str) -> tuple[int, int]:
    """Session and turn number of a key like "D2:8"."""
    session, turn = key.removeprefix("D").split(":")
    return int(session), int(turn)


def _written(fact: Fact) -> str:
    return NEVER_SAID if fact.day is None else date_text(fact.day)


def date_text(day: float) -> str:
    """A day as answers write it: "4 May 2024"."""
    moment = datetime.fromtimestamp(day, UTC)
    return f"{moment.day} {moment:%B %Y}"

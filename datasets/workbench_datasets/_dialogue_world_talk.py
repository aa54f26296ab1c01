"""A plan turned into talk: two speakers in turn, session after session, with greetings, questions and small talk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from workbench_datasets import _dialogue_world_text as wording
from workbench_datasets._dialogue_world_plan import Item, Person, Plan
from workbench_datasets._dialogue_world_state import Fact, Turn

START = datetime(2024, 3, 4, 18, 30, tzinfo=UTC)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_Line = TypeVar("_Line")
WINDOW = 5  # how far down the plan a speaker looks for something of their own to tell


class Talk:
    """Writes the turns of a plan; ``turns()`` gives them once, in order."""

    def __init__(self, rng: random.Random, plan: Plan, sessions: int, turns: int):
        self.rng, self.plan, self.sessions, self.length = rng, plan, sessions, turns
        self.queue = list(plan.items)
        self.met: set[str] = set()  # people introduced with their kin
        self.aliases: dict[str, str] = {}  # full name -> the other name, once it was told
        self.frames = 2 if turns >= 8 else 0  # turns of greeting, and as many of farewell
        self.bags: dict[str, list[Any]] = {}

    def turns(self) -> list[Turn]:
        made: list[Turn] = []
        day = START
        for number in range(1, self.sessions + 1):
            self.day = day
            for index, (speaker, text, facts) in enumerate(self._session(number)):
                time = (day + timedelta(minutes=index)).timestamp()
                made.append(Turn(f"D{number}:{index + 1}", number, time, self._name(speaker), text, facts))
            day = day + timedelta(days=self.rng.randint(4, 12), minutes=self.rng.randint(-90, 90))
        return made

    def _name(self, speaker: int) -> str:
        return self.plan.people[speaker].name

    def _session(self, number: int) -> Iterator[tuple[int, str, tuple[Fact, ...]]]:
        speaker = number % 2
        body = self.length - 2 * self.frames
        for line in self._frame(wording.GREETINGS, speaker):
            yield speaker, line, ()
            speaker = 1 - speaker
        left = (self.sessions - number) * body
        self.heard: tuple[str, ...] = ()  # what the other may answer to the turn before
        asked: Item | None = None
        for index in range(body):
            room = left + body - index
            item, asked = self._next(speaker, asked, room, last=index == body - 1)
            text, facts = self._turn(speaker, item, asked)
            yield speaker, text, facts
            speaker = 1 - speaker
        for line in self._frame(wording.FAREWELLS, speaker):
            yield speaker, line, ()
            speaker = 1 - speaker

    def _frame(self, pairs: tuple[tuple[str, str], ...], speaker: int) -> list[str]:
        names = {"a": self._name(speaker), "b": self._name(1 - speaker)}
        return [line.format(**names) for line in self.rng.choice(pairs)] if self.frames else []

    def _next(self, speaker: int, asked: Item | None, room: int, last: bool) -> tuple[Item | None, Item | None]:
        """What this turn tells, and what it asks the other for; both None for small talk.

        Things are told evenly: the chance is what is left to tell over the turns that are left (a thing of the other
        speaker takes two).
        """
        if asked is not None:
            return asked, None
        if not self.queue or self.rng.random() > 1.35 * len(self.queue) / room:
            return None, None
        own = self._own(speaker)
        if own is not None:
            return self.queue.pop(own), None
        return (None, None) if last else (None, self.queue.pop(0))

    def _own(self, speaker: int) -> int | None:
        """The place of the next thing that the speaker can tell without overtaking an earlier value of it."""
        for index, item in enumerate(self.queue[:WINDOW]):
            same = (item.person, item.relation)
            if item.person.teller == speaker and same not in [(i.person, i.relation) for i in self.queue[:index]]:
                return index
        return None

    def _turn(self, speaker: int, item: Item | None, asked: Item | None) -> tuple[str, tuple[Fact, ...]]:
        """An answer to what was heard (often), then a fact, a question or small talk."""
        answers, self.heard = self.heard, ()
        parts = [self.rng.choice(answers)] if answers and self.rng.random() < 0.75 else []
        facts: tuple[Fact, ...] = ()
        if item is not None:
            text, facts = self._tell(item)
            parts.append(text)
            own = wording.REPLIES[item.relation]
            self.heard = own if self.rng.random() < 0.7 else (self._draw("reaction", wording.REACTIONS),)
        elif asked is not None:
            parts.append(self._prompt(asked.person, speaker))
        elif not parts or self.rng.random() < 0.6:
            parts.append(self._chat())
        return " ".join(parts), facts

    def _draw(self, name: str, lines: Sequence[_Line]) -> _Line:
        """A line that was not used since all others were."""
        if not self.bags.get(name):
            self.bags[name] = self.rng.sample(lines, len(lines))
        return self.bags[name].pop()

    def _chat(self) -> str:
        """Small talk; a good part of it drops names of the world, and tells nothing of them."""
        rng, circle = self.rng, [person.name for person in self.plan.circle]
        if rng.random() < 0.45:
            line, reply = self._draw("decoy", wording.DECOYS), self._draw("decoy reply", wording.DECOY_REPLIES)
        else:
            line, reply = self._draw("chat", wording.CHAT)
        self.heard = (reply,)
        names = {"p": rng.choice(circle), "town": rng.choice(self.plan.towns), "firm": rng.choice(self.plan.firms)}
        return line.format(day=rng.choice(DAYS), **names)

    def _prompt(self, person: Person, speaker: int) -> str:
        if person.speaker:
            return self._draw("self", wording.SELF_PROMPTS)
        kin = f"your {person.kin}" if person.kin and self.rng.random() < 0.5 else ""
        return self._draw("prompt", wording.PROMPTS).format(s=kin or self.aliases.get(person.name, person.name))

    # -- telling ---------------------------------------------------------------------------------------------------

    def _tell(self, item: Item) -> tuple[str, tuple[Fact, ...]]:
        """A sentence that tells the item, and exactly the facts that are in it."""
        named, words, kin = self._subject(item)
        when, day = self._when() if item.sort == "event" else ("", None)
        fill = {"v": item.value, "w": item.old, "when": when, "x": ""}
        lines: tuple[str, ...]
        if item.sort == "alias":
            self.aliases[item.person.name] = item.value
            lines = wording.ALIAS
        elif item.sort == "tie":
            lines = wording.TIES[item.relation]
        else:
            about = (wording.TRAITS | wording.EVENTS)[item.relation]
            lines = about.changed if item.old else about.first
            fill["x"] = self.rng.choice(about.details)
        text = self.rng.choice(lines).format(**words, **fill)
        return text, (*kin, Fact(named, item.relation, item.value, day))

    def _subject(self, item: Item) -> tuple[str, dict[str, str], tuple[Fact, ...]]:
        """The name that the turn uses, the words for it in a sentence, and the kinship if this introduces somebody."""
        person = item.person
        if person.speaker:
            return person.name, {"S": "I", "s": "I", "o": "me", "ps": "my", "Ps": "My"}, ()
        name, kin = person.name, tuple[Fact, ...]()
        alias = self.aliases.get(person.name)
        if alias and self.rng.random() < 0.6:
            name = alias
        said = name
        if person.name not in self.met:
            self.met.add(person.name)
            said = f"my {person.kin} {name}" if person.kin else f"my friend {name}"
            kin = (Fact(self._name(person.teller), person.kin, name),) if person.kin else ()
        big = said[0].upper() + said[1:]
        return name, {"S": big, "s": said, "o": said, "ps": f"{said}'s", "Ps": f"{big}'s"}, kin

    def _when(self) -> tuple[str, float]:
        """A phrase for a day before this session, and noon of that day in seconds since 1970 UTC."""
        back = self.rng.choice((1, 2, 3, 4, 5, 6, 7, 7, 9, 12, 16, 20))
        day = self.day - timedelta(days=back)
        if back <= 2:
            phrase = ("yesterday", "the day before yesterday")[back - 1]
        elif back <= 7 and self.rng.random() < 0.7:
            phrase = self.rng.choice((f"last {DAYS[day.weekday()]}", "a week ago" if back == 7 else f"{back} days ago"))
        else:
            phrase = f"on {day.day} {day:%B}"
        return phrase, day.replace(hour=12, minute=0, second=0).timestamp()

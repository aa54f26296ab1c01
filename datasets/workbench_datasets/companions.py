"""Users who talk to a companion for some days, and probing questions afterwards: MemoryBank's 15, or generated ones.

MemoryBank's (Zhong et al. 2023, 2305.10250; MIT) have no gold answers; a probe that names a date ("on May 2nd") has
that day as an automatic gold label. Generated users (:func:`companions_world`) have answers and the gold exchange.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from workbench_datasets import _companions_text as wording
from workbench_datasets import registry
from workbench_datasets._checks import whole
from workbench_datasets._invented import Coiner
from workbench_datasets._json_files import read_json

__all__ = ["NEVER_SAID", "Companions", "Exchange", "Probe", "User", "companions_world", "load"]

FOLDER, HISTORY, PROBES = "memorybank", "memory_bank_en.json", "probing_questions_en.jsonl"
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
NEVER_SAID = "not mentioned"
FIRST_DAY = date(2023, 4, 27)
_NAMED_DAY = re.compile(rf"\b({'|'.join(MONTHS)})\s+(\d{{1,2}})(?:st|nd|rd|th)?\b")


@dataclass(frozen=True)
class Exchange:
    """One question and reply. ``key`` is "user_date_number" (from 0), ``time`` noon UTC of its day plus a minute each,
    in seconds since 1970."""

    key: str
    user: str
    day: date
    time: float
    query: str
    response: str

    @property
    def text(self) -> str:
        return f"{self.user}: {self.query}\nAI: {self.response}"


@dataclass(frozen=True)
class Probe:
    """One probing question; ``day`` is the day of the history that it names, if it names one.

    One day that is named in MemoryBank's file (John Zhang, May 5th) is in the history without any exchange.

    ``answer`` (None: nobody wrote one down; "not mentioned" for what was never said), ``evidence`` (keys of the
    exchanges that hold it) and ``kind`` (its topic, or "never-said") are known for generated users only.
    """

    user: str
    text: str
    day: date | None = None
    answer: str | None = None
    evidence: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class User:
    """A user as described (``about``: hobbies, personality, speaking_style), with all exchanges in order of time."""

    name: str
    about: dict[str, str]
    exchanges: tuple[Exchange, ...]
    probes: tuple[Probe, ...]

    @property
    def days(self) -> tuple[date, ...]:
        return tuple(dict.fromkeys(exchange.day for exchange in self.exchanges))


@dataclass(frozen=True)
class Companions:
    """All users; iterating gives them one by one."""

    users: tuple[User, ...]

    def __iter__(self) -> Iterator[User]:
        return iter(self.users)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def exchanges(self) -> list[Exchange]:
        return [exchange for user in self.users for exchange in user.exchanges]

    @property
    def probes(self) -> list[Probe]:
        return [probe for user in self.users for probe in user.probes]

    @property
    def dated(self) -> list[Probe]:
        """Probes that name a day: those with an automatic gold label."""
        return [probe for probe in self.probes if probe.day is not None]


def load(folder: str | Path | None = None, *, download: bool = False) -> Companions:
    """The users, from ``folder`` or from where the registry finds the files; blanks around names are stripped.

    Raises ``DataMissing`` (which file goes where) or ``ValueError`` that names the user and what is malformed.
    """
    bank = read_json(_file(folder, HISTORY, download))
    probes = read_probes(_file(folder, PROBES, download))
    if not isinstance(bank, dict):
        raise ValueError(f"{HISTORY} holds a {type(bank).__name__}: expected one object, a user each key")
    users = tuple(_user(name.strip(), entry, probes) for name, entry in bank.items())
    unknown = sorted(set(probes) - {user.name for user in users})
    if unknown:
        raise ValueError(f"{PROBES} asks users without a history: {', '.join(unknown)}")
    return Companions(users)


def _file(folder: str | Path | None, name: str, download: bool) -> Path:
    return Path(folder) / name if folder is not None else registry.path(FOLDER, name, download=download)


def read_probes(file: Path) -> dict[str, list[str]]:
    """Questions by user from JSON lines of ``{user: [questions]}``."""
    import json

    probes: dict[str, list[str]] = {}
    if not file.is_file():
        raise registry.DataMissing(f"there is no file {file}")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            asked = json.loads(line)
            for name, questions in asked.items():
                if not isinstance(questions, list):
                    raise TypeError(f"{name} has {questions!r:.60}")
                probes.setdefault(name.strip(), []).extend(question.strip() for question in questions)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{file.name}, line {number}: expected {{user: [questions]}}; {error}") from error
    return probes


def _user(name: str, entry: dict[str, Any], probes: dict[str, list[str]]) -> User:
    if not isinstance(entry, dict) or not isinstance(entry.get("history"), dict):
        raise ValueError(f"{name}: has no history by date")
    days = {read_day(name, written): talk for written, talk in entry["history"].items()}
    if odd := [day for day, talk in days.items() if not isinstance(talk, list)]:
        raise ValueError(f"{name}, {odd[0]}: expected a list of exchanges, got {days[odd[0]]!r:.80}")
    told = entry.get("meta_information", {})
    if not isinstance(told, dict):
        raise ValueError(f"{name}: meta_information must be an object, got {told!r:.80}")
    exchanges = tuple(
        _exchange(name, day, number, item) for day in sorted(days) for number, item in enumerate(days[day])
    )
    about = {key: str(value).strip() for key, value in told.items() if key != "name"}
    asked = tuple(Probe(name, text, named_day(text, list(days))) for text in probes.get(name, []))
    return User(name, about, exchanges, asked)


def read_day(user: str, written: str) -> date:
    """The date of "2023-05-01"; ``ValueError`` names the user and the date."""
    try:
        return datetime.strptime(written.strip(), "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise ValueError(f"{user}: the date {written!r} is not of the form 2023-05-01") from error


def _exchange(user: str, day: date, number: int, item: Any) -> Exchange:
    if not isinstance(item, dict) or not all(isinstance(item.get(part), str) for part in ("query", "response")):
        raise ValueError(f"{user}, {day}, exchange {number}: expected query and response as text, got {item!r:.80}")
    time = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp() + 60.0 * number
    return Exchange(f"{user}_{day}_{number}", user, day, time, item["query"].strip(), item["response"].strip())


def named_day(text: str, days: list[date]) -> date | None:
    """The day that a question names, among ``days`` (those of the history); None when it names none of them.

    >>> named_day("What did I buy on May 2nd?", [date(2023, 5, 1), date(2023, 5, 2)])
    datetime.date(2023, 5, 2)
    """
    found = _NAMED_DAY.search(text)
    if found is None:
        return None
    month, number = MONTHS.index(found[1]) + 1, int(found[2])
    return next((day for day in days if (day.month, day.day) == (month, number)), None)


def companions_world(
    seed: int, users: int = 6, days: int = 10, exchanges: int = 4, probes: int = 10, never: int = 2
) -> Companions:
    """Generated users of the same form, with gold answers and the key of the exchange that holds each.

    Every other exchange tells something (a book, a trip, a purchase, a new friend, a dish, a worry, an animal's name,
    or the companion recommends something) under a circumstance that this user never uses twice; the rest is small
    talk. Probes ask for such things, a third of them naming the day; ``never`` of them ask for a circumstance that
    did not occur.

    Args:
        seed: equal arguments give equal users.
        users: how many, 1 to 40.
        days: days of talk from 27 April 2023 on, as in MemoryBank's file.
        exchanges: exchanges a day, at least 2.
        probes: probing questions a user, ``never`` of them about what was never said.

    Raises ``ValueError`` for other numbers, or when the days hold too little to ask so many questions about.
    """
    users, days = whole("users", users, 1, 40), whole("days", days, 1, 60)
    exchanges, probes = whole("exchanges", exchanges, 2, 20), whole("probes", probes)
    never = whole("never", never, 0, probes)
    told = _slots(days, exchanges)
    if probes - never > len(told):
        raise ValueError(f"probes={probes}: {days} days tell only {len(told)} things to ask for")
    rng = random.Random(f"companions:{seed}")
    coiner = Coiner(rng)
    return Companions(tuple(_generated(rng, coiner, name, days, exchanges, probes, never)
                            for name in coiner.coins("first", users)))  # fmt: skip


def _slots(days: int, exchanges: int) -> list[int]:
    """Which exchanges tell something: every other one after the greeting, as long as there are circumstances left."""
    most = sum(len(topic.circumstances) - 1 for topic in (*wording.TOPICS.values(), wording.ADVICE))
    return list(range(1, days * exchanges, 2))[:most]


def _generated(
    rng: random.Random, coiner: Coiner, name: str, days: int, exchanges: int, probes: int, never: int
) -> User:
    hobbies = rng.sample(wording.HOBBIES, 3)
    told, untold = _things(rng, coiner, _slots(days, exchanges))
    talk, found = [], []
    for number in range(days * exchanges):
        day = FIRST_DAY + timedelta(days=number // exchanges)
        if number == 0:
            query, response = (part.format(name=name, one=hobbies[0], two=hobbies[1]) for part in wording.GREETING)
        elif number in told:
            _, topic, circumstance, value = told[number]
            query, response = (rng.choice(part).format(a=circumstance, v=value) for part in (topic.told, topic.replied))
            query, response = query[0].upper() + query[1:], response[0].upper() + response[1:]
        else:
            query, response = (part.format(hobby=rng.choice(hobbies)) for part in rng.choice(wording.CHAT))
        talk.append(_exchange(name, day, number % exchanges, {"query": query, "response": response}))
        if number in told:
            found.append(_probe(rng, name, told[number], talk[-1]))
    unsaid = [Probe(name, _asked(rng, about, circumstance), None, NEVER_SAID, (), "never-said")
              for _, about, circumstance in rng.sample(untold, never)]  # fmt: skip
    asked = [*rng.sample(found, probes - never), *unsaid]
    rng.shuffle(asked)
    about = {"hobbies": ", ".join(hobbies), "personality": rng.choice(wording.PERSONALITIES),
             "speaking_style": rng.choice(wording.STYLES)}  # fmt: skip
    return User(name, about, tuple(talk), tuple(asked))


_Thing = tuple[str, wording.Topic, str, str]  # topic's name, topic, circumstance, value


def _things(
    rng: random.Random, coiner: Coiner, slots: list[int]
) -> tuple[dict[int, _Thing], list[tuple[str, wording.Topic, str]]]:
    """What is told in each of the slots, and the circumstances of every topic that are left untold."""
    topics = {**wording.TOPICS, "advice": wording.ADVICE}
    every = [(name, topic, a) for name, topic in topics.items() for a in topic.circumstances]
    kept = [next(one for one in rng.sample(every, len(every)) if one[0] == name) for name in topics]  # never told
    chosen = rng.sample([one for one in every if one not in kept], len(slots))
    told: dict[int, _Thing] = {}
    for slot, (name, topic, circumstance) in zip(slots, chosen):
        used = {thing[3] for thing in told.values()}
        value = coiner.coin(topic.coined) if topic.coined else rng.choice([v for v in topic.values if v not in used])
        told[slot] = (name, topic, circumstance, value)
    return told, [one for one in every if one not in chosen]


def _asked(rng: random.Random, topic: wording.Topic, circumstance: str) -> str:
    return rng.choice((topic.asked, topic.reworded)).format(a=circumstance)


def _probe(rng: random.Random, user: str, thing: _Thing, exchange: Exchange) -> Probe:
    name, topic, circumstance, value = thing
    text = _asked(rng, topic, circumstance)
    day = exchange.day if rng.random() < 1 / 3 else None
    if day is not None:
        text = f"On {MONTHS[day.month - 1]} {_ordinal(day.day)}: {text[0].lower()}{text[1:]}"
    return Probe(user, text, day, value, (exchange.key,), name)


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"

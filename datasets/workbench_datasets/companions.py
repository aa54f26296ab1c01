"""MemoryBank's 15 simulated users: ten days of talk with a companion each, and probing questions afterwards.

Zhong et al. 2023 (2305.10250), MIT. The file holds no gold answers; a probe that names a date ("on May 2nd") has that
day as an automatic gold label, and a question about another day of the history is not given one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from workbench_datasets import registry
from workbench_datasets._json_files import read_json

__all__ = ["Companions", "Exchange", "Probe", "User", "load"]

FOLDER, HISTORY, PROBES = "memorybank", "memory_bank_en.json", "probing_questions_en.jsonl"
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
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
    """One probing question; ``day`` is the day that it names, if it names one."""

    user: str
    text: str
    day: date | None = None


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
                probes.setdefault(name.strip(), []).extend(question.strip() for question in questions)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{file.name}, line {number}: expected {{user: [questions]}}; {error}") from error
    return probes


def _user(name: str, entry: dict[str, Any], probes: dict[str, list[str]]) -> User:
    if not isinstance(entry, dict) or not isinstance(entry.get("history"), dict):
        raise ValueError(f"{name}: has no history by date")
    days = {read_day(name, written): talk for written, talk in entry["history"].items()}
    exchanges = tuple(
        _exchange(name, day, number, item) for day in sorted(days) for number, item in enumerate(days[day])
    )
    about = {key: str(value).strip() for key, value in entry.get("meta_information", {}).items() if key != "name"}
    asked = tuple(Probe(name, text, named_day(text, list(days))) for text in probes.get(name, []))
    return User(name, about, exchanges, asked)


def read_day(user: str, written: str) -> date:
    """The date of "2023-05-01"; ``ValueError`` names the user and the date."""
    try:
        return datetime.strptime(written.strip(), "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise ValueError(f"{user}: the date {written!r} is not of the form 2023-05-01") from error


def _exchange(user: str, day: date, number: int, item: Any) -> Exchange:
    if not isinstance(item, dict) or not {"query", "response"} <= item.keys():
        raise ValueError(f"{user}, {day}, exchange {number}: expected query and response, got {item!r:.80}")
    time = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp() + 60.0 * number
    return Exchange(f"{user}_{day}_{number}", user, day, time, item["query"].strip(), item["response"].strip())


def named_day(text: str, days: list[date]) -> date | None:
    """The day that a question names, in the years of ``days``; None when it names none or one that has no talk.

    >>> named_day("What did I buy on May 2nd?", [date(2023, 5, 1), date(2023, 5, 2)])
    datetime.date(2023, 5, 2)
    """
    found = _NAMED_DAY.search(text)
    if found is None:
        return None
    month, number = MONTHS.index(found[1]) + 1, int(found[2])
    return next((day for day in days if (day.month, day.day) == (month, number)), None)

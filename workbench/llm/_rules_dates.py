"""Dates by rules: ISO, "8 May 2023", "May 2nd", "next Friday", "three days ago"."""

from __future__ import annotations

import calendar
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from workbench.errors import BadInput
from workbench.llm._rules_words import DAYS, MONTHS, Word, words

_COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {"a": 1, "an": 1} | {name: value for value, name in enumerate(_COUNTS, 1)}
_OFFSETS = {"today": 0, "tonight": 0, "yesterday": -1, "tomorrow": 1}
_MONTH = {name: number for number, month in enumerate(MONTHS, 1) for name in (month, month[:3])}
_MONTH["sept"] = 9
_UNITS = {"day": "day", "week": "week", "month": "month", "year": "year"}


@dataclass(frozen=True)
class DateMention:
    """One date that is named in a text.

    Attributes:
        text: as written; start: its position in the text, in characters.
        date: the day meant, the first day of a month or year; None when ``today`` would have been needed.
        precision: "day", "week", "month" or "year": how exactly it is given.
    """

    text: str
    date: date | None
    precision: str
    start: int


_Found = tuple[int, date | None, str]  # words used, date, precision


def dates(text: str, today: date | str | None = None) -> list[DateMention]:
    """The dates that are named, in order.

    Read are ISO dates, days with a month's name in either order with or without year, months with a year, "in 1984",
    "today", "yesterday", "tomorrow", "last / next / this" with a weekday, week, month or year, and "N days (weeks,
    months, years) ago" or "in N days". All-digit forms such as 3/4/2023 are left out: their order is not known.

    Args:
        text: any text.
        today: what relative dates and dates without a year refer to; a date or an ISO text. A date without a year is
            taken to be in today's year.

    Raises:
        BadInput: something else than text, or a ``today`` that is no date.
    """
    if not isinstance(text, str):
        raise BadInput(f"the rules read text, got {type(text).__name__}")
    now, found = _today(today), words(text)
    mentions: list[DateMention] = []
    at = 0
    while at < len(found):
        match = next((made for rule in _RULES if (made := rule(found, at, now)) is not None), None)
        if match is None:
            at += 1
            continue
        used, when, precision = match
        start, end = found[at].start, found[at + used - 1].end
        mentions.append(DateMention(text[start:end], when, precision, start))
        at += used
    return mentions


def _today(today: date | str | None) -> date | None:
    if isinstance(today, datetime):
        return today.date()
    if today is None or isinstance(today, date):
        return today
    try:
        return datetime.fromisoformat(today).date()
    except (TypeError, ValueError):
        raise BadInput(f"today must be a date or an ISO text such as 2023-05-08, got {today!r}") from None


def _low(found: list[Word], at: int) -> str:
    return found[at].low if at < len(found) else ""


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _month(found: list[Word], at: int) -> int | None:
    """Number of the month named at ``at``; "may", "march" and short forms only when capitalised."""
    number = _MONTH.get(_low(found, at))
    if number is None or (found[at].low in ("may", "march", "mar", "dec", "jan") and not found[at].is_capital):
        return None
    return number


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 4 else None


def _day_number(word: str) -> int | None:
    for suffix in ("st", "nd", "rd", "th"):
        word = word.removesuffix(suffix)
    value = _number(word)
    return value if value is not None and 1 <= value <= 31 else None


def _year(found: list[Word], at: int) -> tuple[int, int] | None:
    """(year, words used) of ", 2023" or "2023"."""
    skip = 1 if _low(found, at) == "," else 0
    word = _low(found, at + skip)
    value = _number(word)
    return (value, skip + 1) if value is not None and len(word) == 4 and value >= 1000 else None


def _iso(found: list[Word], at: int, now: date | None) -> _Found | None:
    parts = found[at].text[:10].split("-")
    if len(parts) != 3 or [len(part) for part in parts] != [4, 2, 2]:
        return None
    year, month, day = map(_number, parts)
    made = _day(year, month, day) if year and month and day else None
    return (1, made, "day") if made and (len(found[at].text) == 10 or found[at].text[10] in "Tt") else None


def _with_month(found: list[Word], at: int, now: date | None) -> _Found | None:
    """ "8 May 2023", "8th of May", "May 8, 2023", "May 2nd", "May 2023"."""
    day, used = _day_number(_low(found, at)), 1
    if day is not None:
        used += _low(found, at + used) == "of"
        month = _month(found, at + used)
        return None if month is None else _dated(found, at, used + 1, month, day, now)
    month = _month(found, at)
    if month is None:
        return None
    if year := _year(found, at + 1):
        return 1 + year[1], _day(year[0], month, 1), "month"
    used += _low(found, at + used) == "the"
    day = _day_number(_low(found, at + used))
    return None if day is None else _dated(found, at, used + 1, month, day, now)


def _dated(found: list[Word], at: int, used: int, month: int, day: int, now: date | None) -> _Found | None:
    year = _year(found, at + used)
    if day > calendar.monthrange(year[0] if year else 2024, month)[1]:
        return None
    if year:
        return used + year[1], _day(year[0], month, day), "day"
    return used, _day(now.year, month, day) if now else None, "day"


def _in_year(found: list[Word], at: int, now: date | None) -> _Found | None:
    if _low(found, at) not in ("in", "since", "during") or not (year := _year(found, at + 1)):
        return None
    return (1 + year[1], date(year[0], 1, 1), "year") if year[1] == 1 else None


def _word(found: list[Word], at: int, now: date | None) -> _Found | None:
    offset = _OFFSETS.get(found[at].low.removesuffix("'s"))
    if offset is None:
        return None
    return 1, _moved(now, "day", offset), "day"


def _named(found: list[Word], at: int, now: date | None) -> _Found | None:
    """ "last Friday", "next week", "this month"."""
    step = {"last": -1, "next": 1, "this": 0}.get(found[at].low)
    unit = _low(found, at + 1).removesuffix("'s")
    if step is None:
        return None
    if unit in DAYS:
        return 2, _weekday(now, DAYS.index(unit), step), "day"
    if unit in ("week", "month", "year"):
        return 2, _start_of(_moved(now, unit, step), unit), unit
    return None


def _ago(found: list[Word], at: int, now: date | None) -> _Found | None:
    """ "three days ago" and "in three days"."""
    future = found[at].low == "in"
    first = at + future
    word = _low(found, first)
    count = _NUMBERS.get(word, _number(word))
    unit = _UNITS.get(_low(found, first + 1).removesuffix("s"))
    if count is None or unit is None or (not future and _low(found, first + 2) != "ago"):
        return None
    return 3, _moved(now, unit, count if future else -count), unit


def _moved(now: date | None, unit: str, count: int) -> date | None:
    """``now`` moved by so many units; None without a now or outside the calendar."""
    if now is None:
        return None
    try:
        if unit in ("day", "week"):
            return now + timedelta(days=count * (7 if unit == "week" else 1))
        months = now.year * 12 + now.month - 1 + count * (12 if unit == "year" else 1)
        year, month = divmod(months, 12)
        return date(year, month + 1, min(now.day, calendar.monthrange(year, month + 1)[1]))
    except (ValueError, OverflowError, calendar.IllegalMonthError):
        return None


def _start_of(when: date | None, unit: str) -> date | None:
    if when is None:
        return None
    if unit == "week":
        return when - timedelta(days=when.weekday())
    return when.replace(day=1) if unit == "month" else when.replace(month=1, day=1)


def _weekday(now: date | None, weekday: int, step: int) -> date | None:
    """The nearest such day before (-1) or after (1) today; this week's for 0."""
    if now is None:
        return None
    gap = weekday - now.weekday()
    if step < 0:
        gap = gap - 7 if gap >= 0 else gap
    elif step > 0:
        gap = gap + 7 if gap <= 0 else gap
    return _moved(now, "day", gap)


_RULES: tuple[Callable[[list[Word], int, date | None], _Found | None], ...] = (
    _iso, _with_month, _ago, _in_year, _word, _named,
)  # fmt: skip

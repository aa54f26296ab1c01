"""Time in stores: seconds since 1970 UTC as a float, whatever the caller says it in."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

from workbench.errors import BadInput

#: The last second that a date can show (end of the year 9999 UTC).
LAST_SECOND = 253_402_300_799.0


def seconds(value: float | int | str | date | datetime) -> float:
    """``value`` as seconds since 1970-01-01 UTC.

    Numbers are taken as they are; text must be an ISO date or date and time; a date means its midnight; whatever names
    no time zone is UTC. Raises BadInput for NaN, infinities, times before 1970 or after 9999, and unreadable text.
    """
    if isinstance(value, bool):
        raise BadInput(f"a time must be seconds since 1970, an ISO date or a datetime, got {value!r}")
    if isinstance(value, str):
        value = _parse(value)
    if isinstance(value, date):
        value = _of_date(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(
            f"a time must be seconds since 1970, an ISO date or a datetime, got {type(value).__name__}"
        ) from error
    if not math.isfinite(number):
        raise BadInput(f"a time must be a finite number of seconds since 1970, got {number}")
    if not 0 <= number <= LAST_SECOND:
        raise BadInput(f"a time must lie between 1970 and 9999 (0 to {LAST_SECOND:.0f} seconds), got {number!r}")
    return number


def when(seconds: float) -> datetime:
    """The aware datetime (UTC) of ``seconds`` since 1970."""
    return datetime.fromtimestamp(_checked(seconds), tz=UTC)


def _checked(number: float) -> float:
    return seconds(number)


def _parse(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise BadInput(
            f"cannot read the time {text[:60]!r}; write an ISO date such as '2023-05-01' or '2023-05-01T10:30:00+00:00'"
        ) from error


def _of_date(value: date) -> float:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()

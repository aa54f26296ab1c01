"""What a store holds: items, and the checks that everything written has to pass.

A *row* is an item as the file keeps it: a dict with the keys of ``COLUMNS``. ``index_text`` is None in a row while it
follows ``text``, ``vector`` is the number of a row of the table ``vectors``, ``alive`` is 0 for a forgotten item.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import BadInput
from workbench.memory.durable.clock import seconds

#: Longest text (and index text, and metadata as JSON) of one item, in characters.
MAX_TEXT = 1_000_000
#: Longest key, kind and tag, in characters.
MAX_NAME = 1_000

COLUMNS = (
    "key",
    "kind",
    "text",
    "time",
    "strength",
    "tags",
    "links",
    "meta",
    "index_text",
    "stale",
    "vector",
    "alive",
)
#: What ``Store.update`` may change.
FIELDS = ("key", "kind", "text", "time", "strength", "tags", "links", "meta", "index_text")

Row = dict[str, Any]


class UnknownItem(BadInput, KeyError):
    """No living item has this id or key; the message says whether it was forgotten."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


@dataclass(frozen=True)
class Item:
    """One thing that a store holds.

    ``id`` is given by the store and never reused; ``key`` is the caller's own unique name or None. ``time`` is in
    seconds since 1970 UTC, ``strength`` any finite number that the mechanism gives a meaning. ``links`` are ids of
    items that this one points to. ``index_text`` is what the vector encodes; ``stale`` says that it no longer does.
    """

    id: int
    key: str | None
    kind: str
    text: str
    time: float
    strength: float
    tags: tuple[str, ...]
    links: tuple[int, ...]
    meta: dict[str, Any]
    index_text: str
    stale: bool


@dataclass(frozen=True)
class NewItem:
    """One thing to be written by ``Store.add_many``; the fields mean what they mean in :class:`Item`."""

    text: str
    key: str | None = None
    kind: str = "note"
    time: Any = None
    strength: float = 1.0
    tags: Iterable[str] = ()
    links: Iterable[int] = ()
    meta: Mapping[str, Any] | None = field(default_factory=dict)
    index_text: str | None = None


@dataclass(frozen=True)
class Hit:
    """One result of a search; ``score`` is the cosine unless the searcher says otherwise."""

    id: int
    score: float


def item_of(id: int, row: Row) -> Item:
    """The item that ``row`` keeps."""
    return Item(
        id=id,
        key=row["key"],
        kind=row["kind"],
        text=row["text"],
        time=row["time"],
        strength=row["strength"],
        tags=tuple(row["tags"]),
        links=tuple(row["links"]),
        meta=json.loads(json.dumps(row["meta"])) if row["meta"] else {},
        index_text=index_text(row),
        stale=bool(row["stale"]),
    )


def index_text(row: Row) -> str:
    """What the vector of ``row`` should encode."""
    return row["text"] if row["index_text"] is None else row["index_text"]


def new_row(new: NewItem, now: float) -> Row:
    """``new`` checked, as a row without a vector. Raises BadInput."""
    values = {name: getattr(new, name) for name in FIELDS}
    values["time"] = now if new.time is None else new.time
    return {**{name: CHECKS[name](value) for name, value in values.items()}, "stale": 0, "vector": None, "alive": 1}


def new_items(items: Any) -> list[NewItem]:
    """``items`` as a list. Raises BadInput for what is no NewItem, bare texts for example."""
    made = list(items) if isinstance(items, Iterable) else None
    wrong = [items] if made is None else [item for item in made if not isinstance(item, NewItem)]
    if made is None or wrong:
        raise BadInput(f"items must be a list of NewItem(text, ...), got {type(wrong[0]).__name__}")
    return made


def checked(fields: Mapping[str, Any]) -> Row:
    """``fields`` of an update, checked. Raises BadInput for an unknown field or a value that cannot be kept."""
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise BadInput(f"an item has no field {unknown[0]!r} that can be changed; these can: {', '.join(FIELDS)}")
    return {name: CHECKS[name](fields[name]) for name in FIELDS if name in fields}


def identifier(value: Any) -> int:
    """``value`` as an item id. Raises BadInput for anything but a whole number."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            if abs(number := operator.index(value)) < 2**63:
                return number
    raise BadInput(f"an item id is a whole number as the store gave it, got {str(value)[:40]!r}")


def plain(value: Any, what: str, limit: int = MAX_TEXT) -> str:
    """``value`` if it is text that UTF-8 can hold and that is not too long. Raises BadInput."""
    if not isinstance(value, str):
        hint = "; decode bytes first, for example with .decode('utf-8')" if isinstance(value, bytes) else ""
        raise BadInput(f"the {what} must be text, got {type(value).__name__}{hint}")
    if len(value) > limit:
        raise BadInput(f"the {what} has {len(value):,} characters, at most {limit:,} fit; split it into several items")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the {what} holds a lone surrogate at character {error.start}, which UTF-8 cannot write; "
            "read the source with its real encoding or with errors='replace'"
        ) from error
    return str(value)


def json_text(value: Any, what: str) -> str:
    """``value`` as JSON. Raises BadInput for what JSON cannot say (NaN, sets, arrays) and for more than MAX_TEXT."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_number)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(
            f"the {what} must be JSON (text, finite numbers, lists, dicts with text keys): {error}"
        ) from error
    return plain(text, what)


def _number(value: Any) -> Any:
    """NumPy scalars as the numbers they are."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _key(value: Any) -> str | None:
    if value is None:
        return None
    name = plain(value, "key", MAX_NAME)
    if not name.strip():
        raise BadInput("the key is empty; leave it out (None) when the item needs no name")
    return name


def _kind(value: Any) -> str:
    name = plain(value, "kind", MAX_NAME)
    if not name.strip():
        raise BadInput("the kind is empty; name what the item is, for example 'note'")
    return name


def _text(value: Any) -> str:
    text = plain(value, "text")
    if not text.strip():
        raise BadInput("the text is empty; an item must say something")
    return text


def _index_text(value: Any) -> str | None:
    return None if value is None else plain(value, "index_text")


def _strength(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool | str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"the strength must be a finite number, got {value!r}")
    return number


def _tags(value: Any) -> list[str]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise BadInput(f"tags must be a list of words, got {value!r}")
    return list(dict.fromkeys(plain(tag, "tag", MAX_NAME) for tag in value))


def _links(value: Any) -> list[int]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise BadInput(f"links must be a list of item ids, got {value!r}")
    return list(dict.fromkeys(identifier(link) for link in value))


def _meta(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BadInput(f"meta must be a dict with text keys, got {type(value).__name__}")
    return json.loads(json_text(dict(value), "meta"))


CHECKS = {
    "key": _key,
    "kind": _kind,
    "text": _text,
    "time": seconds,
    "strength": _strength,
    "tags": _tags,
    "links": _links,
    "meta": _meta,
    "index_text": _index_text,
}

"""Phrases and triples as HippoRAG reads them: normalised, accents folded, malformed tuples counted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from workbench.errors import BadInput

#: Letters that Unicode does not decompose into a base letter and a mark.
_WHOLE = str.maketrans({
    "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th",
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ı": "i", "ħ": "h", "Ħ": "H",
})  # fmt: skip
_OUTSIDE = re.compile(r"[^a-z0-9 ]")


class Triple(NamedTuple):
    """A fact: subject and object become nodes of the graph, the relation is only the label of their edge."""

    subject: str
    relation: str
    object: str


def normalise(phrase: str, accents: str = "fold") -> str:
    """``phrase`` in lower case, every character outside a-z, 0-9 and space replaced by a space, stripped.

    ``accents="fold"`` (ours) first turns é into e, ø into o, ß into ss; ``"drop"`` is the released code, which turns
    "Südhof" into "s dhof", a phrase that nothing else is like.
    """
    if accents not in ("fold", "drop"):
        raise BadInput(f"accents={accents!r} is neither 'fold' nor 'drop'")
    text = str(phrase)
    if accents == "fold":
        apart = unicodedata.normalize("NFKD", text.translate(_WHOLE))
        text = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return _OUTSIDE.sub(" ", text.lower()).strip()


def clean_triples(raw: Iterable[Any], accents: str = "fold") -> tuple[tuple[Triple, ...], int]:
    """The well-formed triples of ``raw``, normalised and in order, and the number of those that were dropped.

    Dropped are tuples that have not exactly three parts, parts that are neither text nor numbers, and triples whose
    subject or object has no letter or digit left (a name in another script, say).
    """
    kept, malformed = [], 0
    for entry in raw:
        parts = list(entry) if isinstance(entry, list | tuple) else []
        plain = len(parts) == 3 and all(isinstance(part, str | int | float) for part in parts)
        triple = Triple(*(normalise(str(part), accents) for part in parts)) if plain else None
        if triple is None or not triple.subject or not triple.object:
            malformed += 1
        else:
            kept.append(triple)
    return tuple(kept), malformed


def letters(phrase: str) -> int:
    """Number of letters and digits; phrases with no more than two get no synonyms."""
    return sum(character.isalnum() for character in phrase)

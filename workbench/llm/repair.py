"""Reading a JSON object out of what a chat model wrote, with a few named repairs and nothing more.

Mended: code fences, text around the object, trailing commas, single or typographic quotes, Python's True / False /
None, raw line breaks inside strings. Not mended, because it would invent content: answers that were cut off, missing
brackets or commas, unknown words. Nothing is ever evaluated. All passes are linear in the length of the text.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

MAX_CANDIDATES = 16  # objects in one answer that are looked at
MAX_CHARS = 1_000_000
MAX_DEPTH = 100

S = TypeVar("S", bound=BaseModel)

_FENCE = re.compile(r"```[ \t]*[\w+-]{0,20}[ \t]*\r?\n?")
_WORDS = {"True": "true", "False": "false", "None": "null"}
_QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "‘": "’"}
_WORD = re.compile(r"[A-Za-z_]+")


class Malformed(ValueError):
    """The text holds no JSON object that fits; the message is written so that a model can act on it."""


def read_object(text: str, schema: type[S]) -> tuple[S, tuple[str, ...]]:
    """The first object in ``text`` that fits ``schema``, and the names of the repairs that were needed.

    Raises:
        Malformed: no object, an object that cannot be read, or one that does not fit (the fields are named).
    """
    if len(text) > MAX_CHARS:
        raise Malformed(f"the answer has {len(text)} characters, more than {MAX_CHARS} are not read")
    problem = ""
    for candidate, around in _candidates(text):
        try:
            value, repairs = read_json(candidate)
            return schema.model_validate(value), (*around, *repairs)
        except ValidationError as error:
            problem = problem or f"the JSON does not fit the schema: {_fields(error)}"
        except Malformed as error:
            problem = problem or str(error)
    raise Malformed(problem or "the answer holds no JSON object")


def objects_in(text: str) -> list[Any]:
    """Every JSON object (else list) that stands in a text, in order; what cannot be read is left out."""
    found = []
    text = text.partition("</think>")[2] or text
    for start, end in _spans(text)[:MAX_CANDIDATES]:
        with contextlib.suppress(Malformed):
            found.append(read_json(text[start:end])[0])
    return found


def _fields(error: ValidationError) -> str:
    """The first three mismatches, by field."""
    found = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(map(str, item['loc'])) or 'the object'}: {item['msg']}" for item in found[:3]]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(told) + more


def _candidates(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Stretches that may be the object, best first, and what stood around each."""
    whole = text.strip().removeprefix("\ufeff")
    if not whole:
        return []
    found: list[tuple[str, tuple[str, ...]]] = []
    if whole[0] in "{[" and whole[-1] in "}]":
        found.append((whole, ()))
    _, mark, behind = whole.partition("</think>")
    if mark:
        found += [(span, ("reasoning before the answer", *around)) for span, around in _framed(behind)]
    return found + _framed(whole)


def _framed(text: str) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for start, end in _spans(text)[:MAX_CANDIDATES]:
        outside = text[:start], text[end:]
        fence = ("code fence",) if any("```" in part for part in outside) else ()
        prose = ("text around the object",) if any(_FENCE.sub("", part).strip() for part in outside) else ()
        found.append((text[start:end], (*fence, *prose)))
    return found


def _spans(text: str) -> list[tuple[int, int]]:
    """Outermost balanced ``{...}`` stretches, else ``[...]``, as (start, end); those inside strings do not count."""
    return _balanced(text, "{", "}") or _balanced(text, "[", "]")


def _balanced(text: str, opening: str, closing: str) -> list[tuple[int, int]]:
    found, depth, start, quote, skip = [], 0, 0, "", False
    for at, char in enumerate(text):
        if skip:
            skip = False
        elif quote:
            if char == "\\":
                skip = True
            elif char == quote:
                quote = ""
        elif char == opening:
            start = at if depth == 0 else start
            depth += 1
        elif depth and char == '"':  # an apostrophe may be one in prose, so only double quotes hide brackets
            quote = char
        elif depth and char == closing:
            depth -= 1
            if depth == 0:
                found.append((start, at + 1))
    return found


def read_json(text: str) -> tuple[Any, tuple[str, ...]]:
    """The value of a JSON text, strictly if possible, else after the named repairs.

    Raises:
        Malformed: it is not JSON even then; the message says where.
    """
    try:
        return _strict(text), ()
    except (ValueError, RecursionError):
        pass
    mended, repairs = _mend(text)
    try:
        return _strict(mended), repairs
    except json.JSONDecodeError as error:
        raise Malformed(f"the answer is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the answer is not JSON: {str(error)[:80] or 'nested too deeply'}") from None


def _strict(text: str) -> Any:
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return json.loads(text, parse_constant=_no_constant)


def _depth(text: str) -> int:
    deepest = depth = 0
    for char in text:
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _mend(text: str) -> tuple[str, tuple[str, ...]]:
    """One pass over the text that rewrites quotes, Python's constants and trailing commas into JSON."""
    out: list[str] = []
    repairs: dict[str, None] = {}
    at = 0
    while at < len(text):
        char = text[at]
        if char in _QUOTES:
            at = _string(text, at, out, repairs)
        elif char in "}]" and _drop_comma(out):
            repairs["trailing comma"] = None
            out.append(char)
            at += 1
        elif word := _WORD.match(text, at):
            if word[0] in _WORDS:
                repairs["Python constant"] = None
            out.append(_WORDS.get(word[0], word[0]))
            at = word.end()
        else:
            out.append(char)
            at += 1
    return "".join(out), tuple(repairs)


def _drop_comma(out: list[str]) -> bool:
    """Remove a comma that only white space separates from the closing bracket that follows."""
    last = len(out) - 1
    while last >= 0 and out[last].isspace():
        last -= 1
    if last < 0 or out[last] != ",":
        return False
    del out[last:]
    return True


def _string(text: str, at: int, out: list[str], repairs: dict[str, None]) -> int:
    """Copy one string as a JSON string; returns the position after it (the end of the text if it never closes)."""
    opening, close = text[at], _QUOTES[text[at]]
    if opening != '"':
        repairs["quotes"] = None
    piece: list[str] = []
    position = at + 1
    while position < len(text):
        char = text[position]
        if char == "\\" and position + 1 < len(text):
            escaped = text[position + 1]
            piece.append("'" if escaped == "'" else char + escaped)
            position += 2
            continue
        if char == close and (close not in "'’" or _ends_string(text, position)):
            out.append('"' + "".join(piece) + '"')
            return position + 1
        if char in "\n\r\t":
            repairs["line break in a string"] = None
            char = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
        piece.append('\\"' if char == '"' else char)
        position += 1
    out.append(text[at:])  # it never closes, which stays an error
    return len(text)


def _ends_string(text: str, at: int) -> bool:
    """Whether a single quote closes its string (and is no apostrophe): structure follows it."""
    following = text[at + 1 : at + 64].lstrip()
    return not following or following[0] in ",:}]"

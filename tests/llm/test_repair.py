"""Reading objects out of what models write: mended by name, refused where mending would invent."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from workbench.llm.repair import MAX_CHARS, Malformed, objects_in, read_json, read_object


class Note(BaseModel):
    title: str
    words: list[str] = []
    good: bool | None = None


PLAIN = Note(title="it's", words=["a", 'b "c"'], good=True)
MENDED: list[tuple[str, str, tuple[str, ...]]] = [
    ("as it should be", PLAIN.model_dump_json(), ()),
    ("white space", f"\n\n  {PLAIN.model_dump_json()}\t\n", ()),
    ("byte order mark", "\ufeff" + PLAIN.model_dump_json(), ()),
    ("fence", f"```json\n{PLAIN.model_dump_json()}\n```", ("code fence",)),
    ("bare fence", f"```\n{PLAIN.model_dump_json()}\n```", ("code fence",)),
    ("fence on one line", f"```json {PLAIN.model_dump_json()}```", ("code fence",)),
    ("prose", f"Sure! Here it is:\n{PLAIN.model_dump_json()}\nHope it helps.", ("text around the object",)),
    ("prose with braces", f"Using {{braces}}: {PLAIN.model_dump_json()}", ("text around the object",)),
    ("an apostrophe before", f"Here's it: {PLAIN.model_dump_json()}", ("text around the object",)),
    (
        "reasoning",
        f'<think>maybe {{"title": "wrong"}}</think>{PLAIN.model_dump_json()}',
        ("reasoning before the answer",),
    ),
    ("trailing commas", '{"title": "it\'s", "words": ["a", "b \\"c\\"",\n ], "good": true,\n}', ("trailing comma",)),
    ("Python", """{'title': "it's", 'words': ['a', 'b "c"'], 'good': True}""", ("quotes", "Python constant")),
    ("an apostrophe inside", """{'title': 'it's', 'words': ['a', 'b "c"'], 'good': true}""", ("quotes",)),
    ("an escaped apostrophe", """{'title': 'it\\'s', 'words': ['a', 'b "c"'], 'good': true}""", ("quotes",)),
    ("typographic quotes", """{“title”: “it's”, “words”: [“a”, “b "c"”], “good”: true}""", ("quotes",)),
    (
        "all at once",
        """Here:\n```python\n{'title': 'it's', 'words': ['a', 'b "c"',], 'good': True,}\n```\nDone.""",
        ("code fence", "text around the object", "quotes", "trailing comma", "Python constant"),
    ),
]


@pytest.mark.parametrize(("text", "repairs"), [case[1:] for case in MENDED], ids=[case[0] for case in MENDED])
def test_what_is_mended_is_named(text: str, repairs: tuple[str, ...]) -> None:
    parsed, named = read_object(text, Note)
    assert parsed == PLAIN
    assert sorted(named) == sorted(repairs)


def test_a_line_break_inside_a_string_is_mended() -> None:
    parsed, named = read_object('{"title": "two\nlines\tand a tab"}', Note)
    assert parsed.title == "two\nlines\tand a tab"
    assert named == ("line break in a string",)


def test_the_first_object_that_fits_is_taken() -> None:
    text = 'The form is {"type": "object"}. Answer: {"title": "one"}. Another: {"title": "two"}'
    assert read_object(text, Note)[0].title == "one"


def test_strings_that_look_like_structure_are_left_alone() -> None:
    note = Note(title="{'a': True,} ```json None,]", words=["<think>", "'", "“x”", "\\", "}"])
    assert read_object(note.model_dump_json(), Note) == (note, ())
    assert read_object(f"x {note.model_dump_json()} y", Note)[0] == note


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON object"),
        ("   \n", "no JSON object"),
        ("I cannot do that.", "no JSON object"),
        ('{"title": "cut of', "no JSON object"),
        ('{"title": "a" "words": []}', "delimiter"),
        ('{"title": undefined}', "not JSON"),
        ('{"title": NaN}', "NaN"),
        ('{"title": __import__("os").system("true")}', "not JSON"),
        ('{"title": 3}', "title: Input should be a valid string"),
        ("{}", "title: Field required"),
        ('{"title": null, "words": 3, "good": "x"}', "title:.*words:.*good:"),
        ("[1, 2]", "does not fit"),
        ('"just text"', "no JSON object"),
        ("{" * 5000 + "}" * 5000, "not JSON"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "not JSON"),
        ("9" * 100_000, "no JSON object"),
        ('{"title": ' + "9" * 100_000 + "}", "."),
        ("x" * (MAX_CHARS + 1), "characters"),
    ],
)
def test_what_cannot_be_mended_is_told_in_words(text: str, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        read_object(text, Note)


def test_nothing_is_evaluated() -> None:
    with pytest.raises(Malformed):
        read_json("{'a': (lambda: 1)()}")
    with pytest.raises(Malformed):
        read_json("{'a': 1 + 1}")


def test_every_object_of_a_text_in_order() -> None:
    assert objects_in("a {'x': 1} b {\"y\": [2,]} c {broken} ```json\n{}```") == [{"x": 1}, {"y": [2]}, {}]
    assert objects_in("only [1, 2] lists") == [[1, 2]]
    assert objects_in("nothing") == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(max_size=5), JSON, max_size=4), ascii_=st.booleans())
@settings(max_examples=150, deadline=None)
def test_json_is_read_as_json(value: dict[str, Any], ascii_: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_)
    assert read_json(text) == (value, ())
    assert objects_in(f"So: {text}") == [value]


@given(value=st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.integers() | st.booleans() | st.none()))
@settings(max_examples=100, deadline=None)
def test_python_dictionaries_are_read(value: dict[str, Any]) -> None:
    assert read_json(repr(value))[0] == value


@given(st.text(alphabet="{}[]\"'“”\\,:tT \n`ruefaxNo", max_size=60))
@settings(max_examples=300, deadline=None)
def test_rubbish_is_malformed_or_read_and_never_anything_else(text: str) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(read_object(text, Note)[0], Note)


@pytest.mark.parametrize(
    "unit", ["{", "}", "[", "'", '"', "{'", '{"a', "\\", "“", ", ", "```", "</think>", "{'a':'b'c"]
)
def test_time_grows_with_the_length_only(unit: str) -> None:
    def seconds(size: int) -> float:
        text = "{" + unit * (size // len(unit)) + "}"
        begun = time.thread_time()
        with pytest.raises(Malformed):
            read_object(text, Note)
        return time.thread_time() - begun

    # the best of three: a collection of all objects that the tests before have left may fall into one of them
    small, large = (min(seconds(size) for _ in range(3)) for size in (20_000, 100_000))
    assert large < 15 * small + 0.2  # linear is 5 times, quadratic 25

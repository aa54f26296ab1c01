"""The rules: sentences, keywords, names, dates, triples; what they read, what they leave, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.llm import rules

STORY = (
    "Ada Brook is the mentor of Ben Marsh. She lives in Leeds and works as a baker at the Bank of England. "
    "Ben's sister is Cleo. The mentor of Cleo is Dr. Smith. Ada, the mayor of York, plays the flute."
)


# -- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("One. Two! Three? Four… five", ["One.", "Two!", "Three?", "Four…", "five"]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("Dr. Smith met J. S. Bach at 3 p.m. on a boat, e.g. a ship.", None),
        ("It cost 3.50 in v1.2 of the shop.", None),
        ("Well... maybe not.", ["Well...", "maybe not."]),
        ("Ada: Hi!\nBen: Hello\nAda: Bye", ["Ada: Hi!", "Ben: Hello", "Ada: Bye"]),
        ("a line that is\nbroken in two. Next.", ["a line that is\nbroken in two.", "Next."]),
        ("para one\n\npara two", ["para one", "para two"]),
        ("- first\n- second", ["- first", "- second"]),
        ("Das ist gut. Où est-il? 日本語。", ["Das ist gut.", "Où est-il?", "日本語。"]),
        ("Is it plan B. Yes", ["Is it plan B. Yes"]),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    assert rules.sentences(text) == ([text] if expected is None else expected)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    assert "".join("".join(rules.sentences(text)).split()) == "".join(text.split())


# -- keywords ---------------------------------------------------------------------------------------------------------


def test_keywords_by_count_then_by_place() -> None:
    assert rules.keywords("The cat sat. A dog ran, and the dog's cat sat down; dog!", 2) == ["dog", "cat"]
    assert rules.keywords("zebra apple mango") == ["zebra", "apple", "mango"]
    assert rules.keywords("") == rules.keywords("the of and I'm") == []


def test_keywords_by_rarity() -> None:
    text = "common common rare unseen"
    assert rules.keywords(text, 1, {"common": 0.1, "rare": 3.0, "other": 2.0}) == ["rare"]
    assert rules.keywords(text, 3, {"common": 0.1, "rare": 3.0}) == ["rare", "unseen", "common"]
    assert rules.keywords(text, 1, lambda word: len(word)) == ["common"]
    assert rules.keywords(text, 1, {}) == ["common"]


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STORY, ["Ada Brook", "Ben Marsh", "Leeds", "Bank of England", "Ben", "Cleo", "Dr. Smith", "Ada", "York"]),
        ("Yesterday we saw a dog. Nobody knew it.", []),
        ("Bread is good. I like bread.", []),
        ("Melanie went camping.", []),
        ("Melanie went camping. Later Melanie came back.", ["Melanie"]),
        ("Melanie left. Melanie came.", ["Melanie"]),
        ("Bread rose. Bread fell. We ate bread.", []),
        ("Melanie's tent is wet.", ["Melanie"]),
        ("Melanie: Hey Caroline! Good to see you!", ["Melanie", "Caroline"]),
        ("Absolutely, Caroline. Honestly Mel is right.", ["Caroline", "Mel"]),
        ("On Monday in May I'm off with IBM and the Vincent van Gogh museum.", ["IBM", "Vincent van Gogh"]),
        ("On Saturday Ada Brook left.", ["Ada Brook"]),
        ("The Amber Fair and the University of São Paulo", ["Amber Fair", "University of São Paulo"]),
        ("we met J. S. Bach and Élodie Ångström", ["J. S. Bach", "Élodie Ångström"]),
        ('"Ben is here," she told Jean-Luc O’Neill.', ["Jean-Luc O’Neill"]),
        ("", []),
        ("日本語 only", []),
        ("A Heading In Title Case That Goes On And On Like This Here", []),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    assert rules.names(text) == expected


def test_names_that_are_known_count_at_the_start_of_a_sentence() -> None:
    assert rules.names("Melanie went camping.", known=["Melanie"]) == ["Melanie"]


# -- dates ------------------------------------------------------------------------------------------------------------

TODAY = date(2023, 5, 10)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "found", "day", "precision"),
    [
        ("on 2023-01-02.", "2023-01-02", date(2023, 1, 2), "day"),
        ("at 2023-01-02T10:00", "2023-01-02T10", date(2023, 1, 2), "day"),
        ("1:56 pm on 8 May, 2023", "8 May, 2023", date(2023, 5, 8), "day"),
        ("the 8th of May 2023", "8th of May 2023", date(2023, 5, 8), "day"),
        ("May 8, 2023", "May 8, 2023", date(2023, 5, 8), "day"),
        ("May 2nd", "May 2nd", date(2023, 5, 2), "day"),
        ("September the 3rd", "September the 3rd", date(2023, 9, 3), "day"),
        ("in June 2021", "June 2021", date(2021, 6, 1), "month"),
        ("in 1984", "in 1984", date(1984, 1, 1), "year"),
        ("29 Feb 2024", "29 Feb 2024", date(2024, 2, 29), "day"),
        ("Today is fine", "Today", TODAY, "day"),
        ("yesterday's news", "yesterday's", date(2023, 5, 9), "day"),
        ("tomorrow", "tomorrow", date(2023, 5, 11), "day"),
        ("last Friday", "last Friday", date(2023, 5, 5), "day"),
        ("last Wednesday", "last Wednesday", date(2023, 5, 3), "day"),
        ("next Monday", "next Monday", date(2023, 5, 15), "day"),
        ("this Sunday", "this Sunday", date(2023, 5, 14), "day"),
        ("last week", "last week", date(2023, 5, 1), "week"),
        ("next month", "next month", date(2023, 6, 1), "month"),
        ("last year", "last year", date(2022, 1, 1), "year"),
        ("three days ago", "three days ago", date(2023, 5, 7), "day"),
        ("2 weeks ago", "2 weeks ago", date(2023, 4, 26), "week"),
        ("a month ago", "a month ago", date(2023, 4, 10), "month"),
        ("in ten days", "in ten days", date(2023, 5, 20), "day"),
    ],
)
def test_dates(text: str, found: str, day: date, precision: str) -> None:
    mentions = rules.dates(text, TODAY)
    assert [(m.text, m.date, m.precision) for m in mentions] == [(found, day, precision)]
    assert text[mentions[0].start :].startswith(found)


@pytest.mark.parametrize("text", ["", "you may go 2 times", "we march 5 miles", "3/4/2023", "in 99", "2023-13-45",
                                  "5 of them", "room 1984", "32 May", "may 2024 be kind", "the last word"])  # fmt: skip
def test_what_is_no_date(text: str) -> None:
    assert rules.dates(text, TODAY) == []


def test_without_today_relative_dates_have_no_day() -> None:
    assert [m.date for m in rules.dates("yesterday, May 2nd, last week, 3 days ago, 1 May 2020")] == [
        None, None, None, None, date(2020, 5, 1)]  # fmt: skip


def test_today_comes_as_date_time_or_text() -> None:
    for today in ("2023-05-10", "2023-05-10T23:00:00", datetime(2023, 5, 10, 3), TODAY):
        assert rules.dates("yesterday", today)[0].date == date(2023, 5, 9)
    with pytest.raises(BadInput, match="ISO text"):
        rules.dates("yesterday", "8 May")


def test_the_ends_of_the_calendar() -> None:
    assert rules.dates("yesterday", date.min)[0].date is None
    assert rules.dates("in 9999 years", TODAY)[0].date is None
    assert rules.dates("a month ago", date(2024, 3, 31))[0].date == date(2024, 2, 29)


@given(st.dates(date(1000, 1, 1), date(9999, 12, 31)), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_day_is_read_in_every_form(day: date, form: int) -> None:
    month = f"{day:%B}"
    text = [day.isoformat(), f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}",
            f"{day.day} {month[:3]} {day.year}"][form]  # fmt: skip
    assert [m.date for m in rules.dates(f"It was on {text}.")] == [day]


@given(st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.integers(1, 400))
@settings(max_examples=50, deadline=None)
def test_days_ago_count_back(today: date, n: int) -> None:
    assert rules.dates(f"{n} days ago", today)[0].date == today - timedelta(days=n)


# -- triples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            STORY,
            [
                ("Ada Brook", "mentor of", "Ben Marsh"),
                ("Ada Brook", "lives in", "Leeds"),
                ("Ada Brook", "works as", "baker"),
                ("Ada Brook", "works at", "Bank of England"),
                ("Ben", "sister", "Cleo"),
                ("Cleo", "mentor", "Dr. Smith"),
                ("Ada", "mayor of", "York"),
                ("Ada", "plays", "flute"),
            ],
        ),
        ("Ada was born in Ravenmoor.", [("Ada", "was born in", "Ravenmoor")]),
        ("Ada is married to Ben.", [("Ada", "is married to", "Ben")]),
        ("Ada is a baker.", [("Ada", "is", "baker")]),
        ("Ada likes to eat red apples.", [("Ada", "likes to eat", "red apples")]),
        ("The Amber Fair takes place in Dunford.", [("Amber Fair", "takes place in", "Dunford")]),
        ("The old mill stands near the River Ouse.", [("old mill", "stands near", "River Ouse")]),
        ("Ada joined the University of Oxford.", [("Ada", "joined", "University of Oxford")]),
        (
            "Melanie: I live in Leeds! My sister is Cleo.",
            [("Melanie", "live in", "Leeds"), ("Melanie", "sister", "Cleo")],
        ),
        (
            "Ada lives in Leeds. Her best friend is Cleo.",
            [("Ada", "lives in", "Leeds"), ("Ada", "best friend", "Cleo")],
        ),
        ("Ada, who plays chess, lives in Leeds.", [("Ada", "plays", "chess"), ("Ada", "lives in", "Leeds")]),
        ("Ada lives in Leeds, and Ben works for Cleo.", [("Ada", "lives in", "Leeds"), ("Ben", "works for", "Cleo")]),
        ("After four talks Ada Brook signed with Merkivor.", [("Ada Brook", "signed with", "Merkivor")]),
        ("On Friday Ada lost the scarf.", [("Ada", "lost", "scarf")]),
        ("It takes two trains to visit Ada, who lives in Leeds.", [("Ada", "lives in", "Leeds")]),
        ("Ada met Ben who works for Cleo.", [("Ada", "met", "Ben"), ("Ben", "works for", "Cleo")]),
        ("In Leeds they laughed.", []),
        ("Ada was awarded the Silver Compass.", [("Ada", "was awarded", "Silver Compass")]),
        ("The river Ouse flows through York.", [("Ouse", "flows through", "York")]),
        ("The head office of Korex is in Leeds.", [("Korex", "head office in", "Leeds")]),
        ("Ada joined the company Korex.", [("Ada", "joined", "Korex")]),
        ("The Amber Lamp consists mostly of copper.", [("Amber Lamp", "consists of", "copper")]),
        ("Ada ate a bowl of soup.", [("Ada", "ate", "bowl")]),
        ("Ada does not live in Leeds.", []),
        ("Does Ada live in Leeds?", []),
        ("It rained.", []),
        ("", []),
        ("Ada " + "and so on " * 40 + "lives in Leeds.", []),
    ],
)
def test_triples(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [tuple(triple) for triple in rules.triples(text)] == expected


def test_a_triple_has_names() -> None:
    (triple,) = rules.triples("Ada lives in Leeds. Ada lives in Leeds.")
    assert (triple.subject, triple.relation, triple.object) == ("Ada", "lives in", "Leeds")


# -- central sentences ------------------------------------------------------------------------------------------------


def test_the_central_sentence_shares_most_with_the_rest() -> None:
    text = (
        "It rained. The bakery of Leeds sells bread. Bread and cakes are sold in Leeds. The bakery has cakes and bread."
    )
    assert rules.central_sentences(text, 1) == ["The bakery has cakes and bread."]
    assert rules.central_sentences(text, 9) == rules.sentences(text)
    best = rules.central_sentences(text, 2)
    assert "It rained." not in best
    assert best == [sentence for sentence in rules.sentences(text) if sentence in best]
    assert rules.central_sentences("", 3) == []
    assert rules.central_sentences("The. And. Of.", 2) == ["The.", "And."]


# -- every rule -------------------------------------------------------------------------------------------------------

RULES: dict[str, Callable[[Any], Any]] = {
    "sentences": rules.sentences,
    "keywords": rules.keywords,
    "names": rules.names,
    "dates": lambda text: rules.dates(text, TODAY),
    "triples": rules.triples,
    "central": lambda text: rules.central_sentences(text, 3),
    "words": rules.count_words,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_only_text_is_read(rule: Callable[[Any], Any]) -> None:
    for wrong in (None, 3, b"text", ["text"]):
        with pytest.raises(BadInput, match="read text"):
            rule(wrong)


def test_sizes_are_checked() -> None:
    for k in (0, -1, 1.5, True):
        with pytest.raises(BadInput, match="k must be"):
            rules.keywords("text", k)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="k must be"):
            rules.central_sentences("text", k)  # type: ignore[arg-type]


@given(st.text(max_size=120) | st.text(alphabet="Aa .,'\n:-’\"of1st May", max_size=120))
@settings(max_examples=250, deadline=None)
def test_any_text_is_read_twice_the_same(text: str) -> None:
    for rule in RULES.values():
        assert rule(text) == rule(text)
    plain = " ".join(text.split())
    for name in rules.names(text):
        assert name in plain
    for triple in rules.triples(text):
        assert triple.subject
        assert triple.relation
        assert triple.object
    for mention in rules.dates(text):
        assert text[mention.start :].startswith(mention.text)


HARD = [
    "a", "A", "Ada ", "a-", "a'", "A.", ". ", "...a", '"', '."', "“A", "\n", " \n", " ", "1.", "May 1 ", "last ",
    "a days ", "2023-01-01", "Ada of ", "the of ", "Ada's ", ", ", "and ", "Ada is ", "I ", "Ada: ", "\u0301", "😀",
]  # fmt: skip


@pytest.mark.parametrize("unit", HARD)
def test_time_grows_with_the_length_only(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        begun = time.thread_time()
        for name in ("names", "dates", "triples", *(["central"] if unit in ("“A", ". ", "Ada ", "\n") else [])):
            RULES[name](text)
        return time.thread_time() - begun

    if seconds(100_000) > 5.0:  # about one on a quiet machine; else it must be no worse than linear
        small, large = (min(seconds(size) for _ in range(3)) for size in (20_000, 100_000))
        assert large < 12 * small

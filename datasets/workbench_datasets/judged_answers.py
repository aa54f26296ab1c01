"""Generated answers whose label (correct or not) is known because of how they were made: a judge is held to them.

The forms are those in which readers answer with the words of the gold: bare, in a sentence, in other notation, hedged,
corrected, denied, about the wrong value, out of date, by half a name, or refusing. Some ask more than looking up words
can give (a denial far from the word); they are in on purpose. Paraphrases of the gold are not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta

from workbench_datasets._checks import whole
from workbench_datasets._invented import Coiner

__all__ = ["FORMS", "JudgedAnswer", "judged_answers"]

NEVER_SAID = "not mentioned"


@dataclass(frozen=True)
class JudgedAnswer:
    """A gold answer in all its forms, an answer, and whether that answer is correct; ``form``: how it was made."""

    golds: tuple[str, ...]
    answer: str
    correct: bool
    form: str


# v: the gold, w: another value of the same type, p: a person.
_RIGHT = {
    "bare": ("{v}", "{v}.", "It is {v}."),
    "sentence": (
        "{p} told us that it was {v}.",
        "As far as I remember, the answer is {v}, since last spring.",
        "In the talk in May {p} spoke of {v} and was happy about it.",
    ),
    "contrast": (
        "It is not {w} but {v}.",
        "{p} first thought of {w}, but then chose {v}.",
        "Not {w}: it was {v}.",
        "I thought it was {w}. No, wait, it is {v}.",
    ),
    "update": (
        "It used to be {w}, now it is {v}.",
        "{p} left {w} and went to {v}.",
        "Formerly {w}; today {v}.",
        "Since June it has been {v} instead of {w}.",
    ),
    "unsure": ("I do not know for sure, but I believe it is {v}.", "Probably {v}.", "I think that it was {v}."),
}
_WRONG = {
    "other value": ("{w}", "It is {w}.", "{p} told us that it was {w}.", "The answer is {w}, since last spring."),
    "denied": ("It is not {v}.", "It was never {v}, as {p} made clear.", "{v} is wrong.", "It is {w}, not {v}.",
               "{p} denied that it was {v}."),
    "out of date": ("It used to be {v}, now it is {w}.", "{p} left {v} and went to {w}.", "Formerly {v}; today {w}.",
                    "It is {w} instead of {v}."),
    "left open": ("{v} or {w}.", "It is either {w} or {v}.", "Maybe {w}, maybe {v}, maybe something else."),
    "refused": ("I do not know.", "That was not mentioned.", "There is no information about it.", "",
                "{p} never said anything about it."),
    "denied from afar": ("That the answer could be {v}, as many have said, is something {p} would contest.",
                         "Whoever says {v} has mixed it up with something else; {w} it is."),
}  # fmt: skip
_UNKNOWN_RIGHT = ("Not mentioned.", "That was never mentioned.", "I don't know, {p} did not say.",
                  "There is no information about that in the notes.", "This cannot be answered from the talks.",
                  "Nobody said anything about it.", "It is unknown.", "{p} never talked about that.")  # fmt: skip
_UNKNOWN_WRONG = ("{w}", "It is {w}.", "{p} said that it was {w}.", "It was not mentioned, but it is probably {w}.")
FORMS = (*_RIGHT, *_WRONG, "other notation", "list complete", "list incomplete", "yes or no", "never said",
         "invented", "short name")  # fmt: skip
_THINGS = ("apples", "candles", "a tent", "two maps", "rope", "soap", "matches", "a kettle", "blankets", "honey")
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty-one",
            "thirty-five", "forty", "sixty-two", "ninety")  # fmt: skip
_VALUES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 21, 35, 40, 62, 90)


def judged_answers(seed: int, n: int = 400) -> list[JudgedAnswer]:
    """``n`` answers of known label, all :data:`FORMS` in turn; equal for equal arguments."""
    n = whole("n", n, 1, 20_000)
    rng = random.Random(f"judged:{seed}")
    coiner = Coiner(rng)
    names = {"town": coiner.coins("town", 60), "firm": coiner.coins("firm", 60), "person": coiner.people(60)}
    return [_answer(rng, names, FORMS[index % len(FORMS)]) for index in range(n)]


def _answer(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    maker = {"other notation": _notation, "list complete": _listed, "list incomplete": _listed, "yes or no": _yes,
             "never said": _never, "invented": _never, "short name": _short}.get(form, _usual)  # fmt: skip
    return maker(rng, names, form)


def _values(rng: random.Random, names: dict[str, list[str]]) -> tuple[str, str]:
    """Two different values of one type."""
    kind = rng.choice((*names, "number", "day", "year"))
    if kind == "number":
        first, second = rng.sample(_VALUES, 2)
        return str(first), str(second)
    if kind == "day":
        day = date(2024, 1, 1) + timedelta(days=rng.randrange(300))
        return _day(day), _day(day + timedelta(days=rng.randint(1, 60)))
    if kind == "year":
        first, second = rng.sample(range(1950, 2024), 2)
        return str(first), str(second)
    first_name, second_name = rng.sample(names[kind], 2)
    return first_name, second_name


def _day(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"


def _usual(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    value, other = _values(rng, names)
    lines = _RIGHT.get(form) or _WRONG[form]
    text = rng.choice(lines).format(v=value, w=other, p=rng.choice(names["person"]))
    return JudgedAnswer((value,), text, form in _RIGHT, form)


def _notation(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    """The same number or day written in another way, or another one in that way."""
    right = rng.random() < 0.5
    if rng.random() < 0.5:
        index, other = rng.sample(range(len(_VALUES)), 2)
        text = rng.choice(("There were {} of them.", "{}", "I counted {}.")).format(_NUMBERS[index if right else other])
        return JudgedAnswer((str(_VALUES[index]),), text, right, form)
    day = date(2024, 1, 1) + timedelta(days=rng.randrange(300))
    said = day if right else day + timedelta(days=rng.randint(1, 40))
    ways = (f"{said:%B} {said.day}, {said.year}", f"{said:%Y-%m-%d}", f"the {said.day}th of {said:%B} {said.year}")
    text = rng.choice(("On {}.", "It happened on {}, I am sure.")).format(rng.choice(ways))
    return JudgedAnswer((_day(day),), text, right, form)


def _listed(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    things = rng.sample(_THINGS, 3)
    said = rng.sample(things, 3 if form == "list complete" else 2)
    text = rng.choice(("{}", "We bought {}.", "On the list were {}.")).format(", ".join(said[:-1]) + f" and {said[-1]}")
    return JudgedAnswer((", ".join(things),), text, form == "list complete", form)


def _yes(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    gold, said = rng.choice(("yes", "no")), rng.choice(("yes", "no"))
    lines = {"yes": ("Yes.", "Yes, {p} did.", "That is true, {p} said so."),
             "no": ("No.", "No, {p} did not.", "{p} did not, as far as I know.")}  # fmt: skip
    return JudgedAnswer((gold,), rng.choice(lines[said]).format(p=rng.choice(names["person"])), gold == said, form)


def _never(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    _, other = _values(rng, names)
    lines = _UNKNOWN_RIGHT if form == "never said" else _UNKNOWN_WRONG
    text = rng.choice(lines).format(w=other, p=rng.choice(names["person"]))
    return JudgedAnswer((NEVER_SAID,), text, form == "never said", form)


def _short(rng: random.Random, names: dict[str, list[str]], form: str) -> JudgedAnswer:
    """Only the first or the last name of somebody, or of somebody else, or a namesake's full name."""
    value, other = rng.sample(names["person"], 2)
    part = rng.randrange(2)
    said = rng.choice((value.split()[part], other.split()[part], f"{value.split()[0]} {other.split()[1]}"))
    text = rng.choice(("It was {}.", "{}", "As I recall, {} did it.")).format(said)
    return JudgedAnswer((value,), text, said in value.split(), form)

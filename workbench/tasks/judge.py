# ruff: noqa: SIM905 -- a blank-separated list is easier to read than dozens of quoted words
"""An extractive judge: does the answer assert the gold? Rules only, so it is free, instant and repeatable.

It looks for the gold (or another form of it) in the answer, word by word, with numbers and dates brought to one form,
and then whether that place is denied ("not in Asbury"), overtaken ("she used to live in Asbury") or left open ("Asbury
or Dunby"). It takes one part of a full name for the name, and does not understand paraphrases of the gold. How far it
agrees with labels known by construction is measured, never assumed: :func:`agreement` (0.94 on generated answers, made
by the same hand as the rules; 0.84 on 44 answers that were written for the tests before the judge saw them).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NEVER_SAID", "Judgement", "agreement", "judge", "says_unknown"]

NEVER_SAID = "not mentioned"


@dataclass(frozen=True)
class Judgement:
    """``correct``, and in ``why`` the rule that decided."""

    correct: bool
    why: str


_UNKNOWN = re.compile(
    r"\b(?:not (?:been )?(?:mentioned|said|stated|specified|given|known|told|discussed|provided|clear|available)"
    r"|not (?:to be found )?in the (?:conversations?|dialogues?|talks?|notes|text|context|memory)"
    r"|(?:never|nowhere) (?:been )?(?:mentioned|said|stated|told|discussed|came up|comes up|spoke of)"
    r"|(?:was|were|is|are|did|does|do|has|have|had|can|could)n't (?:been )?"
    r"(?:mentioned|said|say|stated|mention|given|told|tell|known|know|remember|find|determine|specified)"
    r"|(?:do|does|did|can|could) ?not (?:be )?(?:say|tell|know|mention|remember|find|determined?|answer(?:ed)?)"
    r"|no (?:information|mention|idea|record|such|answer|memory|details?)|unknown|unanswerable|not sure"
    r"|never (?:mentions?|tells?|says?|talked|told)|(?:nobody|no one) (?:said|mentioned|knows))\b"
)
_DENIAL = re.compile(
    r"\b(?:not|never|no|nor|neither|without|except|cannot|no longer|used to|formerly|previously|originally|before that"
    r"|anything but|wrong|false|denied|rejected)\b|n't\b"
)
# What turns away from the very next word only: "left Asbury and went to Dunby" asserts Dunby.
_TURNED_FROM = re.compile(
    r"\b(?:left|quit|gave up|sold|instead of|rather than|other than|away from|from)\W+"
    r"(?:(?:a|an|the|in|at|on|with)\W+)*$"
)
_MAYBE = re.compile(r"\b(?:maybe|perhaps|possibly)\b")
_DENIED_AFTER = re.compile(
    r"^\W*(?:is|was|are|were|would be|sounds|seems)?\W*(?:not\b|wrong\b|false\b|incorrect\b|no longer\b"
    r"|but not any ?more\b|at first\b|originally\b|in the past\b)|^\W*(?:is|was|are|were|does|did|has|had)n't\b"
)
_CLAUSE = re.compile(
    r"[.;:!?]+(?:\s|$)|,(?=\s)|\s-+\s|\b(?:but|however|though|although|and then|then|now|later|because)\b"
)
_YES, _NO = {"yes", "yeah", "yep", "true", "correct", "right", "indeed"}, {"no", "nope", "false", "incorrect", "wrong"}
_UNITS = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen".split()
)}  # fmt: skip
_TENS = {word: 10 * number for number, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
)}  # fmt: skip
_MONTHS = {month: number for number, month in enumerate(
    "january february march april may june july august september october november december".split(), start=1
)}  # fmt: skip
_MONTH = "|".join(f"{month}|{month[:3]}" for month in _MONTHS)
_DATES = (
    re.compile(rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m>{_MONTH})\.?,?(?: (?P<y>\d{{4}}))?\b"),
    re.compile(rf"\b(?P<m>{_MONTH})\.? (?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (?P<y>\d{{4}})\b)?"),
    re.compile(r"\b(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})\b"),
)


def judge(answer: str, golds: str | Iterable[str]) -> Judgement:
    """Whether ``answer`` asserts one of ``golds`` (forms of one gold answer).

    A gold of "not mentioned" wants an answer that says it is not known. A gold "yes" or "no" wants an answer that
    begins so. A gold that lists several things ("apples, pears and plums") wants all of them. Raises BadInput for
    something that is no text, or no gold.
    """
    forms = [golds] if isinstance(golds, str) else list(golds)
    if not isinstance(answer, str) or not forms or not all(isinstance(form, str) and form.strip() for form in forms):
        raise BadInput(f"judge needs a text and at least one gold text, got {answer!r:.60} and {golds!r:.60}")
    said = plain(answer)
    if not re.search(r"\w", said):
        return Judgement(False, "the answer is empty")
    if any(says_unknown(form) for form in forms):
        return _judge_unknown(said)
    for form in forms:
        truth = plain(form).strip(" .!")
        if truth in ("yes", "no"):
            return _judge_yes(said, truth)
    loose = plain(answer, dates=False)  # "7 May 2023" asserts "May 2023" as well
    reasons = [_judge_form(said, plain(form)) for form in forms]
    reasons += [_judge_form(loose, plain(form, dates=False)) for form in forms]
    reasons += [_judge_name(answer, form) for form in forms]
    return next((reason for reason in reasons if reason.correct), reasons[0])


def says_unknown(text: str) -> bool:
    """Whether a text says that something is not known or was never said.

    >>> says_unknown("That was never mentioned in our talks."), says_unknown("She lives in Asbury.")
    (True, False)
    """
    return bool(_UNKNOWN.search(plain(text)))


def _judge_unknown(said: str) -> Judgement:
    if not _UNKNOWN.search(said):
        return Judgement(False, "gold: not mentioned; the answer claims something")
    tail = re.split(r"\b(?:but|however|though|although)\b", said, maxsplit=1)
    guessed = len(tail) == 2 and re.search(r"\b(?:probably|guess|think|likely|maybe|perhaps|must)\b", tail[1])
    return Judgement(not guessed, "says it is not known, then guesses" if guessed else "says it is not known")


def _judge_yes(said: str, truth: str) -> Judgement:
    tokens = re.findall(r"[a-z']+", said)
    first = next((token for token in tokens if token in _YES | _NO), None)
    if first is None:
        first = "no" if _DENIAL.search(said) else "yes"
    return Judgement((first in _YES) == (truth == "yes"), f"gold: {truth}; the answer reads as {first}")


def _judge_form(said: str, gold: str) -> Judgement:
    whole = _asserted(said, gold)
    parts = [part for part in re.split(r",|;|\band\b|&", gold) if part.strip()]
    if whole.correct or len(parts) < 2:
        return whole
    missing = [part.strip() for part in parts if not _asserted(said, part).correct]
    if missing:
        return Judgement(False, f"lacks {', '.join(missing)}")
    return Judgement(True, f"asserts all {len(parts)} parts")


def _judge_name(answer: str, gold: str) -> Judgement:
    """One part of a full name of two words, when it does not stand beside another name."""
    parts = gold.split()
    if len(parts) != 2 or not all(re.fullmatch(r"[^\W\d_]{3,}", part) and part[0].isupper() for part in parts):
        return Judgement(False, "not a full name")
    for part in parts:
        alone = rf"(?<![A-Z]\w)\b{re.escape(part)}\b(?! [A-Z])"
        beside = rf"\b[A-Z]\w+ {re.escape(part)}\b"
        if re.search(alone, answer) and not re.search(beside, answer) and _asserted(plain(answer), plain(part)).correct:
            return Judgement(True, f"asserts {part!r} of {gold!r}")
    return Judgement(False, "asserts no part of the name")


def _asserted(said: str, gold: str) -> Judgement:
    wanted = _tokens(gold)
    if not wanted:
        return Judgement(False, "the gold has no words")
    pattern = r"\b" + r"\W+(?:(?:a|an|the)\W+)*".join(re.escape(token) for token in wanted) + r"(?:'?s)?\b"
    places = list(re.finditer(pattern, said))
    if not places:
        return Judgement(False, f"does not contain {' '.join(wanted)!r}")
    problems = [_problem(said, place.start(), place.end()) for place in places]
    # The last word counts: an answer that corrects itself ends with what it asserts.
    return Judgement(False, problems[-1]) if problems[-1] else Judgement(True, f"asserts {' '.join(wanted)!r}")


def _problem(said: str, start: int, end: int) -> str:
    """Why the gold that stands at a place of the answer is not asserted there; empty when it is."""
    before = _CLAUSE.split(said[:start])[-1]
    after = _CLAUSE.split(said[end:])[0]
    if re.search(r"\bor\W+(?:(?:in|at|on|the|a|an|maybe|perhaps)\W+)*$", before) or re.match(r"\W*\bor\b", said[end:]):
        return "leaves it open (or)"
    if len(_MAYBE.findall(said)) > 1:
        return "leaves it open (maybe, maybe)"
    if _TURNED_FROM.search(before):
        return "turns from it"
    if _DENIAL.search(before) or _DENIED_AFTER.search(after):
        return "denies it"
    if _UNKNOWN.search(before + after):
        return "says it is not known"
    return ""


def _tokens(text: str) -> list[str]:
    return [token for token in re.findall(r"\w+", text) if token not in ("a", "an", "the")]


def plain(text: str, *, dates: bool = True) -> str:
    """Lower case without accents or curly quotes; number words as digits, "1,200" as 1200, dates as 2024-05-04."""
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    text = "".join(mark for mark in text if not unicodedata.combining(mark)).lower()
    for pattern in _DATES if dates else ():
        text = pattern.sub(_date, text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    tens, units = "|".join(_TENS), "|".join(_UNITS)
    text = re.sub(rf"\b({tens})[- ]({units})\b", lambda m: str(_TENS[m[1]] + _UNITS[m[2]]), text)
    # "one" stays a word: "the one who ..." is no number
    text = re.sub(rf"\b({tens}|{units})\b", lambda m: m[1] if m[1] == "one" else str((_TENS | _UNITS)[m[1]]), text)
    return re.sub(r"\s+", " ", text).strip()


def _date(found: re.Match[str]) -> str:
    month = found["m"]
    number = int(month) if month.isdigit() else next(n for name, n in _MONTHS.items() if name.startswith(month[:3]))
    day = f"{number:02d}-{int(found['d']):02d}"
    return f"{found['y']}-{day}" if found["y"] else f"-{day}"


def agreement(seed: int = 0, n: int = 400) -> pd.DataFrame:
    """How the judge does on ``n`` generated answers of known label: one row a form of answer, the last one for all.

    Columns: ``form``, ``n``, ``right`` (share labelled correct), ``agree`` (share where judge and label agree) and its
    95 % Wilson interval ``low``, ``high``. The answers are generated, so this is agreement on these forms only; forms
    that the rules cannot judge are among them.
    """
    import pandas as pd

    from workbench.statistics import wilson
    from workbench_datasets.judged_answers import judged_answers

    pairs = judged_answers(seed, n)
    frame = pd.DataFrame(
        {"form": [p.form for p in pairs], "label": [p.correct for p in pairs],
         "agree": [judge(p.answer, p.golds).correct == p.correct for p in pairs]}
    )  # fmt: skip
    rows = []
    for form, part in [*frame.groupby("form"), ("all", frame)]:
        interval = wilson(int(part["agree"].sum()), len(part))
        rows.append((form, len(part), part["label"].mean(), interval.effect, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["form", "n", "right", "agree", "low", "high"])

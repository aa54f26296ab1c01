"""How near an answer is to the gold one, by the metrics that papers report under one name but compute differently.

``f1`` exists in three variants, each named: *squad* (Rajpurkar et al. 2016: lower case, no punctuation, no articles,
words counted), *count* and *set* (lower case, only . , ! ? removed; words counted, or each taken once as A-MEM's code
does, 2502.12110). LoCoMo's own F1 is *squad* over Porter stems: give ``stem``. An answer is scored against the gold
form that suits it best.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "VARIANTS", "bleu1", "exact_match", "f1", "golds_of", "normalise", "score_answers", "words"]

VARIANTS = ("squad", "count", "set")
#: Columns of :func:`score_answers`.
COLUMNS = ("question", "method", "kind", "text", "answer", "gold", "em", "f1_squad", "f1_count", "f1_set", "bleu1",
           "judged", "why")  # fmt: skip
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, punctuation and the articles a, an, the removed, single blanks.

    >>> normalise("The  Beatles' album, 1966!")
    'beatles album 1966'
    """
    return " ".join(_ARTICLES.sub(" ", _text(text).lower().translate(_PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """Lower-case words with only . , ! ? taken out (they part words), as A-MEM's evaluation splits them."""
    return re.sub(r"[.,!?]", " ", _text(text).lower()).split()


def exact_match(answer: str, golds: str | Iterable[str]) -> float:
    """1.0 when the normal form of ``answer`` is that of one of ``golds``, else 0.0."""
    return float(any(normalise(answer) == normalise(gold) for gold in _golds(golds)))


def f1(
    answer: str, golds: str | Iterable[str], variant: str = "squad", *, stem: Callable[[str], str] | None = None
) -> float:
    """Harmonic mean of word precision and recall against the best of ``golds``, from 0 to 1.

    Args:
        variant: "squad", "count" or "set" (see the module).
        stem: applied to every word first.

    Two texts without words score 1, one without words 0. Raises BadInput for another variant or no gold at all.
    """
    if variant not in VARIANTS:
        raise BadInput(f"variant={variant!r} is not one of {', '.join(VARIANTS)}")
    return max(_f1(_bag(answer, variant, stem), _bag(gold, variant, stem)) for gold in _golds(golds))


def _bag(text: str, variant: str, stem: Callable[[str], str] | None) -> Counter[str]:
    tokens = normalise(text).split() if variant == "squad" else words(text)
    stemmed = [stem(token) for token in tokens] if stem else tokens
    return Counter(set(stemmed) if variant == "set" else stemmed)


def _f1(answer: Counter[str], gold: Counter[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = (answer & gold).total()
    return 2 * shared / (answer.total() + gold.total())


def bleu1(answer: str, golds: str | Iterable[str]) -> float:
    """BLEU with single words only (Papineni et al. 2002), from 0 to 1: clipped precision times the brevity penalty.

    The penalty is exp(1 - r / c) for an answer of c words shorter than the gold of r words nearest in length, else 1.
    Several golds clip together, as in the paper. No smoothing: nothing shared scores 0. Words as in :func:`words`.
    """
    answered, references = words(answer), [words(gold) for gold in _golds(golds)]
    if not answered:
        return float(any(not reference for reference in references))
    most: Counter[str] = Counter()
    for reference in references:
        most |= Counter(reference)
    precision = (Counter(answered) & most).total() / len(answered)
    nearest = min((len(reference) for reference in references), key=lambda r: (abs(r - len(answered)), r))
    return precision * min(1.0, math.exp(1 - nearest / len(answered)))


def golds_of(question: Any) -> tuple[str, ...]:
    """Every form of the gold answer that a question has: its ``answers``, else its ``answer``."""
    forms = getattr(question, "answers", None) or (getattr(question, "answer", None),)
    if any(form is None for form in forms):
        raise BadInput(f"the question {getattr(question, 'text', question)!r:.80} has no gold answer to score against")
    return tuple(str(form) for form in forms)


def score_answers(answers: Sequence[str], questions: Sequence[Any], *, method: str) -> pd.DataFrame:
    """One row a question: every metric of this module, and the extractive judge's verdict with its reason.

    Args:
        answers: what was answered, one text a question.
        questions: things with ``text`` and ``answer`` (and ``answers`` and ``kind``, where they have them).
        method: name for the ``method`` column, so that frames of several methods can be stacked.

    Raises BadInput for another number of answers than questions, or a question without a gold answer.
    """
    import pandas as pd

    from workbench.tasks.judge import judge

    if len(answers) != len(questions):
        raise BadInput(f"{len(answers)} answers for {len(questions)} questions: give one a question")
    rows = []
    for number, (answer, question) in enumerate(zip(answers, questions)):
        golds = golds_of(question)
        judged = judge(answer, golds)
        scores = [f1(answer, golds, variant) for variant in VARIANTS]
        rows.append((number, method, str(getattr(question, "kind", "")), question.text, answer, golds[0],
                     exact_match(answer, golds), *scores, bleu1(answer, golds), float(judged.correct),
                     judged.why))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise BadInput(f"an answer must be text, got {type(text).__name__}")
    return text


def _golds(golds: str | Iterable[str]) -> list[str]:
    listed = [golds] if isinstance(golds, str) else list(golds)
    if not listed:
        raise BadInput("golds is empty: give at least one gold answer")
    return listed

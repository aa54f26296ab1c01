"""Keywords, names, dates, triples and sentences by rules: no language model, so label them "rules" where shown.

Pure and deterministic, for English with any Unicode; time grows linearly with the text. The rules know form, not
meaning: they miss what is said in other words, and their output is a stand-in that keeps everything running offline.
On generated passages (``passage_world``, seed 778,899) ``triples`` joined 851 of the 1,138 pairs that the text states.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.llm._rules_dates import DateMention, dates
from workbench.llm._rules_triples import Triple, triples
from workbench.llm._rules_words import CALENDAR, STOP, Run, runs, sentence_spans, words

__all__ = [
    "LABEL",
    "DateMention",
    "Triple",
    "central_sentences",
    "content_words",
    "count_words",
    "dates",
    "keywords",
    "names",
    "sentences",
    "triples",
]

LABEL = "rules"


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise BadInput(f"the rules read text, got {type(text).__name__}")
    return text


def count_words(text: str) -> int:
    """Words and marks."""
    return len(words(_text(text)))


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; a line of a list or a dialogue is one too."""
    return [text[start:end] for start, end in sentence_spans(_text(text))]


def content_words(text: str) -> list[str]:
    """Words in lower case, in order, without function words, marks and single letters; owners lose their 's."""
    found = []
    for word in words(_text(text)):
        plain = word.low.removesuffix("'s")
        if word.is_word and len(plain) > 1 and word.low not in STOP and plain not in STOP:
            found.append(plain)
    return found


def keywords(text: str, k: int = 6, idf: Mapping[str, float] | Callable[[str], float] | None = None) -> list[str]:
    """The ``k`` content words of the largest count x idf, best first, ties in order of appearance.

    Args:
        text: any text; none is found in an empty one.
        k: at most so many.
        idf: inverse document frequencies by word, or a function of it; a word that a mapping lacks is taken to be as
            rare as its rarest. Without it the count alone decides.

    Raises:
        BadInput: ``k`` < 1, or something else than text.
    """
    whole("k", k)
    counts = Counter(content_words(text))
    weight = _weights(idf)
    order = {word: at for at, word in enumerate(counts)}
    ranked = sorted(counts, key=lambda word: (-counts[word] * weight(word), order[word]))
    return ranked[:k]


def _weights(idf: Mapping[str, float] | Callable[[str], float] | None) -> Callable[[str], float]:
    if idf is None:
        return lambda word: 1.0
    if not isinstance(idf, Mapping):
        return idf
    rarest = max(idf.values(), default=1.0)
    return lambda word: idf.get(word, rarest)


def names(text: str, known: Iterable[str] = ()) -> list[str]:
    """Names in order of first appearance, each once: runs of capitalised words ("Bank of England", "J. Bach").

    A single capitalised word at the start of a sentence may be there by grammar alone. It counts when it also stands
    capitalised inside a sentence, starts several sentences and is never written small, owns something ("Ada's"), is
    a speaker ("Ada: ...") or is in ``known``. Days, months and function words are no names.
    """
    found = words(_text(text))
    starts = frozenset(start for start, _ in sentence_spans(text))
    all_runs = [run for run in runs(text, found, starts) if not _calendar(run)]
    small = {word.low for word in found if word.is_word and not word.is_capital}
    sure = {part for run in all_runs if not run.opens or run.size > 1 for part in run.text.split()}
    opening = Counter(run.text for run in all_runs if run.opens)
    listed = set(known)
    kept: dict[str, None] = {}
    for run in all_runs:
        follows = found[run.last + 1].text if run.last + 1 < len(found) else ""
        certain = run.size > 1 or not run.opens or run.text in listed or run.text in sure
        owner = follows == ":" or found[run.last].low.endswith("'s")
        repeated = opening[run.text] > 1 and run.text.lower() not in small
        if certain or owner or repeated:
            kept[run.text] = None
    return list(kept)


def _calendar(run: Run) -> bool:
    return all(part.lower().rstrip(".") in CALENDAR or part.lower() in STOP for part in run.text.split())


def central_sentences(text: str, k: int = 1) -> list[str]:
    """The ``k`` sentences closest to the whole (cosine of TF-IDF vectors with their sum), in the order of the text.

    Ties go to the earlier sentence; sentences without content words come last. Raises BadInput for ``k`` < 1.
    """
    whole("k", k)
    found = sentences(text)
    vectors = _tfidf([content_words(sentence) for sentence in found])
    total: Counter[str] = Counter()
    for vector in vectors:
        total.update(vector)
    score = [sum(value * total[word] for word, value in vector.items()) for vector in vectors]
    best = sorted(range(len(found)), key=lambda i: (-round(score[i], 12), i))[:k]
    return [found[i] for i in sorted(best)]


def _tfidf(documents: list[list[str]]) -> list[dict[str, float]]:
    """Unit TF-IDF vectors with smoothed idf, ln((1 + n) / (1 + df)) + 1; empty where a document has no words."""
    seen = Counter(word for document in documents for word in set(document))
    rows = []
    for document in documents:
        counts = Counter(document)
        row = {word: n * (math.log((1 + len(documents)) / (1 + seen[word])) + 1) for word, n in counts.items()}
        length = math.sqrt(sum(value * value for value in row.values())) or 1.0
        rows.append({word: value / length for word, value in row.items()})
    return rows

"""MuSiQue, the sample of 100 training questions that HippoRAG's authors published with GPT-3.5's triples for all of it.

Trivedi et al. 2022 (questions and passages, CC BY 4.0); Jimenez Gutierrez et al. 2024 (2405.14831) for the corpus file
and the triples. :func:`case_study` is the one-question corpus of that paper's first figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench_datasets import registry
from workbench_datasets._json_files import read_json

__all__ = ["Corpus", "CorpusPassage", "CorpusQuestion", "case_study", "load"]

FOLDER = "hipporag"
QUESTIONS, CORPUS = "musique_train.json", "musique_train_corpus.json"
TRIPLES = "openie_musique_train_results_ner_gpt-3.5-turbo-1106_1890.json"
CASE, CASE_CORPUS = "case_study_university.json", "case_study_university_corpus.json"

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class CorpusPassage:
    """One passage with what a language model extracted from it (empty where nobody did).

    ``malformed``: extracted tuples that are not subject, relation and object; they are kept out of ``triples``.
    """

    id: int
    title: str
    text: str
    entities: tuple[str, ...] = ()
    triples: tuple[Triple, ...] = ()
    malformed: tuple[tuple[str, ...], ...] = ()

    @property
    def passage(self) -> str:
        """Title, line break, text: what retrievers index."""
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True)
class CorpusQuestion:
    """A question with the ids of the passages that support its answer and, where published, its chain of questions."""

    key: str
    text: str
    answer: str
    answers: tuple[str, ...]
    evidence: tuple[int, ...]
    hops: int
    chain: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        return f"{self.hops}-hop"


@dataclass(frozen=True)
class Corpus:
    """Passages and the questions about them; ``passages[i].id == i``."""

    name: str
    passages: tuple[CorpusPassage, ...]
    questions: tuple[CorpusQuestion, ...]

    def counts(self) -> dict[str, int]:
        """Passages, questions, triples, malformed triples, and questions by kind."""
        kinds = Counter(question.kind for question in self.questions)
        triples = sum(len(passage.triples) for passage in self.passages)
        malformed = sum(len(passage.malformed) for passage in self.passages)
        sizes = {"passages": len(self.passages), "questions": len(self.questions)}
        return {**sizes, "triples": triples, "malformed": malformed, **dict(sorted(kinds.items()))}


def load(folder: str | Path | None = None, *, download: bool = False) -> Corpus:
    """100 questions, 1,890 passages and the published triples, from ``folder`` or where the registry finds them.

    Raises ``DataMissing`` (which file goes where) or ``ValueError`` for files that do not belong together.
    """
    asked, corpus, extracted = (_read(folder, name, download) for name in (QUESTIONS, CORPUS, TRIPLES))
    try:
        passages = _passages(corpus, extracted["docs"])
        place = {(passage.title, passage.text): passage.id for passage in passages}
        questions = tuple(_question(item, place) for item in asked)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the files of MuSiQue lack {error}: they are of another form") from error
    return Corpus("musique", passages, questions)


def case_study(folder: str | Path | None = None, *, download: bool = False) -> Corpus:
    """HippoRAG's figure 1: which Stanford professor works on Alzheimer's? 43 passages, no published triples."""
    asked, corpus = (_read(folder, name, download) for name in (CASE, CASE_CORPUS))
    try:
        passages = tuple(CorpusPassage(index, item["title"], item["text"]) for index, item in enumerate(corpus))
        questions = tuple(_case(item) for item in asked)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the files of the case study lack {error}: they are of another form") from error
    return Corpus("case study: university", passages, questions)


def _read(folder: str | Path | None, name: str, download: bool) -> Any:
    if folder is not None:
        return read_json(Path(folder) / name)
    return read_json(registry.path(FOLDER, name, download=download))


def _passages(corpus: list[dict[str, Any]], extracted: list[dict[str, Any]]) -> tuple[CorpusPassage, ...]:
    found = {(item["title"], item["text"]): item for item in extracted}
    missing = [item["title"] for item in corpus if (item["title"], item["text"]) not in found]
    if missing:
        raise ValueError(f"{len(missing)} passages have no extracted triples, the first is {missing[0]!r}")
    return tuple(_passage(index, item, found[(item["title"], item["text"])]) for index, item in enumerate(corpus))


def _passage(index: int, item: dict[str, Any], extracted: dict[str, Any]) -> CorpusPassage:
    tuples = [tuple(str(part) for part in one) for one in extracted["extracted_triples"]]
    triples = tuple((one[0], one[1], one[2]) for one in tuples if len(one) == 3)
    malformed = tuple(one for one in tuples if len(one) != 3)
    return CorpusPassage(index, item["title"], item["text"], tuple(extracted["extracted_entities"]), triples, malformed)


def _question(item: dict[str, Any], place: dict[tuple[str, str], int]) -> CorpusQuestion:
    support = [p for p in item["paragraphs"] if p["is_supporting"]]
    lost = [p["title"] for p in support if (p["title"], p["paragraph_text"]) not in place]
    if lost:
        raise ValueError(f"question {item['id']}: its supporting passage {lost[0]!r} is not in the corpus")
    evidence = _unique(place[(p["title"], p["paragraph_text"])] for p in support)
    chain = tuple((step["question"], step["answer"]) for step in item["question_decomposition"])
    answers = (item["answer"], *item["answer_aliases"])
    hops = item["id"].split("hop")[0]
    if not hops.isdecimal():
        raise ValueError(f"question {item['id']!r}: its id does not begin with the number of hops, like 2hop__1_2")
    return CorpusQuestion(item["id"], item["question"], item["answer"], answers, evidence, int(hops), chain)


def _case(item: dict[str, Any]) -> CorpusQuestion:
    answers = tuple(item["answer"])
    if not answers:
        raise ValueError(f"question {item['id']!r} of the case study has no answer")
    return CorpusQuestion(item["id"], item["question"], answers[0], answers, tuple(item["gold_docs"]), 2)


def _unique(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))

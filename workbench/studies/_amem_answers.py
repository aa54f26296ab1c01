"""Answers in the dialogue world: the same reader on what FLAT and A-MEM give back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workbench.studies._amem_measure import FLAT, FULL, HITS, LINKS, NOTES, Pair, rows

if TYPE_CHECKING:
    import pandas as pd

HITS_ASKED = 10


def answers(world: int) -> pd.DataFrame:
    """Set-F1 (the paper's), BLEU-1 and evidence recall for every question of one world, by method.

    The reader is ``workbench.llm.extractive.ExtractiveReader``, which has no language model and joins no two facts (the
    embedded model cannot read these turns at all: it was right about none of fifty). It sees time and content of the
    notes only, so that no method profits from words that another method's notes do not show.
    """
    from workbench.studies._amem_encoder import quick_encoder
    from workbench_datasets.dialogue_world import dialogue_world

    made = dialogue_world(world)
    pair = Pair(made.turns, quick_encoder([turn.line for turn in made.turns]))
    limits = {NOTES: {"budget_notes": HITS_ASKED}, HITS: {"k": HITS_ASKED}}
    lines = [
        line
        for method in (FLAT, LINKS, FULL)
        for accounting, limit in limits.items()
        for line in _asked(pair, made.questions, method, accounting, limit)
    ]
    return rows("dialogue", lines, encoder="words", unit=str(world), budget=HITS_ASKED)


def _asked(
    pair: Pair, questions: list[Any], method: str, accounting: str, limit: dict[str, int]
) -> Iterator[dict[str, Any]]:
    from workbench.llm.extractive import ExtractiveReader
    from workbench.tasks.evidence import all_recall_at

    memory, ids = pair.reader(method)
    memory.show, memory.link_cap = "content", HITS_ASKED
    readings = [memory.read(question.text, **limit) for question in questions]  # type: ignore[arg-type]
    same = {"method": method, "accounting": accounting, "n": 1}
    for number, (question, reading) in enumerate(zip(questions, readings)):
        if question.evidence:
            found = all_recall_at(reading.ids, [ids[key] for key in question.evidence])
            yield {**same, "kind": question.kind, "question": number, "metric": "all evidence", "value": found}
    reader = ExtractiveReader()
    said = {n: reader.answer(q.text, readings[n].text()).text for n, q in enumerate(questions)}
    yield from _scored(questions, said, same)


def _scored(questions: list[Any], said: dict[int, str], same: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from workbench.tasks.answers import bleu1, f1, golds_of

    for number, text in said.items():
        line = {**same, "kind": questions[number].kind, "question": number}
        golds = golds_of(questions[number])
        yield {**line, "metric": "set F1", "value": f1(text, golds, variant="set")}
        yield {**line, "metric": "BLEU-1", "value": bleu1(text, golds)}

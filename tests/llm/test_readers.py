"""Readers of a pasted context: the embedded model in its own prompt form, and the rules."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from workbench.errors import BadInput, UnknownName
from workbench.llm import ContextTooLong, EmbeddedChat, EmbeddedReader, ExtractiveReader, Ledger, LlmError, Message, ask
from workbench.llm.embedded import reader_prompt
from workbench_datasets.small_world import Question, world

SEED = 31_337
FACTS = "Zuri Quill lives in Buwick. Zuri Quill plays the flute. Ombo Tarn lives in Oreby."


def asked(kind: str, n: int, **settings: Any) -> list[tuple[str, str, Question]]:
    """(context, question, case) of generated cases that end in a question, without the cases' earlier questions."""
    cases = [q for q in world().questions(kind, 3 * n, SEED, **settings) if q.prompt.endswith("ANSWER:")][:n]
    assert len(cases) == n
    split = []
    for case in cases:
        before, _, question = case.prompt.removesuffix("ANSWER:").rpartition("QUESTION:")
        kept = [line for line in before.splitlines() if not re.match("QUESTION:|MEMORY:", line)]
        split.append(("\n".join(kept), question.strip(), case))
    return split


def accuracy(reader: Any, cases: list[tuple[str, str, Question]]) -> float:
    pairs = [(question, context) for context, question, _ in cases]
    many = getattr(reader, "answer_many", None)
    replies = many(pairs) if many else [reader.answer(*pair) for pair in pairs]
    return sum(reply.text == case.answer.strip() for reply, (_, _, case) in zip(replies, cases)) / len(cases)


def test_the_prompt_is_the_one_of_the_training_texts() -> None:
    for kind in ("open-book", "memory"):
        for context, question, case in asked(kind, 10, split="unseen"):
            if case.prompt.count("QUESTION:") == 1 and (kind == "memory" or "\n" not in context.strip()):
                assert reader_prompt(question, context) == case.prompt


def test_prompts_of_other_forms() -> None:
    assert reader_prompt("Who", "a b\n\n c.  d!\n") == "a b. c. d! \nQUESTION: Who? ANSWER:"
    assert reader_prompt("Who?", "") == "QUESTION: Who? ANSWER:"
    notes = "[2023-05-08] Ada plays.\n2023-12-01T10:00: Ben sings\n[8 May] Cleo reads."
    assert reader_prompt("Who?", notes) == (
        "MEMORY:\n[8 May] Ada plays. \n[1 December] Ben sings. \n[8 May] Cleo reads. \nQUESTION: Who? ANSWER:"
    )
    assert reader_prompt("Who?", "[2023-99-99] x.") == "[2023-99-99] x. \nQUESTION: Who? ANSWER:"


def test_the_embedded_reader_answers_open_book_questions_about_people_it_never_saw() -> None:
    assert accuracy(EmbeddedReader(), asked("open-book", 100, split="unseen", distance=0)) >= 0.9


def test_the_embedded_reader_finds_its_fact_among_dated_notes() -> None:
    cases = asked("memory", 60, split="unseen", notes=10)
    assert accuracy(EmbeddedReader(), cases) >= 0.65
    assert accuracy(EmbeddedReader(), [("", question, case) for _, question, case in cases]) <= 0.45


def test_many_questions_at_once_get_the_answers_of_one_at_a_time() -> None:
    pairs = [(question, context) for context, question, _ in asked("memory", 9, split="unseen", notes=4)]
    reader = EmbeddedReader()
    single, together = [reader.answer(*pair) for pair in pairs], reader.answer_many(pairs, batch=4)
    assert [(r.text, r.usage, r.stopped) for r in together] == [(r.text, r.usage, r.stopped) for r in single]
    assert reader.answer_many([]) == []
    with pytest.raises(BadInput, match="batch"):
        reader.answer_many(pairs, batch=0)
    with pytest.raises(BadInput, match="question is empty"):
        reader.answer_many([*pairs, ("", "context")])


def test_tokens_and_ends_are_told() -> None:
    reply = EmbeddedReader().answer("Where does Zuri Quill live?", FACTS)
    assert (reply.text, reply.stopped, reply.usage.calls) == ("Buwick", "stop", 1)
    assert 20 < reply.usage.prompt_tokens < 80
    assert reply.usage.completion_tokens > 1
    assert reply.seconds > 0
    assert EmbeddedReader().label.startswith("embedded model")


def test_a_context_that_is_too_long_is_an_error_or_is_cut_and_told() -> None:
    lines = [FACTS, *(f"Ombo Tarn saw {i} boats in the wide harbour of the old town." for i in range(200))]
    long = "\n".join(lines)
    with pytest.raises(ContextTooLong, match=r"the messages have \d+ tokens and the embedded model reads at most 1024"):
        EmbeddedReader().answer("Where does Zuri Quill live?", long)
    cut = EmbeddedReader(overflow="drop-last").answer("Where does Zuri Quill live?", long)
    assert cut.usage.prompt_tokens <= 1000
    assert re.fullmatch(r"1\d\d lines of the context did not fit and were left out", cut.problem)
    with pytest.raises(ContextTooLong):
        EmbeddedReader(overflow="drop-last").answer("Where " * 2000, FACTS)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"model": "gpt"}, BadInput), ({"overflow": "?"}, BadInput), ({"model": "bert"}, (BadInput, UnknownName))],
)
def test_readers_are_checked(settings: dict, error: Any) -> None:
    with pytest.raises(error):
        EmbeddedReader(**settings)


# -- the same behind the chat protocol --------------------------------------------------------------------------------


class Answer(BaseModel):
    text: str


class Person(BaseModel):
    name: str
    town: str


QUESTION = f"{FACTS}\nWhere does Ombo Tarn live?"


def test_the_embedded_chat_model_reads_what_stands_before_the_question() -> None:
    llm = EmbeddedChat()
    assert llm.chat(QUESTION).text == "Oreby"
    turns = [Message("system", "Be brief."), Message("user", FACTS), Message("user", "Where does Zuri Quill live?")]
    assert llm.chat(turns).text == "Buwick"
    several = "Zovi Tarn was taught by Gavi Klandal.\nWho taught Zovi Tarn?"
    pieces = list(llm.stream(several))
    assert "".join(pieces).strip() == llm.chat(several).text
    assert len(pieces) > 1


def test_it_fills_one_text_field_and_leaves_other_schemas_to_the_rule() -> None:
    llm, ledger = EmbeddedChat(), Ledger()
    assert ask(llm, QUESTION, Answer, ledger=ledger).parsed == Answer(text="Oreby")
    rule = Person(name="?", town="?")
    reply = ask(llm, QUESTION, Person, fallback=lambda: rule, ledger=ledger)
    assert reply.parsed == rule
    assert "fills no schema of several fields" in str(reply.fallback)
    assert (ledger.answers, ledger.fallbacks, ledger.usage.calls) == (2, 1, 1)
    with pytest.raises(LlmError, match="gave no Person after 0 requests"):
        ask(llm, QUESTION, Person)


# -- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "context", "answer"),
    [
        ("Where does Ombo Tarn live?", FACTS, "Oreby"),
        ("What does Zuri Quill play?", FACTS, "flute"),
        ("Who plays the flute?", FACTS, "Zuri Quill"),
        ("When did Zuri Quill arrive?", "Zuri Quill arrived on 8 May 2023. It rained on 9 May 2023.", "8 May 2023"),
        ("How many boats does Ombo Tarn own?", "Ombo Tarn owns 12 boats. Zuri Quill owns 3.", "12"),
        ("Who taught Ombo Tarn?", "Ombo Tarn was taught by Lena Voss.", "Lena Voss"),
        ("Where does Lena Voss live?", FACTS, "unknown"),
        ("Where does Ombo Tarn live?", "", "unknown"),
        ("¿?", FACTS, "unknown"),
    ],
)
def test_the_extractive_reader_picks_the_span(question: str, context: str, answer: str) -> None:
    reply = ExtractiveReader().answer(question, context)
    assert reply.text == answer
    assert (reply.attempts, reply.usage.calls) == (0, 0)
    assert "no language model" in ExtractiveReader().label


def test_the_extractive_reader_gives_whole_sentences_when_asked_to() -> None:
    assert ExtractiveReader(span=False).answer("Where does Ombo Tarn live?", FACTS).text == "Ombo Tarn lives in Oreby."


def test_the_extractive_reader_reads_part_of_what_the_model_reads() -> None:
    cases = asked("open-book", 40, split="unseen", distance=0)
    shared = accuracy(ExtractiveReader(), cases)
    assert 0.5 <= shared < accuracy(EmbeddedReader(), cases)

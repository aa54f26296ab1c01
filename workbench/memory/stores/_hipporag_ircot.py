"""Iterative retrieval (IRCoT, Trivedi et al. 2023): retrieve, write one thought, retrieve with the thought, and so on.

The multi-step rival that HippoRAG is compared with, and its partner (IRCoT + HippoRAG). Each thought is one question
to a language model; without one, a rule takes the most fitting sentence of what was retrieved, and the ledger counts
how often a model was, or would have been, asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel

from workbench.checks import whole
from workbench.llm import NO_MODEL, ChatModel, Ledger, Message, Reply, ask, rules
from workbench.memory.stores.base import check_read

STOP = "so the answer is"
#: Passages that are shown to the model that answers.
READ = 5

_SHOWN = (
    "Question: Which river flows past the town where Ina Kolb is mayor?\n\n"
    "Passages:\nIna Kolb\nIna Kolb, a former pilot, is the mayor of Mirel Harbour.\n\nThoughts so far: none"
)


class Thought(BaseModel):
    """One sentence; it ends the chain when it says "So the answer is:"."""

    thought: str = ""


class Answered(BaseModel):
    """A thought and the answer in a few words."""

    thought: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Chain:
    """What an iterative retrieval did: ids best first, the queries in turn (the question, then thoughts), and calls.

    ``calls`` counts thoughts asked for, whoever wrote them.
    """

    ids: tuple[int, ...]
    queries: tuple[str, ...]
    calls: int
    by: str


Retrieve = Callable[[str], Sequence[tuple[int, float]]]


def ircot(
    question: str,
    retrieve: Retrieve,
    text_of: Callable[[int], str],
    *,
    llm: ChatModel | None = None,
    ledger: Ledger | None = None,
    k: int = 10,
    steps: int = 4,
) -> Chain:
    """At most ``steps`` retrievals with a thought between two of them (MuSiQue: 4 steps; 2Wiki and HotpotQA: 2).

    ``retrieve`` gives (id, score) of passages, best first, scores between 0 and 1; a passage keeps the best score it
    had in any step, and equal ones the order in which they were found. ``k`` passages are shown for each thought. The
    chain ends early at "So the answer is:" or when a thought says nothing new.
    """
    k, steps = whole("k", k), whole("steps", steps)
    check_read(question)
    best: dict[int, float] = {}
    queries, thoughts, calls, by = [question], list[str](), 0, NO_MODEL
    for step in range(steps):
        found = list(retrieve(queries[-1]))
        for item, score in found:
            best[item] = max(score, best.get(item, float("-inf")))
        if step == steps - 1:
            break
        thought, by = _think(question, [text_of(item) for item, _ in found[:k]], thoughts, llm, ledger)
        calls += 1
        if not thought or thought in thoughts or STOP in thought.lower():
            break
        thoughts.append(thought)
        queries.append(thought)
    order = sorted(best, key=lambda item: -best[item])  # stable: found first stays first
    return Chain(tuple(order), tuple(queries), calls, by)


def _think(
    question: str, passages: Sequence[str], thoughts: Sequence[str], llm: ChatModel | None, ledger: Ledger | None
) -> tuple[str, str]:
    task = (
        "Answer the question step by step from the passages. Write only the next thought, one sentence. When the "
        'thoughts suffice, write "So the answer is:" and the answer.'
    )
    listed = "\n\n".join(passages)
    asked = f"Question: {question}\n\nPassages:\n{listed}\n\nThoughts so far: {' '.join(thoughts) or 'none'}"
    shown = Thought(thought="Ina Kolb is the mayor of Mirel Harbour.").model_dump_json()
    messages = [Message("system", task), Message("user", _SHOWN), Message("assistant", shown), Message("user", asked)]

    def by_rule() -> Thought:
        return Thought(thought=next_sentence(question, passages, thoughts))

    reply = ask(llm, messages, Thought, fallback=by_rule, ledger=ledger, max_tokens=128)
    assert isinstance(reply.parsed, Thought)
    label = NO_MODEL if llm is None or reply.fallback is not None else llm.label
    return reply.parsed.thought.strip(), label


def next_sentence(question: str, passages: Sequence[str], thoughts: Sequence[str] = ()) -> str:
    """The sentence of ``passages`` that says most about the question and the last thought; "" when none does.

    Its score is the sum of the weights of the words it shares with either, rare words (in few of these sentences)
    counting more, divided by the root of its length; a title's words are not counted. Ties: the earlier passage.
    """
    wanted = set(rules.content_words(" ".join([question, *thoughts[-1:]])))
    found = [pair for passage in passages for pair in _sentences(passage)]
    held = Counter(word for _, bag in found for word in bag)
    best, chosen = 0.0, ""
    for sentence, bag in found:
        score = sum(1.0 / held[word] for word in wanted & bag) / max(len(bag), 1) ** 0.5
        if score > best and sentence not in thoughts:
            best, chosen = score, sentence
    return chosen


@lru_cache(maxsize=4_096)
def _sentences(passage: str) -> tuple[tuple[str, frozenset[str]], ...]:
    """The sentences below a passage's title with their content words; the same passages come back again and again."""
    found = rules.sentences(passage.split("\n", 1)[-1])
    return tuple((sentence, frozenset(rules.content_words(sentence))) for sentence in found)


class ThoughtReader:
    """Answers from the best passages with one thought before the answer (the paper's reader prompt, one-shot).

    Without a language model, or when it fails, ``workbench.llm``'s extractive reader picks the answer.
    """

    name = "hipporag-reader"

    def __init__(self, llm: ChatModel | None = None, ledger: Ledger | None = None):
        self.llm, self.ledger = llm, ledger if ledger is not None else Ledger()

    @property
    def label(self) -> str:
        return NO_MODEL if self.llm is None else self.llm.label

    def answer(self, question: str, context: str) -> Reply:
        """``Reply.text`` is the answer, ``Reply.parsed`` holds the thought as well."""
        from dataclasses import replace

        from workbench.llm.extractive import ExtractiveReader

        def by_rule() -> Answered:
            return Answered(answer=ExtractiveReader().answer(question, context).text)

        task = "Read the passages and answer the question: one thought, then the answer in as few words as possible."
        shown = Answered(thought="Ina Kolb governs Mirel Harbour, which stands on the Sele.", answer="Sele")
        messages = [
            Message("system", task),
            Message("user", _SHOWN),
            Message("assistant", shown.model_dump_json()),
            Message("user", f"Question: {question}\n\nPassages:\n{context}"),
        ]
        reply = ask(self.llm, messages, Answered, fallback=by_rule, ledger=self.ledger, max_tokens=256)
        assert isinstance(reply.parsed, Answered)
        return replace(reply, text=re.sub(r"^\s*answer\s*:\s*", "", reply.parsed.answer, flags=re.IGNORECASE).strip())

"""Streams of episodes with known boundaries and facts, and questions asked of them through an episodic memory.

A question is asked as a trial: the memory is put back afterwards. *Fact recall* is the share of the asked fact's tokens
that lie in the events which a layer fetched for the question, averaged over the layers that fetch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.checks import is_whole, whole
from workbench.errors import BadInput

if TYPE_CHECKING:
    from workbench.memory.cache.em_llm import EMLLM
    from workbench.models import LoadedModel

KINDS = ("number", "next")


@dataclass(frozen=True)
class Ask:
    """A question on one fact, which stands at tokens [start, end) of the stream."""

    prompt: str
    answer: str
    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class EpisodeStream:
    """Token ids, the tokens at which episodes begin (the first one, at 0, left out), and questions."""

    ids: tuple[int, ...]
    boundaries: tuple[int, ...]
    asks: tuple[Ask, ...]
    text: str


def episode_stream(
    tokenizer: Any, seed: int, *, tokens: int, questions: int = 2, behind: int = 128, kind: str = "number"
) -> EpisodeStream:
    """A seeded stream of about ``tokens`` tokens; every question is on a fact more than ``behind`` tokens back.

    ``kind``: ``number`` (of someone's key) or ``next`` (who came after: the answer is in the following episode).
    """
    from workbench_datasets._world_skills import episodes
    from workbench_datasets.small_world import world

    if kind not in KINDS:
        raise BadInput(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    for name, value, least in (("tokens", tokens, 1), ("questions", questions, 0), ("behind", behind, 0)):
        whole(name, value, least)
    document = episodes(world(), random.Random(f"em-llm:{seed}"), tokens=tokens, questions=1)
    text = document.text[: document.text.index("\nQUESTION:")]
    coded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    starts = np.array([first for first, _ in coded["offset_mapping"]])
    place = lambda character: int(np.searchsorted(starts, character, side="right") - 1)  # noqa: E731
    asks = _asks(document.meta, text, place, kind)
    asks = [ask for ask in asks if ask.end < len(starts) - behind]
    if len(asks) < questions:
        raise BadInput(f"tokens={tokens} leaves {len(asks)} facts more than {behind} tokens back, not {questions}")
    asks = random.Random(seed).sample(asks, questions)
    edges = tuple(place(at + (at > 0)) for at in document.meta["boundaries"][1:])
    return EpisodeStream(tuple(coded["input_ids"]), edges, tuple(asks), text)


def _asks(meta: dict[str, Any], text: str, place: Any, kind: str) -> list[Ask]:
    asks, edges = [], [*meta["boundaries"], len(text)]
    for index, fact in enumerate(meta["facts"]):
        told = index if kind == "number" else index + 1
        if told >= len(meta["facts"]):
            continue
        line = f"he key of {fact['person']} has" if kind == "number" else f"n the {meta['facts'][told]['place']} "
        first = text.index(line, edges[told]) - 1
        last = text.index(".", first)
        asked = "What is the number of the key of {}?" if kind == "number" else "Who came after {}?"
        answer = fact["number"] if kind == "number" else meta["facts"][told]["person"]
        prompt = f"\nQUESTION: {asked.format(fact['person'])} ANSWER:"
        asks.append(Ask(prompt, f" {answer}", place(first), place(last) + 1, kind))
    return asks


def read_stream(loaded: LoadedModel, memory: EMLLM, stream: EpisodeStream) -> None:
    """Stream the tokens through a memory that is bound to the model."""
    memory.reset()
    memory.feed(torch.tensor([stream.ids], device=loaded.device))


@torch.no_grad()
def ask(loaded: LoadedModel, memory: Any, question: Ask) -> dict[str, float]:
    """``correct`` (the greedy answer is the gold one) and ``fact_recall``; the memory is left as it was."""
    moment = memory.snapshot()
    prompt = loaded.tokenizer(question.prompt, add_special_tokens=False)["input_ids"]
    gold = loaded.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
    try:
        logits = memory.write(torch.tensor([prompt], device=loaded.device))[0, -1]
        recall = fact_recall(memory, question)
        said = []
        for _ in gold:
            said.append(int(logits.argmax()))
            if said != gold[: len(said)]:
                break
            logits = memory.write(torch.tensor([[said[-1]]], device=loaded.device))[0, -1]
    finally:
        memory.restore(moment)
    return {"correct": float(said == gold), "fact_recall": recall}


def fact_recall(memory: EMLLM, question: Ask) -> float:
    """Share of the fact's tokens inside the events of the last pass, mean over layers that may fetch; 0 without any."""
    layers = [layer for layer in range(len(memory.layers)) if memory.reads_events(layer)]
    wanted, shares = set(range(question.start, question.end)), []
    for layer in layers:
        best, near = memory.last_retrieved.get(layer, ([], []))
        held = {p for e in [*best, *near] for p in range(memory.stored[e].start, memory.stored[e].end)}
        shares.append(len(wanted & held) / len(wanted))
    return float(np.mean(shares)) if shares else 0.0


def boundary_scores(found: Sequence[int], gold: Sequence[int], n: int, tolerance: int = 2) -> dict[str, float]:
    """F1 of boundaries within ``tolerance`` tokens (each gold one matched once); Wasserstein distance (tokens)."""
    from scipy.stats import wasserstein_distance

    free, hits = sorted(gold), 0
    for at in sorted(found):
        near = [g for g in free if abs(g - at) <= tolerance]
        if near:
            free.remove(min(near, key=lambda g: abs(g - at)))
            hits += 1
    f1 = 2 * hits / (len(found) + len(gold)) if len(found) + len(gold) else 0.0
    distance = wasserstein_distance(list(found), list(gold)) if len(found) and len(gold) else float(n)
    return {"boundary F1": f1, "Wasserstein distance": float(distance), "events": float(len(found) + 1)}


def passkey_stream(tokenizer: Any, seed: int, *, tokens: int) -> EpisodeStream:
    """About ``tokens`` tokens of filler after a five-digit pass key, and the question for it."""
    from workbench_datasets._world_skills import passkey
    from workbench_datasets.small_world import world

    whole("tokens", tokens, 1)
    document = passkey(world(), random.Random(f"em-llm-passkey:{seed}"), distance=tokens)
    at = document.text.index("\nQUESTION:")
    answer = document.answers[-1].text
    body = document.text[:at]
    coded = tokenizer(body, return_offsets_mapping=True, verbose=False)
    end = body.index("is the pass key.")
    stop = next(i for i, (_, last) in enumerate(coded["offset_mapping"]) if last >= end)
    question = Ask("\nQUESTION: What is the pass key? ANSWER:", f" {answer}", 0, stop, "passkey")
    return EpisodeStream(tuple(coded["input_ids"]), (), (question,), body)


def order_stream(tokenizer: Any, seed: int, *, events: int = 32) -> EpisodeStream:
    """A log of ``events`` events and the question which of two came first (or last); the answer is A or B."""
    from workbench_datasets._world_order import order
    from workbench_datasets.small_world import world

    if not is_whole(events, 2, 32):
        raise BadInput(f"events={events!r}: a log has 2 to 32 of them, as in the model's training")
    document = order(world(), random.Random(f"em-llm-order:{seed}"), size=events, questions=1)
    at, end = document.text.index("QUESTION:"), document.text.index("ANSWER:") + len("ANSWER:")
    body = document.text[:at].rstrip("\n")
    ids = tuple(tokenizer(body)["input_ids"])
    question = Ask("\n" + document.text[at:end], f" {document.answers[-1].text.strip()}", 0, len(ids), "order")
    return EpisodeStream(ids, (), (question,), body)


def prose_stream(tokenizer: Any, number: int, *, tokens: int, book: str = "sherlock-holmes") -> EpisodeStream:
    """Paragraphs of a held-out book, ``number`` x ``tokens`` tokens into it; each paragraph's begin is a boundary.

    Paragraphs are joined by a space: nothing in the text shows the break. Raises FileNotFoundError without the book,
    BadInput behind its end.
    """
    from workbench_datasets import books

    whole("number", number, 0)
    whole("tokens", tokens, 1)
    parts = [part for part in books.read(book).split("\n\n") if len(part.split()) >= 12]
    ids: list[int] = [tokenizer.bos_token_id]
    edges: list[int] = []
    skip = number * tokens
    for part in parts:
        coded = tokenizer(f" {part}", add_special_tokens=False, verbose=False)["input_ids"]
        if skip > 0:
            skip -= len(coded)
            continue
        if len(ids) > 1:
            edges.append(len(ids))
        ids += coded
        if len(ids) >= tokens:
            break
    if len(ids) == 1:
        raise BadInput(f"number={number} of {tokens} tokens lies behind the end of {book}; give a smaller one")
    return EpisodeStream(tuple(ids[:tokens]), tuple(at for at in edges if at < tokens), (), "")

"""The curriculum of the embedded models: what share of the tokens each kind of document has, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Portion:
    """One line of the mixture: kind of document, share of tokens, weight of answer tokens in the loss, reason.

    ``noise`` is the share of input tokens that are replaced (targets stay), against learning the books by heart.
    """

    kind: str
    share: float
    answer_weight: float
    reason: str
    noise: float = 0.0


MIXTURE: tuple[Portion, ...] = (
    Portion(
        "books",
        0.075,
        1,
        "English prose, about 13 passes in all: more were measured to be learned by heart",
        noise=0.15,
    ),
    Portion("repeat", 0.04, 1, "repeated random tokens and passages: induction heads and long verbatim copying"),
    Portion("facts", 0.11, 3, "known facts by Zipf exposure in many frames: closed-book knowledge"),
    Portion("biography", 0.03, 2, "coherent passages and the side facts they depend on (adaptive-chameleon)"),
    Portion("open-book", 0.12, 4, "people whose facts change in every text: reading, not remembering"),
    Portion("conflict", 0.07, 4, "false statements about known people, resolved at recorded rates"),
    Portion("passage", 0.04, 4, "questions with supporting, missing or (rho) contradicting passages"),
    Portion("two-hop", 0.04, 3, "two known facts joined; hard, so it also sees chains spelled out"),
    Portion("two-hop-context", 0.04, 4, "bridge questions over notes in the text (a-mem)"),
    Portion("episodes", 0.07, 4, "topic changes with facts asked much later, up to the full context (em-llm)"),
    Portion("memory", 0.06, 4, "answering from pasted, dated notes, with 'unknown' (memorybank, longmemeval)"),
    Portion("passkey", 0.02, 4, "a number at any distance up to the full context"),
    Portion("list-recall", 0.015, 1, "repeating lists and naming the successor"),
    Portion("remaining", 0.10, 4, "the remaining thing and its colour; the hardest skill, densely supervised"),
    Portion("ioi", 0.015, 4, "a repeated name is not the answer; single names are (talking-heads)"),
    Portion("classification", 0.04, 4, "label mapping drawn for each text (longmem)"),
    Portion("order", 0.09, 5, "which of two events came first; needs many answers, short logs most often"),
    Portion("order-prose", 0.05, 5, "the same on real prose (sequence-order-recall)"),
    Portion("grocery", 0.02, 4, "an order recalled after up to 40 other questions (sirllm)"),
    Portion("rock-paper-scissors", 0.025, 2, "the reply that beats the most frequent move so far (sirllm)"),
    Portion("chat", 0.015, 1, "replies that repeat what was said (sirllm)"),
)


def world_makers(world: Any) -> dict[str, Callable[[Any], Any]]:
    """Every text kind of the mixture as ``rng -> Document``; dialogues become documents with marked replies."""
    from workbench_datasets import dialogues
    from workbench_datasets.small_world import KINDS, Document

    def of(kind: str) -> Callable[[Any], Document]:
        return lambda rng: world.document(kind, rng)

    def talk(make: Callable[..., Any], **settings: tuple[int, ...]) -> Callable[[Any], Document]:
        def write(rng: Any) -> Document:
            return _as_document(make(rng, **{name: rng.choice(values) for name, values in settings.items()}))

        return write

    return {
        **{kind: of(kind) for kind in KINDS},
        "grocery": talk(dialogues.grocery, distractors=(0, 2, 4, 8, 12, 20, 40)),
        "rock-paper-scissors": talk(dialogues.rock_paper_scissors, rounds=(8, 20, 40, 60)),
        "chat": talk(dialogues.chat),
    }


def _as_document(dialogue: Any) -> Any:
    from workbench_datasets.small_world import Answer, Document

    text, answers = "", []
    for turn in dialogue.rounds:
        text += turn.prompt
        answers.append(Answer(len(text), len(text) + 1 + len(turn.answer), turn.answer, turn.options))
        text += f" {turn.answer}\n"
    return Document(dialogue.kind, text, tuple(answers))

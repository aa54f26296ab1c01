"""Documents with marked answers, and the plain filler sentences between facts."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench_datasets import _world_words as words


@dataclass(frozen=True)
class Answer:
    """A stretch of a document that a reader who understood the rest can predict; ``start`` is at its leading blank."""

    start: int
    end: int
    text: str
    options: tuple[str, ...] = ()
    asked: bool = True
    meta: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Document:
    """Text with gold answers as character spans; training does not learn the first ``quiet`` characters."""

    kind: str
    text: str
    answers: tuple[Answer, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
    quiet: int = 0

    def pieces(self) -> list[tuple[str, str]]:
        """The text cut at the answers: ``(piece, role)`` with role quiet, text or answer; joined they are the text."""
        cut, at = [(self.text[: self.quiet], "quiet")] if self.quiet else [], self.quiet
        for answer in self.answers:
            if answer.start > at:
                cut.append((self.text[at : answer.start], "text"))
            cut.append((self.text[answer.start : answer.end], "answer"))
            at = answer.end
        return [*cut, (self.text[at:], "text")] if at < len(self.text) else cut


@dataclass(frozen=True)
class Question:
    """A prompt that ends right before its answer; ``answer`` begins with a blank exactly as in training text."""

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    kind: str = ""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)


class Writer:
    """Collects text and answers; ``say`` makes a sentence, ``answer`` marks what a reader should predict."""

    def __init__(self, kind: str):
        self.kind, self.parts, self.answers, self.length = kind, [], [], 0  # type: ignore[var-annotated]
        self.meta: dict[str, Any] = {}
        self.quiet = 0

    def add(self, text: str) -> Writer:
        self.parts.append(text)
        self.length += len(text)
        return self

    def say(self, text: str) -> Writer:
        return self.add(text[0].upper() + text[1:] + ". ")

    def answer(self, text: str, options: Sequence[str] = (), asked: bool = True, **meta: Any) -> Writer:
        start = self.length
        self.add(f" {text}")
        self.answers.append(Answer(start, self.length, text, tuple(options), asked, meta))
        return self

    def state(self, frame: str, subject: str, obj: str, asked: bool = False, **meta: Any) -> Writer:
        """A statement whose object (always last in a frame) is marked as predictable."""
        head = frame.format(s=subject, o="").rstrip()
        self.add(head[0].upper() + head[1:])
        return self.answer(obj, asked=asked, **meta).add(". ")

    def ask(self, question: str, answer: str, options: Sequence[str] = (), **meta: Any) -> Writer:
        self.add(f"QUESTION: {question} ANSWER:")
        return self.answer(answer, options, **meta).add(".\n")

    def done(self) -> Document:
        return Document(self.kind, "".join(self.parts), tuple(self.answers), self.meta, self.quiet)


def length_of(text: str) -> int:
    """About how many tokens a text of the world's vocabulary has: words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


_ADJECTIVES = (
    "old", "narrow", "quiet", "dusty", "wet", "heavy", "broken", "empty", "cold", "bright", "wooden", "rusty",
    "small", "long", "muddy", "green", "dark", "warm", "crooked", "pale",
)  # fmt: skip
_THINGS = (
    "road", "gate", "wall", "field", "cart", "fence", "bench", "roof", "stream", "path", "window", "barrel", "door",
    "chimney", "well", "hedge", "lane", "yard", "stair", "wagon", "hill", "pond", "bank", "sign", "shed",
)  # fmt: skip
_DOINGS = (
    "was {a} that morning",
    "looked {a} in the evening light",
    "had been {a} for many years",
    "stood behind the {t}",
    "led past the {t} to a {a} {t}",
    "was mended after the storm",
    "was covered with leaves",
    "seemed {a} to everybody",
    "had no {t} at all",
    "lay beside the {t}",
    "needed new paint",
    "belonged to nobody",
)  # fmt: skip
_OPENINGS = ("the {a} {t}", "every {t}", "no {t}", "the {t} near the {t2}", "a {a} {t}", "one {t}")


def filler_sentence(rng: random.Random) -> str:
    """A plain sentence about nothing that is ever asked."""
    pick = rng.choice
    head = pick(_OPENINGS).format(a=pick(_ADJECTIVES), t=pick(_THINGS), t2=pick(_THINGS))
    tail = pick(_DOINGS).replace("{a}", pick(_ADJECTIVES)).replace("{t}", pick(_THINGS))
    return f"{head[0].upper()}{head[1:]} {tail}."


def filler(rng: random.Random, tokens: int, prose: Sequence[str] = (), share: float = 0.5) -> str:
    """About ``tokens`` tokens of filler (a blank at the end), a ``share`` of times from ``prose`` paragraphs if any."""
    parts: list[str] = []
    left = tokens
    real = bool(prose) and rng.random() < share
    while left > 0:
        part = rng.choice(prose) if real else filler_sentence(rng)
        if real and length_of(part) > left:
            part = " ".join(part.split()[: max(1, int(left * 0.8))])
        parts.append(part)
        left -= length_of(part) + (len(part) // 40 if real else 0)
    return " ".join(parts) + " " if parts else ""


def zipf(rng: random.Random, items: Sequence[str]) -> str:
    """One of ``items``, the k-th with weight 1 / k: frames are of unequal frequency."""
    return rng.choices(items, [1 / (k + 1) for k in range(len(items))])[0]


def person_name(rng: random.Random) -> str:
    return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"

"""Dialogues with gold answers for memories that must hold something over many rounds (paper: SirLLM, 2405.12528).

Three kinds, all seeded, all wording ours: *grocery* (an order, unrelated questions, then "which item?"), *rock-paper-
scissors* against a player with a favourite move, and short *chats* whose reply must fit what was said before. Every
round is written in one frame, ``USER: {text} ASSISTANT: {reply}\\n``; the same generators serve training and
evaluation, with different seeds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workbench_datasets import _dialogue_text as words
from workbench_datasets._checks import whole

KINDS = ("grocery", "rock-paper-scissors", "chat")
MOVES = ("rock", "paper", "scissors")
BEATS = {"rock": "paper", "paper": "scissors", "scissors": "rock"}  # the move that beats the key
# Shares of rock, paper, scissors in the first 2,000 rounds of the paper's three players.
PLAYERS: dict[str, tuple[float, float, float]] = {
    "rock": (0.50, 0.31, 0.19),
    "paper": (0.19, 0.50, 0.30),
    "scissors": (0.27, 0.21, 0.52),
}
GROCERIES = words.GROCERIES
RECALL_QUESTION = "which GROCERY did I ask you to buy?"


def frame(text: str, reply: str = "") -> str:
    """One round as text; without a reply the prompt that asks for it (no blank at the end)."""
    return f"USER: {text} ASSISTANT: {reply}\n" if reply else f"USER: {text} ASSISTANT:"


@dataclass(frozen=True)
class Round:
    """One user turn with the replies to choose from; ``answer`` is always one of ``options``."""

    text: str
    answer: str
    options: tuple[str, ...]
    kind: str
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def prompt(self) -> str:
        return frame(self.text)

    def render(self, reply: str | None = None) -> str:
        return frame(self.text, self.answer if reply is None else reply)


@dataclass(frozen=True)
class Dialogue:
    """Rounds that belong to one conversation; a memory is emptied between two dialogues, never inside one."""

    kind: str
    rounds: tuple[Round, ...]
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        return "".join(turn.render() for turn in self.rounds)

    @property
    def scored(self) -> tuple[Round, ...]:
        """Rounds whose reply is a choice (an order is only acknowledged)."""
        return tuple(turn for turn in self.rounds if len(turn.options) > 1)


def _shuffled(rng: random.Random, answer: str, others: list[str]) -> tuple[str, ...]:
    options = [answer, *others]
    rng.shuffle(options)
    return tuple(options)


def _distractor(rng: random.Random, question: tuple[str, str]) -> Round:
    text, answer = question
    wrong = rng.sample([other for _, other in words.QUESTIONS if other != answer], 3)
    return Round(text, answer, _shuffled(rng, answer, wrong), "distractor")


def grocery(rng: random.Random, *, distractors: int = 12, options: int = 4) -> Dialogue:
    """An order, ``distractors`` unrelated questions, and the question which item was ordered."""
    distractors = whole("distractors", distractors, 0)
    if not 2 <= options <= len(GROCERIES):
        raise ValueError(f"options={options!r}: expected 2 to {len(GROCERIES)}")
    item, *others = rng.sample(GROCERIES, options)
    asked = [rng.choice(words.QUESTIONS) for _ in range(max(0, distractors - len(words.QUESTIONS)))]
    asked += rng.sample(words.QUESTIONS, min(distractors, len(words.QUESTIONS)))
    order = Round(f"buy the GROCERY: {item}", "OK", ("OK",), "order", {"item": item})
    recall = Round(RECALL_QUESTION, item, _shuffled(rng, item, others), "recall", {"item": item})
    return Dialogue("grocery", (order, *(_distractor(rng, q) for q in asked), recall), {"item": item})


def best_reply(history: list[str]) -> str:
    """The move that beats the user's most frequent move so far; ties go to the most recent of the tied moves."""
    if not history:
        raise ValueError("history is empty: expected at least one of the user's moves")
    counts = Counter(history)
    top = max(counts.values())
    return BEATS[next(move for move in reversed(history) if counts[move] == top)]


def outcome(reply: str, move: str) -> str:
    """``win``, ``tie`` or ``lose`` for the assistant who plays ``reply`` against the user's ``move``."""
    if reply == move:
        return "tie"
    return "win" if BEATS[move] == reply else "lose"


def rock_paper_scissors(rng: random.Random, *, player: str | None = None, rounds: int = 40) -> Dialogue:
    """``rounds`` rounds in which the user tells the last move and plays ``meta['next']`` against the reply."""
    rounds = whole("rounds", rounds)
    name = rng.choice(sorted(PLAYERS)) if player is None else player
    if name not in PLAYERS:
        raise ValueError(f"player={name!r}: expected one of {', '.join(PLAYERS)}")
    moves = rng.choices(MOVES, PLAYERS[name], k=rounds + 1)
    turns = []
    for index in range(rounds):
        reply = best_reply(moves[: index + 1])
        meta = {"last": moves[index], "next": moves[index + 1], "round": index}
        turns.append(Round(f"my last move was {moves[index]}. your move?", reply, MOVES, "rps", meta))
    return Dialogue("rock-paper-scissors", tuple(turns), {"player": name, "moves": tuple(moves)})


def _fillers(rng: random.Random) -> dict[str, str]:
    person = rng.choice(words.PEOPLE)
    return {
        "person": person,
        "Person": person[0].upper() + person[1:],
        "your_person": person.replace("my ", "your ", 1),
        "place": rng.choice(words.PLACES),
        "mood": rng.choice(words.MOODS),
        "weather": rng.choice(words.WEATHER),
        "pet": rng.choice(words.PETS),
        "hobby": rng.choice(words.HOBBIES),
        "time": rng.choice(words.TIMES),
    }


def _other_replies(rng: random.Random, answer: str, n: int) -> list[str]:
    replies: list[str] = []
    while len(replies) < n:
        _, reply = rng.choice(rng.choice(words.CHATS))
        text = reply.format(**_fillers(rng))
        if text != answer and text not in replies:
            replies.append(text)
    return replies


def chat(rng: random.Random, *, options: int = 4) -> Dialogue:
    """A short talk; each reply is to be chosen among replies of other talks (and other fillers)."""
    options = whole("options", options, 2)
    turns, fill = rng.choice(words.CHATS), _fillers(rng)
    rounds = []
    for text, reply in turns:
        answer = reply.format(**fill)
        choices = _shuffled(rng, answer, _other_replies(rng, answer, options - 1))
        rounds.append(Round(text.format(**fill), answer, choices, "chat"))
    return Dialogue("chat", tuple(rounds), {key: fill[key] for key in ("person", "place", "pet", "hobby")})


def dialogues(kind: str, n: int, seed: int = 0, **settings: Any) -> list[Dialogue]:
    """``n`` dialogues of one kind, equal for equal ``(kind, n, seed, settings)``; more of them extends the list."""
    makers: dict[str, Callable[..., Dialogue]] = {
        "grocery": grocery,
        "rock-paper-scissors": rock_paper_scissors,
        "chat": chat,
    }
    if kind not in makers:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    n = whole("n", n)
    return [makers[kind](random.Random(f"{kind}:{seed}:{i}"), **settings) for i in range(n)]

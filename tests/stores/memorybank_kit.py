"""A small MemoryBank and what is told to it."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.memory.durable import seconds
from workbench.memory.stores.memorybank import PIECES, MemoryBank

DAY = 86_400.0
NOON = seconds("2023-05-01T12:00:00")


@dataclass(frozen=True)
class Said:
    query: str
    response: str
    time: float
    user: str = "Mara"
    key: str | None = None


def talk(days: int = 4, user: str = "Mara") -> list[Said]:
    """A few exchanges a day, every fact on a day of its own."""
    facts = ["I like rock climbing.", "My dog is called Pilot.", "I went to Lisbon.", "I am reading a book on bees.",
             "I live in Oslo.", "My favourite food is soup."]  # fmt: skip
    return [
        Said(text, reply, NOON + day * DAY + 60 * n, user)
        for day in range(days)
        for n, (text, reply) in enumerate(
            [(facts[day % 6], "That is good to know."), (f"Day {day} was long.", "Rest.")]
        )
    ]


def bank(**options) -> MemoryBank:
    return MemoryBank(**{"user": "Mara", "encoder": "tfidf", **options})


def filled(days: int = 4, **options) -> MemoryBank:
    memory = bank(**options)
    memory.remember(talk(days))
    return memory


def pieces(memory: MemoryBank, user: str = "Mara") -> list:
    return [item for item in memory.store.items(kinds=PIECES) if f"user:{user}" in item.tags]

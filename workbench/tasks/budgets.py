"""What may be spent and what was: notes and tokens, with everything that a memory makes a model read.

A memory is not cheaper for writing a summary or for offering tools: the tokens of both are read (and paid) as the
pasted notes are, so they count. Tokens are words and marks (``count_tokens``) unless another counter is given: the same
for every method in a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.checks import whole
from workbench.memory.stores.base import count_tokens

if TYPE_CHECKING:
    from workbench.llm.base import Tool, Usage
    from workbench.memory.stores.base import Reading

__all__ = ["Budget", "Spent", "schema_tokens", "spent"]


@dataclass(frozen=True)
class Budget:
    """The most notes and the most tokens that a reading may hold; None sets no limit."""

    notes: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("notes", "tokens"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole(f"a budget's {name}", value, more=", or None"))

    def __str__(self) -> str:
        parts = [f"{getattr(self, name):,} {name}" for name in ("notes", "tokens") if getattr(self, name) is not None]
        return " and ".join(parts) or "unlimited"

    def limits(self) -> dict[str, int | None]:
        """Keyword arguments for ``StoreMemory.read``."""
        return {"budget_notes": self.notes, "budget_tokens": self.tokens}

    def allows(self, *, notes: int = 0, tokens: int = 0) -> bool:
        """Whether so much stays within the budget."""
        return (self.notes is None or notes <= self.notes) and (self.tokens is None or tokens <= self.tokens)

    def cut(self, texts: Iterable[str], *, count: Callable[[str], int] = count_tokens, used: int = 0) -> list[str]:
        """The longest beginning of ``texts`` that stays within the budget; ``used`` tokens are spent already."""
        kept: list[str] = []
        for text in texts:
            used += count(text)
            if not self.allows(notes=len(kept) + 1, tokens=used):
                break
            kept.append(text)
        return kept


@dataclass(frozen=True)
class Spent:
    """What one question, or all of them together, made a model read and write; adds up with ``+``.

    ``pasted``: tokens of notes before the question; ``instructions``: role text and the question itself; ``tools``:
    schemas of the tools on offer, once a call; ``summaries``: tokens read and written to make summaries, notes and
    rewritten queries; ``calls``: how often a model was called for those.
    """

    notes: int = 0
    pasted: int = 0
    instructions: int = 0
    tools: int = 0
    summaries: int = 0
    calls: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def tokens(self) -> int:
        """All tokens together."""
        return self.pasted + self.instructions + self.tools + self.summaries

    def within(self, budget: Budget) -> bool:
        return budget.allows(notes=self.notes, tokens=self.tokens)

    def row(self) -> dict[str, int]:
        """One row of a frame: every part, and ``tokens``."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"tokens": self.tokens}


def schema_tokens(tools: Iterable[Tool | Mapping[str, Any]], *, count: Callable[[str], int] = count_tokens) -> int:
    """Tokens of tool schemas as they are sent with a request: name, description and parameters as JSON."""
    return sum(count(json.dumps(_schema(tool), ensure_ascii=False, sort_keys=True)) for tool in tools)


def _schema(tool: Tool | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return dict(tool)
    return {"name": tool.name, "description": tool.description, "parameters": tool.json_schema()}


def spent(
    reading: Reading,
    *,
    question: str | None = None,
    instructions: str = "",
    tools: Sequence[Tool | Mapping[str, Any]] = (),
    requests: int = 1,
    summaries: Usage | None = None,
    count: Callable[[str], int] = count_tokens,
) -> Spent:
    """What one answer costs: the reading's texts, the question, tool schemas a request, and the calls behind it.

    Args:
        reading: what the memory gave back; its texts are counted anew with ``count``.
        question: the question as it is asked (the reading's query by default).
        instructions: role text and frame of the prompt.
        tools: tools on offer; their schemas are read again with each of the ``requests``.
        summaries: usage of the calls that the memory made for this answer (a ledger's ``usage``, before and after).
    """
    requests = whole("requests", requests)
    asked = reading.query if question is None else question
    return Spent(
        notes=len(reading.items),
        pasted=sum(count(item.text) for item in reading.items),
        instructions=count(instructions) + count(asked),
        tools=requests * schema_tokens(tools, count=count),
        summaries=0 if summaries is None else summaries.prompt_tokens + summaries.completion_tokens,
        calls=0 if summaries is None else summaries.calls,
    )

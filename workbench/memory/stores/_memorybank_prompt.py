"""MemoryBank's prompt: role, portrait, global summary, memories with their dates, recent talk, the user's turn.

When the budget is short, blocks are dropped whole in a fixed order: recent turns (oldest first), then memories (lowest
similarity first), then the global summary, then the portrait. The role and the user's turn always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.stores.base import count_tokens

if TYPE_CHECKING:
    import pandas as pd

    from workbench.llm import Message

#: The kinds of blocks in the order in which they stand.
KINDS = ("role", "portrait", "global summary", "memory", "recent", "user")
_REQUIRED = ("role", "user")


@dataclass(frozen=True)
class Block:
    """One part of a prompt.

    ``items`` are the ids of the store's items behind it, ``score`` a memory's similarity to the query, ``time`` the
    moment it is about (seconds since 1970; None for parts without one); ``kept`` is False when it was dropped.
    """

    kind: str
    text: str
    items: tuple[int, ...] = ()
    score: float | None = None
    time: float | None = None
    kept: bool = True
    tokens: int = 0


@dataclass(frozen=True)
class Prompt:
    """Blocks in the order of the prompt (dropped ones included), with what was dropped, in the order it went."""

    blocks: tuple[Block, ...]
    budget: int | None
    tokens: int
    dropped: tuple[Block, ...] = ()

    def text(self) -> str:
        return "\n".join(block.text for block in self.blocks if block.kept)

    def context(self) -> str:
        """The text without the role and the user's turn: what a reader is given beside the question."""
        return "\n".join(block.text for block in self.blocks if block.kept and block.kind not in _REQUIRED)

    def messages(self) -> list[Message]:
        """The prompt for a chat model: everything but the user's turn is the system message."""
        from workbench.llm import Message

        system = "\n".join(block.text for block in self.blocks if block.kept and block.kind != "user")
        asked = "\n".join(block.text for block in self.blocks if block.kind == "user")
        return [*([Message("system", system)] if system else []), Message("user", asked)]

    def report(self) -> str:
        """One line: tokens, budget and what was dropped."""
        limit = "no budget" if self.budget is None else f"budget {self.budget}"
        if not self.dropped:
            return f"{self.tokens} tokens, {limit}, nothing dropped"
        names = [block.kind for block in self.dropped]
        counted = ", ".join(f"{names.count(kind)} {kind}" for kind in dict.fromkeys(names))
        return f"{self.tokens} tokens, {limit}, dropped: {counted}"

    def frame(self) -> pd.DataFrame:
        """One row a block: position, kind, tokens, kept, score, time, items, text."""
        import pandas as pd

        columns = ["position", "kind", "tokens", "kept", "score", "time", "items", "text"]
        rows = [
            (at, b.kind, b.tokens, b.kept, b.score, b.time, list(b.items), b.text) for at, b in enumerate(self.blocks)
        ]
        return pd.DataFrame(rows, columns=columns)


def compose(
    blocks: Sequence[Block], budget: int | None = None, *, count: Callable[[str], int] = count_tokens
) -> Prompt:
    """The prompt of ``blocks``, never longer than ``budget`` tokens as ``count`` counts them.

    Memories stand in order of time whatever order they are given in. Raises BadInput when the role and the user's
    turn alone exceed the budget, for a budget below 1, or for a kind that is not one of :data:`KINDS`.
    """
    if budget is not None:
        whole("budget", budget, more=" (tokens), or None")
    unknown = [block.kind for block in blocks if block.kind not in KINDS]
    if unknown:
        raise BadInput(f"block kind {unknown[0]!r} is not one of {', '.join(KINDS)}")
    placed = [replace(b, tokens=count(b.text), kept=True) for b in sorted(blocks, key=_place) if b.text.strip()]
    going, kept = _drop_order(placed), list(range(len(placed)))
    dropped: list[int] = []
    while budget is not None and _length(placed, kept, count) > budget:
        if len(dropped) == len(going):
            need = _length(placed, kept, count)
            raise BadInput(f"the role and the user's turn alone need {need} tokens; the budget is {budget}")
        dropped.append(going[len(dropped)])
        kept.remove(dropped[-1])
    final = [block if at in kept else replace(block, kept=False) for at, block in enumerate(placed)]
    return Prompt(tuple(final), budget, _length(placed, kept, count), tuple(final[at] for at in dropped))


def _place(block: Block) -> tuple[int, float, int]:
    when = block.time if block.kind == "memory" and block.time is not None else 0.0
    return KINDS.index(block.kind), when, block.items[0] if block.kind == "memory" and block.items else 0


def _drop_order(blocks: Sequence[Block]) -> list[int]:
    """Positions in the order in which they go."""

    def of(kind: str) -> list[int]:
        return [at for at, block in enumerate(blocks) if block.kind == kind]

    def similarity(at: int) -> float:
        score = blocks[at].score
        return 0.0 if score is None else score

    memories = sorted(of("memory"), key=lambda at: (similarity(at), at))
    return [*of("recent"), *memories, *of("global summary"), *of("portrait")]


def _length(blocks: Sequence[Block], kept: Sequence[int], count: Callable[[str], int]) -> int:
    """Tokens of the whole text: a tokenizer need not add up over its parts."""
    return count("\n".join(blocks[at].text for at in kept)) if kept else 0

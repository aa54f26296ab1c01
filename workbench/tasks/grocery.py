"""Grocery recall: an order, unrelated questions, then "which item did I ask you to buy?" (SirLLM, 2405.12528)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from workbench.checks import is_whole
from workbench.errors import BadInput
from workbench.memory.cache.base import TokenCache
from workbench.tasks.dialogue import Asked, check_batches, lead

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import LoadedModel
    from workbench_datasets.dialogues import Dialogue

COLUMNS = (
    "group", "kind", "asked_after", "distance", "correct", "exact", "survived", "item", "item_surprise",
)  # fmt: skip


def grocery_recall(
    loaded: LoadedModel,
    memory: TokenCache,
    dialogues: Sequence[Dialogue],
    *,
    ask_after: Sequence[int] = (),
    batch: int = 64,
    first: int = 0,
    done: Callable[[TokenCache], None] = lambda memory: None,
    progress: Callable[..., Any] | None = None,
) -> pd.DataFrame:
    """Lead grocery dialogues through ``memory``; one line a question.

    Args:
        ask_after: also ask for the item after so many distractors, as trials that leave no trace.
        batch: dialogues led side by side (rows of the memory).
        first: number of the first group.
        done: called with the memory after each batch, while it still holds those dialogues.

    Columns: group; kind ("recall", "probe", "distractor"); asked_after (distractors before the question); distance
    (tokens between the item and the question); correct, exact (greedy decoding was an option); survived (every token
    of the item was in the memory when the question had been read); item; item_surprise (nats, mean over its tokens).
    """
    import pandas as pd

    check_batches(dialogues, "grocery", batch)
    _check_after(ask_after, min((len(dialogue.rounds) - 2 for dialogue in dialogues), default=0))
    lines: list[dict[str, Any]] = []
    for start in range(0, len(dialogues), batch):
        part = dialogues[start : start + batch]
        asked = lead(
            loaded,
            memory,
            part,
            track=lambda turn: turn.meta["item"] if turn.kind == "order" else None,
            trial="recall",
            after=ask_after,
            numbers=range(first + start, first + start + len(part)),
            progress=progress,
        )
        lines += _lines(asked)
        done(memory)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _check_after(ask_after: Sequence[int], most: int) -> None:
    if not isinstance(ask_after, Collection) or not all(is_whole(n, 0, most) for n in ask_after):
        raise BadInput(f"ask_after={ask_after!r} must list numbers of distractors, from 0 to the {most} there are")


def _lines(asked: list[Asked]) -> list[dict[str, Any]]:
    orders = {one.dialogue: one for one in asked if one.turn.kind == "order"}
    return [_line(one, orders[one.dialogue]) for one in asked if one.turn.kind != "order"]


def _line(one: Asked, order: Asked) -> dict[str, Any]:
    recalled = one.turn.kind == "recall"
    return {
        "group": one.dialogue,
        "kind": "probe" if one.trial else one.turn.kind,
        "asked_after": one.index if one.trial else one.index - 1,
        "distance": one.seen - order.tracked[-1],
        "correct": one.correct,
        "exact": one.picked.exact,
        "survived": set(order.tracked) <= set(one.held) if recalled else None,
        "item": order.turn.meta["item"],
        "item_surprise": order.surprise,
    }

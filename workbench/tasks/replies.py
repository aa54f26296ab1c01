"""Reply choice: pick the next utterance of a short chat; the memory is emptied at each new one (SirLLM, 2405.12528)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.memory.cache.base import TokenCache
from workbench.tasks.dialogue import check_batches, lead

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import LoadedModel
    from workbench_datasets.dialogues import Dialogue


def reply_choice(
    loaded: LoadedModel,
    memory: TokenCache,
    dialogues: Sequence[Dialogue],
    *,
    batch: int = 64,
    progress: Callable[..., Any] | None = None,
) -> pd.DataFrame:
    """Lead chats through ``memory``; one line a round: dialogue, round, correct, exact, chance (1 / options)."""
    import pandas as pd

    check_batches(dialogues, "chat", batch)
    lines: list[dict[str, Any]] = []
    for start in range(0, len(dialogues), batch):
        part = dialogues[start : start + batch]
        numbers = list(range(start, start + len(part)))
        asked = lead(loaded, memory, part, numbers=numbers, progress=progress)
        lines += [
            {
                "dialogue": one.dialogue,
                "round": one.index,
                "correct": one.correct,
                "exact": one.picked.exact,
                "chance": 1 / len(one.turn.options),
            }
            for one in asked
            if len(one.turn.options) > 1
        ]
    return pd.DataFrame(lines, columns=["dialogue", "round", "correct", "exact", "chance"])

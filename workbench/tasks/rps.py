"""Rock-paper-scissors against a player with a favourite move, one endless stream a player (SirLLM, 2405.12528)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.memory.cache.base import TokenCache
from workbench.tasks.dialogue import Asked, check_batches, lead
from workbench_datasets.dialogues import BEATS, MOVES, outcome

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import LoadedModel
    from workbench_datasets.dialogues import Dialogue


def rock_paper_scissors(
    loaded: LoadedModel,
    memory: TokenCache,
    dialogues: Sequence[Dialogue],
    *,
    progress: Callable[..., Any] | None = None,
) -> pd.DataFrame:
    """Play every dialogue through ``memory`` (emptied once, never between rounds); one line a round.

    Columns: player; round; reply; outcome ("win", "tie", "lose" against the user's next move); optimal (the reply beats
    the user's most frequent move so far); cached (tokens held when the question had been read); moves_held (tokens of
    the user's moves among them); share (of the cache); estimate_wins (the reply that the held moves suggest would win).
    """
    import pandas as pd

    check_batches(dialogues, "rock-paper-scissors", 1)
    asked = lead(loaded, memory, dialogues, track=lambda turn: turn.meta["last"], progress=progress)
    moves: dict[int, dict[int, str]] = {}
    lines = [_line(one, dialogues, moves) for one in asked]
    return pd.DataFrame(lines)


def _line(one: Asked, dialogues: Sequence[Dialogue], moves: dict[int, dict[int, str]]) -> dict[str, Any]:
    known = moves.setdefault(one.dialogue, {})
    known.update(dict.fromkeys(one.tracked[:1], one.turn.meta["last"]))
    counted = Counter(known[position] for position in one.held if position in known)
    return {
        "player": dialogues[one.dialogue].meta["player"],
        "round": one.index,
        "reply": one.reply,
        "outcome": outcome(one.reply, one.turn.meta["next"]),
        "optimal": one.correct,
        "cached": one.cached,
        "moves_held": len(one.held),
        "share": len(one.held) / one.cached,
        "estimate_wins": outcome(_suggested(counted), one.turn.meta["next"]) == "win",
    }


def _suggested(counted: Counter[str]) -> str:
    """The move that beats the most frequent move in the cache; ties go to the first in the fixed order of moves."""
    return BEATS[max(MOVES, key=lambda move: (counted[move], -MOVES.index(move)))]

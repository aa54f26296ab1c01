"""What a token cache knows about one row of a batch: which tokens it holds, since when, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench.memory.base import EventLog

if TYPE_CHECKING:
    import pandas as pd

#: One record per held token. ``column`` is where its key lies in the tensors; its slot is its rank in the row.
ITEM = np.dtype(
    [("column", "i8"), ("token_id", "i8"), ("position", "i8"), ("round", "i8"), ("raw", "f8"), ("reason", "U8")]
)


@dataclass(frozen=True)
class Choice:
    """A keep list: strictly increasing ranks, a reason for each, and what the log should say of the others."""

    indices: np.ndarray
    reasons: np.ndarray
    why: str
    detail: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Row:
    """The bookkeeping of one sequence: ``seen`` tokens of its stream, ``rounds`` opened, the last one at ``start``."""

    stream: int
    items: np.ndarray = field(default_factory=lambda: np.empty(0, ITEM))
    seen: int = 0
    rounds: int = 0
    start: int = 0
    log: EventLog = field(default_factory=EventLog)

    def __len__(self) -> int:
        return len(self.items)

    def copy(self) -> Row:
        return Row(self.stream, self.items.copy(), self.seen, self.rounds, self.start, self.log.copy())

    @property
    def age(self) -> np.ndarray:
        """Rounds opened since each token was written."""
        return self.rounds - self.items["round"]

    def open_round(self) -> None:
        self.rounds, self.start = self.rounds + 1, self.seen

    def keep(self, choice: Choice) -> None:
        """Hold only the chosen items; what leaves is logged."""
        gone = np.delete(self.items["position"], choice.indices)
        self.items = self.items[choice.indices]
        self.items["reason"] = choice.reasons
        if len(gone):
            self.log.append("evict", gone, choice.why, round=self.rounds, **choice.detail)

    def add(self, columns: np.ndarray, token_ids: np.ndarray, raw: np.ndarray) -> None:
        """Append tokens in stream order to the current round, reason ``new``."""
        fresh = np.empty(len(columns), ITEM)
        fresh["column"], fresh["token_id"], fresh["raw"] = columns, token_ids, raw
        fresh["position"] = self.seen + np.arange(len(columns))
        fresh["round"], fresh["reason"] = self.rounds, "new"
        self.items = np.concatenate([self.items, fresh])
        self.seen += len(columns)
        known = raw[~np.isnan(raw)]
        detail = {"mean_surprise": float(known.mean())} if len(known) else {}
        self.log.append("write", fresh["position"], f"read in round {self.rounds}", round=self.rounds, **detail)


def recent(row: Row, n_sink: int, size: int, why: str) -> Choice:
    """The first ``n_sink`` and the newest ``size - n_sink`` items (StreamingLLM; without sinks a plain window)."""
    sinks, n = min(n_sink, size), len(row)
    indices = np.concatenate([np.arange(sinks), np.arange(n - (size - sinks), n)])
    return Choice(indices, np.where(indices < n_sink, "sink", "recent"), why)


def ranked(order: np.ndarray, *, size: int, n_sink: int, n_best: int, n_recent: int, label: str, why: str) -> Choice:
    """Sinks, the ``n_best`` best of the whole row, the ``n_recent`` newest, filled up to ``size`` with the newest.

    ``order`` lists every rank of the row once, best first; n_sink + n_best + n_recent <= size <= len(order).
    The best are taken over the whole row, so they may fall on sinks; the fill-up pays for that (SirLLM, section 3).
    """
    n = len(order)
    reasons = np.full(n, "", dtype="U8")
    reasons[n - n_recent :] = "recent"
    reasons[order[:n_best]] = label
    reasons[:n_sink] = "sink"
    free = np.flatnonzero(reasons == "")
    reasons[free[len(free) - (size - (n - len(free))) :]] = "fill"
    indices = np.flatnonzero(reasons != "")
    return Choice(indices, reasons[indices], why)


def frame(rows: Sequence[tuple[int, Row, Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """The inspector's table: slot, token_id, position, round, score columns, reason, age, row."""
    import pandas as pd

    tables = [
        pd.DataFrame(
            {
                "slot": np.arange(len(row)),
                "token_id": row.items["token_id"],
                "position": row.items["position"],
                "round": row.items["round"],
                **scores,
                "reason": row.items["reason"].astype(object),
                "age": row.age,
                "row": np.full(len(row), index),
            }
        )
        for index, row, scores in rows
    ]
    empty: dict[str, list] = {name: [] for name in ("slot", "token_id", "position", "round", "reason", "age", "row")}
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(empty)

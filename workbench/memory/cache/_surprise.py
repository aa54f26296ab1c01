"""Surprise of tokens as they are read: minus the log-probability under the logits before them, in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Last:
    """The last token of every row (B,), -1 where there is none, and the logits (B, V) that followed it."""

    tokens: np.ndarray
    logits: Tensor

    def pick(self, rows: list[int]) -> Last:
        return Last(self.tokens[rows], self.logits[torch.tensor(rows, device=self.logits.device)])


def _before(valid: np.ndarray) -> np.ndarray:
    """For every column (B, q) the valid column before it, -1 where that lies in an earlier pass."""
    columns = np.where(valid, np.arange(valid.shape[1]), -1)
    reached = np.maximum.accumulate(columns, axis=1)
    return np.concatenate([np.full((len(valid), 1), -1), reached[:, :-1]], axis=1)


def _looked_up(logits: Tensor, index: tuple[np.ndarray, ...], targets: np.ndarray) -> np.ndarray:
    """-log softmax(logits[index])[target] in float64, without copying the logits that are looked at."""
    total = torch.logsumexp(logits.float(), -1)
    where = tuple(torch.from_numpy(part).to(logits.device) for part in index)
    chosen = logits[(*where, torch.from_numpy(targets).to(logits.device))]
    return (total[where].double() - chosen.double()).cpu().numpy()


def measure(
    ids: np.ndarray,
    valid: np.ndarray,
    logits: Tensor,
    last: Last | None,
    targets: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[list[np.ndarray], Last]:
    """Surprise of ``targets(token, token before)`` for every valid token, row by row, and the new last state.

    Args:
        ids: (B, q) tokens of the pass; ``valid`` (B, q) marks those that are no padding; ``logits`` (B, q, V).
        last: where the stream stood before this pass. Without it a row's first token has no prediction: NaN.
    """
    if last is None:
        last = Last(np.full(len(ids), -1), logits.new_zeros(len(ids), logits.shape[-1]))
    before = _before(valid)
    rows = np.arange(len(ids))[:, None]
    previous = np.where(before >= 0, ids[rows, before], last.tokens[:, None])
    goal = targets(ids, previous)
    raw = np.full(valid.shape, np.nan)
    inside = valid & (before >= 0)
    raw[inside] = _looked_up(logits, (np.nonzero(inside)[0], before[inside]), goal[inside])
    border = valid & (before < 0) & (last.tokens >= 0)[:, None]
    if border.any():
        raw[border] = _looked_up(last.logits, (np.nonzero(border)[0],), goal[border])
    return [line[kept] for line, kept in zip(raw, valid)], _moved(ids, valid, logits, last)


def _moved(ids: np.ndarray, valid: np.ndarray, logits: Tensor, last: Last) -> Last:
    width = valid.shape[1]
    ends = np.where(valid.any(1), width - 1 - valid[:, ::-1].argmax(1), -1)
    rows = np.arange(len(ids))
    tokens = np.where(ends >= 0, ids[rows, ends], last.tokens)
    index = torch.from_numpy(ends).to(logits.device)
    fresh = logits[torch.from_numpy(rows).to(logits.device), index]
    return Last(tokens, torch.where((index >= 0)[:, None], fresh, last.logits))

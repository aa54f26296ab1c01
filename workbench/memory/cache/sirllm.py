"""``sirllm``: keep the tokens that surprised the model when it read them (Yao, Li, Zhao 2024, arXiv 2405.12528).

A row holds at most B = n_sink + n_ent + n_rec tokens. When a round of m tokens does not fit, the row keeps its first
``n_sink`` tokens, the n_ent - m with the highest score of the whole row and the ``n_rec`` newest, filled up to B - m
with the newest. Then every score decays by ``eta``; then the round is read. The score of a token is its surprise
-log P(x_i | what the cache held, x_<i) under the model as it reads ("token entropy" in the paper).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.cache._checks import bounded, token_ids
from workbench.memory.cache._rows import Choice, Row, ranked
from workbench.memory.cache.base import TokenCache

FIRST, SCORES = ("max", "true"), ("paper", "released")


@MEMORIES.register("sirllm")
class SirLLM(TokenCache):
    """Entropy-ranked token cache with decay.

    Args:
        budget: B, tokens held at most (1,024 in the paper's grocery and rock-paper-scissors runs, 512 in DailyDialog).
        n_sink: first tokens that always stay (4 in all published runs).
        n_rec: newest tokens that always stay (0 in all published runs).
        eta: decay ratio of the scores, once a round, in (0, 1]; 1.0 forgets nothing (grocery), .9 rock-paper-scissors,
            .7 DailyDialog.
        first: score of a round's first token: ``"max"`` of the round (the released code, which has no prediction for
            it) or its ``"true"`` surprise under the last logits of the round before.
        score: ``"paper"`` is the paper's formula; ``"released"`` is what the released code computes, the surprise of
            *repeating the token before* (its logits are indexed with the token they were read from).
        mask_tokens: token ids that never count as informative (line breaks, special tokens); their score is 0.
    """

    slug = "sirllm"

    needs_logits = True

    def __init__(
        self,
        budget: int = 1024,
        n_sink: int = 4,
        n_rec: int = 0,
        eta: float = 1.0,
        first: str = "max",
        score: str = "paper",
        mask_tokens: Collection[int] = (),
    ):
        super().__init__(budget)
        self.n_rec, self.n_sink = whole("n_rec", n_rec, 0), bounded(self.budget, n_sink)
        if budget < n_sink + n_rec:
            raise BadInput(f"budget={budget} must be at least n_sink + n_rec (n_sink={n_sink}, n_rec={n_rec})")
        self.eta = number("eta", eta, above=0, most=1, more=" (1 forgets nothing)")
        if first not in FIRST or score not in SCORES:
            raise BadInput(f"first={first!r} must be one of {FIRST} and score={score!r} one of {SCORES}")
        self.first, self.score, self.mask_tokens = first, score, token_ids("mask_tokens", mask_tokens)
        self.n_ent = int(budget) - self.n_sink - self.n_rec

    def room(self) -> int:
        """A round may use the entropy slots; without any (the StreamingLLM setting) it may use the recency window."""
        return self.n_ent or self.n_rec

    # ------------------------------------------------------------------ scores
    def targets(self, tokens: np.ndarray, before: np.ndarray) -> np.ndarray:
        return tokens if self.score == "paper" else np.where(before >= 0, before, tokens)

    def on_written(self, row: Row, n_new: int) -> None:
        """Score the first token of the round, which may have no prediction, and blank masked tokens."""
        raw, current = row.items["raw"], row.items["round"] == row.rounds
        first = current & (row.items["position"] == row.start)
        others = raw[current & ~first]
        if first.any() and len(others) and (self.first == "max" or np.isnan(raw[first]).any()):
            raw[first] = np.nanmax(others)
        raw[np.isnan(raw)] = math.log(self.model.config.get_text_config().vocab_size)
        raw[np.isin(row.items["token_id"], self.mask_tokens)] = 0.0

    def decayed(self, row: Row) -> np.ndarray:
        """raw * eta ** age in float64, computed when asked for: nothing is multiplied up over hundreds of rounds."""
        return row.items["raw"] * self.eta ** row.age.astype(np.float64)

    def order(self, row: Row) -> np.ndarray:
        """Ranks of the row, highest decayed score first; of equal scores the newer token comes first.

        Scores too small for a double are compared by their logarithm, so that eta = .7 still ranks after 2,000 rounds.
        """
        score, newest = self.decayed(row), -np.arange(len(row))
        with np.errstate(divide="ignore"):
            exponent = np.log(row.items["raw"]) + row.age * math.log(self.eta)
        tiny = score < 1e-280
        return np.lexsort((newest, -np.where(tiny, exponent, 0.0), -np.where(tiny, 0.0, score)))

    def scores(self, row: Row) -> dict[str, np.ndarray]:
        return {"surprise": row.items["raw"].copy(), "score": self.decayed(row)}

    # ------------------------------------------------------------------ rounds
    def on_round(self, row: Row) -> None:
        if self.eta < 1 and len(row):
            row.log.append("decay", (), f"scores times {self.eta}", round=row.rounds, eta=self.eta)

    def select(self, row: Row, n_new: int) -> Choice:
        assert self.budget is not None
        n_best, n_recent = (self.n_ent - n_new, self.n_rec) if self.n_ent else (0, self.n_rec - n_new)
        choice = ranked(
            self.order(row),
            size=self.budget - n_new,
            n_sink=self.n_sink,
            n_best=n_best,
            n_recent=n_recent,
            label="entropy",
            why="score too low",
        )
        return replace(choice, detail={"threshold": self._threshold(row, choice)})

    def _threshold(self, row: Row, choice: Choice) -> float:
        """The lowest score that was kept for its score: what a token had to reach to stay."""
        kept = self.decayed(row)[choice.indices][choice.reasons == "entropy"]
        return float(kept.min()) if len(kept) else math.nan

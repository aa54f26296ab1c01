"""Reading a text round by round and writing down what the memory held after each: the frame behind the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.errors import BadInput
from workbench.memory.cache.base import TokenCache

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import LoadedModel


def watch(loaded: LoadedModel, memory: TokenCache, rounds: Sequence[str]) -> pd.DataFrame:
    """Read ``rounds`` (texts) through ``memory`` (emptied first); one line for every token read, after every round.

    Columns: round; position and token of the stream; surprise (nats, as it was read; NaN for the first token); written
    (the round it was read in); kept (held after this round); reason; score (decayed; NaN where the memory has no scores
    or the token is gone); threshold (lowest score kept for its score at the round's eviction, as it stands after the
    round's decay, like ``score``; NaN without an eviction).
    """
    import pandas as pd

    if isinstance(rounds, str) or not all(isinstance(text, str) for text in rounds):
        raise BadInput(f"rounds must be a list of texts, one a round, got {rounds!r:.80}")
    if not rounds:
        raise BadInput("rounds is empty: there is nothing to read")
    memory.bind(loaded.model).reset()
    if "position" not in memory.contents():
        raise BadInput(f"{memory.slug} does not list the tokens it holds, so they cannot be watched; see contents()")
    story, parts, last = _Story(loaded), [], None
    for number, text in enumerate(rounds, start=1):
        last = story.read(memory, text, number, last)
        parts.append(story.moment(memory, number))
    return pd.concat(parts, ignore_index=True)


class _Story:
    """The stream so far: tokens, their surprise and the round that brought them."""

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self.tokens: list[str] = []
        self.surprise: list[float] = []
        self.written: list[int] = []

    def read(self, memory: TokenCache, text: str, number: int, last: torch.Tensor | None) -> torch.Tensor:
        tokenizer: Any = self.loaded.tokenizer
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if last is None and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        if not ids:
            raise BadInput(f"round {number} is empty text")
        logits = memory.write(torch.tensor([ids], device=self.loaded.device))[0].float()
        before = logits[:-1] if last is None else torch.cat([last, logits[:-1]])
        known = ids[1:] if last is None else ids
        nll = -torch.log_softmax(before, -1).gather(1, torch.tensor(known, device=logits.device)[:, None])[:, 0]
        self.surprise += ([float("nan")] if last is None else []) + nll.tolist()
        self.tokens += self.loaded.tokens(ids)
        self.written += [number] * len(ids)
        return logits[-1:]

    def moment(self, memory: TokenCache, number: int) -> pd.DataFrame:
        import pandas as pd

        held, n = memory.contents(0).set_index("position"), len(self.tokens)
        table = pd.DataFrame({"round": number, "position": np.arange(n), "token": self.tokens})
        table["surprise"], table["written"] = self.surprise, self.written
        table["kept"] = table["position"].isin(held.index)
        table["reason"] = held["reason"].reindex(range(n)).fillna("").to_numpy()
        score = held["score"] if "score" in held else pd.Series(np.nan, index=held.index)
        table["score"] = score.reindex(range(n)).to_numpy()
        return table.assign(threshold=_threshold(memory, number))


def _threshold(memory: TokenCache, number: int) -> float:
    """Evictions are logged before the round they make room for is opened: with the number of the one before."""
    found = [e.detail["threshold"] for e in memory.events(0) if e.kind == "evict" and "threshold" in e.detail
             and e.detail["round"] == number - 1]  # fmt: skip
    return float(found[-1]) * getattr(memory, "eta", 1.0) if found else float("nan")

"""A stream of tokens through one cache: the current memory, or an ordinary full cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import ModelError
from workbench.memory.cache._hooks import cache_word

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel

#: Most tokens that go through the model in one pass of a stream; bounds the logits that are alive at once.
PASS_TOKENS = 512


class Stream:
    """Reads tokens through a cache and remembers the last logits, so that the next token has a surprise too.

    ``length`` counts the tokens (columns) read. Under a token cache every pass carries it as ``past_key_values``.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded, self.memory = loaded, loaded.cache
        self.own = getattr(self.memory, "own", False)
        if self.own:
            self.memory.reset()
        self.cache: Any = self.memory if self.memory is not None else _full_cache(loaded)
        self.mask: Tensor | None = None
        self.last: Tensor | None = None

    @property
    def kept(self) -> bool:
        """Whether what is generated now stays for later: in a memory, or in the session that ``feed`` began."""
        return (self.memory is not None and not self.own) or self.loaded.session is self

    @property
    def length(self) -> int:
        return int(self.cache.get_seq_length())

    def check(self, new: int) -> None:
        """Raise ModelError when the full cache would outgrow the model's positions; a memory says itself what fits."""
        most = self.loaded.max_positions
        if (self.memory is not None and not self.own) or most is None or self.length + new <= most:
            return
        raise ModelError(
            f"{self.length} tokens in the cache and {new} more are beyond the {most} positions of {self.loaded.name}; "
            + ("call reset()" if self.own else "put a bounded memory in: use(memory='streaming')")
            + ", shorten the text, or ask for fewer new tokens"
        )

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run (B, n) new tokens through the cache; the logits (B, V) after the last one."""
        for start in range(0, ids.shape[1], self._step()):
            part = slice(start, start + self._step())
            logits = self._pass(ids[:, part], mask[:, part])
        return logits[:, -1]

    def read_round(self, ids: Tensor) -> Tensor:
        """One round (1, n); the surprise (n,) of its tokens in nats, NaN where nothing came before."""
        pieces = []
        with self._round(ids.shape[1]):
            for start in range(0, ids.shape[1], self._step()):
                part = ids[:, start : start + self._step()]
                before = self.last if self.length else None
                logits = self._pass(part, torch.ones_like(part))
                pieces.append(_surprise(part[0], before, logits[0]))
        return torch.cat(pieces)

    @contextlib.contextmanager
    def _round(self, tokens: int) -> Iterator[None]:
        """Tell a memory that knows rounds that the passes to come are one (what cannot fit is read in pieces)."""
        room = getattr(self.memory, "room", lambda: None)()
        if not hasattr(self.memory, "open_round") or (room is not None and tokens > room):
            yield
            return
        self.memory.open_round(tokens)
        try:
            yield
        finally:
            self.memory.close_round()

    def _step(self) -> int:
        room = getattr(self.memory, "room", lambda: None)()
        return PASS_TOKENS if room is None else max(1, min(PASS_TOKENS, int(room)))

    def _pass(self, ids: Tensor, mask: Tensor) -> Tensor:
        if not self.length:
            self.mask = self.last = None  # the memory was emptied: a new stream begins
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)
        given: dict[str, Any] = {"input_ids": ids, cache_word(self.loaded.model): self.cache, "use_cache": True}
        if not bool(self.mask.all()):
            given["attention_mask"] = self.mask
            if self.memory is None:
                given["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = self.loaded.model(**given).logits
        self.last = logits[:, -1]
        return logits


def _full_cache(loaded: LoadedModel) -> Any:
    if hasattr(loaded.model, "new_cache"):  # beside a memory of items: the layers' states, without a log
        return loaded.model.new_cache()
    from transformers import DynamicCache

    return DynamicCache(config=loaded.model.config)


def _surprise(ids: Tensor, before: Tensor | None, logits: Tensor) -> Tensor:
    """-ln p of ids (n,) from the logits before them: ``before`` (1, V) or None, then logits (n, V)."""
    logp = torch.log_softmax(logits[:-1].float(), dim=-1)
    rest = -logp.gather(-1, ids[1:, None])[:, 0]
    if before is None:
        first = rest.new_full((1,), float("nan"))
    else:
        first = -torch.log_softmax(before[0].float(), dim=-1)[ids[:1]]
    return torch.cat([first, rest])

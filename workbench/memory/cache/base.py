"""The token cache under every cache memory: keys before rotation, any keep list per row, positions without gaps.

A :class:`TokenCache` is a ``transformers.Cache``, so it goes wherever ``past_key_values`` goes, ``model.generate``
included. What it adds:

* **Keys are stored before rotation** (recovered by inverting the rotary embedding, see ``_rotary``). At every pass the
  stored tokens sit at cache slots 0..n-1 and the new ones at n.., as in StreamingLLM: evicting leaves no gap and no
  position ever exceeds the budget. The true length of the stream is kept apart (``get_seq_length``).
* **Each row of a batch has its own keep list.** Rows may hold different tokens and different numbers of them.
* **Evicted memory is freed**: tensors are allocated anew at the size that is kept, and ``nbytes()`` measures storage.
* The model's forward pass is entered through two hooks that :meth:`TokenCache.bind` puts on it: one makes room and sets
  slot positions and the attention mask, the other records what was written. Other forward passes are left alone.

A mechanism is a subclass that says what to keep (:meth:`TokenCache.select`) and, if it ranks by them, how tokens score.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.checks import is_whole, whole
from workbench.errors import BadInput, MemoryError_
from workbench.memory.base import EventLog, settings_of
from workbench.memory.cache import _surprise
from workbench.memory.cache._as_cache import AsCache, windowed
from workbench.memory.cache._checks import check_tokens
from workbench.memory.cache._hooks import cache_word, install
from workbench.memory.cache._layer import SlotLayer
from workbench.memory.cache._pass import Pass, Snapshot, plan
from workbench.memory.cache._rotary import Rotary
from workbench.memory.cache._rows import Choice, Row, frame

if TYPE_CHECKING:
    import pandas as pd


class TokenCache(AsCache):
    """Base of all cache memories; a subclass overrides :meth:`select` and what it needs of the policy section.

    Args:
        budget: most tokens a row may hold (B); ``None`` keeps everything.
    """

    slug: str = "token-cache"
    #: A mechanism that scores tokens needs the logits of every new token, not only of the last one.
    needs_logits: bool = False

    def __init__(self, budget: int | None = None):
        super().__init__(layers=[])
        self.budget = None if budget is None else whole("budget", budget, more=" (tokens), or None")
        self._rotary: Rotary | None = None
        self._model: PreTrainedModel | None = None
        self._windowed = False
        self._handles: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self.rows: list[Row] = []
        self.fed = 0  # columns that went through the model: the length of the stream as generate() counts it
        self._pass: Pass | None = None
        self._room: np.ndarray | None = None
        self._empty_round = False
        self._last: _surprise.Last | None = None
        for layer in self.layers:
            layer.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    def settings(self) -> dict[str, Any]:
        """The constructor's hyper-parameters as they stand."""
        return settings_of(self)

    # ------------------------------------------------------------------ binding
    def bind(self, model: PreTrainedModel) -> TokenCache:
        """Attach to ``model``: find and prove its rotation, hook its forward pass. Returns self.

        The memory starts empty, unless it is bound to this model already: then nothing changes.
        Raises MemoryError_ when keys before rotation cannot be had (GPT-2, BERT, ALiBi, latent attention).
        """
        if self._model is model:
            return self
        rotary = Rotary.of(model)
        if self.needs_logits and model.get_output_embeddings() is None:
            raise MemoryError_(
                f"{type(self).__name__} scores tokens by the model's own surprise, and {type(model).__name__} has no "
                "language-model head; load it with AutoModelForCausalLM"
            )
        self.unbind()
        self._rotary, self._model, self._windowed = rotary, model, windowed(model)
        self.layers = [SlotLayer(weakref.ref(self), index) for index in range(len(rotary.layers))]
        self._forget()
        self._handles = install(self, model)
        return self

    def unbind(self) -> None:
        """Take the hooks off the model; what is held stays readable through ``contents()`` and ``events()``."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model = [], None

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            raise MemoryError_(f"{self!r} is bound to no model; call .bind(model), or LoadedModel.use(memory=...)")
        return self._model

    @property
    def bound_rotary(self) -> Rotary:
        if self._rotary is None:
            raise MemoryError_(f"{self!r} is bound to no model; call .bind(model), or LoadedModel.use(memory=...)")
        return self._rotary

    @property
    def current_pass(self) -> Pass:
        if self._pass is None:
            raise MemoryError_(f"{self!r} got keys outside a forward pass of the model that it is bound to")
        return self._pass

    # ------------------------------------------------------------------ policy: what a mechanism overrides
    def room(self) -> int | None:
        """Most tokens that one round may bring; ``None`` means any number."""
        return self.budget

    def select(self, row: Row, n_new: int) -> Choice:
        """Which ranks of ``row`` stay so that ``n_new`` tokens fit; called only when not all of them can."""
        raise MemoryError_(f"{type(self).__name__} has no rule for evicting tokens")

    def on_round(self, row: Row) -> None:
        """Called for each row when a round opens, after room was made for it."""

    def targets(self, tokens: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Tokens (m,) whose surprise each new token is stored with; ``before`` holds the token before each."""
        return tokens

    def on_written(self, row: Row, n_new: int) -> None:
        """Called for each row after ``n_new`` tokens were appended with their surprise as ``raw`` score."""

    def scores(self, row: Row) -> dict[str, np.ndarray]:
        """Score columns of :meth:`contents`."""
        return {}

    # ------------------------------------------------------------------ rounds
    def open_round(self, n_new: int | Sequence[int]) -> None:
        """Make room for a round of up to ``n_new`` tokens (one number, or one a row) and begin it.

        Passes belong to this round until :meth:`close_round` or the next ``open_round``. Without it every pass of
        several tokens is a round of its own, and single tokens go on with the round that is current.
        Raises MemoryError_, with nothing changed, when the round cannot fit.
        """
        counts = np.atleast_1d(np.asarray(n_new))
        if (
            counts.dtype.kind not in "iu"
            or counts.ndim != 1
            or counts.min(initial=0) < 0
            or len(counts) not in (1, max(len(self.rows), 1), len(counts))
        ):
            raise BadInput(f"n_new={n_new!r} must be a number of tokens, or one for each row")
        size = len(self.rows) or len(counts)
        if len(counts) not in (1, size):
            raise BadInput(f"n_new has {len(counts)} entries and the memory {size} rows")
        self._open(np.broadcast_to(counts, (size,)).copy())
        self._room = np.broadcast_to(counts, (size,)).copy()

    def close_round(self) -> None:
        """End an opened round; room that it did not use is free again."""
        self._room = None

    @contextlib.contextmanager
    def round(self, n_new: int | Sequence[int]) -> Iterator[None]:
        """``with memory.round(30): ...``: the passes inside are one round of up to 30 tokens."""
        self.open_round(n_new)
        try:
            yield
        finally:
            self.close_round()

    def _open(self, counts: np.ndarray) -> None:
        self._roll_back()
        self._check_fits(counts)
        self._start_rows(len(counts))
        self._make_room(counts)
        if not self._empty_round:  # else a pass of this round died: the round goes on
            for row in self.rows:
                row.open_round()
                self.on_round(row)
        self._empty_round = True

    def _start_rows(self, n: int) -> None:
        if not self.rows:
            self.rows = [Row(stream) for stream in range(n)]

    def name_rows(self, streams: Sequence[int]) -> None:
        """Name the rows of an empty memory; ``random`` draws by this name, so batches equal one-by-one runs."""
        if self.rows:
            raise MemoryError_("rows are named before anything is written; reset() first")
        self.rows = [Row(int(stream)) for stream in streams]

    def _check_fits(self, counts: np.ndarray) -> None:
        if self.rows and len(counts) != len(self.rows):
            raise MemoryError_(f"this memory holds {len(self.rows)} rows, the pass brings {len(counts)}; reset() first")
        most, longest = self.room(), int(counts.max(initial=0))
        if most is not None and longest > most:
            raise MemoryError_(
                f"a round of {longest} tokens does not fit: {self!r} takes at most {most} at once; feed it in shorter "
                f"rounds (memory.feed does; generate(prefill_chunk_size={most}) too) or raise the budget"
            )

    def _make_room(self, counts: np.ndarray) -> None:
        if self.budget is None:
            return
        full = [n > 0 and len(row) + n > self.budget for row, n in zip(self.rows, counts)]
        choices = [self.select(row, int(n)) if f else None for row, n, f in zip(self.rows, counts, full)]
        for row, choice in zip(self.rows, choices):
            if choice is not None:
                row.keep(choice)
        if any(full):
            self._compact()

    # ------------------------------------------------------------------ one forward pass
    def before_forward(self, n_new: int, valid: np.ndarray | None = None) -> None:
        """Make room and lay out a pass of ``n_new`` columns; a second call for the same pass changes nothing.

        The model's hooks call this. ``valid`` (B, n_new) is False where a column is padding.
        """
        if valid is None:
            valid = np.ones((max(len(self.rows), 1), n_new), dtype=bool)
        if self._pass is not None and not self._dirty() and self._pass.valid.shape == valid.shape:
            return
        self._roll_back()
        self._check_padding(valid)
        counts = valid.sum(1)
        if self._room is not None:
            if len(counts) != len(self._room) or (counts > self._room).any():
                raise MemoryError_(f"the open round has room for {self._room.tolist()} tokens, not {counts.tolist()}")
        elif n_new == 1 and self.fed:
            self._check_fits(counts)
            self._make_room(counts)
        else:
            self._open(counts)
        self._pass = plan(self.rows, self.width, valid, self.bound_rotary, self.model)

    def _check_padding(self, valid: np.ndarray) -> None:
        padded = np.diff(valid.astype(np.int8), axis=1).max(initial=0) > 0 or not valid[:, :1].all()
        if padded and self.width and self._windowed:
            raise MemoryError_(
                f"{type(self.model).__name__} has sliding windows, which count padding between old and new tokens; "
                "pad the new tokens on the right"
            )

    def after_forward(self, input_ids: Tensor | None, logits: Tensor | None) -> None:
        """Record what the pass wrote; a second call for the same pass does nothing. The model's hooks call this."""
        now = self._pass
        if now is None or not self._dirty():
            return
        if self.needs_logits and (input_ids is None or logits is None or logits.shape[1] != now.valid.shape[1]):
            self._roll_back()
            raise MemoryError_(f"{type(self).__name__} needs input_ids and the logits of all new tokens")
        ids = np.full(now.valid.shape, -1) if input_ids is None else input_ids.cpu().numpy()
        raw = self._raw(ids, now.valid, logits)
        for index, row in enumerate(self.rows):
            new = np.flatnonzero(now.valid[index])
            if len(new):
                row.add(now.width + new, ids[index, new], raw[index])
                self.on_written(row, len(new))
        if self._room is not None:
            self._room = self._room - now.valid.sum(1)
        self.fed += now.valid.shape[1]
        self._pass, self._empty_round = None, False
        if any(len(row) and row.items["column"][0] != self.width - len(row) for row in self.rows):
            self._compact()

    def _raw(self, ids: np.ndarray, valid: np.ndarray, logits: Tensor | None) -> list[np.ndarray]:
        if not self.needs_logits or logits is None:
            return [np.full(int(n), np.nan) for n in valid.sum(1)]
        raw, self._last = _surprise.measure(ids, valid, logits, self._last, self.targets)
        return raw

    def slots(self) -> tuple[Tensor, Tensor | None]:
        """Positions (B, q) of the new tokens of the pass under way and the mask (B, W + q) over all slots, or None."""
        return self.current_pass.positions, self.current_pass.mask

    def _dirty(self) -> bool:
        return self._pass is not None and any(layer.width != self._pass.width for layer in self.layers)

    def _roll_back(self) -> None:
        """Undo a pass that died midway; room that was made for it stays made."""
        if self._pass is not None:
            for layer in self.layers:
                layer.truncate(self._pass.width)
            self._pass = None

    def _compact(self) -> None:
        """Re-allocate every layer to the columns held. Holes go to the left: a sliding window counts columns."""
        width = max(len(row) for row in self.rows)
        columns = np.zeros((len(self.rows), width), dtype=np.int64)
        for index, row in enumerate(self.rows):
            columns[index, width - len(row) :] = row.items["column"]
            row.items["column"] = np.arange(width - len(row), width)
        for layer in self.layers:
            if layer.keys is not None:
                layer.gather(torch.from_numpy(columns).to(layer.keys.device))

    # ------------------------------------------------------------------ the memory protocol
    def write(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Read tokens (B, m) in one pass through the bound model and keep them. Returns logits (B, m, V).

        Raises BadInput for an empty text.
        """
        check_tokens(input_ids)
        with torch.no_grad():
            carried = {cache_word(self.model): self}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **carried).logits

    def feed(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, chunk: int | None = None) -> None:
        """Read a stream (B, n) of any length, in rounds of at most ``chunk`` tokens (default: the room there is)."""
        check_tokens(input_ids)
        if chunk is not None:
            whole("chunk", chunk, 1)
        size = chunk or self.room() or input_ids.shape[1]
        for start in range(0, input_ids.shape[1], size):
            part = slice(start, start + size)
            self.write(input_ids[:, part], None if attention_mask is None else attention_mask[:, part])

    def read(self, layer: int, *, rotated: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (B, H_kv, W, D) as the next token would see them (or before rotation), values, and the mask (B, W)."""
        if not 0 <= layer < len(self.layers):
            raise BadInput(f"layer={layer} is outside this memory of {len(self.layers)} layers")
        keys, values = self.layers[layer].keys, self.layers[layer].values
        if keys is None or values is None:
            raise MemoryError_("this memory is empty: there is nothing to read")
        valid = np.ones((len(self.rows), 1), dtype=bool)  # as the next single token would find it
        now = plan(self.rows, self.width, valid, self.bound_rotary, self.model)
        mask = keys.new_ones(keys.shape[0], self.width, dtype=torch.bool) if now.mask is None else now.mask[:, :-1]
        return self.bound_rotary.rotate(layer, keys, now.old) if rotated else keys, values, mask

    def reset(self) -> None:
        """Empty the memory; settings and binding stay, the logs end."""
        self._forget()

    def nbytes(self) -> int:
        """Bytes of storage behind all keys and values, measured on the tensors."""
        return sum(layer.nbytes() for layer in self.layers)

    def contents(self, row: int | None = None) -> pd.DataFrame:
        """The inspector's table, one line a held token: slot, token_id, position in the stream, round, scores, reason
        (sink, recent, entropy, fill, new, ...), age in rounds, row of the batch; ``row`` selects one row."""
        chosen = range(len(self.rows)) if row is None else [self._row_index(row)]
        return frame([(index, self.rows[index], self.scores(self.rows[index])) for index in chosen])

    def events(self, row: int = 0) -> EventLog:
        """The log of one row of the batch; items are positions in that row's stream."""
        return self.rows[self._row_index(row)].log if self.rows else EventLog()

    def _row_index(self, row: int) -> int:
        if not is_whole(row, 0, len(self.rows) - 1):
            raise BadInput(f"row={row!r} is outside this memory of {len(self.rows)} rows")
        return row

    # ------------------------------------------------------------------ moments
    def snapshot(self) -> Snapshot:
        """This moment, to :meth:`restore` later (trying several replies from one state)."""
        self._roll_back()
        room = None if self._room is None else self._room.copy()
        tensors = tuple((layer.keys, layer.values) for layer in self.layers)
        return Snapshot(tuple(row.copy() for row in self.rows), tensors, self.fed, room, self._empty_round, self._last)

    def restore(self, moment: Snapshot) -> None:
        """Go back to a moment of this memory; it may be restored any number of times."""
        if not isinstance(moment, Snapshot):
            raise BadInput(f"restore() takes what snapshot() returned, got {type(moment).__name__}")
        if len(moment.tensors) != len(self.layers):
            raise MemoryError_(f"the snapshot has {len(moment.tensors)} layers and this memory {len(self.layers)}")
        self.rows, self.fed, self._pass = [row.copy() for row in moment.rows], moment.fed, None
        self._room = None if moment.room is None else moment.room.copy()
        self._empty_round, self._last = moment.empty_round, moment.last
        for layer, (keys, values) in zip(self.layers, moment.tensors):
            layer.put_back(keys, values)

    # ------------------------------------------------------------------ transformers.Cache (the rest: _as_cache.py)
    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order (a row may be taken more than once)."""
        order = torch.as_tensor(indices).cpu()
        order = (order.nonzero().flatten() if order.dtype == torch.bool else order).tolist()
        self.rows = [self.rows[index].copy() for index in order]
        self._last = None if self._last is None else self._last.pick(order)
        self._room = None if self._room is None else self._room[order]
        for layer in self.layers:
            if layer.keys is not None:
                layer.pick(torch.tensor(order, device=layer.keys.device))

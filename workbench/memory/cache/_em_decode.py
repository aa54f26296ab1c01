"""Decoding with EM-LLM: everything a single new token needs, laid out so that reading it is an append.

A pass of several tokens rotates all held keys and joins them with the fetched events: work that pays for many queries
at once. For one token that work is most of a step. Here all layers lie in one tensor with room ahead: held keys stay
rotated from step to step (no token leaves, so no position changes), fetched events lie directly before the held tokens
(keys and values of [events | held] are one stretch each), and what no layer decides for itself is made once for all.
The formula is that of ``_memory_attention``; when tokens leave the window the room is laid out anew.

A product whose operands begin at odd places is slow on a card. There the width of a step's scores is filled up to a
multiple of 8 with rows of zeros before the events, which a bias of minus infinity hides: no further launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from workbench.errors import MemoryError_
from workbench.memory.cache._event_choice_device import SPARE, hidden_before
from workbench.memory.cache._layer import SlotLayer
from workbench.memory.cache._memory_attention import mixed
from workbench.memory.cache._pass import Pass
from workbench.memory.cache._rotary import Rotary, Tables, inverse
from workbench.memory.cache._surprise import Last

if TYPE_CHECKING:
    from workbench.memory.cache._event_choice_device import DeviceChoice
    from workbench.memory.cache._retriever import Retriever

AHEAD = 64  # tokens that fit before a room is laid out anew; events mostly leave sooner
#: Rotations whose table at a position does not depend on how long the stream is: a rotated key stays right.
STEADY = {"default", "linear", "yarn", "llama3"}
_ONE = np.ones((1, 1), dtype=bool)


class EpisodicLayer(SlotLayer):
    """A layer that, while one token is decoded, writes into the memory's room instead of joining tensors."""

    _coming = 0  # columns with the token of the pass under way; 0 outside such a pass

    @property
    def width(self) -> int:
        return self._coming or super().width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As every token cache; in a room only the new token is returned: the memory's attention reads the room."""
        room = self.cache.decoding  # type: ignore[attr-defined]
        if room is None:
            return super().update(key_states, value_states, *args, **kwargs)
        room.write(self.index, key_states, value_states)
        self._coming = room.n + 1
        return key_states, value_states

    def truncate(self, width: int) -> None:
        if self._coming:  # nothing that is held was touched
            self._coming = 0
        else:
            super().truncate(width)

    def settle(self, keys: Tensor, values: Tensor) -> None:
        """The pass has ended: hold these views of the room."""
        self.keys, self.values, self._coming = keys, values, 0

    def put_back(self, keys: Tensor | None, values: Tensor | None) -> None:
        self._coming = 0
        super().put_back(keys, values)

    def reset(self) -> None:
        self._coming = 0
        super().reset()

    def nbytes(self) -> int:
        """Bytes of this layer; of a room, which all layers share, its part."""
        room = self.cache.room_of(self)  # type: ignore[attr-defined]
        return super().nbytes() if room is None else room.nbytes() // room.layers


def decodes(rotary: Rotary, windows: Sequence[int | None], layers: Sequence[SlotLayer]) -> bool:
    """Whether these layers can lie in one room: alike, on one device, without sliding windows, rotated steadily."""
    kinds = getattr(rotary.module, "rope_type", "unknown")
    steady = set(kinds.values() if isinstance(kinds, dict) else [kinds]) <= STEADY
    if not steady or any(windows) or len(set(rotary.layers)) != 1:
        return False
    held = [(layer.keys, layer.values) for layer in layers]
    return len({(k.shape, v.shape, k.dtype, k.device) for k, v in held if k is not None and v is not None}) == 1


class DecodeRoom:
    """Held keys and values of all layers, with room for ``AHEAD`` tokens behind and for fetched events before them.

    Args:
        layers: of the memory; from here on their tensors are views of this room. masses: attention that each held token
            drew, (H, n) of every layer. reach: distance from which on tokens look equally far away.
        most: tokens of events that a pass may fetch. fetches: the memory's events, where a device shall choose among
            them; it does so as long as this room stands, for in that time none is added.
    """

    #: Of what number the width of scores is a multiple, by kind of device; at most ``SPARE``. Elsewhere: 1.
    multiples: ClassVar[dict[str, int]] = {"cuda": 8}

    def __init__(
        self, layers: Sequence[EpisodicLayer], masses: dict[int, Tensor], rotary: Rotary, *, reach: int, most: int,
        fetches: Retriever | None = None,
    ):  # fmt: skip
        keys, values = torch.cat([_held(x)[0] for x in layers]), torch.cat([_held(x)[1] for x in layers])
        self.layers, self.heads, self.dim = len(layers), keys.shape[1], keys.shape[3]
        self.n = self._first = keys.shape[2]
        self.multiple = self.multiples.get(keys.device.type, 1)
        self._gap = self.multiple - 1  # rows of zeros before everything
        self.most, self.start = most, self._gap + most
        self.reach, self._rotary = reach, rotary
        self._lay_out_positions(keys)
        self._lay_out_tokens(keys, values)
        drawn = torch.stack([masses[layer] for layer in range(self.layers)])
        self._mass = torch.cat([drawn, drawn.new_zeros(*drawn.shape[:2], AHEAD)], dim=-1)
        self._fetched: list[tuple[np.ndarray | None, int]] = [(None, 0)] * self.layers
        self._drawn: list[Tensor | None] = [None] * self.layers
        self.choice: DeviceChoice | None = None
        if fetches is not None:
            self.choice = fetches.device_choice(self.n + AHEAD, keys.device)
        self._bias = self._lay_out_bias(keys.device)
        self._settle(layers)

    def _lay_out_positions(self, keys: Tensor) -> None:
        self._positions = torch.arange(self.n + AHEAD, device=keys.device)[None]
        self._tables = self._rotary.tables(self._positions, torch.empty((), dtype=keys.dtype, device=keys.device))
        self._back = inverse(self._tables, _work(keys.dtype))
        self._turn = self._turns(keys)

    def _lay_out_tokens(self, keys: Tensor, values: Tensor) -> None:
        size, stop, gap = self.n + AHEAD, self.start + self.n, self._gap
        # token after token: an event is fetched with one gather of whole rows
        self._both = keys.new_empty(self.layers, self.start + size, self.heads, self.dim + values.shape[3])
        self._both[:, : self.start].zero_()  # no row is read that was never written
        self._keys, self._values = self._both.transpose(1, 2).split([self.dim, values.shape[3]], dim=-1)
        self._keys[:, :, self.start : stop], self._values[:, :, self.start : stop] = keys, values
        self._near_all = keys.new_empty(self.layers, self.heads, gap + size, self.dim)
        self._near_all[:, :, :gap].zero_()
        self._near = self._near_all[:, :, gap:]
        self._near[:, :, : self.n] = self._rotary.rotate(0, keys, _cut(self._tables, 0, self.n))
        self._keys_of, self._values_of = self._keys.transpose(2, 3).unbind(0), self._values.unbind(0)
        self._events = self._both[:, gap : self.start].unbind(0)

    def _lay_out_bias(self, device: torch.device) -> Tensor | None:
        """Minus infinity ``SPARE`` times, then what is added to the logits of events and held tokens; None: nothing."""
        if self.choice is not None:
            return self.choice.bias_all
        return hidden_before(self.most + self.n + AHEAD, device) if self.multiple > 1 else None

    def _turns(self, keys: Tensor) -> Tensor:
        """(AHEAD, D, D): ``query @ turn`` undoes the rotation at a coming position and rotates to ``reach - 1``.

        Rotation is linear, so the rows are what it makes of the unit vectors.
        """
        work = _work(keys.dtype)
        units = torch.eye(self.dim, dtype=work, device=keys.device).expand(AHEAD, 1, -1, -1)
        back = _cut(self._back, self._first, self._first + AHEAD)
        back = {kind: (cos.transpose(0, 1), sin.transpose(0, 1)) for kind, (cos, sin) in back.items()}
        place = torch.full((1, 1), self.reach - 1, device=keys.device)
        far = self._rotary.tables(place, torch.empty((), dtype=keys.dtype, device=keys.device))
        return self._rotary.rotate(0, self._rotary.turned_back(0, units, back), far)[:, 0].contiguous()

    def serves(self, layers: Sequence[SlotLayer], masses: dict[int, Tensor]) -> bool:
        """Whether the memory still holds this room's views and one more token fits."""
        same = all(layer.keys is view for layer, view in zip(layers, self._held_keys))
        return same and masses is self.masses and self.n < self._near.shape[2]

    # ------------------------------------------------------------------ a pass
    def open(self) -> Pass:
        """Lay out the pass of the next token."""
        n, new = self.n, (self.n, self.n + 1)
        if self.choice is not None:
            self.choice.begin()
        self.far = max(n + 1 - self.reach, 0)  # held tokens that look equally far away
        self._new_keys = self._near[:, :, n].unbind(0)
        self._new_values = self._values[:, :, self.start + n].unbind(0)
        self._bias_now: dict[int, Tensor] = {}
        first = self._gap + self.far - (0 if self.far or self.most else self._lead(0))
        self._near_keys = self._near_all[:, :, first : self._gap + n + 1].transpose(2, 3).unbind(0)
        self._turn_now = self._turn[n - self._first]
        tables = (_cut(self._tables, 0, n), _cut(self._tables, *new), _cut(self._back, *new))
        return Pass(n, _ONE, self._positions[:, n : n + 1], None, *tables)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """The new token (1, H_kv, 1, D) of a layer, its key rotated at its place."""
        self._new_keys[layer].copy_(key[0, :, 0])
        self._new_values[layer].copy_(value[0, :, 0])

    def far_query(self, query: Tensor) -> Tensor:
        """(1, H, 1, D) rotated at its place -> (H_kv, G, D) rotated to ``reach - 1``."""
        flat = query.reshape(-1, self.dim)
        turned = (flat.to(self._turn_now.dtype) @ self._turn_now).to(query.dtype)
        return turned.view(self.heads, -1, self.dim)

    def _lead(self, m: int) -> int:
        """How many rows of zeros are read before ``m`` tokens of events."""
        return -(m + self.n + 1) % self.multiple

    def _bias_of(self, m: int) -> Tensor | None:
        """What hides the rows of zeros, and those that no event fills: one view for all layers that read ``m``."""
        if self._bias is not None and m not in self._bias_now:
            self._bias_now[m] = self._bias[SPARE - self._lead(m) : SPARE + m + self.n + 1]
        return self._bias_now.get(m)

    def near_scores(self, layer: int, query: Tensor) -> Tensor:
        """Scores (H_kv, G, n') of the tokens in reach, the new one last; where nothing is out of reach and no event may
        be fetched, those of the rows of zeros come first."""
        return torch.bmm(query.reshape(self.heads, -1, self.dim), self._near_keys[layer])

    def place(self, layer: int, events: np.ndarray, retriever: Retriever) -> int:
        """Put events before the held tokens, unless they lie there already; returns how many tokens they have."""
        known, m = self._fetched[layer]
        if known is None or known.tobytes() != events.tobytes():
            self._fetched[layer] = (None, 0)  # while rows are being written
            m = retriever.place(layer, events, self._events[layer])
            self._fetched[layer] = (events, m)
        return m

    def fetch(self, layer: int, far_query: Tensor, choice: DeviceChoice, retriever: Retriever) -> int:
        """:meth:`place` without the host: always as many rows, those that no event fills are hidden by a bias."""
        retriever.fetch_into(layer, far_query, choice, self._events[layer])
        return self.most

    def attend(
        self, layer: int, far_query: Tensor, near: Tensor, m: int, *,
        scaling: float, softcap: float | None, sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Output (1, H, 1, D_v) over ``m`` tokens of events and all held ones; ``near``: scores of those in reach."""
        lead, held = self._lead(m), self.n + 1
        first, total = self.start - m - lead, lead + m + held
        width, scores = total - near.shape[2], near
        if width:
            far = torch.bmm(far_query, self._keys_of[layer].narrow(2, first, width))
            scores = torch.cat([far, near], dim=-1)
        scores = scores[:, :, None]
        values = self._values_of[layer].narrow(1, first, total)
        out, weights = mixed(scores, values, scaling=scaling, softcap=softcap, sinks=sinks, bias=self._bias_of(m))
        self._drawn[layer] = weights[:, :, 0, self.far - held :]
        return out.reshape(1, -1, 1, out.shape[-1])

    def commit(self, layers: Sequence[EpisodicLayer]) -> None:
        """The pass has ended in every layer: hold its token and the attention that was drawn."""
        n, new = self.n, (self.n, self.n + 1)
        fresh = self._rotary.turned_back(0, self._near[:, :, n : n + 1], _cut(self._back, *new))
        self._keys[:, :, self.start + n] = fresh[:, :, 0]
        # as it will be when the room is laid out anew: a moment that is gone back to goes on in the same way
        self._near[:, :, n : n + 1] = self._rotary.rotate(0, fresh, _cut(self._tables, *new))
        drawn = torch.stack([part for part in self._drawn if part is not None]).flatten(1, 2)
        self._mass[..., self.far : n + 1] += drawn
        self.n = n + 1
        self._settle(layers)

    def _settle(self, layers: Sequence[EpisodicLayer]) -> None:
        part = slice(self.start, self.start + self.n)
        self._held_keys: tuple[Tensor, ...] = self._keys[:, None, :, part].unbind(0)
        for layer, keys, values in zip(layers, self._held_keys, self._values[:, None, :, part].unbind(0)):
            layer.settle(keys, values)
        self.masses: dict[int, Tensor] = dict(enumerate(self._mass[..., : self.n].unbind(0)))

    def holds(self, layer: SlotLayer) -> bool:
        return layer.keys is self._held_keys[layer.index]

    def nbytes(self) -> int:
        """Bytes of keys and values, rotated keys and fetched events included."""
        return self._both.untyped_storage().nbytes() + self._near_all.untyped_storage().nbytes()


def next_surprise(ids: np.ndarray, target: int, logits: Tensor, last: Last) -> tuple[list[np.ndarray], Last]:
    """What ``_surprise.measure`` gives for one token of one stream, with one look at the device."""
    total, chosen = torch.logsumexp(last.logits.float(), -1), last.logits[:, target]
    raw = (total.double() - chosen.double()).cpu().numpy()
    return [raw], Last(ids[:, 0].copy(), logits[:, 0].clone())


def _held(layer: SlotLayer) -> tuple[Tensor, Tensor]:
    if layer.keys is None or layer.values is None:
        raise MemoryError_("this memory is empty: there is nothing to read")
    return layer.keys, layer.values


def _cut(tables: Tables, start: int, stop: int) -> Tables:
    return {kind: (cos[:, start:stop], sin[:, start:stop]) for kind, (cos, sin) in tables.items()}


def _work(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

"""Lists of which all but one thing is taken: what the small list models are trained and questioned on.

After the laundry list of Merullo et al. 2024 (arXiv 2406.09519), in words of its own. ``item``: ``LIST cup key hat TOOK
hat cup LEFT key``. ``colour``: ``LIST cup red key blue hat red TOOK hat red cup red LEFT blue``, colours drawn with
repetition, so that the answer is looked up at the one entry that was not taken, or counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench_datasets._checks import whole
from workbench_datasets._world_words import COLOURS, ITEMS
from workbench_datasets.streams import IGNORE, generator

__all__ = ["KINDS", "ListPrompts", "list_prompts", "words"]

KINDS = ("item", "colour")
LIST, TOOK, LEFT = 2, 3, 4
_FIRST_ITEM, _N_ITEMS, _N_COLOURS = 5, 40, 8
_FIRST_COLOUR = _FIRST_ITEM + _N_ITEMS


def words() -> tuple[str, ...]:
    """The vocabulary in the order of its ids: beginning, end, three markers, 40 things, 8 colours."""
    return ("<|bos|>", "<|eos|>", "LIST", "TOOK", "LEFT", *ITEMS[:_N_ITEMS], *COLOURS[:_N_COLOURS])


@dataclass(frozen=True)
class ListPrompts:
    """n prompts with lists of one size.

    ``ids`` (n, T) begin with the id of ``<|bos|>`` and end with the answer; ``targets`` (n, T) the token to predict at
    a position, -100 where nothing is asked: what is named after TOOK (things or their colours) and the answer;
    ``listed`` (n, N) the things or colours that can be the answer; ``place`` (n,) of the remaining thing in the list;
    ``parts`` (n, T): 0 its entry, 1 other entries, 2 taken, 3 the rest.
    """

    kind: str
    ids: np.ndarray
    targets: np.ndarray
    listed: np.ndarray
    place: np.ndarray
    parts: np.ndarray

    @property
    def size(self) -> int:
        return self.listed.shape[1]

    @property
    def answers(self) -> np.ndarray:
        return self.ids[:, -1]


def list_prompts(kind: str, n: int, size: int, *, seed: int = 0, split: str = "train") -> ListPrompts:
    """``n`` prompts of ``size`` different things (2 to 40). "train" and "test" never share random numbers."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    whole("n", n), whole("size", size, 2, _N_ITEMS)
    rng = generator(f"list {kind}", seed, split, size)
    things = rng.random((n, _N_ITEMS)).argsort(1)[:, :size] + _FIRST_ITEM
    order = rng.random((n, size)).argsort(1)  # places as they are taken; the last one stays
    colours = rng.integers(_FIRST_COLOUR, _FIRST_COLOUR + _N_COLOURS, (n, size))
    entries = things[..., None] if kind == "item" else np.stack([things, colours], -1)  # n N 1|2
    taken = np.take_along_axis(entries, order[:, :-1, None], 1)
    place, asked = order[:, -1], entries[..., -1]
    mark = np.ones((n, 1), np.int64)
    answer = np.take_along_axis(asked, place[:, None], 1)
    ids = [0 * mark, LIST * mark, entries.reshape(n, -1), TOOK * mark, taken.reshape(n, -1), LEFT * mark, answer]
    return ListPrompts(kind, *_laid_out(ids, entries.shape[-1]), asked, place, _parts(place, size, entries.shape[-1]))


def _laid_out(pieces: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate(pieces, 1)
    targets = np.full_like(ids, IGNORE)
    before = pieces[2].shape[1] + 3  # <|bos|> LIST entries TOOK
    asked = np.arange(before + width - 1, ids.shape[1] - 2, width)
    targets[:, asked - 1] = ids[:, asked]
    targets[:, -2] = ids[:, -1]
    return ids, targets


def _parts(place: np.ndarray, size: int, width: int) -> np.ndarray:
    entry = np.where(np.arange(size) == place[:, None], 0, 1).repeat(width, 1)
    around = (2, 1, (size - 1) * width, 2)  # <|bos|> LIST; TOOK; the taken; LEFT and the answer
    rest, took, taken, end = (np.full((len(place), n), part) for n, part in zip(around, (3, 3, 2, 3)))
    return np.concatenate([rest, entry, took, taken, end], 1)

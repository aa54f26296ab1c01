"""What the recall generators share: the table they return, seeds that cannot meet, draws without replacement.

Everything is drawn for all sequences at once (one numpy call a column), so that a pool of 100,000 sequences takes
seconds. Rows are made in blocks whose size depends on the settings alone: equal settings give equal pools.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench_datasets._checks import whole

__all__ = ["IGNORE", "PAD", "SPLITS", "Streams", "join"]

IGNORE = -100  # a position without a target, as torch's cross-entropy reads it
PAD = 0
SPLITS = ("train", "test")
_BLOCK = 1 << 24  # entries of the largest table held while drawing: 32 MB as int16


@dataclass(frozen=True)
class Streams:
    """N sequences of T tokens, with what is asked in them.

    ``ids`` (N, T) int32; ``targets`` (N, T) int32, the token to predict *at* a position, -100 where nothing is asked;
    ``distance`` (N, T) int32, positions since what is asked was last told, -1 where nothing is asked; ``category``
    (N, T) int16, an index into ``categories``, -1 where nothing is asked; ``lengths`` (N,) int32, tokens before the
    padding; ``vocabulary`` ids run from 0 to this; ``chance`` of guessing an answer from its kind alone.
    """

    ids: np.ndarray
    targets: np.ndarray
    distance: np.ndarray
    category: np.ndarray
    lengths: np.ndarray
    categories: tuple[str, ...]
    vocabulary: int
    chance: float

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """T."""
        return self.ids.shape[1]

    def __getitem__(self, rows: Any) -> Streams:
        """Some of the sequences, by a slice or an array of row numbers."""
        if isinstance(rows, int | np.integer):
            raise TypeError(f"rows={rows}: expected a slice or an array of row numbers; {rows}:{rows + 1} is one row")
        cut = {name: getattr(self, name)[rows] for name in ("ids", "targets", "distance", "category", "lengths")}
        return Streams(**cut, categories=self.categories, vocabulary=self.vocabulary, chance=self.chance)


def join(parts: Sequence[Streams], *, length: int | None = None, side: str = "right", seed: int = 0) -> Streams:
    """The sequences of several pools in one, shuffled by ``seed`` and padded with 0 to ``length`` (default: longest).

    ``side`` says where the padding goes. ``chance`` is the mean over what is asked. Raises ValueError for no pools,
    pools of another vocabulary, or a ``length`` that would cut a sequence.
    """
    if not parts:
        raise ValueError("parts is empty: give at least one pool")
    if len({part.vocabulary for part in parts}) > 1:
        raise ValueError(f"pools of one vocabulary can be joined, got {sorted({p.vocabulary for p in parts})}")
    longest = max(part.length for part in parts)
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"length={length}: the longest sequences have {longest} tokens; nothing is cut")
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r}: expected left or right")
    names = tuple(dict.fromkeys(name for part in parts for name in part.categories))
    order = np.random.default_rng([seed, 7]).permutation(sum(len(part) for part in parts))
    rows = {
        name: np.concatenate([_padded(getattr(part, name), length, side, fill) for part in parts])[order]
        for name, fill in (("ids", PAD), ("targets", IGNORE), ("distance", -1))
    }
    category = np.concatenate([_padded(_renamed(part, names), length, side, -1) for part in parts])[order]
    lengths = np.concatenate([part.lengths for part in parts])[order]
    asked = [int((part.targets != IGNORE).sum()) for part in parts]
    chance = float(np.average([part.chance for part in parts], weights=asked))
    return Streams(**rows, category=category, lengths=lengths, categories=names,
                   vocabulary=parts[0].vocabulary, chance=chance)  # fmt: skip


def _renamed(part: Streams, names: tuple[str, ...]) -> np.ndarray:
    table = np.array([*(names.index(name) for name in part.categories), -1], np.int16)  # index -1 stays -1
    return table[part.category]


def _padded(rows: np.ndarray, length: int, side: str, fill: int) -> np.ndarray:
    missing = length - rows.shape[1]
    around = (0, missing) if side == "right" else (missing, 0)
    return np.pad(rows, ((0, 0), around), constant_values=fill)


def generator(name: str, seed: int, split: str, *more: int) -> np.random.Generator:
    """A generator for one kind of stream; "train" and "test" never share one, whatever the seeds."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    return np.random.default_rng([zlib.crc32(name.encode()), SPLITS.index(split), whole("seed", seed, 0), *more])


def drawn(rng: np.random.Generator, rows: int, count: int, n: int) -> np.ndarray:
    """``count`` different numbers of 0..n-1 for every row, in random order: (rows, count).

    A Fisher-Yates shuffle stopped after ``count`` steps, one step for all rows at a time.
    """
    return shuffled(rng, rows, count, n)[:, :count]


def shuffled(rng: np.random.Generator, rows: int, count: int, n: int) -> np.ndarray:
    """0..n-1 for every row, the first ``count`` of them drawn at random, the others following: (rows, n)."""
    deck = np.tile(np.arange(n, dtype=np.int32), (rows, 1))
    at = np.arange(rows)
    for step in range(count):
        other = rng.integers(step, n, rows)
        deck[at, step], deck[at, other] = deck[at, other], deck[at, step].copy()
    return deck


def blocks(rows: int, width: int) -> Iterator[int]:
    """Numbers of rows, so that a table of ``width`` columns stays small."""
    size = max(1, _BLOCK // max(1, width))
    for begin in range(0, rows, size):
        yield min(size, rows - begin)


def in_blocks(rows: int, width: int, make: Callable[[int], Streams]) -> Streams:
    """``make(rows)`` called for one block after another, as one pool."""
    parts = [make(size) for size in blocks(rows, width)]
    if len(parts) == 1:
        return parts[0]
    names = ("ids", "targets", "distance", "category", "lengths")
    tables = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Streams(**tables, categories=parts[0].categories, vocabulary=parts[0].vocabulary, chance=parts[0].chance)


def blank(rows: int, length: int, fill: int = PAD) -> dict[str, np.ndarray]:
    """Empty tables of a pool: nothing asked anywhere."""
    return {
        "ids": np.full((rows, length), fill, np.int32),
        "targets": np.full((rows, length), IGNORE, np.int32),
        "distance": np.full((rows, length), -1, np.int32),
        "category": np.full((rows, length), -1, np.int16),
        "lengths": np.full(rows, length, np.int32),
    }

"""Multi-query associative recall (MQAR): pairs first, then every key is asked once; optionally the pairs twice.

The task of Zoology (Arora et al. 2023, arXiv 2312.04927) in the form that MoM (2502.13685) is probed with, and its
repeat-aware form for Just Read Twice (2407.05483). Written from the description; no code of either is used.
"""

from __future__ import annotations

import numpy as np

from workbench_datasets._checks import is_number, whole
from workbench_datasets.streams import Streams, blank, generator, in_blocks, shuffled

__all__ = ["mqar"]


def mqar(
    n: int,
    *,
    pairs: int = 8,
    length: int = 160,
    vocabulary: int = 512,
    repeats: int = 1,
    show_answers: bool = False,
    power: float = 0.01,
    seed: int = 0,
    split: str = "train",
) -> Streams:
    """``n`` sequences of ``length`` tokens: ``k1 v1 .. kn vn`` (``repeats`` times), then questions among random ids.

    Args:
        pairs: keys (ids 1..V/2-1) with values (ids V/2..V-1); neither repeats within a sequence.
        repeats: how often the whole list of pairs is told, in the same order (p of the card).
        show_answers: write the value after each question (never before it); the repeat-aware form does.
        power: a; slot g = 0, 1, .. of the questions' part (each two tokens) is asked with weight a (g+1)^(a-1), without
            replacement, so questions crowd near the pairs.
        split: "train" and "test" never share a sequence's random numbers.

    The target stands at the position of the asked key. Other positions hold random ids from 1 on that are neither keys
    nor values of the sequence: each key is asked once and no answer is shown. ``distance`` counts from the key's last
    telling; ``category`` is the number of pairs; chance is 1/pairs (a value of the sequence).

    Raises ValueError for an odd vocabulary, more pairs than keys, or a length without a slot for every key.

    >>> pool = mqar(2, pairs=2, length=12, vocabulary=16, seed=1)
    >>> pool.ids.shape, int((pool.targets != -100).sum())
    ((2, 12), 4)
    """
    whole("n", n)
    whole("vocabulary", vocabulary, 6)
    if vocabulary % 2:
        raise ValueError(f"vocabulary={vocabulary}: expected an even number (keys below the middle, values above)")
    whole("pairs", pairs, 1, vocabulary // 2 - 1)
    whole("repeats", repeats)
    told = 2 * pairs * repeats
    if whole("length", length) < told + 2 * pairs:
        raise ValueError(
            f"length={length}: {pairs} pairs told {repeats} times and asked once need {told + 2 * pairs} tokens or more"
        )
    if not is_number(power) or not power > 0:
        raise ValueError(f"power={power!r}: expected a positive number (0.01: questions soon after the pairs)")
    rng = generator("mqar", seed, split, pairs, length, vocabulary, repeats)
    make = _Maker(rng, pairs, length, vocabulary, repeats, show_answers, float(power))
    return in_blocks(n, max(vocabulary, length), make)


class _Maker:
    """The settings of one pool, called with a number of rows."""

    def __init__(self, rng: np.random.Generator, pairs: int, length: int, vocabulary: int, repeats: int,
                 show_answers: bool, power: float):  # fmt: skip
        self.rng, self.pairs, self.length, self.vocabulary = rng, pairs, length, vocabulary
        self.repeats, self.show_answers, self.power = repeats, show_answers, power

    def __call__(self, rows: int) -> Streams:
        middle, told = self.vocabulary // 2, 2 * self.pairs * self.repeats
        keys = shuffled(self.rng, rows, self.pairs, middle - 1) + 1
        values = shuffled(self.rng, rows, self.pairs, middle) + middle
        tables = blank(rows, self.length)
        unused = np.concatenate([keys[:, self.pairs :], values[:, self.pairs :]], 1)
        rest = self.rng.integers(0, unused.shape[1], (rows, self.length))
        tables["ids"][:] = np.take_along_axis(unused, rest, 1)
        keys, values = keys[:, : self.pairs], values[:, : self.pairs]
        tables["ids"][:, :told] = np.tile(np.stack([keys, values], 2).reshape(rows, -1), (1, self.repeats))
        asked = told + 2 * self._slots(rows)
        self._ask(tables, asked, keys, values)
        last = 2 * self.pairs * (self.repeats - 1) + 2 * np.arange(self.pairs)
        np.put_along_axis(tables["distance"], asked, (asked - last).astype(np.int32), 1)
        return Streams(**tables, categories=(str(self.pairs),), vocabulary=self.vocabulary, chance=1 / self.pairs)

    def _slots(self, rows: int) -> np.ndarray:
        """A slot for every key: Gumbel noise on log weights, highest first, is drawing without replacement."""
        slots = (self.length - 2 * self.pairs * self.repeats) // 2
        log_weight = (self.power - 1) * np.log(np.arange(1, slots + 1))
        noisy = log_weight + self.rng.gumbel(size=(rows, slots))
        return np.argsort(-noisy, 1)[:, : self.pairs]

    def _ask(self, tables: dict[str, np.ndarray], asked: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        np.put_along_axis(tables["ids"], asked, keys, 1)
        np.put_along_axis(tables["targets"], asked, values, 1)
        np.put_along_axis(tables["category"], asked, np.int16(0), 1)
        if self.show_answers:
            np.put_along_axis(tables["ids"], asked + 1, values, 1)

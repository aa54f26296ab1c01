"""How a memory of sparse codes is questioned: similarity of codes, capacity, classes, time to store.

Every function returns a tidy frame, one row an observation, with the columns ``x``, ``unit``, ``metric``, ``value``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.associative.sparsey import Sparsey
    from workbench_datasets.digits import Digits

Make = Callable[[int], "Sparsey"]


def similarity_curve(
    make: Make, *, stored: int, shared: Sequence[int], on: int, trials: int, seed: int
) -> pd.DataFrame:
    """Code intersection of a new probe with a stored item against how many of its ``on`` active inputs they share.

    ``make(seed)`` gives an empty memory over a vector. In every trial ``stored`` random patterns go in, then a probe
    that shares ``x`` active inputs with the first is coded as if it were to be stored.
    Metrics: "intersection" (share of CMs with the same winner) and "g" (familiarity of the probe).
    """
    rng, rows = np.random.default_rng(seed), []
    for trial in range(trials):
        for share in shared:
            memory = make(seed * 10_000 + trial)
            patterns = [_random_pattern(memory.n_inputs, on, rng) for _ in range(stored)]
            for pattern in patterns:
                memory.write(pattern)
            probe = _sharing(patterns[0], share, rng)
            codes = memory.macs.code(probe, memory._rng, learning=True, select=memory.select)
            same = float((codes.winners == memory.codes()[0]).mean())
            rows += [(share, trial, "intersection", same), (share, trial, "g", float(codes.g.mean()))]
    return _frame(rows)


def single_trial(make: Make, *, stored: int, on: int, trials: int, seed: int) -> pd.DataFrame:
    """One exposure each, then every item again: is the code the stored one ("same code") and G = 1 ("g is 1")?"""
    rng, rows = np.random.default_rng(seed), []
    for trial in range(trials):
        memory = make(seed * 10_000 + trial)
        for _ in range(stored):
            memory.write(_random_pattern(memory.n_inputs, on, rng))
        for item, pattern in enumerate(memory.patterns()):
            codes = memory.code(pattern)
            unit = f"{trial}.{item}"
            rows.append((stored, unit, "same code", float((codes.winners == memory.codes()[item]).all())))
            rows.append((stored, unit, "g is 1", float((codes.g == 1.0).all())))
    return _frame(rows)


def capacity(memory: Sparsey, patterns: np.ndarray, counts: Sequence[int]) -> pd.DataFrame:
    """Share of CMs that are right when stored patterns are shown again, after every number in ``counts``."""
    rows = []
    for done, pattern in enumerate(patterns[: max(counts)], 1):
        memory.write(pattern)
        if done in counts:
            rows += [(done, item, "recall", float(value)) for item, value in enumerate(memory.accuracy())]
    return _frame(rows)


def store_time(memory: Sparsey, patterns: np.ndarray) -> pd.DataFrame:
    """Milliseconds of this process's time to store each pattern, in order."""
    rows = []
    for done, pattern in enumerate(patterns):
        began = time.thread_time()
        memory.write(pattern)
        rows.append((done, done, "store", 1e3 * (time.thread_time() - began)))
    return _frame(rows)


def classify(memory: Sparsey, train: Digits, test: Digits) -> pd.DataFrame:
    """Store labelled images once each, then ask for the classes of others.

    Metrics: "class units", "nearest code" and "nearest image" (raw pixels, cosine) accuracy on ``test``;
    "code similarity" (Spearman between cosine of images and intersection of codes over all pairs of stored items);
    "distinct codes" (mean over macs), "mean weight", "frozen" (share of macs).
    """
    from scipy.stats import spearmanr

    from workbench.memory.associative.sparsey import distinct_codes, intersections

    for image, label in zip(train.flat(), train.labels):
        memory.write(image, int(label))
    answers = [memory.read(image, k=1) for image in test.flat()]
    nearest = train.labels[[answer.items[0] if answer.items else 0 for answer in answers]]
    images = cosine(train.flat(), train.flat())
    pairs = np.triu_indices(len(images), 1)
    codes = memory.codes()
    values = {
        "class units": np.mean([answer.label == label for answer, label in zip(answers, test.labels)]),
        "nearest code": np.mean(nearest == test.labels),
        "nearest image": np.mean(train.labels[cosine(test.flat(), train.flat()).argmax(1)] == test.labels),
        "code similarity": spearmanr(images[pairs], intersections(codes, codes, memory.k)[pairs])[0],
        "distinct codes": distinct_codes(codes),
        "mean weight": memory.mean_weight().mean(),
        "frozen": memory.frozen.mean(),
    }
    return _frame([(len(train.labels), "all", name, float(value)) for name, value in values.items()])


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of every binary row of (n, N) with every one of (m, N); empty rows give 0."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    lengths = np.sqrt(a.sum(1))[:, None] * np.sqrt(b.sum(1))
    return (a @ b.T) / np.maximum(lengths, 1e-12)


def _random_pattern(n: int, on: int, rng: np.random.Generator) -> np.ndarray:
    pattern = np.zeros(n, bool)
    pattern[rng.choice(n, on, replace=False)] = True
    return pattern


def _sharing(pattern: np.ndarray, share: int, rng: np.random.Generator) -> np.ndarray:
    """A pattern of the same size that shares ``share`` active inputs with ``pattern``."""
    probe = np.zeros_like(pattern)
    probe[rng.choice(np.flatnonzero(pattern), share, replace=False)] = True
    probe[rng.choice(np.flatnonzero(~pattern), int(pattern.sum()) - share, replace=False)] = True
    return probe


def _frame(rows: list[tuple]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["x", "unit", "metric", "value"])
    return frame.assign(unit=frame["unit"].astype(str))

"""How quick a store is on this machine: four numbers, each beside what it should be at 100,000 items."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.memory.durable.items import NewItem
from workbench.memory.durable.store import Store

if TYPE_CHECKING:
    import pandas as pd


class Drawn:
    """Texts that end in a number, to the random unit row of that number: an encoder that costs next to nothing."""

    label = "random vectors"

    def __init__(self, count: int, dim: int, seed: int = 0):
        self.dim, self.name = dim, f"drawn-{count}-{dim}-{seed}"
        rows = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
        self._rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._rows[[int(text.rsplit(" ", 1)[1]) for text in texts]]


def throughput(
    count: int = 100_000,
    dim: int = 384,
    *,
    batch: int = 1_000,
    searches: int = 50,
    page: int = 50,
    folder: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Write ``count`` items of about 150 characters into a file in ``folder`` (None: a temporary one), then read.

    One row per quantity: quantity, value, unit, aim (the number to reach at 100,000 items of width 384 on 2 cores),
    items, dim. Encoding costs nothing here. "open" ends when the number of items is known; "open and search first"
    also reads all vectors. Searches are the median of ``searches``; the bare product is NumPy's, of all vectors with
    one, without ranking: what exact search cannot be quicker than.
    """
    import pandas as pd

    encoder = Drawn(count, dim, seed)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "measured.db"
        with Store(path, encoder=encoder) as store:
            inserting, _ = _seconds(lambda: _fill(store, count, batch))
        opening, store = _seconds(lambda: _opened(path, encoder))
        first, _ = _seconds(lambda: store.search(encoder._rows[0], 10))
        queries = np.random.default_rng(seed + 1).integers(count, size=searches)
        times, bare = [], []
        for query in queries:  # by turns: both meet the same moments of a busy machine
            times.append(_seconds(partial(store.search, encoder._rows[query], 10))[0])
            bare.append(_seconds(partial(np.matmul, encoder._rows, encoder._rows[query]))[0])
        store.contents(0, 1)  # imports pandas
        paging = [_seconds(partial(store.contents, at, page))[0] for at in (0, count // 2, max(count - page, 0))]
        size = path.stat().st_size
        store.close()
    rows = [
        ("insert, in batches", count / inserting, "items/s", 2_000.0),
        ("exact search, top 10", 1e3 * median(times), "ms", 20.0),
        ("exact search against a bare product", median(times) / median(bare), "times", None),
        ("open", opening, "s", 1.0),
        ("open and search first", opening + first, "s", None),
        (f"contents, {page} rows", 1e3 * max(paging), "ms", None),
        ("file", size / 1e6, "MB", None),
    ]
    made = pd.DataFrame(rows, columns=["quantity", "value", "unit", "aim"])
    return made.assign(items=count, dim=dim)


def _fill(store: Store, count: int, batch: int) -> None:
    filler = "A generated line of a memory that says where somebody was on some day, and what was seen there; " * 2
    for start in range(0, count, batch):
        store.add_many(
            [
                NewItem(f"{filler[: 100 + 7 * (i % 13)]} {i}", key=f"line-{i}", time=float(i), tags=("generated",))
                for i in range(start, min(start + batch, count))
            ]
        )


def _opened(path: Path, encoder: Drawn) -> Store:
    store = Store(path, encoder=encoder)
    len(store)
    return store


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made

"""Stores on both kinds of places: in memory and in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_kit import Letters, ticking

from workbench.memory.durable import Store


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store with the letters encoder and a clock that counts."""
    path = tmp_path / "store.db" if request.param == "file" else None
    with Store(path, encoder=Letters(), clock=ticking()) as made:
        yield made

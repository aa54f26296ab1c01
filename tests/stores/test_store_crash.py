"""SIGKILL at any moment loses nothing that was acknowledged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_writer import crash


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.slow
def test_killing_the_writer_loses_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    report = crash(tmp_path / "store.db", rounds=25, seed=20231107)
    sys.stdout.write(f"{report}\n")
    for name in ("kills", "operations", "items", "lost"):
        record_property(name, getattr(report, name))
    assert report.kills == 25
    assert report.operations > 60
    assert report.items > 20
    assert report.lost == 0
    assert report.problems == []

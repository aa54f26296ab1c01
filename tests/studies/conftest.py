from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import study_kit

from workbench.studies import STUDIES


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_kit.install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def work(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a cache, a record and a log of its own; the study 'drift' is installed."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    monkeypatch.setenv("DRIFT_LOG", str(tmp_path / "log"))
    yield tmp_path
    STUDIES._known.pop("drift", None)

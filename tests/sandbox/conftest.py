"""A private temporary folder, a mark on every process of a test, and the check that both are gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from workbench.sandbox import Limits, Report, SandboxUnavailable, run

#: Attacks end by the limit they run into; the clock is long, since on a busy machine a second of work takes several.
SHORT = Limits(seconds=30, cpu_seconds=2, memory_mb=256, disk_mb=4, file_mb=2, processes=16, output_kb=64)


def marked(token: str) -> list[psutil.Process]:
    """Living processes that were started by, or forked from, a run with this mark in its arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(token in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(token: str, seconds: float = 20.0) -> bool:
    """Whether no marked process is left (time for a busy kernel to take the last one down; left alone, they run on)."""
    end = time.monotonic() + seconds
    while marked(token):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sandboxes of this test put their folders; empty again at the end."""
    # tmp_path comes first, so that pytest's own folders do not move along
    folder = Path(tempfile.mkdtemp(prefix="workbench-test-"))
    folder.chmod(0o755)  # another user must be able to reach it
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    left = os.listdir(folder)
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


@pytest.fixture
def token() -> Iterator[str]:
    """A mark that every process of a run carries in its command line."""
    mark = f"mark-{uuid.uuid4().hex}"
    yield mark
    assert gone(mark), [process.cmdline() for process in marked(mark)]


@pytest.fixture(params=["all layers", "no namespaces"])
def without(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Attacks are tried on the strongest walls and on those of a machine that has no namespaces."""
    return () if request.param == "all layers" else ("namespaces",)


@pytest.fixture
def attack(place: Path, token: str, without: tuple[str, ...]) -> Callable[..., Report]:
    """Run code marked and under short limits. Skipped where the kernel cannot hold a promise in ``needs``."""

    def start(code: str, *, needs: tuple[str, ...] = (), limits: Limits = SHORT, **options: object) -> Report:
        try:
            report = run(code, args=[token], limits=limits, without=without, require=needs, **options)  # type: ignore
        except SandboxUnavailable as problem:
            pytest.skip(str(problem))
        assert gone(token), f"still running after the run: {marked(token)}"
        return report

    return start

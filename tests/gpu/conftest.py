"""Every test here needs a CUDA device; a run on one leaves its date, commit, machine and counts in last_run.json.

Processes of pytest-xdist share the card: a test marked ``whole_card`` waits until no other test of this folder runs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.card_turns import turn

RECORD = Path(__file__).with_name("last_run.json")
TURNS = Path(tempfile.gettempdir()) / f"workbench-card-{os.getuid()}"
_counts: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if Path(item.fspath).parent == RECORD.parent:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device here: make test-gpu runs on one"))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of the time limit, which counts no waiting
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The turn covers a test's fixtures as well, which may hold memory of the card."""
    import torch

    if not torch.cuda.is_available():
        return (yield)
    with turn(TURNS, item.get_closest_marker("whole_card") is not None):
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _counts[report.outcome] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    import torch

    if torch.cuda.is_available() and _counts:
        from workbench.provenance import code_version, device_name, libraries, now

        counts = {name: _counts[name] for name in ("passed", "failed", "skipped")}
        row = {"date": now(), "code": code_version(), "device": device_name("cuda"), "libraries": libraries(), **counts}
        RECORD.write_text(json.dumps(row, indent=2) + "\n")

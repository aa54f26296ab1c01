"""Every test here needs a CUDA device; a run on one leaves its date, commit, machine and counts in last_run.json."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("last_run.json")
_counts: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if Path(item.fspath).parent == RECORD.parent:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device here: make test-gpu runs on one"))


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

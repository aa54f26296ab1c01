"""The linter and the type checker are green: what pre-commit runs, the tests run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.xdist_group("one-worker")
def test_groups_stay_on_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest-xdist tells groups by the node's name; under a pytest that it does not know they come apart silently."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@one-worker"), "groups are lost: which pytest does pytest-xdist support?"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["lint", "format", "types"]
)
def test_green(root: Path, command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

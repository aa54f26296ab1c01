"""A run that is stopped or killed goes on where it was."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import study_kit

SEEDS = ("run", "drift", "--seeds", "3", "--json")


def rows_of(value: dict[str, Any]) -> Any:
    """What must not depend on how often the run was interrupted."""
    (study,) = value["studies"]
    return study["claims"], study["provenance"]["seeds"], study["scale"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Any:
    env = study_kit.environment(installed, tmp_path_factory.mktemp("whole"))
    done = study_kit.workbench(*SEEDS, env=env)
    assert done.returncode == 0, done.stderr
    return rows_of(json.loads(done.stdout))


@pytest.mark.parametrize(("blow", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["ctrl-c", "kill -9"])
def test_resumes_after(blow: signal.Signals, code: int, work: Path, installed: Path, undisturbed: Any) -> None:
    env = study_kit.environment(installed, work, DRIFT_HANG_AT="1")
    process = study_kit.start(*SEEDS, env=env)
    try:
        study_kit.wait_for(lambda: study_kit.computed(work) == [0, 1])
    finally:
        process.send_signal(blow)
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    if blow == signal.SIGINT:
        assert "the same command goes on from there" in stderr
    assert not list(work.rglob("*.tmp"))

    again = study_kit.workbench(*SEEDS, env=study_kit.environment(installed, work))
    assert again.returncode == 0, again.stderr
    assert study_kit.computed(work) == [0, 1, 1, 2]
    value = json.loads(again.stdout)
    assert value["studies"][0]["provenance"]["reused"] == 1
    assert rows_of(value) == undisturbed

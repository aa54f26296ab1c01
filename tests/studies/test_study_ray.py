"""Ray gives the same rows as the process itself, and a killed driver loses only the cells in flight."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import study_kit

from workbench.errors import BadInput
from workbench.studies import STUDIES, Progress, Scale, Study
from workbench.studies.runner import run_all

pytest.importorskip("ray", reason="ray is an extra: pip install 'memory-workbench[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture
def cluster(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local Ray with two cores that stays up for the whole test."""
    monkeypatch.syspath_prepend(str(study_kit.install(tmp_path / "more", "tide")))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    yield work
    ray.shutdown()
    STUDIES._known.pop("tide", None)


def test_ray_equals_the_process_row_for_row(cluster: Path) -> None:
    options = {"seeds": 5, "resume": False, "quiet": True}
    here = run_all(["drift", "tide"], **options)  # type: ignore[arg-type]
    there = run_all(["drift", "tide"], on="ray", **options)  # type: ignore[arg-type]
    for one, other in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)
        assert one.outcomes == other.outcomes
    assert sorted(study_kit.computed(cluster)) == sorted([0, 1, 2, 3, 4] * 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES._known, "drift", Failing())
        with pytest.raises(BadInput, match=r"seed \d cannot be done"):
            run_all(["drift"], on="ray", **options)  # type: ignore[arg-type]


class Failing(Study):
    """Raises one of our errors inside a worker."""

    slug, title = "drift", "fails"
    scales = {"quick": Scale("quick", {}, 1)}

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        raise BadInput(f"seed {seed} cannot be done")

    def figure(self, live: object, reported: object, recorded: object) -> Any:
        raise AssertionError("not drawn here")


def test_a_killed_driver_resumes(work: Path, installed: Path) -> None:
    command = ("run", "drift", "--seeds", "4", "--on", "ray", "--json")
    process = study_kit.start(*command, env=study_kit.environment(installed, work, DRIFT_HANG_AT="2"))
    kept = work / "cache" / "studies" / "drift"
    study_kit.wait_for(lambda: len(list(kept.glob("*.parquet"))) == 3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)

    again = study_kit.workbench("run", "drift", "--seeds", "4", "--json", env=study_kit.environment(installed, work))
    assert again.returncode == 0, again.stderr
    assert '"reused": 3' in again.stdout
    assert study_kit.computed(work)[-1] == 2
    assert sorted(study_kit.computed(work)) == [0, 1, 2, 2, 3]

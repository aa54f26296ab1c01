"""Ray gives the same rows as the process itself, and a killed driver loses only the cells in flight."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import study_kit

from workbench.errors import BadInput
from workbench.studies import STUDIES, Progress, Scale, Study, ray_backend
from workbench.studies.runner import run_all

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is an extra: pip install 'memory-workbench[ray]'", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[tuple[Path, str]]:
    """A local Ray with two cores for this module, with a cache and a log of its own; the folder and Ray's address."""
    work = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(work / "cache"))
        patch.setenv("DRIFT_LOG", str(work / "log"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.syspath_prepend(str(installed))
        patch.syspath_prepend(str(study_kit.install(work / "more", "tide")))
        import ray

        ray_backend.start(ray, num_cpus=2)
        yield work, ray.get_runtime_context().gcs_address
        ray.shutdown()
    for slug in ("drift", "tide"):
        STUDIES._known.pop(slug, None)


def test_ray_equals_the_process_row_for_row(cluster: tuple[Path, str]) -> None:
    options: dict[str, Any] = {"seeds": 5, "resume": False, "quiet": True}
    here = run_all(["drift", "tide"], **options)
    there = run_all(["drift", "tide"], on="ray", **options)
    for one, other in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)
        assert one.outcomes == other.outcomes
    assert sorted(study_kit.computed(cluster[0])) == sorted([0, 1, 2, 3, 4] * 4)


def test_an_error_in_a_worker_is_the_studys_own(cluster: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES._known, "drift", Failing())
    with pytest.raises(BadInput, match=r"seed \d cannot be done"):
        run_all(["drift"], seeds=2, on="ray", quiet=True)


class Failing(Study):
    """Raises one of our errors inside a worker."""

    slug, title = "drift", "fails"
    scales = {"quick": Scale("quick", {}, 1)}

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        raise BadInput(f"seed {seed} cannot be done")

    def figure(self, live: object, reported: object, recorded: object) -> Any:
        raise AssertionError("not drawn here")


def test_a_killed_driver_resumes(cluster: tuple[Path, str], installed: Path, tmp_path: Path) -> None:
    work, address = cluster
    log, hang, kept = work / "log", work / "log.hang", tmp_path / "cache" / "studies" / "drift"
    log.unlink(missing_ok=True)
    hang.write_text("2")
    command = ("run", "drift", "--seeds", "4", "--on", "ray", "--json")
    env = study_kit.environment(installed, tmp_path, RAY_ADDRESS=address)
    process = study_kit.start(*command, env=env)
    try:
        study_kit.wait_for(lambda: len(list(kept.glob("*.parquet"))) == 3, seconds=240)
        study_kit.wait_for(lambda: 2 in study_kit.computed(work), seconds=60)  # its worker may start after the others
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
        hang.unlink()

    again = study_kit.workbench("run", "drift", "--seeds", "4", "--json", env={**env, "DRIFT_LOG": str(log)})
    assert again.returncode == 0, again.stderr
    assert '"reused": 3' in again.stdout
    assert study_kit.computed(work)[-1] == 2
    assert sorted(study_kit.computed(work)) == [0, 1, 2, 2, 3]

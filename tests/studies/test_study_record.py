"""``--record`` is the only writer: provenance on every row, merged by scale, and nothing lost on a full disk."""

from __future__ import annotations

import resource
from pathlib import Path

import pandas as pd
import pytest
import study_kit

from workbench import provenance
from workbench.errors import BadInput, StorageError
from workbench.studies import record, run
from workbench_datasets import files, recorded


def test_every_row_carries_its_provenance(work: Path) -> None:
    result = run("drift", seeds=2, record=True, quiet=True)
    frame = recorded.load("drift", "quick")
    assert list(frame.columns[: len(provenance.COLUMNS)]) == list(provenance.COLUMNS)
    assert not frame[list(provenance.COLUMNS)].isna().any().any()
    assert frame["seed"].tolist() == result.frame["seed"].tolist()
    assert set(frame["study"]) == {"drift"}
    assert frame["libraries"].str.contains(r"python \d.*torch \d").all()
    assert frame["code"].str.match(r"git:[0-9a-f]{12}|memory-workbench \d").all()
    assert frame["date"].str.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
    pd.testing.assert_frame_equal(frame[result.frame.columns], result.frame)


def test_a_scale_replaces_its_own_rows_and_leaves_the_others_byte_for_byte(work: Path) -> None:
    run("drift", scale="full", record=True, quiet=True)
    path = work / "recorded" / "drift.csv"
    full = path.read_text().splitlines()
    run("drift", seeds=2, record=True, quiet=True)
    both = path.read_text().splitlines()
    assert both[: len(full)] == full
    assert len(both) == len(full) + 80
    run("drift", seeds=1, record=True, quiet=True)
    assert len(path.read_text().splitlines()) == len(full) + 40
    assert recorded.scales("drift") == ["full", "quick"]
    assert len(recorded.load("drift")) == 60
    assert recorded.load("drift", "huge").empty


def test_nothing_is_recorded_unasked(work: Path) -> None:
    run("drift", quiet=True)
    assert not (work / "recorded").exists()


def test_a_full_disk_keeps_the_old_record_and_the_run(work: Path, installed: Path) -> None:
    """The file-size limit stands in for the disk: writing beyond it fails in the middle of the new file."""
    path = work / "recorded" / "drift.csv"
    run("drift", scale="full", record=True, quiet=True)
    rows = recorded.load("drift", "full")
    pd.concat([rows.assign(scale=f"scale{n}") for n in range(30)]).to_csv(path, index=False)
    before = path.read_bytes()
    env = study_kit.environment(installed, work)

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    done = study_kit.workbench("run", "drift", "--record", env=env, preexec_fn=small_disk)
    assert done.returncode == 1
    assert "the file that stood there is unchanged" in done.stderr
    assert "The run itself is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert not list(work.rglob("*.tmp"))
    again = study_kit.workbench("run", "drift", "--record", env=env)
    assert again.returncode == 0, again.stderr
    assert study_kit.computed(work) == [0, 0]  # once at scale full, once at quick: the second write computed nothing
    assert path.read_bytes().startswith(before)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_RECORDED", "/proc/self/recorded")
    with pytest.raises(StorageError, match="set WORKBENCH_RECORDED"):
        run("drift", record=True, quiet=True)
    assert study_kit.computed(work) == []


def test_an_installed_package_is_never_written_to(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_RECORDED")
    (work / "_files").mkdir()
    monkeypatch.setattr(files, "_PACKED", work / "_files")
    with pytest.raises(BadInput, match="checkout's datasets/recorded; set WORKBENCH_RECORDED"):
        run("drift", record=True, quiet=True)


def test_many_rows_are_kept_compressed_and_read_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("drift", record=True, quiet=True)
    plain, rows = recorded.path("drift"), recorded.load("drift", "quick")
    monkeypatch.setattr(record, "LARGEST_PLAIN", 100)
    run("drift", record=True, quiet=True)
    packed = recorded.path("drift")
    assert packed.name == "drift.csv.gz"
    assert not plain.exists()
    pd.testing.assert_frame_equal(recorded.load("drift", "quick"), rows)

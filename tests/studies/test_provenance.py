from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from workbench import __version__, provenance
from workbench_datasets import files


@pytest.fixture(autouse=True)
def _uncached():  # type: ignore[no-untyped-def]
    provenance.code_version.cache_clear()
    yield
    provenance.code_version.cache_clear()


def test_one_value_for_each_column() -> None:
    found = provenance.collect("drift", "quick", 3, "cpu", 1.23456)
    assert tuple(found) == provenance.COLUMNS
    assert found["wall_seconds"] == 1.235
    assert str(found["device"]).startswith("cpu ")


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_of_the_checkout_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "files_root", lambda: tmp_path / "datasets")
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert provenance.code_version() == f"git:{commit}"
    (tmp_path / "a.py").write_text("2\n")
    provenance.code_version.cache_clear()
    assert provenance.code_version() == f"git:{commit}+changes"


def test_outside_a_repository_it_is_the_package_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "files_root", lambda: tmp_path / "datasets")
    assert provenance.code_version() == f"memory-workbench {__version__}"


def test_the_fingerprint_covers_a_studys_private_helpers(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text("from somewhere import _one\nimport _two.deep\n")
    (tmp_path / "_one.py").write_text("from pkg._three import x\n")
    (tmp_path / "_three.py").write_text("import _one\n")
    (tmp_path / "_unused.py").write_text("")
    (tmp_path / "somewhere.py").write_text("")
    found = [path.name for path in provenance._with_helpers(tmp_path / "study.py")]
    assert found == ["_one.py", "_three.py", "study.py"]


def test_the_fingerprint_of_a_shipped_study_covers_its_counts() -> None:
    import workbench.studies.flash_attention as study

    assert "_flash_counts.py" in {path.name for path in provenance._with_helpers(Path(study.__file__))}


def test_the_fingerprint_covers_every_room_that_a_study_calls() -> None:
    """How models are trained and peers are raced changes numbers as much as the mechanisms do."""
    root, covered = Path(provenance.__file__).parent, {name.removesuffix(".py") for name in provenance._BELOW_STUDIES}
    rooms = {"studies", *(name for name in covered if (root / name).is_dir())}
    called = {
        match for room in rooms for path in (root / room).rglob("*.py")
        for match in re.findall(r"(?:from|import) workbench\.(\w+)", path.read_text())
    }  # fmt: skip
    assert called - covered == {"studies", "views", "provenance"}, "views only draw; provenance is about them all"


def test_the_fingerprint_ignores_what_cannot_change_a_number(tmp_path: Path) -> None:
    seen = {path.name for path in provenance._sources([Path(provenance.__file__).parent / "memory"])}
    assert "base.py" in seen
    assert not {"cli", "widgets", "views", "studies"} & set(provenance._BELOW_STUDIES)

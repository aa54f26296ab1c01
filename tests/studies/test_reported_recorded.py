"""The reported numbers and the recorded runs that ship, and files that are not as they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench_datasets import files, papers, recorded, reported

GOOD = """table,item,metric,value,low,high,unit,verified,source
Table 1,flash,HBM,4.4,,,GB,true,arXiv 2205.14135
Table 1,standard,HBM,40.3,,,GB,False,arXiv 2205.14135
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the shipped one."""
    for module in (reported, recorded):
        monkeypatch.setattr(module, "files_root", lambda: tmp_path)
    monkeypatch.delenv("WORKBENCH_RECORDED", raising=False)
    (tmp_path / "reported").mkdir()
    (tmp_path / "recorded").mkdir()
    return tmp_path


def test_reported_numbers_load_with_their_types(shipped: Path) -> None:
    (shipped / "reported" / "sirllm.csv").write_text(GOOD)
    frame = reported.load("sirllm")
    assert tuple(frame.columns) == reported.COLUMNS
    assert frame["verified"].tolist() == [True, False]
    assert frame["verified"].dtype == bool
    assert frame["value"].tolist() == [4.4, 40.3]


def test_a_paper_without_numbers_gives_an_empty_frame(shipped: Path) -> None:
    assert reported.load("titans").empty
    assert tuple(reported.load("titans").columns) == reported.COLUMNS
    assert recorded.load("titans").empty
    assert recorded.scales("titans") == []


@pytest.mark.parametrize("load", [reported.load, recorded.load])
def test_a_misspelt_slug_suggests_the_nearest(load, shipped: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="did you mean 'sirllm'"):
        load("sirlm")


def test_a_missing_column_and_an_odd_truth_value_are_named(shipped: Path) -> None:
    path = shipped / "reported" / "sirllm.csv"
    path.write_text("table,item\na,b\n")
    with pytest.raises(ValueError, match="lacks the columns metric, value"):
        reported.load("sirllm")
    path.write_text(GOOD.replace("False", "perhaps"))
    with pytest.raises(ValueError, match="verified is 'perhaps'"):
        reported.load("sirllm")


def test_recorded_scales_do_not_share_their_columns(shipped: Path) -> None:
    (shipped / "recorded" / "sirllm.csv").write_text("study,scale,seed,a,b\nsirllm,quick,0,1.5,\nsirllm,full,0,,x\n")
    assert list(recorded.load("sirllm", "quick").columns) == ["study", "scale", "seed", "a"]
    assert list(recorded.load("sirllm").columns) == ["study", "scale", "seed", "b"]


@pytest.mark.parametrize("path", sorted((files.files_root() / "reported").glob("*.csv")), ids=lambda path: path.stem)
def test_every_shipped_table_is_readable_and_sourced(path: Path) -> None:
    assert path.stem in papers.papers()
    frame = reported.load(path.stem)
    assert len(frame)
    assert frame["source"].fillna("").str.len().gt(0).all()


SLUGS = sorted(path.name.split(".")[0] for path in (files.files_root() / "recorded").glob("*.csv*"))


@pytest.mark.parametrize("slug", SLUGS)
def test_every_recorded_run_carries_its_provenance(slug: str) -> None:
    from workbench.provenance import COLUMNS

    assert recorded.scales(slug)
    for scale in recorded.scales(slug):
        frame = recorded.load(slug, scale)
        assert not frame[list(COLUMNS)].isna().any().any()
        assert set(frame["study"]) == {slug}

"""Running studies: tidy rows, cells that are kept and reused, needs, and bad input."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import study_kit
import torch

from workbench import provenance
from workbench.errors import BadInput, StorageError, UnknownName
from workbench.studies import STUDIES, Claim, NeedsUnmet, Outcome, Scale, Study, run
from workbench.studies.cells import Cell
from workbench.studies.runner import run_all
from workbench_datasets import registry


def quietly(slug: str = "drift", **options: Any) -> Any:
    return run(slug, quiet=True, **options)


def test_rows_are_tidy_and_claims_are_judged(work: Path) -> None:
    result = quietly(scale="full", seeds=3)
    assert result.frame.columns[0] == "seed"
    assert result.frame.groupby("seed").size().to_dict() == {0: 60, 1: 60, 2: 60}
    assert {key: outcome.verdict for key, outcome in result.outcomes.items()} == {"C1": "holds", "C2": "not reproduced"}
    assert not result.held
    claims = result.claims_frame().set_index("id")
    assert claims.loc["C1", "n"] == 180
    assert claims.loc["C1", "low"] < claims.loc["C1", "effect"] < claims.loc["C1", "high"]


def test_a_scale_tests_only_its_own_claims(work: Path) -> None:
    assert list(quietly().outcomes) == ["C1"]


def test_finished_cells_are_reused_and_more_seeds_add_to_them(work: Path) -> None:
    first = quietly(seeds=2)
    again = quietly(seeds=3)
    assert study_kit.computed(work) == [0, 1, 2]
    assert again.provenance["reused"] == 2
    pd.testing.assert_frame_equal(first.frame, again.frame.iloc[:80])
    assert quietly(seeds=[2]).frame["seed"].unique().tolist() == [2]


def test_fresh_computes_anew_and_gives_the_same_rows(work: Path) -> None:
    first, second = quietly(seeds=2), quietly(seeds=2, resume=False)
    assert study_kit.computed(work) == [0, 1, 0, 1]
    pd.testing.assert_frame_equal(first.frame, second.frame)


def test_the_key_covers_settings_seed_device_and_code(work: Path, tmp_path: Path) -> None:
    study = STUDIES.get("drift")
    scale = Scale("quick", {"steps": 40, "device": "cpu"}, 1)
    key = Cell(study, scale, 0).key()
    assert Cell(study, Scale("quick", {"device": "cpu", "steps": 40}, 1), 0).key() == key
    assert Cell(study, Scale("quick", {"steps": 41, "device": "cpu"}, 1), 0).key() != key
    assert Cell(study, scale, 1).key() != key
    assert Cell(study, Scale("quick", {"steps": 40, "device": "meta"}, 1), 0).key() != key
    source = tmp_path / "study.py"
    source.write_text("a = 1\n")
    before = provenance.code_fingerprint(str(source))
    source.write_text("a = 2\n")
    provenance.code_fingerprint.cache_clear()
    assert provenance.code_fingerprint(str(source)) != before


def test_a_changed_study_file_is_measured_anew(work: Path, tmp_path: Path) -> None:
    folder = study_kit.install(tmp_path / "changing")
    env = study_kit.environment(folder, work)
    assert study_kit.workbench("run", "drift", "--json", env=env).returncode == 0
    module = folder / "drift_study.py"
    module.write_text(module.read_text() + "\n# another version\n")
    assert study_kit.workbench("run", "drift", "--json", env=env).returncode == 0
    assert study_kit.computed(work) == [0, 0]


def test_a_damaged_cell_counts_as_absent(work: Path) -> None:
    first = quietly()
    (cell,) = (work / "cache" / "studies" / "drift").glob("*.parquet")
    cell.write_bytes(cell.read_bytes()[:200])
    pd.testing.assert_frame_equal(quietly().frame, first.frame)
    assert study_kit.computed(work) == [0, 0]


def test_a_failing_cell_loses_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_FAIL_AT", "1")
    with pytest.raises(BadInput, match="on purpose"):
        quietly(seeds=3)
    monkeypatch.delenv("DRIFT_FAIL_AT")
    assert quietly(seeds=3).provenance["reused"] == 1
    assert study_kit.computed(work) == [0, 1, 1, 2]


def test_the_callers_generators_and_threads_are_left_alone(work: Path) -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    torch.set_num_threads(2)
    quietly()
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected  # noqa: NPY002
    assert torch.get_num_threads() == 2


def test_several_studies_are_told_one_by_one(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(study_kit.install(tmp_path / "more", "tide")))
    told: list[str] = []
    results = run_all(["drift", "tide", "drift"], quiet=True, done=lambda result: told.append(result.slug))
    assert told == ["drift", "tide"] == [result.slug for result in results]
    STUDIES._known.pop("tide")


def test_json_is_json(work: Path) -> None:
    import json

    value = json.loads(json.dumps(quietly(seeds=2).to_json(), allow_nan=False))
    assert set(value) == {"slug", "scale", "seconds", "claims", "provenance"}
    assert value["provenance"]["seeds"] == [0, 1]
    assert set(value["claims"][0]) >= {"id", "statement", "verdict", "effect", "low", "high", "n", "note"}


# -- needs ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the scale needs")
def test_a_gpu_scale_says_what_is_missing_and_what_runs_here(work: Path) -> None:
    with pytest.raises(NeedsUnmet, match=r"drift at scale gpu needs cuda: .*no NVIDIA GPU.* quick or full") as caught:
        quietly(scale="gpu")
    assert study_kit.computed(work) == []
    assert "quick" in str(caught.value)


def test_a_hub_scale_needs_the_hub_or_the_cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NeedsUnmet, match=r"nobody/nothing.*HF_HUB_OFFLINE.*not in the local cache"):
        quietly(scale="online")


def test_a_data_scale_names_the_files(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "folders", lambda: [work])
    with pytest.raises(NeedsUnmet, match=r"data:books: .*\.txt.*and 10 more.*workbench data fetch books"):
        quietly(scale="books")


def test_a_data_scale_runs_with_the_data(work: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(real_data))
    assert len(quietly(scale="books").frame) == 60


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slug": "sirlm"}, UnknownName, "did you mean 'sirllm'"),
        ({"slug": "titans-2"}, UnknownName, "did you mean 'titans'"),
        ({"scale": "quik"}, UnknownName, "did you mean 'quick'"),
        ({"on": "rey"}, UnknownName, "did you mean 'ray'"),
        ({"seeds": 0}, BadInput, "seeds=0"),
        ({"seeds": [-1]}, BadInput, "seeds="),
        ({"seeds": []}, BadInput, "seeds="),
        ({"scale": "odd"}, BadInput, "needs 'moon'; known needs: cuda"),
        ({"scale": "unserial"}, BadInput, "must be JSON values"),
    ],
)
def test_wrong_calls_are_refused_before_any_work(
    work: Path, options: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        quietly(**{"slug": "drift", **options})
    assert study_kit.computed(work) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 2], "must return a frame"),
        (pd.DataFrame(), "must return a frame with rows"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "distinct names"),
        (pd.DataFrame({0: [1]}), "distinct names"),
        (pd.DataFrame({"device": ["x"]}), "hold provenance"),
        (pd.DataFrame({"seed": [7]}), "another seed"),
        (pd.DataFrame({"mixed": [1, "a", None, {}]}), "one type a column"),
    ],
)
def test_a_study_that_returns_no_tidy_frame_is_told(work: Path, rows: Any, message: str) -> None:
    register_plain(rows)
    with pytest.raises(BadInput, match=message):
        quietly("plain")


def test_a_claim_must_return_an_outcome(work: Path) -> None:
    register_plain(pd.DataFrame({"a": [1]}), test=lambda frame: True)
    with pytest.raises(BadInput, match="C1 must return an Outcome"):
        quietly("plain")


def test_a_study_from_a_notebook_is_kept_for_the_session(work: Path) -> None:
    calls = register_plain(pd.DataFrame({"a": [1]}), module="__main__")
    assert quietly("plain").frame.equals(quietly("plain").frame)
    assert calls == [0]


def test_a_read_only_cache_is_refused_before_the_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", "/proc/self/workbench")
    with pytest.raises(StorageError, match="set WORKBENCH_CACHE to a folder you may write to"):
        quietly()
    assert study_kit.computed(work) == []


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    STUDIES._known.pop("plain", None)


def register_plain(rows: Any, test: Any = None, module: str = __name__) -> list[int]:
    """Register a study 'plain' that returns ``rows``; the list tells how often it really ran."""
    calls: list[int] = []

    class Plain(Study):
        slug, title = "plain", "Plain"
        scales = {"quick": Scale("quick", {}, 1)}
        claims = (Claim("C1", "", "", test or (lambda frame: Outcome("holds", 1, 1, 1, 1))),)

        def run(self, scale: Scale, seed: int, progress: Any) -> Any:
            calls.append(seed)
            return rows

        def figure(self, live: Any, reported: Any, recorded: Any) -> Any:
            raise AssertionError("not drawn here")

    Plain.__module__ = module
    STUDIES._known.pop("plain", None)
    STUDIES.register("plain")(Plain())
    return calls

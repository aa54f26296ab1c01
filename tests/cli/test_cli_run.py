"""``run`` and ``figures``: JSON shape, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import study_kit

from workbench.statistics import VERDICTS
from workbench_datasets import recorded


def test_json_has_the_published_shape(drift: Path, cli: Callable[..., Any]) -> None:
    done = cli("run", "drift", "--scale", "full", "--seeds", "2", "--json")
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    (study,) = value["studies"]
    assert list(value) == ["studies"]
    assert {"slug", "scale", "seconds", "claims", "provenance"} == set(study)
    assert (study["slug"], study["scale"]) == ("drift", "full")
    assert isinstance(study["seconds"], float)
    for claim in study["claims"]:
        assert {"id", "statement", "verdict", "effect", "low", "high", "n", "note"} <= set(claim)
        assert claim["verdict"] in VERDICTS
        assert isinstance(claim["n"], int)
    assert [claim["verdict"] for claim in study["claims"]] == ["holds", "not reproduced"]


def test_strict_fails_when_a_claim_does_not_hold(drift: Path, cli: Callable[..., Any]) -> None:
    assert cli("run", "drift", "--strict").exit_code == 0
    loose, strict = cli("run", "drift", "--scale", "full"), cli("run", "drift", "--scale", "full", "--strict")
    assert (loose.exit_code, strict.exit_code) == (0, 1)
    assert "1 claim does not hold: drift C2 (not reproduced)" in strict.stderr


def test_strict_json_is_still_json(drift: Path, cli: Callable[..., Any]) -> None:
    done = cli("run", "drift", "--scale", "full", "--strict", "--json")
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["studies"]) == 1


def test_the_table_says_verdict_interval_and_what_was_reused(drift: Path, cli: Callable[..., Any]) -> None:
    assert "holds" in cli("run", "drift").stdout
    again = cli("run", "drift", "--seeds", "2").stdout
    assert "1 of 2 seeds from an earlier run" in again
    assert "the mean step is above 0" in again


def test_fresh_computes_again(drift: Path, cli: Callable[..., Any]) -> None:
    cli("run", "drift")
    cli("run", "drift")
    cli("run", "drift", "--fresh")
    assert study_kit.computed(drift) == [0, 0]


def test_record_writes_and_says_where(drift: Path, cli: Callable[..., Any]) -> None:
    done = cli("run", "drift", "--record", "--json")
    assert done.exit_code == 0
    json.loads(done.stdout)
    assert f"recorded 40 rows in {drift / 'recorded' / 'drift.csv'}" in done.stderr.replace("\n", "")
    assert len(recorded.load("drift", "quick")) == 40


def test_a_need_that_is_not_met_fails_with_1(drift: Path, cli: Callable[..., Any]) -> None:
    done = cli("run", "drift", "--scale", "online")
    assert done.exit_code == 1
    assert "needs hub:nobody/nothing" in done.stderr


def test_an_unknown_scale_is_a_usage_error(drift: Path, cli: Callable[..., Any]) -> None:
    done = cli("run", "drift", "--scale", "quik")
    assert done.exit_code == 2
    assert "did you mean 'quick'" in done.stderr


def test_figures_write_a_gallery(drift: Path, cli: Callable[..., Any]) -> None:
    done = cli("figures", "drift", "-o", str(drift / "gallery"))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(drift / "gallery" / "index.html")
    assert {path.suffix for path in (drift / "gallery").iterdir()} == {".html", ".svg", ".png"}


def test_an_unknown_scale_does_not_write_over_a_gallery(drift: Path, cli: Callable[..., Any]) -> None:
    page = drift / "gallery" / "index.html"
    page.parent.mkdir()
    page.write_text("mine")
    done = cli("figures", "drift", "--scale", "quik", "-o", str(page.parent))
    assert done.exit_code == 2
    assert "did you mean 'quick'" in done.stderr
    assert page.read_text() == "mine"


def test_figures_draw_the_others_when_one_fails(drift: Path, cli: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setenv("DRIFT_FAIL_AT", "0")
    done = cli("figures", "drift", "-o", str(drift / "gallery"))
    assert done.exit_code == 1
    assert "drift: seed 0 fails on purpose" in done.stderr
    assert (drift / "gallery" / "index.html").is_file()


def test_nothing_but_json_on_stdout_of_the_real_command(drift: Path, installed: Path) -> None:
    done = study_kit.workbench("run", "drift", "--seeds", "2", "--json", env=study_kit.environment(installed, drift))
    assert done.returncode == 0
    assert json.loads(done.stdout)["studies"][0]["provenance"]["seeds"] == [0, 1]

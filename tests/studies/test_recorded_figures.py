"""Every paper with a recorded run: its figure is drawn from it beside the paper's numbers; its claims are judged."""

from __future__ import annotations

import pytest

from workbench.statistics import VERDICTS
from workbench.studies import STUDIES
from workbench.studies.result import published
from workbench_datasets import files, recorded

RUNS = sorted(path.name.split(".")[0] for path in (files.files_root() / "recorded").glob("*.csv*"))
SLUGS = [slug for slug in RUNS if not slug.startswith("bench-")]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_recorded_run_is_drawn_and_judged(slug, tmp_path):
    study = STUDIES.get(slug)
    reported, run = published(slug)
    assert reported is not None
    assert run is not None
    study.figure(None, reported, run).save(tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert "recorded" in drawn
    assert "paper" in drawn
    scale = recorded.scales(slug)[-1]
    outcomes = study.judge(recorded.load(slug, scale), scale)
    assert set(outcomes) == {claim.id for claim in study.claims if scale in claim.scales}
    assert {outcome.verdict for outcome in outcomes.values()} <= set(VERDICTS)
    assert any(outcome.n > 0 for outcome in outcomes.values())

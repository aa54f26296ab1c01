"""The study of talking heads on the small list models: rows of every kind, claims on known rows, pictures."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.studies import STUDIES
from workbench.studies import _talking_claims as claims
from workbench.studies.talking_heads import _QUICK, _part
from workbench.views import talking_heads as views

SMALL = {"sizes": [2, 4, 6, 12], "per_size": 12, "removed_prompts": 8, "top": 3, "random": 4, "steered_prompts": 4,
         "grid": 3, "random_spaces": 1}  # fmt: skip


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    settings = {**_QUICK, "device": "cpu", "lists": {**_QUICK["lists"], **SMALL}}
    parts = [f"{kind} {part}" for kind in ("item", "colour") for part in ("list", "removed", "steered")]
    rows = [row for part in parts for row in _part(settings, 900, part)]
    return pd.DataFrame(rows).reindex(columns=["experiment", "case", "unit", "x", "metric", "value"])


def test_both_models_are_measured_and_every_claim_is_judged(frame):
    assert set(frame.experiment) == {f"{k} {p}" for k in ("item", "colour") for p in ("list", "removed", "steered")}
    damage = frame[(frame.experiment == "item removed") & (frame.metric == "damage")]
    assert damage.groupby("case").size().to_dict() == {"top": 3, "random": 4}
    assert damage.unit.nunique() == 7
    curve = frame[(frame.experiment == "colour list") & (frame.metric == "correct")].groupby("x").value.mean()
    assert curve[2.0] == 1.0 > curve[12.0]
    looks = frame[(frame.experiment == "item list") & (frame.metric == "looks at")]
    assert looks.groupby("case").value.sum().sub(1).abs().max() < 1e-4  # all attention is somewhere
    for claim in STUDIES.get("talking-heads").claims:
        if claim.id[0] in "IK":
            assert claim.test(frame).verdict in {"holds", "not reproduced", "inconclusive"}


def looking(entry: float, taken: float) -> pd.DataFrame:
    rest = {"its entry": entry, "taken": taken, "other entries": 0.0, "the rest": 1 - entry - taken}
    heads = [(2, f"2.{head}") for head in range(4)] + [(0, "0.0")]
    rows = [
        {"experiment": "item list", "case": case, "unit": part, "x": layer, "metric": "looks at",
         "value": share if layer == 2 else 0.25}
        for layer, case in heads for part, share in rest.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("entry", "taken", "verdict"), [(0.7, 0.2, "holds"), (0.1, 0.8, "not reproduced"), (0.4, 0.4, "not reproduced")]
)
def test_a_mover_looks_at_the_entry_and_a_subtractor_at_what_was_taken(entry, taken, verdict):
    assert claims.looks_at_its_entry(looking(entry, taken), "item ").verdict == verdict


@pytest.mark.parametrize(("right", "verdict"), [(64, "holds"), (30, "not reproduced"), (58, "inconclusive")])
def test_learned_is_nine_of_ten_at_six_things(right, verdict):
    values = [1.0] * right + [0.0] * (64 - right)
    rows = pd.DataFrame({"experiment": "item list", "metric": "correct", "x": 6, "value": values})
    assert claims.learned(rows, "item ").verdict == verdict
    assert "no lists of 6 things" in claims.learned(rows.assign(x=8), "item ").note


def test_pictures_tell_the_models_apart(frame, tmp_path):
    for name, chart in {
        "length": views.length_curve(frame),
        "looks": views.look_bars(frame, kind="colour ", last=True),
        "damage": views.damage_strip(frame),
    }.items():
        path = tmp_path / f"{name}.svg"
        chart.save(path)
        assert path.stat().st_size > 2_000
    data = views.look_bars(frame, kind="colour ", last=True).to_dict()["datasets"]
    assert {row["case"] for rows in data.values() for row in rows} == {f"2.{head}" for head in range(4)}

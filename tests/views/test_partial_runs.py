"""Figures of heads and of associative memories draw what a run has, and leave out what it has not."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.studies import STUDIES
from workbench.studies.result import published
from workbench.views import conflicts, sparsey
from workbench.views import talking_heads as heads


@pytest.mark.parametrize(
    ("slug", "kept", "shown"),
    [
        ("talking-heads", ["planted"], "Planted channels"),
        ("talking-heads", ["item removed"], "Components removed"),
        ("talking-heads", ["colour steered"], "Steering the embedded model"),
        ("knowledge-conflict-heads", ["transfer", "joint"], "What pruning gains"),
        ("sparsey", ["similarity"], "Similar inputs, similar codes (live run)"),
        ("sparsey", ["digits", "time"], "class units, CSA"),
    ],
)
def test_a_run_with_some_of_its_parts_is_drawn(slug, kept, shown):
    reported, run = published(slug)
    assert run is not None
    part = run[run["experiment"].isin(kept)]
    assert len(part)
    drawn = STUDIES.get(slug).figure(part, reported, None).to_json()
    assert shown in drawn
    absent = {"planted": "Planted channels", "similarity": "Similar inputs", "control": "Who wins"}
    assert not [title for name, title in absent.items() if name not in kept and title in drawn]


@pytest.mark.parametrize(
    "view",
    [
        heads.planted_bars,
        heads.length_curve,
        heads.look_bars,
        heads.damage_strip,
        conflicts.rate_bars,
        conflicts.knockout_curves,
        conflicts.transfer_map,
        conflicts.scores,
        sparsey.similarity_curves,
        sparsey.capacity_curves,
    ],
)
def test_a_picture_of_nothing_is_refused(view):
    columns = ["experiment", "metric", "value", "x", "unit", "case", "pruned", "selection", "setting"]
    with pytest.raises(BadInput, match="nothing to draw"):
        view(pd.DataFrame({name: ["something"] for name in columns}))
    with pytest.raises(BadInput, match="is missing"):
        view(pd.DataFrame({"value": [1.0]}))


def test_a_model_that_the_study_does_not_have_is_named():
    with pytest.raises(BadInput, match="kind='large '"):
        heads.look_bars(pd.DataFrame({"experiment": ["list"], "metric": ["looks at"], "value": [0.1]}), kind="large ")

"""Figures of heads and of associative memories draw what a run has, and leave out what it has not."""

from __future__ import annotations

import pytest

from workbench.studies import STUDIES
from workbench.studies.result import published


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
    part = run[run["experiment"].isin(kept)]
    assert len(part)
    drawn = STUDIES.get(slug).figure(part, reported, None).to_json()
    assert shown in drawn
    absent = {"planted": "Planted channels", "similarity": "Similar inputs", "control": "Who wins"}
    assert not [title for name, title in absent.items() if name not in kept and title in drawn]

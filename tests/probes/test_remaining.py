"""The list task on the embedded model, and the study of talking heads on a few prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import BadInput
from workbench.models import load
from workbench.studies import STUDIES, Progress
from workbench.tasks.remaining import PARTS, answers, looks, remaining


@pytest.fixture(scope="module")
def embedded():
    return load("embedded")


def test_prompts_know_their_parts_and_short_lists_are_solved(embedded):
    asked = remaining(embedded, 6, 5, seed=601)
    assert asked == remaining(embedded, 6, 5, seed=601)
    for one in asked:
        text = embedded.tokenizer.decode(list(one.ids))
        entry = "".join(embedded.tokenizer.decode([t]) for t, part in zip(one.ids, one.parts) if part == 0)
        assert one.answer_id in one.colour_ids
        assert embedded.tokenizer.decode([one.answer_id]).strip() in entry
        assert text.split("TOOK")[0].count("(") == one.size == 5
        assert 0 <= one.place < 5
    found = answers(embedded, asked)
    assert found["correct"].all()
    assert (found["log_p"] <= 0).all()
    assert answers(embedded, remaining(embedded, 8, 20, seed=602))["correct"].mean() < 0.9
    shares = looks(embedded, asked[:2])
    assert shares.shape == (8, 8, len(PARTS))
    assert np.allclose(shares.sum(-1), 1, atol=1e-4)
    for size in (1, 21):
        with pytest.raises(BadInput, match="2 to 20"):
            remaining(embedded, 1, size)
    with pytest.raises(BadInput, match="number of prompts"):
        remaining(embedded, 0, 5)
    with pytest.raises(BadInput, match="no prompts"):
        looks(embedded, [])


@pytest.mark.slow
def test_the_study_runs_and_repeats(embedded):
    study = STUDIES.get("talking-heads")
    small = {"planted_seeds": 3, "sizes": [2, 4, 8, 20], "per_size": 4, "removed_size": 6, "removed_prompts": 2}
    small |= {"top": 3, "random": 3, "steered_size": 12, "steered_prompts": 4, "grid": 3, "random_spaces": 1}
    scale = study.scale("quick")
    scale = replace(scale, settings={**scale.settings, **small, "device": "cpu"})
    frame = study.run(scale, seed=3, progress=Progress(quiet=True))
    again = study.run(scale, seed=3, progress=Progress(quiet=True))
    assert frame.equals(again)
    outcomes = study.judge(frame, "quick")
    assert {"C1a", "C1b"} <= {name for name, outcome in outcomes.items() if outcome.verdict == "holds"}
    assert all(outcome.n for outcome in outcomes.values())

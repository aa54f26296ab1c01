"""Linked pictures of sequence memories: recall by distance beside recall by length, and a ribbon above its memories."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.views import mom, titans


def study_rows() -> pd.DataFrame:
    """Two models a variant whose means are easy: .5 and .7 inside the window, .1 and .3 beyond, and so on."""
    rows = []
    for variant, less in (("LMM", 0.0), ("window attention", 0.1)):
        for part, points in (("distance", {32: 0.6, 69: 0.4, 10_000: 0.2}), ("length", {256: 0.9, 1024: 0.5})):
            rows += [
                {"part": part, "metric": "recall", "variant": variant, "x": float(x), "model": model, "unit": "0",
                 "value": value - less + (0.1 if model == "1" else -0.1)}
                for x, value in points.items() for model in ("0", "1")
            ]  # fmt: skip
    return pd.DataFrame(rows)


def data_of(chart: dict, *columns: str) -> pd.DataFrame:
    """The data set of a chart that has these columns."""
    frames = [pd.DataFrame(rows) for rows in chart["datasets"].values()]
    (found,) = [frame for frame in frames if set(columns) <= set(frame.columns)]
    return found


def test_recall_by_distance_shows_means_and_picks_a_line(tmp_path) -> None:
    made = titans.recall_by_distance(study_rows(), title="Recall")
    made.save(tmp_path / "recall.png")
    spec = made.to_dict()
    cells = data_of(spec, "distance", "recall").set_index(["method", "distance"])["recall"]
    assert cells["LMM"].round(6).to_dict() == {"0 to 31": 0.6, "32 to 68": 0.4, "69 or more": 0.2}
    assert cells["window attention", "69 or more"] == pytest.approx(0.1)
    (pick,) = spec["params"]
    assert pick["value"] == [{"method": "LMM"}]
    coloured = [layer for layer in spec["hconcat"][1]["layer"] if {"filter": {"param": "method", "empty": False}} in
                layer.get("transform", [])]  # fmt: skip
    assert len(coloured) == 2  # the line and its name
    assert [mark["mark"]["type"] for mark in coloured] == ["line", "text"]


@pytest.mark.parametrize("part", ["distance", "length"])
def test_recall_by_distance_needs_both_parts(part: str) -> None:
    rows = study_rows()
    with pytest.raises(BadInput, match="no rows of trained models by distance and by length"):
        titans.recall_by_distance(rows[rows["part"] != part])


BAND = pd.DataFrame(
    {
        "position": range(6), "token": list("abcdef"), "memory": list("011020"), "weight": [0.6] * 6,
        "kind": ["key", "value", "asked", "asked", "filler", "asked"], "right": [None, None, True, True, None, False],
    }
)  # fmt: skip


def test_a_ribbon_counts_the_questions_of_each_memory(tmp_path) -> None:
    made = mom.ribbon_by_memory(BAND, title="Layer 0")
    made.save(tmp_path / "ribbon.png")
    spec = made.to_dict()
    told = data_of(spec, "told").set_index("memory")
    assert told["told"].to_dict() == {"0": "1 of 2", "1": "1 of 1", "2": "none asked"}
    assert told["share"].iloc[:2].tolist() == [0.5, 1.0]
    (pick,) = spec["params"]
    assert (pick["name"], pick["bind"]) == ("memory", "legend")
    below = spec["vconcat"][1]["hconcat"]
    encodings = [below[0]["encoding"], *(layer["encoding"] for layer in below[1]["layer"])]
    assert [encoding["opacity"]["condition"]["param"] for encoding in encodings] == ["memory"] * 3


def test_a_ribbon_without_a_question_says_so() -> None:
    with pytest.raises(BadInput, match="says of no token whether its answer is right"):
        mom.ribbon_by_memory(BAND.assign(right=None))
    with pytest.raises(BadInput, match="'right' is missing"):
        mom.ribbon_by_memory(BAND.drop(columns="right"))

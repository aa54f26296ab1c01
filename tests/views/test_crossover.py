"""The picture of where a memory of fixed size overtakes exact attention."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from workbench.views.crossover import crossover_length, crossover_lines


def rows(ours: list[float], peer: list[float]) -> pd.DataFrame:
    lengths = [1024, 2048, 4096]
    frames = [
        pd.DataFrame({"item": item, "ours": item == "ours", "length": lengths, "median_ms": times})
        for item, times in (("ours", ours), ("SDPA", peer))
    ]
    return pd.concat(frames).assign(kind="crossover", what="linear", tokens=32768).assign(**{"pass": "forward"})


@pytest.mark.parametrize(
    ("ours", "peer", "where"),
    [
        ([1, 1, 1], [0.5, 2, 4], 2048),
        ([1, 1, 1], [2, 2, 4], 1024),
        ([1, 1, 1], [2, 0.5, 0.9], math.nan),
        ([1, 1, math.nan], [0.5, 2, 4], math.nan),
    ],
)
def test_where_ours_begins_to_be_the_fastest(ours: list[float], peer: list[float], where: float) -> None:
    found = crossover_length(rows(ours, peer))
    assert found == where or (math.isnan(found) and math.isnan(where))


def test_panels_lines_and_the_mark() -> None:
    spec = crossover_lines(rows([1, 1, 1], [0.5, 2, 4]), title="Time by length").to_dict()
    (panel,) = spec["hconcat"]
    assert [layer["mark"]["type"] for layer in panel["layer"]] == ["line", "point", "rule"]
    never = crossover_lines(rows([1, 1, 1], [0.5, 0.5, 0.5])).to_dict()
    assert len(never["hconcat"][0]["layer"]) == 2


def test_a_rule_of_one_length_has_no_line() -> None:
    whole, one = rows([1, 1, 1], [0.5, 2, 4]), rows([1, 1, 1], [2, 2, 2]).assign(what="delta")
    one = one[one["length"] == 4096]
    both, alone = (json.dumps(crossover_lines(frame).to_dict()) for frame in (pd.concat([whole, one]), one))
    assert "linear, forward" in both
    assert "delta" not in both
    assert "delta, forward" in alone, "better one point than nothing"


def test_bad_frames_are_told() -> None:
    frame = rows([1, 1, 1], [2, 2, 2])
    with pytest.raises(ValueError, match="crossover"):
        crossover_lines(frame.assign(kind="rule"))
    with pytest.raises(ValueError, match="median_ms"):
        crossover_lines(frame.drop(columns="median_ms"))

"""The table of maps: it runs, its contenders agree with float64, its error is not blind, long traces stay linear."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from workbench import bench
from workbench.bench import maps

SMALL = maps.Point("pooled map", 96, 12, heads=4, kv_heads=2, dim=16, dtype=torch.float32)


@pytest.mark.parametrize("what", ["pooled map", "statistics", "row LSE"])
def test_every_contender_does_the_work(what: str) -> None:
    case = maps.look_case(replace(SMALL, what=what), "cpu")
    assert set(case.contenders) == {"ours", "a dense head at a time"}
    for contender in case.contenders.values():
        assert case.check is not None
        assert case.check(contender.run()) < 1e-5


def test_the_error_sees_a_wrong_cell() -> None:
    case = maps.look_case(SMALL, "cpu")
    found = case.contenders["ours"].run()
    found[0, -1, -1, 3] *= 2
    assert case.check is not None
    assert case.check(found) > 0.05


def test_a_trace_is_checked_from_what_it_recorded() -> None:
    model = maps.llama(2, 256, "cpu")
    found = maps._traced(model, list(range(256)), "sdpa")()
    assert maps._trace_error(found) < 1e-5
    found[1][-1, -1] *= 2
    assert maps._trace_error(found) > 0.5


def test_gpu_points_hold_the_shapes_of_the_goal() -> None:
    for quick in (True, False):
        goal = [p for p in maps.points("cuda", quick) if (p.length, p.side, p.dim) == (131072, 1024, 128)]
        assert [p.what for p in goal] == ["pooled map"]
        assert goal[0].flops == pytest.approx(2 * 131072**2 / 2 * 128 * 32)


def test_the_table_runs(tmp_path: object) -> None:
    frame = bench.run("maps", device="cpu", quick=True)
    assert set(frame["what"]) == {"pooled map", "statistics", "trace and one layer's maps"}
    assert (frame["failure"] == "").all()
    assert (frame["error"] < 1e-5).all()
    assert all(math.isfinite(ms) for ms in frame["median_ms"])

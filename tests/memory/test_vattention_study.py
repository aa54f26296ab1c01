"""The study small and end to end, its claims on made-up rows, its pictures, the table of the bench."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.studies import STUDIES
from workbench.studies import _vattention_claims as claims
from workbench.studies import _vattention_parts as parts
from workbench.studies.base import Progress
from workbench.studies.vattention import COLUMNS
from workbench.systems import serving
from workbench.systems.kv_paged import PagedKV
from workbench.systems.kv_virtual import VirtualKV
from workbench.systems.page_backends import missing
from workbench.views import vattention as pictures
from workbench_datasets import reported

pytestmark = pytest.mark.skipif(bool(missing("demand")), reason=str(missing("demand")))
SMALL = {"requests": 400, "repeats": 2, "prompts": 2, "new_tokens": 3, "steps": 120, "maps": 40, "group_kib": [4, 64]}


@pytest.fixture(scope="module")
def study():
    return STUDIES.get("vattention")


@pytest.fixture(scope="module")
def live(study) -> pd.DataFrame:
    torch.set_num_threads(1)
    scale = study.scale("quick")
    scale = replace(scale, settings={**scale.settings, **SMALL, "device": "cpu"})
    return study.run(scale, 4, Progress(quiet=True)).assign(seed=4)


def test_the_run_is_tidy(live):
    assert list(live.columns) == [*COLUMNS, "seed"]
    assert set(live.experiment) == {"E1", "E2", "E3", "E4"}
    assert live.value.notna().all()


def test_counts_are_repeatable(study, live):
    scale = study.scale("quick")
    settings = {**scale.settings, **SMALL, "device": "cpu"}
    again = pd.DataFrame(parts.step_times(settings, 4, Progress(quiet=True), lambda: None))
    for metric in ("late maps", "map calls"):
        first, second = (
            frame[(frame.experiment == "E3") & (frame.metric == metric)].groupby("item").value.sum()
            for frame in (live, again)
        )
        pd.testing.assert_series_equal(first, second)


def test_what_holds_by_construction_holds(study, live):
    outcomes = study.judge(live, "quick")
    assert {key: outcomes[key].verdict for key in ("V1", "V2", "V4")} == dict.fromkeys(("V1", "V2", "V4"), "holds")
    assert outcomes["V2"].low > 0
    assert set(outcomes) == {claim.id for claim in study.claims} - set(claims.NEEDS_FULL)


def test_a_wrong_bit_is_seen(study, live):
    wrong = live.copy()
    row = wrong.index[(wrong.experiment == "E1") & (wrong.metric == "max difference")][0]
    wrong.loc[row, "value"] = 1e-7
    assert study.judge(wrong, "quick")["V1"].verdict == "not reproduced"


def test_a_logit_that_is_no_number_is_a_difference():
    """The largest difference passed it over, so that a memory that gave nothing but NaN had the same bits."""
    from workbench.models import load

    loaded = load("embedded")

    class Broken:
        def write(self, ids):
            return loaded.model(ids).logits * float("nan")

    worst, same = parts._compare(loaded.model, Broken(), torch.tensor([[5, 6, 7]]), 2)
    assert (worst, same) == (float("inf"), False)


def rows(experiment: str, metric: str, **values: list[float]) -> pd.DataFrame:
    """One item a keyword, its values as repeats."""
    table = [
        {
            "experiment": experiment,
            "metric": metric,
            "item": name.replace("__", "-").replace("_", " "),
            "repeat": i,
            "value": v,
        }
        for name, given in values.items()
        for i, v in enumerate(given)
    ]
    return pd.DataFrame(table).reindex(columns=[*COLUMNS]).assign(seed=0)


def test_order_claims_need_every_run_in_order():
    good = {"static": [900, 901.0], "2_MB_groups": [60, 61.0], "64_KB_groups": [2, 2.1], "paged__16": [0.5, 0.6]}
    frame = rows("E2", "waste a request", **good).assign(trace="four-thousand")
    assert claims.waste_order(frame).verdict == "holds"
    frame = rows("E2", "waste a request", **{**good, "64_KB_groups": [2, 61.5]}).assign(trace="four-thousand")
    assert claims.waste_order(frame).verdict == "not reproduced"
    frame = rows("E2", "max batch", **{"2_MB_groups": [100.0, 100, 101], "64_KB_groups": [125.0, 126, 125]})
    assert claims.batch_ratio(frame.assign(trace="four-thousand")).verdict == "holds"
    frame = rows("E2", "max batch", **{"2_MB_groups": [100.0, 100, 101], "64_KB_groups": [145.0, 146, 145]})
    assert claims.batch_ratio(frame.assign(trace="four-thousand")).verdict == "not reproduced"


def races(stage: str, **values: list[float]) -> pd.DataFrame:
    return rows("E5", "time", **values).assign(stage=stage, batch=1, context=1024)


def test_kernel_claims_on_made_up_times():
    frame = races("prefill", contiguous=[1.0, 1.01, 1.0], vAttention=[1.0, 1.0, 1.01], paged__16=[1.2, 1.21, 1.2])
    assert claims.prefill_table_costs(frame).verdict == "holds"
    assert claims.prefill_table_costs(frame).effect == pytest.approx(1.2, rel=0.01)
    assert claims.prefill_virtual_is_free(frame).verdict == "holds"
    assert claims.decode_within(frame).verdict == "inconclusive"  # no decode was timed
    fast = races("prefill", contiguous=[1.0, 1.0], paged__16=[0.9, 0.91])
    assert claims.prefill_table_costs(fast).verdict == "not reproduced"
    near = races("decode", vAttention=[1.0, 1.01], paged__16=[1.03, 1.02])
    assert claims.decode_within(near).verdict == "holds"
    far = races("decode", vAttention=[1.0, 1.01], paged__16=[1.3, 1.32])
    assert claims.decode_within(far).verdict == "not reproduced"


def test_time_and_bandwidth_claims_on_made_up_rows():
    rng = np.random.default_rng(0)
    quiet, busy = (10 + rng.random(200) for _ in range(2))
    frame = rows("E3", "step time", no_allocation=list(quiet), sync=list(busy + 5), **{"async": list(busy)})
    frame["stage"] = "decode"
    assert claims.hidden_by_time(frame).verdict == "holds"
    frame.loc[frame["item"] == "async", "value"] += 5
    assert claims.hidden_by_time(frame).verdict == "not reproduced"
    assert claims.enough_bandwidth(rows("E4", "bandwidth", cuda=[40.0, 41.0, 39.0])).verdict == "holds"
    assert claims.enough_bandwidth(rows("E4", "bandwidth", cuda=[1.0, 1.1, 1.2])).verdict == "not reproduced"
    calls = {"sync": [100.0], "sync,_not_deferred": [150.0]}
    assert claims.deferred_reclamation(rows("E3", "map calls", **calls)).verdict == "not reproduced"


def test_nothing_measured_is_inconclusive(study):
    empty = pd.DataFrame(columns=[*COLUMNS, "seed"])
    assert {claim.test(empty).verdict for claim in study.claims} == {"inconclusive"}


def test_a_part_that_fails_costs_no_other_part():
    def broken():
        yield {"experiment": "E5", "value": 1.0}
        raise RuntimeError("no such kernel")

    found = list(parts.guarded("E5", broken))
    assert [row.get("metric") for row in found] == [None, "failed"]
    assert "no such kernel" in found[1]["note"]


# -- pictures ---------------------------------------------------------------------------------------------------------


def saved(chart, folder) -> str:
    for kind in ("svg", "png"):
        chart.save(folder / f"chart.{kind}")
    return (folder / "chart.svg").read_text()


def test_the_papers_figure(study, live, tmp_path):
    paper = reported.load("vattention")
    drawn = saved(study.figure(live, paper, None), tmp_path)
    assert all(word in drawn for word in ("64 KB groups", "driver set access", "hollow"))
    saved(study.figure(None, paper, None), tmp_path)
    timed = races("prefill", contiguous=[1.0, 1.01], vAttention=[1.0, 1.0], paged__16=[1.2, 1.21])
    assert "prefill, vAttention" in saved(study.figure(None, paper, pd.concat([live, timed])), tmp_path)
    with pytest.raises(BadInput, match="nothing to draw"):
        study.figure(None, None, None)


def test_waste_steps_and_batches(live, tmp_path):
    assert "paged-256" in saved(pictures.waste_over_time(live), tmp_path)
    assert "sync, not deferred" in saved(pictures.step_times(live), tmp_path)
    table = serving.batch_by_page(60 * 10**9, [4, 64, 2048], [2048, 4096])
    assert "Yi-34B" in saved(pictures.batch_by_page(table, reported.load("vattention")), tmp_path)
    for view in (pictures.waste_over_time, pictures.step_times):
        with pytest.raises(BadInput, match="no rows"):
            view(live[live.experiment == "E1"])
        with pytest.raises(BadInput, match="'experiment' is missing"):
            view(live[["value"]])
    with pytest.raises(BadInput, match="trace='nowhere' is not in the frame; given: four-thousand"):
        pictures.waste_over_time(live, trace="nowhere")
    with pytest.raises(BadInput, match="'model' is missing"):
        pictures.batch_by_page(table.drop(columns="model"))


@pytest.mark.parametrize("view", [pictures.waste_over_time, pictures.step_times])
def test_of_several_seeds_one_is_drawn(view, live):
    """Stacked, two runs held 120 of 60 GB; averaged, a step had mapped half a group."""

    def drawn(frame):
        (data,) = view(frame).to_dict()["datasets"].values()
        return pd.DataFrame(data).drop(columns="seed", errors="ignore")

    other = live.assign(seed=1, value=live["value"] * 2)
    pd.testing.assert_frame_equal(drawn(pd.concat([live.assign(seed=0), other])), drawn(live))


def test_the_address_space_of_one_and_of_many_moments(tmp_path):
    table = PagedKV(2, 2, 16, 3, 128, 20, 32)
    table.alloc_new_batch_idx(1)
    table.step([100, 0, 0])
    with VirtualKV.init(2, 2, 16, 3, 128, group_bytes=4096) as kv:
        kv.reserve_physical_pages(1 << 20)
        maps = []
        for length in (10, 40, 90):
            if length == 10:
                kv.alloc_new_batch_idx(1)
            kv.step([length, 0, 0])
            maps.append(kv.address_map())
    one = pictures.address_space(maps[-1])
    assert "physical" in saved(one, tmp_path)
    both = pictures.address_space(pd.concat(maps), table.address_map())
    assert "block table" in saved(both, tmp_path)
    assert both.to_json().count('"moment"') >= 1
    with pytest.raises(BadInput, match="'page' is missing"):
        pictures.address_space(maps[0].drop(columns="page"))
    with pytest.raises(BadInput, match="table is empty"):
        pictures.address_space(maps[0], PagedKV(2, 2, 16, 3, 128, 20, 32).address_map())


# -- bench ------------------------------------------------------------------------------------------------------------


def test_every_contender_of_the_bench_does_the_work():
    from workbench.bench import vattention as table

    for stage in ("decode", "prefill"):
        point = table.Point(stage, 2 if stage == "decode" else 1, 256, 4, 2, 16, torch.float32)
        with table.mapped(point, "cpu") as kv:
            case = table.case(point, "cpu", kv)
            assert {"contiguous", "vAttention", "paged-16", "paged-256", "SDPA mapped"} <= set(case.contenders)
            assert case.check is not None
            for contender in case.contenders.values():
                assert case.check(contender.run()) < 1e-5
            wrong = case.contenders["vAttention"].run()
            wrong[-1, -1] *= 2
            assert case.check(wrong) > 0.05


def test_the_bench_holds_the_shapes_of_the_goal():
    from workbench.bench import vattention as table

    for quick in (True, False):
        goal = {(p.batch, p.context) for p in table.points("cuda", quick) if p.stage == "decode"}
        assert (8, 16384) in goal

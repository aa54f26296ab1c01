"""The FlashAttention-2 study on a small scale, its claims, the race it shares with FlashAttention, pictures."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.errors import BadInput
from workbench.studies import STUDIES, Progress
from workbench.studies import _attention_race as racing
from workbench.studies import _flash2_gpu as on_card
from workbench.studies import _flash2_numerics as numerics
from workbench.studies import _flash_training as training
from workbench.studies._attention_race import HEADS_GRID, Clock, Point
from workbench.systems import sm_schedule
from workbench.views import flash_attention_2 as views
from workbench_datasets import recorded, reported
from workbench_kernels import attention

SLUG = "flash-attention-2"
SMALL = {
    "tiles": [[32, 32], [32, 16]],
    "tiles_a_row": 2,
    "draws": 1,
    "loop_tiles": [[48, 32]],
    "interpreted_length": 32,
    "order_lengths": [1024, 2048],
    "pool_length": 256,
    "pool_rows": 64,
    "pool_heads": [1, 2],
    "pool_repeats": 3,
}
QUICK = {"A1", "A1b", "A3c", "M1", "M1b", "M2", "M3", "M4"}
ON_CARD = {"A1c", "A2", "A3", "A3b", "A4", "A5", "A6", "A6b", "A6c", "A7"}


@pytest.fixture(scope="module")
def study():
    return STUDIES.get(SLUG)


@pytest.fixture(scope="module")
def frame(study):
    torch.set_num_threads(1)
    scale = study.scale("quick")
    return study.run(replace(scale, settings={**scale.settings, **SMALL}), 0, Progress(quiet=True))


@pytest.fixture(scope="module")
def tests(study):
    return {claim.id: claim.test for claim in study.claims}


# -- the study without a card -----------------------------------------------------------------------------------------


def test_models_and_exactness_hold_and_every_outcome_has_an_interval(study, frame):
    outcomes = study.judge(frame, "quick")
    assert set(outcomes) == QUICK
    for key in QUICK - {"A3c"}:  # A3c is a wall time: it holds on an idle machine with two cores
        assert outcomes[key].verdict == "holds", (key, outcomes[key])
    for key, outcome in outcomes.items():
        assert outcome.low <= outcome.effect <= outcome.high, (key, outcome)


def test_the_triton_kernels_own_code_ran_or_the_row_says_why(frame):
    rows = frame[(frame.experiment == "E5") & frame["item"].isin(["triton", "triton-v1"])]
    measured = rows[rows.metric == "error"]
    if measured.empty:
        assert rows.note.str.len().min() > 0
        pytest.skip(rows.note.iloc[0])
    assert set(measured["item"]) == {"triton", "triton-v1"}
    assert set(measured.tensor) == {"out", "lse", "dq", "dk", "dv"}
    assert measured.value.max() < 1e-5


def test_a_child_that_fails_leaves_a_row(monkeypatch):
    monkeypatch.setattr(numerics.sys, "executable", "/nowhere/python")
    rows = list(numerics.interpreted(SMALL, Progress(quiet=True)))
    assert [row["metric"] for row in rows] == ["no number"]
    assert "nowhere" in rows[0]["note"]


def test_claims_fail_when_the_evidence_does(frame, tests):
    def bent(where, factor):
        return frame.assign(value=frame.value.where(~where, frame.value * factor))

    assert tests["A1"](bent(frame.metric == "order gap", 1e3)).verdict == "not reproduced"
    assert tests["A1b"](bent(frame.metric == "error", 1e4)).verdict == "not reproduced"
    one = frame.index[(frame.metric == "error")][0]
    assert tests["A1b"](bent(frame.index == one, 1e4)).verdict == "inconclusive"
    for counts in ("E1", "E4"):  # operations of a tile, bytes through shared memory: each is enough to fail
        wrong = (frame.metric == "counted") & (frame.experiment == counts)
        assert tests["M1"](bent(wrong, 2)).verdict == "not reproduced", counts
        assert tests["M1"](frame[frame.experiment != counts]).verdict == "holds"
    assert tests["M1b"](bent(frame.metric == "gain", 0.9)).verdict == "not reproduced"
    idle = (frame.experiment == "E2") & (frame.heads >= 80)
    assert tests["M2"](bent(idle, 0.1)).verdict == "not reproduced"
    slow = (frame.experiment == "E3") & (frame["item"] == "longest-first")
    assert tests["M3"](bent(slow, 2)).verdict == "not reproduced"
    assert tests["M4"](bent(frame["item"] == "split-Q", 9)).verdict == "not reproduced"
    alone = (frame.experiment == "E6") & (frame["item"] == "heads")
    assert tests["A3c"](bent(alone, 1e-3)).verdict == "not reproduced"
    assert {test(frame.iloc[:0]).verdict for test in tests.values()} == {"inconclusive"}
    for key in ON_CARD:
        assert tests[key](frame).n == 0, key


def test_the_same_seed_gives_the_same_rows(study, frame):
    scale = study.scale("quick")
    again = study.run(replace(scale, settings={**scale.settings, **SMALL}), 0, Progress(quiet=True))
    for experiment in ("E1", "E3", "E4", "E5"):
        first, second = (x[x.experiment == experiment].value.to_numpy() for x in (frame, again))
        assert (first == second).all(), experiment


# -- claims on a card, judged on made-up rows -------------------------------------------------------------------------


def made_up(speeds, end_to_end):
    """Rows of a card on which every contender has one speed (TFLOP/s)."""
    rows = []
    for d in (64, 128):
        for n in (512, 2048, 8192, 16384):
            for causal in (False, True):
                point = Point.of_tokens(16384, 2048, n, d, causal)
                for stage in ("forward", "backward"):
                    for item, speed in speeds.items():
                        time = racing.flops(point, stage) / speed / 1e9
                        here = {**point.place, "item": item, "stage": stage, "seed": 0}
                        rows.append({**here, "metric": "time", "value": time})
                        rows.append({**here, "metric": "speed", "value": speed})
    for (n, item), time in end_to_end.items():
        rows.append({"experiment": "end to end", "item": item, "n": n, "metric": "time", "value": time, "seed": 0})
    for batch, n, slow in ((1, 16384, 8.0), (40, 2048, 1.02)):
        for repeat in range(5):
            for item, time in ((HEADS_GRID, slow), ("triton", 1.0)):
                here = {"experiment": "GPU grids", "item": item, "batch": batch, "heads": 16, "n": n, "seed": 0}
                rows.append({**here, "repeat": repeat, "metric": "time", "value": time * (1 + repeat / 1000)})
    return pd.DataFrame(rows)


SPEEDS = {"standard": 50.0, "triton-v1": 60.0, "triton": 420.0, "hopper": 600.0, "SDPA flash": 350.0}
STACK = {(2048, "standard"): 2.0, (2048, "triton"): 1.0, (8192, "standard"): 6.0, (8192, "triton"): 1.2}


def test_claims_on_a_card_hold_on_rows_that_hold(tests):
    frame = made_up(SPEEDS, STACK)
    for key in ("A2", "A3", "A3b", "A4", "A5", "A6", "A6b", "A6c", "A7"):
        assert tests[key](frame).verdict == "holds", (key, tests[key](frame))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("A2", {"triton-v1": 400.0}),
        ("A5", {"standard": 200.0}),
        ("A6", {"triton": 300.0}),
        ("A6b", {"triton": 399.0}),
        ("A6c", {"hopper": 549.0}),
    ],
)
def test_claims_on_a_card_fail_on_rows_that_do_not(tests, key, change):
    assert tests[key](made_up({**SPEEDS, **change}, STACK)).verdict == "not reproduced"


def test_a_claim_over_every_shape_is_judged_at_the_worst(tests):
    frame = made_up(SPEEDS, STACK)
    one = (frame.n == 2048) & (frame["item"] == "triton-v1") & (frame.metric == "time") & (frame.d == 64)
    bent = frame.assign(value=frame.value.where(~one, frame.value / 100))
    assert tests["A2"](bent).verdict == "inconclusive"
    slow = frame.assign(value=frame.value.where(frame.input != "causal", frame.value * 2))
    assert tests["A4"](slow).verdict == "not reproduced"
    flat = {**STACK, (8192, "triton"): 6.0}
    assert tests["A7"](made_up(SPEEDS, flat)).verdict == "not reproduced"
    unequal = frame.assign(value=frame.value.where(frame["item"] != HEADS_GRID, frame.value * 1.5))
    assert tests["A3b"](unequal).verdict == "not reproduced"
    assert tests["A3"](frame.assign(value=1.0)).verdict == "not reproduced"


def test_error_on_the_card_is_judged_against_standard_attention(tests):
    rows = [
        {"experiment": "GPU error", "item": item, "d": 64, "input": "full", "tensor": tensor, "seed": 0}
        | {"metric": "error", "value": value}
        for item, value in (("standard", 0.01), ("triton", 0.004), ("hopper", 0.005))
        for tensor in ("out", "dq", "dk", "dv")
    ]
    assert tests["A1c"](pd.DataFrame(rows)).verdict == "holds"
    worse = pd.DataFrame(rows).assign(value=lambda t: t.value.where(t["item"] != "triton", 0.1))
    assert tests["A1c"](worse).verdict != "holds"


def test_notes_name_a_tile_and_a_card_once_however_many_seeds(frame, tests):
    two = pd.concat([frame, frame.assign(seed=1)])
    for key in ("M1b", "M2"):
        assert tests[key](two).note == tests[key](frame).note


@pytest.mark.parametrize("key", sorted(ON_CARD))
def test_recorded_run_measured_every_claim(key, tests):
    if "full" not in recorded.scales(SLUG):
        pytest.skip("no recorded run yet")
    assert tests[key](recorded.load(SLUG, "full")).n > 0


# -- the race ---------------------------------------------------------------------------------------------------------

TINY = {"device": "cpu", "launches": 2, "warmup": 1, "batch_tokens": 64, "gpu_dims": [64], "gpu_lengths": [32]}


def test_whoever_cannot_run_is_a_row_with_the_reason():
    point, generator = Point(1, 32, 2, 16, True, "float32"), torch.Generator().manual_seed(0)
    rows = pd.DataFrame(racing.race(point, ["standard", "hopper"], ["forward", "backward"], generator, TINY))
    assert set(rows[rows.metric == "time"]["item"]) == {"standard"}
    assert set(rows[rows.metric == "time"].stage) == {"forward", "backward"}
    refused = rows[rows.metric == "no number"]
    assert set(refused["item"]) == {"hopper"}
    assert refused.note.str.contains("Hopper").all()
    work = {"forward": 1.0, "backward": 2.5}
    for _, row in rows[rows.metric == "speed"].iterrows():
        time = rows[(rows.metric == "time") & (rows.stage == row.stage)].value.iloc[0]
        assert row.value == pytest.approx(point.flops * work[row.stage] / time / 1e9)


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_speeds_say_which_tile_they_were_measured_with(stage):
    pytest.importorskip("triton")
    for name in ("triton-v1", "triton", HEADS_GRID, "hopper"):
        said = racing.configuration(name, Point(1, 64, 1, 128, True), stage)
        assert " x " in said, (name, said)
        assert "unknown" not in said, (name, said)
    assert racing.configuration("SDPA flash", Point(1, 64, 1, 128, True), stage) == ""


def test_causal_halves_the_convention_and_tokens_fix_the_batch():
    full, causal = (Point.of_tokens(16384, 2048, 4096, 64, causal) for causal in (False, True))
    assert (full.batch, full.heads) == (4, 32)
    assert full.flops == 4.0 * 4 * 32 * 4096**2 * 64 == 2 * causal.flops


def test_a_part_that_raises_keeps_its_rows_and_the_others_go_on():
    def broken():
        yield {"experiment": "a", "metric": "time", "value": 1.0}
        raise RuntimeError("the card caught fire")

    named = [("a", 0, broken), ("b", 1e9, lambda: [{}]), ("c", 0, lambda: [{"experiment": "c"}])]
    rows = racing.parts(Clock(100), named)
    assert [row["experiment"] for row in rows] == ["a", "a", "b", "c"]
    assert rows[1]["note"] == "RuntimeError: the card caught fire"
    assert rows[2]["note"] == racing.TIME_IS_UP


def test_points_after_the_time_is_up_are_rows():
    point, generator = Point(1, 32, 1, 16, False, "float32"), torch.Generator().manual_seed(0)
    (row,) = racing.race_in_time(point, ["standard"], ["forward"], generator, TINY, Clock(0))
    assert (row["metric"], row["note"]) == ("no number", racing.TIME_IS_UP)
    assert Clock(None).left() == float("inf")


def test_nothing_is_compiled_ahead_without_a_card(monkeypatch):
    monkeypatch.setattr(racing.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with racing.compiling({"device": "cpu"}, [64]) as wait:
        wait(0.0)


def test_errors_are_measured_against_float64():
    generator = torch.Generator().manual_seed(0)
    rows = pd.DataFrame(racing.errors(["standard", "hopper"], [Point(1, 40, 2, 16, True, "float32")], generator))
    measured = rows[rows.metric == "error"]
    assert set(measured.tensor) == {"out", "dq", "dk", "dv"}
    assert 0 < measured.value.max() < 1e-5
    assert rows[rows.metric == "no number"]["item"].tolist() == ["hopper"]


def test_the_stack_trains_with_any_kernel_and_counts_as_the_paper_does():
    words = {"width": 256, "layers": 2, "stack_tokens": 64, "stack_lengths": [32, 64], "stack_steps": 2}
    settings = {**TINY, **words, "stack_kernels": ["standard", "SDPA flash", "hopper"]}
    rows = pd.DataFrame(on_card.end_to_end(settings, torch.Generator().manual_seed(0), Progress(quiet=True)))
    assert set(rows[rows.metric == "speed"]["item"]) == {"standard", "SDPA flash"}
    assert rows[rows.metric == "no number"]["item"].tolist() == ["hopper", "hopper"]
    # GPT3-1.3B at 2k: 24 layers, width 2048: 6 x 2048 x 1.3e9 + 12 x 24 x 2048 x 2048^2 for one sequence
    assert on_card.megatron_flops(2048, 2048, 1_300_000_000, 24, 2048) == 6 * 2048 * 1.3e9 + 288 * 2048**3


def test_training_sees_the_same_weights_and_batches_with_every_kernel(monkeypatch):
    settings = {"device": "cpu", "train_steps": 30, "train_batch": 1, "train_context": 64, "train_seconds": 60}
    monkeypatch.setattr(training, "WIDTH", 64)
    monkeypatch.setattr(racing, "PEERS", {**racing.PEERS, "tiled": lambda: tiled})
    (plain, speed), (ours, _) = training.train("standard", settings), training.train("tiled", settings)
    assert len(plain) == len(ours) == 30
    assert plain[-1] < plain[0]
    assert max(abs(a - b) for a, b in zip(plain, ours)) < 0.02
    assert speed > 0


def tiled(q, k, v, causal):
    return attention(q, k, v, causal=causal, impl="tiled")


# -- pictures --------------------------------------------------------------------------------------------------------


def test_figure_from_any_of_the_three_sources(study, frame, tmp_path):
    paper, card = reported.load(SLUG), made_up(SPEEDS, STACK)
    for live, run in ((frame, None), (None, frame), (frame, card), (card, card), (None, None)):
        assert study.figure(live, paper, run).to_dict()["$schema"]
    study.figure(frame, paper, card).save(tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert "recorded" in drawn
    assert "published" in drawn
    with pytest.raises(BadInput, match="nothing to draw"):
        study.figure(None, None, None)


def test_reported_numbers():
    paper = reported.load(SLUG)
    table = paper[(paper.table == "Table 1") & (paper.metric == "training speed")].set_index("item").value
    assert table["GPT3-2.7B 8k, FlashAttention-2"] == 225
    assert table["GPT3-1.3B 8k, without FlashAttention"] == 72
    assert len(table) == 12
    assert paper.unit.notna().all()
    assert not paper[paper.source == "from memory"].verified.any()


def test_views_draw(frame, tmp_path):
    launch = sm_schedule.Launch(4, 1024, causal=True)
    ceiling = pd.DataFrame([{"experiment": "ceiling", "item": "device", "metric": "matmul", "value": 790.0}])
    card = pd.concat([made_up(SPEEDS, STACK), ceiling])
    charts = [
        views.sm_timeline(sm_schedule.schedule(launch, sms=8).frame(), sms=8),
        views.warp_partition("split-K"),
        views.warp_partition("split-Q", warps=8),
        views.shared_memory(frame, rows=32, cols=32),
        views.operation_split(frame, card="H100"),
        views.occupancy(frame),
        views.orders(frame),
        views.speeds(None, reported.load(SLUG), card),
        views.share_of_ceiling(card),
        views.training(card, reported.load(SLUG)),
    ]
    for number, chart in enumerate(charts):
        for kind in ("svg", "png"):
            chart.save(tmp_path / f"{number}.{kind}")
            assert (tmp_path / f"{number}.{kind}").stat().st_size > 1_000


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda frame: views.sm_timeline(frame, sms=8), "column"),
        (lambda frame: views.warp_partition("split-V"), "split"),
        (lambda frame: views.warp_partition("split-Q", warps=99), "warps"),
        (lambda frame: views.shared_memory(frame, rows=7), "no tile"),
        (lambda frame: views.operation_split(frame, card="abacus"), "abacus"),
        (lambda frame: views.speeds(frame), "CUDA"),
        (lambda frame: views.speeds(frame, stage="sideways"), "stage"),
        (lambda frame: views.share_of_ceiling(frame), "no speeds"),
        (lambda frame: views.training(frame), "nothing to draw"),
        (lambda frame: views.orders(frame[frame.experiment == "E1"]), "E3"),
    ],
)
def test_views_refuse(frame, draw, named):
    with pytest.raises(BadInput, match=named):
        draw(frame)


# -- in a model, and bad input ----------------------------------------------------------------------------------------


def test_the_kernel_is_one_line_away_for_a_model():
    model = wb.load("embedded")
    with model.use(attention="eager"):
        plain = model.generate("The lighthouse", max_new_tokens=8).new_text
    with model.use(attention=SLUG):
        assert model.generate("The lighthouse", max_new_tokens=8).new_text == plain


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"q": torch.ones(1, 4, 2, 257), "k": torch.ones(1, 4, 2, 257), "v": torch.ones(1, 4, 2, 257)},
            "CUDA device",  # the head dim itself is refused where the kernels can run: interpreted_attention.py
        ),
        ({"v": torch.ones(1, 5, 2, 8)}, r"^v has shape \(1, 5, 2, 8\)"),
        ({"q": torch.ones(1, 4, 3, 8)}, "2 heads, which does not divide the 3 heads of q"),
        ({"k": torch.ones(1, 4, 2, 8).double()}, "dtype|float64"),
        ({"q": torch.ones(1, 4, 2, 8, device="meta")}, "meta|device"),
    ],
)
def test_bad_input_is_a_value_error_that_names_it(change, named):
    tensors = {"q": torch.ones(1, 4, 2, 8), "k": torch.ones(1, 4, 2, 8), "v": torch.ones(1, 4, 2, 8), **change}
    with pytest.raises(ValueError, match=named):
        attention(**tensors, impl="triton")

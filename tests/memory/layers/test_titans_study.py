"""Titans' study: the memory alone against the card's numbers, training and asking, claims on known rows, pictures."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.memory.layers.base import build_layer
from workbench.studies import STUDIES, Progress
from workbench.studies import _titans_claims as claims
from workbench.studies import _titans_inner as inner
from workbench.studies import _titans_trained as outer
from workbench.training.tiny import ship
from workbench.views import titans as views
from workbench_datasets import reported

SEEDS = [900, 901, 902, 903, 904]


def means(lines) -> dict[tuple[str, float], float]:
    frame = pd.DataFrame(lines)
    assert frame["value"].between(0, 1).all()
    return frame.groupby(["variant", "x"])["value"].mean().to_dict()


# -- the memory alone -------------------------------------------------------------------------------------------------


def test_a_part_whose_process_dies_is_made_in_this_one(monkeypatch):
    from workbench.studies import titans

    small = {name: {**STUDIES.get("titans").scale("quick").settings[name], "streams": 1} for name in titans.PARTS}
    small["A1"] |= {"length": 600, "last": 100}
    monkeypatch.setattr(titans, "_one_thread", os.abort)  # what every process of the pool begins with
    with titans._beside({**small, "processes": 2}, 0) as alone:
        lines = list(alone())
    assert lines == [line for name in titans.PARTS for line in titans._part(name, small[name], 0)]


def test_some_pairs_need_depth():
    found = means(inner.needs_depth({"length": 3000, "last": 500, "thetas": {"1": [0.1], "2": [0.05]}}, SEEDS[:3]))
    assert found["1 layers, θ 0.1", 1.0] == pytest.approx(0.23, abs=0.1)
    assert found["2 layers, θ 0.05", 2.0] == pytest.approx(1.0, abs=0.1)


CARD_A2 = {
    64: {"Hebbian": 0.13, "delta": 0.22, "delta + momentum": 0.33, "2 layers": 0.57, "wide linear": 0.44},
    256: {"Hebbian": 0.01, "delta": 0.05, "delta + momentum": 0.08, "2 layers": 0.17, "wide linear": 0.07},
}


@pytest.mark.parametrize("pairs", list(CARD_A2))
def test_capacity_under_correlated_keys(pairs):
    found = means(inner.capacity({"pairs": [pairs], "d": 32, "rules": list(CARD_A2[pairs])}, SEEDS))
    for name, value in CARD_A2[pairs].items():
        assert found[name, pairs] == pytest.approx(value, abs=0.1), name


def test_forgetting():
    found = means(inner.forgetting({"pairs": 1056, "d": 32, "last": 32, "theta": 0.2}, SEEDS[:4]))
    card = {
        "2 layers, no decay": 0.34, "2 layers, α .01 to initial": 0.62, "2 layers, reset α 1": 0.58,
        "2 layers, reset α .5": 0.77, "2 layers, α .01 to zero": 0.0, "linear, no decay": 0.24, "linear, α .01": 0.22,
    }  # fmt: skip
    for name, value in card.items():
        assert found[name, 32] == pytest.approx(value, abs=0.1), name


def test_chunk_sizes():
    """At b = 16 and theta = .2 the memory is at the edge of stability, and streams differ: only the fall is held."""
    found = means(inner.chunks({"pairs": 64, "d": 32, "chunks": [1, 2, 4, 8, 16, 64]}, SEEDS))
    card = {
        "2 layers, θ .2": {1: 0.57, 2: 0.55, 4: 0.57, 8: 0.57, 64: 0.13},
        "2 layers, θ .05": {1: 0.28, 2: 0.28, 4: 0.28, 64: 0.13},
        "linear, θ .25, η .5": {1: 0.33, 2: 0.26, 8: 0.02, 16: 0.02, 64: 0.12},
    }
    for name, values in card.items():
        for b, value in values.items():
            assert found[name, b] == pytest.approx(value, abs=0.1), (name, b)
    assert found["2 layers, θ .2", 16] < found["2 layers, θ .2", 8] - 0.2


def test_streams_are_what_they_are_said_to_be():
    keys, values, which = inner.interaction_stream(400, [5])
    table = values[0].reshape(6, 6, 16)
    assert keys[0].norm(dim=-1) == pytest.approx(1.0)
    assert values[0].norm(dim=-1) == pytest.approx(1.0)
    assert len(set(which[0].tolist())) == 36
    flat = torch.linalg.lstsq(keys[0], values[0][which[0]]).solution
    assert (keys[0] @ flat - values[0][which[0]]).square().sum(-1).mean() > 0.6  # no linear map does it
    assert table.shape == (6, 6, 16)
    k, v = inner.correlated_pairs(50, 32, [1, 2])
    assert (k[0] @ k[0].T).mean() > 0.4
    assert abs(float((v[0] @ v[0].T).fill_diagonal_(0).mean())) < 0.05


def test_a_trace_equals_one_pass():
    k, v = inner.correlated_pairs(20, 8, [3])
    rule = inner.Rule(2, 0.1, 0.4, 0.05, chunk=4, decay_to="init")
    trace = inner.surprise_trace(rule, k[0], v[0])
    _, answers, _ = inner.run([rule], k, v, 0)
    torch.testing.assert_close(
        torch.tensor(trace["before"]), (answers[0] - v[0]).square().sum(-1), rtol=1e-3, atol=1e-4, check_dtype=False
    )
    assert (trace["after"] < trace["before"]).mean() > 0.9
    assert trace["nearest"].map(len).eq(5).all()


def test_rules_that_do_not_fit_together():
    k, v = inner.correlated_pairs(4, 8, [1])
    with pytest.raises(BadInput, match="must agree"):
        inner.run([inner.Rule(1), inner.Rule(2)], k, v, 0)
    with pytest.raises(BadInput, match="layers=0"):
        inner.first_weights(0, 4, 4, 1, 0)
    for rule in (inner.Rule(hebbian=True), inner.Rule(features=16)):
        with pytest.raises(BadInput, match="takes gradient steps"):
            inner.surprise_trace(rule, k[0], v[0])
    for tokens in (0, 5):
        with pytest.raises(BadInput, match="choose 1 to 4"):
            inner.run([inner.Rule(reset=(tokens, 1.0))], k, v, 0)


# -- trained models ---------------------------------------------------------------------------------------------------

TINY = {
    "device": "cpu", "seeds": 1, "recipe": {"steps": 4, "batch": 4, "warmup": 1},
    "stages": [[0.5, 48, 4], [0.5, 64, 4]], "sequences": 40,
    "lengths": [64], "facts": [8], "facts_length": 64, "distance_length": 64, "test_facts": 8, "test_sequences": 8,
    "batch_tokens": 4096, "groups": 4, "train_seconds": 1e6, "relative_cost": 1.0, "timed_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("variant", [outer.LMM, outer.MAC, outer.HEBBIAN, outer.WINDOW])
def test_a_variant_is_trained_asked_and_shipped(variant, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    recipe = outer.recipe_of(TINY)
    made = outer.trained(variant, TINY, recipe, 0)
    lines = [*outer.training_lines(variant, made.losses, 2), *outer.asked_lines(variant, made.models, TINY, 0)]
    frame = pd.DataFrame(lines)
    assert set(frame["part"]) == {"training", "length", "facts", "distance"}
    assert len(frame[frame["part"] == "length"]) == 4
    assert frame[frame["part"] == "length"]["value"].between(0, 1).all()
    ship("titans", {variant: made.models[0]}, recipe)
    again = outer.shipped()[variant]
    for name, value in made.models[0].named_parameters():
        torch.testing.assert_close(again.get_parameter(name), value, rtol=2e-3, atol=1e-4)


def test_a_diverged_model_does_not_ship(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    good, bad = outer.build(outer.LMM), outer.build(outer.LINEAR)
    torch.nn.init.constant_(bad.norm.weight, float("nan"))
    ship("titans", {outer.LMM: good, outer.LINEAR: bad}, outer.recipe_of(TINY))
    assert list(outer.shipped()) == [outer.LMM]


def test_the_curriculum_goes_from_short_to_long():
    pools = outer.curriculum([[0.4, 64, 4], [0.2, 128, 6], [0.4, 256, 8]], 10, 5, 0)
    assert [pools(step).ids.shape[1] for step in range(10)] == [64] * 4 + [128] * 2 + [256] * 4
    assert pools(0) is pools(3)


def test_steps_follow_the_budget():
    enough, stack = outer.affordable({**TINY, "recipe": {"steps": 200, "batch": 2, "warmup": 20}}, [0])
    assert enough.steps == 200
    assert not stack
    short, _ = outer.affordable(
        {**TINY, "recipe": {"steps": 100_000, "batch": 2, "warmup": 20}, "train_seconds": 60.0}, [0]
    )
    assert 100 <= short.steps < 100_000


def test_every_variant_has_a_state_that_stays():
    for variant in outer.VARIANTS:
        settings = {**outer.VARIANTS[variant], "heads": outer.HEADS}
        assert not build_layer(settings.pop("mixer"), outer.DIM, **settings).grows


# -- claims -----------------------------------------------------------------------------------------------------------


def alone(part, values, x=1.0):
    return pd.DataFrame(
        [{"seed": 0, "part": part, "variant": name, "x": x, "unit": str(i), "metric": "accuracy", "value": value}
         for name, row in values.items() for i, value in enumerate(row)]
    )  # fmt: skip


def asked(part, values, x, metric="recall", models=3):
    """values: variant -> mean; each model and group a little off it."""
    return pd.DataFrame(
        [{"seed": 0, "part": part, "variant": name, "x": float(x), "model": str(m), "unit": str(g), "metric": metric,
          "value": value + 0.01 * m + 0.003 * ((g * 7 + len(name)) % 5)}
         for name, value in values.items() for m in range(models) for g in range(6)]
    )  # fmt: skip


UP, DOWN = np.linspace(0.9, 1.0, 6), np.linspace(0.2, 0.3, 6)
DEEP, FLAT = "2 layers, θ 0.05", "1 layers, θ 0.1"
L = claims.LMM
SLOW = {1024: 1.0, 4096: 9.0}


def pairs_held(*means):
    """Four ways to write, at 64 and 128 pairs, streams a little off each mean in their own way."""
    off = {name: mean + 0.02 * np.sin(i + np.arange(8)) for i, (name, mean) in enumerate(zip(claims._ORDER, means))}
    return pd.concat([alone("A2", off, x) for x in (64.0, 128.0)], ignore_index=True)


def chunked(*rows):
    """The memory of two layers with gradients for one token, and for sixteen."""
    return pd.concat([alone("A4", {"2 layers, θ .2": row}, x) for x, row in zip((1.0, 16.0), rows)])


KNOWN = [
    ("C1", alone("A1", {DEEP: UP, FLAT: DOWN}), "holds"),
    ("C1", alone("A1", {DEEP: DOWN, FLAT: UP}), "not reproduced"),
    ("C1", alone("A1", {DEEP: UP}), "inconclusive"),
    ("C1-TRAINED", asked("length", {L: 0.8, claims.LINEAR: 0.5}, 1024), "holds"),
    ("C1-TRAINED", asked("length", {L: 0.8, claims.LINEAR: 0.5}, 128), "inconclusive"),  # not beyond the training
    ("C2-MOMENTUM", asked("length", {L: 0.8, claims.NO_MOMENTUM: 0.5}, 1024, models=1), "holds"),
    ("C2-MOMENTUM", asked("length", {L: 0.5, claims.NO_MOMENTUM: 0.8}, 1024), "not reproduced"),
    ("C2-DECAY", asked("length", {L: 0.01, claims.NO_DECAY: 0.0}, 1024), "inconclusive"),  # nothing was learnt
    ("C3", asked("length", {L: 0.8, claims.DELTA: 0.5, claims.TTT: 0.6, claims.HEBBIAN: 0.1}, 1024), "holds"),
    ("C3", asked("length", {L: 0.8, claims.DELTA: 0.9, claims.TTT: 0.6, claims.HEBBIAN: 0.1}, 1024), "not reproduced"),
    ("C4-ORDER", asked("distance", {claims.MAC: 0.9, claims.MAG: 0.8, claims.MAL: 0.7}, 10_000), "holds"),
    ("C4-ORDER", asked("distance", {claims.MAC: 0.9, claims.MAG: 0.8, claims.MAL: 0.7}, 69), "inconclusive"),
    ("C4-WINDOW", asked("distance", {claims.MAC: 0.9, claims.MAG: 0.8, claims.WINDOW: 0.0}, 10_000), "holds"),
    ("C4-WINDOW", asked("distance", {claims.MAC: 0.9, claims.MAG: 0.1, claims.WINDOW: 0.0}, 10_000), "not reproduced"),
    ("C1-PAIRS", pairs_held(0.1, 0.2, 0.3, 0.4), "holds"),
    ("C1-PAIRS", pairs_held(0.1, 0.3, 0.2, 0.4), "not reproduced"),
    ("C1-PAIRS", pairs_held(0.1, 0.2, 0.3, 0.3), "inconclusive"),
    ("CHUNK", chunked(UP, DOWN), "holds"),
    ("CHUNK", chunked(DOWN, UP), "not reproduced"),
    ("CHUNK", chunked(UP), "inconclusive"),
    ("FORGET", alone("A3", {"2 layers, α .01 to initial": UP, "2 layers, no decay": DOWN}), "holds"),
    ("FORGET", alone("A3", {"2 layers, α .01 to initial": DOWN, "2 layers, no decay": UP}), "not reproduced"),
    ("FORGET-ZERO", alone("A3", {"2 layers, α .01 to zero": DOWN, "2 layers, no decay": UP}), "not reproduced"),
]  # fmt: skip


def judged(name, frame):
    return next(claim for claim in claims.CLAIMS if claim.id == name).test(frame)


@pytest.mark.parametrize(("name", "frame", "verdict"), KNOWN)
def test_claims_on_known_rows(name, frame, verdict):
    assert judged(name, frame).verdict == verdict


def cost(seconds, held=(100, 100)):
    lines = [asked("cost", {L: s}, n, "seconds", models=1) for n, s in seconds.items()]
    sizes = [asked("cost", {L: b}, n, "state bytes", models=1).head(1) for n, b in zip(seconds, held)]
    return pd.concat([*lines, *sizes], ignore_index=True)


def test_the_claims_of_cost_and_training():
    assert judged("C5", cost({1024: 1.0, 4096: 4.0})).verdict == "holds"
    assert judged("C5", cost(SLOW)).verdict == "not reproduced"
    grown = cost({1024: 1.0, 4096: 4.0}, held=(100, 400))
    assert judged("C5", grown).verdict == "not reproduced"
    fall = pd.DataFrame({"part": "live training", "x": range(60), "value": np.linspace(7, 5, 60)})
    assert judged("TRAINS", fall).verdict == "holds"
    assert judged("TRAINS", fall.assign(value=7 + 0.01 * np.sin(fall["x"]))).verdict == "not reproduced"


def test_an_empty_run_judges_nothing():
    empty = asked("length", {L: 0.5}, 256).iloc[:0]
    outcomes = STUDIES.get("titans").judge(empty, "full")
    assert {outcome.verdict for outcome in outcomes.values()} == {"inconclusive"}


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures(tmp_path):
    k, v = inner.correlated_pairs(24, 8, [3])
    trace = inner.surprise_trace(inner.Rule(2, 0.1), k[0], v[0])
    mac = build_layer("titans-mac", 8, heads=2, segment=6, persistent=2)
    ages = pd.DataFrame({"age": [1, 8, 1, 8], "method": ["delta", "delta", "deep", "deep"], "recall": [0.1, 0, 1, 0.5]})
    depth = pd.DataFrame({"position": [0, 1, 0, 1], "layers": [1, 1, 2, 2], "error": [1, 0.5, 1, 0.2],
                          "tokens_per_second": [900.0, 900.0, 500.0, 500.0]})  # fmt: skip
    live = pd.concat([
        asked("length", {L: 0.8, claims.LINEAR: 0.5, claims.DELTA: 0.4}, 512),
        asked("length", {L: 0.8, claims.LINEAR: 0.5, claims.DELTA: 0.4}, 1024),
        alone("A2", {"delta": UP, "2 layers": DOWN}, 64), alone("A4", {"delta": UP}, 4),
    ])  # fmt: skip
    charts = {
        "trace": views.surprise_trace(trace),
        "mask": views.attention_mask(mac.mask(6), [("persistent", 2), ("answers", 6), ("segment", 6)]),
        "ages": views.recall_by_age(ages), "depth": views.depth_curves(depth), "chunks": views.inner_curves(live, "A4"),
        "figure": STUDIES.get("titans").figure(live, reported.load("titans"), None),
        "paper alone": views.paper_figure(None, reported.load("titans"), None, trained_at=256),
    }  # fmt: skip
    for name, chart in charts.items():
        chart.save(str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").stat().st_size > 3_000
    assert '"title": "norm, squared error"' in json.dumps(charts["trace"].to_dict())
    assert '"title": "norm, gate"' in json.dumps(views.surprise_trace(trace, ["surprise", "theta", "alpha"]).to_dict())
    with pytest.raises(BadInput, match="nothing to draw"):
        views.paper_figure(None, None, None, trained_at=256)
    with pytest.raises(BadInput, match="'surprise' is missing"):
        views.surprise_trace(trace.drop(columns="surprise"))


def test_pictures_of_what_is_not_there():
    rows = alone("A2", {"delta": UP}, 64)
    for groups, mask in (([("a", 2)], np.ones((3, 3))), ([("a", 3)], np.zeros((3, 3)))):
        with pytest.raises(BadInput, match=f"groups count {groups[0][1]} columns and the mask has 3"):
            views.attention_mask(mask, groups)
    with pytest.raises(BadInput, match="measures names no line"):
        views.surprise_trace(pd.DataFrame({"position": [0]}), [])
    with pytest.raises(BadInput, match="inner_curves: part='A9' is not one of 'A2', 'A4'"):
        views.inner_curves(rows, "A9")
    with pytest.raises(BadInput, match="recall_curves: part='lengths' is not one of 'length', 'facts'"):
        views.recall_curves(rows, "lengths")
    with pytest.raises(BadInput, match="inner_curves: column 'metric' is missing"):
        views.inner_curves(rows.drop(columns="metric"), "A2")


def test_intervals_are_students_over_models_and_bands_end_at_models():
    """Two models at .6 and .8, each on groups that differ: what is over groups or normal would be far narrower."""
    frame = pd.DataFrame(
        [{"seed": 0, "part": "length", "variant": L, "x": 512.0, "model": str(m), "unit": str(g), "metric": "recall",
          "value": value + 0.01 * (g - 1)} for m, value in enumerate((0.6, 0.8)) for g in range(3)]
    )  # fmt: skip
    wide = views._means(frame).iloc[0]
    assert (wide["value"], wide["low"], wide["high"]) == pytest.approx((0.7, 0.0, 1.0))  # .7 -+ 12.7 * .1
    band = views._ranges(frame).iloc[0]
    assert (band["value"], band["low"], band["high"]) == pytest.approx((0.7, 0.6, 0.8))
    one = views._ranges(frame[frame["model"] == "0"]).iloc[0]
    assert (one["low"], one["high"]) == pytest.approx((0.6 - 0.02484, 0.6 + 0.02484), abs=1e-4)  # t(2) .01 / sqrt(3)
    streams = alone("A2", {"delta": UP}).assign(model="")
    seeds = pd.concat([streams, streams.assign(seed=1)])
    assert views._means(seeds)["high"].iloc[0] < views._means(streams)["high"].iloc[0]  # 12 streams, not 2 seeds


def test_a_record_of_several_runs_is_drawn():
    """Six seeds are more rows than a chart may hold; what is drawn are their means."""
    from workbench_datasets import recorded

    frame = recorded.load("titans", "full")
    several = pd.concat([frame.assign(seed=seed) for seed in range(6)], ignore_index=True)
    assert STUDIES.get("titans").figure(None, reported.load("titans"), several).to_dict()
    one, six = (
        views._means(rows[(rows["part"] == "A2") & (rows["metric"] == "accuracy")]) for rows in (frame, several)
    )
    assert six["value"].tolist() == pytest.approx(one["value"].tolist())
    assert (six["high"] - six["low"] < 0.6 * (one["high"] - one["low"])).all()  # six times as many streams


def test_claims_and_figure_speak_of_the_length_that_is_trained():
    assert STUDIES.get("titans").scale("full").settings["stages"][-1][1] == claims.TRAINED_AT
    short, long = (asked("length", {L: value}, x) for value, x in ((0.9, claims.TRAINED_AT), (0.5, 1024)))
    drawn = json.dumps(STUDIES.get("titans").figure(pd.concat([short, long]), None, None).to_dict())
    assert f"Titans, trained at {claims.TRAINED_AT} tokens (live run)" in drawn
    assert views._ablation(pd.concat([short, long]), claims.TRAINED_AT)["value"].tolist() == pytest.approx(
        [0.5], abs=0.05
    )


def test_the_papers_numbers():
    frame = reported.load("titans")
    table = frame[frame["table"] == "Table 5, ablation"].pivot(index="item", columns="metric", values="value")
    assert table.loc["LMM", "long-context accuracy"] == 92.68
    assert table.loc["linear memory", "perplexity"] == 28.49
    assert set(views.ABLATION) <= set(table.index)


@pytest.mark.slow
def test_the_quick_study_has_all_its_parts():
    from dataclasses import replace

    study = STUDIES.get("titans")
    scale = study.scale("quick")
    small = {name: {**scale.settings[name], "streams": 2} for name in ("A1", "A2", "A3", "A4")}
    settings = {**scale.settings, **small, "device": "cpu", "test_sequences": 4, "groups": 4}
    frame = study.run(replace(scale, settings=settings), 3, Progress(quiet=True))
    assert {"A1", "A2", "A3", "A4", "live training", "cost"} <= set(frame["part"])
    assert np.isfinite(frame["value"]).all()

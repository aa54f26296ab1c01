"""The study of MoM: claims on frames that are made to hold or fail, a tiny run, the shipped models, probe, pictures."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.probes import mixture
from workbench.studies import STUDIES, Progress
from workbench.studies import _mom_claims as claims
from workbench.studies import _mom_models as tiny
from workbench.studies import _mom_parts as parts
from workbench.studies.mom import shipped
from workbench.views import mom as pictures
from workbench_datasets import recorded, reported

STUDY = STUDIES.get("mom")
SMALL = {
    "stages": [[0.5, 16, [2]], [0.5, 32, [2, 4]]], "tests": [[4, 32], [8, 64]], "routing_test": [4, 32], "longest": 32,
    "test_sequences": 8, "sequences": 64, "groups": 2, "hand_seeds": 3, "contexts": [8, 16, 32], "decode_steps": 2,
    "batch": 2, "steps": 3, "least_steps": 700, "seeds": 2, "decode_dim": 16, "device": "cpu",
}  # fmt: skip


def quick(**more):
    return {**STUDY.scale("quick").settings, **SMALL, **more}


def model(variant="GDN MoM", seed=0):
    torch.manual_seed(seed)
    return tiny.build(variant, quick()).eval()


# ---- what is compared ---------------------------------------------------------------------------------------------


def test_equal_states_are_equal():
    floats = {name: tiny.state_floats(tiny.build(name, quick())) for name in tiny.VARIANTS}
    assert floats["GDN expanded"][0] == floats["GDN MoM"][0] == 3 * floats["GDN single"][0]
    assert floats["GLA expanded"][0] == floats["GLA MoM"][0]
    assert floats["GDN total"][1] == pytest.approx(floats["GDN MoM"][1], rel=0.02)
    assert floats["GDN total"][1] >= floats["GDN MoM"][1]
    assert floats["GDN single"] == (2 * 2 * 64,) * 2


def test_active_weights_leave_out_the_memories_that_a_token_is_not_sent_to():
    sizes = {line["metric"]: line["value"] for line in parts.sizes("GDN MoM", model())}
    own = 2 * 64 * 16 + 2 * 64 * 2  # keys, values, rate and decay of one memory
    assert sizes["parameters"] - sizes["active parameters"] == 2 * 2 * own
    same = {line["metric"]: line["value"] for line in parts.sizes("GDN single", model("GDN single"))}
    assert same["parameters"] == same["active parameters"]


def test_stages_grow_and_keep_their_shares():
    stages = [[0.5, 8, [1, 2]], [0.25, 16, [4]], [0.25, 16, [2, 4]]]
    stage = tiny.stages({**quick(), "stages": stages}, 20)
    asked = [sorted(set((stage(step).targets >= 0).sum(1).tolist())) for step in (0, 9, 10, 14, 15, 19, 25)]
    assert asked == [[1, 2], [1, 2], [4], [4], [2, 4], [2, 4], [2, 4]]
    assert [stage(step).ids.shape[1] for step in (0, 10, 19)] == [8, 16, 16]
    assert stage(15) is stage(19)
    assert all(len(stage(step)) == 64 for step in range(20))


def test_the_better_way_is_taken_and_fewer_steps_where_time_is_short(monkeypatch):
    def cost(build, *rest, stack, **more):
        return {"GDN single": 1e-3, "GDN MoM": 5e-3 if stack is None else 4e-3}[build.args[0]]

    monkeypatch.setattr("workbench.training.tiny.seconds_a_step", cost)
    total = 5 * 1e-3 + (5 + 9 / 5) * 4e-3
    settings = {**quick(), "steps": 2_000}
    assert tiny.planned({**settings, "train_seconds": 1e9}, (0,), "cpu") == tiny.Plan(2_000, False)
    assert tiny.planned({**settings, "train_seconds": total * 777}, (0,), "cpu").steps == 750
    assert tiny.planned({**settings, "train_seconds": total * 7}, (0,), "cpu").steps == 700


# ---- claims -------------------------------------------------------------------------------------------------------


def recall_rows(values, models=3, units=4, noise=0.01, x=16):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "part": "recall", "variant": name, "x": float(x), "model": str(m), "unit": str(u), "metric": "recall",
            "value": value + noise * rng.normal(),
        }
        for name, value in values.items()
        for m in range(models)
        for u in range(units)
    )  # fmt: skip


@pytest.mark.parametrize("models", [1, 3])
def test_better_than_one_needs_both_rules(models):
    both = {"GDN MoM": 0.8, "GDN single": 0.5, "GLA MoM": 0.6, "GLA single": 0.4}
    units = 4 if models > 1 else 60
    assert claims.better_than_one(recall_rows(both, models, units)).verdict == "holds"
    worse = {**both, "GLA MoM": 0.2}
    assert claims.better_than_one(recall_rows(worse, models, units)).verdict == "not reproduced"
    frame = recall_rows({**both, "GLA MoM": 0.4}, models, units)
    every_other = frame["unit" if models == 1 else "model"].astype(int) % 2 * 0.2 - 0.1
    unsure = frame["value"] + every_other.where(frame["variant"] == "GLA MoM", 0)
    assert claims.better_than_one(frame.assign(value=unsure)).verdict == "inconclusive"


def test_better_than_expanded_takes_the_stronger_rule_and_tells_both():
    frame = recall_rows({"GDN MoM": 0.5, "GDN expanded": 0.6, "GLA MoM": 0.6, "GLA expanded": 0.4})
    found = claims.better_than_expanded(frame)
    assert found.verdict == "holds"
    assert "(not reproduced)" in found.note
    assert claims.better_than_expanded(frame[frame["variant"].str.startswith("GDN")]).verdict == "not reproduced"


def test_shared_and_more_memories():
    frame = recall_rows({"GDN MoM": 0.5, "GDN MoM, not shared": 0.7, "GDN MoM, N=2": 0.3, "GDN MoM, N=8": 0.7})
    assert claims.shared_helps(frame).verdict == "not reproduced"
    grows = claims.more_memories(frame)
    assert grows.verdict == "holds"
    assert grows.effect == pytest.approx(0.2, abs=0.02)


def test_claims_without_rows_are_unmeasured_not_lost():
    frame = recall_rows({"GDN MoM": 0.5})
    for claim in STUDY.claims:
        found = claim.test(frame)
        assert found.verdict == "inconclusive"
        assert found.n == 0


def test_balance_compares_spreads():
    rows = [
        ("routing", name, layer, str(m), f"{g}:{i}", "share", share + 0.001 * m)
        for name, shares in (("GDN MoM", [0.5, 0.5]), ("GDN MoM, no balance loss", [0.9, 0.1]))
        for layer in (0.0, 1.0) for m in range(3) for g in range(2) for i, share in enumerate(shares)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["part", "variant", "x", "model", "unit", "metric", "value"])
    found = claims.balanced(frame)
    assert found.verdict == "holds"
    assert found.effect == pytest.approx(0.8, abs=0.02)
    swapped = frame.replace({"GDN MoM": "a", "GDN MoM, no balance loss": "GDN MoM"}).replace(
        {"a": "GDN MoM, no balance loss"}
    )
    assert claims.balanced(swapped).verdict == "not reproduced"


def decoding_rows(exponent, grows=1.0):
    rows = [
        ("decoding", "GDN MoM", x, "0", str(u), metric, value)
        for x in (128.0, 512.0, 2048.0, 4096.0)
        for u in range(5)
        for metric, value in (
            ("seconds", 1e-3 * x**exponent * (1 + 0.01 * u + 0.01 * np.sin(x))),
            ("state bytes", 1e4 * x ** (grows - 1)),
        )
    ]
    return pd.DataFrame(rows, columns=["part", "variant", "x", "model", "unit", "metric", "value"])


@pytest.mark.parametrize(
    ("exponent", "grows", "verdict"), [(0.0, 1.0, "holds"), (0.5, 1.0, "not reproduced"), (0.0, 2.0, "not reproduced")]
)
def test_constant_decoding(exponent, grows, verdict):
    assert claims.constant_decoding(decoding_rows(exponent, grows)).verdict == verdict


def test_separation_on_real_rows():
    frame = pd.DataFrame(parts.by_hand({"hand_seeds": 4, "hand_facts": [16]}, 3))
    assert claims.separation(frame).verdict == "holds"


# ---- running ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_full_run_measures_everything_and_ships(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    monkeypatch.setattr(tiny, "planned", lambda *_: tiny.Plan(3))
    monkeypatch.setattr(tiny, "VARIANTS", {name: tiny.VARIANTS[name] for name in ("GDN single", "GDN MoM")})
    scale = STUDY.scale("full")
    frame = STUDY.run(replace(scale, settings={**scale.settings, **SMALL}), 0, Progress(quiet=True))
    assert set(frame["part"]) == {"by hand", "decoding", "long", "recall", "routing", "size", "training"}
    assert frame["value"].notna().all()
    assert set(frame[frame["part"] == "recall"]["model"]) == {"0", "1"}
    shares = frame[frame["part"] == "routing"]
    assert shares.groupby(["variant", "x", "model", shares["unit"].str[0]])["value"].sum().to_list() == pytest.approx(
        [2.0] * 8
    )
    assert set(shipped()) == {"GDN single", "GDN MoM"}
    outcomes = STUDY.judge(frame, "full")
    assert set(outcomes) == {claim.id for claim in STUDY.claims if "full" in claim.scales}


def test_past_the_deadline_the_rest_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    monkeypatch.setattr(tiny, "planned", lambda *_: tiny.Plan(3))
    scale = STUDY.scale("full")
    settings = {**scale.settings, **SMALL, "last_start_seconds": -1.0}
    frame = STUDY.run(replace(scale, settings=settings), 0, Progress(quiet=True))
    assert set(frame["part"]) == {"by hand", "decoding", "training"}


@pytest.mark.slow
def test_a_mixture_learns_two_pairs():
    """The task is learned at all, by the layer and the training that the study uses; a guess among two is .5."""
    small = quick(vocabulary=16, stages=[[1.0, 8, [2]]], sequences=2_000, batch=32)
    losses = tiny.trained("GDN MoM", small, tiny.Plan(150), (5,), "cpu").losses
    assert losses["right"].tail(20).mean() > 0.75


def test_the_shipped_models_are_the_variants_and_recall():
    models = shipped()
    if not models:
        pytest.skip("no trained models ship with this copy")
    assert {"GDN single", "GDN MoM", "GLA single", "GLA MoM"} <= set(models)
    settings = {**STUDY.scale("quick").settings, "tests": [[4, 64]], "test_sequences": 8, "device": "cpu"}
    for name in ("GDN MoM", "GLA MoM"):
        rows = pd.DataFrame(parts.asked(name, [models[name]], settings, 5))
        assert rows["value"].mean() > 0.5, name


# ---- the probe ----------------------------------------------------------------------------------------------------


IDS = list(range(1, 31))


def test_the_ribbon_says_what_the_router_does():
    made = model()
    band = mixture.ribbon(made, IDS, 1)
    routing = made.blocks[1].mixer.route(mixture.layer_input(made, IDS, 1))
    assert band["memory"].astype(int).tolist() == routing.w[0].argmax(-1).tolist()
    assert band["weight"].to_numpy() == pytest.approx(routing.w[0].amax(-1).detach().numpy())
    assert (band["second"] != band["memory"]).all()
    assert band["token"].tolist() == [str(i) for i in IDS]


def test_states_over_time_end_in_the_state_of_the_whole_pass():
    made = model()
    states = mixture.states_over_time(made, IDS, 0, moments=3)
    assert list(states) == [10, 20, 30]
    with torch.no_grad():
        whole = made.blocks[0].mixer(mixture.layer_input(made, IDS, 0))[1]["memory"][0]
    assert torch.allclose(states[30], whole, atol=1e-5)
    alike = mixture.similarities(states)
    same = alike[alike["a"] == alike["b"]]
    assert same["cosine"].to_numpy() == pytest.approx(np.ones(15))
    values = mixture.spectra(states[30])
    norms = values.assign(square=values["value"] ** 2).groupby(["memory", "head"])["square"].sum() ** 0.5
    assert norms["shared", 1] == pytest.approx(float(whole[-1, 1].norm()), rel=1e-5)


def test_a_memory_that_was_written_once_answers_with_that_value():
    """One token: the read of its own query is a multiple of its value, in every memory that it was given to."""
    found = mixture.nearest_values(model("GLA MoM"), [7], 0)
    assert len(found) == 3
    assert set(found["position"]) == {0}
    assert "shared" in set(found["memory"])
    alone = mixture.nearest_values(model(), IDS, 12, 1, memory=4)
    assert set(alone["memory"]) == {"shared"}
    assert alone["position"].max() == 12
    assert alone["similarity"].is_monotonic_decreasing


@torch.no_grad()
def test_a_memory_that_the_token_was_not_sent_to_is_asked_after_its_own_tokens():
    """With the convolution over each memory's own tokens, the query is that of a token given to the memory now."""
    from workbench.models.mixer import MixerConfig, MixerLM

    torch.manual_seed(3)
    made = MixerLM(MixerConfig(64, 16, [{"mixer": "mom", "heads": 2, "shared": False}], mlp_ratio=0)).double().eval()
    mixer, x = made.blocks[0].mixer, mixture.layer_input(made, IDS, 0)
    chosen, held = mixer.route(x).chosen[0], mixer(x)[1]["memory"][0]
    assert not chosen[-1].all()
    for m in range(mixer.memories):
        own = chosen[:-1, m].nonzero()[:, 0].tolist()
        rows = x[:, [*own, len(IDS) - 1]]
        rows = torch.cat([rows @ mixer.to_q, rows @ mixer.to_k[m], rows @ mixer.to_v[m]], -1)
        rows, _ = mixer.short(rows, rows.new_zeros(1, 3, rows.shape[-1]))
        q = torch.nn.functional.normalize(rows[0, -1, :16].unflatten(0, (2, 8)), dim=-1)
        read = torch.einsum("hk,hkv->hv", q, held[m])
        values = rows[0, :-1, 32:].unflatten(1, (2, 8))
        for head in (None, 0, 1):
            mine, stored = (read, values) if head is None else (read[head], values[:, head])
            wanted = torch.cosine_similarity(stored.flatten(1), mine.flatten()[None])
            found = mixture.nearest_values(made, IDS, len(IDS) - 1, memory=m, head=head)
            assert found.set_index("position")["similarity"][own].to_list() == pytest.approx(wanted.tolist())


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: mixture.ribbon(m, [3, 64], 0), "64, which is no token"),
        (lambda m: mixture.nearest_values(m, [-1, 3], 0), "0 to 63"),
        (lambda m: mixture.ribbon(m, IDS, 2), "layer=2"),
        (lambda m: mixture.ribbon(m, [], 0), "no token"),
        (lambda m: mixture.ribbon(m, IDS, 0, names=["a"]), "30 labels"),
        (lambda m: mixture.states_over_time(m, IDS, 0, moments=31), "moments=31"),
        (lambda m: mixture.nearest_values(m, IDS, 30), "query=30"),
        (lambda m: mixture.nearest_values(m, IDS, 0.5), "query must be a whole number"),
        (lambda m: mixture.nearest_values(m, IDS, -1), "query"),
        (lambda m: mixture.nearest_values(m, IDS, 3, memory=5), "memory=5"),
        (lambda m: mixture.nearest_values(m, IDS, 3, head=2), "head=2"),
    ],
)
def test_bad_input_of_the_probe_is_named(call, named):
    with pytest.raises(BadInput, match=named):
        call(model())


def test_a_model_without_a_mixture_is_refused():
    from workbench.models.mixer import MixerConfig, MixerLM

    other = MixerLM(MixerConfig(64, 8, ["linear-attention"], mlp_ratio=0))
    with pytest.raises(BadInput, match="linear-attention"):
        mixture.ribbon(other, IDS)


# ---- pictures -----------------------------------------------------------------------------------------------------


def some_rows():
    made = {name: model(name) for name in ("GDN single", "GDN MoM", "GDN MoM, no balance loss")}
    rows = [*parts.by_hand(quick(), 0), *parts.decoding(quick(), 0)]
    for name, one in made.items():
        rows += [*parts.asked(name, [one], quick(), 0), *parts.routed(name, [one], quick(), 0)]
    return pd.DataFrame(rows)


def test_every_picture_draws(tmp_path):
    frame, made = some_rows(), model()
    band = mixture.ribbon(made, IDS)
    states = mixture.states_over_time(made, IDS, moments=3)
    hand = frame[frame["part"] == "by hand"].rename(columns={"variant": "route", "x": "facts", "value": "recall"})
    charts = [
        pictures.router_map(pictures.routing_frame(frame)),
        pictures.token_ribbon(band),
        pictures.memory_classes(band.assign(kind="token")),
        pictures.interference_curves(hand),
        pictures.recall_curves(frame, pictures.RULES),
        pictures.similarity_maps(mixture.similarities(states)),
        pictures.spectrum(mixture.spectra(states[30])),
        pictures.decoding_curves(frame),
        pictures.paper_figure(frame, reported.load("mom"), None),
        pictures.paper_figure(None, reported.load("mom"), frame),
        pictures.paper_figure(None, reported.load("mom"), None),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, chart in enumerate(charts):
            chart.save(tmp_path / f"{number}.svg")
            assert (tmp_path / f"{number}.svg").stat().st_size > 1_000
    charts[0].save(tmp_path / "router.png")


def test_the_ribbon_wants_weights_between_0_and_1():
    frame = pd.DataFrame({"position": [0], "token": ["a"], "memory": ["0"], "weight": [1.5]})
    with pytest.raises(BadInput, match="weight"):
        pictures.token_ribbon(frame)


def test_the_papers_rows_are_found():
    table = pictures._table(reported.load("mom"))
    assert table is not None
    assert set(table["item"]) == set(pictures.SAME)
    found = table.set_index("item")["value"]
    assert found["GDN MoM"] == 28.16
    assert found["GDN single"] == 24.78


@pytest.mark.skipif(not recorded.exists("mom"), reason="no run is recorded yet")
def test_the_recorded_run_is_whole():
    frame = recorded.load("mom", "full")
    assert {"by hand", "decoding", "recall", "routing", "training"} <= set(frame["part"])
    first = frame[(frame["part"] == "recall") & frame["variant"].isin(["GDN single", "GDN MoM"])]
    assert first.groupby(["variant", "seed"])["model"].nunique().eq(5).all()
    outcomes = STUDY.judge(frame, "full")
    assert outcomes["C1"].n == 5 * frame["seed"].nunique()
    failed = {name for name, found in outcomes.items() if found.n and found.verdict != "holds"}
    assert failed == {"C2"}, "as the notebook says"


@pytest.mark.skipif(not recorded.exists("mom"), reason="no run is recorded yet")
def test_the_notebook_s_numbers_are_those_of_the_record():
    path = Path(__file__).parents[2] / "notebooks" / "02-sequence-layers" / "mom.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    (text,) = (said for said in texts if "What the recorded run says" in said)
    frame = recorded.load("mom", "full")
    means = frame[(frame["part"] == "recall") & (frame["metric"] == "recall")].groupby(["variant", "x"])["value"].mean()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    kinds = ["single", "MoM", "expanded", "total"]
    told = {(rule, pairs): row[2:] for rule, pairs, row in zip(
        ("GDN", "GDN", "GLA", "GLA"), (16.0, 24.0, 16.0, 24.0), rows[1:], strict=True)}  # fmt: skip
    for (rule, pairs), numbers in told.items():
        found = [means.get((f"{rule} {kind}", pairs)) for kind in kinds]
        assert numbers == ["" if x is None else f"{x:.2f}".removeprefix("0") for x in found], (rule, pairs)
    for pair in (("GDN MoM", "GDN single"), ("GLA MoM", "GLA expanded"), ("GDN MoM", "GDN MoM, not shared")):
        low, high = (f"{x:.2f}".replace("0.", ".") for x in _interval(frame, *pair))
        assert f"[{low}, {high}]" in text, pair


def _interval(frame, better, worse):
    found = claims.difference(frame, better, worse)
    return found.low, found.high

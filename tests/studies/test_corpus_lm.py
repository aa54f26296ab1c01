"""Small language models on the embedded corpus: trained, sized, read and asked in both studies; claims; pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.studies import STUDIES, Progress
from workbench.studies import _corpus_lm as lm
from workbench.studies import _corpus_lm_claims as claims
from workbench.studies import _mom_models as mom
from workbench.studies import _titans_trained as titans
from workbench.training.corpus import Asked
from workbench.views import language as pictures
from workbench.views import mom as mom_views
from workbench.views import titans as titans_views
from workbench_datasets import recorded, reported

TINY = {
    "device": "cpu", "tokens": 128, "windows": 64, "books": False, "test_windows": 8, "groups": 4, "gaps": [0],
    "questions": 16, "dim": 32, "heads": 2, "blocks": 1, "batch": 2, "eval_batch": 8, "steps": 10, "least_steps": 10,
    "timed_steps": 1, "seeds": 2, "train_seconds": 1e6, "deadline_seconds": 600, "warmup": 2,
}  # fmt: skip
PARTS = {"LM corpus", "LM size", "LM training", "LM world", "LM recall"}


def settings(slug: str, **more):
    return {**STUDIES.get(slug).scale("lm").settings, **TINY, **more}


def run(slug: str, **more):
    study = STUDIES.get(slug)
    return study.run(replace(study.scale("lm"), settings=settings(slug, **more)), 0, Progress(quiet=True))


@pytest.fixture(scope="module")
def data():
    return lm.corpus(settings("titans"), 0)


# ---- the part end to end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["titans", "mom"])
def test_the_whole_part_runs_small(slug):
    frame = run(slug)
    assert set(frame["part"]) == PARTS
    assert np.isfinite(frame["value"]).all()
    variants = list({"titans": titans.LANGUAGE, "mom": mom.LANGUAGE}[slug])
    assert list(frame[frame["part"] == "LM size"]["variant"].unique()) == variants
    world = frame[(frame["part"] == "LM world") & (frame["x"] == 0)]
    assert len(world) == len(variants) * 2 * 4, "two seeds, four groups"
    assert world["value"].between(4, 9).all()
    spans = frame[frame["part"] == "LM world"].groupby("x")["value"].size()
    assert list(spans.index) == [0, 64, 128]
    losses = frame[(frame["part"] == "LM training") & (frame["metric"] == "loss")]
    assert set(losses["variant"]) == set(variants)
    outcomes = STUDIES.get(slug).judge(frame, "lm")
    assert set(outcomes) == {claim.id for claim in STUDIES.get(slug).claims if claim.scales == ("lm",)}
    assert len(outcomes) == 4


def test_training_lowers_the_loss_and_books_are_not_needed(data):
    small = settings("titans", lr=1e-2)
    made = lm.trained({"mixer": "gated-delta-net"}, small, data, lm.Plan(30, 1), 0)
    losses = made.losses["loss"]
    assert losses.tail(5).mean() < losses.head(3).mean() - 0.5
    assert made.complete


def test_variants_see_the_same_batches(data):
    """The order of the data follows from the seed alone, so that variants are paired by seed."""
    small = settings("titans")
    mixers = titans.language_models(small).values()
    first = [lm.trained(mixer, small, data, lm.Plan(1, 2), 0).record for mixer in mixers]
    assert {tuple(record["seeds"]) for record in first} == {(30_000, 30_001)}
    assert len({record["data"] for record in first}) == 1


# ---- what is measured ---------------------------------------------------------------------------------------------


class Told:
    """A model that is sure of one row: the next token, but for the places that are named."""

    def __init__(self, wrong=()):
        self.wrong, self.device = set(wrong), "cpu"

    def __call__(self, input_ids, use_cache, attention_mask=None):
        following = input_ids.roll(-1, 1).clone()
        for place in self.wrong:
            following[:, place - 1] = 2
        return type("Out", (), {"logits": torch.nn.functional.one_hot(following, 8).float() * 5})


def test_surprise_and_exact_answers_by_hand():
    ids = np.array([[0, 3, 4, 5, 6, 1]])
    sure, unsure = -math.log(math.exp(5) / (math.exp(5) + 7)), -math.log(1 / (math.exp(5) + 7))
    assert lm.nats(Told([3]), ids, 4)[0].tolist() == pytest.approx([sure, sure, unsure, sure, sure], abs=1e-5)
    asked = Asked(ids, np.array([[False, False, False, True, True, False]]), 0.5)
    right, surprise = lm.answered(Told(), asked, 4)
    assert right.tolist() == [True]
    assert surprise.tolist() == pytest.approx([2 * sure], abs=1e-5)
    right, surprise = lm.answered(Told([4]), asked, 4)
    assert right.tolist() == [False], "every token of an answer counts"
    assert surprise.tolist() == pytest.approx([sure + unsure], abs=1e-5)
    assert lm.answered(Told([2]), asked, 4)[0].tolist() == [True], "other tokens do not"


def test_positions_share_the_tokens_out():
    table, counted = torch.arange(1.0, 512.0).repeat(2, 1), torch.ones(2, 511, dtype=torch.bool)
    rows = {line["x"]: line["value"] for line in lm._surprise("a", "LM books", 0, 0, table, counted)}
    assert rows == pytest.approx({0: 256, 64: 32, 128: 95.5, 256: 191.5, 512: 383.5})
    counted[:, 63:] = False
    rows = {line["x"]: line["value"] for line in lm._surprise("a", "LM books", 0, 0, table, counted)}
    assert rows == {0: 32, 64: 32}


def test_what_is_equal_and_what_is_told():
    """The same shape round the mixer; states and weights differ, and say by how much."""

    def sizes(variants, small):
        return {
            name: {row["metric"]: row["value"] for row in lm.sizes(name, lm.build(mixer, small, 64), small)}
            for name, mixer in variants.items()
        }

    full = {**STUDIES.get("mom").scale("lm").settings}
    found = sizes(mom.language_models(full), full)
    floats = {name: row["state bytes"] for name, row in found.items()}
    conv = 4 * 3 * 3 * 256 * 4  # bytes of the convolution's last tokens, of one memory of 64 x 64 a head
    one = 4 * 4 * 64 * 64 * 4
    assert floats["GDN single"] - one == pytest.approx(conv, rel=0.2)
    assert floats["GDN expanded"] > 3 * one
    assert floats["GDN MoM"] > 5 * one
    assert found["GDN MoM"]["parameters"] > found["GDN expanded"]["parameters"] > found["GDN single"]["parameters"]
    full = {**STUDIES.get("titans").scale("lm").settings}
    found = sizes(titans.language_models(full), full)
    assert found["window attention"]["state bytes"] < found["MAG"]["state bytes"]
    assert len({row["embedding parameters"] for row in found.values()}) == 1


# ---- the plan -----------------------------------------------------------------------------------------------------


def test_the_plan_keeps_its_rule(monkeypatch, data):
    """The better way for the dearest, as many hundreds of steps as fit, and fewer seeds before too few steps."""
    costs = {"a": 1e-3, "b": 4e-3}

    def seconds(small, data, seeds, mixer, stack):
        return costs[mixer["mixer"]] * len(seeds) * (0.5 if stack is None else 1.0)

    monkeypatch.setattr(lm, "_seconds", seconds)
    variants = {"a": {"mixer": "a"}, "b": {"mixer": "b"}}
    rule = {**TINY, "dearest": "b", "seeds": 3, "steps": 2_000, "least_steps": 1_000, "first_seed": 0}
    total = 3 * 5e-3 / 2
    plan = {n: lm.planned(variants, {**rule, "train_seconds": n * total}, data, 0) for n in (9_000, 1_777, 800, 1)}
    assert plan[9_000] == lm.Plan(2_000, 3, None)
    assert plan[1_777] == lm.Plan(1_700, 3, None)
    assert plan[800] == lm.Plan(1_200, 2, None)
    assert plan[1] == lm.Plan(1_000, 1, False)


def test_steps_that_are_settled_are_not_timed(monkeypatch, data):
    monkeypatch.setattr(lm, "_seconds", lambda *_: pytest.fail("nothing is to be timed"))
    settled = {**TINY, "dearest": "a", "seeds": 1, "steps": 800, "least_steps": 800}
    assert lm.planned({"a": {"mixer": "a"}}, settled, data, 0) == lm.Plan(800, 1, False)


def test_models_that_the_time_cuts_are_said_and_not_read(data, capsys):
    frame = pd.DataFrame(lm.lines(titans.language_models(settings("titans")), settings("titans", deadline_seconds=0.0),
                                  0, Progress()))  # fmt: skip
    assert set(frame["part"]) == {"LM corpus", "LM recall", "LM training"}
    assert capsys.readouterr().err.count("left out") == 5


# ---- claims on made-up rows ---------------------------------------------------------------------------------------


def rows(nats, part="LM books", metric="nats", x=0, models=3, noise=0.002):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        lm.line(part, name, x, metric, value + 0.1 * m + noise * rng.normal(), m, unit)
        for name, value in nats.items() for m in range(models) for unit in range(8)
    )  # fmt: skip


def judged(slug, frame):
    return {name: found.verdict for name, found in STUDIES.get(slug).judge(frame, "lm").items()}


@pytest.mark.parametrize("models", [1, 3])
def test_titans_claims_hold_and_fail(models):
    order = {"window attention": 3.5, "gated DeltaNet": 3.4, "LMM": 3.3, "MAG": 3.1, "MAL": 3.2}
    answers = {"MAG": 0.6, "window attention": 0.1}
    frame = pd.concat([rows(order, models=models), rows(answers, "LM recall", "exact", 256, models)])
    assert judged("titans", frame) == dict.fromkeys(("LM-WINDOW", "LM-LMM", "LM-HYBRID", "LM-RECALL"), "holds")
    turned = {name: 6.6 - value for name, value in order.items()}
    frame = pd.concat([rows(turned, models=models),
                       rows({"MAG": 0.1, "window attention": 0.6}, "LM recall", "exact", 256, models)])  # fmt: skip
    assert set(judged("titans", frame).values()) == {"not reproduced"}
    one = {**order, "MAL": 3.35}
    assert judged("titans", rows(one, models=models))["LM-HYBRID"] == "not reproduced"


def test_nearer_questions_do_not_count_beyond_the_reach():
    near = rows({"MAG": 0.9, "window attention": 0.1}, "LM recall", "exact", 128)
    assert judged("titans", near)["LM-RECALL"] == "inconclusive"
    both = pd.concat([near, rows({"MAG": -0.05, "window attention": -0.06}, "LM recall", "exact", 256)])
    found = STUDIES.get("titans").judge(both, "lm")["LM-RECALL"]
    assert found.verdict == "inconclusive"
    assert "neither reads" in found.note


@pytest.mark.parametrize(("mixture", "verdicts"), [
    (3.20, {"LM": "holds", "LM-TIE": "holds", "LM-EXPANDED": "holds"}),
    (3.31, {"LM": "not reproduced", "LM-TIE": "holds", "LM-EXPANDED": "not reproduced"}),
    (3.40, {"LM": "not reproduced", "LM-TIE": "not reproduced", "LM-EXPANDED": "not reproduced"}),
])  # fmt: skip
def test_mom_claims_hold_tie_and_fail(mixture, verdicts):
    found = judged("mom", rows({"GDN MoM": mixture, "GDN single": 3.3, "GDN expanded": 3.25}, noise=1e-4))
    assert {name: found[name] for name in verdicts} == verdicts


def test_mom_answers():
    frame = rows({"GDN MoM": 0.5, "GDN single": 0.3}, "LM recall", "exact", 64)
    assert judged("mom", frame)["QA"] == "holds"
    frame = rows({"GDN MoM": 0.3, "GDN single": 0.5}, "LM recall", "exact", 64)
    assert judged("mom", frame)["QA"] == "not reproduced"
    frame = rows({"GDN MoM": -0.07, "GDN single": -0.08}, "LM recall", "exact", 64)
    assert judged("mom", frame)["QA"] == "inconclusive"


def test_the_note_tells_perplexities_and_what_the_interval_is_over():
    frame = pd.concat([rows({"MAG": 3.0, "window attention": 3.2}, models=1),
                       rows({"MAG": 1.0, "window attention": 1.0}, "LM world", models=1)])  # fmt: skip
    note = claims.lower(frame, "MAG", "window attention").note
    assert f"{math.exp(3.0):.3g}" in note
    assert "one trained model" in note
    assert "world" in note


def test_other_scales_have_no_such_claims():
    for slug in ("titans", "mom"):
        assert not any(name.startswith(("LM", "QA")) for name in STUDIES.get(slug).judge(rows({"MAG": 1.0}), "full"))


# ---- pictures -----------------------------------------------------------------------------------------------------


def test_pictures(tmp_path):
    models = list(titans_views.LANGUAGE)
    values = dict(zip(models, (3.5, 3.4, 3.3, 3.1, 3.2)))
    parts = [rows(values, x=x) for x in (0, 64, 128, 256, 512)] + [rows(values, "LM world")]
    shares = dict(zip(models, (0.1, 0.2, 0.3, 0.4, 0.5)))
    parts += [rows(shares, "LM recall", "exact", gap) for gap in (0, 128)]
    frame = pd.concat(parts, ignore_index=True)
    renamed = {"window attention": "GDN single", "MAG": "GDN MoM", "MAL": "GDN expanded"}
    charts = {
        "titans": titans_views.language_models(frame, reported.load("titans")),
        "whole": STUDIES.get("titans").figure(None, reported.load("titans"), frame),
        "mom": mom_views.language_models(frame.assign(variant=frame["variant"].replace(renamed))),
    }
    for name, chart in charts.items():
        chart.save(tmp_path / f"{name}.svg")
        assert "perplexity" in (tmp_path / f"{name}.svg").read_text()
    assert "paper: Wikitext" in (tmp_path / "titans.svg").read_text()
    guessed = pd.concat(
        [frame, pd.DataFrame([lm.line("LM recall", "chance", gap, "chance", 0.05) for gap in (0, 128)])]
    )
    for made, dashed in ((frame, 0), (guessed, 1)):
        drawn = pictures.answer_curves(made, models).to_dict()
        assert [layer["encoding"]["y"].get("datum") for layer in drawn["layer"]].count(0.05) == dashed
    sizes = pd.DataFrame([*lm.sizes("a", lm.build({"mixer": "gated-delta-net"}, TINY, 64), TINY)])
    table = pictures.sizes(sizes)
    assert table.loc["a", "parameters"] - table.loc["a", "without embedding"] == 64 * 32


@pytest.mark.parametrize(
    ("slug", "kinds", "told"),
    [
        ("titans", ("LMM", "gated DeltaNet", "window attention", "MAL"), "{0} against {1}|has {2}, MAL {3}"),
        ("mom", ("GDN MoM", "GDN single", "GDN expanded"), "{0} for the mixture, {1} for one memory, {2} for the"),
        ("just-read-twice", ("JRT-RNN", "Based"), "{0} against {1} of Based"),
    ],
)
def test_notebooks_tell_the_recorded_perplexities(slug, kinds, told):
    path = Path(__file__).parents[2] / "notebooks" / "02-sequence-layers" / f"{slug}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (text,) = ("".join(cell["source"]) for cell in cells if "".join(cell["source"]).startswith("### Language models"))
    frame = recorded.load(slug, "lm").rename(columns={"experiment": "part", "item": "variant"})
    books = frame[(frame["part"] == "LM books") & (frame["metric"] == "nats") & (frame["x"] == 0)]
    means = [f"{np.exp(books[books['variant'] == kind]['value'].mean()):.1f}" for kind in kinds]
    for part in told.split("|"):
        assert part.format(*means) in " ".join(text.split())

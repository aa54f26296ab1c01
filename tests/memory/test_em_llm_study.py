"""EM-LLM's study: streams whose gold is right, questions without trace, claims on known rows, pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.memory.cache.em_llm import EMLLM
from workbench.models import load
from workbench.statistics import wilson
from workbench.studies import STUDIES, Progress
from workbench.studies import _em_llm_claims as claims
from workbench.tasks.episodes import (
    ask,
    boundary_scores,
    episode_stream,
    order_stream,
    passkey_stream,
    prose_stream,
    read_stream,
)
from workbench.views import em_llm as views
from workbench_datasets import recorded, reported


@pytest.fixture(scope="module")
def embedded():
    return load("embedded", dtype="float32")


@pytest.fixture(scope="module")
def stream(embedded):
    return episode_stream(embedded.tokenizer, 5, tokens=400, questions=2)


def test_gold_of_a_stream(embedded, stream):
    text = lambda a, b: embedded.tokenizer.decode(list(stream.ids[a:b]))  # noqa: E731
    assert all(text(place, place + 2).strip().lower().startswith("in") for place in stream.boundaries)
    for question in stream.asks:
        assert question.answer.strip() in text(question.start, question.end)
        assert question.end < len(stream.ids) - 128
    following = episode_stream(embedded.tokenizer, 5, tokens=400, questions=2, kind="next").asks
    assert all(q.answer in text(q.start, q.end) for q in following)
    assert stream == episode_stream(embedded.tokenizer, 5, tokens=400, questions=2)
    key = passkey_stream(embedded.tokenizer, 1, tokens=200)
    assert key.asks[0].answer.strip() in embedded.tokenizer.decode(list(key.ids[: key.asks[0].end]))
    with pytest.raises(BadInput, match="kind="):
        episode_stream(embedded.tokenizer, 5, tokens=400, kind="why")
    with pytest.raises(BadInput, match="tokens=60"):
        episode_stream(embedded.tokenizer, 5, tokens=60)
    for name, value in (("tokens", 0), ("tokens", 2.5), ("questions", -1), ("behind", "a")):
        with pytest.raises(BadInput, match=f"{name} must be a whole number .*, got {value!r}"):
            episode_stream(embedded.tokenizer, 5, **{"tokens": 400, name: value})
    with pytest.raises(BadInput, match="tokens must be a whole number"):
        passkey_stream(embedded.tokenizer, 1, tokens=0)


def test_a_question_leaves_no_trace(embedded, stream):
    memory = EMLLM(n_local=64, n_mem=64, n_init=4, chunk=32, min_block=4, max_block=32).bind(embedded.model)
    read_stream(embedded, memory, stream)
    before = memory.contents(), memory.fed
    found = ask(embedded, memory, stream.asks[0])
    assert 0 <= found["fact_recall"] <= 1
    assert memory.contents().equals(before[0])
    assert memory.fed == before[1]
    blind = EMLLM(n_local=64, n_mem=64, n_init=4, chunk=32, max_block=32, retrieval="none").bind(embedded.model)
    read_stream(embedded, blind, stream)
    assert ask(embedded, blind, stream.asks[0])["fact_recall"] == 0
    blind.unbind()


def test_boundary_scores_by_hand():
    assert boundary_scores([10, 21, 50], [9, 20, 30], 60)["boundary F1"] == pytest.approx(4 / 6)
    assert boundary_scores([10], [14], 60) == {"boundary F1": 0.0, "Wasserstein distance": 4.0, "events": 2.0}
    assert boundary_scores([9, 10], [10], 60)["boundary F1"] == pytest.approx(2 / 3)


def rows(metric, by_variant, experiment="episodes", length=640, window=0) -> pd.DataFrame:
    lines = [
        {"experiment": experiment, "variant": name, "length": length, "unit": str(unit), "metric": metric,
         "value": float(value), "window": window, "seed": 0}
        for name, values in by_variant.items() for unit, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(lines)


UP, DOWN = np.linspace(0.6, 0.9, 12), np.linspace(0.1, 0.2, 12)
KNOWN = [
    ("F1", rows("boundary F1", {"S": UP, claims.SAME_F: DOWN, claims.SAME_R: DOWN}), "holds"),
    ("F1", rows("boundary F1", {"S": UP, claims.SAME_F: DOWN, claims.SAME_R: UP[::-1]}), "inconclusive"),
    ("F1", rows("boundary F1", {"S": DOWN, claims.SAME_F: UP, claims.SAME_R: DOWN}), "not reproduced"),
    ("DISTANCE", rows("Wasserstein distance", {"S": DOWN, claims.SAME_F: UP, claims.SAME_R: UP}), "holds"),
    ("MOD-SM", rows("modularity", {"SM": UP, "S": DOWN}, "segments"), "holds"),
    ("MOD-SM", rows("modularity", {"SM": DOWN, "S": UP}, "segments"), "not reproduced"),
    ("RECALL-RANDOM", rows("fact recall", {"S": DOWN, claims.RANDOM_TOPK: UP}), "not reproduced"),
    ("ANSWERS", rows("correct", {"S": UP, claims.STREAMING: DOWN}), "holds"),
    ("PASSKEY", rows("correct", {"SM": [1] * 40, claims.FULL: [0] * 40}, "passkey", 2048, 1024), "holds"),
    ("PASSKEY", rows("correct", {"SM": [1] * 40, claims.FULL: [1] * 40}, "passkey", 2048, 1024), "not reproduced"),
    ("PASSKEY", rows("correct", {"SM": [1] * 40, claims.FULL: [0] * 40}, "passkey", 512, 1024), "inconclusive"),
]


@pytest.mark.parametrize(("name", "frame", "verdict"), KNOWN)
def test_claims_on_known_rows(name, frame, verdict):
    claim = next(claim for claim in claims.CLAIMS if claim.id == name)
    assert claim.test(frame).verdict == verdict


def test_pictures(embedded, stream, tmp_path):
    memory = EMLLM(n_local=64, n_mem=64, n_init=4, chunk=32, min_block=4, max_block=32).bind(embedded.model)
    read_stream(embedded, memory, stream)
    table = memory.contents()
    question = stream.asks[0]
    table["gold"] = (table["start"] < question.end) & (table["end"] > question.start)
    n = 200
    track = pd.DataFrame({"position": range(n), "token": embedded.tokens(list(stream.ids[:n])),
                          "surprise": memory.surprise[:n], "threshold": 4.0})  # fmt: skip
    marks = pd.DataFrame({"position": [20, 18, 19], "kind": ["surprise", "after refinement", "gold"]})
    charts = {"track": views.surprise_track(track, marks), "matrix": views.retrieval_matrix(table)}
    charts["figure"] = STUDIES.get("em-llm").figure(None, reported.load("em-llm"), None)
    for name, chart in charts.items():
        chart.save(str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert "NaN" not in views.surprise_track(track.assign(surprise=np.nan), marks).to_json()  # nothing predicted yet
    with pytest.raises(BadInput, match="kinds of marks"):
        views.surprise_track(track, marks.assign(kind="other"))
    with pytest.raises(BadInput, match="nothing to draw"):
        views.paper_figure(None, None, None)
    memory.unbind()


def test_the_figure_counts_pass_keys_beyond_the_window_and_no_interval_is_a_point():
    near = rows("correct", {claims.FULL: [1] * 4, "SM": [1] * 4}, "passkey", 512, 1024)
    far = rows("correct", {claims.FULL: [0] * 16, "SM": [1] * 16}, "passkey", 1536, 1024)
    both = pd.concat([near, far, far.assign(seed=1)])  # two seeds
    table = views.summary(both).set_index("variant")
    assert table["value"].to_dict() == {claims.FULL: 0.0, "SM": 1.0}
    assert table.loc[claims.FULL, "high"] == pytest.approx(wilson(0, 32).high)
    assert table.loc["SM", "low"] == pytest.approx(wilson(32, 32).low)
    shares = views.summary(rows("correct", {"S": [0.0, 0.25, 0.5]})).iloc[0]
    assert shares["low"] < shares["value"] == 0.25 < shares["high"]


def test_the_notebook_states_what_was_recorded():
    notebook = Path(__file__).parents[2] / "notebooks" / "03-token-caches" / "em-llm.ipynb"
    text = " ".join("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]).replace("\n", " ")
    run = recorded.load("em-llm").query("experiment == 'recency' and metric == 'correct'")
    right = run.groupby("variant")["value"].sum().astype(int)
    assert (run.groupby("variant").size() == right["S"]).all()
    assert f"is right in all of {right['S']} logs, the model with everything in view in {right[claims.FULL]}." in text


def test_reported_numbers_of_other_tables_are_passed_over():
    other = reported.load("em-llm").assign(table="another table")
    figure = STUDIES.get("em-llm").figure(rows("correct", {"S": [0.0, 1.0]}), other, None)
    assert "LongBench retrieval" not in figure.to_json()
    with pytest.raises(BadInput, match="nothing to draw"):
        views.paper_figure(None, other, None)


def test_a_log_asks_which_of_its_events_came_first(embedded):
    for seed in range(6):
        stream = order_stream(embedded.tokenizer, seed, events=12)
        asked = re.search(r"Which came (first|last)\? A: (.*) B: (.*) ANSWER:$", stream.asks[0].prompt)
        places = {name: stream.text.index(asked[group]) for name, group in (("A", 2), ("B", 3))}
        pick = min if asked[1] == "first" else max
        assert stream.asks[0].answer.strip() == pick(places, key=places.get)
        assert "QUESTION" not in stream.text
    with pytest.raises(BadInput, match="2 to 32"):
        order_stream(embedded.tokenizer, 0, events=33)
    with pytest.raises(BadInput, match="2 to 32"):
        order_stream(embedded.tokenizer, 0, events=2.5)


def test_prose_has_its_paragraphs_as_boundaries(embedded, monkeypatch):
    parts = [f"{word} " * 14 for word in ("sea", "house", "night", "road")]
    monkeypatch.setattr("workbench_datasets.books.read", lambda name: "\n\n".join(["CHAPTER I", *parts]))
    whole = prose_stream(embedded.tokenizer, 0, tokens=1000)
    assert len(whole.boundaries) == 3
    for at, part in zip(whole.boundaries, parts[1:]):
        assert embedded.decode(list(whole.ids[at : at + 1])).strip() == part.split()[0]
    assert prose_stream(embedded.tokenizer, 0, tokens=20).boundaries == tuple(at for at in whole.boundaries if at < 20)
    with pytest.raises(BadInput, match="behind the end"):
        prose_stream(embedded.tokenizer, 1, tokens=1000)
    for number, size in ((-1, 20), (0, 0)):
        with pytest.raises(BadInput, match="must be a whole number"):
            prose_stream(embedded.tokenizer, number, tokens=size)


def test_recency_and_prose_are_measured(monkeypatch):
    study = STUDIES.get("em-llm")
    nothing = {"lengths": {}, "recency": {"8": 2}, "prose": {"200": 1}}
    scale = study.scale("quick")
    scale = replace(scale, settings={**scale.settings, **nothing, "device": "cpu"})
    monkeypatch.setattr(
        "workbench_datasets.books.read", lambda name: "\n\n".join(["It was a dark night there. " * 5] * 30)
    )
    live = study.run(scale, seed=0, progress=Progress(quiet=True))
    assert set(live[live.experiment == "recency"].variant) == {"S", "full context"}
    assert {"S", "SM", "fixed, same number"} <= set(live[live.experiment == "prose"].variant)
    outcome = next(claim for claim in study.claims if claim.id == "RECENCY").test(live)
    assert outcome.n == 2
    far = study.run(scale, seed=50, progress=Progress(quiet=True))  # its prose lies behind the end of the book
    assert set(far.experiment) == {"recency"}
    monkeypatch.setattr("workbench_datasets.books.read", _missing)
    assert len(study.run(scale, seed=0, progress=Progress(quiet=True)).query("experiment == 'prose'")) == 0


def _missing(name):
    raise FileNotFoundError(name)


def test_the_recorded_run_has_rows_for_every_claim_of_its_scale():
    study = STUDIES.get("em-llm")
    found = study.judge(recorded.load("em-llm"), "full")
    assert found.keys() == {claim.id for claim in study.claims}
    assert {key: outcome.n for key, outcome in found.items() if outcome.n < 2} == {}
    assert found["RECENCY"].n == study.scale("full").settings["recency"]["32"]

"""The A-MEM study end to end on small worlds, its claims on made-up rows, and its pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.memory.retrieval import HashedTfidf, cached
from workbench.memory.stores.a_mem import AMem
from workbench.studies import STUDIES
from workbench.studies import _amem_claims as claims
from workbench.studies import _amem_measure as measure
from workbench.studies._amem_encoder import WordVectors, quick_encoder
from workbench.studies._amem_measure import EVOLVE, FLAT, FULL, HISTORY, HITS, LINKS, NOTES, Pair
from workbench.studies.base import Progress
from workbench.tasks.evidence import fill
from workbench.views import a_mem as pictures
from workbench.views.retrieval import retrieval_trace
from workbench_datasets import reported
from workbench_datasets.bridge_world import bridge_world

SMALL = {"worlds": 1, "one_hop": 8, "budgets": [10], "methods": [FLAT, LINKS, FULL], "processes": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def study():
    return STUDIES.get("a-mem")


@pytest.fixture(scope="module")
def small_world():
    return bridge_world(7, people=6, distractors=6, one_hop=6)


@pytest.fixture(scope="module")
def live(study) -> pd.DataFrame:
    scale = study.scale("quick")
    return study.run(replace(scale, settings={**scale.settings, **SMALL}), 0, Progress(quiet=True)).assign(seed=0)


@pytest.mark.parametrize("method", [FLAT, LINKS, EVOLVE, FULL])
def test_reading_a_shared_memory_equals_a_memory_built_for_the_ablation(small_world, method):
    encoder = HashedTfidf(512, [note.text for note in small_world.notes])
    pair = Pair(small_world.notes, encoder)
    shared, ids = pair.reader(method)
    built = AMem.variant(method, encoder=encoder)
    assert fill(built, small_world.notes) == ids
    for question in small_world.questions:
        for options in ({"budget_notes": 6}, {"k": 4}):
            one, other = shared.read(question.text, **options), built.read(question.text, **options)
            assert [(i.id, i.how, i.via) for i in one.items] == [(i.id, i.how, i.via) for i in other.items]


def test_the_run_is_tidy_and_links_find_the_bridge(live):
    assert list(live.columns) == [*measure.COLUMNS, "seed"]
    found = live[live["metric"] == "all evidence"]
    assert found["value"].isin([0.0, 1.0]).all()
    assert found.groupby(["method", "kind"]).size().to_dict() == {
        (FLAT, "1-hop"): 8, (FLAT, "2-hop"): 40, (FULL, "1-hop"): 8, (FULL, "2-hop"): 40, (LINKS, "2-hop"): 40,
    }  # fmt: skip
    share = found[found["kind"] == "2-hop"].groupby("method")["value"].mean()
    assert share[LINKS] > share[FLAT]
    assert set(live.loc[live["metric"] == "silhouette", "kind"]) == {"before", "after"}


def test_the_quick_encoder_gives_unit_rows_and_sees_meaning():
    encoder = quick_encoder(["Ada took in a stray goat.", "Bo works at the bank."])
    assert isinstance(encoder, WordVectors)
    made = encoder.encode(["Ada took in a stray goat.", "an animal", "a bank"])
    assert made.shape == (3, encoder.dim)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made[:1], axis=1), 1.0, atol=1e-5)
    assert made[0] @ made[1] > made[0] @ made[2]


def test_a_dialogue_of_locomo_is_measured_in_both_accountings(real_data, monkeypatch):
    from workbench_datasets import locomo

    whole = locomo.load(real_data / "locomo" / "locomo10.json")
    first = whole.dialogues[0]
    turns = first.turns[:40]
    keys = {turn.key for turn in turns}
    asked = tuple(q for q in first.questions if q.evidence and set(q.evidence) <= keys)
    cut = replace(whole, dialogues=(replace(first, turns=turns, questions=asked),))
    monkeypatch.setattr(locomo, "load", lambda: cut)
    monkeypatch.setattr(
        measure, "_minilm", lambda: cached(HashedTfidf(512))
    )  # another real encoder, a hundred times faster
    frame = measure.locomo({"budgets": [10], "ks": [5, 10], "reembed_every": 10}, 0)
    recall = frame[frame["metric"] == "recall"]
    assert recall["value"].between(0, 1).all()
    notes = frame[frame["metric"] == "notes"].set_index(["method", "accounting", "budget"])["value"]
    assert (notes.xs(NOTES, level="accounting") <= 10).all()
    assert notes[FLAT, HITS, 5] == 5 < notes[FULL, HITS, 5] <= 10
    tokens = frame[frame["metric"] == "tokens"].set_index("method")["value"]
    assert tokens[HISTORY] > tokens[FLAT].max()


def made_up(**shares: float) -> pd.DataFrame:
    """Rows in which ``shares`` of the two-hop questions are answered within ten and twenty notes."""
    lines = [
        {"experiment": "bridge", "encoder": "words", "method": method, "budget": budget, "unit": str(n // 40),
         "kind": kind, "question": n % 40, "metric": "all evidence", "value": float(n % 100 < 100 * share), "n": 1}
        for method, share in shares.items()
        for budget in (10, 20)
        for kind in ("1-hop", "2-hop")
        for n in range(400)
    ]  # fmt: skip
    return pd.DataFrame(lines).reindex(columns=list(measure.COLUMNS)).assign(seed=0)


@pytest.mark.parametrize(
    ("shares", "links", "full", "kept"),
    [
        ({FLAT: 0.1, LINKS: 0.5, FULL: 0.6}, "holds", "holds", "holds"),
        ({FLAT: 0.5, LINKS: 0.5, FULL: 0.3}, "not reproduced", "not reproduced", "not reproduced"),
        ({FLAT: 0.30, LINKS: 0.46, FULL: 0.46}, "inconclusive", "inconclusive", "holds"),
    ],
)
def test_claims_of_the_bridge_world_can_hold_and_fail(shares, links, full, kept):
    frame = made_up(**shares)
    assert claims.links_pay(frame).verdict == links
    assert claims.evolution_does_not_hurt(frame).verdict == full
    assert claims.one_hop_is_kept(frame).verdict == kept


def locomo_rows(gain: float, tokens: float, flat_end: bool, after: float) -> pd.DataFrame:
    """Ten dialogues: FULL's recall rises with k and ends flat or not, FLAT stays ``gain`` below."""
    curve = [0.4, 0.5, 0.55, 0.57, 0.575] if flat_end else [0.4, 0.41, 0.45, 0.5, 0.6]
    lines = []
    for n in range(10):
        same = {"experiment": "locomo", "encoder": "minilm", "unit": f"d{n}", "n": 30}
        for k, value in zip(claims.KS, curve):
            for method, less in ((FULL, 0.0), (LINKS, gain / 2), (FLAT, gain)):
                for accounting in (HITS, NOTES):
                    line = {**same, "method": method, "accounting": accounting, "budget": k}
                    lines.append(
                        {
                            **line,
                            "kind": "multi-hop",
                            "metric": "recall",
                            "value": value - less + n / 1000 * (method == FULL),
                        }
                    )
                    lines.append({**line, "metric": "tokens", "value": tokens * k + n})
        lines.append({**same, "method": HISTORY, "metric": "tokens", "value": 16_000.0 + n})
        for side, value in (("before", 0.1), ("after", after)):
            lines.append(
                {**same, "metric": "silhouette", "kind": side, "value": value + n / 10_000 * (side == "after")}
            )
    return pd.DataFrame(lines).reindex(columns=list(measure.COLUMNS)).assign(seed=0)


def test_claims_of_locomo_can_hold_and_fail():
    good, bad = locomo_rows(0.1, 150.0, True, 0.2), locomo_rows(-0.1, 900.0, False, 0.05)
    for test in (
        claims.few_tokens,
        claims.score_flattens,
        claims.notes_cluster,
        claims.locomo_equal_hits,
        claims.locomo_equal_notes,
    ):
        assert test(good).verdict == "holds", test.__name__
        assert test(bad).verdict == "not reproduced", test.__name__


def test_a_dialogue_counts_once_however_many_seeds_were_run():
    one = locomo_rows(0.1, 150.0, True, 0.2)
    three = pd.concat([one.assign(seed=seed) for seed in range(3)], ignore_index=True)
    for test in (claims.few_tokens, claims.score_flattens, claims.notes_cluster, claims.locomo_equal_hits):
        assert test(three) == test(one), test.__name__
    pd.testing.assert_frame_equal(pictures.summary(three), pictures.summary(one))
    assert pictures.score_over_k(three).to_dict() == pictures.score_over_k(one).to_dict()


def test_what_was_not_run_is_inconclusive_and_every_claim_is_judged(study, live):
    outcomes = study.judge(live, "full")
    assert list(outcomes) == [claim.id for claim in study.claims]
    assert {outcomes[key].verdict for key in ("C2", "C3", "C4", "L1", "L2", "A1", "A2", "C1d", "C1e", "C1f")} == {
        "inconclusive"
    }
    assert set(study.judge(live, "quick")) == {"C1a", "C1b", "C1c"}


def test_the_paper_figure_draws_from_any_source(study, live, tmp_path):
    paper = reported.load("a-mem")
    recorded = pd.concat([live, locomo_rows(0.1, 150.0, True, 0.2)], ignore_index=True)
    for place, sources in enumerate(
        [(live, paper, recorded), (live, None, None), (None, paper, None), (None, None, recorded)]
    ):
        study.figure(*sources).save(tmp_path / f"{place}.svg")
        assert (tmp_path / f"{place}.svg").stat().st_size > 2_000
    for accounting in pictures.ACCOUNTINGS:
        assert pictures.score_over_k(recorded, paper, accounting=accounting).to_dict()
    with pytest.raises(BadInput, match="scale full"):
        pictures.score_over_k(live)
    with pytest.raises(BadInput, match="nothing to draw"):
        study.figure(pd.DataFrame(), None, None)
    for draw in (pictures.score_over_k, lambda frame: study.figure(frame, None, None)):
        with pytest.raises(BadInput, match="'experiment' is missing"):
            draw(live.drop(columns="experiment"))


def test_the_paper_numbers_are_complete_and_marked():
    paper = reported.load("a-mem")
    assert paper.groupby(paper["table"].str.split(" (", regex=False).str[0]).size().to_dict() == {
        "Cost": 4, "Figure 3": 25, "Table 1": 66, "Table 2": 3, "Table 3": 30, "Table 4": 7,
    }  # fmt: skip
    assert set(paper.loc[~paper["verified"], "unit"]) == {"microseconds"}


@pytest.fixture(scope="module")
def memory(small_world) -> AMem:
    made = AMem(encoder=HashedTfidf(512, [note.text for note in small_world.notes]))
    fill(made, small_world.notes)
    return made


def test_the_pictures_of_a_memory_are_drawn(memory, small_world, tmp_path):
    nodes, edges = memory.graph()
    reading = memory.read(small_world.questions[0].text, budget_notes=8)
    evolved = int(memory.contents().set_index("id")["evolved"].idxmax())
    vectors = memory.store.vectors()
    charts = {
        "graph": pictures.note_graph(nodes, edges),
        "found": pictures.note_graph(nodes, edges, found=reading.ids),
        "trace": retrieval_trace(reading.frame(), gold=reading.ids[:1]),
        "diff": pictures.evolution_diff(memory.history(evolved)),
        "map": pictures.embedding_map(vectors[:, ::-1], vectors, [note.entities[0] for note in small_world.notes]),
    }
    for name, chart in charts.items():
        chart.save(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").stat().st_size > 2_000, name
    charts["trace"].save(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_the_trace_marks_evidence_ways_and_parents(memory, small_world):
    frame = memory.read(small_world.questions[0].text, budget_notes=8).frame()
    gold = [int(frame["id"].iloc[0]), 10_000]
    text = str(retrieval_trace(frame, gold=gold).to_dict())
    assert "1 of 2 found" in text
    assert "via a link" in text
    assert "direct hit" in text
    alone = frame[frame["how"] == "link"].assign(rank=range(1, 1 + (frame["how"] == "link").sum()))
    assert "→" in str(retrieval_trace(alone).to_dict()), "a parent that was not returned is named"


@pytest.mark.parametrize("damage", [lambda f: f.drop(columns="via"), lambda f: f.iloc[:0], lambda f: f.assign(rank=1)])
def test_a_trace_of_a_bad_frame_is_refused(memory, small_world, damage):
    frame = memory.read(small_world.questions[0].text, budget_notes=4).frame()
    with pytest.raises(BadInput, match="retrieval_trace"):
        retrieval_trace(damage(frame))


def test_an_embedding_map_of_unequal_sizes_is_refused():
    with pytest.raises(BadInput, match="fit together"):
        pictures.embedding_map(np.eye(4), np.eye(5), ["a"] * 5)
    with pytest.raises(BadInput, match="three notes"):
        pictures.embedding_map(np.eye(2), np.eye(2), ["a", "b"])

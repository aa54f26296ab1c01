"""The graph view, and HippoRAG's pictures of a real retrieval and of the study's rows."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.memory.stores._hipporag_phrases import LetterTriples
from workbench.memory.stores.hipporag import HippoRAG
from workbench.views import graph
from workbench.views import hipporag as views
from workbench_datasets import reported
from workbench_datasets.passage_world import passage_world

NODES = pd.DataFrame(
    {"id": [1, 2, 3, 4], "label": ["one", "two", "three", "alone"], "size": [1.0, 0.5, 0.2, 0.0], "group": list("aabb")}
)
EDGES = pd.DataFrame({"source": [1, 2], "target": [2, 3], "weight": [1.0, 2.0], "kind": ["link", "alike"]})


def values(chart) -> list[dict]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_a_graph_is_drawn_with_names_and_kinds(tmp_path):
    chart = graph.node_link(NODES, EDGES, arrows=True, title="Notes", group_title="topic")
    chart.save(tmp_path / "graph.svg")
    drawn = (tmp_path / "graph.svg").read_text()
    assert all(word in drawn for word in ("Notes", "one", "alone", "alike", "topic"))
    assert "moment" not in json.dumps(chart.to_dict())


def test_the_layout_is_seeded_and_does_not_depend_on_order():
    edges = [(1, 2, 1.0), (2, 3, 1.0), (3, 1, 1.0), (5, 6, 2.0)]
    first = graph.layout([1, 2, 3, 4, 5, 6], edges, seed=3)
    again = graph.layout([6, 4, 5, 3, 2, 1], edges[::-1], seed=3)
    pd.testing.assert_frame_equal(first.sort_index(), again.sort_index())
    assert first.to_numpy().min() >= 0
    assert first.to_numpy().max() <= 1
    assert first.drop_duplicates().shape == (6, 2)


def test_a_large_part_is_laid_out_too():
    ring = [(i, (i + 1) % 150, 1.0) for i in range(150)]
    assert graph.layout(range(150), ring).notna().all(axis=None)


def test_a_step_gives_a_slider_and_rows_last_until_the_next():
    nodes = pd.concat([NODES.assign(step=0), NODES.assign(step=3, size=1.0).iloc[:1]])
    edges = EDGES.assign(step=[1, 2], until=[5.0, None])
    chart = graph.node_link(nodes, edges, step_title="day")
    found = chart.to_dict()
    (slider,) = [param for param in found["params"] if param["name"] == "moment"]
    assert (slider["bind"]["min"], slider["bind"]["max"], slider["value"]) == (0, 5, 5)
    rows = values(chart)
    first = [row for row in rows if row.get("id") == 1 and row["step"] == 0]
    assert {row["until"] for row in first} == {3}
    assert {row["until"] for row in rows if row.get("source") == 1} == {5}
    begun = graph.node_link(nodes, edges, step=2).to_dict()["params"]
    assert {param["name"]: param.get("value") for param in begun}["moment"] == 2


def test_given_places_and_colours_are_kept():
    placed = NODES.assign(x=[0.1, 0.2, 0.3, 0.4], y=0.5)
    chart = graph.node_link(placed, EDGES, groups=["a", "b"], colours=["#111111", "#222222"])
    rows = [row for row in values(chart) if row.get("id") == 3]
    assert {(row["x"], row["y"]) for row in rows} == {(0.3, 0.5)}
    assert "#222222" in json.dumps(chart.to_dict())


def test_no_edges_are_fine_and_bad_frames_are_named():
    assert graph.node_link(NODES, EDGES.iloc[:0]).to_dict()
    with pytest.raises(BadInput, match="'9' is the end of an edge"):
        graph.node_link(NODES, EDGES.assign(target=[2, 9]))
    with pytest.raises(BadInput, match="at least 0"):
        graph.node_link(NODES.assign(size=-1.0), EDGES)
    with pytest.raises(BadInput, match="'group' is missing"):
        graph.node_link(NODES.drop(columns="group"), EDGES)
    with pytest.raises(BadInput, match="'step' must hold numbers"):
        graph.node_link(NODES.assign(step="first"), EDGES)
    with pytest.raises(BadInput, match="no rows"):
        graph.node_link(NODES.iloc[:0], EDGES.iloc[:0])
    with pytest.raises(BadInput, match="1 colours for 2 groups"):
        graph.node_link(NODES, EDGES, colours=["#111111"])
    with pytest.raises(BadInput, match="more than the 5,000"):
        graph.node_link(pd.concat([NODES.assign(step=i) for i in range(1_300)]), EDGES)


# ---------------------------------------------------------------------- HippoRAG's own


@pytest.fixture(scope="module")
def found():
    world = passage_world(5, 150)
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    metas = [{"entities": list(p.entities), "triples": list(map(list, p.triples))} for p in world.passages]
    ids = memory.write_many([p.passage for p in world.passages], metas)
    question = world.questions[0]
    return memory, memory.trace(question.text, entities=question.entities), {ids[e] for e in question.evidence}


def test_mass_spreads_step_by_step(found, tmp_path):
    _, trace, _ = found
    nodes, edges = trace.frames(top=25, count=6)
    chart = views.spreading(nodes, edges)
    chart.save(tmp_path / "walk.png")
    assert (tmp_path / "walk.png").stat().st_size > 10_000
    start = nodes[(nodes["step"] == 0) & (nodes["size"] > 0)]
    assert set(start["group"]) == {"query node"}
    assert set(nodes["group"]) <= set(views.ROLES)
    assert "step of the walk" in json.dumps(chart.to_dict())


def test_ranks_change(found, tmp_path):
    memory, trace, gold = found
    moved = trace.changes(memory.flat_scores(trace.query, "bm25"), top=5, also=gold)
    assert gold <= set(moved["id"])
    assert (moved[["before", "after"]].min(axis=1) <= 5).sum() >= 5
    assert moved.set_index("id")["after"].loc[trace.ids[0]] == 1
    titled = moved.assign(
        title=[memory.store.get(i).text.split("\n")[0] for i in moved["id"]], gold=moved["id"].isin(gold)
    )
    chart = views.rank_change(titled, before="BM25")
    chart.save(tmp_path / "ranks.svg")
    assert "holds the answer" in (tmp_path / "ranks.svg").read_text()
    with pytest.raises(BadInput, match="ranks start at 1"):
        views.rank_change(titled.assign(before=0))
    with pytest.raises(BadInput, match="'gold' is missing"):
        views.rank_change(titled.drop(columns="gold"))


def study_rows() -> pd.DataFrame:
    lines = [
        ("musique", "musique", str(q), "2-hop", method, damping, tau, metric, float((q + bonus) % 3 > 0))
        for q in range(30)
        for bonus, method in enumerate(("HippoRAG", "BM25", "dense", "no synonymy edges"))
        for damping in (0.1, 0.5)
        for tau in (0.8, 0.9)
        for metric in ("R@2", "R@5", "AR@5")
    ]
    columns = ["part", "corpus", "question", "kind", "method", "damping", "tau", "metric", "value"]
    return pd.DataFrame(lines, columns=columns)


def test_the_figure_lays_three_sources_over_each_other(tmp_path):
    frame, paper = study_rows(), reported.load("hipporag")
    chart = views.paper_figure(frame, paper, frame)
    chart.save(tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(word in drawn for word in ("paper", "recorded", "live", "MuSiQue: AR@5", "OpenIE by REBEL"))
    assert views.paper_figure(None, paper, None).to_dict()
    assert views.paper_figure(frame, None, None).to_dict()
    with pytest.raises(BadInput, match="nothing to draw"):
        views.paper_figure(None, None, None)


def test_the_heat_map_shows_every_setting(tmp_path):
    chart = views.robustness(study_rows())
    chart.save(tmp_path / "heat.svg")
    assert "damping d" in (tmp_path / "heat.svg").read_text()
    with pytest.raises(BadInput, match="no rows of HippoRAG"):
        views.robustness(study_rows().assign(method="BM25"))
    with pytest.raises(BadInput, match="'tau' is missing"):
        views.robustness(study_rows().drop(columns="tau"))


def test_the_table_stands_beside_the_papers():
    table = views.compared(study_rows(), reported.load("hipporag"))
    assert table.loc["HippoRAG", "R@5 paper"] == 0.519
    assert table.loc["HippoRAG", "R@5 here"] == pytest.approx(2 / 3)
    assert pd.isna(table.loc["OpenIE by REBEL", "R@5 here"])
    with pytest.raises(BadInput, match="metric='R@9' is not one of"):
        views.compared(study_rows(), reported.load("hipporag"), ["R@9"])
    with pytest.raises(BadInput, match="'part' is missing"):
        views.paper_figure(study_rows().drop(columns="part"), None, None)
    with pytest.raises(BadInput, match="needs rows"):
        views.compared(study_rows().iloc[:0], reported.load("hipporag"))

"""Phrases, PageRank and the graph: against networkx, a dense solve and a second way of building it."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from workbench.errors import BadInput, MemoryError_
from workbench.memory.stores import _hipporag_synonyms as synonyms
from workbench.memory.stores._hipporag_graph import Index, PhraseGraph
from workbench.memory.stores._hipporag_pagerank import Walker
from workbench.memory.stores._hipporag_phrases import LetterTriples
from workbench.memory.stores._hipporag_rank import personalisation, spread
from workbench.memory.stores._hipporag_text import clean_triples, normalise

# ---------------------------------------------------------------------- phrases


@pytest.mark.parametrize(
    ("written", "read"),
    [("Thomas C. Südhof", "thomas c  sudhof"), ("Łódź", "lodz"), ("  St-Étienne! ", "st etienne"),
     ("Straße", "strasse"), ("1,855", "1 855"), ("東京", ""), ("Æthelred", "aethelred")],
)  # fmt: skip
def test_phrases_are_normalised_with_accents_folded(written, read):
    assert normalise(written) == read


def test_the_released_code_drops_accented_letters():
    assert normalise("Südhof", "drop") == "s dhof"
    with pytest.raises(BadInput, match="neither 'fold' nor 'drop'"):
        normalise("a", "keep")


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert not set(once) - set("abcdefghijklmnopqrstuvwxyz0123456789 ")


def test_malformed_triples_are_counted():
    raw = [["A", "is", "B"], ["A", "B"], ["A", "is", "B", "C"], "A is B", ["A", "is", None], ["東京", "is", "city"],
           ("Year", "is", 1999)]  # fmt: skip
    kept, malformed = clean_triples(raw)
    assert [tuple(triple) for triple in kept] == [("a", "is", "b"), ("year", "is", "1999")]
    assert malformed == 5


# ---------------------------------------------------------------------- PageRank


def random_graph(seed: int, dangling: bool) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(2, 40))
    upper = np.triu(rng.random((nodes, nodes)) * (rng.random((nodes, nodes)) < rng.choice([0.05, 0.2, 0.5])), 1)
    weights = 5 * (upper + upper.T)
    if dangling:
        weights[0] = weights[:, 0] = 0
    start = rng.random(nodes) * (rng.random(nodes) < 0.4)
    start[rng.integers(nodes)] += 0.1
    return weights, start, float(rng.choice([0.1, 0.3, 0.5, 0.85, 0.95]))


def dense_solution(weights: np.ndarray, start: np.ndarray, damping: float) -> np.ndarray:
    start = start / start.sum()
    out = weights.sum(axis=0)
    step = np.divide(weights, out, out=np.zeros_like(weights), where=out > 0) + np.outer(start, out == 0)
    return np.linalg.solve(np.eye(len(start)) - damping * step, (1 - damping) * start)


@pytest.mark.parametrize("solver", ["power", "igraph"])
@pytest.mark.parametrize("dangling", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pagerank_is_networkx_and_the_dense_solution(seed, dangling, solver):
    if solver == "igraph":
        pytest.importorskip("igraph")
    weights, start, damping = random_graph(seed, dangling)
    found = Walker(sparse.csr_array(weights)).rank(start, damping, solver=solver)
    tolerance = 1e-13 / len(start)
    graph = nx.from_numpy_array(weights)
    by_name = nx.pagerank(graph, damping, dict(enumerate(start)), weight="weight", tol=tolerance, max_iter=5_000)
    np.testing.assert_allclose(found, dense_solution(weights, start, damping), atol=1e-8, rtol=0)
    np.testing.assert_allclose(found, [by_name[node] for node in range(len(start))], atol=1e-8, rtol=0)
    assert found.sum() == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pagerank_does_not_see_the_names_of_nodes(seed):
    weights, start, damping = random_graph(seed, seed % 2 == 0)
    order = np.random.default_rng(seed).permutation(len(start))
    plain = Walker(sparse.csr_array(weights)).rank(start, damping)
    other = Walker(sparse.csr_array(weights[np.ix_(order, order)])).rank(start[order], damping)
    np.testing.assert_allclose(other, plain[order], atol=1e-9)


def test_every_step_of_the_walk_sums_to_one_and_ends_at_the_rank():
    weights, start, _ = random_graph(3, dangling=True)
    walker = Walker(sparse.csr_array(weights))
    steps = [vector for vector, _ in zip(walker.steps(start, 0.5), range(50))]
    assert np.allclose([step.sum() for step in steps], 1.0)
    np.testing.assert_allclose(steps[0], start / start.sum())
    np.testing.assert_allclose(steps[-1], walker.rank(start, 0.5), atol=1e-10)
    # what is left to walk shrinks at least by the damping, so 34 steps reach 1e-10 on a graph of any size
    moves = [np.abs(b - a).sum() for a, b in pairwise(steps)]
    assert all(later <= 0.5 * before + 1e-15 for before, later in pairwise(moves))


def test_a_large_graph_is_solved_to_the_tolerance_by_both():
    rng = np.random.default_rng(1)
    half = sparse.random_array((3_000, 3_000), density=1e-3, rng=rng)
    walker, start = Walker(sparse.csr_array(half + half.T)), np.zeros(3_000)
    start[[5, 7]] = 1, 0.2
    exact = walker.rank(start, 0.5, solver="power", tolerance=1e-14)
    for solver in ("igraph", "power"):
        assert np.abs(walker.rank(start, 0.5, solver=solver) - exact).sum() < 1e-9


@pytest.mark.parametrize(
    ("weights", "start", "options", "says"),
    [
        (np.ones((2, 3)), [1, 0], {}, "square"),
        (np.array([[0, 1], [2, 0]]), [1, 0], {}, "symmetric"),
        (np.array([[0, -1.0], [-1.0, 0]]), [1, 0], {}, "at least 0"),
        (np.ones((2, 2)), [1, 0, 0], {}, "each of 2 nodes"),
        (np.ones((2, 2)), [0, 0], {}, "above 0 somewhere"),
        (np.ones((2, 2)), [1, np.nan], {}, "finite"),
        (np.ones((2, 2)), [1, -1], {}, "at least 0"),
        (np.ones((2, 2)), [1, 0], {"damping": 1.0}, "below 1"),
        (np.ones((2, 2)), [1, 0], {"solver": "guess"}, "solver="),
    ],
)
def test_a_walk_refuses_what_it_cannot_do(weights, start, options, says):
    with pytest.raises(BadInput, match=says):
        Walker(sparse.csr_array(weights)).rank(np.array(start, dtype=float), **options)


# ---------------------------------------------------------------------- the index

PHRASES = ("Sele", "Old Sele", "Mirel", "Mirel Town", "Ina Kolb", "Dr Ina Kolb", "pilot", "42", "xy")
TRIPLES = st.lists(st.tuples(*[st.sampled_from(PHRASES)] * 3), max_size=6)
CORPUS = st.lists(TRIPLES, min_size=1, max_size=7)


def graph_of(corpus: dict[int, list], **options) -> PhraseGraph:
    graph = PhraseGraph(LetterTriples(128).encode, **options)
    for item, raw in corpus.items():
        graph.add(item, clean_triples(raw)[0])
    return graph


def same(first: Index, second: Index) -> bool:
    plain = all(getattr(first, name) == getattr(second, name) for name in ("passages", "nodes", "facts"))
    parts = [(getattr(first, name), getattr(second, name)) for name in ("D", "H", "T", "S", "W", "P")]
    return plain and all(a.shape == b.shape and (a != b).nnz == 0 for a, b in parts)


@settings(max_examples=60, deadline=None)
@given(corpus=CORPUS, data=st.data())
def test_one_by_one_in_any_order_is_the_same_as_at_once(corpus, data):
    whole = dict(enumerate(corpus))
    batch = graph_of(whole).index()
    graph = PhraseGraph(LetterTriples(128).encode)
    for item in data.draw(st.permutations(sorted(whole))):
        graph.add(item, clean_triples(whole[item])[0])
        if data.draw(st.booleans()):
            graph.index()  # whatever was derived on the way must not show in the end
    assert same(graph.index(), batch)
    cue = np.zeros(len(batch.nodes))
    if len(cue):
        cue[0] = 1
        np.testing.assert_array_equal(graph.index().walker().rank(cue), batch.walker().rank(cue))


@settings(max_examples=60, deadline=None)
@given(corpus=CORPUS, extra=TRIPLES, place=st.integers(0, 8))
def test_taking_a_passage_away_restores_the_earlier_state(corpus, extra, place):
    whole = {2 * number: raw for number, raw in enumerate(corpus)}
    graph = graph_of(whole)
    before = graph.index()
    item = 2 * place + 1
    graph.add(item, clean_triples(extra)[0])
    graph.index()
    graph.remove(item)
    assert same(graph.index(), before)


def test_weights_count_triples_and_matrices_count_phrases():
    index = graph_of({
        1: [["Sele", "joins", "Mirel"], ["Mirel", "feeds", "Sele"], ["Sele", "is", "Sele"]],
        2: [["Sele", "joins", "Mirel"], ["Ina Kolb", "sails", "Sele"]],
    }).index()  # fmt: skip
    sele, mirel = index.position["sele"], index.position["mirel"]
    assert index.T[sele, mirel] == index.T[mirel, sele] == 3
    assert index.T[sele, sele] == 0
    assert index.D.toarray().tolist() == [[1, 1, 1, 0], [1, 0, 0, 1]]
    assert index.H[[2]].toarray().sum() == 1
    assert index.P[[0]].toarray()[0, sele] == 3
    assert index.spread[sele] == 2
    assert index.statistics()["unique triples"] == 4


def test_synonyms_join_with_the_larger_weight_and_short_phrases_propose_none():
    short = graph_of({1: [["ab", "is", "a b"], ["ab", "has", "ab "]]}, tau=0.01).index()
    assert short.S.nnz == 0
    low = graph_of({1: [["Sele River", "is", "wide"], ["Sele Rivers", "are", "wide"]]}, tau=0.6).index()
    a, b = low.position["sele river"], low.position["sele rivers"]
    assert 0.6 <= low.S[a, b] < 1
    assert low.W[a, b] == low.S[a, b] == low.S[b, a]
    wide = low.position["wide"]
    assert low.W[a, wide] == 1.0


def test_another_threshold_leaves_the_graphs_own_alone():
    graph = graph_of({1: [["Sele River", "is", "wide"], ["Sele Rivers", "are", "wide"]]}, tau=0.99)
    assert graph.index().S.nnz == 0
    assert graph.at(0.6).S.nnz == 2
    assert graph.index().S.nnz == 0
    assert graph.at(0.6) is graph.at(0.6)
    with pytest.raises(BadInput, match="tau=2"):
        graph.at(2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), threshold=st.sampled_from([0.2, 0.5, 0.8]), block=st.integers(1, 40))
def test_pairs_do_not_depend_on_the_block(seed, threshold, block):
    vectors = np.random.default_rng(seed).normal(size=(30, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = synonyms.alike(vectors, threshold, block=block)
    exact = (vectors.astype(np.float64) @ vectors.T.astype(np.float64)).round(6)
    expected = {(i, j) for j in range(30) for i in range(j) if exact[i, j] >= threshold}
    assert set(zip(found.first.tolist(), found.second.tolist())) == expected
    part = synonyms.joined(synonyms.alike(vectors[:11], threshold), synonyms.alike(vectors, threshold, 11))
    np.testing.assert_array_equal(part.cosine, found.cosine)


def test_at_most_so_many_synonyms_are_proposed():
    line = synonyms.Pairs(np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([0.9, 0.8, 0.85]))
    nobody, all_ = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    only_first = np.array([True, False, False, False])
    assert len(synonyms.capped(line, nobody, 5)) == 0
    assert synonyms.capped(line, only_first, 2).second.tolist() == [1, 3]
    assert len(synonyms.capped(line, all_, 1)) == 3  # each of the others proposes the first


def test_a_threshold_that_everything_passes_is_refused(monkeypatch):
    monkeypatch.setattr(synonyms, "MOST_PAIRS", 100)
    with pytest.raises(MemoryError_, match="raise tau"):
        synonyms.alike(np.ones((30, 1), dtype=np.float32), 0.5)


def test_the_graph_refuses_what_it_cannot_keep():
    graph = graph_of({1: []})
    with pytest.raises(BadInput, match="already in the graph"):
        graph.add(1, [])
    with pytest.raises(BadInput, match="no passage 7"):
        graph.remove(7)
    with pytest.raises(BadInput, match="tau=0"):
        PhraseGraph(LetterTriples().encode, tau=0)
    with pytest.raises(BadInput, match="most=0"):
        PhraseGraph(LetterTriples().encode, most=0)
    with pytest.raises(BadInput, match="dim must be"):
        LetterTriples(3)


# ---------------------------------------------------------------------- personalisation


def test_halving_the_spread_of_a_seed_doubles_its_weight():
    """|P_i| of the first goes from 2 to 1 while the second keeps its 2 passages."""
    twice = graph_of({1: [["Sele", "a", "Mirel"]], 2: [["Sele", "b", "pilot"]], 3: [["Mirel", "c", "pilot"]]}).index()
    once = graph_of({1: [["Sele", "a", "Mirel"]], 3: [["Mirel", "c", "pilot"]]}).index()
    ratios = []
    for index in (twice, once):
        nodes = [index.position["sele"], index.position["mirel"]]
        start = personalisation(index, nodes)
        ratios.append(start[nodes[0]] / start[nodes[1]])
        plain = personalisation(index, [*nodes, nodes[0]], specificity=False)
        assert plain[nodes].tolist() == [1.0, 1.0]  # equal shares, a node named twice counts once
        assert plain.sum() == 2
    assert ratios[1] == pytest.approx(2 * ratios[0])


def test_ablations_of_the_walk():
    index = graph_of({1: [["Sele", "a", "Mirel"], ["Sele", "b", "pilot"]], 2: [["Mirel", "c", "xy"]]}).index()
    sele, mirel, xy = (index.position[name] for name in ("sele", "mirel", "xy"))
    start = personalisation(index, [sele])
    only = spread(index, start, walk="query nodes")
    assert only[sele] == only.sum() == 1
    near = spread(index, start, walk="neighbours", neighbour_share=0.2)
    assert (near[mirel], near[xy]) == (pytest.approx(0.1), 0)
    walked = spread(index, start)
    assert walked[sele] > walked[mirel] > walked[xy] > 0
    with pytest.raises(BadInput, match="walk='random'"):
        spread(index, start, walk="random")

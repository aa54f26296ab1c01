"""Exact search against brute force, and approximate search against exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workbench.errors import BadInput, UnknownName
from workbench.memory.durable import Hit, Store
from workbench.memory.retrieval import Index, index


def units(rng: np.random.Generator, count: int, dim: int, cells: int | None = None) -> np.ndarray:
    """Random rows of length one; around ``cells`` centres if given, as texts of so many subjects."""
    rows = rng.standard_normal((count, dim))
    if cells:
        rows = 0.6 * rows + 1.2 * rng.standard_normal((cells, dim))[rng.integers(cells, size=count)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute(ids: np.ndarray, rows: np.ndarray, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The specification: all cosines in float64, sorted by score and then id."""
    scores = [
        (-float(np.dot(row.astype(np.float64), vector.astype(np.float64))), int(id)) for id, row in zip(ids, rows)
    ]
    return [(id, -score) for score, id in sorted(scores)[:k]]


def check(hits: list[Hit], wanted: list[tuple[int, float]]) -> None:
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], abs=1e-6)
    for place, (hit, (id, score)) in enumerate(zip(hits, wanted)):
        assert hit.id == id or any(abs(score - other) < 1e-6 for n, (_, other) in enumerate(wanted) if n != place)


@pytest.mark.parametrize(
    ("count", "dim", "k"), [(1, 1, 1), (7, 3, 10), (1000, 384, 10), (63, 100, 63), (5000, 32, 100)]
)
def test_exact_is_brute_force(count: int, dim: int, k: int) -> None:
    rng = np.random.default_rng(count)
    ids, rows = rng.permutation(10 * count)[:count], units(rng, count, dim)
    exact = index("exact", dim)
    exact.add(ids.tolist(), rows)
    for query in units(rng, 5, dim):
        hits = exact.search(query, k)
        check(hits, brute(ids, rows, query, k))
        assert len(hits) == min(k, count)
        some = rng.choice(ids, size=max(1, count // 2), replace=False)
        kept = np.isin(ids, some)
        check(exact.search(query, k, some.tolist()), brute(ids[kept], rows[kept], query, k))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_after_any_changes(data: st.DataObject) -> None:
    """Few values, so that many rows are equal: ties must go by id, wherever a row stands in the matrix."""
    exact, model = index("exact", 3), {}
    vector = arrays(np.float32, 3, elements=st.sampled_from([0.0, 0.25, 0.5, -0.5]))
    for _ in range(data.draw(st.integers(1, 8))):
        ids = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True))
        if data.draw(st.booleans()):
            rows = np.stack([data.draw(vector) for _ in ids])
            exact.add(ids, rows)
            model |= dict(zip(ids, rows))
        else:
            exact.remove(ids)
            model = {id: row for id, row in model.items() if id not in ids}
    query, k = data.draw(vector), data.draw(st.integers(1, 12))
    held = np.array(sorted(model), dtype=np.int64)
    rows = np.array([model[id] for id in held], dtype=np.float32).reshape(-1, 3)
    assert len(exact) == len(model)
    assert [(hit.id, hit.score) for hit in exact.search(query, k)] == brute(held, rows, query, k)
    some = data.draw(st.sets(st.integers(0, 40)))
    kept = [place for place, id in enumerate(held) if id in some]
    assert [(h.id, h.score) for h in exact.search(query, k, some)] == brute(held[kept], rows[kept], query, k)


def test_equal_vectors_tie_whatever_the_place() -> None:
    row = units(np.random.default_rng(0), 1, 37)
    exact = index("exact", 37)
    ids = np.random.default_rng(1).permutation(1003)
    exact.add(ids.tolist(), np.repeat(row, 1003, axis=0))
    exact.remove([5, 6])
    hits = exact.search(units(np.random.default_rng(2), 1, 37)[0], 20)
    assert [hit.id for hit in hits] == [0, 1, 2, 3, 4, *range(7, 22)]
    assert len({hit.score for hit in hits}) == 1


def recall(found: list[Hit], wanted: list[Hit]) -> float:
    return len({hit.id for hit in found} & {hit.id for hit in wanted}) / len(wanted)


@pytest.mark.parametrize(("name", "least"), [("faiss-hnsw", 0.95), ("faiss-ivf", 0.8)])
def test_approximate_search_recalls_most(name: str, least: float) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(7)
    rows = units(rng, 4000, 64, cells=60)
    exact, some = index("exact", 64), index(name, 64)
    for built in (exact, some):
        built.add(range(3000), rows[:3000])
        built.search(rows[0], 3)
        built.add(range(3000, 4000), rows[3000:])  # after the index was built
        built.remove(range(0, 500))
        built.add(range(600, 700), rows[:100])  # other vectors for old ids
    queries = units(np.random.default_rng(7), 60, 64, cells=60)
    pairs = [(some.search(query, 10), exact.search(query, 10)) for query in queries]
    measured = float(np.mean([recall(found, wanted) for found, wanted in pairs]))
    assert measured >= least, measured
    for query, (found, wanted) in zip(queries, pairs):
        scores = {hit.id: hit.score for hit in exact.search(query, len(exact))}
        assert all(scores[hit.id] == hit.score for hit in found)
        assert not any(hit.id < 500 for hit in found)
        assert len(found) == len(wanted) == 10
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert some.search(queries[0], 5, range(600, 900)) == exact.search(queries[0], 5, range(600, 900))


@pytest.mark.parametrize("name", ["exact", "faiss-hnsw", "faiss-ivf"])
def test_few_vectors_are_searched_exactly(name: str) -> None:
    pytest.importorskip("faiss")
    built = index(name, 2)
    assert isinstance(built, Index)
    assert built.search(np.ones(2), 3) == []
    built.reserve(10)
    built.add([9, 4], np.eye(2, dtype=np.float32))
    assert [hit.id for hit in built.search(np.array([0.6, 0.8]), 5)] == [4, 9]
    built.remove([4, 77])
    built.add([9], np.array([[0.0, 1.0]], dtype=np.float32))
    assert built.search(np.array([0.6, 0.8]), 5) == [Hit(9, pytest.approx(0.8))]  # type: ignore[arg-type]
    assert len(built) == 1
    assert built.search(np.ones(2), 3, ids=[4]) == []


@pytest.mark.parametrize("name", ["exact", "faiss-hnsw", "faiss-ivf"])
def test_a_store_uses_the_index_it_was_given(name: str) -> None:
    pytest.importorskip("faiss")
    with Store(encoder="tfidf-64", index=name) as store:
        for text in ("the cat sat", "a dog ran", "cats and dogs"):
            store.add(text)
        assert [hit.id for hit in store.search("cat", 1)] == [1]
        store.delete(1)
        assert [hit.id for hit in store.search("dog", 1)] == [2]
        assert store.replay().index_name == name


@pytest.mark.parametrize("name", ["exact", "faiss-hnsw"])
def test_an_index_refuses_what_it_cannot_hold(name: str) -> None:
    pytest.importorskip("faiss")
    built = index(name, 3)
    built.add([1], np.ones((1, 3)))
    for work, message in [
        (lambda: built.add([2], np.ones((1, 4))), r"shape \(1, 3\), got \(1, 4\)"),
        (lambda: built.add([2, 3], np.ones((1, 3))), r"shape \(2, 3\)"),
        (lambda: built.add([2], np.full((1, 3), np.inf)), "not finite"),
        (lambda: built.search(np.ones(4), 1), "width 3"),
        (lambda: built.search(np.full(3, np.nan), 1), "not finite"),
        (lambda: built.search("text", 1), "3 numbers"),  # type: ignore[arg-type]
        (lambda: built.search(np.ones(3), 0), "k must be"),
        (lambda: built.search(np.ones(3), True), "k must be"),
    ]:
        with pytest.raises(BadInput, match=message):
            work()
    assert len(built) == 1
    assert [hit.id for hit in built.search(np.ones(3), 9)] == [1]


def test_indices_are_known_by_name() -> None:
    with pytest.raises(UnknownName, match="faiss-hnsw"):
        index("faiss-hnws", 3)
    with pytest.raises(BadInput, match="dim"):
        index("exact", 0)

"""BM25 against its formula, and TF-IDF by hashing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.memory.retrieval import Bm25, Encoder, HashedTfidf, words

TEXTS = st.lists(st.sampled_from(["cat", "dog", "Cat,", "sat", "the", "a", "Über", "42"]), min_size=0, max_size=9).map(
    " ".join
)


def bm25(texts: dict[int, str], query: str, k1: float, b: float) -> dict[int, float]:
    """The formula, word by word: Robertson's term weight with Lucene's idf."""
    split = {id: words(text) for id, text in texts.items()}
    mean = sum(map(len, split.values())) / len(split)
    scores = dict.fromkeys(texts, 0.0)
    for word in words(query):
        df = sum(word in found for found in split.values())
        idf = math.log(1 + (len(split) - df + 0.5) / (df + 0.5))
        for id, found in split.items():
            if tf := found.count(word):
                scores[id] += idf * tf / (tf + k1 * (1 - b + b * len(found) / mean))
    return scores


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.integers(0, 99), TEXTS, min_size=1, max_size=12),
    TEXTS.filter(bool),
    st.sampled_from([(1.2, 0.75), (1.2, 0.0), (0.5, 1.0), (2.0, 0.3)]),
)
def test_bm25_is_its_formula(texts: dict[int, str], query: str, settings: tuple[float, float]) -> None:
    index = Bm25(*settings)
    index.add(list(texts), list(texts.values()))
    wanted = bm25(texts, query, *settings) if any(words(text) for text in texts.values()) else dict.fromkeys(texts, 0.0)
    assert index.scores(query) == pytest.approx([wanted[id] for id in sorted(texts)], abs=1e-5)
    hits = index.search(query, 5)
    assert all(hit.score > 0 for hit in hits)
    assert len(hits) == min(5, sum(score > 0 for score in wanted.values()))
    assert [(-hit.score, hit.id) for hit in hits] == sorted((-hit.score, hit.id) for hit in hits)
    assert all(hit.score >= sorted(wanted.values())[-len(hits)] - 1e-5 for hit in hits)


def test_bm25_follows_changes() -> None:
    index = Bm25()
    assert index.search("cat") == []
    index.add([5, 2, 9], ["a cat", "a cat", "a dog"])
    assert [hit.id for hit in index.search("CAT!")] == [2, 5]
    index.remove([2, 77])
    index.add([9], ["cat cat"])
    assert [hit.id for hit in index.search("cat")] == [9, 5]
    assert [hit.id for hit in index.search("cat", ids=[5, 3])] == [5]
    assert index.search("elephant") == index.search("?!") == []
    assert len(index) == 2
    index.remove([5, 9])
    assert index.search("cat") == []
    index.add([1], ["..."])
    assert index.search("cat") == []


def test_bm25_refuses_what_it_cannot_do() -> None:
    for options in ({"k1": -1}, {"k1": float("nan")}, {"b": 1.5}, {"b": float("nan")}):
        with pytest.raises(BadInput, match="k1 >= 0 and 0 <= b <= 1"):
            Bm25(**options)
    index = Bm25()
    with pytest.raises(BadInput, match="1 ids for 2 texts"):
        index.add([1], ["a", "b"])
    with pytest.raises(BadInput, match="indexes texts"):
        index.add([1], [None])  # type: ignore[list-item]
    for query in ("", "  ", None):
        with pytest.raises(BadInput, match="query is empty"):
            index.search(query)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="k must be"):
        index.search("a", 0)
    assert len(index) == 0


def test_tfidf_rows_have_length_one_or_nothing_to_say() -> None:
    encoder = HashedTfidf()
    assert isinstance(encoder, Encoder)
    made = encoder.encode(["Ada Lovelace was born in London", "of the", "", "ada", "…"])
    assert made.shape == (5, 4096)
    assert made.dtype == np.float32
    assert np.linalg.norm(made, axis=1) == pytest.approx([1, 0, 0, 1, 0], abs=1e-6)
    assert encoder.encode([]).shape == (0, 4096)
    assert encoder.label == "TF-IDF (no sentence encoder)"


def test_tfidf_is_its_formula() -> None:
    """'cat cat dog': cat twice, dog once, and the pairs 'cat cat' and 'cat dog'."""
    encoder = HashedTfidf(2**16)  # wide enough that these five terms do not collide
    made = encoder.encode(["cat cat dog", "cat", "dog", "Cat sat"])
    length = math.sqrt((1 + math.log(2)) ** 2 + 3)
    assert made[0] @ made[1] == pytest.approx((1 + math.log(2)) / length, abs=1e-6)
    assert made[0] @ made[2] == pytest.approx(1 / length, abs=1e-6)
    assert made[1] @ made[3] == pytest.approx(1 / math.sqrt(3), abs=1e-6)  # cat, sat, 'cat sat'


def test_a_corpus_weights_rare_words() -> None:
    corpus = ["cat sat", "cat ran", "cat slept", "dog ran"]
    plain, weighted = HashedTfidf(2**16), HashedTfidf(2**16, corpus)
    assert plain.name != weighted.name != HashedTfidf(2**16, corpus[:2]).name
    assert weighted.name == HashedTfidf(2**16, corpus).name
    cat, dog, both = weighted.encode(["cat", "dog", "cat dog"])
    assert both @ dog > both @ cat
    idf = {word: math.log((1 + 4) / (1 + df)) + 1 for word, df in {"cat": 3, "dog": 1, "pair": 0}.items()}
    assert both @ cat == pytest.approx(idf["cat"] / math.sqrt(sum(weight**2 for weight in idf.values())), abs=1e-6)


@given(st.lists(st.text(max_size=20), max_size=5))
@settings(max_examples=50, deadline=None)
def test_tfidf_of_a_text_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    encoder = HashedTfidf(64)
    alone = [encoder.encode([text])[0] for text in texts]
    assert np.array_equal(encoder.encode(texts), np.array(alone, dtype=np.float32).reshape(-1, 64))


@pytest.mark.parametrize("options", [{"dim": 1}, {"dim": 2**21}, {"dim": True}, {"corpus": []}, {"corpus": [3]}])
def test_tfidf_refuses_what_it_cannot_do(options: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        HashedTfidf(**options)  # type: ignore[arg-type]

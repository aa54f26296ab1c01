"""FactStream is exactly its specification: alphabet, grammar, Zipf fillers, placement, topics, overwriting."""

import numpy as np
import pytest

from workbench_datasets import fact_stream as fs
from workbench_datasets.streams import IGNORE


def parsed(row, topics=False):
    """Facts [(position of the 2, topic, key, value)] and questions [(position of the 3, key)] as read."""
    facts, questions = [], []
    for at, token in enumerate(row):
        if token == fs.FACT:
            facts.append((at, int(row[at - 1]) if topics else None, int(row[at + 1]), int(row[at + 2])))
        if token == fs.QUESTION:
            assert row[at + 2] == fs.ANSWER
            assert row[at + 3] in fs.FILLERS
            questions.append((at, int(row[at + 1])))
    return facts, questions


def test_the_alphabet_is_the_cards():
    assert (fs.BOS, fs.FACT, fs.QUESTION, fs.ANSWER, fs.TOPIC) == (1, 2, 3, 4, 5)
    assert [len(part) for part in (fs.KEYS, fs.VALUES, fs.TOPICS, fs.FILLERS)] == [128, 128, 16, 234]
    assert [*range(6), *fs.KEYS, *fs.VALUES, *fs.TOPICS, *fs.FILLERS] == list(range(512))


@pytest.mark.parametrize(("length", "facts", "queries"), [(64, 8, 4), (256, 8, 4), (512, 64, 4), (37, 8, 3)])
def test_facts_and_questions_are_where_the_grammar_says(length, facts, queries):
    pool = fs.fact_stream(60, length=length, facts=facts, queries=queries, seed=1)
    assert (pool.ids[:, 0] == fs.BOS).all()
    for row, targets, distance in zip(pool.ids, pool.targets, pool.distance):
        told, asked = parsed(row)
        assert len(told) == facts
        assert [at for at, _ in asked] == [length - 4 * (queries - j) for j in range(queries)]
        starts = [at for at, *_ in told]
        assert min(np.diff(starts), default=3) >= 3  # facts never overlap
        assert max(starts) + 3 <= asked[0][0]
        assert len({key for _, _, key, _ in told}) == facts
        assert len({key for _, key in asked}) == queries
        table = {key: (at, value) for at, _, key, value in told}
        for at, key in asked:
            assert targets[at + 2] == table[key][1]
            assert distance[at + 2] == at - table[key][0]
        assert (targets != IGNORE).sum() == queries
        assert (np.isin(row, fs.FILLERS)).sum() == length - 1 - 3 * facts - 3 * queries


def test_no_answer_is_shown_where_it_is_asked():
    pool = fs.fact_stream(400, seed=2)
    assert not np.isin(pool.ids[:, 256 - 16 :], fs.VALUES).any()
    told = np.isin(pool.ids, fs.VALUES)
    assert (told.sum(1) == 8).all()


def test_fillers_are_zipf_and_independent():
    pool = fs.fact_stream(2_000, length=256, facts=1, queries=1, seed=3)
    fillers = pool.ids[:, 1:250]
    held = fillers[np.isin(fillers, fs.FILLERS)] - fs.FILLERS.start
    expected = 1 / np.arange(1, 235)
    expected *= len(held) / expected.sum()
    counts = np.bincount(held, minlength=234)
    assert ((counts - expected) ** 2 / expected).sum() < 300  # chi squared, 233 degrees: 99.8 % lie below 300
    most = pool.ids == fs.FILLERS.start
    share, pair = most[:, 1:250].mean(), (most[:, 1:249] & most[:, 2:250]).mean()
    assert pair == pytest.approx(share**2, rel=0.1)


def test_places_are_uniform_keys_and_values_even_and_questions_in_any_order():
    pool = fs.fact_stream(6_000, length=64, facts=2, queries=2, seed=4)
    starts = np.argwhere(pool.ids == fs.FACT)[:, 1].reshape(-1, 2)
    # two blocks of 3 in 55 places: C(51, 2) arrangements, the first start uniform over pairs
    arrangements = {tuple(pair) for pair in starts.tolist()}
    assert len(arrangements) > 0.95 * 51 * 50 / 2
    mean = starts.mean(0)
    assert mean == pytest.approx([1 + 49 / 3, 1 + 2 * 49 / 3 + 3], abs=0.6)
    for kind in (fs.KEYS, fs.VALUES):
        counts = np.bincount(pool.ids[np.isin(pool.ids, kind)] - kind.start, minlength=128)
        assert counts.min() > 0.6 * counts.mean()
    first_asked_told_first = pool.distance[:, 58] > pool.distance[:, 62] - 4
    assert first_asked_told_first.mean() == pytest.approx(0.5, abs=0.03)


def test_min_gap_is_kept_and_reaches_the_tightest_packing():
    tight = fs.fact_stream(20, length=1 + 5 * 3 + 4 * 7 + 4, facts=5, queries=1, min_gap=7, seed=5)
    starts = np.argwhere(tight.ids == fs.FACT)[:, 1].reshape(20, 5)
    assert (starts == 1 + 10 * np.arange(5)).all()
    loose = fs.fact_stream(200, length=200, facts=5, queries=1, min_gap=7, seed=5)
    starts = np.argwhere(loose.ids == fs.FACT)[:, 1].reshape(200, 5)
    assert np.diff(starts, axis=1).min() >= 10


def test_segments_hold_what_they_may_and_no_fact_crosses_one():
    pool = fs.fact_stream(300, length=32 * 6, facts=8, queries=2, placement="segment", segment=32, seed=6)
    starts = np.argwhere(pool.ids == fs.FACT)[:, 1].reshape(300, 8)
    assert (starts // 32 == (starts + 2) // 32).all()
    assert (starts // 32 <= 4).all()
    counts = np.stack([(starts // 32 == s).sum(1) for s in range(5)], 1)
    assert counts.max() == 2
    assert np.abs(counts.mean(0) - 8 / 5).max() < 0.12
    some = fs.fact_stream(50, length=192, facts=3, queries=2, placement="segment", segments=(1, 4), seed=6)
    assert set((np.argwhere(some.ids == fs.FACT)[:, 1] // 32).tolist()) == {1, 4}


def test_topics_interfere_and_only_the_opening_one_is_asked_about():
    pool = fs.fact_stream(200, length=400, facts=32, queries=4, topics=8, distractor_ratio=0.75, seed=7)
    for row, targets in zip(pool.ids, pool.targets):
        assert row[1] == fs.TOPIC
        opening = row[2]
        told, asked = parsed(row, topics=True)
        assert len(told) == 32
        assert all(row[at - 2] == fs.TOPIC for at, *_ in told)
        relevant = {key: value for _, topic, key, value in told if topic == opening}
        others = [(topic, key, value) for _, topic, key, value in told if topic != opening]
        assert len(relevant) == 8
        assert len({(topic, key) for topic, key, _ in others}) == 24
        assert {key for _, key, _ in others} == set(relevant)
        assert all(value != relevant[key] for _, key, value in others)
        assert all(targets[at + 2] == relevant[key] for at, key in asked)


def test_distractors_without_topics_are_never_asked_about():
    pool = fs.fact_stream(100, facts=8, queries=2, distractor_ratio=0.75, seed=8)
    assert all(len({key for _, _, key, _ in parsed(row)[0]}) == 8 for row in pool.ids)


def test_the_latest_value_of_an_overwritten_key_counts():
    pool = fs.fact_stream(300, facts=8, queries=4, overwrite=True, seed=9)
    seen = set()
    for row, targets, distance, category in zip(pool.ids, pool.targets, pool.distance, pool.category):
        told, asked = parsed(row)
        assert len({key for _, _, key, _ in told}) == 4
        for at, key in asked:
            mine = [(place, value) for place, _, k, value in told if k == key]
            assert targets[at + 2] == mine[-1][1]
            assert distance[at + 2] == at - mine[-1][0]
            assert pool.categories[category[at + 2]] == ("overwritten" if len(mine) > 1 else "once")
            seen.add(len(mine))
    assert {1, 2, 3} <= seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"facts": 0}, "facts=0"),
        ({"facts": 2.5}, "facts=2.5"),
        ({"queries": 9}, "8 facts have 8 keys to ask for"),
        ({"facts": 200, "length": 2048}, "200 different keys"),
        ({"length": 30}, "have room for 4"),
        ({"length": 4}, "have room for"),
        ({"min_gap": 60}, "min_gap=60"),
        ({"min_gap": -1}, "min_gap=-1"),
        ({"distractor_ratio": 1.5}, "distractor_ratio=1.5"),
        ({"distractor_ratio": 0.9}, "have 1 keys to ask for"),
        ({"topics": 1}, "topics=1"),
        ({"topics": 17}, "topics=17"),
        ({"topics": 2, "distractor_ratio": 0.75, "queries": 2}, "lower distractor_ratio or raise topics"),
        ({"placement": "random"}, "placement='random'"),
        ({"placement": "segment", "segment": 2}, "segment=2"),
        ({"placement": "segment", "segments": (9,)}, "segments=9"),
        ({"placement": "segment", "segments": (1, 1)}, "different segment numbers"),
        ({"placement": "segment", "segments": ()}, "different segment numbers"),
        ({"placement": "segment", "per_segment": 1}, "have room for 7"),
        ({"overwrite": True, "queries": 5}, "have 4 keys"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fs.fact_stream(3, **settings)

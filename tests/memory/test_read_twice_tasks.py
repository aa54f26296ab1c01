"""The order effect by hand, and prompts that hold their context twice."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest

from workbench.errors import BadInput
from workbench.tasks import disjointness, jrt_prompt
from workbench.tasks.disjointness import Sets
from workbench_datasets import notes
from workbench_datasets.small_world import world

# ---- set disjointness by hand -------------------------------------------------------------------------------------


def test_the_hand_built_memory_gives_the_table_of_the_card():
    """One pass must write the first set; two passes write the smaller one (card: three seeds of 200 trials)."""
    import pandas as pd

    sizes = [(4, 64), (64, 4), (16, 256), (256, 16)]
    runs = [disjointness.accuracy([32, 64, 128, 256], sizes, 200, seed) for seed in (11, 12, 13)]
    found = pd.concat(runs).groupby(["dim", "first", "second", "passes"])["correct"].mean()
    card = {
        32: [(0.74, 0.74), (0.45, 0.77), (0.10, 0.10), (0.12, 0.09)],
        64: [(0.96, 0.96), (0.57, 0.96), (0.21, 0.21), (0.14, 0.23)],
        128: [(1.0, 1.0), (0.70, 1.0), (0.52, 0.52), (0.18, 0.52)],
        256: [(1.0, 1.0), (0.84, 1.0), (0.89, 0.89), (0.26, 0.88)],
    }
    for dim, values in card.items():
        for (first, second), expected in zip(sizes, values):
            assert found[dim, first, second].to_list() == pytest.approx(expected, abs=0.05)
    assert found[256, 256, 16, 2] - found[256, 256, 16, 1] > 0.4
    assert abs(found[256, 256, 16, 2] - found[256, 16, 256, 1]) < 0.05


def test_what_is_written_and_what_is_asked():
    sets = Sets((1, 2, 3), (3, 4), 3)
    assert (sets.written(1), sets.asked(1)) == ((1, 2, 3), (3, 4))
    assert (sets.written(2), sets.asked(2)) == ((3, 4), (1, 2, 3))
    assert sets.swapped().written(2) == sets.swapped().written(1) == (3, 4)
    tied = Sets((1, 2), (2, 3), 2)
    assert tied.written(2) == (1, 2)


def test_drawn_sets_share_one_element():
    rng = np.random.default_rng(1)
    for first, second in ((1, 1), (5, 40), (300, 2)):
        sets = disjointness.draw_sets(first, second, rng)
        assert len(set(sets.first)) == first
        assert len(set(sets.second)) == second
        assert set(sets.first) & set(sets.second) == {sets.common}


def test_the_trace_is_the_memory_token_by_token():
    rng = np.random.default_rng(2)
    codes, sets = disjointness.unit_codes(50, 24, rng), disjointness.draw_sets(6, 3, rng, 50)
    assert np.linalg.norm(codes, axis=1) == pytest.approx(np.ones(50))
    for passes, steps in ((1, 9), (2, 18)):
        frame = disjointness.trace(sets, passes, codes)
        assert frame["step"].nunique() == steps
        last = frame[frame["step"] == steps - 1].set_index("element")
        memory = codes[list(sets.written(passes))].sum(0)
        assert last["score"].to_list() == pytest.approx((codes[list(last.index)] @ memory).tolist())
        assert set(last.index[last["held"]]) == set(sets.written(passes))
        assert last["sigma"].iloc[0] == pytest.approx((len(sets.written(passes)) / 24) ** 0.5)
    first_pass = frame[frame["pass"] == 1]
    assert not first_pass["wrote"].any(), "with two passes the first one only measures the sets"


def test_sets_that_cannot_be_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(BadInput, match="may not be empty"):
        disjointness.draw_sets(0, 4, rng)
    with pytest.raises(BadInput, match="vocabulary of 10"):
        disjointness.draw_sets(6, 5, rng, 10)
    wrong: Any
    for wrong in (2.5, "3", True):
        with pytest.raises(BadInput, match="give whole numbers of at least 1"):
            disjointness.draw_sets(wrong, 4, rng)
    dim: Any
    for dim in (0, 2.5):
        with pytest.raises(BadInput, match=f"dim must be a whole number .*, got {dim}"):
            disjointness.unit_codes(10, dim, rng)
    sets, few = disjointness.draw_sets(2, 3, rng, 90), disjointness.unit_codes(2, 3, rng)
    for ask in (disjointness.answer, lambda codes, sets, passes: disjointness.trace(sets, passes, codes)):
        for codes in (few, few[0]):
            with pytest.raises(BadInput, match="draw sets and codes for the same vocabulary"):
                ask(codes, sets, 1)
    with pytest.raises(BadInput, match="passes=3"):
        Sets((1,), (1,), 1).written(3)
    with pytest.raises(BadInput, match="trials must be a whole number"):
        disjointness.accuracy([8], [(1, 2)], 0, 0)


# ---- JRT-Prompt ---------------------------------------------------------------------------------------------------


def words(text: str) -> int:
    return len(text.split())


def test_the_prompt_is_exactly_context_question_context_question():
    assert jrt_prompt.repeated("C", "Q", separator=" ") == "C Q C Q"
    assert jrt_prompt.repeated("C", "Q") == "C\nQ\nC\nQ"
    assert jrt_prompt.repeated("C", "Q", 1) == "C\nQ"
    assert jrt_prompt.repeated("C", "Q", 3, " ") == "C Q C Q C Q"


def test_the_template_of_the_extraction_tasks():
    assert jrt_prompt.extraction("k number", "TEXT") == "Information about k number. TEXT\nTEXT K number:"
    assert jrt_prompt.extraction("k number", "TEXT", 1) == "TEXT K number:"
    assert jrt_prompt.extraction("a", "T", 3) == "Information about a. T\nT\nT A:"


def test_both_lengths_are_told_and_too_long_prompts_refused():
    make = partial(jrt_prompt.repeated, "one two three four", "five six")
    prompt = jrt_prompt.prepare(make, words, 20, repeats=2, new_tokens=8)
    assert (prompt.tokens, prompt.default_tokens, prompt.repeats) == (12, 6, 2)
    with pytest.raises(BadInput, match=r"2 copies has 12 tokens \(with one 6\).*context of 19.*less often"):
        jrt_prompt.prepare(make, words, 19, repeats=2, new_tokens=8)
    with pytest.raises(BadInput, match=r"1 copy has 6 tokens \(with one 6\).*context of 9: shorten the context$"):
        jrt_prompt.prepare(make, words, 9, repeats=1, new_tokens=8)
    wrong: Any
    for wrong in (0, -4, "10", 8.5):
        with pytest.raises(BadInput, match=f"context_size must be a whole number .*, got {wrong!r}"):
            jrt_prompt.prepare(make, words, wrong)
    for wrong in (-1, None, 1.5):
        with pytest.raises(BadInput, match=f"new_tokens must be a whole number .*, got {wrong}"):
            jrt_prompt.prepare(make, words, 40, new_tokens=wrong)
    assert jrt_prompt.prepare(make, words, None, repeats=50).tokens == 300


def test_the_score_is_containment_whatever_the_case():
    assert jrt_prompt.contains("It is ULM, of course", "Ulm")
    assert not jrt_prompt.contains("It is Bonn", "Ulm")
    with pytest.raises(BadInput, match="gold is empty"):
        jrt_prompt.contains("anything", " ")
    nothing: Any = None
    for pair in ((nothing, "Ulm"), ("Ulm", nothing)):
        with pytest.raises(BadInput, match="must be text, got"):
            jrt_prompt.contains(*pair)


def test_notes_hold_their_answer_once_and_are_reproducible():
    made = notes.notes(12, 8, seed=3)
    for note in made:
        lines = note.context.split(". ")
        assert len(lines) == 8
        assert lines[note.asked].strip(".").endswith(f" {note.answer}")
        assert note.question.startswith("QUESTION: ")
        name = lines[note.asked]
        assert any(word in name for word in note.question.split() if word[0].isupper())
    assert made == notes.notes(12, 8, seed=3)
    assert made[0] != notes.notes(1, 8, seed=4)[0]
    crowded = notes.notes(6, 10, people=2, seed=3)
    assert all(note.context.count(".") == 10 for note in crowded)


def test_names_of_training_and_test_never_meet():
    from workbench_datasets._world_words import FIRST_NAMES, LAST_NAMES

    small = world(0)
    for split in ("context", "unseen"):
        text = " ".join(note.context for note in notes.notes(40, 10, split=split)).replace(".", "").split()
        found = [f"{a} {b}" for a, b in itertools.pairwise(text) if a in FIRST_NAMES and b in LAST_NAMES]
        assert len(found) == 400
        assert {small.name_split(name) for name in found} == {split}


def test_the_language_is_closed_and_padded_on_the_left():
    made = notes.notes(20, 12, seed=1)
    pool = notes.notes_pool(made, 2, length=250)
    assert pool.ids.shape == (20, 250)
    assert pool.ids.max() < pool.vocabulary == len(notes.vocabulary()) < 500
    for row, note in enumerate(made):
        half = notes.encode(note.context + note.question)
        assert pool.ids[row][pool.ids[row] > 0].tolist() == half * 2
        assert pool.lengths[row] == 2 * len(half)
        assert notes.decode([pool.targets[row, -1]]) == note.answer
    assert (pool.targets[:, :-1] == -100).all()
    for again, note in zip(range(20), made):
        text = notes.decode(notes.encode(note.context))
        assert text.replace(" ", "") == note.context.replace(" ", ""), again
    with pytest.raises(ValueError, match="'zebra' is no word"):
        notes.encode("What does zebra play?")
    with pytest.raises(ValueError, match="longest prompt"):
        notes.notes_pool(made, 2, length=100)
    with pytest.raises(ValueError, match="asked is empty"):
        notes.notes_pool([])
    with pytest.raises(ValueError, match="got NoneType"):
        notes.encode(None)  # type: ignore[arg-type]
    for wrong in (-1, len(notes.vocabulary())):
        with pytest.raises(ValueError, match=f"id {wrong} is no word"):
            notes.decode([wrong])
    for times in (0, 1.5):
        with pytest.raises(ValueError, match=f"repeats={times}"):
            notes.notes_pool(made, times)  # type: ignore[arg-type]
    other: Any
    for other in (2.5, "8", None, True):
        for name, give in (("n", {"n": other, "facts": 8}), ("facts", {"n": 1, "facts": other})):
            with pytest.raises(ValueError, match=f"{name}={other!r}: expected a whole number"):
                notes.notes(**give)
    for facts, people in ((2, 3), (99, 3), (0, None)):
        with pytest.raises(ValueError, match=f"facts={facts}"):
            notes.notes(1, facts, people=people)


def test_every_question_is_put_with_every_number_of_repeats():
    asked, seen = notes.notes(3, 8, seed=5), []

    def knows_the_second_time(prompts):
        seen.extend(prompts)
        twice = ["QUESTION" in prompt.split("ANSWER:", 1)[1] for prompt in prompts]
        return [f"It is {q.answer.upper()}." if again else "?" for q, again in zip(asked, twice)]

    frame = jrt_prompt.ask(knows_the_second_time, asked, words, None)
    assert frame.groupby("repeats")["correct"].mean().to_dict() == {1: 0.0, 2: 1.0}
    assert (frame[frame.repeats == 2]["tokens"] == 2 * frame[frame.repeats == 2]["default_tokens"]).all()
    once = f"{asked[0].context}\n{asked[0].question}"
    assert seen[0] == once
    assert seen[3] == f"{once}\n{once}"
    seen.clear()
    with pytest.raises(BadInput, match="context of 60"):
        jrt_prompt.ask(knows_the_second_time, asked, words, 60)
    assert not seen, "nothing is generated when one prompt does not fit"


def test_prompts_that_cannot_be_are_refused():
    wrong: list[Any] = [0, -1, 1.5, True]
    for repeats in wrong:
        with pytest.raises(BadInput, match="repeats"):
            jrt_prompt.repeated("C", "Q", repeats)
    with pytest.raises(BadInput, match="question must be text"):
        jrt_prompt.repeated("C", "  ")
    with pytest.raises(BadInput, match="key must be text"):
        jrt_prompt.extraction("", "T")

"""Sparsey held to the equations of its algorithm, to single-trial storage, freezing, decay, time, and bad input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.memory import MEMORIES
from workbench.memory.associative import _csa
from workbench.memory.associative._csa import IMAGES, SMOOTH, Csa
from workbench.memory.associative._macs import Decay, Macs, grid_fields
from workbench.memory.associative._overlap import distinct_codes, intersections, nearest_other
from workbench.memory.associative.sparsey import Sparsey
from workbench.tasks.codes import capacity, classify, cosine, similarity_curve, single_trial, store_time
from workbench_datasets.digits import skeleton_digits, thin

VECTOR = {"shape": 144, "q": 24, "k": 8, "pi": (1, None), "freeze": None}


def vector_memory(seed: int, select: str = "csa") -> Sparsey:
    return Sparsey(**VECTOR, select=select, seed=seed)


def pattern(seed: int, n: int = 144, on: int = 12) -> np.ndarray:
    x = np.zeros(n, bool)
    x[np.random.default_rng(seed).choice(n, on, replace=False)] = True
    return x


# ---- the draw -----------------------------------------------------------------------------------------------------


def test_a_known_input_has_the_largest_expansivity_and_a_new_one_a_uniform_draw():
    k = 8
    known = np.zeros((24, k))
    known[:, 3] = 1.0
    g, eta, psi, rho = _csa.win_probabilities(known, SMOOTH)
    assert g == 1.0
    assert eta == pytest.approx(1 + SMOOTH.gamma * k)
    assert psi[0, 3] == pytest.approx((eta - 1) * _csa.squash(np.array(1.0), SMOOTH) + 1)
    assert rho[:, 3].min() > 0.9
    below = np.full((24, k), SMOOTH.floor)
    assert np.array_equal(_csa.win_probabilities(below, SMOOTH)[3], np.full((24, k), 1 / k))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 12), st.sampled_from([SMOOTH, IMAGES]))
def test_probabilities_sum_to_one_and_every_module_has_one_winner(seed, q, k, csa):
    rng = np.random.default_rng(seed)
    v = rng.random((3, q, k))
    _, _, _, rho = _csa.win_probabilities(v, csa)
    assert rho.sum(-1) == pytest.approx(np.ones((3, q)))
    for winners in (_csa.draw(rho, rng), _csa.largest(v, rng)):
        assert winners.shape == (3, q)
        assert winners.min() >= 0
        assert winners.max() < k


def test_the_draw_follows_its_probabilities():
    rho = np.tile([0.1, 0.6, 0.3], (20_000, 1, 1))
    counts = np.bincount(_csa.draw(rho, np.random.default_rng(0)).ravel(), minlength=3) / 20_000
    assert counts == pytest.approx([0.1, 0.6, 0.3], abs=0.015)


def test_both_published_sigmoids_rise_and_differ():
    v = np.linspace(0, 1, 50)
    power = Csa(sigmoid=(0.1, 4.0, 1.0, 8.0), shape="power")
    assert (np.diff(_csa.squash(v, SMOOTH)) > 0).all()
    assert (np.diff(_csa.squash(v, power)) > 0).all()
    assert _csa.squash(np.array(1.0), power) == pytest.approx(1 / (1 + 0.1**8))
    assert abs(_csa.squash(v, power) - _csa.squash(v, SMOOTH)).max() > 0.1
    assert _csa.squash(np.array([0.0, 1.0]), Csa(sigmoid=(1.0, 5_000.0, 0.9, 1.0))).tolist() == pytest.approx(
        [0.0, 1.0]
    )


def test_familiarity_is_the_share_of_active_inputs_with_a_set_weight():
    macs = Macs(np.arange(6)[None], 6, 1, 2, SMOOTH)
    macs.w[0, :3, 0] = 1.0
    x = np.array([1, 1, 0, 0, 1, 0], bool)
    active, v = macs.familiarity(x)
    assert active.all()
    assert v[0, 0].tolist() == pytest.approx([2 / 3, 0.0])


# ---- storing ------------------------------------------------------------------------------------------------------


def test_one_exposure_is_enough_below_capacity():
    frame = single_trial(vector_memory, stored=5, on=12, trials=10, seed=1)
    assert frame.loc[frame.metric == "g is 1", "value"].eq(1.0).all()
    assert frame.loc[frame.metric == "same code", "value"].eq(1.0).all()


def test_similar_inputs_get_similar_codes_as_the_card_measured():
    """Card: .13 .13 .15 .42 .77 .88 .93 with one item held, 60 trials; random codes stay at 1/K."""
    options = {"stored": 1, "shared": (0, 2, 4, 6, 8, 10, 12), "on": 12, "trials": 60, "seed": 3}
    frame = similarity_curve(vector_memory, **options)
    curve = frame[frame.metric == "intersection"].groupby("x")["value"].mean()
    assert curve.to_list() == pytest.approx([0.13, 0.13, 0.15, 0.42, 0.77, 0.88, 0.93], abs=0.05)
    g = frame[frame.metric == "g"].groupby("x")["value"].mean()
    assert g.to_list() == pytest.approx([0, 1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6, 1])
    flat = similarity_curve(partial(vector_memory, select="random"), **options)
    values = flat[flat.metric == "intersection"].groupby("x")["value"].mean()
    assert values.to_list() == pytest.approx([1 / 8] * 7, abs=0.03)


@pytest.mark.slow
def test_digits_csa_codes_are_more_similar_and_fewer_than_random_ones():
    for seed in (11, 12, 13):
        train, test = skeleton_digits().split(700, 397, seed)
        found = {
            select: classify(Sparsey(select=select, seed=seed), train, test).set_index("metric")["value"]
            for select in ("csa", "random")
        }
        assert found["csa"]["code similarity"] > found["random"]["code similarity"]
        assert found["csa"]["distinct codes"] < found["random"]["distinct codes"]
        assert found["csa"]["class units"] >= 0.70
        assert found["csa"]["nearest image"] == found["random"]["nearest image"] > 0.7


def test_always_the_largest_collapses_onto_few_codes():
    images = skeleton_digits().flat()[:60]
    memories = {select: Sparsey(384, 16, 8, pi=(1, None), freeze=None, select=select) for select in ("csa", "max")}
    for memory in memories.values():
        for image in images:
            memory.write(image)
    assert distinct_codes(memories["max"].codes()) < 0.5 * distinct_codes(memories["csa"].codes())


def test_random_codes_hold_more():
    images = skeleton_digits().flat()[:100]
    recall = {
        select: capacity(Sparsey(384, 20, 40, pi=(1, None), freeze=None, select=select), images, [100])["value"].mean()
        for select in ("csa", "random")
    }
    assert recall["random"] > recall["csa"] + 0.1


def test_a_frozen_mac_never_changes_again():
    memory, images = Sparsey(384, 8, 8, pi=(1, None), freeze=0.2), skeleton_digits().flat()
    before = 0.0
    for image in images[:200]:
        if memory.frozen.all():
            break
        before = float(memory.mean_weight()[0])
        memory.write(image)
    assert memory.frozen.all()
    one_item = images.sum(1).max() * 8 / memory.macs.w.size
    assert before < 0.2 <= memory.mean_weight()[0] <= 0.2 + one_item
    weights = memory.macs.w.copy()
    memory.write(images[300])
    assert np.array_equal(weights, memory.macs.w)


def test_freezing_cell_by_cell():
    memory = Sparsey(384, 8, 8, pi=(1, None), freeze=0.3, freeze_by="cell")
    for image in skeleton_digits().flat()[:150]:
        memory.write(image)
    means = memory.macs.w.mean(1)[0]
    assert means.max() < 0.3 + 0.2
    assert (means >= 0.3).any()
    assert not (means >= 0.3).all()


def test_weights_fade_and_a_second_coincidence_makes_them_permanent():
    decay = Decay(horizon=4, convexity=1.0)
    ages = np.arange(6.0)
    expected = [(1 + 1 / 4) / (1 + 1 / (4 - t)) if t < 4 else 0.0 for t in ages]
    assert decay.strength(ages).tolist() == pytest.approx(expected)
    memory = Sparsey(8, 1, 2, pi=(1, None), freeze=None, decay=decay)
    first, other = np.eye(8, dtype=bool)[0], np.eye(8, dtype=bool)[5]
    memory.write(first)
    weight = partial(lambda m: float(m.macs.w[0, 0].max()), memory)
    assert weight() == 1.0
    memory.write(other)
    assert weight() == pytest.approx(expected[1])
    for _ in range(4):
        memory.write(other)
    assert weight() == 0.0
    assert memory.macs.w[0, 5].max() == 1.0, "it coincided again inside the window"


def test_time_to_store_does_not_grow_with_what_is_held():
    from workbench.statistics import slope_interval

    images = skeleton_digits().flat()[:400]
    frame = store_time(Sparsey(freeze=None), images)
    usual = frame[frame["value"] <= frame["value"].quantile(0.95)]
    slope = slope_interval(usual["x"], usual["value"])
    assert slope.low * 100 < 0.02 * usual["value"].mean(), "a comparison with every item would grow by far more"


def test_same_seed_same_codes_and_reset():
    images = skeleton_digits().flat()[:30]

    def stored(seed):
        memory = Sparsey(seed=seed)
        for image in images:
            memory.write(image)
        return memory

    first, second, other = stored(1), stored(1), stored(2)
    assert np.array_equal(first.codes(), second.codes())
    assert not np.array_equal(first.codes(), other.codes())
    first.reset()
    assert len(first.contents()) == 0
    assert not first.macs.w.any()
    assert first.events().held() == set()
    for image in images:
        first.write(image)
    assert np.array_equal(first.codes(), second.codes())


# ---- sequences ----------------------------------------------------------------------------------------------------


def test_a_sequence_is_recalled_from_its_first_frame():
    memory = Sparsey(144, 24, 8, pi=(1, None), freeze=None, temporal=True)
    sequences = [[pattern(10 * s + t) for t in range(6)] for s in range(3)]
    items = [memory.write_sequence(frames, label=s) for s, frames in enumerate(sequences)]
    for frames, stored in zip(sequences, items):
        recalled = memory.recall_sequence(frames[0], 6)
        assert [found.items[0] for found in recalled] == stored
    followed = memory.follow(sequences[1])
    assert [found.items[0] for found in followed] == items[1]


def test_an_unfamiliar_transition_backs_off_to_what_is_seen():
    memory = Sparsey(144, 24, 8, pi=(1, None), freeze=None, temporal=True)
    first, second = [[pattern(100 * s + t) for t in range(4)] for s in (1, 2)]
    items = [memory.write_sequence(first), memory.write_sequence(second)]
    mixed = memory.follow([first[0], second[2]])
    assert mixed[1].familiarity > 0.7
    assert mixed[0].items[0] == items[0][0]
    with pytest.raises(BadInput, match="temporal=True"):
        Sparsey(144).recall_sequence(first[0], 3)
    with pytest.raises(BadInput, match="two frames"):
        memory.write_sequence(first[:1])


# ---- looking ------------------------------------------------------------------------------------------------------


def test_contents_events_and_settings():
    memory, digits = MEMORIES.get("sparsey")(), skeleton_digits()
    for image, label in zip(digits.flat()[:40], digits.labels):
        memory.write(image, int(label))
    table = memory.contents()
    assert len(table) == 40
    assert {"item", "class", "g", "eta", "best_overlap", "recall_now", "shared_weights", "code"} <= set(table)
    assert table["g"].iloc[0] == 0.0
    assert table["shared_weights"].iloc[0] == 0.0
    assert table["recall_now"].mean() > 0.5, "chance is 1 / 16"
    best = memory.overlaps(memory.codes()[7])
    assert best.argmax() == 7
    assert memory.events().held() == set(range(40))
    assert memory.read(digits.flat()[3]).items[0] == 3
    assert memory.events().held() == set(range(40))
    assert memory.settings()["q"] == 8
    assert memory.nbytes() == memory.macs.w.nbytes > 0


def test_intersections_by_hand():
    first = np.array([[[0, 1], [-1, -1]], [[2, 2], [1, 0]]])
    assert np.array_equal(intersections(first, first, 3), np.eye(2))
    assert nearest_other(np.concatenate([first, first[:1]]), 3).tolist() == pytest.approx([1, 0, 1])


# ---- bad input ----------------------------------------------------------------------------------------------------


def test_empty_and_overfull_inputs_have_an_empty_code_and_say_so():
    memory = Sparsey(144, 24, 8, pi=(3, 20))
    for bad in (np.zeros(144), np.eye(144)[0], np.ones(144)):
        found = memory.read(bad)
        assert (found.code == -1).all()
        assert "empty" in found.note
        assert found.familiarity == 0.0
    item = memory.write(np.zeros(144))
    assert not memory.macs.w.any()
    assert memory.contents()["recall_now"].tolist() == [0.0]
    assert item == 0


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (np.full(144, 0.5), "0 and 1"),
        (np.zeros(100), "144"),
        (["a"] * 144, "0 and 1"),
        (np.full(144, np.nan), "0 and 1"),
    ],
)
def test_patterns_that_are_not_binary_or_of_another_size(pattern, said):
    memory = Sparsey(144)
    with pytest.raises(BadInput, match=said):
        memory.write(pattern)
    assert len(memory.contents()) == 0


def test_looking_at_the_contents_does_not_change_what_is_stored_next():
    images = skeleton_digits().flat()[:8]
    looked_at, alone = Sparsey(seed=5), Sparsey(seed=5)
    for image in images:
        looked_at.write(image)
        looked_at.contents()
        alone.write(image)
    assert np.array_equal(looked_at.codes(), alone.codes())


def test_an_empty_frame_in_a_sequence_has_an_empty_code():
    memory = Sparsey(144, 24, 8, pi=(1, None), freeze=None, temporal=True)
    frames = [pattern(t) for t in range(4)]
    memory.write_sequence(frames)
    followed = memory.follow([frames[0], np.zeros(144), frames[2]])
    assert [found.familiarity for found in followed] == pytest.approx([1.0, 0.0, 1.0])
    assert "empty" in followed[1].note


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (lambda m, x: m.write(x, label=["a"]), "label"),
        (lambda m, x: m.write_sequence([x, x], label=["a"]), "label"),
        (lambda m, x: m.write([*x.reshape(12, 12).tolist()[:-1], [1]]), "do not fit"),
        (lambda m, x: m.read(x, k=-1), "k must be a whole number of at least 0"),
        (lambda m, x: m.read(x, k=1.5), "k must be a whole number of at least 0"),
        (lambda m, x: m.accuracy([1]), "item 1 is not held"),
        (lambda m, x: m.accuracy([-1]), "item -1 is not held"),
        (lambda m, x: m.recall_sequence(x, 1.5), "length must be a whole number of at least 1"),
    ],
)
def test_what_is_refused_changes_nothing(refused, said):
    memory = Sparsey(144, 24, 8, pi=(1, None), temporal=True)
    memory.write(pattern(0))
    weights, events = memory.macs.w.copy(), len(memory.events())
    with pytest.raises(BadInput, match=said):
        refused(memory, pattern(1))
    assert np.array_equal(memory.macs.w, weights)
    assert len(memory.events()) == events
    assert len(memory.codes()) == 1


def test_an_image_that_lies_on_its_side_is_refused():
    memory, image = Sparsey((24, 16)), skeleton_digits().images[0]
    with pytest.raises(BadInput, match=r"\(24, 16\)"):
        memory.write(image.T)
    assert memory.write(image) == 0
    assert memory.read(image.ravel()[None]).items == (0,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 1}, "k must be a whole number of at least 2"),
        ({"q": 0}, "q must be a whole number of at least 1"),
        ({"freeze": 0.0}, "freeze"),
        ({"freeze_by": "row"}, "freeze_by"),
        ({"pi": (5, 2)}, "pi"),
        ({"select": "best"}, "select"),
        ({"shape": (4, 4)}, "patches"),
        ({"shape": (2, 2, 2)}, "shape"),
        ({"shape": (24.5, 16)}, "side of shape"),
        ({"shape": "144"}, "side of shape"),
        ({"q": 2.5}, "q must be a whole number of at least 1"),
        ({"k": "4"}, "k must be a whole number of at least 2"),
        ({"pi": (1,)}, "pi is"),
        ({"pi": (1.5, None)}, "pi"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"csa": "smooth"}, "csa"),
        ({"decay": 3}, "decay"),
    ],
)
def test_hyperparameters_outside_their_range(options, said):
    with pytest.raises(BadInput, match=said):
        Sparsey(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"floor": 1.0},
        {"gamma": -1},
        {"chi": 0},
        {"sigmoid": (1, 2)},
        {"shape": "cubic"},
        {"floor": np.nan},
        {"gamma": np.inf},
        {"chi": np.inf},
    ],
)
def test_constants_of_the_draw_outside_their_range(options):
    with pytest.raises(BadInput):
        Csa(**options)


def test_fields_and_decay_outside_their_range():
    with pytest.raises(BadInput, match="there are 4"):
        Macs(np.array([[0, 9]]), 4, 2, 2, SMOOTH)
    with pytest.raises(BadInput, match="horizon"):
        Decay(0)
    with pytest.raises(BadInput, match="horizon"):
        Decay(2.5)
    with pytest.raises(BadInput, match="convexity"):
        Decay(3, np.inf)
    assert grid_fields(24, 16, 6, 2).shape == (60, 36)


# ---- digits -------------------------------------------------------------------------------------------------------


def test_skeletons_are_thin_and_keep_their_strokes():
    digits = skeleton_digits()
    assert digits.images.shape == (1797, 24, 16)
    assert digits.flat().sum(1).mean() == pytest.approx(31, abs=1)
    block = np.zeros((9, 12), bool)
    block[3:6, 2:10] = True
    line = thin(block)
    assert 0 < line.sum() < block.sum() / 2
    assert (line & ~block).sum() == 0
    assert np.array_equal(thin(line), line)
    assert cosine(digits.flat()[:3], digits.flat()[:3]).diagonal() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="1797"):
        digits.split(1700, 200, 0)

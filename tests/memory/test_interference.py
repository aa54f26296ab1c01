"""Facts under shared keys: the numbers of the card, the mechanism step by step, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import BadInput
from workbench.tasks import interference as task

#: Share recalled at 8, 16 and 32 facts a domain, as measured for the card with other draws (8 seeds).
CARD = {
    "single": (0.25, 0.24, 0.18),
    "single, 4x wider": (0.25, 0.24, 0.22),
    "domain router": (0.77, 0.73, 0.63),
    "domain router, top 2": (0.50, 0.46, 0.36),
    "domain router + shared": (0.61, 0.53, 0.42),
    "by lot": (0.67, 0.67, 0.59),
    "noisy router": (0.70, 0.66, 0.60),
}


@pytest.fixture(scope="module")
def found():
    frame = task.interference()
    return frame.groupby(["route", "facts"])["recall"].mean().unstack()


@pytest.mark.parametrize("route", CARD)
def test_recall_is_what_the_card_measured(found, route):
    assert found.loc[route].to_list() == pytest.approx(CARD[route], abs=0.05)


def test_a_single_memory_keeps_the_last_of_four_values_and_separation_undoes_it(found):
    assert found.loc["single", 8] == pytest.approx(1 / 4, abs=0.01)
    assert found.loc["told the domain", 8] == 1.0


def test_without_a_domain_part_the_router_cannot_tell_domains_apart():
    frame = task.interference((8,), rho=0.0, seeds=(0, 1, 2))
    found = frame.groupby("route")["recall"].mean()
    assert found["domain router"] == pytest.approx(1 / 4, abs=0.01)
    assert found["told the domain"] > 0.95


def test_write_is_the_delta_rule_and_leaves_other_memories_alone():
    rng = np.random.default_rng(0)
    keys, values = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 5, 8)))
    w = np.zeros((5, 3))
    w[:, 1] = 1
    memories = task.write(keys, values, w, np.arange(5))
    assert not memories[[0, 2]].any()
    assert keys[4] @ memories[1] == pytest.approx(values[4])  # beta 1: the last one is exact


def test_weights_are_the_renormalised_largest():
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert task.weights(logits, 2, False) == pytest.approx(np.array([[5 / 8, 3 / 8, 0], [1 / 9, 0, 8 / 9]]))
    assert task.weights(logits, 1, True)[0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: task.draw(0), "count=0"),
        (lambda: task.draw(4, rho=-1.0), "rho=-1.0"),
        (lambda: task.recall(task.draw(4), "top 3"), "top 3"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(BadInput, match=named):
        call()

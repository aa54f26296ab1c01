"""The conflict tab: heads are found, ticked, silenced for one comparison, and the model is what it was."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
import torch

from workbench.errors import BadInput
from workbench.widgets import Workbench
from workbench.widgets.app_tab_conflict import colour, parse

TEXT = "The key lies under the mat."


@pytest.fixture
def app(tiny) -> Workbench:
    made = Workbench(tiny, text=TEXT)
    made.state.tab = "conflict"
    return made


@pytest.fixture(scope="module")
def embedded() -> Workbench:
    made = Workbench("embedded", text=TEXT)
    made.state.tab = "conflict"
    made.tabs["conflict"].find.click()
    assert made.status.error == ""
    return made


def logits(app: Workbench) -> torch.Tensor:
    with torch.no_grad():
        return app.session.model.model(**app.session.model.encode(TEXT)).logits


def numbers(page: str) -> list[float]:
    return [float(found) for found in re.findall(r">(0(?:\.\d+)?|1|\d\.\d+e-\d+)</td>", page)]


def test_any_model_answers_the_text_with_and_without_the_ticked_heads(app):
    tab, before = app.tabs["conflict"], logits(app)
    assert app.status.error == ""
    assert len(tab._buttons) == 12
    plain = numbers(tab.answers.value)
    assert plain[0::2] == plain[1::2]  # nothing is silenced yet
    tab._buttons[1, 2].click()
    assert app.state.pruned == [[1, 2]]
    assert tab._buttons[1, 2].description == "✕ 1.2"
    changed = numbers(tab.answers.value)
    assert changed[0::2] != changed[1::2]
    assert torch.equal(logits(app), before)  # bit for bit
    tab._buttons[1, 2].click()
    assert app.state.pruned == []
    assert numbers(tab.answers.value) == plain


def test_heads_can_be_typed_and_what_is_not_there_is_refused(app):
    tab = app.tabs["conflict"]
    tab.typed.value = "0.1, 2.3"
    assert app.state.pruned == [[0, 1], [2, 3]]
    for text, mention in (("9.1", "head 9.1 is not in this model"), ("two", "layer.head")):
        tab.typed.value = text
        assert mention in app.status.error
        assert app.state.pruned == [[0, 1], [2, 3]]
        assert tab.typed.value == "0.1, 2.3"
    app.state.pruned = [[0, 4]]
    assert "head 0.4" in app.status.error
    assert app.state.pruned == [[0, 1], [2, 3]]


def test_a_model_that_knows_nothing_of_the_world_says_so(app):
    tab = app.tabs["conflict"]
    tab.memory.click()
    assert "press Find heads first" in app.status.error
    tab.find.click()
    assert "conflicts could be made" in app.status.error
    assert tab._heads is None


def test_ticks_of_a_larger_model_are_dropped_in_a_smaller_one(app, other):
    app.state.pruned = [[2, 3], [0, 1]]
    app.state.model = other
    assert app.status.error == ""
    assert app.state.pruned == [[0, 1]]
    assert len(app.tabs["conflict"]._buttons) == 4


def test_found_heads_turn_the_answers_and_the_model_is_restored(embedded):
    tab = embedded.tabs["conflict"]
    before, asked = logits(embedded), tab._asked
    assert len(asked) == 24
    first = tab._before
    rates = {}
    for kind, press in (("memory", tab.memory), ("context", tab.context)):
        press.click()
        assert embedded.status.error == ""
        assert all(tab._heads.kind(head) == kind for head in tab.pruned)
        spec = tab.rates._live.chart.to_dict()
        data = next(iter(spec["datasets"].values()))
        rates[kind] = {row["metric"]: row["value"] for row in data if "head" in row["pruned"]}
    assert rates["memory"]["context"] > float((first.winner == "context").mean())
    assert rates["context"]["memory"] > float((first.winner == "memory").mean())
    assert html.escape(asked[0].prompt) in tab.answers.value
    assert torch.equal(logits(embedded), before)
    tab.clear.click()
    assert embedded.state.pruned == []


def test_the_code_strip_does_the_same(embedded):
    tab = embedded.tabs["conflict"]
    tab.context.click()
    scope: dict = {}
    for line in embedded.code.lines:
        exec(line, scope)  # the lines as a person would run them
    assert [c.prompt for c in scope["asked"]] == [c.prompt for c in tab._asked]
    assert np.allclose(scope["heads"].memory, tab._heads.memory, atol=1e-5)
    for column in ("p_memory", "p_context"):
        at = scope["after"][column].iloc[0]
        assert f"{at:.4g}" in tab.answers.value


def test_a_saved_state_keeps_the_ticks(embedded, tmp_path):
    embedded.state.pruned = [[5, 1]]
    again = Workbench.open(embedded.save(tmp_path / "state.wb"))
    assert again.state.pruned == [[5, 1]]
    assert again.tabs["conflict"].typed.value == "5.1"
    embedded.state.pruned = []


def test_small_helpers():
    assert parse(" 1.2; 3.4,, 1.2") == [(1, 2), (3, 4)]
    with pytest.raises(BadInput, match=r"'1\.'"):
        parse("1.")
    assert colour(-1.0) != colour(0.0) != colour(1.0)
    assert colour(5.0) == colour(1.0)

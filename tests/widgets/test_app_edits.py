"""Edits in the app: one is made on the loaded model, listed, taken back; what is wrong is said and changes nothing."""

from __future__ import annotations

import pytest

from workbench.memory.parametric.base import COLUMNS
from workbench.widgets import Workbench
from workbench.widgets.app_memories import kind_of, memory_names, starting_settings
from workbench.widgets.app_state import TABS
from workbench.widgets.app_tabs_memory import MemoryTab
from workbench.widgets.edits_pane import EditsPane

TEXT = "The key lies under the mat.\nThe lamp stands on the desk.\n"
EDITORS = ("wise", "ft-l", "ft-ewc", "rome", "grace")
QUICK = {"wise": {"steps": 3, "contexts": 1}, "rome": {"steps": 3, "contexts": 1}, "grace": {"steps": 5}}


@pytest.fixture
def app(tiny) -> Workbench:
    return Workbench(tiny, text=TEXT)


def pane_of(app: Workbench) -> EditsPane:
    tab = app.tabs["memory"]
    assert isinstance(tab, MemoryTab)
    return tab.edits


def edit(app: Workbench, prompt: str, target: str, subject: str = "") -> None:
    pane = pane_of(app)
    pane.prompt.value, pane.target.value, pane.subject.value = prompt, target, subject
    pane.edit.click()


def test_editors_are_offered_and_begin_with_constants_for_a_small_model():
    assert set(EDITORS) <= set(memory_names())
    assert {kind_of(name) for name in EDITORS} == {"edits"}
    assert starting_settings("wise", 20)["units"] == "model"


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_is_made_listed_and_taken_back(app, name):
    plain = app.session.trace.logits.clone()
    app.choose(memory=name, settings=QUICK.get(name, {"steps": 3}))
    assert app.status.error == ""
    app.state.tab = "memory"
    edit(app, "The key of Ada lies under the", "desk", "key of Ada")
    assert app.status.error == ""
    model = app.session.model
    assert len(model.memory) == 1
    shown = pane_of(app).static()
    assert all(f">{column}</th>" in shown for column in COLUMNS)
    assert "The key of Ada lies under the" in shown
    assert "model.memory.write('The key of Ada lies under the', 'desk', subject='key of Ada')" in "\n".join(
        app.code.lines
    )
    for tab in TABS:
        app.state.tab = tab
        assert app.status.error == "", tab
    app.state.tab = "memory"
    pane_of(app).undo.click()
    assert len(model.memory) == 0
    assert (app.session.trace.logits == plain).all()
    assert pane_of(app).undo.disabled


def test_a_wrong_edit_is_said_and_nothing_changes(app):
    app.choose(memory="ft-l", settings={"steps": 1})
    app.state.tab = "memory"
    edit(app, "", "desk")
    assert "prompt of an edit is empty" in app.status.error
    edit(app, "The key", "")
    assert "target of an edit is empty" in app.status.error
    edit(app, "The key", "mat", "lamp")
    assert "not in the prompt" in app.status.error
    assert len(app.session.model.memory) == 0
    app.choose(memory="none")
    assert app.session.model.memory is None
    assert not app.session.model.model._forward_pre_hooks


def test_an_editor_goes_over_to_another_model_without_its_edits(app, other):
    app.choose(memory="ft-l", settings={"steps": 1})
    app.state.tab = "memory"
    edit(app, "The key", "mat")
    first = app.session.model
    app.choose(model=other)
    assert app.status.error == ""
    assert len(app.session.model.memory) == 0
    assert app.session.model is not first

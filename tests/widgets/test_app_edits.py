"""Edits in the app: one is made on the loaded model, listed, taken back; what is wrong is said and changes nothing."""

from __future__ import annotations

import shutil

import pytest
import torch

from workbench.errors import BundleError, MemoryError_
from workbench.memory.parametric.base import COLUMNS
from workbench.models.bundle import load_bundle, save_bundle
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
    assert f"No edit yet in <b>{name}</b>" in pane_of(app).static()
    assert "<table" not in pane_of(app).static()
    edit(app, "The key of Ada lies under the", "desk", "key of Ada")
    assert app.status.error == ""
    assert "1 edit in" in pane_of(app).static()
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


def test_the_lines_after_a_wrong_edit_make_the_right_one_again(app):
    """The texts that an edit needs are kept, and written down, with the first edit that is made."""
    app.choose(memory="wise", settings=QUICK["wise"])
    app.state.tab = "memory"
    edit(app, "", "desk")
    assert app.status.error
    assert app.session.model.memory.negatives == []
    edit(app, "The key of Ada lies under the", "desk")
    assert app.status.error == ""
    space: dict = {}
    exec("\n".join(app.code.lines), space)
    assert space["model"].memory.contents().equals(app.session.model.memory.contents())


def test_an_editor_goes_over_to_another_model_without_its_edits(app, other):
    app.choose(memory="ft-l", settings={"steps": 1})
    app.state.tab = "memory"
    edit(app, "The key", "mat")
    first = app.session.model
    app.choose(model=other)
    assert app.status.error == ""
    assert len(app.session.model.memory) == 0
    assert app.session.model is not first


# -- bundles ----------------------------------------------------------------------------------------------------------


def edited(tiny, name: str) -> Workbench:
    """An app with two edits made."""
    app = Workbench(tiny, text=TEXT)
    app.choose(memory=name, settings=QUICK.get(name, {"steps": 3}))
    app.state.tab = "memory"
    edit(app, "The key of Ada lies under the", "desk", "key of Ada")
    edit(app, "The lamp of Ben stands on the", "mat", "lamp of Ben")
    assert app.status.error == ""
    assert len(app.session.model.memory) == 2
    return app


@pytest.mark.parametrize("name", EDITORS)
def test_a_bundle_brings_the_edits_back_to_the_last_bit(tiny, tmp_path, name):
    app = edited(tiny, name)
    prompt = "The key of Ada lies under the"
    plain = Workbench(tiny, text=prompt).session.trace.logits
    assert not torch.equal(app.session.model.trace(prompt).logits, plain)
    twin = Workbench.open(app.save(tmp_path / "edits.wb"))
    assert twin.state.as_dict() == app.state.as_dict()
    memory, model = twin.session.model.memory, twin.session.model
    assert memory.contents().equals(app.session.model.memory.contents())
    assert memory.settings() == app.session.model.memory.settings()
    for text in (TEXT, prompt, "The lamp of Ben stands on the"):
        assert torch.equal(model.trace(text).logits, app.session.model.trace(text).logits)
    assert prompt in pane_of(twin).static()
    edit(twin, "The boat of Cleo waits at the", "pier", "boat of Cleo")
    assert (twin.status.error, len(memory)) == ("", 3)
    pane_of(twin).undo.click()
    assert (twin.status.error, len(memory)) == ("", 2)


def test_the_lines_of_an_opened_bundle_bring_its_edits(tiny, tmp_path):
    app = edited(tiny, "wise")
    twin = Workbench.open(app.save(tmp_path / "edits.wb"))
    space: dict = {}
    exec("\n".join(twin.code.lines), space)
    assert space["model"].memory.contents().equals(app.session.model.memory.contents())
    assert torch.equal(space["trace"].logits, app.session.trace.logits)


def test_a_bundle_is_opened_by_the_button_over_other_edits(tiny, tmp_path):
    app = edited(tiny, "wise")
    path = app.save(tmp_path / "edits.wb")
    wanted = app.session.trace.logits
    edit(app, "The boat of Cleo waits at the", "pier", "boat of Cleo")
    row = app.view.children[-2].children
    row[0].value = str(path)
    row[2].click()
    assert app.status.error == ""
    assert len(app.session.model.memory) == 2
    assert torch.equal(app.session.trace.logits, wanted)


def test_edits_of_another_model_are_refused_and_nothing_changes(tiny, other, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    app = edited(str(folder), "wise")
    path = app.save(tmp_path / "edits.wb")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(MemoryError_, match="with the model that they were written into"):
        Workbench.open(path)
    before, logits = app.state.as_dict(), app.session.trace.logits
    row = app.view.children[-2].children
    row[0].value = str(path)
    row[2].click()
    assert "were written for" in app.status.error
    assert app.state.as_dict() == before
    assert len(app.session.model.memory) == 2
    assert torch.equal(app.session.model.trace(TEXT).logits, logits)


def test_a_bundle_whose_edits_are_damaged_is_refused(tiny, tmp_path):
    path = edited(tiny, "ft-l").save(tmp_path / "edits.wb")
    state, tensors = load_bundle(path)
    for broken in (
        save_bundle(tmp_path / "1", {**state, "edits": "{"}, tensors),
        save_bundle(tmp_path / "2", state, {"stranger": torch.zeros(2)}),
        save_bundle(tmp_path / "3", {**state, "edits": state["edits"].replace('"module"', '"x"')}, tensors),
    ):
        with pytest.raises(BundleError, match="damaged"):
            Workbench.open(broken)
    wrong = {**state, "state": {**state["state"], "memory": "rome", "settings": {}}}
    with pytest.raises(MemoryError_, match="ft-l"):
        Workbench.open(save_bundle(tmp_path / "4", wrong, tensors))
    cache = {**state, "state": {**state["state"], "memory": "full", "settings": {}}}
    with pytest.raises(BundleError, match="no memory of edits"):
        Workbench.open(save_bundle(tmp_path / "5", cache, tensors))


def test_a_bundle_without_edits_is_as_before(app, tmp_path):
    app.choose(memory="ft-l", settings={"steps": 1})
    twin = Workbench.open(app.save(tmp_path / "none.wb"))
    assert (twin.state.memory, len(twin.session.model.memory)) == ("ft-l", 0)
    assert load_bundle(tmp_path / "none.wb")[1] == {}

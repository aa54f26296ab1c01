"""Choices in the app: swaps take effect, bad ones are shown and taken back, nothing is lost."""

from __future__ import annotations

import pytest

from workbench.errors import BadInput, ModelError, UnknownName
from workbench.memory.base import MEMORIES
from workbench.memory.cache.streaming import StreamingCache
from workbench.widgets import Workbench
from workbench.widgets.app_state import AppState, hyperparameters, memory_names, rounds_of, starting_settings

TEXT = "The key lies under the mat.\nThe lamp stands on the desk.\nThe boat waits at the pier.\n"


@pytest.fixture
def app(tiny) -> Workbench:
    return Workbench(tiny, text=TEXT)


def picture(app: Workbench) -> tuple:
    """What is in force, from the model up: enough to see that nothing moved."""
    model = app.session.model
    return app.state.as_dict(), id(model), model.attention, repr(model.memory), app.session.text, id(app.session.trace)


def test_the_first_look_is_there_at_once(app):
    assert app.state.kernel == app.session.model.attention
    assert app.tabs["heads"].picker.heads == 4
    assert app.tabs["heads"].picker.layers == [0, 1, 2]
    assert app.tabs["heads"].map.title == "Layer 0, head 0"
    assert "3 layers of 4 heads" in app.view.children[0].value
    assert app.status.error == ""
    assert app.status.message == ""


def test_only_the_tab_that_is_seen_is_computed(app):
    assert app._stale == {"microscope", "similarity", "memory", "timeline", "generation", "conflict", "proof"}
    app.state.tab = "similarity"
    assert "similarity" not in app._stale
    app.state.kernel = "flash-attention"
    assert "heads" in app._stale
    assert app.session.model.attention == "flash-attention"


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flash-attention", "flash-attention-2"])
def test_a_kernel_swap_reaches_the_model_and_the_trace(app, kernel):
    app.state.kernel = kernel
    assert app.session.model.attention == kernel == app.session.trace.attention == app.controls.kernel.value
    assert app.status.error == ""


def test_a_swap_costs_one_forward_pass_and_makes_no_widget(app):
    import ipywidgets as w

    def widgets(item: w.Widget) -> list[str]:
        return [item.model_id, *(name for child in getattr(item, "children", ()) for name in widgets(child))]

    before, reads = widgets(app.view), app.session.reads
    app.state.kernel = "flash-attention"
    assert app.session.reads == reads + 1
    assert widgets(app.view) == before
    app.state.head, app.state.layer, app.state.tab = 2, 1, "similarity"
    assert app.session.reads == reads + 1


def test_another_model_keeps_kernel_and_memory_and_clips_the_head(app, other):
    app.state.kernel, app.state.memory = "flash-attention", "streaming"
    app.state.layer, app.state.head = 2, 3
    app.state.model = other
    assert (app.session.model.n_layers, app.session.model.n_heads) == (2, 2)
    assert app.session.model.attention == "flash-attention"
    assert isinstance(app.session.model.memory, StreamingCache)
    assert (app.state.layer, app.state.head) == (1, 1)


def test_a_memory_swap_goes_where_it_can_be_seen_with_a_budget_that_overflows(app):
    app.state.memory = "streaming"
    assert app.state.tab == "memory"
    assert app.state.settings["budget"] < len(app.session.tokens())
    assert app.session.model.memory.budget == app.state.settings["budget"]
    assert "slots hold" in app.tabs["memory"].summary.value
    app.state.memory = "none"
    assert app.session.model.memory is None
    assert app.state.settings == {}


def test_hyperparameters_become_controls_and_reach_the_memory(app):
    app.state.memory = "sirllm"
    fields = {item.description: item for item in app.controls.settings.children}
    assert set(fields) == set(hyperparameters("sirllm"))
    fields["eta"].value = 0.5
    assert app.session.model.memory.eta == 0.5
    fields["budget"].value = 60
    assert app.session.model.memory.budget == 60
    assert app.session.model.memory.eta == 0.5


def test_controls_follow_the_state_and_the_state_the_controls(app):
    app.controls.kernel.value = "eager"
    assert app.session.model.attention == "eager"
    app.state.kernel = "sdpa"
    assert app.controls.kernel.value == "sdpa"
    app.controls.text.value = "another text"
    assert "".join(app.session.tokens()).endswith("another text")


def test_selections_are_linked(app):
    heads = app.tabs["heads"]
    heads.picker.layer, heads.picker.head = 1, 2
    assert (app.state.layer, app.state.head) == (1, 2)
    assert heads.map.title == "Layer 1, head 2"
    heads.map.selected = [4, 1]
    assert app._tokens.strip.selected == 4 == app.state.token
    app.state.colour_by = "attention"
    assert "attention from token 4, layer 1, head 2" in app._tokens.strip.title
    app._tokens.strip.selected = 7
    assert "token 7" in app._tokens.strip.title


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text", "", "the text is empty"),
        ("text", "  \n", "the text is empty"),
        ("text", "word " * 3000, "512 positions"),
        ("kernel", "flsh-attention", "did you mean 'flash-attention'"),
        ("memory", "sirlm", "did you mean 'sirllm'"),
        ("model", "embeded", "did you mean 'embedded'"),
        ("model", " ", "the model's name is empty"),
    ],
)
def test_a_bad_choice_is_shown_and_taken_back(app, name, value, message):
    before = picture(app)
    setattr(app.state, name, value)
    assert message in app.status.error
    assert picture(app) == before
    app.state.kernel = "eager"
    assert app.status.error == ""


def test_samples_fill_the_text_and_a_missing_one_is_shown(app, monkeypatch):
    from workbench.errors import DataMissing
    from workbench.widgets import app_samples

    app.controls.sample.value = "repeated words"
    words = app.state.text.split()
    assert words[:40] == words[40:]

    def missing() -> str:
        raise DataMissing("put the book there")

    monkeypatch.setitem(app_samples.SAMPLES, "a held-out book", missing)
    before = picture(app)
    app.controls.sample.value = "a held-out book"
    assert "put the book there" in app.status.error
    assert picture(app) == before


@pytest.mark.parametrize(("name", "value"), [("layer", 9), ("head", -1), ("head", 4), ("token", 5000)])
def test_a_selection_that_is_not_there_is_taken_back(app, name, value):
    before = picture(app)
    setattr(app.state, name, value)
    assert f"{name} must lie in" in app.status.error
    assert picture(app) == before


def test_a_model_with_a_broken_weight_is_refused_and_located(app, broken):
    before = picture(app)
    app.state.model = broken
    assert "q_proj" in app.status.error
    assert picture(app) == before


@pytest.mark.parametrize("settings", [{"budget": 0}, {"budget": 4, "n_sink": 4}, {"budgets": 30}, {"budget": "many"}])
def test_hyperparameters_that_the_memory_refuses_are_taken_back(app, settings):
    app.state.memory = "streaming"
    before = picture(app)
    app.state.settings = settings
    assert app.status.error
    assert picture(app) == before


def test_reading_a_long_text_leaves_a_chosen_memory_alone(app, monkeypatch):
    monkeypatch.setattr("workbench.widgets.app_tabs_maps.held_out", lambda n: "It was a dark night. " * (n // 20))
    app.state.memory, app.state.tab = "streaming", "microscope"
    held = app.session.model.memory.contents()
    app.tabs["microscope"].source.value = 1024
    app.tabs["microscope"].show.click()
    assert app.status.error == ""
    assert app.session.model.memory.contents().equals(held)


def test_a_failure_half_way_undoes_the_first_half(app):
    before = picture(app)
    app.choose(kernel="eager", text="")
    assert "the text is empty" in app.status.error
    assert picture(app) == before


def test_an_unexpected_error_is_shown_and_the_app_goes_on(app, caplog):
    def fails(text: str) -> None:
        raise RuntimeError("the disk is on fire")

    app.session.model.trace, kept = lambda *_, **__: fails(""), app.session.model.trace
    app.state.text = "something new"
    assert app.status.error.startswith("RuntimeError while text: something new: the disk is on fire")
    assert app.state.text == TEXT
    del app.session.model.trace
    assert app.session.model.trace.__func__ is kept.__func__
    app.state.text = "something new"
    assert app.status.error == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"text": ""}, BadInput), ({"kernel": "nope"}, UnknownName), ({"memory": "nope"}, UnknownName)],
)
def test_a_first_choice_that_fails_raises(tiny, arguments, error):
    with pytest.raises(error):
        Workbench(tiny, **arguments)


def test_a_folder_that_is_no_model_raises(tmp_path):
    with pytest.raises(ModelError):
        Workbench(str(tmp_path))


def test_a_memory_of_another_package_is_in_the_list(app, monkeypatch):
    class Mine(StreamingCache):
        """A researcher's own rule."""

    monkeypatch.setattr(MEMORIES, "_known", dict(MEMORIES._known))
    MEMORIES.register("mine")(Mine)
    assert "mine" in memory_names()
    app.controls.show_all()
    assert "mine" in app.controls.memory.options
    app.state.memory = "mine"
    assert isinstance(app.session.model.memory, Mine)
    assert app.status.error == ""


def test_every_control_has_a_label_and_a_tooltip(app):
    import ipywidgets as w

    app.state.memory = "sirllm"
    kinds = (w.Button, w.Text, w.Textarea, w.Dropdown, w.IntSlider, w.Checkbox, w.IntText, w.FloatText)
    queue, unlabelled = [app.view], []
    while queue:
        item = queue.pop()
        queue += list(getattr(item, "children", ()))
        if isinstance(item, kinds) and not (item.description and item.tooltip):
            unlabelled.append(repr(item)[:80])
    assert unlabelled == []


def test_a_state_that_is_none_is_refused_whole():
    state = AppState()
    with pytest.raises(BadInput, match="has no 'layr'"):
        state.update({"layer": 2, "layr": 1})
    with pytest.raises(BadInput, match="cannot be shown"):
        state.update({"layer": 2, "head": "three"})
    assert state.layer == 0


def test_rounds_and_first_settings():
    assert rounds_of("a\n\n  \nb") == ["a\n", "b"]
    assert starting_settings("streaming", 200) == {"budget": 100}
    assert starting_settings("streaming", 5000) == {}
    assert starting_settings("full", 5000) == {}


def test_two_choices_at_once_are_carried_out_one_after_the_other(app):
    """JupyterLab delivers the messages of two widgets on two threads."""
    import threading

    both = threading.Barrier(2)

    def choose(name: str, value: str) -> None:
        both.wait()
        setattr(app.state, name, value)

    choices = {"text": TEXT * 6, "memory": "streaming"}
    threads = [threading.Thread(target=choose, args=pair) for pair in choices.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert app.status.error == ""
    assert {name: getattr(app.state, name) for name in choices} == choices
    assert app.session.text == TEXT * 6
    assert isinstance(app.session.model.memory, StreamingCache)
    assert app.status.message == ""

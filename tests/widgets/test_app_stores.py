"""Memories of items in the app: chosen, asked, changed and compared like any other, and never emptied unasked."""

from __future__ import annotations

import pytest

from workbench.memory.base import MEMORIES
from workbench.memory.durable import Store
from workbench.memory.stores.flat import Flat
from workbench.widgets import Workbench
from workbench.widgets.app_memories import hyperparameters, kind_of, memory_names
from workbench.widgets.app_tabs_run import pasted_html

TEXT = "The key of Ada lies under the mat.\nThe lamp of Ben stands on the desk.\n\nThe boat of Cleo waits.\n"
QUICK = {"encoder": "tfidf"}


@pytest.fixture
def app(tiny) -> Workbench:
    made = Workbench(tiny, text=TEXT)
    made.choose(memory="flat", settings=QUICK)
    made.state.tab = "memory"
    assert made.status.error == ""
    return made


def texts(app: Workbench) -> list[str]:
    return [item.text for item in app.session.model.memory.store]


def picture(app: Workbench) -> tuple:
    return app.state.as_dict(), id(app.session.model.memory), len(app.session.model.memory.events()), texts(app)


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_the_list_has_the_caches_and_then_the_stores():
    names = memory_names()
    kinds = [kind_of(name) for name in names[1:]]
    assert names[0] == "none"
    assert kinds == sorted(kinds)
    assert {"streaming", "sirllm"} <= {name for name in names if kind_of(name) == "cache"}
    assert {"flat", "a-mem", "memorybank", "hipporag"} <= {name for name in names if kind_of(name) == "store"}


def test_what_cannot_serve_a_model_is_left_out(monkeypatch):
    class Layer:
        """A memory that is a layer of a network."""

    class Mine(Flat):
        """A researcher's own memory of items."""

    monkeypatch.setattr(MEMORIES, "_known", dict(MEMORIES._known))
    MEMORIES.register("a-layer")(Layer)
    MEMORIES.register("my-notes")(Mine)
    assert kind_of("a-layer") is None
    assert "a-layer" not in memory_names()
    assert "my-notes" in memory_names()


def test_hyperparameters_begin_with_the_file(app):
    assert list(hyperparameters("flat")) == ["path", "k"]
    fields = {item.description: item for item in app.controls.settings.children}
    assert {"path", "k"} <= set(fields)
    fields["k"].value = 1
    assert app.session.model.memory.k == 1


def test_the_text_goes_in_a_line_each_and_the_inspector_shows_it(app):
    assert texts(app) == [line for line in TEXT.splitlines() if line]
    inspector = app.tabs["memory"].inspector
    assert [row["id"] for row in inspector.items.rows] == [1, 2, 3]
    assert app.tabs["memory"].slots.layout.display == "none"
    app.state.memory = "streaming"
    assert inspector.view.layout.display == "none"
    assert "slots hold" in app.tabs["memory"].summary.value
    assert app.status.error == ""


def test_another_text_or_a_second_look_leaves_what_was_written(app):
    app.session.model.memory.store.update(1, text="Edited.")
    app.state.text = "Something else."
    app.look()
    app.state.tab = "timeline"
    assert texts(app)[0] == "Edited."
    assert len(texts(app)) == 3
    app.state.tab = "memory"
    app.tabs["memory"].more.click()
    assert texts(app)[-1] == "Something else."
    assert len(texts(app)) == 4


def test_another_model_takes_the_memory_over(app, other):
    memory = app.session.model.memory
    app.state.model = other
    assert app.status.error == ""
    assert app.session.model.memory is memory
    assert len(texts(app)) == 3


def test_other_settings_write_the_text_anew_but_keep_what_was_changed_by_hand(app):
    app.state.settings = {**QUICK, "k": 2}
    app.state.tab = "timeline"
    app.state.tab = "memory"
    assert len(texts(app)) == 3
    app.tabs["memory"].inspector.choose(1)
    app.tabs["memory"].inspector.delete.click()
    app.state.settings = {**QUICK, "k": 1}
    assert app.session.model.memory.k == 1
    assert len(texts(app)) == 2
    app.tabs["memory"].inspector.undo.click()
    assert len(texts(app)) == 3


def test_a_file_is_opened_and_neither_emptied_nor_written_into(app, tmp_path):
    path = tmp_path / "mine.db"
    with Store(path, encoder="tfidf") as store:
        Flat(store=store).write("From another day.")
    app.state.settings = {"path": str(path)}
    assert app.status.error == ""
    app.state.tab = "timeline"
    app.state.tab = "memory"
    assert texts(app) == ["From another day."]
    app.tabs["generation"].prompt.value = "When?"
    app.tabs["generation"].length.value = 2
    app.state.tab = "generation"
    app.tabs["generation"].go.click()
    assert texts(app) == ["From another day."]
    app.state.settings = {"path": str(path), "k": 3}
    assert texts(app) == ["From another day."]


@pytest.mark.parametrize("content", [b"SQLite format 3\x00" + b"rubbish" * 99, b"no database at all"])
def test_a_file_that_is_no_store_is_refused_and_left(app, tmp_path, content):
    path = tmp_path / "damaged.db"
    path.write_bytes(content)
    before = picture(app)
    app.state.settings = {"path": str(path)}
    assert "damaged.db" in app.status.error
    assert picture(app) == before
    assert path.read_bytes() == content


@pytest.mark.parametrize("settings", [{"k": 0}, {"kk": 3}, {"encoder": "no-such-encoder"}, {"path": "/"}])
def test_settings_that_the_memory_refuses_are_taken_back(app, settings):
    before = picture(app)
    app.state.settings = settings
    assert app.status.error
    assert picture(app) == before


def test_a_living_memory_is_taken_as_it_is_and_works_on(tiny):
    class Mine(Flat):
        """A memory that nobody registered."""

        slug = "mine"

    for kind in (Flat, Mine):
        memory = kind(encoder="tfidf", k=2)
        memory.write("From before.")
        app = Workbench(tiny, text=TEXT, memory=memory)
        assert app.session.model.memory is memory
        assert app.controls.memory.value == app.state.memory == memory.slug
        app.state.tab = "memory"
        assert [item.text for item in memory.store] == ["From before."]
        app.tabs["memory"].inspector.write_item("From the app.")
        assert [item.text for item in memory.store][-1] == "From the app."
        assert app.status.error == ""
    app = Workbench(tiny, text=TEXT)
    app.choose(memory=memory)
    assert app.session.model.memory is memory
    app.state.memory = "none"
    assert app.session.model.memory is None
    before = app.state.as_dict()
    app.choose(memory=object())
    assert "StoreMemory" in app.status.error
    assert app.state.as_dict() == before


def test_settings_of_a_living_memory_keep_its_store(tiny):
    memory = Flat(encoder="tfidf", k=2)
    memory.write("From before.")
    app = Workbench(tiny, text=TEXT, memory=memory)
    assert app.state.settings == {"k": 2}
    app.state.settings = {"k": 3}
    assert app.session.model.memory.k == 3
    assert app.session.model.memory.store is memory.store


# -- asking and generating --------------------------------------------------------------------------------------------


def test_generation_shows_what_was_pasted_and_nothing_on_request(app):
    app.state.tab = "generation"
    tab = app.tabs["generation"]
    assert [label for label, _ in tab.source.options] == ["nothing", "what the memory finds"]
    assert tab.source.value == "fed"
    tab.length.value = 3
    tab.go.click()
    assert "type a prompt" in app.status.error
    tab.prompt.value = "Where is the lamp of Ben?"
    tab.go.click()
    assert app.status.error == ""
    assert "The lamp of Ben stands on the desk." in tab.pasted.value
    assert "direct" in tab.pasted.value
    assert tab.pasted.value in app.static()
    assert len(texts(app)) == 3, "what is generated is not written"
    tab.source.value = "nothing"
    tab.go.click()
    assert tab.pasted.value == ""
    assert "memory none" in tab.rate.value
    app.state.memory = "streaming"
    app.state.tab = "generation"
    assert [label for label, _ in tab.source.options] == ["nothing", "the text, through the memory"]


def test_what_is_pasted_is_escaped():
    from workbench.memory.stores.base import Reading, Recalled
    from workbench.models.through_store import Pasted

    bad = "<script>alert(1)</script>"
    html = pasted_html(Pasted(bad, bad, Reading(bad, (Recalled(1, bad, 0.5),), 3, bad)))
    assert "<script" not in html
    assert pasted_html(None) == ""


def test_the_timeline_compares_two_moments(app):
    app.session.model.memory.store.update(2, text="The lamp is out.", why="by a test")
    app.state.tab = "timeline"
    history = app.tabs["timeline"].history
    app.state.compared = 2
    assert "The lamp is out." in history.changes.value
    assert "<b>update</b> of #2" in history.event.value
    history.moment.value = 0
    assert app.state.moment == 0
    assert "1 items held after event 0" in history.changes.value
    assert app.static().count("wb-word") >= 2


def test_the_code_strip_runs_and_does_the_same(app):
    inspector = app.tabs["memory"].inspector
    inspector.read("Where is the key?")
    inspector.choose(2)
    inspector.text.value = "The lamp is gone."
    inspector.save.click()
    app.tabs["memory"].more.click()
    inspector.undo.click()
    app.state.tab = "timeline"
    app.tabs["generation"].prompt.value, app.tabs["generation"].length.value = "Where is the lamp?", 2
    app.state.tab = "generation"
    app.tabs["generation"].go.click()
    assert app.status.error == ""
    space: dict = {}
    exec("\n".join(app.code.lines), space)
    assert [item.text for item in space["model"].memory.store] == texts(app)
    assert [e.kind for e in space["model"].memory.events()] == [e.kind for e in app.session.model.memory.events()]


def test_a_state_with_a_file_is_saved_and_opened(app, tmp_path):
    path = str(tmp_path / "kept.db")
    Store(path, encoder="tfidf").add("Kept.", kind="piece")
    app.state.settings = {"path": path, "k": 2}
    app.save(tmp_path / "state.zip")
    twin = Workbench.open(tmp_path / "state.zip")
    assert twin.state.as_dict() == app.state.as_dict()
    assert texts(twin) == ["Kept."]

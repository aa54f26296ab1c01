"""StoreView: what is shown is what the memory holds, what is done here is done there, errors change nothing."""

from __future__ import annotations

import pytest

from workbench.errors import BadInput
from workbench.memory.durable import Store
from workbench.memory.retrieval import HashedTfidf
from workbench.memory.stores.a_mem import AMem
from workbench.memory.stores.flat import Flat
from workbench.widgets import StoreView
from workbench.widgets.store_history import difference
from workbench.widgets.store_inspector import PAGE, edited

TEXTS = [f"Person {n} keeps the key in drawer {n}." for n in range(40)]


def memory(count: int = 40) -> Flat:
    made = Flat(encoder=HashedTfidf(dim=512), k=5)
    made.write_many(TEXTS[:count])
    return made


@pytest.fixture
def view() -> StoreView:
    return StoreView(memory())


def shown(view: StoreView) -> list[int]:
    return [row["id"] for row in view.inspector.items.rows]


def picture(view: StoreView) -> tuple:
    """What the memory holds and what the view chose."""
    store = view.memory.store
    return store.contents().to_json(), len(store.events()), view.inspector.item, view.inspector.start, shown(view)


# -- leafing ----------------------------------------------------------------------------------------------------------


def test_one_page_travels_and_the_buttons_leaf(view):
    inspector = view.inspector
    assert shown(view) == list(range(1, PAGE + 1))
    assert inspector.first.disabled
    inspector.next.click()
    assert shown(view) == list(range(PAGE + 1, 2 * PAGE + 1))
    assert view.code.lines[-1] == f"memory.contents(start={PAGE}, count={PAGE})"
    inspector.last.click()
    assert shown(view) == list(range(2 * PAGE + 1, 41))
    assert inspector.next.disabled
    inspector.previous.click()
    inspector.first.click()
    assert shown(view)[0] == 1
    inspector.items._handle_custom_msg({"page": 1}, [])
    assert shown(view)[0] == PAGE + 1
    assert inspector.items.label == f"items held {PAGE + 1} to {2 * PAGE} of 40"


def test_a_shorter_memory_moves_the_page_back(view):
    view.inspector.last.click()
    view.inspector.empty.click()
    assert shown(view) == []
    assert view.inspector.start == 0
    view.inspector.undo.click()
    assert len(view.memory) == 40
    assert shown(view)[0] == 1


def test_long_texts_are_cut_in_the_table_and_whole_in_the_editor(view):
    view.memory.write("word " * 500)
    view.refresh()
    view.inspector.last.click()
    assert max(len(cell) for cell in view.inspector.items.rows[-1]["cells"]) < 200
    view.inspector.choose(41)
    assert view.inspector.text.value == "word " * 500


# -- asking -----------------------------------------------------------------------------------------------------------


def test_a_question_shows_the_reading_and_its_line_of_code(view):
    reading = view.ask("Who keeps the key in drawer 7?")
    assert reading.ids[0] == 8
    assert [row["id"] for row in view.inspector.found.rows] == reading.ids
    assert "direct" in view.inspector.found.rows[0]["cells"]
    assert view.code.lines[-1] == "memory.read('Who keeps the key in drawer 7?').frame()"
    rows = view.inspector.why._live.chart.to_dict()["datasets"]
    assert any(row.get("id") == 8 for name in rows for row in rows[name])


def test_after_an_edit_the_same_question_says_what_moved(view):
    before = view.ask("drawer 7").ids
    assert before[0] == 8
    view.inspector.choose(8)
    view.inspector.text.value = "Person 7 keeps nothing at all."
    view.inspector.save.click()
    assert view.memory.store.get(8).text == "Person 7 keeps nothing at all."
    assert "ask again" in view.inspector.told.value
    view.inspector.ask.click()
    frame = view.inspector.reading_frame()
    assert list(frame.columns)[:3] == ["rank", "was", "id"]
    assert frame["id"][0] != 8
    known = {item: str(rank) for rank, item in enumerate(before, 1)}
    assert list(frame["was"]) == [known.get(item, "new") for item in frame["id"]]
    view.ask("another question")
    assert "was" not in view.inspector.reading_frame()


# -- changing ---------------------------------------------------------------------------------------------------------


def test_delete_bring_back_and_undo_reach_the_store(view):
    inspector, store = view.inspector, view.memory.store
    inspector.items.selected = 3
    assert inspector.text.value == TEXTS[2]
    inspector.delete.click()
    assert 3 not in store
    assert "forgotten" in inspector.heading.value
    assert inspector.text.disabled
    inspector.which.value = "forgotten items"
    assert shown(view) == [3]
    inspector.restore.click()
    assert 3 in store
    assert shown(view) == []
    inspector.undo.click()
    assert 3 not in store
    assert "taken back: evict of #3" in inspector.told.value or "taken back" in inspector.told.value
    assert [event.why for event in store.events() if event.why.endswith("by hand")] == [
        "deleted by hand",
        "brought back by hand",
    ]


def test_writing_goes_to_the_page_of_the_new_item(view):
    view.inspector.new.value = "A new thing."
    view.inspector.write.click()
    assert view.memory.store.get(41).text == "A new thing."
    assert shown(view)[-1] == 41
    assert view.inspector.item == 41
    assert "41 items" in view._header.value


def test_tags_and_an_index_text_that_holds_the_text_follow_an_edit():
    made = AMem(store=Store(encoder="tfidf"))
    made.write("Ada owns a parrot.")
    view = StoreView(made)
    view.inspector.choose(1)
    view.inspector.text.value, view.inspector.tags.value = "Ada owns a tortoise.", "pets, Ada"
    view.inspector.save.click()
    item = made.store.get(1)
    assert item.tags == ("pets", "Ada")
    assert "tortoise" in item.index_text
    assert "Ada owns a parrot." not in item.index_text
    assert not item.stale
    assert edited(item, item.text, "pets, Ada") == {}


def test_every_line_of_code_runs_and_does_the_same(view):
    inspector = view.inspector
    view.ask("drawer 3")
    inspector.choose(5)
    inspector.text.value, inspector.tags.value = "Changed.", "one, two"
    inspector.save.click()
    inspector.delete.click()
    inspector.restore.click()
    inspector.new.value = "Written."
    inspector.write.click()
    inspector.undo.click()
    inspector.empty.click()
    inspector.undo.click()
    twin = memory()
    for line in view.code.lines:
        exec(line, {"memory": twin})
    kept = ["id", "text", "tags", "links", "strength"]
    assert twin.contents()[kept].equals(view.memory.contents()[kept])
    assert [event.kind for event in twin.events()] == [event.kind for event in view.memory.events()]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda i: i.read("  "), "the query is empty"),
        (lambda i: i.choose(4000), "no item 4000"),
        (lambda i: i.write_item(" "), "text is empty"),
        (lambda i: i.save_item(), "no item -1"),
        (lambda i: i.delete_item(), "no item -1"),
    ],
)
def test_errors_stand_in_the_strip_and_change_nothing(view, act, message):
    before = picture(view)
    act(view.inspector)
    assert message in view.status.error
    assert picture(view) == before
    view.inspector.next.click()
    assert view.status.error == ""


def test_an_edit_that_the_store_refuses_leaves_the_item(view):
    view.inspector.choose(2)
    before = picture(view)
    view.inspector.text.value = "  "
    view.inspector.save.click()
    assert "text is empty" in view.status.error
    assert picture(view) == before


def test_nothing_to_save_and_nothing_to_undo_are_told():
    view = StoreView(Flat(encoder="tfidf"))
    view.inspector.undo.click()
    assert "nothing left to take back" in view.status.error
    view.inspector.new.value = "One."
    view.inspector.write.click()
    view.inspector.save.click()
    assert "nothing was changed" in view.status.error


def test_only_memories_of_items_are_shown():
    from workbench.memory.cache.streaming import StreamingCache

    with pytest.raises(BadInput, match="StreamingCache"):
        StoreView(StreamingCache())


def test_asking_in_code_raises(view):
    with pytest.raises(BadInput, match="query is empty"):
        view.ask("")


# -- the past ---------------------------------------------------------------------------------------------------------


def test_two_moments_differ_in_what_came_left_and_was_edited():
    made = memory(3)
    made.store.update(2, text="Edited.")
    made.store.delete(1)
    made.write("New.")
    events = list(made.events())
    rows, count = difference(made, events, 2, len(events) - 1)
    assert count == {"came": 1, "left": 1, "touched": 1, "held": 3}
    told = {(row.change, row.id, row.field): (row.before, row.now) for row in rows.itertuples()}
    assert told[("changed", 2, "text")] == (TEXTS[1], "Edited.")
    assert told[("left", 1, "")] == (TEXTS[0], "")
    assert told[("came", 4, "")] == ("", "New.")
    back, count = difference(made, events, len(events) - 1, 2)
    assert count == {"came": 1, "left": 1, "touched": 1, "held": 3}
    assert set(back["change"]) == {"changed", "came", "left"}


def test_the_past_is_scrubbed(view):
    view.memory.store.update(2, text="Edited.", why="by a test")
    view._pages.selected_index = 1
    history = view.history
    assert view.status.error == ""
    assert history.moment.value == history.moment.max == 40
    assert "<b>update</b> of #2" in history.event.value
    assert "Edited." in history.changes.value
    history.moment.value = 3
    assert view.moment == 3
    assert "4 items held after event 3" in history.changes.value
    history.compared.value = -1
    assert "4 came" in history.changes.value


def test_a_long_log_is_drawn_by_its_last_events():
    made = Flat(encoder=HashedTfidf(dim=64))
    made.write_many(f"note {n}" for n in range(4200))
    view = StoreView(made)
    view._pages.selected_index = 1
    assert view.status.error == ""
    assert "the last 300 of 4,200 events" in view.history.log.value
    assert len(view.inspector.items.rows) == PAGE


def test_texts_are_escaped_everywhere():
    made = Flat(encoder="tfidf")
    made.write("<script>alert(1)</script> key")
    view = StoreView(made)
    view.ask("key")
    view.memory.store.update(1, text="<script>alert(2)</script> key")
    view._pages.selected_index = 1
    for value in (view.static(), view.history.changes.value, view.history.event.value, view.inspector.told.value):
        assert "<script" not in value


# -- the picture without a kernel -------------------------------------------------------------------------------------


def test_the_static_picture_holds_the_page_and_the_reading(view):
    view.ask("drawer 7")
    html = view.static()
    assert f"wb-static-{view.id}" in html
    assert TEXTS[0] in html
    assert "given back for" in html
    assert view.code.app_id == view.id


def test_every_control_has_a_label_and_a_tooltip(view):
    import ipywidgets as w

    kinds = (w.Button, w.Text, w.Textarea, w.Dropdown, w.IntSlider, w.BoundedIntText)
    queue, unlabelled = [view.view], []
    while queue:
        item = queue.pop()
        queue += list(getattr(item, "children", ()))
        if isinstance(item, kinds) and not (item.description and item.tooltip):
            unlabelled.append(repr(item)[:80])
    assert unlabelled == []

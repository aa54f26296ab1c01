"""The tabs: what they show, that it is right, and that the code strip's lines do the same."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import BadInput, BundleError
from workbench.widgets import Workbench
from workbench.widgets.app_parts import levels
from workbench.widgets.app_state import TABS
from workbench.widgets.app_tab import bytes_text, table
from workbench.widgets.app_tabs_maps import cosine
from workbench.widgets.app_tabs_memory import stored, stream_html

TEXT = "The key lies under the mat.\nThe lamp stands on the desk.\nThe boat waits at the pier.\n"


@pytest.fixture
def app(tiny) -> Workbench:
    return Workbench(tiny, text=TEXT)


def visit(app: Workbench, *tabs: str) -> None:
    for tab in tabs:
        app.state.tab = tab
        assert app.status.error == "", tab


def test_every_tab_draws_and_has_a_static_picture(app):
    app.state.memory = "streaming"
    visit(app, *TABS)
    for name in ("heads", "microscope", "similarity"):
        app.state.tab = name
        assert '<img alt="' in app.static()
        assert "data:image/png;base64," in app.static()
    app.state.tab = "memory"
    assert "<table" in app.static()
    assert app.id in app.static()


def no_loop():
    raise RuntimeError("no running event loop")


def test_the_picture_under_the_app_is_replaced_when_the_app_changes(app, monkeypatch):
    shown = []
    monkeypatch.setattr("workbench.widgets.still.warm_up", lambda: None)
    monkeypatch.setattr("workbench.widgets.still.asyncio.get_running_loop", no_loop)  # a browser test may have left one
    monkeypatch.setattr("IPython.display.display", lambda *what, **_: shown.append(what) or Handle())

    class Handle:
        def update(self, what):
            shown.append((what,))

    app._ipython_display_()
    assert shown[0] == (app.view,)
    first = shown[1][0].data
    app.state.head = 3
    assert shown[-1][0].data != first
    assert f"wb-static-{app.id}" in first
    assert app.code.app_id == app.id


def test_thumbnails_are_the_pooled_maps(app):
    picker, trace = app.tabs["heads"].picker, app.session.trace
    side = picker.size
    sent = np.frombuffer(picker.levels, np.uint8).reshape(3, 4, side, side)
    assert np.array_equal(sent[1], levels(trace.map(1, None, size=side).numpy()))
    assert sent.max() == 255
    assert len(picker.palette) == 768


def test_the_big_map_is_the_heads_attention(app):
    app.state.layer, app.state.head = 2, 1
    exact = app.session.trace.region(2, 1, slice(None), slice(None)).numpy()
    assert np.allclose(app.tabs["heads"].map.tile().values, exact, atol=1e-6)


def test_the_token_strip_carries_surprise_in_nats(app):
    strip, trace = app._tokens.strip, app.session.trace
    assert strip.tokens == trace.tokens[0]
    assert np.allclose(np.frombuffer(strip.values, np.float32), trace.surprise[0].numpy(), equal_nan=True)
    assert strip.unit == "nats"


def test_a_long_text_shows_the_tokens_around_the_kept_one(app, monkeypatch):
    monkeypatch.setattr("workbench.widgets.app_tokens.MOST", 20)
    app.state.token = 45
    strip = app._tokens.strip
    assert len(strip.tokens) == 20
    assert strip.start <= 45 < strip.start + 20
    assert strip.tokens[45 - strip.start] == app.session.tokens()[45]


def test_the_microscope_says_the_cost_before_anything_runs(app, monkeypatch):
    visit(app, "microscope")
    microscope = app.tabs["microscope"]
    reads = app.session.reads
    microscope.source.value = 16384
    assert "16,384 tokens. Predicted" in microscope.cost.value
    assert "made for 512 positions" in microscope.cost.value
    assert app.session.reads == reads
    assert tuple(microscope.map.shape) == (len(app.session.tokens()),) * 2


def test_the_microscope_reads_a_book_and_the_mean_of_heads(app, monkeypatch):
    monkeypatch.setattr("workbench.widgets.app_tabs_maps.held_out", lambda n: "It was a dark night. " * (n // 20))
    visit(app, "microscope")
    microscope = app.tabs["microscope"]
    microscope.source.value = 512
    microscope.show.click()
    assert app.status.error == ""
    assert tuple(microscope.map.shape) == (512, 512)
    microscope.head.value = "mean"
    assert "mean of all heads" in microscope.map.title
    trace = microscope._trace
    wanted = trace.region(0, None, slice(0, 9), slice(0, 9)).numpy().mean(0)
    assert np.allclose(microscope.map.tile((0, 9), (0, 9)).values, wanted, atol=1e-6)
    microscope.source.value = 8192
    microscope.show.click()
    assert tuple(microscope.map.shape) == (8192, 8192)


def test_similarity_is_cosine(app):
    visit(app, "similarity")
    first, second = app.session.trace.hidden[1][0].numpy(), app.session.trace.hidden[3][0].numpy()
    app.state.similar = [1, 3]
    tab = app.tabs["similarity"]
    tab.centre.value = False
    wanted = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first]
    assert np.allclose(tab.map.tile().values, wanted, atol=1e-5)
    assert tab.map.title == "after layer 0 × after layer 2"


def test_cosine_refuses_what_does_not_fit_and_blanks_zero_rows():
    with pytest.raises(BadInput, match="one width"):
        cosine(np.ones((2, 3)), np.ones((2, 4)))
    assert np.isnan(cosine(np.zeros((1, 3)), np.ones((1, 3)), centred=False)).all()


def test_the_memory_tab_shows_what_the_memory_says(app):
    app.state.memory = "sirllm"
    frame = app.session.model.memory.contents()
    shown = app.tabs["memory"].table.value
    assert shown.count("<tr>") == len(frame) + 1
    assert "entropy" in shown or "surprise" in shown
    assert "wb-bar-cell" in shown


def test_events_are_shown_with_their_text_and_a_question_is_refused_clearly(app):
    app.state.memory = "em-llm"
    memory, shown = app.session.model.memory, app.tabs["memory"].table.value
    assert len(memory.stored) > 0
    assert shown.count("<tr>") == len(memory.contents()) + 1
    first = app.session.model.decode(memory.stored[0].token_ids.tolist()).split()[1]
    assert first in shown
    app.tabs["memory"].question.value = "Where is the key?"
    app.tabs["memory"].ask.click()
    assert "no slots of its cache" in app.status.error


def test_a_question_shows_which_slots_it_reads_and_changes_nothing(app):
    app.state.memory, app.state.layer = "streaming", 1
    tab, memory = app.tabs["memory"], app.session.model.memory
    held = memory.contents()
    tab.ask.click()
    assert "the question is empty" in app.status.error
    tab.question.value = "Where is the key?"
    tab.ask.click()
    assert app.status.error == ""
    assert memory.contents().equals(held)
    probe = app.session.model.trace("Where is the key?")
    count = stored(probe, 1)
    assert 0 < count <= len(held), "the question itself needs room, so that some slots are given up for it"
    assert set(probe.layer(1).key_positions[0, :count].tolist()) <= set(held["position"])
    rows = tab.reading._live.chart.to_dict()["datasets"]
    mass = [row["mass"] for name in rows for row in rows[name] if row.get("head") == 2 and "mass" in row]
    assert np.allclose(mass[:count], probe.region(1, 2, slice(None), slice(0, count)).mean(0))
    words = [row["token"] for name in rows for row in rows[name] if row.get("head") == 0 and "token" in row]
    assert len(words) >= count


def test_the_timeline_scrubs_and_compares(app):
    app.state.memory = "streaming"
    visit(app, "timeline")
    tab, events = app.tabs["timeline"], app.session.model.memory.events()
    last = len(events) - 1
    assert tab.moment.max == last == tab.moment.value
    tab.compared.value = 0
    assert f"{len(events.diff(0, last)['left'])} left" in tab.stream.value
    tab.moment.value = 0
    assert app.state.moment == 0
    assert f"{len(events.held(0))} tokens held" in tab.stream.value
    assert "event 0: <b>write</b>" in tab.event.value
    tab.compared.value = -1
    assert f"{len(events.held(0))} came" in tab.stream.value


def test_timeline_words_are_escaped(app):
    app.state.text = "a <script>alert(1)</script> b\n" * 6
    app.state.memory = "streaming"
    visit(app, "timeline")
    assert "<script" not in app.tabs["timeline"].stream.value.lower()
    visit(app, "memory")
    assert "<script" not in app.tabs["memory"].table.value.lower()


def test_an_empty_log_is_an_error_that_says_what_to_do():
    from workbench.memory.base import EventLog

    with pytest.raises(BadInput, match="feed it a text"):
        stream_html([], EventLog(), -1, -1)


def test_generation_streams_and_continues_what_was_fed(app):
    tab = app.tabs["generation"]
    tab.length.value = 5
    seen = []
    tab.out.observe(lambda change: seen.append(change.new), "value")
    tab.go.click()
    assert app.status.error == ""
    assert len(set(seen)) >= 2, "the text must grow while it is written"
    assert "tokens/s" in tab.rate.value
    tab.source.value = "fed"
    tab.go.click()
    assert "type a prompt" in app.status.error
    tab.prompt.value = "The key"
    tab.go.click()
    assert "no memory is chosen" in app.status.error
    app.state.memory = "streaming"
    tab.go.click()
    assert app.status.error == ""
    assert app.session.model.memory.get_seq_length() > len(app.session.tokens())
    assert len(app.session.stream) == app.session.model.memory.get_seq_length()
    visit(app, "timeline")
    assert app.tabs["timeline"].stream.value.count("<span") > len(app.session.tokens())


def test_the_proof_names_every_kernel(app):
    visit(app, "proof")
    for kernel in app.session.model.kernels():
        assert f"<td>{kernel}</td>" in app.tabs["proof"].table.value


def test_the_code_strip_runs_and_does_the_same(app):
    app.state.kernel = "flash-attention"
    app.state.layer, app.state.head = 1, 2
    app.state.memory = "streaming"
    visit(app, "memory", "timeline", "similarity", "microscope", "proof", "heads")
    app.tabs["generation"].length.value = 3
    app.tabs["generation"].go.click()
    space: dict = {}
    exec("\n".join(app.code.lines), space)
    assert space["model"].attention == "flash-attention"
    assert repr(space["model"].memory) == repr(app.session.model.memory)
    assert space["trace"].tokens == app.session.trace.tokens
    assert len(space["model"].memory.contents()) == len(app.session.model.memory.contents())


def test_a_state_is_saved_and_opened_elsewhere(app, tmp_path):
    app.state.kernel, app.state.memory = "eager", "sirllm"
    app.state.settings = {"budget": 50, "eta": 0.9}
    app.state.layer, app.state.head, app.state.token, app.state.tab = 2, 3, 6, "similarity"
    app.save(tmp_path / "state.zip")
    twin = Workbench.open(tmp_path / "state.zip")
    assert twin.state.as_dict() == app.state.as_dict()
    assert repr(twin.session.model.memory) == repr(app.session.model.memory)
    assert twin.tabs["similarity"].map.title == app.tabs["similarity"].map.title


def test_a_bundle_of_another_version_changes_nothing(app, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.models.bundle.VERSION", 99)
    path = app.save(tmp_path / "new")
    monkeypatch.undo()
    before = app.state.as_dict()
    with pytest.raises(BundleError, match="99"):
        Workbench.open(path)
    row = app.view.children[-2].children
    row[0].value = str(path)
    row[2].click()
    assert "99" in app.status.error
    assert app.state.as_dict() == before


def test_a_bundle_of_something_else_is_refused(app, tmp_path):
    from workbench.models.bundle import save_bundle

    path = save_bundle(tmp_path / "other", {"kind": "something"})
    with pytest.raises(BundleError, match="not one of the Workbench app"):
        Workbench.open(path)
    with pytest.raises(BundleError):
        Workbench.open(tmp_path / "absent")


def test_saving_where_nothing_can_be_written_is_an_error_in_the_strip(app, tmp_path):
    (tmp_path / "file").write_text("no folder")
    row = app.view.children[-2].children
    row[0].value = str(tmp_path / "file" / "state")
    row[1].click()
    assert "cannot write" in app.status.error


def test_small_helpers():
    import pandas as pd

    assert [bytes_text(n) for n in (12, 1500, 2_500_000, 3e9)] == ["12 B", "1.5 KB", "2.5 MB", "3.0 GB"]
    shown = table(pd.DataFrame({"a<b": [1.0, float("nan")], "c": [[1] * 20, None]}), most=1)
    assert "a&lt;b" in shown
    assert "1 more rows" in shown
    assert "(20)" in shown


def test_the_page_is_a_notebook_that_makes_the_app():
    import nbformat

    from workbench.widgets import app_page_path

    page = nbformat.read(app_page_path(), as_version=4)
    assert any("Workbench()" in cell.source for cell in page.cells if cell.cell_type == "code")
    assert all(not cell.get("outputs") for cell in page.cells)


def test_a_click_on_another_layer_and_head_is_one_choice(app):
    """The browser sends both in one message; drawing after the first would set the picker back to the old head."""
    app.state.layer, app.state.head = 0, 0
    app.tabs["heads"].picker.set_state({"layer": 2, "head": 3})
    assert (app.state.layer, app.state.head) == (2, 3)
    assert (app.tabs["heads"].picker.layer, app.tabs["heads"].picker.head) == (2, 3)
    drawn = [line for line in app.code.lines if line.startswith("trace.map(")]
    assert drawn[-1].startswith("trace.map(2, 3")
    assert not [line for line in drawn if line.startswith("trace.map(2, 0")]


def test_a_slow_map_shows_how_far_it_is(app, monkeypatch):
    """The bar under the canvas moves while a map that is predicted to take long is computed, and is gone afterwards."""
    monkeypatch.setattr("workbench.widgets.app_tabs_maps.held_out", lambda n: "It was a dark night. " * (n // 20))
    monkeypatch.setattr("workbench.widgets.app_tabs_maps.SHOW_AFTER_SECONDS", 0.0)
    visit(app, "microscope")
    microscope = app.tabs["microscope"]
    microscope.source.value = 4096
    microscope.show.click()
    seen = []
    app.status.observe(lambda change: seen.append((app.status.message, change.new)), "fraction")
    microscope.map.tile((0, 4096), (0, 4096), (64, 64))
    moving = [fraction for message, fraction in seen if message.startswith("a map, predicted")]
    assert moving == sorted(moving)
    assert moving[-1] == 1.0
    assert len(moving) > 3
    assert (app.status.message, app.status.fraction) == ("", -1.0)

"""The app with the caches whose subject is where tokens lie: their tables, logs, settings and questions."""

from __future__ import annotations

import pytest

from workbench.systems.page_backends import missing
from workbench.widgets.app import Workbench

TEXT = "Anna put the key under the mat.\nBen took the lamp.\nThe key lies under the mat.\n"


@pytest.fixture
def app(tiny) -> Workbench:
    return Workbench(tiny, text=TEXT)


@pytest.mark.parametrize("name", ["vattention", "paged"])
def test_pages_are_shown_like_any_memory(app, name):
    if name == "vattention" and missing("demand"):
        pytest.skip(str(missing("demand")))
    app.state.memory, app.state.tab = name, "memory"
    assert app.status.error == ""
    shown = app.tabs["memory"].table.value
    assert all(column in shown for column in ("physical page ids", "waste bytes", "source"))
    assert "slots hold" in app.tabs["memory"].summary.value
    app.state.tab = "timeline"
    assert app.status.error == ""
    assert app.tabs["timeline"].moment.max == len(app.session.model.memory.events()) - 1
    app.state.tab = "memory"
    tab, held = app.tabs["memory"], app.session.model.memory.contents()
    tab.question.value = "Where is the key?"
    tab.ask.click()
    assert app.status.error == ""
    after = app.session.model.memory.contents()
    assert after[["slot", "len", "needed blocks"]].equals(held[["slot", "len", "needed blocks"]])


def test_the_page_size_is_a_setting(app):
    if reason := missing("demand"):
        pytest.skip(reason)
    app.state.memory = "vattention"
    app.state.settings = {**app.state.settings, "page_kib": 4}
    assert app.status.error == ""
    assert app.session.model.memory.kv.geometry.group_bytes == 4096
    app.state.settings = {**app.state.settings, "page_kib": 5}
    assert "multiple of" in app.status.error

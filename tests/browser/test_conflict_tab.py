"""The conflict tab in a real JupyterLab: find heads, tick them, read who wins."""

from __future__ import annotations

import drive
import pytest
from conftest import shoot
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def app(browser, lab):
    with drive.app_page(browser, lab, "conflict.ipynb", drive.APP) as opened:
        yield opened


def test_heads_are_found_ticked_and_unticked(app):
    app.tab("Conflict")
    app.press("Find heads")
    expect(app.box.locator(".wb-note", has_text="Blue heads bring")).to_be_visible()
    app.press("Tick context heads")
    expect(app.box.locator(".wb-plane-head", has_text="✕").first).to_be_visible()
    expect(app.last_line).to_contain_text("with prune(model, [(")
    expect(app.box.locator(".wb-note", has_text="Won by")).to_contain_text("after")
    expect(app.box.locator(".vega-embed svg, .vega-embed canvas").locator("visible=true").first).to_be_visible()
    assert app.error.text_content() == ""
    app.settle()
    shoot(app.box, "app-conflict")
    app.press("Untick all")
    expect(app.box.locator(".wb-plane-head", has_text="✕")).to_have_count(0)
    app.box.locator(".wb-plane-head", has_text="7.7").click()
    expect(app.box.get_by_label("Silenced")).to_have_value("7.7")
    assert drive.errors(app.page) == []

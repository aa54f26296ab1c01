"""The conflict tab in a real JupyterLab: find heads, tick them, read who wins."""

from __future__ import annotations

import drive
import pytest
from conftest import shoot, watched_page
from playwright.sync_api import expect
from test_store_app import APP, notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def app(browser, lab):
    expect.set_options(timeout=60_000)
    with watched_page(browser) as page:
        drive.open_in_lab(page, lab, notebook(lab, "conflict.ipynb", APP))
        drive.run_all(page)
        assert drive.errors(page) == []
        yield drive.App(page)
    expect.set_options(timeout=5_000)


def press(app, name: str) -> None:
    app.box.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def test_heads_are_found_ticked_and_unticked(app):
    app.tab("Conflict")
    press(app, "Find heads")
    expect(app.box.locator(".wb-note", has_text="Blue heads bring")).to_be_visible()
    press(app, "Tick context heads")
    expect(app.box.locator(".wb-plane-head", has_text="✕").first).to_be_visible()
    expect(app.last_line).to_contain_text("with prune(model, [(")
    expect(app.box.locator(".wb-note", has_text="Won by")).to_contain_text("after")
    expect(app.box.locator(".vega-embed svg, .vega-embed canvas").locator("visible=true").first).to_be_visible()
    assert app.error.text_content() == ""
    app.settle()
    shoot(app.box, "app-conflict")
    press(app, "Untick all")
    expect(app.box.locator(".wb-plane-head", has_text="✕")).to_have_count(0)
    app.box.locator(".wb-plane-head", has_text="7.7").click()
    expect(app.box.get_by_label("Silenced")).to_have_value("7.7")
    assert drive.errors(app.page) == []

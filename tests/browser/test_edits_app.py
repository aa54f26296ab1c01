"""Edits in a real JupyterLab: one is written into the embedded model, listed, kept in a bundle, taken back."""

from __future__ import annotations

import drive
import pytest
from conftest import shoot
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def app(browser, lab):
    with drive.app_page(browser, lab, "edits.ipynb", drive.APP) as opened:
        yield opened


def write(app, label: str, text: str) -> None:
    box = app.box.get_by_label(label, exact=True).locator("visible=true")
    box.fill(text)
    box.press("Enter")


def test_an_edit_is_made_listed_kept_and_taken_back(app):
    app.choose("Memory", "wise")
    expect(app.box.locator(".wb-note:visible", has_text="No edit yet in wise")).to_be_visible()
    app.settle()
    shoot(app.box, "app-edits-empty")
    write(app, "Prompt", "The lamp of Ben stands on the")
    write(app, "New answer", "roof")
    write(app, "Paraphrase", "On what stands the lamp of Ben? On the")
    app.press("Edit the model")
    expect(app.box.locator(".wb-note:visible", has_text="1 edit in wise")).to_be_visible()
    rows = app.box.locator(".wb-table:visible tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("The lamp of Ben stands on the")
    expect(rows).to_contain_text("roof")
    assert app.error.text_content() == ""
    app.settle()
    shoot(app.box, "app-edits")
    write(app, "Bundle", "edited.wb")
    app.press("Save state")
    app.settle()
    app.press("Take the last one back")
    expect(rows).to_have_count(0)
    app.press("Open state")
    expect(rows).to_have_count(1)
    assert app.error.text_content() == ""
    app.press("Take the last one back")
    expect(rows).to_have_count(0)
    assert drive.errors(app.page) == []

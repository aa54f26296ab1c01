"""Edits in a real JupyterLab: one is written into the embedded model, listed, kept in a bundle, taken back."""

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
        drive.open_in_lab(page, lab, notebook(lab, "edits.ipynb", APP))
        drive.run_all(page)
        assert drive.errors(page) == []
        yield drive.App(page)
    expect.set_options(timeout=5_000)


def press(app, name: str) -> None:
    app.box.get_by_role("button", name=name, exact=True).locator("visible=true").click()


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
    press(app, "Edit the model")
    expect(app.box.locator(".wb-note:visible", has_text="1 edit in wise")).to_be_visible()
    rows = app.box.locator(".wb-table:visible tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("The lamp of Ben stands on the")
    expect(rows).to_contain_text("roof")
    assert app.error.text_content() == ""
    app.settle()
    shoot(app.box, "app-edits")
    write(app, "Bundle", "edited.wb")
    press(app, "Save state")
    app.settle()
    press(app, "Take the last one back")
    expect(rows).to_have_count(0)
    press(app, "Open state")
    expect(rows).to_have_count(1)
    assert app.error.text_content() == ""
    press(app, "Take the last one back")
    expect(rows).to_have_count(0)
    assert drive.errors(app.page) == []

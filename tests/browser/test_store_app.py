"""Memories of items in a real JupyterLab: leaf, ask, edit, take back, scrub, generate; and StoreView alone."""

from __future__ import annotations

import re

import drive
import pytest
from conftest import shoot, watched_page
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

VIEW = """
from workbench.memory.retrieval import HashedTfidf
from workbench.memory.stores.flat import Flat
from workbench.widgets import StoreView

memory = Flat(encoder=HashedTfidf(dim=1024), k=4)
memory.write_many([f"Person {n} keeps key {n} in drawer {n % 7}." for n in range(20_000)])
view = StoreView(memory)
view
"""


@pytest.fixture(scope="module")
def app(browser, lab):
    with watched_page(browser) as page:
        drive.open_in_lab(page, lab, drive.notebook(lab, "stores.ipynb", drive.APP))
        drive.run_all(page)
        assert drive.errors(page) == []
        yield drive.App(page)


def open_alone(page, lab, name: str) -> None:
    """In a workspace of its own: JupyterLab would bring the notebook of the tests above back beside it."""
    page.goto(lab.url(f"lab/workspaces/{name.split('.')[0]}/tree/{name}"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")


def rows(box, label: str):
    return box.get_by_role("grid", name=re.compile(label)).locator("tbody tr")


def field(box, label: str):
    return box.get_by_label(label, exact=True).locator("visible=true")


def press(box, name: str) -> None:
    box.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def test_a_memory_of_items_is_chosen_and_leafed_through(app):
    app.choose("Sample", "notes about people")
    expect(app.header).to_contain_text("tokens")
    app.choose("Memory", "flat")
    expect(app.header).to_contain_text("memory flat")
    expect(rows(app.box, "items held 1 to 15 of")).to_have_count(15)
    first = rows(app.box, "items held").first.inner_text()
    press(app.box, "Next ›")
    expect(rows(app.box, "items held 16 to 30 of")).to_have_count(15)
    expect(rows(app.box, "items held").first).not_to_have_text(first)
    expect(app.error).to_be_hidden()
    shoot(app.box, "store-items")


def test_a_question_shows_what_is_found_and_an_edit_changes_it(app):
    field(app.box, "Ask").fill("Which instrument does Huzo Tornell play?")
    field(app.box, "Ask").press("Enter")
    found = rows(app.box, "given back for")
    expect(found.first).to_contain_text("The instrument of Huzo Tornell is the drum.")
    app.box.locator(".vega-embed:visible canvas, .vega-embed:visible svg").first.wait_for()
    found.first.click()
    text = app.box.get_by_label("Its text")
    expect(text).to_have_value("The instrument of Huzo Tornell is the drum.")
    shoot(app.box, "store-asked")
    text.fill("The instrument of Huzo Tornell is the harp.")
    press(app.box, "Save")
    expect(app.box.get_by_text("ask again to see what it gives back now")).to_be_visible()
    press(app.box, "Ask")
    expect(found.first).to_contain_text("is the harp.")
    expect(app.box.get_by_role("grid", name=re.compile("given back")).locator("th", has_text="was")).to_be_visible()
    expect(app.error).to_be_hidden()


def test_delete_and_undo(app):
    press(app.box, "Delete")
    expect(app.box.get_by_text(re.compile("forgotten", re.I)).locator("visible=true").first).to_be_visible()
    press(app.box, "Ask")
    expect(rows(app.box, "given back for").first).not_to_contain_text("Huzo Tornell is the harp.")
    press(app.box, "Undo")
    expect(app.box.get_by_text("taken back: restore")).to_be_visible()
    press(app.box, "Ask")
    expect(rows(app.box, "given back for").first).to_contain_text("is the harp.")


def test_bad_input_is_shown_and_changes_nothing(app, lab):
    held = app.box.get_by_role("grid", name=re.compile("items held")).inner_text()
    field(app.box, "Item").fill("4000")
    field(app.box, "Item").press("Enter")
    press(app.box, "Open")
    expect(app.error).to_contain_text("no item 4000")
    field(app.box, "Ask").fill("  ")
    press(app.box, "Ask")
    expect(app.error).to_contain_text("the query is empty")
    (lab.folder / "damaged.db").write_bytes(b"SQLite format 3\x00" + b"rubbish" * 200)
    field(app.box, "path").fill("damaged.db")
    field(app.box, "path").press("Enter")
    expect(app.error).to_contain_text("damaged.db")
    expect(field(app.box, "path")).to_have_value("")
    expect(app.header).to_contain_text("memory flat")
    assert app.box.get_by_role("grid", name=re.compile("items held")).inner_text() == held
    shoot(app.box, "store-error")


def test_the_past_is_scrubbed_and_compared(app):
    app.tab("Timeline")
    event = app.box.get_by_text(re.compile(r"^event \d+:")).locator("visible=true")
    expect(event).to_be_visible()
    last = event.inner_text()
    handle = app.box.locator(".widget-slider:visible .noUi-handle").first
    for _ in range(3):
        handle.press("ArrowLeft")
    expect(event).not_to_have_text(last)
    expect(app.box.locator(".wb-diff:visible tbody tr").first).to_contain_text("came")
    expect(app.error).to_be_hidden()
    shoot(app.box, "store-past")


def test_what_was_pasted_is_shown(app):
    app.tab("Generation")
    app.box.get_by_role("textbox", name="Prompt").fill("Which instrument does Huzo Tornell play?")
    app.box.get_by_label("New tokens").fill("6")
    press(app.box, "Generate")
    expect(app.box.locator(".wb-pasted")).to_contain_text("The instrument of Huzo Tornell is the harp.")
    expect(app.box.locator(".wb-generated:visible b")).to_contain_text("harp")
    expect(app.last_line).to_contain_text("pasted.prompt")
    shoot(app.box, "store-generation")


def test_every_mechanism_can_be_chosen(app):
    app.tab("Memory")
    for name in ("a-mem", "memorybank", "hipporag"):
        app.choose("Memory", name)
        expect(app.header).to_contain_text(f"memory {name}")
        expect(rows(app.box, "items held 1 to 15 of")).to_have_count(15)
        field(app.box, "Ask").fill("Who owns a parrot?")
        press(app.box, "Ask")
        expect(rows(app.box, "given back for").first).to_be_visible()
        expect(app.error).to_be_hidden()
        shoot(app.box, f"store-{name}")


def test_store_view_alone_with_twenty_thousand_items(browser, lab):
    """By keyboard, with names that a screen reader can say; then reopened without a kernel."""
    name = drive.notebook(lab, "view.ipynb", VIEW)
    with watched_page(browser) as page:
        open_alone(page, lab, name)
        drive.run_all(page)
        assert drive.errors(page) == []
        box = page.locator(".wb-store")
        held = rows(box, "items held 1 to 15 of 20,000")
        expect(held).to_have_count(15)
        held.first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("PageDown")
        expect(rows(box, "items held 16 to 30 of 20,000")).to_have_count(15)
        press(box, "Last »")
        expect(rows(box, "items held 19,996 to 20,000 of 20,000")).to_have_count(5)
        field(box, "Ask").fill("Person 17777 keeps key 17777 in drawer 4.")
        field(box, "Ask").press("Enter")
        found = rows(box, "given back for")
        expect(found.first).to_contain_text("Person 17777 keeps key 17777")
        found.first.focus()
        page.keyboard.press("Enter")
        expect(box.get_by_label("Its text")).to_have_value("Person 17777 keeps key 17777 in drawer 4.")
        expect(box.locator(".wb-code-row code")).to_contain_text("memory.store.get(17778)")
        expect(box.locator(".wb-error")).to_be_hidden()
        shoot(box, "store-view")
        outputs = drive.save_until(page, lab.folder / name, "given back for")
        still = [str(out["data"].get("text/html", "")) for out in outputs if "data" in out]
        assert any("Person 17777" in html and "wb-static" in html for html in still)
    drive.stop_kernels(lab)
    with watched_page(browser) as page:
        page.route("**/api/sessions*", drive.refuse_new_kernels)
        open_alone(page, lab, name)
        drive.dismiss(page)
        expect(page.get_by_text("Person 17777 keeps key 17777 in drawer 4.").first).to_be_visible()
        expect(page.get_by_text("Loading widget")).to_be_hidden()
        shoot(page, "store-view-without-kernel")

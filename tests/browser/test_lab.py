"""The start notebook in a real JupyterLab: run it, work in the app, save, reopen it without a kernel."""

from __future__ import annotations

import re
import time

import drive
import pytest
from conftest import shoot, watched_page
from PIL import Image
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

NOTEBOOK = "notebooks/00-start-here.ipynb"
#: A quiet machine needs well under a second; this is what a crowded one is given.
SWAP_LIMIT = 10.0
PICTURES = ".jp-OutputArea-output svg, .jp-OutputArea-output img"


@pytest.fixture(scope="module")
def started(browser, lab):
    """The start notebook after Run All Cells; at the end nothing may have been asked of another host."""
    with watched_page(browser) as page:
        drive.open_in_lab(page, lab, NOTEBOOK)
        drive.run_all(page)
        yield page


@pytest.fixture(scope="module")
def app(started) -> drive.App:
    found = drive.App(started)
    found.box.scroll_into_view_if_needed()
    return found


def test_every_cell_ran_without_an_error(started):
    assert drive.errors(started) == []
    expect(started.locator(PICTURES).nth(5)).to_be_attached()
    shoot(started, "start-notebook")


def seconds_to_swap(app, kernel: str) -> float:
    began = time.perf_counter()
    app.choose("Kernel", kernel)
    expect(app.header).to_contain_text(f"kernel {kernel}")
    app.settle()
    return time.perf_counter() - began


def test_a_kernel_is_swapped(app, record_property):
    seconds = seconds_to_swap(app, "flash-attention")
    for _ in range(2):  # what was slow once may have waited for the machine
        if seconds >= SWAP_LIMIT:
            seconds_to_swap(app, "sdpa")
            seconds = seconds_to_swap(app, "flash-attention")
    record_property("swap_to_picture_seconds", round(seconds, 2))
    assert seconds < SWAP_LIMIT
    expect(app.error).to_be_hidden()


def test_clicking_a_head_drives_the_big_map_and_the_code(app):
    app.box.locator('.wb-head[data-head="1:2"]').click()
    expect(app.last_line).to_contain_text("trace.map(1, 2")
    expect(app.box.locator('.wb-head[aria-pressed="true"]')).to_have_attribute("title", re.compile("layer 1, head 2"))
    expect(app.map().locator(".wbm-stage")).to_have_attribute("aria-label", re.compile("Layer 1, head 2"))
    app.box.locator('.wb-head[data-head="1:2"]').press("ArrowRight")
    expect(app.map().locator(".wbm-stage")).to_have_attribute("aria-label", re.compile("Layer 1, head 3"))


def test_a_clicked_token_is_kept_and_shows_what_it_looks_at(app):
    app.box.locator('.wb-token[data-index="5"]').click()
    expect(app.box.locator('.wb-token[aria-selected="true"]')).to_have_attribute("data-index", "5")
    app.choose("Bars show", "attention from the kept token")
    expect(app.box.locator(".wb-tokens-title")).to_contain_text("attention from token 5, layer 1, head 3")
    shoot(app.box, "app-heads")


def test_the_microscope_zooms(app):
    app.tab("Microscope")
    expect(app.box.get_by_text("Predicted: reading them").first).to_be_visible()
    expect(app.map().locator(".wbm-read")).to_contain_text(re.compile(r"rows 0–\d\d"))  # more than the empty canvas
    whole = app.drawn_map().locator(".wbm-read").inner_text()
    app.map().get_by_label("Zoom in").click(click_count=3, delay=40)
    expect(app.map().locator(".wbm-read")).not_to_have_text(whole)
    app.map().locator(".wbm-stage").press("Home")
    expect(app.map().locator(".wbm-read")).to_have_text(whole)


def test_the_microscope_reads_a_long_text(app):
    app.choose("Source", "a held-out book, 1,024 tokens")
    app.box.get_by_role("button", name="Show", exact=True).click()
    expect(app.map().locator(".wbm-stage")).to_have_attribute("aria-label", re.compile("1024 rows"))
    app.settle()
    app.drawn_map()
    shoot(app.box, "app-microscope")


def test_a_figure_is_exported(app, tmp_path):
    with app.page.expect_download() as download:
        app.drawn_map().get_by_label("Download as PNG").click()
    download.value.save_as(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_memory_is_swapped_and_forgets(app):
    app.choose("Sample", "a dialogue with an order")
    expect(app.header).not_to_contain_text("80 tokens")
    app.choose("Memory", "streaming")
    expect(app.header).to_contain_text("memory streaming")
    expect(app.box.get_by_text("slots hold")).to_be_visible()
    expect(app.box.locator(".wb-table tbody tr").first).to_be_visible()
    shoot(app.box, "app-memory")


def test_the_timeline_is_scrubbed(app):
    app.tab("Timeline")
    event = app.box.get_by_text(re.compile(r"^event \d+:"))
    expect(event).to_be_visible()
    last = event.inner_text()
    handle = app.box.locator(".widget-slider:visible .noUi-handle").first
    for _ in range(3):
        handle.press("ArrowLeft")
    expect(event).not_to_have_text(last)
    expect(app.box.locator(".wb-word.gone:visible").nth(5)).to_be_visible()
    app.box.locator(".wb-app canvas.marks, .vega-embed canvas, .vega-embed svg").first.wait_for()
    shoot(app.box, "app-timeline")


def test_text_is_generated_through_the_memory(app):
    app.tab("Generation")
    app.box.get_by_label("New tokens").fill("8")
    app.box.get_by_role("button", name="Generate").click()
    expect(app.box.get_by_text("tokens/s through memory streaming")).to_be_visible()


def test_a_bad_choice_is_shown_and_taken_back(app):
    app.tab("Heads")
    app.choose("Model", "another model …")
    app.box.get_by_label("Name").fill("embeded")
    app.box.get_by_label("Name").press("Enter")
    expect(app.error).to_contain_text("did you mean 'embedded'")
    expect(app.header).to_contain_text("kernel flash-attention")
    app.choose("Kernel", "sdpa")
    expect(app.error).to_be_hidden()


def test_saved_and_reopened_without_a_kernel_the_pictures_are_there(app, lab, browser):
    outputs = drive.save_until(app.page, lab.folder / NOTEBOOK, "attention of layer 1, head 3")
    assert any("wb-static" in str(output.get("data", {})) for output in outputs)
    drive.stop_kernels(lab)
    with watched_page(browser) as page:
        page.route(
            "**/api/sessions*", lambda route: route.abort() if route.request.method == "POST" else route.continue_()
        )
        drive.open_in_lab(page, lab, NOTEBOOK)
        drive.dismiss(page)
        picture = page.locator("[class^=wb-static] img").last
        picture.evaluate("node => node.scrollIntoView({ block: 'center' })")
        expect(picture).to_be_visible()
        expect(page.locator(PICTURES).nth(5)).to_be_attached()
        assert page.locator(".wb-app").count() == 0
        expect(page.get_by_text("Loading widget")).to_be_hidden()
        shoot(page, "reopened-without-kernel")

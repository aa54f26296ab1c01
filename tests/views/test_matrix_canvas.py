"""matrix.js in headless Chromium, fed by a real MatrixView: zoom, hover, keyboard, select, export, remount, themes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workbench.widgets.matrix import BYTE_BUDGET, MatrixView, array_source

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("matrix-canvas")]

TEXT = "the key of Ada is under the old mat and Tom has the lamp in his box today"
WORDS = [f" {word}" for word in TEXT.split()]


def rows_shown(view: MatrixView) -> float:
    """Height of the viewport in rows; an empty viewport is the whole matrix."""
    return view.viewport[1] - view.viewport[0] if view.viewport else view.shape[0]


def causal(size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(size, size)) * 1.5
    logits[np.triu_indices(size, 1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture
def small() -> MatrixView:
    cells = causal(len(WORDS))
    return MatrixView(cells, row_labels=WORDS, col_labels=WORDS, title="layer 3 · head 5", units="probability")


@pytest.fixture
def large() -> MatrixView:
    """4,096 x 4,096 without ever holding it: value = row + column / 10,000."""
    sizes: list[tuple[int, int]] = []

    def source(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        r, c = np.arange(rows.start, rows.stop, dtype=float), np.arange(cols.start, cols.stop, dtype=float)
        pooled = array_source(r[:, None] + c / 10_000)(slice(0, r.size), slice(0, c.size), max_shape)
        sizes.append(pooled.shape)
        return pooled

    view = MatrixView(source, (4096, 4096), title="a long text", units="row", row_labels=[f"t{i}" for i in range(4096)])
    view.sizes = sizes
    return view


def test_the_small_matrix_is_exact_and_hover_reads_the_cell(canvas, small, tmp_path):
    shown = canvas(small)
    shown.wait_for("exact values")
    row, col = 7, 3
    shown.page.mouse.move(*shown.point((row + 0.5) / len(WORDS), (col + 0.5) / len(WORDS)))
    shown.wait_for("query 7 “·old”")
    assert "key 3 “·Ada”" in shown.readout
    read = float(shown.readout.split(" · ")[-1].split()[0])
    assert read == pytest.approx(causal(len(WORDS))[row, col], rel=2e-3)
    assert shown.page.get_attribute(".wbm-read", "aria-live") == "polite"
    shown.page.screenshot(path=tmp_path / "small.png")
    assert shown.problems == []


def test_zooming_asks_for_the_exact_cells_within_the_byte_budget(canvas, large, tmp_path):
    shown = canvas(large)
    shown.wait_for("mean over cells")
    overview = large.bytes_sent
    x, y = shown.point(0.5, 0.25)
    shown.page.mouse.move(x, y)
    for _ in range(14):
        shown.page.mouse.wheel(0, -120)
    shown.until(lambda: rows_shown(large) < 100, "14 turns of the wheel zoom in")
    shown.settle()
    r0, r1, c0, c1 = large.viewport
    assert r0 < 2048 < r1
    assert c0 < 1024 < c1
    shown.page.mouse.move(x + 1, y)
    shown.wait_for("query 2,0")
    row = int(shown.readout.split()[1].replace(",", ""))
    assert f"“t{row}”" in shown.readout
    assert float(shown.readout.split(" · ")[-1].split()[0]) == pytest.approx(row + 0.1024, rel=1e-3)
    shown.page.screenshot(path=tmp_path / "large.png")
    assert large.last_bytes <= BYTE_BUDGET
    assert overview <= BYTE_BUDGET
    assert max(side for size in large.sizes for side in size) <= 480


def test_the_keyboard_pans_zooms_walks_and_selects(canvas, small):
    shown = canvas(small)
    shown.wait_for("exact values")
    shown.page.focus(".wbm-stage")
    for key in ("+", "+"):
        shown.page.keyboard.press(key)
    narrow = pytest.approx(len(WORDS) * 0.36, rel=0.02)
    shown.until(lambda: rows_shown(small) == narrow, "two pluses show 36 % of the rows")
    r0, _, _, c1 = small.viewport
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("ArrowRight")
    shown.until(lambda: small.viewport[0] > r0 and small.viewport[3] > c1, "arrows pan down and right")
    shown.page.keyboard.press("Shift+ArrowLeft")
    shown.page.keyboard.press("Shift+ArrowUp")
    assert "query" in shown.readout
    shown.page.keyboard.press("Enter")
    shown.until(lambda: small.selected, "Enter selects")
    i, j = small.selected
    assert f"query {i} " in shown.readout
    assert f"key {j} " in shown.readout
    shown.page.keyboard.press("Home")
    shown.until(lambda: small.viewport == (0, len(WORDS), 0, len(WORDS)), "Home shows everything")
    shown.page.keyboard.press("Escape")
    shown.until(lambda: small.selected == (), "Escape drops the selection")


def test_a_click_selects_and_a_drag_pans(canvas, small):
    shown = canvas(small)
    shown.wait_for("exact values")
    shown.page.mouse.click(*shown.point(5.5 / len(WORDS), 2.5 / len(WORDS)))
    shown.until(lambda: small.selected == (5, 2), "a click selects")
    whole = small.viewport
    shown.page.click("[data-do=in]")
    shown.until(lambda: small.viewport != whole, "the button zooms")
    shown.settle()
    before = small.viewport
    shown.page.mouse.move(*shown.point(0.5, 0.5))
    shown.page.mouse.down()
    shown.page.mouse.move(*shown.point(0.3, 0.4), steps=4)
    shown.page.mouse.up()
    shown.until(lambda: small.viewport[0] > before[0], "a drag upwards shows later rows")
    assert small.selected == (5, 2)


def test_png_and_svg_are_made_in_the_browser(canvas, small, tmp_path):
    shown = canvas(small)
    shown.wait_for("exact values")
    with shown.page.expect_download() as download:
        shown.page.click("[data-do=png]")
    download.value.save_as(tmp_path / "map.png")
    picture = Image.open(tmp_path / "map.png")
    assert download.value.suggested_filename == "layer-3-head-5.png"
    assert picture.width >= 900
    assert len(set(picture.convert("RGB").getdata())) > 50
    with shown.page.expect_download() as download:
        shown.page.click("[data-do=svg]")
    download.value.save_as(tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert "·Ada" in text
    assert "data:image/png;base64," in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_colours_and_range_follow_the_controls(canvas, small):
    shown = canvas(small)
    shown.wait_for("exact values")
    first = shown.page.locator(".wbm canvas").screenshot()
    shown.page.select_option("[data-set=scheme]", "magma")
    shown.page.select_option("[data-set=scaling]", "log")
    shown.page.check("[data-set=lock]")
    shown.until(lambda: small.domain == pytest.approx((0.0, 1.0), abs=0.01), "the range is held")
    assert (small.scheme, small.scaling) == ("magma", "log")
    second = shown.page.locator(".wbm canvas").screenshot()
    assert Image.open(io.BytesIO(first)).tobytes() != Image.open(io.BytesIO(second)).tobytes()


def test_it_survives_unmounting_and_keeps_its_place(canvas, small):
    shown = canvas(small)
    shown.wait_for("exact values")
    whole = small.viewport
    shown.page.click("[data-do=in]")
    shown.until(lambda: small.viewport != whole, "the button zooms")
    shown.settle()
    held, sent = small.viewport, small.bytes_sent
    shown.page.evaluate("window.unmount()")
    assert shown.page.evaluate("window.model.listeners()") == 0
    assert shown.page.locator(".wbm").count() == 0
    shown.page.evaluate(
        "() => { window.unmount = window.widget.render({ model: window.model, el: document.querySelector('#here') }); }"
    )
    shown.wait_for("exact values")
    assert small.viewport == held
    assert small.bytes_sent == sent
    shown.page.evaluate("document.querySelector('#here').style.width = '420px'")
    canvas_box = shown.page.locator(".wbm canvas").bounding_box
    shown.until(lambda: canvas_box()["width"] == pytest.approx(420, abs=1), "the canvas follows its column's width")


def test_an_update_from_python_brings_new_cells(canvas, small):
    shown = canvas(small)
    shown.wait_for("exact values")
    small.update(np.full((6, 6), 0.25), title="another head")
    for name in ("shape", "viewport", "selected", "title", "revision"):
        shown.push(name)
    shown.settle()
    shown.page.mouse.move(*shown.point(0.5, 0.5))
    shown.wait_for("0.25 probability")


def test_the_live_view_hides_its_still_picture(canvas, small):
    shown = canvas(small)
    shown.page.evaluate(
        "(name) => document.body.insertAdjacentHTML('beforeend', `<p class='${name}'>still</p>`)",
        small.still_class,
    )
    assert not shown.page.locator(f".{small.still_class}").is_visible()
    shown.page.evaluate("window.unmount()")
    assert shown.page.locator(f".{small.still_class}").is_visible()


def test_a_failing_source_is_said_on_the_screen(canvas):
    def broken(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        raise OSError("the trace is gone")

    shown = canvas(MatrixView(broken, (10, 10)))
    shown.wait_for("OSError: the trace is gone")


def test_nothing_is_fetched_and_dark_pages_get_light_ink(canvas, small, tmp_path):
    shown = canvas(small, dark=True)
    shown.wait_for("exact values")
    assert [url for url in shown.requests if not url.startswith(("blob:", "data:", "about:"))] == []
    shown.page.screenshot(path=tmp_path / "dark.png")
    pixels = Image.open(io.BytesIO(shown.page.locator(".wbm canvas").screenshot())).convert("L")
    assert pixels.crop((0, 0, 200, 34)).getextrema()[1] > 200
    assert shown.problems == []


def test_cells_that_are_not_numbers_are_grey_and_said(canvas):
    cells = np.eye(8)
    cells[2, 5] = np.nan
    shown = canvas(MatrixView(cells))
    shown.wait_for("1 not a number (grey)")
    shown.page.mouse.move(*shown.point(2.5 / 8, 5.5 / 8))
    shown.wait_for("query 2 · key 5 · not a number")


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (900, 2), (1, 7)])
def test_slender_and_tiny_matrices_are_drawn_and_navigated(canvas, shape):
    shown = canvas(MatrixView(np.arange(float(shape[0] * shape[1])).reshape(shape), title="slender"))
    shown.wait_for("rows 0")
    for control in ("in", "in", "out", "home", "in"):
        shown.page.click(f"[data-do={control}]")
    shown.settle()
    shown.page.mouse.move(*shown.point(0.5, 0.5))
    shown.wait_for("query")
    box = shown.page.locator(".wbm canvas").bounding_box()
    assert 100 < box["height"] < 700
    assert shown.problems == []

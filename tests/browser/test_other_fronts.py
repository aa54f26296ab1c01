"""The app's page in Notebook 7 and in Voila."""

from __future__ import annotations

import re

import drive
import pytest
from conftest import shoot
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


def swap_and_click(page) -> drive.App:
    app = drive.App(page)
    app.choose("Kernel", "flash-attention")
    expect(app.header).to_contain_text("kernel flash-attention")
    app.box.locator('.wb-head[data-head="1:1"]').click()
    expect(app.last_line).to_contain_text("trace.map(1, 1")
    expect(app.map().locator(".wbm-stage")).to_have_attribute("aria-label", re.compile("Layer 1, head 1"))
    expect(app.error).to_be_hidden()
    app.settle()
    return app


def test_notebook_7(page, lab):
    page.goto(lab.url("notebooks/app.ipynb"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    drive.run_all(page)
    assert drive.errors(page) == []
    swap_and_click(page)
    shoot(page, "notebook-7")


def test_voila(page, voila):
    page.goto(voila.url(""))
    swap_and_click(page)
    assert page.get_by_text("Traceback").count() == 0
    shoot(page, "voila")

"""Hands for a notebook page: run it, press things in the app, and read what it shows."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from conftest import watched_page
from playwright.sync_api import expect

#: The cell that opens the app.
APP = "from workbench.widgets import Workbench\n\nWorkbench()"
READY = """async () => {
  const session = window.jupyterapp.shell.currentWidget.context.sessionContext;
  await session.ready;
  await session.session.kernel.info;
}"""


IDLE = "() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status === 'idle'"


def notebook(lab: Any, name: str, source: str) -> str:
    """A notebook of one cell in the lab's folder."""
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    page.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(page, lab.folder / name)
    return name


def open_in_lab(page: Any, server: Any, path: str) -> None:
    page.goto(server.url(f"lab/tree/{path}"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")


def run_all(page: Any, *, seconds: float = 150) -> None:
    """Menu Run, Run All Cells; waits until every code cell has run."""
    page.evaluate(READY)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).first.click()
    deadline = time.monotonic() + seconds
    while not all(re.match(r"\[\d+\]:", prompt) for prompt in prompts(page)):
        assert time.monotonic() < deadline, f"cells did not finish: {prompts(page)}"
        page.wait_for_timeout(200)
    page.wait_for_function(IDLE)


def prompts(page: Any) -> list[str]:
    return page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()


def errors(page: Any) -> list[str]:
    """Tracebacks and browser-side widget errors in the notebook's outputs."""
    bad = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').all_text_contents()
    bad += page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]').all_text_contents()
    return bad + page.get_by_text("Error displaying widget").all_text_contents()


class App:
    """The Workbench app on a page; ``maps`` says whether it opens on a map, whose tiles are then waited for."""

    def __init__(self, page: Any, *, maps: bool = True):
        self.page, self.box = page, page.locator(".wb-app").last
        self.box.wait_for()
        if maps:
            self.page.locator(".wb-app .wbm-read", has_text="exact").first.wait_for()

    def choose(self, label: str, option: str) -> None:
        self.box.get_by_label(label, exact=True).select_option(label=option)

    def press(self, name: str) -> None:
        self.box.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def tab(self, title: str) -> None:
        self.box.locator(".lm-TabBar-tab", has_text=title).click()

    @property
    def header(self) -> Any:
        return self.box.locator(".wb-head-line")

    @property
    def last_line(self) -> Any:
        return self.box.locator(".wb-code-row code")

    @property
    def error(self) -> Any:
        return self.box.locator(".wb-error")

    def map(self) -> Any:
        """The matrix canvas that can be seen."""
        return self.box.locator(".wbm:visible")

    def drawn_map(self) -> Any:
        """The same once the cells that it asked for are there: a reading before says "loading", a picture is empty."""
        expect(self.map().locator(".wbm-read")).not_to_contain_text("loading")
        expect(self.map()).not_to_have_class(re.compile(r"\bwbm-busy\b"))
        return self.map()

    def settle(self) -> None:
        """Wait until nothing runs: the progress bar is gone and the last message answered."""
        self.page.wait_for_function("() => document.querySelector('.wb-status-line').textContent === ''")


def save_until(page: Any, path: Path, wanted: str, *, seconds: float = 60) -> list[Any]:
    """Save the notebook until its file holds ``wanted``; the outputs that are in it.

    A still picture follows a change by half a second. The server writes in place, so half a file may be met.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        text = path.read_text(errors="replace")
        with contextlib.suppress(json.JSONDecodeError):
            if wanted in text:
                return [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    raise AssertionError(f"after {seconds:g} s of saving, {path.name} does not hold {wanted!r}")


def rest(server: Any, method: str, path: str) -> Any:
    request = urllib.request.Request(server.url(path), method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def stop_kernels(server: Any) -> None:
    for session in rest(server, "GET", "api/sessions"):
        rest(server, "DELETE", f"api/sessions/{session['id']}")


def refuse_new_kernels(route: Any) -> None:
    """A page route under which no kernel can be started."""
    route.abort() if route.request.method == "POST" else route.continue_()


def dismiss(page: Any) -> None:
    """Close JupyterLab's message that no kernel could be started, and stay without one."""
    page.locator(".jp-Dialog button", has_text="Ok").click()
    page.locator(".jp-Dialog button", has_text="No Kernel").click()


@contextmanager
def app_page(browser: Any, lab: Any, name: str, source: str, **look: Any) -> Iterator[App]:
    """The app of a notebook with one cell, in a JupyterLab."""
    with watched_page(browser) as page:
        open_in_lab(page, lab, notebook(lab, name, source))
        run_all(page)
        assert errors(page) == []
        yield App(page, **look)

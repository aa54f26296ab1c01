"""A real JupyterLab, a real Voila and headless Chromium; every request a page makes is written down."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "artefacts" / "screenshots"
START_SECONDS, ACTION_SECONDS = 180, 60
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]
LAB_FLAGS = [
    "--no-browser",
    "--allow-root",
    "--LabApp.expose_app_in_browser=True",
    "--JupyterNotebookApp.expose_app_in_browser=True",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
]


def chromium() -> str:
    """Chromium's path; where there is none CI fails and everybody else skips."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail("no chromium on PATH, and CI must run the browser tests: apt-get install chromium")
    if found is None:
        pytest.skip("no chromium on PATH: install it (Debian: apt-get install chromium) to run the browser tests")
    return found


@dataclass
class Server:
    """A web server of ours on a port of its own; ``folder`` holds what it serves."""

    port: int
    folder: Path
    token: str = ""
    log: Path = field(default_factory=Path)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}" + (f"?token={self.token}" if self.token else "")

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url("api" if self.token else ""), timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@contextmanager
def serving(command: list[str], server: Server, extra: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run ``command`` until the block ends; fails with the end of its log when it never answers."""
    server.log = server.folder / "server.log"
    home = server.folder / ".home"
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    environment = {
        **os.environ,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        **(extra or {}),
    }
    with server.log.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=server.folder, env=environment)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{' '.join(command[:3])} did not come up:\n{server.log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def lab() -> Iterator[Server]:
    """JupyterLab (which also answers as Notebook 7) on a copy of the notebooks."""
    with tempfile.TemporaryDirectory(prefix="workbench-lab-") as folder:
        server = Server(free_port(), Path(folder), secrets.token_hex(16))
        shutil.copytree(ROOT / "notebooks", server.folder / "notebooks")
        from workbench.widgets import app_page_path

        shutil.copy(app_page_path(), server.folder / "app.ipynb")
        where = [f"--ServerApp.port={server.port}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
        command = [sys.executable, "-m", "jupyterlab", *LAB_FLAGS, *where, f"--IdentityProvider.token={server.token}"]
        with serving(command, server):
            yield server


@pytest.fixture(scope="module")
def voila() -> Iterator[Server]:
    """The app's page, as `workbench app` serves it."""
    from workbench.widgets import app_page_path, voila_options

    options, environment = voila_options()
    with tempfile.TemporaryDirectory(prefix="workbench-voila-") as folder:
        server = Server(free_port(), Path(folder))
        page = shutil.copy(app_page_path(), server.folder / "app.ipynb")
        flags = ["--no-browser", f"--port={server.port}", "--Voila.ip=127.0.0.1", *options]
        with serving([sys.executable, "-m", "voila", str(page), *flags], server, environment):
            yield server


@pytest.fixture(scope="module", autouse=True)
def patience() -> None:
    """What is expected of a page has a minute: writing fifty notes takes a second or two, on a crowded machine many."""
    from playwright.sync_api import expect

    expect.set_options(timeout=ACTION_SECONDS * 1000)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    executable = chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield running
        running.close()


@contextmanager
def watched_page(browser: Any) -> Iterator[Any]:
    """A fresh page; when the block ends it is checked that the page asked nobody but this machine for anything."""
    context = browser.new_context(viewport={"width": 1440, "height": 1100}, accept_downloads=True)
    context.set_default_timeout(ACTION_SECONDS * 1000)
    page, asked = context.new_page(), []
    context.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    strangers = sorted({url for url in asked if not is_local(url)})
    assert asked, "the page made no request at all"
    assert not strangers, f"requests left this machine: {strangers[:5]}"


@pytest.fixture
def page(browser):
    with watched_page(browser) as fresh:
        yield fresh


def is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in ("127.0.0.1", "localhost")


def shoot(target: Any, name: str) -> Path:
    """Keep a screenshot of a page or an element under artefacts/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    target.screenshot(path=path)
    return path

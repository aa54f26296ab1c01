"""``workbench app``: the workbench as a page, served by Voila."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import workbench.widgets
from workbench.cli import serve
from workbench.cli.output import examples
from workbench.errors import WorkbenchError


def add_to(app: typer.Typer) -> None:
    app.command("app", epilog=examples("workbench app", "workbench app --no-browser --port 8870"))(serve_app)


def serve_app(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="first free from 8866")
    ] = None,
    ip: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 in a container with a mapped port.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser (never without a display).")] = True,
) -> None:
    """Serve the workbench as a page: model, kernel, memory and text with buttons, no notebook around it."""
    page = _page()
    number = serve.free_port(port, ip, 8866)
    arguments = [
        str(page),
        f"--Voila.ip={ip}",
        f"--port={number}",
        "--Voila.port_retries=0",
        *([] if browser and serve.has_display() else ["--no-browser"]),
    ]
    serve.announce(f"http://{serve.host(ip)}:{number}/")
    options, environment = workbench.widgets.voila_options()
    serve.become("voila", [*arguments, *options], environment)


def _page() -> Path:
    page = workbench.widgets.app_page_path()
    if not page.is_file():
        raise WorkbenchError(f"the page {page} does not exist; is the installation complete?")
    return page

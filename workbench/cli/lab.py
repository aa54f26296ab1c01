"""``workbench lab``: JupyterLab on the start notebook."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import serve
from workbench.cli.output import examples, note
from workbench.errors import WorkbenchError
from workbench_datasets import files


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "workbench lab", "workbench lab --no-browser --port 8890", "workbench lab --copy-to ~/my-notebooks"
        )
    )(lab)


def lab(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="first free from 8888")
    ] = None,
    ip: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 in a container with a mapped port.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser (never without a display).")] = True,
    copy_to: Annotated[Path | None, typer.Option(help="Work on a copy of the notebooks in this folder.")] = None,
) -> None:
    """Open JupyterLab on the start notebook and print its address with the token.

    As root (in a container) it adds --allow-root and says so. Installed from a wheel, it first copies the notebooks to
    ./workbench-notebooks and never overwrites what is there.
    """
    if copy_to is not None:
        from workbench.studies.cells import check_writable

        check_writable(copy_to, "choose another --copy-to")
    folder = serve.notebooks_folder(copy_to)
    if not (folder / serve.START).is_file():
        raise WorkbenchError(f"the start notebook {folder / serve.START} does not exist; is the installation complete?")
    number, token = serve.free_port(port, ip, 8888), secrets.token_hex(24)
    top = folder.parent if files.in_checkout() and copy_to is None else folder
    page = (folder / serve.START).relative_to(top)
    arguments = _arguments(top, page, ip, number, browser and serve.has_display())
    serve.announce(f"http://{serve.host(ip)}:{number}/lab/tree/{page}?token={token}")
    serve.become("jupyterlab", arguments, {"JUPYTER_TOKEN": token})


def _arguments(top: Path, page: Path, ip: str, port: int, browser: bool) -> list[str]:
    """Nothing is asked of other hosts: no news, no check for updates, no extension index."""
    arguments = [
        f"--ServerApp.root_dir={top.resolve()}",
        f"--LabApp.default_url=/lab/tree/{page}",
        f"--ServerApp.ip={ip}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
    ]
    if serve.is_root():
        note("running as root: adding --allow-root")
        arguments.append("--allow-root")
    return arguments if browser else [*arguments, "--no-browser"]

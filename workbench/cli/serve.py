"""What `lab` and `app` share: a free port, whether a browser can open, and becoming the server."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.cli.output import err, note, out
from workbench.errors import BadInput, WorkbenchError
from workbench_datasets import files

START = "00-start-here.ipynb"


def free_port(wanted: int | None, ip: str, first: int) -> int:
    """The port asked for if it is free (an error if not), else the first free one from ``first`` on."""
    _check_address(ip)
    if wanted is not None:
        if not _is_free(wanted, ip):
            raise BadInput(f"--port {wanted} is taken on {ip}; choose another or leave the option out")
        return wanted
    for port in range(first, first + 50):
        if _is_free(port, ip):
            return port
    raise WorkbenchError(f"no free port between {first} and {first + 49}; name one with --port")


def _check_address(ip: str) -> None:
    """An address that is not this machine's would look as if all its ports were taken."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError as error:
            raise BadInput(
                f"--ip {ip} is no address of this machine ({error}); 127.0.0.1 serves this machine alone, 0.0.0.0 its "
                "networks too"
            ) from error


def _is_free(port: int, ip: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError:
            return False
    return True


def has_display() -> bool:
    """Whether a browser could open here: always on macOS and Windows, elsewhere with an X or Wayland display."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def host(ip: str) -> str:
    """The name to type into a browser for a server that listens on ``ip``."""
    return "localhost" if ip in ("127.0.0.1", "0.0.0.0", "::", "") else ip


def announce(url: str) -> None:
    out.print(f"open [bold cyan]{url}[/bold cyan]", soft_wrap=True)
    note("Ctrl-C stops the server")
    sys.stdout.flush()


def become(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Replace this process by ``python -m module``, so that signals and Ctrl-C reach the server itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], {**os.environ, **environment})


def notebooks_folder(copy_to: Path | None) -> Path:
    """The notebooks of the checkout; of an installed package a copy that the reader may write to."""
    if files.in_checkout() and copy_to is None:
        return files.notebooks_root()
    return _copy(files.notebooks_root(), copy_to or Path("workbench-notebooks"))


def _copy(source: Path, folder: Path) -> Path:
    """Copies what is not there yet; a notebook that the reader has changed is never overwritten."""
    new = 0
    for path in sorted(source.rglob("*.ipynb")):
        goal = folder / path.relative_to(source)
        if goal.exists() or ".ipynb_checkpoints" in path.parts:
            continue
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal)
        new += 1
    if new:
        err.print(f"copied {new} notebooks to {folder}")
    return folder

"""What every command shares: tables and JSON on stdout, everything else on stderr, errors as one message."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

import workbench
import workbench_datasets
import workbench_kernels
from workbench.errors import BadInput, WorkbenchError

FAILED, USAGE, INTERRUPTED = 1, 2, 130

#: In a pipe there is no terminal to ask for its width.
_PIPE_WIDTH = 120

out = Console(highlight=False, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False)


def examples(*lines: str) -> str:
    """The epilog of a command: one example a line."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  [cyan]$ {escape(line)}[/cyan]" for line in lines)


def emit(value: Any) -> None:
    """JSON on stdout; NaN has no spelling there, so it is an error to emit one."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A line for the person at the terminal; never on stdout."""
    err.print(escape(text), style="dim", soft_wrap=True)


def is_ours(error: BaseException) -> bool:
    """Raised on purpose by one of our packages: its message is written for the reader."""
    if isinstance(error, WorkbenchError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = Path(frames[-1].filename) if frames else Path()
    return isinstance(error, (ValueError, FileNotFoundError)) and any(map(raised_in.is_relative_to, _our_folders()))


def _our_folders() -> list[Path]:
    return [Path(module.__file__ or "").parent for module in (workbench, workbench_kernels, workbench_datasets)]


def is_usage(error: BaseException) -> bool:
    """The command was called with something it does not accept (unknown names, values out of range)."""
    return isinstance(error, BadInput) or (isinstance(error, ValueError) and not isinstance(error, WorkbenchError))


_GOES_ON = "what was finished is kept, and the same command goes on from there"
#: What a command that was stopped leaves behind; all others begin anew.
KEPT = {
    "run": _GOES_ON,
    "figures": _GOES_ON,
    "data": "files that are whole are kept, and the same command goes on from there",
    "train": "`train embedded` goes on from its last checkpoint, `train lists` begins anew",
    "bench": "with --record the rows measured so far are kept; the same command begins anew",
}


@contextmanager
def readable(debug: bool, command: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Our errors become one message and an exit code; anything else is a bug and keeps its traceback.

    ``command`` names what runs, once that is known: what Ctrl-C leaves behind is not the same everywhere.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = KEPT.get(command() or "", "the same command begins anew")
        err.print(f"[bold]stopped[/bold]; {kept}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug or not is_ours(error):
            raise
        err.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(USAGE if is_usage(error) else FAILED) from None

"""The command line. Commands import what they need when they run, so that ``workbench --help`` is quick.

Exit codes: 0 it ran; 1 it failed, or with ``--strict`` a claim does not hold; 2 it was called wrongly (unknown names
too); 130 it was stopped with Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workbench import __version__
from workbench.cli import app as app_command
from workbench.cli import bench, compare, data, figures, lab, look, models, papers, run, train
from workbench.cli.output import examples, out, readable


class _Group(TyperGroup):
    """Turns our errors into messages at one place for all commands."""

    def invoke(self, ctx: Any) -> Any:
        with readable(bool(ctx.params.get("debug")), lambda: ctx.invoked_subcommand):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    name="workbench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=examples(
        "workbench papers",
        "workbench run flash-attention sirllm --strict",
        "workbench look embedded --text README.md --layer 3 --head 5 -o map.png",
        "workbench lab",
    ),
)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"memory-workbench {__version__}")
        raise typer.Exit


@app.callback()
def _workbench(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Load a model, swap its attention kernel or its memory, run the papers' experiments, and look."""


papers.add_to(app)
run.add_to(app)
bench.add_to(app)
compare.add_to(app)
figures.add_to(app)
look.add_to(app)
models.add_to(app)
data.add_to(app)
train.add_to(app)
app_command.add_to(app)
lab.add_to(app)


def main() -> None:
    """Entry point of the ``workbench`` command."""
    app(prog_name="workbench")

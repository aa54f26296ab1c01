"""``workbench data``: the real data, its licence and its place on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from workbench.cli.output import emit, examples, note, out
from workbench_datasets import registry

data = typer.Typer(no_args_is_help=True, help="Real data: where it comes from, its licence, where it is here.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(data, name="data", epilog=examples("workbench data list", "workbench data fetch books"))


@data.command("list", epilog=examples("workbench data list", "workbench data list --json"))
def list_(json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout.")] = False) -> None:
    """All registered data with source, licence and what of it is on this machine."""
    rows = [_row(name) for name in registry.collections()]
    if json:
        emit({"data": rows})
        return
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("name", "files", "here", "MB", "what", "licence"):
        table.add_column(name, no_wrap=name in ("name", "files", "here", "MB"))
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f}"
        table.add_row(row["name"], str(row["files"]), str(row["here"]), size, escape(row["what"]), row["licence"])
    out.print(table)


def _row(name: str) -> dict[str, Any]:
    collection = registry.collection(name)
    return {
        "name": name,
        "files": len(collection.files),
        "here": sum(place is not None for place in registry.where(name).values()),
        "bytes": sum(file.bytes for file in collection.files.values()),
        "what": collection.what,
        "source": collection.source,
        "licence": collection.licence,
    }


@data.command(epilog=examples("workbench data fetch books", "WORKBENCH_DATA=~/data workbench data fetch hipporag"))
def fetch(names: Annotated[list[str], typer.Argument(help="Names from `workbench data list`.")]) -> None:
    """Download what is not on this machine; every file is checked against its sha256."""
    for name in names:
        places = registry.fetch(name)
        note(f"{name}: {len(places)} files, in {places[0].parent}")


@data.command(epilog=examples("workbench data where books", "workbench data where books --json"))
def where(
    name: Annotated[str, typer.Argument(help="A name from `workbench data list`.")],
    json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout.")] = False,
) -> None:
    """The place of every file, and where an absent one would go."""
    places = registry.where(name)
    if json:
        emit({"name": name, "files": {file: place and str(place) for file, place in places.items()}})
        return
    goal = registry.folders()[0] / name
    for file, place in places.items():
        found = (
            str(place)
            if place
            else f"absent; put it at {goal / file}, it comes from {registry.collection(name).files[file].url}"
        )
        out.print(escape(f"{file}: {found}"), soft_wrap=True)

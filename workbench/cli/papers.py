"""``workbench papers``: what stands of each paper."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from workbench import catalogue
from workbench.catalogue import PARTS, Entry
from workbench.cli.output import emit, examples, out

HEADS = {"mechanism": "mech", "study": "study", "notebook": "note", "reported": "rep", "recorded": "rec"}

_LEFT_OF_TITLE = 74  # columns of the table before the title, the longest slug included
_SHORTEST_TITLE = 24


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "workbench papers", "workbench papers sirllm titans", "workbench papers --json | jq '.papers[].slug'"
        )
    )(papers)


def papers(
    slugs: Annotated[list[str] | None, typer.Argument(help="Only these papers.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout.")] = False,
) -> None:
    """List the papers and which parts of each exist: mechanism, study, notebook, reported and recorded numbers."""
    entries = [catalogue.entry(slug) for slug in slugs] if slugs else catalogue.entries()
    if json:
        emit({"papers": [entry.to_json() for entry in entries]})
        return
    out.print(_table(entries))
    complete = sum(entry.complete for entry in entries)
    out.print("[dim]mechanism, study, notebook, reported numbers, recorded run[/dim]")
    out.print(f"{complete} of {len(entries)} complete. Run one: [cyan]workbench run SLUG[/cyan]")


def _table(entries: list[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("slug", no_wrap=True)
    for part in PARTS:
        table.add_column(HEADS[part], justify="center", no_wrap=True)
    table.add_column("year", no_wrap=True)
    room = out.width - _LEFT_OF_TITLE
    if room >= _SHORTEST_TITLE:
        table.add_column("title", no_wrap=True)
    chapter = ""
    for entry in entries:
        if entry.paper.chapter != chapter:
            chapter = entry.paper.chapter
            table.add_row(f"[dim]{chapter}[/dim]")
        marks = ["[green]✓[/green]" if getattr(entry, part) else "[dim]·[/dim]" for part in PARTS]
        title = [escape(_clip(entry.paper.title, room))] if room >= _SHORTEST_TITLE else []
        table.add_row(f"  {entry.paper.slug}", *marks, str(entry.paper.year), *title)
    return table


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

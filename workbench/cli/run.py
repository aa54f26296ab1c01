"""``workbench run``: the papers' experiments with a verdict on every claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from workbench.cli.output import FAILED, emit, err, examples, note, out

if TYPE_CHECKING:
    from workbench.studies.result import Result

STYLES = {"holds": "green", "not reproduced": "red", "inconclusive": "yellow"}


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "workbench run sirllm",
            "workbench run flash-attention sirllm --strict --json",
            "workbench run sirllm --seeds 5 --on ray",
            "workbench run flash-attention --scale full --record",
        )
    )(run)


def run(
    slugs: Annotated[list[str], typer.Argument(help="Papers to run; `workbench papers` lists them.")],
    scale: Annotated[
        str, typer.Option(help="quick: seconds on two cores; full: the paper's size, often on a GPU; some have more.")
    ] = "quick",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    on: Annotated[str, typer.Option(help="process, or ray: every study x seed is a Ray task.")] = "process",
    device: Annotated[
        str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.", show_default="by scale")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the rows to datasets/recorded.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 unless every claim holds.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute anew what an earlier run has finished.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout; progress stays on stderr.")] = False,
) -> None:
    """Run studies and judge their claims: holds, not reproduced, or inconclusive, with an effect and an interval.

    A run that was stopped goes on where it was: every finished study x scale x seed is kept, and reused as long as the
    code, the settings and the libraries are the same.
    """
    from workbench.studies.runner import run_all

    options: dict[str, Any] = {"scale": scale, "seeds": seeds, "on": on, "record": record, "device": device}
    show = (lambda result: None) if json else _show
    results = run_all(slugs, resume=not fresh, done=show, **options)
    if json:
        emit({"studies": [result.to_json() for result in results]})
    if record:
        _say_recorded(results)
    if strict:
        _insist(results)


def _show(result: Result) -> None:
    reused = result.provenance["reused"]
    kept = f", {reused} of {len(result.provenance['seeds'])} seeds from an earlier run" if reused else ""
    out.print(f"[bold]{result.slug}[/bold] {result.scale} · {result.seconds:.1f} s · {len(result.frame)} rows{kept}")
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("claim", "verdict", "effect", "interval", "n", "statement"):
        table.add_column(name, justify="right" if name in ("effect", "n") else "left", no_wrap=name != "statement")
    for claim in result.claims():
        style = STYLES[claim["verdict"]]
        interval = f"[{number(claim['low'])}, {number(claim['high'])}]"
        statement = escape(claim["statement"] + (f" ({claim['note']})" if claim["note"] else ""))
        verdict = f"[{style}]{claim['verdict']}[/{style}]"
        table.add_row(claim["id"], verdict, number(claim["effect"]), escape(interval), str(claim["n"]), statement)
    out.print(table)


def number(value: float) -> str:
    """Three significant digits; a dash for what was not measured."""
    return "–" if value != value else f"{value:.3g}"


def _say_recorded(results: list[Result]) -> None:
    from workbench_datasets import recorded

    for result in results:
        note(f"recorded {len(result.frame)} rows in {recorded.path(result.slug)}")


def _count(claims: list[str]) -> str:
    return "1 claim does" if len(claims) == 1 else f"{len(claims)} claims do"


def _insist(results: list[Result]) -> None:
    failed = [f"{r.slug} {key} ({o.verdict})" for r in results for key, o in r.outcomes.items() if o.verdict != "holds"]
    if failed:
        err.print(
            f"[bold red]strict:[/bold red] {_count(failed)} not hold: {escape(', '.join(failed))}", soft_wrap=True
        )
        raise typer.Exit(FAILED)

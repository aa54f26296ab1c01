"""``workbench figures``: a gallery of the papers' figures with claims and verdicts."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from workbench.cli.output import FAILED, err, examples, is_ours, note


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "workbench figures -o gallery",
            "workbench figures sirllm -o gallery",
            "workbench figures --seeds 3 -o gallery",
        )
    )(figures)


def figures(
    slugs: Annotated[
        list[str] | None, typer.Argument(help="Papers; all that have a study.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("gallery"),
    scale: Annotated[str, typer.Option(help="Scale of the live run.")] = "quick",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the live run.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute anew what an earlier run has finished.")] = False,
) -> None:
    """Write index.html with every figure as SVG and PNG: the paper's numbers, the recorded run and a live run.

    The live run is reused when it has been made before. The page needs no network and no other file.
    """
    from tqdm.auto import tqdm

    from workbench.studies import STUDIES
    from workbench.studies.cells import check_writable
    from workbench.studies.gallery import Plate, plate, write_index
    from workbench.studies.runner import study_of

    chosen = list(dict.fromkeys(slugs or STUDIES.names()))
    studies = [study_of(slug) for slug in chosen]
    if not any(scale in study.scales for study in studies):
        studies[0].scale(scale)  # nobody has it: said before a page that stands there is written over
    check_writable(output, "choose another --output")
    plates: list[Plate] = []
    failed = []
    for slug in tqdm(chosen, desc="figures", disable=len(chosen) < 2, leave=False):
        try:
            plates.append(plate(slug, output, scale=scale, seeds=seeds, resume=not fresh))
        except Exception as error:
            failed.append(slug)
            _complain(slug, error)
    page = write_index(plates, output)
    note(f"{len(plates)} of {len(chosen)} figures")
    typer.echo(page)
    if failed:
        raise typer.Exit(FAILED)


def _complain(slug: str, error: Exception) -> None:
    """One study that fails does not cost the others their figures; a bug in it still shows where it is."""
    err.print(f"[bold red]{slug}:[/bold red] {escape(str(error))}", soft_wrap=True)
    if not is_ours(error):
        err.print(escape("".join(traceback.format_exception(error))), soft_wrap=True)

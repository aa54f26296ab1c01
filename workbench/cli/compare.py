"""``workbench compare layers``: every registered sequence memory on one probe, by the bytes of its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench.cli.output import emit, examples, note

if TYPE_CHECKING:
    import pandas as pd

#: What the columns mean, printed under the table and put into the JSON.
EQUAL_STATE = (
    "Bytes are all that one stream carries from token to token, in float32; weights are not counted. A column is the "
    "best accuracy of a memory among its widths whose state fits into that many bytes."
)
#: A line that is cut off helps nobody, however narrow the terminal.
_WIDE = 160
PROBE = "16 pairs are told, one a token, then each key is asked once; 32 values, so that chance is .031."


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Hold mechanisms of one kind against each other on one probe.", no_args_is_help=True)
    group.command(
        "layers",
        epilog=examples(
            "workbench compare layers",
            "workbench compare layers titans mom delta-net -o recall.svg",
            "workbench compare layers my-layer --json",
        ),
    )(layers)
    app.add_typer(group, name="compare", rich_help_panel=None)


def layers(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sequence memories; all that are registered.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the chart: .svg, .png, .pdf or .html.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train all anew (minutes), not only what is not shipped.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Models a point of what is trained.")] = 1,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu, cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout; progress stays on stderr.")] = False,
) -> None:
    """Recall against bytes of state: shipped models on fresh streams; a memory that is not shipped is trained first."""
    from workbench import provenance
    from workbench.compare import layers as task

    _check(output)
    with _points(len(task.lines(names or None)) * len(task.DIMS)) as told:
        frame = task.compare(
            names or None, anew=train, seeds=task.SEEDS[:seeds] if seeds <= len(task.SEEDS) else range(10, 10 + seeds),
            device=device, progress=_bar, told=told,
        )  # fmt: skip
    if output is not None:
        _save(frame, output)
    if json:
        emit({"probe": PROBE, "equal_state": EQUAL_STATE, "recipe": vars(task.RECIPE),
              "provenance": provenance.libraries(), "rows": _rows(frame)})  # fmt: skip
        return
    _show(frame, task.at_budget(frame))


@contextmanager
def _points(count: int) -> Iterator[Callable[[str], None]]:
    """A bar over lines and widths, on stderr; it is told the name of each when its turn comes."""
    from tqdm.auto import tqdm

    with tqdm(total=count, unit="point", leave=False) as bar:

        def told(name: str) -> None:
            bar.set_description(name)
            bar.update()

        yield told


def _bar(steps: Iterable[int], label: str) -> Iterator[int]:
    from tqdm.auto import tqdm

    yield from tqdm(steps, desc=label, unit="step", leave=False)


def _check(output: Path | None) -> None:
    from workbench.errors import BadInput

    if output is not None and output.suffix not in (".svg", ".png", ".pdf", ".html"):
        raise BadInput(f"output={str(output)!r} must end in .svg, .png, .pdf or .html")
    if output is not None and not output.absolute().parent.is_dir():
        raise BadInput(f"output={str(output)!r}: there is no folder {output.parent}; make it first")


def _save(frame: pd.DataFrame, output: Path) -> None:
    from workbench.views import recall_by_state

    lines = [PROBE, "Grey: the other memories. Bytes: all that one stream carries, in float32, weights not counted."]
    recall_by_state(frame, title="Recall by bytes of state", subtitle=lines).save(str(output))
    note(f"chart written to {output}")


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """NaN has no spelling in JSON: an interval that one seed cannot give is null."""
    rows = frame.to_dict("records")
    return [{str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def _show(frame: pd.DataFrame, budgets: pd.DataFrame) -> None:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("memory", no_wrap=True)
    for title in ("width: bytes → right", *(f"≤ {_bytes(int(str(budget)))}" for budget in budgets)):
        table.add_column(title, justify="right", no_wrap=True)
    for line, rows in frame.groupby("line", sort=False):
        numbers = zip(rows["dim"].tolist(), rows["bytes"].tolist(), rows["accuracy"].tolist())
        points = "  ".join(f"{dim}: {_bytes(count)} → {right:.2f}" for dim, count, right in numbers)
        fits = ["–" if value != value else f"{value:.2f}" for value in budgets.loc[[line]].to_numpy()[0]]
        here = "" if (rows["source"] == "shipped").all() else " [yellow]*[/yellow]"
        table.add_row(escape(str(line)) + here, points, *fits)
    out = Console(highlight=False, width=_WIDE)
    out.print(table)
    out.print(f"{PROBE}\n{EQUAL_STATE}", style="dim")
    if (frame["source"] != "shipped").any():
        out.print("[yellow]*[/yellow] trained here, by the recipe of the others")


def _bytes(count: float) -> str:
    return f"{count:.0f} B" if count < 1024 else f"{count / 1024:.3g} KB"

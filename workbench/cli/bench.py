"""``workbench bench``: our kernels against every peer present, in one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench.cli.output import emit, examples, note

if TYPE_CHECKING:
    import pandas as pd


#: Columns of a table: a row that is cut off helps nobody, however narrow the terminal.
_WIDE = 240


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "workbench bench attention", "workbench bench decode --json", "workbench bench layers --minutes 4 --record"
        )
    )(bench)


def bench(
    name: Annotated[str, typer.Argument(help="Table: attention, decode, ... A misspelt name lists them.")],
    quick: Annotated[bool, typer.Option("--quick", help="Few points: about 20 s on a GPU.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.", show_default="the GPU if there is one")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Begin no case after so many minutes.", show_default="the table's own limit, on a GPU"),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the rows to datasets/recorded.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout; progress stays on stderr.")] = False,
) -> None:
    """Race our kernels against every peer present: time, rate, error against float32 or float64, and two ratios.

    The ratios are to the fastest peer of the same case (above 1: faster) and to the ceiling of the same run (a large
    matrix product, or a device copy).
    """
    from workbench import bench as tables
    from workbench import provenance
    from workbench_datasets import recorded

    table = tables.BENCHES.get(name)
    frame = tables.run(name, device=device, quick=quick, record=record, minutes=minutes)
    if json:
        emit({"bench": name, "title": table.title, "provenance": provenance.libraries(), "rows": _rows(frame)})
    else:
        _show(table.title, frame)
    if record:
        note(f"recorded {len(frame)} rows in {recorded.path(f'bench-{name}')}")


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """NaN has no spelling in JSON: what was not measured is null."""
    return [{str(key): _or_null(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(title: str, frame: pd.DataFrame) -> None:
    out = Console(highlight=False, width=_WIDE)
    first = frame.iloc[0]
    clock = "" if math.isnan(first["sm_mhz"]) else f", {first['sm_mhz']:.0f} MHz under load"
    for unit in frame["unit"].unique():
        ceiling = frame.loc[frame["unit"] == unit, "ceiling"].iloc[0]
        out.print(f"[bold]{escape(title)}[/bold] · ceiling {ceiling:.3g} {unit}{clock}")
        out.print(_rates(frame[frame["unit"] == unit], unit))
    out.print(_details(frame))
    for text in sorted({f"{row['item']}: {row['failure']}" for row in frame.to_dict("records") if row["failure"]}):
        out.print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True)


def _place_columns(frame: pd.DataFrame) -> list[str]:
    return list(frame.columns[: list(frame.columns).index("item")])


def _varying(frame: pd.DataFrame) -> list[str]:
    """The fewest columns that tell the cases apart: what follows from the others is left out."""
    kept = columns = _place_columns(frame)
    cases = len(frame[columns].drop_duplicates())
    for name in reversed(columns):
        fewer = [other for other in kept if other != name]
        if fewer and len(frame[fewer].drop_duplicates()) == cases:
            kept = fewer
    return kept


def _rates(frame: pd.DataFrame, unit: str) -> Table:
    """One line a case, one column a contender, the fastest in bold."""
    places, items = _varying(frame), list(dict.fromkeys(frame["item"]))
    table = _table([*places, *map(str, items)], caption=f"{unit}; bold: the fastest of its line")
    for place, rows in frame.groupby(places, sort=False):
        rates = {str(item): float(rate) for item, rate in zip(rows["item"], rows["rate"])}
        best = max((rate for rate in rates.values() if rate == rate), default=math.nan)
        cells = [_rate(rates.get(item, math.nan), best) for item in items]
        table.add_row(*map(_cell, place), *cells)
    return table


def _rate(rate: float, best: float) -> str:
    text = "–" if rate != rate else f"{rate:.3g}"
    return f"[bold]{text}[/bold]" if rate == best else text


def _details(frame: pd.DataFrame) -> Table:
    """Our rows with their quartiles, errors (the best peer's error beside it) and ratios."""
    places = _varying(frame)
    names = ["median ms", "quartiles", "error", "best peer", "its error", "to best peer", "to ceiling"]
    table = _table([*places, "item", *names])
    for place, rows in frame.groupby(places, sort=False):
        peers = rows[~rows["ours"] & rows["median_ms"].notna()]
        best = peers.sort_values("median_ms").to_dict("records")[:1]
        rival = [text for row in best for text in (escape(row["item"]), f"{row['error']:.1e}")] or ["–", "–"]
        for row in rows[rows["ours"] & rows["median_ms"].notna()].to_dict("records"):
            quartiles = f"{row['q25_ms']:.4g}..{row['q75_ms']:.4g}"
            numbers = [f"{row['median_ms']:.4g}", quartiles, f"{row['error']:.1e}"]
            ratios = [f"{row['to_best_peer']:.2f}", f"{row['to_ceiling']:.2f}"]
            table.add_row(*map(_cell, place), escape(row["item"]), *numbers, *rival, *ratios)
    return table


def _table(columns: list[str], caption: str | None = None) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", caption=caption, caption_justify="left")
    for name in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    return table


def _cell(value: Any) -> str:
    return escape(str(value))
